//! Messages between the ranks of a run: none blocks, all end within a time limit, and a rank that fails tells the others why.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::io::Write;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::ffi;
use mpi::point_to_point::{MatchedReceiveVec, Status};
use mpi::raw::AsRaw;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Equivalence, Source};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Tags of messages. Each pair of ranks sends the messages of a tag in the same order on both sides.
pub(crate) mod tag {
    /// Notices.
    pub const NOTICE: i32 = 1;
    /// Whether ranks agree, once at the start.
    pub const AGREEMENT: i32 = 2;
    /// What each rank knows of a step.
    pub const SUMMARY: i32 = 3;
    /// Checkpoints.
    pub const SAVE: i32 = 4;
    /// The caller's messages.
    pub const CALLER: i32 = 5;
    /// The first tag of the buckets, each of which has [`OF_BUCKET`].
    pub const FIRST_BUCKET: i32 = 16;
    /// Gradients to be summed, averages, values.
    pub const OF_BUCKET: i32 = 3;
    /// The largest tag that every MPI has.
    pub const LARGEST: i32 = 32767;
}

/// The most bytes of a message. MPI counts them in an `int`.
pub(crate) const MOST_MESSAGE_BYTES: u64 = 1 << 30;
/// The most bytes of an error that is sent to other ranks. Messages of this size arrive whole without the sender's help.
const MOST_REASON_BYTES: usize = 1000;
/// How long messages of a rank that has ended may still be under way.
const AFTER_END: Duration = Duration::from_secs(1);
/// How long a rank sleeps when nothing has moved. Ranks often share cores.
const IDLE: Duration = Duration::from_micros(50);

/// A handle of this rank and its messages to the others. Clones are the same rank.
#[derive(Clone)]
pub struct Ranks {
    inner: Rc<Inner>,
    channel: Rc<Channel>,
}

struct Inner {
    world: SimpleCommunicator,
    /// Of notices.
    world_channel: Rc<Channel>,
    rank: usize,
    size: usize,
    limit: Duration,
    /// The longest time limit of any part of the run.
    longest_limit: Cell<Duration>,
    sends: RefCell<Vec<Transfer<Rc<Vec<u8>>>>>,
    spare: RefCell<Vec<Vec<u8>>>,
    traffic: Cell<Traffic>,
    peers: RefCell<Vec<Peer>>,
    /// Of another rank.
    failure: RefCell<Option<Failure>>,
    /// What this rank has told the others.
    told: RefCell<Option<Failure>>,
    /// When this rank told the others last that it waits.
    told_waits: Cell<Instant>,
}

/// A communicator of its own, which does not mix its messages with those of others.
struct Channel(ffi::MPI_Comm);

/// What a rank knows of another one.
#[derive(Clone, Default)]
struct Peer {
    /// When it was heard that it has done its work.
    done: Option<Instant>,
    /// It has printed its error.
    is_gone: bool,
    /// When it was heard last that it waits, and for which ranks.
    waits: Option<(Instant, Vec<usize>)>,
}

/// What a rank tells all others of itself.
#[derive(Serialize, Deserialize)]
enum Notice {
    /// It waits for these ranks, or for its device.
    Waits(Vec<usize>),
    Failed(Failure),
    /// It has done its work.
    Done,
    /// It has printed its error.
    Gone,
}

/// Why the run ends.
#[derive(Clone, Serialize, Deserialize)]
struct Failure {
    /// The first rank that said so.
    rank: usize,
    reason: String,
    /// The ranks from which nothing is heard.
    silent: Vec<usize>,
}

/// What a rank has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Their bytes, without MPI's own headers.
    pub bytes: u64,
}

/// A message under way, with the buffer that MPI reads or writes meanwhile: shared if it goes to several ranks.
pub(crate) struct Transfer<B> {
    request: ffi::MPI_Request,
    /// What MPI said to the start.
    code: c_int,
    /// Nothing once the message has arrived.
    parts: Option<Parts<B>>,
    /// The rank that it goes to or comes from.
    other: usize,
    /// How many bytes have to come.
    bytes: Option<usize>,
}

/// What has to live as long as a transfer.
struct Parts<B> {
    buffer: B,
    channel: Rc<Channel>,
}

/// What a rank waits for.
pub(crate) enum Awaited {
    /// Messages of these ranks.
    Ranks(Vec<usize>, String),
    /// This rank's device.
    Device(String),
}

/// Whether a wait is over.
pub(crate) enum Progress<T> {
    Done(T),
    /// Something arrived: the time limit starts anew.
    Moved,
    Stuck,
}

/// Runs this process as a rank of MPI. `limit` is how long it waits for another rank, or for its device, without any progress.
///
/// If `work` fails or panics, the error is printed and sent to all other ranks, whose next call of this crate fails with [`Error::Rank`].
/// A rank that fails waits until all others have printed their errors, because `mpirun` stops them when the first one ends: for `limit` at
/// most, and for none that is silent. At its end, a rank waits for all others, as long as their checkpoints may take.
///
/// Call it once in a process, which `mpirun` has started; without `mpirun` the process is the only rank.
pub fn run<E: std::fmt::Display>(limit: Duration, work: impl FnOnce(&Ranks) -> Result<(), E>) -> ExitCode {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        eprintln!("error: MPI was initialized before");
        return ExitCode::FAILURE;
    };
    let ranks = Ranks::new(universe.world(), limit);
    let text = |error: Error| error.to_string();
    let work = || {
        work(&ranks.duplicate().map_err(text)?).map_err(|error| error.to_string())?;
        ranks.end().map_err(text)
    };
    let result = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => Err(format!("panicked: {}", panic_text(panic.as_ref()))),
    };
    match result {
        // MPI is finalized, which waits for all ranks. All of them are known to be at their end.
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ranks.fail(&error);
            // In one piece, so that the lines of several ranks do not mix. Without a standard error, nobody reads it.
            let _ =
                std::io::stderr().write_all(format!("rank {}: error: {error}\n", ranks.rank()).as_bytes());
            ranks.leave();
            // MPI's finalization would wait for ranks that are dead.
            std::mem::forget(universe);
            ExitCode::FAILURE
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

impl Ranks {
    fn new(world: SimpleCommunicator, limit: Duration) -> Self {
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let channel = Rc::new(Channel(world.as_raw()));
        let inner = Inner {
            world,
            world_channel: channel.clone(),
            rank,
            size,
            limit,
            longest_limit: Cell::new(limit),
            sends: RefCell::default(),
            spare: RefCell::default(),
            traffic: Cell::default(),
            peers: RefCell::new(vec![Peer::default(); size]),
            failure: RefCell::default(),
            told: RefCell::default(),
            told_waits: Cell::new(Instant::now()),
        };
        Self { inner: Rc::new(inner), channel }
    }

    /// The same rank with messages that do not mix with others. All ranks call it in the same order.
    pub(crate) fn duplicate(&self) -> Result<Self, Error> {
        // SAFETY: a constant of MPI.
        let mut new = vec![unsafe { ffi::RSMPI_COMM_NULL }];
        let place = new.as_mut_ptr();
        // SAFETY: MPI writes to the memory of the vector, which the transfer keeps until the request is complete. The parent lives as long.
        let start = |parent, request| unsafe { ffi::MPI_Comm_idup(parent, place, request) };
        let mut transfer = Transfer::start(&self.channel, self.rank(), new, start);
        let new = self.wait(self.limit(), || {
            let others =
                || Awaited::Ranks(self.others().collect(), "that it opens a communicator".to_owned());
            Ok(match transfer.poll()? {
                Some(new) => (Progress::Done(new), None),
                None => (Progress::Stuck, Some(others())),
            })
        })?;
        let channel = Rc::new(Channel(new[0]));
        // SAFETY: the communicator is complete. Its errors are looked at in `Transfer::poll`.
        unsafe { ffi::MPI_Comm_set_errhandler(channel.0, ffi::RSMPI_ERRORS_RETURN) };
        Ok(Self { inner: self.inner.clone(), channel })
    }

    /// Lets other ranks wait this long for the end of this one.
    pub(crate) fn allow(&self, limit: Duration) {
        self.inner.longest_limit.set(self.inner.longest_limit.get().max(limit));
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.inner.size
    }

    /// How long this rank waits without any progress.
    pub fn limit(&self) -> Duration {
        self.inner.limit
    }

    /// What this rank has sent so far.
    pub fn traffic(&self) -> Traffic {
        self.inner.traffic.get()
    }

    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank();
        (0..self.size()).filter(move |&other| other != rank)
    }

    /// An empty buffer for a message, with the memory of one that was sent before if there is any.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.inner.spare.borrow_mut().pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Gives the memory of a message back.
    pub(crate) fn recycle(&self, buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            self.inner.spare.borrow_mut().push(buffer);
        }
    }

    /// Gives the memory of a message back, if nobody else sends it.
    pub(crate) fn recycle_shared(&self, buffer: Rc<Vec<u8>>) {
        if let Ok(buffer) = Rc::try_unwrap(buffer) {
            self.recycle(buffer);
        }
    }

    /// Sends a message.
    pub(crate) fn send(&self, to: usize, tag: i32, buffer: Vec<u8>) {
        self.send_shared(to, tag, Rc::new(buffer));
    }

    /// Sends a message that goes to several ranks.
    pub(crate) fn send_shared(&self, to: usize, tag: i32, buffer: Rc<Vec<u8>>) {
        let traffic = self.inner.traffic.get();
        self.inner
            .traffic
            .set(Traffic { messages: traffic.messages + 1, bytes: traffic.bytes + buffer.len() as u64 });
        self.post(&self.channel, to, tag, buffer);
    }

    fn post(&self, channel: &Rc<Channel>, to: usize, tag: i32, buffer: Rc<Vec<u8>>) {
        let (first, len) = (buffer.as_ptr().cast(), length(&buffer));
        // SAFETY: the buffer has `len` initialized bytes. The transfer keeps it, shared or not, until the request is complete, and nobody
        // writes it meanwhile.
        let start = |communicator, request| unsafe {
            ffi::MPI_Isend(first, len, ffi::RSMPI_UINT8_T, to as c_int, tag, communicator, request)
        };
        self.inner.sends.borrow_mut().push(Transfer::start(channel, to, buffer, start));
    }

    /// Awaits a message of this many bytes.
    pub(crate) fn receive(&self, from: usize, tag: i32, bytes: usize) -> Transfer<Vec<u8>> {
        let mut buffer = self.buffer();
        buffer.resize(bytes, 0);
        let (first, len) = (buffer.as_mut_ptr().cast(), length(&buffer));
        // SAFETY: MPI writes at most `len` bytes. The transfer owns the buffer, whose bytes do not move with it, does not touch it until the
        // request is complete, and never frees it before.
        let start = |communicator, request| unsafe {
            ffi::MPI_Irecv(first, len, ffi::RSMPI_UINT8_T, from as c_int, tag, communicator, request)
        };
        let mut transfer = Transfer::start(&self.channel, from, buffer, start);
        transfer.bytes = Some(bytes);
        transfer
    }

    /// Lets messages move.
    ///
    /// # Errors
    /// [`Error::Rank`] if another rank has failed; [`Error::Mpi`].
    pub fn poll(&self) -> Result<(), Error> {
        self.poll_sends()?;
        self.poll_notices();
        match &*self.inner.failure.borrow() {
            Some(Failure { rank, reason, .. }) => Err(Error::Rank { rank: *rank, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn poll_sends(&self) -> Result<(), Error> {
        let mut result = Ok(());
        self.inner.sends.borrow_mut().retain_mut(|transfer| match transfer.poll() {
            Ok(None) => true,
            Ok(Some(buffer)) => {
                self.recycle_shared(buffer);
                false
            }
            Err(error) => {
                result = Err(error);
                false
            }
        });
        result
    }

    fn poll_notices(&self) {
        let from_any = self.inner.world.any_process();
        while let Some(found) = from_any.immediate_matched_probe_with_tag(tag::NOTICE) {
            let (message, status) = found.matched_receive_vec::<u8>();
            let notice = serde_json::from_slice(&message).expect("all ranks run the same program");
            let peer = &mut self.inner.peers.borrow_mut()[status.source_rank() as usize];
            match notice {
                Notice::Waits(ranks) => peer.waits = Some((Instant::now(), ranks)),
                Notice::Failed(failure) => {
                    self.inner.failure.borrow_mut().get_or_insert(failure);
                }
                Notice::Done => peer.done = Some(Instant::now()),
                Notice::Gone => peer.is_gone = true,
            }
        }
    }

    /// Calls `step` until it is done.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        mut step: impl FnMut() -> Result<(Progress<T>, Option<Awaited>), Error>,
    ) -> Result<T, Error> {
        let mut last = Instant::now();
        loop {
            self.poll()?;
            match step()? {
                (Progress::Done(value), _) => return Ok(value),
                (Progress::Moved, _) => last = Instant::now(),
                (Progress::Stuck, awaited) => {
                    if let Some(awaited) = awaited {
                        self.keep_waiting(awaited, last.elapsed() > limit, limit)?;
                    }
                    std::thread::sleep(IDLE);
                }
            }
        }
    }

    /// Fails if what is awaited cannot come or is over its time limit. Tells others now and then that this rank waits, so that they do not
    /// take it for the one that is silent.
    fn keep_waiting(&self, awaited: Awaited, is_over: bool, limit: Duration) -> Result<(), Error> {
        let (ranks, awaited) = match awaited {
            Awaited::Device(awaited) if is_over => return Err(Error::SlowDevice { awaited, limit }),
            Awaited::Device(_) => (Vec::new(), String::new()),
            Awaited::Ranks(ranks, awaited) => (ranks, awaited),
        };
        let has_left =
            |rank: &&usize| self.inner.peers.borrow()[**rank].done.is_some_and(|at| at.elapsed() > AFTER_END);
        if let Some(&rank) = ranks.iter().find(has_left) {
            return Err(Error::Left { rank, awaited });
        }
        if is_over {
            return Err(match self.silent(&ranks) {
                silent if silent.is_empty() => Error::Deadlock { ranks, awaited, limit },
                ranks => Error::Silent { ranks, awaited, limit },
            });
        }
        if self.inner.told_waits.get().elapsed() > self.limit() / 4 {
            self.inner.told_waits.set(Instant::now());
            self.tell(&Notice::Waits(ranks));
        }
        Ok(())
    }

    /// The ranks that are at fault if nothing comes from some: ranks that have lately said that they wait themselves are not, but those that
    /// they wait for. None if all wait for each other.
    fn silent(&self, awaited: &[usize]) -> Vec<usize> {
        let peers = self.inner.peers.borrow();
        let mut rest = awaited.to_vec();
        let mut silent = Vec::new();
        let mut is_known = vec![false; self.size()];
        is_known[self.rank()] = true;
        while let Some(rank) = rest.pop() {
            if std::mem::replace(&mut is_known[rank], true) {
                continue;
            }
            match &peers[rank].waits {
                Some((at, ranks)) if at.elapsed() < self.limit() / 2 && !ranks.is_empty() => {
                    rest.extend(ranks)
                }
                _ => silent.push(rank),
            }
        }
        silent.sort_unstable();
        silent
    }

    /// Waits until the other ranks have taken all messages of this one. Until then it must not do anything else for long, because MPI sends
    /// large messages with the sender's help only.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.wait(self.limit(), || Ok(self.progress_of_sends(|channel| Rc::ptr_eq(channel, &self.channel))))
    }

    fn progress_of_sends(&self, counts: impl Fn(&Rc<Channel>) -> bool) -> (Progress<()>, Option<Awaited>) {
        let sends = self.inner.sends.borrow();
        let of = |send: &Transfer<_>| send.parts.as_ref().is_some_and(|parts| counts(&parts.channel));
        match sends.iter().filter(|send| of(send)).map(|send| send.other).collect::<Vec<_>>() {
            ranks if ranks.is_empty() => (Progress::Done(()), None),
            ranks => (Progress::Stuck, Some(Awaited::Ranks(ranks, "that it takes its messages".to_owned()))),
        }
    }

    /// Sends a message to every other rank and returns those of all ranks, in their order. All have the same length.
    pub(crate) fn all_gather(
        &self,
        limit: Duration,
        tag: i32,
        what: &str,
        own: Vec<u8>,
    ) -> Result<Vec<Rc<Vec<u8>>>, Error> {
        let own = Rc::new(own);
        let mut all: Vec<_> = (0..self.size())
            .map(|rank| {
                let is_own = rank == self.rank();
                if is_own {
                    Incoming::Here(own.clone())
                } else {
                    Incoming::Awaited(self.receive(rank, tag, own.len()))
                }
            })
            .collect();
        for rank in self.others() {
            self.send_shared(rank, tag, own.clone());
        }
        self.wait(limit, || {
            let moved = poll_all(&mut all)?;
            Ok(progress_of(moved, &all, what))
        })?;
        self.flush()?;
        Ok(all.into_iter().map(Incoming::take).collect())
    }

    /// Sends some bytes to every other rank and returns those of all ranks, in their order: losses, for example. Every rank calls it with
    /// as many bytes.
    ///
    /// # Errors
    /// If another rank fails, sends nothing within the time limit, or sends another number of bytes.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let all = self.all_gather(self.limit(), tag::CALLER, "its part of a gather", own.to_vec())?;
        Ok(all.into_iter().map(Rc::unwrap_or_clone).collect())
    }

    /// Waits for a message.
    pub(crate) fn receive_within(
        &self,
        limit: Duration,
        from: usize,
        tag: i32,
        bytes: usize,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let mut receive = self.receive(from, tag, bytes);
        self.wait(limit, || {
            Ok(match receive.poll()? {
                Some(buffer) => (Progress::Done(buffer), None),
                None => (Progress::Stuck, Some(Awaited::Ranks(vec![from], what.to_owned()))),
            })
        })
    }

    /// Tells all other ranks why this one ends. Only the first reason is sent.
    pub fn fail(&self, reason: &str) {
        self.fail_without(reason, &[]);
    }

    /// As [`Ranks::fail`], with the error's ranks from which nothing is heard.
    pub(crate) fn fail_with(&self, error: &Error) {
        let silent = if let Error::Silent { ranks, .. } = error { &ranks[..] } else { &[] };
        self.fail_without(&error.to_string(), silent);
    }

    fn fail_without(&self, reason: &str, silent: &[usize]) {
        if self.inner.told.borrow().is_some() {
            return;
        }
        let mut end = reason.len().min(MOST_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let own = || Failure { rank: self.rank(), reason: reason[..end].to_owned(), silent: silent.to_vec() };
        // The first one is passed on.
        let failure = self.inner.failure.borrow().clone().unwrap_or_else(own);
        self.inner.told.replace(Some(failure.clone()));
        self.tell(&Notice::Failed(failure));
    }

    fn tell(&self, notice: &Notice) {
        let message = Rc::new(serde_json::to_vec(notice).expect("notices are JSON"));
        for rank in self.others() {
            self.post(&self.inner.world_channel, rank, tag::NOTICE, message.clone());
        }
    }

    /// Ends the work of this rank: waits until all its messages have been taken, and then until all other ranks are at their end, too. They
    /// may still write files.
    fn end(&self) -> Result<(), Error> {
        let limit = self.inner.longest_limit.get();
        self.wait(limit, || Ok(self.progress_of_sends(|_| true)))?;
        self.tell(&Notice::Done);
        self.wait(limit, || {
            let peers = self.inner.peers.borrow();
            let running: Vec<_> = self.others().filter(|&rank| peers[rank].done.is_none()).collect();
            Ok(match running.is_empty() {
                true => self.progress_of_sends(|_| true),
                false => (Progress::Stuck, Some(Awaited::Ranks(running, "its end".to_owned()))),
            })
        })
    }

    /// Tells that this rank has printed its error, and waits until all others have printed theirs.
    fn leave(&self) {
        self.tell(&Notice::Gone);
        let start = Instant::now();
        let is_over = || {
            let (peers, told) = (self.inner.peers.borrow(), self.inner.told.borrow());
            let is_silent = |rank: &usize| told.as_ref().is_some_and(|failure| failure.silent.contains(rank));
            self.others().all(|rank| peers[rank].is_gone || is_silent(&rank))
        };
        while start.elapsed() < self.limit() && !is_over() {
            // Whatever fails now does not matter any more.
            let _ = self.poll_sends();
            self.poll_notices();
            std::thread::sleep(IDLE);
        }
        let _ = self.poll_sends();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let mut is_over: c_int = 0;
        // SAFETY: the first call is possible at any time. The communicator is this channel's own unless it is that of all ranks, and no
        // transfer uses it, because each keeps its channel. Open MPI and MPICH free it without messages.
        unsafe {
            ffi::MPI_Finalized(&mut is_over);
            if is_over == 0 && self.0 != ffi::RSMPI_COMM_WORLD {
                ffi::MPI_Comm_free(&mut self.0);
            }
        }
    }
}

fn length(buffer: &[u8]) -> c_int {
    c_int::try_from(buffer.len()).expect("buckets are limited to messages' sizes")
}

impl<B> Transfer<B> {
    fn start(
        channel: &Rc<Channel>,
        other: usize,
        buffer: B,
        start: impl FnOnce(ffi::MPI_Comm, *mut ffi::MPI_Request) -> c_int,
    ) -> Self {
        // SAFETY: a constant of MPI.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let code = start(channel.0, &mut request);
        Self { request, code, parts: Some(Parts { buffer, channel: channel.clone() }), other, bytes: None }
    }

    /// The buffer, once MPI is done with it.
    pub fn poll(&mut self) -> Result<Option<B>, Error> {
        if self.parts.is_none() {
            return Ok(None);
        }
        let mut flag: c_int = 0;
        let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
        if is_success(self.code) {
            // SAFETY: the request was started and is not complete. The status has room for one.
            self.code = unsafe { ffi::MPI_Test(&mut self.request, &mut flag, status.as_mut_ptr()) };
        }
        if is_success(self.code) && flag == 0 {
            return Ok(None);
        }
        // SAFETY: a status is a structure of integers, and zeros are some.
        let found =
            Status::from_raw(unsafe { status.assume_init() }).count(u8::equivalent_datatype()) as usize;
        match self.bytes {
            // A longer message is an error of MPI, too.
            Some(expected) if found > expected || is_success(self.code) && found < expected => {
                Err(Error::MessageBytes { rank: self.other, found, expected })
            }
            _ if is_success(self.code) => Ok(self.parts.take().map(|parts| parts.buffer)),
            _ => Err(Error::Mpi { rank: self.other, reason: text_of(self.code) }),
        }
    }
}

fn is_success(code: c_int) -> bool {
    code == ffi::MPI_SUCCESS as c_int
}

/// MPI's text for an error.
fn text_of(code: c_int) -> String {
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut len: c_int = 0;
    // SAFETY: MPI writes at most that many bytes.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    String::from_utf8_lossy(&text[..len as usize]).into_owned()
}

impl<B> Drop for Transfer<B> {
    fn drop(&mut self) {
        // MPI may still read or write it. This happens only at the end of a failed run.
        std::mem::forget(self.parts.take());
    }
}

/// A message of a rank among those of all ranks.
pub(crate) enum Incoming {
    Awaited(Transfer<Vec<u8>>),
    Here(Rc<Vec<u8>>),
    /// It has been used, or there is none.
    Empty,
}

impl Incoming {
    /// Whether it has arrived since the last call.
    pub fn poll(&mut self) -> Result<bool, Error> {
        if let Self::Awaited(receive) = self
            && let Some(buffer) = receive.poll()?
        {
            *self = Self::Here(Rc::new(buffer));
            return Ok(true);
        }
        Ok(false)
    }

    pub fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited(_))
    }

    /// The message, if it has arrived; nothing otherwise.
    pub fn take(self) -> Rc<Vec<u8>> {
        match self {
            Self::Here(buffer) => buffer,
            Self::Awaited(_) | Self::Empty => Rc::default(),
        }
    }
}

/// Whether any message has arrived since the last call.
pub(crate) fn poll_all(all: &mut [Incoming]) -> Result<bool, Error> {
    let mut moved = false;
    for of in all {
        moved |= of.poll()?;
    }
    Ok(moved)
}

/// The ranks of which a message is awaited.
pub(crate) fn awaited(all: &[Incoming]) -> Vec<usize> {
    all.iter().enumerate().filter(|(_, of)| of.is_awaited()).map(|(rank, _)| rank).collect()
}

/// The progress of a wait for messages of all ranks.
pub(crate) fn progress_of(moved: bool, all: &[Incoming], what: &str) -> (Progress<()>, Option<Awaited>) {
    let missing = awaited(all);
    match (missing.is_empty(), moved) {
        (true, _) => (Progress::Done(()), None),
        (false, true) => (Progress::Moved, None),
        (false, false) => (Progress::Stuck, Some(Awaited::Ranks(missing, what.to_owned()))),
    }
}

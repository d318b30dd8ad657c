//! Messages between the ranks of a run: none blocks, all end within a time limit, and a rank that fails tells the others why.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::ffi;
use mpi::point_to_point::MatchedReceiveVec;
use mpi::raw::AsRaw;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Source};

use crate::error::Error;

/// Tags of messages. Each pair of ranks sends the messages of a tag in the same order on both sides.
pub(crate) mod tag {
    /// A rank has failed, or ends.
    pub const CONTROL: i32 = 1;
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
const FAILED: u8 = 1;
const ENDED: u8 = 0;
/// How long a rank that has failed waits for the others to hear of it.
const GRACE: Duration = Duration::from_secs(3);
/// How long messages of a rank that has ended may still be under way.
const AFTER_END: Duration = Duration::from_secs(1);
/// How long a rank sleeps when nothing has moved. Ranks often share cores.
const IDLE: Duration = Duration::from_micros(50);

/// A handle of this rank and its messages to the others. Clones are the same rank.
#[derive(Clone)]
pub struct Ranks {
    inner: Rc<Inner>,
}

struct Inner {
    world: SimpleCommunicator,
    rank: usize,
    size: usize,
    limit: Duration,
    sends: RefCell<Vec<Transfer<Rc<Vec<u8>>>>>,
    spare: RefCell<Vec<Vec<u8>>>,
    traffic: Cell<Traffic>,
    /// When this rank heard that others have ended.
    ended: RefCell<Vec<Option<Instant>>>,
    failure: RefCell<Option<(usize, String)>>,
    has_told: Cell<bool>,
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
struct Transfer<B> {
    request: ffi::MPI_Request,
    /// Nothing once the message has arrived.
    buffer: Option<B>,
}

/// A message that is awaited.
pub(crate) struct Receive {
    transfer: Transfer<Vec<u8>>,
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
/// Every process ends within the time limit.
///
/// Call it once in a process, which `mpirun` has started; without `mpirun` the process is the only rank.
pub fn run<E: std::fmt::Display>(limit: Duration, work: impl FnOnce(&Ranks) -> Result<(), E>) -> ExitCode {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        eprintln!("error: MPI was initialized before");
        return ExitCode::FAILURE;
    };
    let ranks = Ranks::new(universe.world(), limit);
    let result = match catch_unwind(AssertUnwindSafe(|| work(&ranks))) {
        Ok(Ok(())) => ranks.end().map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("panicked: {}", panic_text(panic.as_ref()))),
    };
    match result {
        // MPI is finalized, which waits for all ranks. All of them are known to be at their end.
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In one piece, so that the lines of several ranks do not mix. Without a standard error, nobody reads it.
            let _ =
                std::io::stderr().write_all(format!("rank {}: error: {error}\n", ranks.rank()).as_bytes());
            ranks.fail(&error);
            ranks.await_others(GRACE.min(limit));
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
        let inner = Inner {
            world,
            rank,
            size,
            limit,
            sends: RefCell::default(),
            spare: RefCell::default(),
            traffic: Cell::default(),
            ended: RefCell::new(vec![None; size]),
            failure: RefCell::default(),
            has_told: Cell::new(false),
        };
        Self { inner: Rc::new(inner) }
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
        let (start, len) = (buffer.as_ptr(), length(&buffer));
        let transfer = Transfer::start(buffer, |request| {
            // SAFETY: the buffer has `len` initialized bytes. The transfer keeps it, shared or not, until the request is complete, and
            // nobody writes it meanwhile.
            unsafe {
                ffi::MPI_Isend(
                    start.cast(),
                    len,
                    ffi::RSMPI_UINT8_T,
                    to as c_int,
                    tag,
                    self.inner.world.as_raw(),
                    request,
                );
            }
        });
        self.inner.sends.borrow_mut().push(transfer);
    }

    /// Awaits a message of this many bytes.
    pub(crate) fn receive(&self, from: usize, tag: i32, bytes: usize) -> Receive {
        let mut buffer = self.buffer();
        buffer.resize(bytes, 0);
        let (start, len) = (buffer.as_mut_ptr(), length(&buffer));
        let transfer = Transfer::start(buffer, |request| {
            // SAFETY: MPI writes at most `len` bytes. The transfer owns the buffer, whose bytes do not move with it, does not touch it
            // until the request is complete, and never frees it before.
            unsafe {
                ffi::MPI_Irecv(
                    start.cast(),
                    len,
                    ffi::RSMPI_UINT8_T,
                    from as c_int,
                    tag,
                    self.inner.world.as_raw(),
                    request,
                );
            }
        });
        Receive { transfer }
    }

    /// Lets messages move.
    ///
    /// # Errors
    /// [`Error::Rank`] if another rank has failed.
    pub fn poll(&self) -> Result<(), Error> {
        self.poll_sends();
        self.poll_control();
        match &*self.inner.failure.borrow() {
            Some((rank, reason)) => Err(Error::Rank { rank: *rank, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn poll_sends(&self) {
        self.inner.sends.borrow_mut().retain_mut(|transfer| match transfer.poll() {
            Some(buffer) => {
                self.recycle_shared(buffer);
                false
            }
            None => true,
        });
    }

    fn poll_control(&self) {
        let from_any = self.inner.world.any_process();
        while let Some(found) = from_any.immediate_matched_probe_with_tag(tag::CONTROL) {
            let (message, status) = found.matched_receive_vec::<u8>();
            let rank = status.source_rank() as usize;
            self.inner.ended.borrow_mut()[rank] = Some(Instant::now());
            if let Some((&FAILED, reason)) = message.split_first() {
                let reason = String::from_utf8_lossy(reason).into_owned();
                self.inner.failure.borrow_mut().get_or_insert((rank, reason));
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
            let (progress, awaited) = step()?;
            match progress {
                Progress::Done(value) => return Ok(value),
                Progress::Moved => last = Instant::now(),
                Progress::Stuck => {
                    let idle = last.elapsed();
                    match awaited {
                        Some(Awaited::Ranks(ranks, awaited)) => {
                            let ended = self.inner.ended.borrow();
                            let is_over =
                                |&&rank: &&usize| ended[rank].is_some_and(|at| at.elapsed() > AFTER_END);
                            if let Some(&rank) = ranks.iter().find(is_over) {
                                return Err(Error::Left { rank, awaited });
                            }
                            if idle > limit {
                                return Err(Error::Silent { ranks, awaited, limit });
                            }
                        }
                        Some(Awaited::Device(awaited)) if idle > limit => {
                            return Err(Error::SlowDevice { awaited, limit });
                        }
                        _ => {}
                    }
                    std::thread::sleep(IDLE);
                }
            }
        }
    }

    /// Sends a message to every other rank and returns those of all ranks, in their order. All have the same length.
    pub(crate) fn all_gather(&self, tag: i32, what: &str, own: Vec<u8>) -> Result<Vec<Rc<Vec<u8>>>, Error> {
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
        self.wait(self.limit(), || {
            let moved = poll_all(&mut all);
            Ok(progress_of(moved, &all, what))
        })?;
        Ok(all.into_iter().map(Incoming::take).collect())
    }

    /// Sends some bytes to every other rank and returns those of all ranks, in their order: losses, for example. Every rank calls it with
    /// as many bytes.
    ///
    /// # Errors
    /// If another rank fails or sends nothing within the time limit.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let all = self.all_gather(tag::CALLER, "its part of a gather", own.to_vec())?;
        Ok(all.into_iter().map(Rc::unwrap_or_clone).collect())
    }

    /// Waits for a message.
    pub(crate) fn receive_blocking(
        &self,
        from: usize,
        tag: i32,
        bytes: usize,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        self.receive_within(self.limit(), from, tag, bytes, what)
    }

    /// Waits for a message within another time limit.
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
            Ok(match receive.transfer.poll() {
                Some(buffer) => (Progress::Done(buffer), None),
                None => (Progress::Stuck, Some(Awaited::Ranks(vec![from], what.to_owned()))),
            })
        })
    }

    /// Tells all other ranks why this one ends. Only the first reason is sent.
    pub fn fail(&self, reason: &str) {
        if self.inner.has_told.replace(true) {
            return;
        }
        let mut end = reason.len().min(MOST_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        self.tell(FAILED, &reason[..end]);
    }

    fn tell(&self, kind: u8, reason: &str) {
        let mut message = vec![kind];
        message.extend(reason.bytes());
        self.inner.ended.borrow_mut()[self.rank()] = Some(Instant::now());
        for rank in self.others() {
            self.send(rank, tag::CONTROL, message.clone());
        }
    }

    /// Ends the work of this rank: waits until all its messages have been taken, and then until all other ranks are at their end, too.
    fn end(&self) -> Result<(), Error> {
        self.wait(self.limit(), || {
            let awaited = || Awaited::Ranks(self.others().collect(), "that it takes its messages".to_owned());
            Ok(match self.inner.sends.borrow().is_empty() {
                true => (Progress::Done(()), None),
                false => (Progress::Stuck, Some(awaited())),
            })
        })?;
        self.tell(ENDED, "");
        self.wait(self.limit(), || {
            let ended = self.inner.ended.borrow();
            let running: Vec<_> = self.others().filter(|&rank| ended[rank].is_none()).collect();
            Ok(match running.is_empty() && self.inner.sends.borrow().is_empty() {
                true => (Progress::Done(()), None),
                false => (Progress::Stuck, Some(Awaited::Ranks(running, "its end".to_owned()))),
            })
        })
    }

    /// Waits until all other ranks have ended or failed, so that nobody is stopped before it has said why it ends.
    fn await_others(&self, grace: Duration) {
        let start = Instant::now();
        while start.elapsed() < grace && self.inner.ended.borrow().contains(&None) {
            self.poll_sends();
            self.poll_control();
            std::thread::sleep(IDLE);
        }
        self.poll_sends();
    }
}

fn length(buffer: &[u8]) -> c_int {
    c_int::try_from(buffer.len()).expect("buckets are limited to messages' sizes")
}

impl<B> Transfer<B> {
    fn start(buffer: B, start: impl FnOnce(*mut ffi::MPI_Request)) -> Self {
        // SAFETY: a constant of MPI.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        start(&mut request);
        Self { request, buffer: Some(buffer) }
    }

    /// The buffer, once MPI is done with it.
    fn poll(&mut self) -> Option<B> {
        self.buffer.as_ref()?;
        let mut flag: c_int = 0;
        // SAFETY: the request was started and is not complete; the status is ignored.
        unsafe { ffi::MPI_Test(&mut self.request, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
        if flag != 0 { self.buffer.take() } else { None }
    }
}

impl<B> Drop for Transfer<B> {
    fn drop(&mut self) {
        // MPI may still read or write it. This happens only at the end of a failed run.
        std::mem::forget(self.buffer.take());
    }
}

/// A message of a rank among those of all ranks.
pub(crate) enum Incoming {
    Awaited(Receive),
    Here(Rc<Vec<u8>>),
    /// It has been used, or there is none.
    Empty,
}

impl Incoming {
    /// Whether it has arrived since the last call.
    pub fn poll(&mut self) -> bool {
        if let Self::Awaited(receive) = self
            && let Some(buffer) = receive.transfer.poll()
        {
            *self = Self::Here(Rc::new(buffer));
            return true;
        }
        false
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
pub(crate) fn poll_all(all: &mut [Incoming]) -> bool {
    let mut moved = false;
    for of in all {
        moved |= of.poll();
    }
    moved
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

//! A bucket on its way: its gradients to the host, to the other ranks and back as an average, and the new values.

use std::rc::Rc;

use adamod::{DType, wgpu};

use crate::error::Error;
use crate::plan::{self, Part};
use crate::ranks::{Awaited, Incoming, Ranks, awaited, poll_all, tag};
use crate::settings::Mode;
use crate::staging::{Copy, Mapping, Staging};
use crate::wire::{Sum, are_finite, convert};

/// Words of 4 bytes, in which the device copies.
const WORD_BYTES: u64 = 4;
/// Where each part of a buffer of shards starts: the alignment at which a step reads four elements at once.
const SHARD_ALIGNMENT_BYTES: u64 = 256;

/// A tensor of the engine.
pub(crate) struct Tensor {
    pub label: String,
    pub len: u64,
    pub dtype: DType,
    pub gradient_dtype: DType,
    /// Data type of its gradients on their way.
    pub wire: DType,
    pub state: Option<adamod::StateFormat>,
    pub group: usize,
    pub values: (wgpu::Buffer, u64),
    pub gradients: (wgpu::Buffer, u64),
}

/// What bucket, and where it is.
pub(crate) struct Bucket {
    index: usize,
    plan: plan::Bucket,
    /// All gradients, as they are copied to the host.
    gradients: Vec<Copy>,
    /// All values.
    values: Vec<Copy>,
    /// For each rank, where its averaged gradients go on this one.
    averages: Vec<Vec<Copy>>,
    /// For each rank, its values.
    pieces: Vec<Vec<Copy>>,
    /// The averaged gradients of this rank's shards, if it keeps no others.
    shards: Option<wgpu::Buffer>,
    sum: Sum,
    stage: Stage,
}

#[derive(Default)]
enum Stage {
    /// Its gradients are the engine's.
    #[default]
    Idle,
    /// Gradients are on their way to the host.
    Copying(Mapping),
    /// Gradients of other ranks are awaited. Those of the ranks before `next` are in the sum.
    Summing { contributions: Vec<Incoming>, next: usize },
    /// Averages of other ranks are awaited, or a staging buffer for them.
    Averaged(Vec<Incoming>),
    /// The averages are on their way to the device.
    Reduced,
    /// The step was submitted. The copy of the new values waits for a staging buffer.
    Stepped,
    /// New values are on their way to the host.
    CopyingValues(Mapping),
    /// Values of other ranks are awaited, or a staging buffer for them.
    Gathering(Vec<Incoming>),
}

/// What a rank learns from its gradients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Findings {
    /// A gradient of this rank is not finite.
    pub is_not_finite: bool,
    /// An average of this rank's shards is not finite.
    pub average_is_not_finite: bool,
}

/// Parts of all tensors that a bucket needs to move.
pub(crate) struct Context<'a> {
    pub tensors: &'a [Tensor],
    pub ranks: &'a Ranks,
    pub staging: &'a mut Staging,
    pub findings: &'a mut Findings,
    pub mode: Mode,
    pub zero_gradients: bool,
}

impl Bucket {
    pub fn new(index: usize, plan: plan::Bucket, tensors: &[Tensor], rank: usize, mode: Mode) -> Self {
        let layout = |bytes_of: fn(&Tensor) -> u64| {
            let mut end = 0;
            let mut starts = Vec::new();
            for &tensor in &plan.tensors {
                starts.push(end);
                end += words(tensors[tensor].len * bytes_of(&tensors[tensor]));
            }
            starts
        };
        let (gradient_starts, value_starts) =
            (layout(|tensor| tensor.gradient_dtype.bytes()), layout(|tensor| tensor.dtype.bytes()));
        let start_in = |starts: &[u64], tensor: usize| {
            plan.tensors.iter().position(|&of| of == tensor).map_or(0, |at| starts[at])
        };
        let gradients_of = |part: &Part| {
            let tensor = &tensors[part.tensor];
            copy_of(part, tensor.gradient_dtype, &tensor.gradients, start_in(&gradient_starts, part.tensor))
        };
        let values_of = |part: &Part| {
            let tensor = &tensors[part.tensor];
            copy_of(part, tensor.dtype, &tensor.values, start_in(&value_starts, part.tensor))
        };
        let whole = |&tensor: &usize| Part { tensor, elements: 0..tensors[tensor].len };
        let wholes: Vec<_> = plan.tensors.iter().map(whole).collect();
        let each = |copy: &dyn Fn(&Part) -> Copy| -> Vec<Vec<Copy>> {
            plan.pieces.iter().map(|parts| parts.iter().map(copy).collect()).collect()
        };
        let mut averages = each(&gradients_of);
        for (of, copies) in averages.iter_mut().enumerate() {
            if mode.is_sharded() && of != rank {
                copies.clear();
            }
        }
        Self {
            index,
            gradients: wholes.iter().map(gradients_of).collect(),
            values: wholes.iter().map(values_of).collect(),
            pieces: each(&values_of),
            averages,
            plan,
            shards: None,
            sum: Sum::default(),
            stage: Stage::Idle,
        }
    }

    /// The tensors.
    pub fn tensors(&self) -> &[usize] {
        &self.plan.tensors
    }

    /// The parts of a rank.
    pub fn parts(&self, rank: usize) -> &[Part] {
        &self.plan.pieces[rank]
    }

    /// Bytes of a staging buffer that holds it.
    pub fn staging_bytes(&self) -> u64 {
        let end = |copies: &[Copy]| copies.iter().map(|copy| copy.staging + copy.bytes).max().unwrap_or(0);
        end(&self.gradients).max(end(&self.values))
    }

    /// Creates a buffer for the averages of this rank's shards. Returns it, and where the average of each part is.
    pub fn keep_shards(&mut self, device: &wgpu::Device, rank: usize) -> Option<(wgpu::Buffer, Vec<u64>)> {
        let mut end = 0;
        let mut starts = Vec::new();
        for copy in &self.averages[rank] {
            starts.push(end);
            end += copy.bytes.next_multiple_of(SHARD_ALIGNMENT_BYTES);
        }
        if end == 0 {
            return None;
        }
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod-mpi.gradients"),
            size: end,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        for (copy, &start) in self.averages[rank].iter_mut().zip(&starts) {
            copy.buffer = buffer.clone();
            copy.offset = start;
        }
        self.shards = Some(buffer.clone());
        Some((buffer, starts))
    }

    /// Bytes of the buffer for averages that this rank keeps.
    pub fn shard_bytes(&self) -> u64 {
        self.shards.as_ref().map_or(0, wgpu::Buffer::size)
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    pub fn is_reduced(&self) -> bool {
        matches!(self.stage, Stage::Reduced)
    }

    /// The step was submitted: the values are gathered, or nothing is left to do.
    pub fn stepped(&mut self, gathers: bool) {
        self.stage = if gathers { Stage::Stepped } else { Stage::Idle };
    }

    /// Copies the gradients to the host; `false` if no staging buffer is free.
    pub fn reduce(&mut self, context: &mut Context<'_>) -> bool {
        let Some(mapping) = context.staging.download(&self.gradients, context.zero_gradients) else {
            return false;
        };
        self.stage = Stage::Copying(mapping);
        true
    }

    /// Reads the values of all tensors.
    pub fn download_values(&self, staging: &mut Staging) -> Option<Mapping> {
        staging.download(&self.values, false)
    }

    /// The bytes of the values of each tensor within a download.
    pub fn values_within<'a>(
        &'a self,
        tensors: &'a [Tensor],
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (usize, &'a [u8])> {
        self.values.iter().zip(&self.plan.tensors).map(|(copy, &tensor)| {
            let len = (tensors[tensor].len * tensors[tensor].dtype.bytes()) as usize;
            (tensor, &bytes[copy.staging as usize..][..len])
        })
    }

    /// Moves on as far as possible without waiting. Returns whether anything has changed.
    pub fn advance(&mut self, context: &mut Context<'_>) -> Result<bool, Error> {
        let mut moved = false;
        while self.advance_once(context)? {
            moved = true;
        }
        Ok(moved)
    }

    fn advance_once(&mut self, context: &mut Context<'_>) -> Result<bool, Error> {
        let (stage, moved) = match std::mem::take(&mut self.stage) {
            Stage::Copying(mapping) => {
                let (ranks, findings, tensors) = (context.ranks, &mut *context.findings, context.tensors);
                let own = context
                    .staging
                    .read(&mapping, |bytes| self.send_gradients(ranks, tensors, bytes, findings))?;
                match own {
                    Some(own) => {
                        let contributions = self.receive(
                            context,
                            tag_of(self.index, 0),
                            Rc::new(own),
                            |bucket, context, _| bucket.wire_bytes(context.tensors, context.ranks.rank()),
                        );
                        (Stage::Summing { contributions, next: 0 }, true)
                    }
                    None => (Stage::Copying(mapping), false),
                }
            }
            Stage::Summing { mut contributions, mut next } => {
                let mut moved = poll_all(&mut contributions)?;
                while next < contributions.len() && !contributions[next].is_awaited() {
                    let bytes = std::mem::replace(&mut contributions[next], Incoming::Empty).take();
                    self.add(context, next, &bytes);
                    context.ranks.recycle_shared(bytes);
                    next += 1;
                    moved = true;
                }
                if next < contributions.len() {
                    (Stage::Summing { contributions, next }, moved)
                } else {
                    (Stage::Averaged(self.average(context)), true)
                }
            }
            Stage::Averaged(averages) => {
                self.upload(context, averages, Self::upload_averages, Stage::Averaged, Stage::Reduced)?
            }
            Stage::Stepped => {
                let own = &self.pieces[context.ranks.rank()];
                if own.is_empty() {
                    (Stage::Gathering(self.receive_values(context, Rc::default())), true)
                } else {
                    match context.staging.download(own, false) {
                        Some(mapping) => (Stage::CopyingValues(mapping), true),
                        None => (Stage::Stepped, false),
                    }
                }
            }
            Stage::CopyingValues(mapping) => {
                let ranks = context.ranks;
                match context.staging.read(&mapping, |bytes| self.send_values(ranks, bytes))? {
                    Some(own) => (Stage::Gathering(self.receive_values(context, own)), true),
                    None => (Stage::CopyingValues(mapping), false),
                }
            }
            Stage::Gathering(values) => {
                self.upload(context, values, Self::upload_values, Stage::Gathering, Stage::Idle)?
            }
            stage @ (Stage::Idle | Stage::Reduced) => (stage, false),
        };
        self.stage = stage;
        Ok(moved)
    }

    /// Uploads messages once all have arrived and a staging buffer is free. Returns the stage that follows, and whether anything has changed.
    fn upload(
        &self,
        context: &mut Context<'_>,
        mut messages: Vec<Incoming>,
        upload: fn(&Self, &mut Context<'_>, &[Incoming]) -> Result<bool, Error>,
        waiting: fn(Vec<Incoming>) -> Stage,
        done: Stage,
    ) -> Result<(Stage, bool), Error> {
        let moved = poll_all(&mut messages)?;
        if messages.iter().any(Incoming::is_awaited) || !upload(self, context, &messages)? {
            return Ok((waiting(messages), moved));
        }
        messages.into_iter().for_each(|of| context.ranks.recycle_shared(of.take()));
        Ok((done, true))
    }

    /// What it waits for.
    pub fn awaited(&self, step: u64) -> Option<Awaited> {
        let of = |what: &str| format!("{what} of bucket {} of step {step}", self.index);
        let from = |messages: &[Incoming], what: &str| match awaited(messages) {
            missing if missing.is_empty() => Awaited::Device(of(what)),
            missing => Awaited::Ranks(missing, of(what)),
        };
        match &self.stage {
            Stage::Idle | Stage::Reduced => None,
            Stage::Copying(_) => Some(Awaited::Device(of("the gradients"))),
            Stage::Summing { contributions, .. } => Some(from(contributions, "the gradients")),
            Stage::Averaged(averages) => Some(from(averages, "the averages")),
            Stage::Stepped | Stage::CopyingValues(_) => Some(Awaited::Device(of("the values"))),
            Stage::Gathering(values) => Some(from(values, "the values")),
        }
    }

    /// Bytes of a rank's gradients on their way.
    fn wire_bytes(&self, tensors: &[Tensor], rank: usize) -> usize {
        self.plan.pieces[rank]
            .iter()
            .map(|part| (part.len() * tensors[part.tensor].wire.bytes()) as usize)
            .sum()
    }

    /// Sends each rank the gradients of its shards, and returns those of this rank's own.
    fn send_gradients(
        &self,
        ranks: &Ranks,
        tensors: &[Tensor],
        bytes: &[u8],
        findings: &mut Findings,
    ) -> Vec<u8> {
        let mut own = Vec::new();
        for (rank, parts) in self.plan.pieces.iter().enumerate() {
            let mut message = ranks.buffer();
            for part in parts {
                let tensor = &tensors[part.tensor];
                let size = tensor.gradient_dtype.bytes();
                let at = self.plan.tensors.iter().position(|&of| of == part.tensor).unwrap_or(0);
                let first = (self.gradients[at].staging + part.elements.start * size) as usize;
                let start = message.len();
                convert(
                    tensor.gradient_dtype,
                    &bytes[first..][..(part.len() * size) as usize],
                    tensor.wire,
                    &mut message,
                );
                findings.is_not_finite |= !are_finite(tensor.wire, &message[start..]);
            }
            if rank == ranks.rank() {
                own = message;
            } else if message.is_empty() {
                ranks.recycle(message);
            } else {
                ranks.send(rank, tag_of(self.index, 0), message);
            }
        }
        own
    }

    /// Awaits a message of every other rank with a number of bytes that may be 0, which is no message.
    fn receive(
        &self,
        context: &Context<'_>,
        tag: i32,
        own: Rc<Vec<u8>>,
        bytes: impl Fn(&Self, &Context<'_>, usize) -> usize,
    ) -> Vec<Incoming> {
        let mut own = Some(own);
        (0..context.ranks.size())
            .map(|rank| {
                if rank == context.ranks.rank() {
                    return Incoming::Here(own.take().unwrap_or_default());
                }
                match bytes(self, context, rank) {
                    0 => Incoming::Empty,
                    bytes => Incoming::Awaited(context.ranks.receive(rank, tag, bytes)),
                }
            })
            .collect()
    }

    /// Adds a rank's gradients of this rank's shards to the sum.
    fn add(&mut self, context: &Context<'_>, rank: usize, bytes: &[u8]) {
        if rank == 0 {
            self.sum.start();
        }
        let (mut start, mut first) = (0, 0);
        for part in &self.plan.pieces[context.ranks.rank()] {
            let wire = context.tensors[part.tensor].wire;
            let end = start + (part.len() * wire.bytes()) as usize;
            if rank == 0 {
                self.sum.append(wire, &bytes[start..end]);
            } else {
                first = self.sum.add(first, wire, &bytes[start..end]);
            }
            start = end;
        }
    }

    /// The average of this rank's shards, which others get if they need it, and what is awaited of theirs.
    fn average(&mut self, context: &mut Context<'_>) -> Vec<Incoming> {
        let ranks = context.ranks;
        let average = self.sum.divide(ranks.size());
        let mut own = ranks.buffer();
        let mut first = 0;
        for part in &self.plan.pieces[ranks.rank()] {
            let (len, wire) = (part.len() as usize, context.tensors[part.tensor].wire);
            let start = own.len();
            convert(DType::F32, bytemuck::cast_slice(&average[first..first + len]), wire, &mut own);
            context.findings.average_is_not_finite |= !are_finite(wire, &own[start..]);
            first += len;
        }
        let own = Rc::new(own);
        if context.mode.is_sharded() {
            return self.receive(context, 0, own, |_, _, _| 0);
        }
        if !own.is_empty() {
            for rank in ranks.others() {
                ranks.send_shared(rank, tag_of(self.index, 1), own.clone());
            }
        }
        self.receive(context, tag_of(self.index, 1), own, |bucket, context, rank| {
            bucket.wire_bytes(context.tensors, rank)
        })
    }

    fn upload_averages(&self, context: &mut Context<'_>, averages: &[Incoming]) -> Result<bool, Error> {
        if !context.staging.has_upload() {
            return Ok(false);
        }
        let mut converted = Vec::new();
        let mut copies = Vec::new();
        for ((parts, places), average) in self.plan.pieces.iter().zip(&self.averages).zip(averages) {
            let Incoming::Here(bytes) = average else { continue };
            let mut start = 0;
            for (part, place) in parts.iter().zip(places) {
                let tensor = &context.tensors[part.tensor];
                let end = start + (part.len() * tensor.wire.bytes()) as usize;
                let first = converted.len();
                convert(tensor.wire, &bytes[start..end], tensor.gradient_dtype, &mut converted);
                converted.resize(first + place.bytes as usize, 0);
                copies.push((place, first..converted.len()));
                start = end;
            }
        }
        let copies: Vec<_> = copies.into_iter().map(|(copy, range)| (copy, &converted[range])).collect();
        context.staging.upload(&copies)
    }

    fn send_values(&self, ranks: &Ranks, bytes: &[u8]) -> Rc<Vec<u8>> {
        let own: usize = self.value_bytes(ranks.rank());
        let mut message = ranks.buffer();
        message.reserve(own);
        for copy in &self.pieces[ranks.rank()] {
            message.extend_from_slice(&bytes[copy.staging as usize..][..copy.bytes as usize]);
        }
        let message = Rc::new(message);
        for rank in ranks.others() {
            ranks.send_shared(rank, tag_of(self.index, 2), message.clone());
        }
        message
    }

    fn value_bytes(&self, rank: usize) -> usize {
        self.pieces[rank].iter().map(|copy| copy.bytes as usize).sum()
    }

    fn receive_values(&self, context: &Context<'_>, own: Rc<Vec<u8>>) -> Vec<Incoming> {
        self.receive(context, tag_of(self.index, 2), own, |bucket, _, rank| bucket.value_bytes(rank))
    }

    fn upload_values(&self, context: &mut Context<'_>, values: &[Incoming]) -> Result<bool, Error> {
        let mut copies = Vec::new();
        for (rank, (places, values)) in self.pieces.iter().zip(values).enumerate() {
            let Incoming::Here(bytes) = values else { continue };
            // This rank's own are on the device.
            if rank == context.ranks.rank() {
                continue;
            }
            let mut start = 0;
            for place in places {
                let end = start + place.bytes as usize;
                copies.push((place, &bytes[start..end]));
                start = end;
            }
        }
        context.staging.upload(&copies)
    }
}

fn tag_of(bucket: usize, kind: i32) -> i32 {
    tag::FIRST_BUCKET + tag::OF_BUCKET * bucket as i32 + kind
}

fn words(bytes: u64) -> u64 {
    bytes.next_multiple_of(WORD_BYTES)
}

/// The copy of a part, whose tensor starts at byte `start` of a staging buffer.
fn copy_of(part: &Part, dtype: DType, (buffer, offset): &(wgpu::Buffer, u64), start: u64) -> Copy {
    let first = part.elements.start * dtype.bytes();
    Copy {
        staging: start + first,
        buffer: buffer.clone(),
        offset: offset + first,
        bytes: words(part.len() * dtype.bytes()),
    }
}

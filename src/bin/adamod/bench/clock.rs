//! The clocks, and the rounds in which works are measured in turn.

use std::time::{Duration, Instant};

use super::error::BenchError;
use super::fill::Filler;
use super::kernels::{Copy, Stream};

/// The source of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Timing {
    /// The GPU's own clock, at the start and the end of a pass.
    Timestamps,
    /// The host's clock, from submit to the end of waiting, which includes the cost of submitting.
    Wall,
}

/// A device to measure on.
#[derive(Debug)]
pub struct Machine {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub timing: Timing,
    /// Fills buffers.
    pub filler: Filler,
    /// Fills the caches with other data before every work, so that each work reads its data from memory.
    pub flush: Option<Copy>,
}

/// Two timestamps that are written around a work.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    queries: &'a wgpu::QuerySet,
    first: u32,
}

impl<'a> Span<'a> {
    /// The timestamp writes of the pass that is the work.
    pub fn around(self) -> wgpu::ComputePassTimestampWrites<'a> {
        wgpu::ComputePassTimestampWrites {
            query_set: self.queries,
            beginning_of_pass_write_index: Some(self.first),
            end_of_pass_write_index: Some(self.first + 1),
        }
    }
}

/// A workload that is timed: one compute pass.
pub trait Work {
    /// Its name, for messages.
    fn name(&self) -> String;
    /// Records it once, with timestamps around it if there is a span.
    fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        span: Option<Span<'_>>,
    ) -> Result<(), BenchError>;
}

/// A kernel with a pass of its own, and the number of its runs.
#[derive(Debug)]
pub struct Counted<K> {
    pub kernel: K,
    pub runs: u32,
}

impl Work for Counted<Copy> {
    fn name(&self) -> String {
        "the copy kernel".into()
    }

    fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        span: Option<Span<'_>>,
    ) -> Result<(), BenchError> {
        self.kernel.dispatch(&mut begin_pass(encoder, span.map(Span::around)));
        self.runs += 1;
        Ok(())
    }
}

impl Work for Counted<Stream> {
    fn name(&self) -> String {
        "the stream kernel".into()
    }

    fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        span: Option<Span<'_>>,
    ) -> Result<(), BenchError> {
        self.kernel.dispatch(&mut begin_pass(encoder, span.map(Span::around)));
        self.runs += 1;
        Ok(())
    }
}

/// The host's costs of steady steps, each recorded while the device is idle.
#[derive(Debug, Default)]
pub struct HostCost {
    /// Seconds to record a step.
    pub record: Vec<f64>,
    /// Seconds to record and submit a step.
    pub submit: Vec<f64>,
    /// Heap allocations of the thread that records and submits.
    pub allocations: Vec<f64>,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The number of rounds, if it is given.
    pub rounds: Option<u32>,
    /// Otherwise rounds are added until this time has passed.
    pub time: Duration,
}

impl Effort {
    /// The fewest and the most rounds of a measurement.
    const LEAST_ROUNDS: u32 = 7;
    const MOST_ROUNDS: u32 = 256;
    /// Rounds before the first one that counts. They create pipelines and state.
    const WARM_UP: u32 = 2;

    fn is_done(&self, rounds: u32, since: Instant) -> bool {
        match self.rounds {
            Some(wanted) => rounds >= wanted,
            None => {
                let late = rounds >= Self::LEAST_ROUNDS && since.elapsed() >= self.time;
                late || rounds >= Self::MOST_ROUNDS
            }
        }
    }
}

/// A compute pass of the bench's own.
pub fn begin_pass<'a>(
    encoder: &'a mut wgpu::CommandEncoder,
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
) -> wgpu::ComputePass<'a> {
    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("adamod.bench"), timestamp_writes })
}

impl Machine {
    pub fn is_cpu(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.bench") })
    }

    /// Submits and waits.
    fn finish(&self, encoder: wgpu::CommandEncoder) -> Result<(), BenchError> {
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }

    fn record_flush(&self, encoder: &mut wgpu::CommandEncoder) {
        if let Some(flush) = &self.flush {
            flush.dispatch(&mut begin_pass(encoder, None));
        }
    }

    /// Seconds of each work in each round. Works take turns, and each round starts with a different one, so that other loads on the
    /// machine affect all of them equally.
    pub fn measure(&self, works: &mut [&mut dyn Work], effort: Effort) -> Result<Vec<Vec<f64>>, BenchError> {
        let mut series = vec![Vec::new(); works.len()];
        for warm_up in 0..Effort::WARM_UP {
            self.round(works, warm_up as usize, None)?;
        }
        let timestamps = match self.timing {
            Timing::Timestamps => Some(Timestamps::new(&self.device, works.len() as u32)),
            Timing::Wall => None,
        };
        let since = Instant::now();
        let mut rounds = 0;
        while !effort.is_done(rounds, since) {
            let seconds = self.round(works, rounds as usize, timestamps.as_ref())?;
            for (series, seconds) in series.iter_mut().zip(seconds) {
                series.push(seconds);
            }
            rounds += 1;
        }
        Ok(series)
    }

    /// One round, which starts with work `first` (modulo their number). Uses the wall clock without timestamps.
    fn round(
        &self,
        works: &mut [&mut dyn Work],
        first: usize,
        timestamps: Option<&Timestamps>,
    ) -> Result<Vec<f64>, BenchError> {
        let count = works.len();
        let order = (0..count).map(|turn| (first + turn) % count);
        let Some(timestamps) = timestamps else {
            let mut seconds = vec![0.0; works.len()];
            for index in order {
                if self.flush.is_some() {
                    let mut encoder = self.encoder();
                    self.record_flush(&mut encoder);
                    self.finish(encoder)?;
                }
                let mut encoder = self.encoder();
                works[index].record(&mut encoder, None)?;
                let start = Instant::now();
                self.finish(encoder)?;
                seconds[index] = start.elapsed().as_secs_f64();
            }
            return Ok(seconds);
        };
        // Each work has an encoder of its own. Only then does wgpu put a barrier in front of it, so that it waits for the flush.
        let mut encoders = Vec::with_capacity(2 * count + 1);
        for index in order {
            let mut flush = self.encoder();
            self.record_flush(&mut flush);
            let mut work = self.encoder();
            let span = Span { queries: &timestamps.queries, first: 2 * index as u32 };
            works[index].record(&mut work, Some(span))?;
            encoders.extend([flush, work]);
        }
        let mut last = self.encoder();
        timestamps.resolve(&mut last);
        encoders.push(last);
        self.queue.submit(encoders.into_iter().map(wgpu::CommandEncoder::finish));
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&self.map(&timestamps.readable)?);
        timestamps.readable.unmap();
        let period_seconds = f64::from(self.queue.get_timestamp_period()) * 1e-9;
        ticks
            .chunks_exact(2)
            .zip(works)
            .map(|(span, work)| match span[1].wrapping_sub(span[0]) as i64 {
                ticks if ticks > 0 => Ok(ticks as f64 * period_seconds),
                ticks => Err(BenchError::Timestamps { work: work.name(), ticks }),
            })
            .collect()
    }

    /// The host's costs of a steady step. The device is idle before each step.
    pub fn measure_host(&self, work: &mut dyn Work, effort: Effort) -> Result<HostCost, BenchError> {
        let mut cost = HostCost::default();
        let since = Instant::now();
        while !effort.is_done(cost.record.len() as u32, since) {
            let mut seconds = Ok((0.0, 0.0));
            let counted = allocation_counter::measure(|| seconds = self.record_and_submit(work));
            let (record, submit) = seconds?;
            cost.record.push(record);
            cost.submit.push(submit);
            cost.allocations.push(counted.count_total as f64);
            self.device.poll(wgpu::PollType::wait_indefinitely())?;
        }
        Ok(cost)
    }

    /// Seconds until the work is recorded, and seconds until it is submitted.
    fn record_and_submit(&self, work: &mut dyn Work) -> Result<(f64, f64), BenchError> {
        let start = Instant::now();
        let mut encoder = self.encoder();
        work.record(&mut encoder, None)?;
        let commands = encoder.finish();
        let record = start.elapsed().as_secs_f64();
        self.queue.submit([commands]);
        Ok((record, start.elapsed().as_secs_f64()))
    }

    /// Reads ranges of buffers: byte offset and number of bytes, both multiples of 4.
    pub fn read(&self, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Vec<u32>, BenchError> {
        let bytes = ranges.iter().map(|(_, _, bytes)| bytes).sum();
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.bench.read"),
            size: bytes,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = self.encoder();
        let mut at = 0;
        for &(buffer, offset, bytes) in ranges {
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, at, bytes);
            at += bytes;
        }
        self.queue.submit([encoder.finish()]);
        Ok(bytemuck::pod_collect_to_vec(&self.map(&staging)?))
    }

    fn map(&self, buffer: &wgpu::Buffer) -> Result<wgpu::BufferView, BenchError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver exists until the end of this function.
            let _ = sender.send(result);
        });
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        match receiver.try_recv() {
            Ok(Ok(())) => buffer.get_mapped_range(..).map_err(|_| BenchError::Map),
            _ => Err(BenchError::Map),
        }
    }

    /// Runs `make`, and returns the error if wgpu refuses something in it. Once memory has run out, other errors follow from that.
    pub fn catch<T>(
        &self,
        case: &str,
        make: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let scopes =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation]
                .map(|filter| self.device.push_error_scope(filter));
        let made = make();
        let mut refused = None;
        // Scopes are a stack: the last one pushed is popped first.
        for scope in scopes.into_iter().rev() {
            refused = match pollster::block_on(scope.pop()) {
                Some(error @ wgpu::Error::OutOfMemory { .. }) => Some(error),
                error => refused.or(error),
            };
        }
        match refused {
            Some(error) => Err(BenchError::Resource { case: case.into(), error }),
            None => made,
        }
    }
}

/// Two queries per work.
#[derive(Debug)]
struct Timestamps {
    queries: wgpu::QuerySet,
    count: u32,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
}

impl Timestamps {
    fn new(device: &wgpu::Device, works: u32) -> Self {
        let count = 2 * works;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("adamod.bench.timestamps"),
                size: u64::from(count) * u64::from(wgpu::QUERY_SIZE),
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("adamod.bench.timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count,
            }),
            count,
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ),
        }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..self.count, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, self.readable.size());
    }
}

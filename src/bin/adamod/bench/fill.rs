//! Contents of buffers, computed on the device: uploads of gigabytes would take longer than the measurements.

use adamod::DType;

use super::resources::{bind, binding_bytes, buffer, pipeline};

/// The most workgroups that share a run. They are enough to fill a GPU.
const MOST_WORKGROUPS: u64 = 1_024;
/// Bytes of a run in the shader.
const RUN_BYTES: u64 = 16;

/// What a run of words holds. The discriminants are constants of the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// [`number`] in f32.
    F32 = 0,
    /// [`number`] in bf16, truncated.
    Bf16 = 1,
    /// 1 in f32.
    Ones = 2,
}

impl Content {
    const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Ones];

    /// Numbers of this type.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::F32 { Self::F32 } else { Self::Bf16 }
    }
}

/// A run of words in a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Byte offset, a multiple of 4.
    pub offset: u64,
    /// Bytes, a multiple of 4.
    pub bytes: u64,
    /// Runs with equal keys have equal contents.
    pub key: u32,
}

/// Fills buffers on a device.
#[derive(Debug)]
pub struct Filler {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipelines: [wgpu::ComputePipeline; Content::ALL.len()],
}

impl Filler {
    /// Compiles the kernels.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let source = include_str!("../../../../shaders/bench/fill.wgsl");
        let compile = |content: Content| {
            let constant = ("CONTENT", f64::from(content as u32));
            pipeline(device, "adamod.bench.fill", source, "fill", Some(constant))
        };
        Self { device: device.clone(), queue: queue.clone(), pipelines: Content::ALL.map(compile) }
    }

    /// Fills runs of a buffer. The rest of it stays as it is.
    pub fn fill(&self, filled: &wgpu::Buffer, content: Content, runs: &[Run]) {
        let limits = self.device.limits();
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        let window_bytes = binding_bytes(&self.device) / alignment * alignment;
        let lanes = u64::from(adamod::Workgroups::Auto.lanes(&self.device));
        let pipeline = &self.pipelines[content as usize];
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.bench.fill") });
        let mut start = 0;
        while start < filled.size() {
            let bytes = window_bytes.min(filled.size() - start);
            let table: Vec<[u32; 4]> =
                runs.iter().filter_map(|run| run.within(start, start + bytes)).collect();
            for rows in table.chunks(limits.max_compute_workgroups_per_dimension as usize) {
                let table = buffer(&self.device, "adamod.bench.runs", RUN_BYTES * rows.len() as u64);
                self.queue.write_buffer(&table, 0, bytemuck::cast_slice(rows));
                let ranges = [(&table, 0, table.size()), (filled, start, bytes)];
                let bind_group = bind(&self.device, pipeline, &ranges);
                let longest = rows.iter().map(|run| u64::from(run[1])).max().unwrap_or(0);
                let workgroups = longest.div_ceil(lanes).clamp(1, MOST_WORKGROUPS) as u32;
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, &bind_group, &[]);
                pass.dispatch_workgroups(workgroups, rows.len() as u32, 1);
            }
            start += bytes;
        }
        self.queue.submit([encoder.finish()]);
    }
}

impl Run {
    /// What a window has of it, in words: where it starts in the window, how much it is, and how much lies before it. Then the key.
    fn within(&self, start: u64, end: u64) -> Option<[u32; 4]> {
        let first = self.offset.max(start);
        let last = (self.offset + self.bytes).min(end);
        let words = |bytes: u64| (bytes / 4) as u32;
        (first < last)
            .then(|| [words(first - start), words(last - first), words(first - self.offset), self.key])
    }
}

/// The number of a run at an element, in [-1, 1).
pub fn number(key: u32, element: u32) -> f32 {
    let hash = pcg(pcg(element).wrapping_add(key));
    ((hash >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
}

/// The number as the type stores it.
pub fn stored(dtype: DType, number: f32) -> f32 {
    match Content::of(dtype) {
        Content::Bf16 => f32::from_bits(number.to_bits() & 0xffff_0000),
        Content::F32 | Content::Ones => number,
    }
}

/// The output function RXS-M-XS of PCG (O'Neill 2014) after one step of its generator.
fn pcg(seed: u32) -> u32 {
    let state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filled buffer, on a device whose bindings have at most `binding_bytes` bytes.
    fn filled(binding_bytes: u64, bytes: u64, content: Content, runs: &[Run]) -> Vec<u32> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
        let limits =
            wgpu::Limits { max_storage_buffer_binding_size: binding_bytes, ..wgpu::Limits::default() };
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) =
            pollster::block_on(adapter.expect("an adapter").request_device(&descriptor)).expect("a device");
        let buffer = buffer(&device, "test", bytes);
        Filler::new(&device, &queue).fill(&buffer, content, runs);
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&buffer, 0, &staging, 0, bytes);
        queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapped"));
        device.poll(wgpu::PollType::wait_indefinitely()).expect("waited");
        bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).expect("mapped"))
    }

    #[test]
    fn the_device_fills_what_the_host_expects_across_windows_and_nothing_else() {
        // A window has 16,384 words, so the second run lies in three of them.
        let runs = [
            Run { offset: 0, bytes: 4 * 1_001, key: 8 },
            Run { offset: 4 * 10_003, bytes: 4 * 30_000, key: 9 },
            Run { offset: 4 * 40_004, bytes: 4, key: 8 },
        ];
        for content in Content::ALL {
            let words = filled(65_536, 4 * 40_960, content, &runs);
            let mut expected = vec![0; 40_960];
            for run in runs {
                for (word, to) in
                    (0..).zip(&mut expected[run.offset as usize / 4..][..run.bytes as usize / 4])
                {
                    *to = match content {
                        Content::F32 => number(run.key, word).to_bits(),
                        Content::Bf16 => {
                            let bits = |element| stored(DType::Bf16, number(run.key, element)).to_bits();
                            bits(2 * word) >> 16 | bits(2 * word + 1)
                        }
                        Content::Ones => 1_f32.to_bits(),
                    };
                }
            }
            let different = words.iter().zip(&expected).position(|(got, expected)| got != expected);
            assert_eq!(different, None, "{content:?}");
        }
    }

    #[test]
    fn numbers_fill_their_range_and_differ_by_key() {
        let numbers: Vec<_> = (0..10_000).map(|element| number(3, element)).collect();
        assert!(numbers.iter().all(|number| (-1.0..1.0).contains(number)));
        assert!(numbers.iter().sum::<f32>().abs() < 300.0);
        assert!(numbers.iter().any(|&number| number > 0.99) && numbers.iter().any(|&number| number < -0.99));
        let same = (0..10_000).filter(|&element| number(2, element) == numbers[element as usize]).count();
        assert!(same < 10, "{same}");
    }
}

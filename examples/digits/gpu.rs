//! The parts of wgpu that the demo uses: a device, buffers, kernels, read-back. Nothing blocks a browser: what waits is a future, and
//! outside of browsers such a future is ready when it is first polled.

use std::error::Error;

use adamod::wgpu::util::{BufferInitDescriptor, DeviceExt};
use adamod::wgpu::{self, BufferUsages};
use adamod::{Kernels, Readback};
use futures_channel::oneshot;

/// Threads in a workgroup of every kernel.
const WORKGROUP_THREADS: usize = 64;

/// The device of the demo.
#[derive(Clone)]
pub struct Gpu {
    pub adapter: wgpu::AdapterInfo,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Those of all optimizers.
    pub kernels: Kernels,
}

impl Gpu {
    /// Opens the adapter that wgpu prefers, or that the environment names (`WGPU_BACKEND` selects the backend).
    pub async fn open() -> Result<Self, Box<dyn Error>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance.request_adapter(&options).await.map_err(|error| {
            format!(
                "no GPU adapter was found: {error}\nhelp: without a GPU, install a software adapter; \
                 on Debian and Ubuntu it is the package mesa-vulkan-drivers"
            )
        })?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("digits"),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await?;
        Ok(Self { adapter: adapter.get_info(), device, queue, kernels: Kernels::new() })
    }

    /// A zeroed buffer for `len` elements of 4 bytes.
    pub fn buffer(&self, label: &str, len: usize) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: 4 * len as u64,
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// A storage buffer with these elements.
    pub fn filled<T: bytemuck::NoUninit>(&self, label: &str, contents: &[T]) -> wgpu::Buffer {
        let buffer = self.buffer(label, size_of_val(contents) / 4);
        self.write(&buffer, contents);
        buffer
    }

    /// A uniform buffer with these elements.
    pub fn uniform(&self, label: &str, contents: &[u32]) -> wgpu::Buffer {
        self.device.create_buffer_init(&BufferInitDescriptor {
            label: Some(label),
            contents: bytemuck::cast_slice(contents),
            usage: BufferUsages::UNIFORM,
        })
    }

    /// Overwrites the start of a buffer before the next submit.
    pub fn write<T: bytemuck::NoUninit>(&self, buffer: &wgpu::Buffer, contents: &[T]) {
        self.queue.write_buffer(buffer, 0, bytemuck::cast_slice(contents));
    }

    /// Waits for everything submitted, then returns the whole buffer.
    pub async fn read<T: bytemuck::Pod>(&self, buffer: &wgpu::Buffer) -> Result<Vec<T>, Box<dyn Error>> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("digits.read"),
            size: buffer.size(),
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        self.queue.submit([encoder.finish()]);

        let (sender, receiver) = oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if the poll below failed, which is reported there.
            let _ = sender.send(result);
        });
        // In a browser this does nothing, and the event loop runs the callback.
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        receiver.await??;
        let contents = bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..)?);
        // In a browser memory lives until garbage is collected, unless it is destroyed.
        staging.destroy();
        Ok(contents)
    }

    /// Waits for everything submitted, then returns what the optimizer read.
    pub async fn finish<T>(&self, readback: Readback<T>) -> Result<T, Box<dyn Error>> {
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(readback.await?)
    }

    /// Submits commands.
    pub fn submit(&self, commands: wgpu::CommandBuffer) -> Submission {
        let index = self.queue.submit([commands]);
        let (sender, done) = oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver is gone if nobody waits.
            let _ = sender.send(());
        });
        Submission { index, done }
    }

    /// Waits for a submission.
    pub async fn wait(&self, submission: Submission) -> Result<(), Box<dyn Error>> {
        let Submission { index, done } = submission;
        self.device.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None })?;
        Ok(done.await?)
    }

    /// Compiles a kernel from a source with one entry point, which gets the constant `WORKGROUP_THREADS`.
    pub fn kernel(&self, label: &str, source: &str) -> Kernel {
        let source = format!("const WORKGROUP_THREADS = {WORKGROUP_THREADS}u;\n{source}");
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        Kernel { pipeline }
    }

    /// Binds a kernel to whole buffers or parts of them, in the order of its bindings.
    pub fn launch<const BINDINGS: usize>(
        &self,
        kernel: &Kernel,
        bindings: [wgpu::BufferBinding<'_>; BINDINGS],
        workgroups: u32,
    ) -> Launch {
        let entries: Vec<_> = (0..)
            .zip(bindings)
            .map(|(binding, part)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(part),
            })
            .collect();
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Launch { pipeline: kernel.pipeline.clone(), bind_group, workgroups }
    }
}

/// Commands that were submitted.
pub struct Submission {
    index: wgpu::SubmissionIndex,
    done: oneshot::Receiver<()>,
}

/// A compiled kernel.
pub struct Kernel {
    pipeline: wgpu::ComputePipeline,
}

/// A kernel with its buffers, which can be recorded any number of times.
pub struct Launch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Launch {
    /// Records the kernel.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

/// The number of workgroups for one thread per element.
pub fn workgroups(elements: usize) -> u32 {
    elements.div_ceil(WORKGROUP_THREADS) as u32
}

/// Binds all of a buffer.
pub fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    buffer.as_entire_buffer_binding()
}

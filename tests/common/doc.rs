// What the examples of the documentation set up and do not show.

/// A device of the first adapter.
pub fn gpu() -> (adamod::wgpu::Device, adamod::wgpu::Queue) {
    use adamod::wgpu;

    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY);
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("a GPU adapter");
    pollster::block_on(adapter.request_device(&Default::default())).expect("a device")
}

/// A storage buffer of zeros that can be copied both ways.
#[allow(dead_code)]
pub fn buffer(device: &adamod::wgpu::Device, bytes: u64) -> adamod::wgpu::Buffer {
    use adamod::wgpu::{BufferDescriptor, BufferUsages};

    device.create_buffer(&BufferDescriptor {
        label: None,
        size: bytes,
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

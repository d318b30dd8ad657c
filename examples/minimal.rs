//! The README's quick start: AdaMod steps one parameter ten times.

use adamod::{AdaMod, Hyperparameters, Optimizer, Options, Parameter, Step, View, Views, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;
    let buffer = |label| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: 4096,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let (weights, gradients) = (buffer("weights"), buffer("gradients"));

    let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    let group = optimizer.add_group(Hyperparameters::from(AdaMod::new()).with_learning_rate(1e-3))?;
    let views = Views::new(View::new(&weights, 0), View::new(&gradients, 0));
    let layer = optimizer.add_parameter(group, Parameter::new("layer.weight", 1024).with_views(views))?;

    // Constant gradients stand in for those of a backward pass.
    queue.write_buffer(&gradients, 0, &1.0_f32.to_le_bytes().repeat(1024));
    for _ in 0..10 {
        let mut encoder = device.create_command_encoder(&Default::default());
        // ... record the forward and backward passes, which leave the gradients in their buffer ...
        optimizer.encode(&mut encoder, &Step::all())?;
        queue.submit([encoder.finish()]);
    }
    println!("{:?}", &optimizer.read_parameter(layer).wait()?[..4]);
    Ok(())
}

//! A whole program, as small as it can be: one parameter of four elements, pulled towards 1 by AdaMod.

use adamod::{Hyperparameters, Optimizer, Options, Parameter, View, Views, wgpu};
use wgpu::BufferUsages;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    // With the adapter's own limits most steps are one dispatch; with the default ones large models take several.
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_limits: adapter.limits(),
        ..Default::default()
    }))?;
    let buffer = |label| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: 16,
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let (weights, gradients) = (buffer("weights"), buffer("gradients"));

    let mut optimizer = Optimizer::new(&device, &queue, Options::default())?;
    let group = optimizer.add_group(Hyperparameters {
        learning_rate: 0.1,
        // The bound rises within some 1 / (1 - beta3) steps, and this run has few.
        betas: [0.9, 0.999, 0.9],
        ..Hyperparameters::default()
    })?;
    let views = Some(Views::new(View::new(&weights, 0), View::new(&gradients, 0)));
    let id = optimizer.add_parameter(group, Parameter { views, ..Parameter::new("weights", 4) })?;

    optimizer.write_parameter(id, &[-2.0, 0.0, 0.5, 3.0])?;
    for step in 1..=200 {
        // An engine's backward pass leaves the gradients on the device. Here the host computes those of |weights - 1|^2 / 2.
        let values = optimizer.read_parameter_blocking(id)?;
        if step % 50 == 1 {
            println!("before step {step}: {values:.3?}");
        }
        let gradient: Vec<u8> = values.iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect();
        queue.write_buffer(&gradients, 0, &gradient);
        optimizer.step()?;
    }
    println!("in the end: {:.3?}", optimizer.read_parameter_blocking(id)?);
    Ok(())
}

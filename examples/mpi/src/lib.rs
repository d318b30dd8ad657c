//! adamod's optimizers on many machines: one process for each device, messages over MPI.
//!
//! Each rank computes the gradients of its own part of a batch. A [`Distributed`] optimizer averages them and takes the same step
//! everywhere: [replicated](Mode::Replicated), with [sharded state](Mode::ShardedState) (ZeRO-1), or with
//! [sharded gradients and state](Mode::ShardedGradients) (ZeRO-2), whose buckets are averaged while the backward pass still runs. All three
//! give the same bits.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use adamod::{AdaMod, Options, Parameter, View, Views, wgpu};
//! use adamod_mpi::{Builder, Error, Mode, Ranks, Settings};
//!
//! fn train(ranks: &Ranks, device: &wgpu::Device, queue: &wgpu::Queue, pools: [&wgpu::Buffer; 2]) -> Result<(), Error> {
//!     let mut builder = Builder::new(ranks, Settings::new(Mode::ShardedState), Options::new());
//!     let group = builder.add_group(AdaMod::new());
//!     let views = Views::new(View::new(pools[0], 0), View::new(pools[1], 0));
//!     builder.add_parameter(group, Parameter::new("layer.weight", 1024).with_views(views))?;
//!     let mut distributed = builder.build(device, queue)?;
//!     for _ in 0..10 {
//!         // ... submit the forward and backward passes of this rank's part of the batch ...
//!         distributed.step()?;
//!     }
//!     distributed.save("checkpoints")
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     adamod_mpi::run(Duration::from_secs(60), |ranks| {
//!         let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
//!         let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
//!         let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;
//!         let [values, gradients] = ["values", "gradients"].map(|label| {
//!             device.create_buffer(&wgpu::BufferDescriptor {
//!                 label: Some(label),
//!                 size: 4096,
//!                 usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
//!                 mapped_at_creation: false,
//!             })
//!         });
//!         train(ranks, &device, &queue, [&values, &gradients])?;
//!         Ok::<_, Box<dyn std::error::Error>>(())
//!     })
//! }
//! ```

mod agreement;
mod bucket;
mod distributed;
mod error;
mod exact;
mod plan;
mod ranks;
mod settings;
mod staging;
mod store;
mod wire;

pub use distributed::{Builder, Distributed, Outcome};
pub use error::Error;
pub use ranks::{Ranks, Traffic, run};
pub use settings::{Mode, Settings};
pub use store::{Draft, has_checkpoint};

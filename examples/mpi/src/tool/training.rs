//! The digits network on several ranks: each computes the gradients of its part of every minibatch, and buckets of them are averaged while
//! its backward pass goes on.

use std::error::Error;
use std::path::PathBuf;

use adamod::wgpu;
use adamod::{AdaMod, Control, DeviceControl, Hyperparameters, Options, Parameter, View, Views};
use adamod_mpi::{Builder, Distributed, Ranks, Settings, has_checkpoint};

use crate::digits::{CLASSES, Digits, PIXELS, TEST_IMAGES, TRAINING_IMAGES};
use crate::gpu::{Gpu, Launch, whole, workgroups};
use crate::minibatches::{minibatches, steps_per_epoch};
use crate::network::{Backward, Forward, Network, WIDTHS};
use crate::{ModeName, Wire};

/// Small, so that this small network has some.
const BUCKET_BYTES: u64 = 16 << 10;
const LEARNING_RATE: f64 = 1e-2;
const MAX_NORM: f64 = 1.0;

#[derive(clap::Args)]
pub struct Arguments {
    /// What each rank holds
    #[arg(long, value_enum, default_value = "sharded-gradients")]
    mode: ModeName,

    /// Data type of the gradients on their way
    #[arg(long, value_enum, default_value = "f32")]
    wire: Wire,

    /// Images in a minibatch of all ranks together, a multiple of their number
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=TRAINING_IMAGES as u64))]
    batch: u64,

    /// Passes over the training set
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: u64,

    /// Determines the initial weights and the minibatches
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Folder of checkpoints, which all ranks share: one is saved after each epoch, and training goes on from the last one
    #[arg(long)]
    checkpoints: Option<PathBuf>,

    /// File for the loss of every step
    #[arg(long)]
    losses: Option<PathBuf>,
}

/// A rank's part of the training.
struct Trainer {
    gpu: Gpu,
    gather: Launch,
    forward: Forward,
    loss: Launch,
    backward: Backward,
    /// The first layer of each bucket, whose gradients are complete when those of that layer are.
    layers: Vec<usize>,
    /// The number of the step, which the loss kernel advances.
    step: wgpu::Buffer,
    losses: wgpu::Buffer,
    test: Forward,
    distributed: Distributed,
}

/// Trains as a rank.
pub fn train(ranks: &Ranks, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let digits = Digits::load()?;
    let mut trainer = Trainer::new(ranks, arguments, &digits)?;
    let per_epoch = steps_per_epoch(TRAINING_IMAGES, arguments.batch as usize) as u64;
    let steps = arguments.epochs * per_epoch;
    if ranks.rank() == 0 {
        println!(
            "{} ({}), {} rank(s), {:?}, {} buckets, {steps} steps",
            trainer.gpu.adapter.name,
            trainer.gpu.adapter.backend,
            ranks.size(),
            adamod_mpi::Mode::from(arguments.mode),
            trainer.distributed.buckets(),
        );
    }
    let mut first = 0;
    if let Some(folder) = arguments.checkpoints.as_ref().filter(|folder| has_checkpoint(folder)) {
        trainer.distributed.restore(folder)?;
        first = trainer.distributed.steps();
        trainer.gpu.write(&trainer.step, &[first as u32]);
    }
    for step in first..steps {
        trainer.step()?;
        if (step + 1) % per_epoch == 0 {
            let losses = trainer.losses(ranks)?;
            let of_epoch = &losses[(step + 1 - per_epoch) as usize..=step as usize];
            if ranks.rank() == 0 {
                let mean = of_epoch.iter().map(|&loss| f64::from(loss)).sum::<f64>() / of_epoch.len() as f64;
                println!("epoch {:>3}: loss {mean:.6}", (step + 1) / per_epoch);
            }
            if let Some(folder) = &arguments.checkpoints {
                trainer.distributed.save(folder)?;
            }
        }
    }
    let losses = trainer.losses(ranks)?;
    let accuracy = trainer.test_accuracy(&digits.test.labels)?;
    if ranks.rank() == 0 {
        println!("test accuracy {:.1} %", 100.0 * accuracy);
        if let Some(path) = &arguments.losses {
            let lines: String = losses.iter().map(|loss| format!("{loss:e}\n")).collect();
            std::fs::write(path, lines)?;
        }
    }
    Ok(())
}

impl Trainer {
    fn new(ranks: &Ranks, arguments: &Arguments, digits: &Digits) -> Result<Self, Box<dyn Error>> {
        let batch = arguments.batch as usize;
        if !batch.is_multiple_of(ranks.size()) {
            return Err(format!("--batch is {batch}, expected a multiple of {} ranks", ranks.size()).into());
        }
        let rows = batch / ranks.size();
        let gpu = pollster::block_on(Gpu::open())?;
        let network = Network::new(&gpu, WIDTHS);
        gpu.write(&network.parameters, &network.initial_parameters(arguments.seed));
        let forward = network.forward(&gpu, rows);
        let backward = network.backward(&gpu, &forward);
        let test = network.forward(&gpu, TEST_IMAGES);
        gpu.write(test.input(), &digits.test.pixels);

        // This rank's rows of every minibatch.
        let order: Vec<u32> = minibatches(TRAINING_IMAGES, arguments.seed, arguments.epochs as usize, batch)
            .chunks(batch)
            .flat_map(|of| of[ranks.rank() * rows..][..rows].to_vec())
            .collect();
        let steps = order.len() / rows;
        let (step, losses) = (gpu.buffer("digits.step", 1), gpu.buffer("digits.losses", steps));
        let labels = gpu.buffer("digits.batch_labels", rows);
        let gather = gpu.launch(
            &gpu.kernel("digits.batch", include_str!("../../../digits/batch.wgsl")),
            [
                whole(&step),
                whole(&gpu.filled("digits.order", &order)),
                whole(&gpu.filled("digits.images", &digits.training.pixels)),
                whole(&gpu.filled("digits.labels", &digits.training.labels)),
                whole(forward.input()),
                whole(&labels),
            ],
            workgroups(rows * PIXELS),
        );
        let loss = gpu.launch(
            &gpu.kernel("digits.loss", include_str!("../../../digits/loss.wgsl")),
            [
                whole(&step),
                whole(&labels),
                whole(forward.logits()),
                whole(&backward.logit_gradients),
                whole(&losses),
            ],
            1,
        );

        let settings = Settings::new(arguments.mode.into())
            .with_wire(arguments.wire.into())
            .with_bucket_bytes(BUCKET_BYTES);
        let control = Control::Device(DeviceControl::new().with_max_norm(MAX_NORM));
        let mut builder = Builder::new(ranks, settings, Options::new().with_control(control));
        let rule = Hyperparameters::from(AdaMod::new().with_betas([0.9, 0.999, 0.9999]));
        let group = builder.add_group(rule.with_learning_rate(LEARNING_RATE));
        for tensor in network.tensors() {
            let views = Views::new(
                View::new(&network.parameters, tensor.offset_bytes),
                View::new(&network.gradients, tensor.offset_bytes),
            );
            let parameter = Parameter::new(&tensor.label, tensor.len as u64).with_views(views);
            builder.add_parameter(group, parameter)?;
        }
        let distributed = builder.build(&gpu.device, &gpu.queue)?;
        let layer_of =
            |label: &str| label.trim_start_matches("layer").split('.').next()?.parse::<usize>().ok();
        let layers = (0..distributed.buckets())
            .map(|bucket| distributed.labels(bucket).filter_map(layer_of).min().unwrap_or(0))
            .collect();
        Ok(Self { gpu, gather, forward, loss, backward, layers, step, losses, test, distributed })
    }

    /// A step of all ranks. The device goes on with the next layers while the buckets of the last ones are averaged.
    fn step(&mut self) -> Result<(), adamod_mpi::Error> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        self.gather.record(&mut pass);
        self.forward.record(&mut pass);
        self.loss.record(&mut pass);
        drop(pass);
        // Two kernels for each layer but the first.
        let layers = self.backward.launches.chunks(2);
        for (layer, launches) in (0..layers.len()).rev().zip(layers) {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            launches.iter().for_each(|launch| launch.record(&mut pass));
            drop(pass);
            self.gpu.queue.submit([encoder.finish()]);
            for bucket in (0..self.layers.len()).filter(|&bucket| self.layers[bucket] == layer) {
                self.distributed.reduce(bucket)?;
            }
            encoder = self.gpu.device.create_command_encoder(&Default::default());
        }
        self.distributed.step().map(drop)
    }

    /// The losses of all steps so far: the means of all ranks.
    fn losses(&self, ranks: &Ranks) -> Result<Vec<f32>, Box<dyn Error>> {
        let own: Vec<f32> = pollster::block_on(self.gpu.read(&self.losses))?;
        let all = ranks.gather(bytemuck::cast_slice(&own))?;
        let mut means = vec![0.0; own.len()];
        for of_rank in &all {
            let losses: Vec<f32> = bytemuck::pod_collect_to_vec(of_rank);
            means.iter_mut().zip(losses).for_each(|(mean, loss)| *mean += loss / all.len() as f32);
        }
        Ok(means)
    }

    /// Fraction of the test images whose largest logit is that of their label.
    fn test_accuracy(&self, labels: &[u32]) -> Result<f64, Box<dyn Error>> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.test.record(&mut encoder.begin_compute_pass(&Default::default()));
        self.gpu.queue.submit([encoder.finish()]);
        let logits: Vec<f32> = pollster::block_on(self.gpu.read(self.test.logits()))?;
        let largest = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        let recognised =
            logits.chunks(CLASSES).zip(labels).filter(|(row, label)| largest(row) == Some(**label as usize));
        Ok(recognised.count() as f64 / labels.len() as f64)
    }
}

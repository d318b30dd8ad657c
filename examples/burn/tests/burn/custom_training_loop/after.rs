//! The adapter.

use adamod_burn::{Error, FusedConfig, Gpu};
use burn::config::Config;
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrSchedulerConfig;
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::DeviceKind;

use super::{Batch, Classifier, Trained, batches};

#[derive(Config, Debug)]
struct TrainingConfig {
    #[config(default = 5)]
    epochs: usize,
    #[config(default = 6)]
    batches: usize,
    #[config(default = 16)]
    batch_size: usize,
    #[config(default = 1e-2)]
    learning_rate: f64,
    optimizer: AdamConfig,
}

pub fn run() -> Result<Trained, Error> {
    let clipping = GradientClippingConfig::Norm(1.0);
    let config = TrainingConfig::new(AdamConfig::new().with_grad_clipping(Some(clipping)));

    let gpu = Gpu::open(DeviceKind::DefaultDevice)?;
    let device = gpu.device().autodiff();
    let mut model = Classifier::new(&device);
    let mut optimizer = config.optimizer.init_fused(&gpu)?;
    let schedule =
        CosineAnnealingLrSchedulerConfig::new(config.learning_rate, config.epochs * config.batches);
    let mut scheduler = ModuleLrSchedulerConfig::new(schedule.into()).init().expect("a schedule");

    let mut losses = Vec::new();
    for _epoch in 0..config.epochs {
        for batch in batches(config.batches, config.batch_size, &device) {
            let loss = model.loss(&batch);
            losses.push(loss.clone().into_scalar());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(scheduler.step(), model, gradients)?;
        }
    }

    let model = model.valid();
    let test: Vec<Batch> = batches(config.batches + 1, config.batch_size, &device.without_autodiff());
    Ok((losses, model.accuracy(&test[config.batches])))
}

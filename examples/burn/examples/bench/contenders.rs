//! The contenders: every optimizer with the same tensors and gradients.

use std::str::FromStr;

use adamod_burn::adamod::{
    self, Hyperparameters, Optimizer, Options, Parameter, ParameterId, RuleKind, View, Views, wgpu,
};
use adamod_burn::operations::{self, Minimum};
use adamod_burn::{FusedConfig, FusedOptimizer, Gpu, PerTensor};
use anyhow::{Context as _, bail, ensure};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};

const LEARNING_RATE: f64 = 1e-3;

/// The number of tensors, and of elements in each.
#[derive(Clone, Copy)]
pub struct Case {
    pub tensors: usize,
    pub elements: usize,
}

impl Case {
    pub fn elements_of_all(self) -> usize {
        self.tensors * self.elements
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('x').and_then(|(tensors, elements)| {
            let (tensors, elements) = (tensors.parse().ok()?, elements.parse().ok()?);
            (tensors > 0 && elements > 0).then_some(Case { tensors, elements })
        });
        parsed.ok_or_else(|| format!("expected two numbers above 0 with an x between them, got {text:?}"))
    }
}

/// An optimizer with tensors of its own.
pub struct Contender {
    pub name: &'static str,
    pub rule: RuleKind,
    pub step: Box<dyn Step>,
}

/// A step that can be timed.
pub trait Step {
    /// Takes a step and waits for the end of the device's work.
    fn run(&mut self) -> anyhow::Result<()>;
    /// Reads the first tensor.
    fn first(&mut self) -> anyhow::Result<Vec<f32>>;
}

/// Burn's Adam with the epsilon of the core's.
fn adam_config() -> AdamConfig {
    AdamConfig::new().with_epsilon(1e-8)
}

/// Name of the contender with which the others are compared.
pub const BURN_ADAM: &str = "Burn Adam";

/// Creates the contenders with the wanted names.
pub fn all(gpu: &Gpu, case: Case, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Contender>> {
    let hyperparameters =
        |rule: RuleKind| Hyperparameters::from(rule.with_defaults()).with_learning_rate(LEARNING_RATE);
    let fused = |rule| {
        let mut optimizer = FusedOptimizer::new(gpu, Options::new())?;
        optimizer.add_group(hyperparameters(rule), |_| true)?;
        in_burn(gpu, case, move |module, gradients| Ok(optimizer.step(LEARNING_RATE, module, gradients)?))
    };
    let of_burn = |mut optimizer: ModuleOptimizer| {
        in_burn(gpu, case, move |module, gradients| Ok(optimizer.step(LEARNING_RATE, module, gradients)))
    };
    // A norm that no gradient has: the clip is computed and changes nothing.
    let clipping = || Some(GradientClippingConfig::Norm(1e9));
    let clipped = || {
        let mut optimizer = adam_config().with_grad_clipping(clipping()).init_fused(gpu)?;
        in_burn(gpu, case, move |module, gradients| Ok(optimizer.step(LEARNING_RATE, module, gradients)?))
    };
    let together = |rule| {
        let route = PerTensor::new(gpu, Options::new(), hyperparameters(rule))?;
        let mut optimizer = ModuleOptimizer::from(route.clone());
        in_burn(gpu, case, move |module, gradients| {
            Ok(route.step_fused(&mut optimizer, LEARNING_RATE, module, gradients))
        })
    };
    let per_tensor = |rule| PerTensor::new(gpu, Options::new(), hyperparameters(rule));
    let operations = || operations::AdaMod::new(adamod::AdaMod::new()).with_minimum(Minimum::Fusing);
    let core = |rule| core(gpu, case, hyperparameters(rule));
    type Make<'a> = Box<dyn Fn() -> anyhow::Result<Box<dyn Step>> + 'a>;
    let (adam, adamod) = (RuleKind::Adam, RuleKind::AdaMod);
    let makers: [(&'static str, RuleKind, Make<'_>); 10] = [
        (BURN_ADAM, adam, Box::new(|| of_burn(adam_config().init()))),
        (
            "Burn Adam, clipped",
            adam,
            Box::new(|| of_burn(adam_config().with_grad_clipping(clipping()).init())),
        ),
        ("adapter Adam, clipped", adam, Box::new(clipped)),
        ("adapter Adam", adam, Box::new(|| fused(adam))),
        ("core Adam", adam, Box::new(|| core(adam))),
        ("AdaMod in operations", adamod, Box::new(|| of_burn(operations().into()))),
        ("per-tensor AdaMod", adamod, Box::new(|| of_burn(per_tensor(adamod)?.into()))),
        ("Learner AdaMod", adamod, Box::new(|| together(adamod))),
        ("adapter AdaMod", adamod, Box::new(|| fused(adamod))),
        ("core AdaMod", adamod, Box::new(|| core(adamod))),
    ];
    makers
        .into_iter()
        .filter(|(name, ..)| wanted(name))
        .map(|(name, rule, make)| Ok(Contender { name, rule, step: make()? }))
        .collect()
}

/// Checks that contenders with the same rule agree. All have taken the same number of steps.
pub fn check(contenders: &mut [Contender]) -> anyhow::Result<()> {
    let mut of_rule: Vec<(RuleKind, Vec<f32>)> = Vec::new();
    for Contender { name, rule, step } in contenders {
        let found = step.first()?;
        match of_rule.iter().find(|(of, _)| of == rule) {
            None => of_rule.push((*rule, found)),
            Some((_, expected)) => {
                for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                    let difference = (found - expected).abs();
                    let is_close = difference <= 1e-5 + 1e-4 * expected.abs();
                    ensure!(is_close, "{name}: element {index} is {found}, expected {expected}");
                }
            }
        }
    }
    Ok(())
}

/// Values or gradients of a tensor, which no other tensor has.
fn content(case: Case, tensor: usize, phase: f32) -> Vec<f32> {
    (0..case.elements).map(|element| (0.37 * element as f32 + tensor as f32 + phase).sin()).collect()
}

#[derive(Module, Debug)]
struct Weights {
    tensors: Vec<Param<Tensor<1>>>,
}

struct InBurn<F> {
    device: Device,
    module: Option<Weights>,
    gradients: Vec<Tensor<1>>,
    step: F,
}

fn in_burn<F>(gpu: &Gpu, case: Case, step: F) -> anyhow::Result<Box<dyn Step>>
where
    F: FnMut(Weights, GradientsParams) -> anyhow::Result<Weights> + 'static,
{
    let device = gpu.device();
    let training = gpu.device().autodiff();
    let tensor = |index, phase, device: &Device| {
        Tensor::<1>::from_data(TensorData::new(content(case, index, phase), [case.elements]), device)
    };
    let tensors = (0..case.tensors).map(|index| Param::from_tensor(tensor(index, 0.0, &training))).collect();
    let gradients = (0..case.tensors).map(|index| tensor(index, 1.0, &device)).collect();
    sync(&device)?;
    Ok(Box::new(InBurn { device, module: Some(Weights { tensors }), gradients, step }))
}

impl<F> Step for InBurn<F>
where
    F: FnMut(Weights, GradientsParams) -> anyhow::Result<Weights>,
{
    fn run(&mut self) -> anyhow::Result<()> {
        let module = self.module.take().context("a module")?;
        let mut gradients = GradientsParams::new();
        for (tensor, gradient) in module.tensors.iter().zip(&self.gradients) {
            gradients.register(tensor.id, gradient.clone());
        }
        self.module = Some((self.step)(module, gradients)?);
        sync(&self.device)
    }

    fn first(&mut self) -> anyhow::Result<Vec<f32>> {
        let module = self.module.as_ref().context("a module")?;
        let data = module.tensors[0].val().into_data();
        data.try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
    }
}

/// Waits for the end of the device's work.
fn sync(device: &Device) -> anyhow::Result<()> {
    device.sync().map_err(|error| anyhow::anyhow!("{error:?}"))
}

struct Core {
    device: Device,
    optimizer: Optimizer,
    first: ParameterId,
}

/// The core alone, with tensors in two pools.
fn core(gpu: &Gpu, case: Case, hyperparameters: Hyperparameters) -> anyhow::Result<Box<dyn Step>> {
    let (device, queue) = (gpu.wgpu_device(), gpu.wgpu_queue());
    // The distance between tensors in Burn's pools.
    let stride = (4 * case.elements as u64).next_multiple_of(32);
    let pool = |phase| {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: stride * case.tensors as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        for tensor in 0..case.tensors {
            let bytes: Vec<u8> =
                content(case, tensor, phase).iter().flat_map(|element| element.to_le_bytes()).collect();
            queue.write_buffer(&buffer, stride * tensor as u64, &bytes);
        }
        buffer
    };
    let (values, gradients) = (pool(0.0), pool(1.0));
    let mut optimizer = Optimizer::new(device, queue, Options::new())?;
    let group = optimizer.add_group(hyperparameters)?;
    let mut first = None;
    for tensor in 0..case.tensors {
        let offset = stride * tensor as u64;
        let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
        let label = format!("tensors.{tensor}");
        let parameter = Parameter::new(&label, case.elements as u64).with_views(views);
        first = first.or(Some(optimizer.add_parameter(group, parameter)?));
    }
    let Some(first) = first else { bail!("a case without tensors") };
    Ok(Box::new(Core { device: gpu.device(), optimizer, first }))
}

impl Step for Core {
    fn run(&mut self) -> anyhow::Result<()> {
        self.optimizer.submit(&adamod::Step::all())?;
        // Waits as the others do. Burn's device thread polls while nothing waits there, which takes a tenth of a core.
        sync(&self.device)
    }

    fn first(&mut self) -> anyhow::Result<Vec<f32>> {
        Ok(self.optimizer.read_parameter(self.first).wait()?)
    }
}

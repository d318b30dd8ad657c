//! A model and its optimizer: one step after the other.

use std::collections::BTreeMap;

use adamod::{Checkpoint, DType, Diagnostics, GroupId, Options};
use adamod_burn::FusedOptimizer;
use anyhow::{Context, bail, ensure};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::cpu_optimizer::CpuOptimizer;
use crate::method::Method;
use crate::packages::PackageOptimizer;
use crate::rate_counts::RateCounts;
use crate::{numbers, tensors};

/// A model in training.
pub struct Learner<M> {
    // `None` only while the optimizer has it.
    model: Option<M>,
    optimizer: Optimizer,
    method: Method,
    step: u64,
    /// `None` if no rates are counted.
    rates: Option<Rates>,
}

enum Optimizer {
    Fused(Box<FusedOptimizer>, GroupId),
    Cpu(Box<CpuOptimizer>),
    Package(Box<PackageOptimizer>),
}

/// First and last step, and what was counted, for each window.
pub type Windows = Vec<((u64, u64), RateCounts)>;

/// Counts of learning rates.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Rates {
    windows: Windows,
    /// Counts of the window that is not over yet.
    open: RateCounts,
}

/// Everything of a learner that is not in its checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LearnerState {
    step: u64,
    rates: Option<Rates>,
    /// Tensors of the model that no step changes, such as running statistics, as numbers.
    tensors: BTreeMap<String, String>,
    /// What a package has saved.
    #[serde(default)]
    package: Option<String>,
}

impl<M: Module> Learner<M> {
    /// Trains all parameters with the method. Also counts learning rates if asked to, over step 1, steps 2 to 3, 4 to 7 and so on.
    pub fn new(model: M, method: &Method, backend: &Backend, counts: bool) -> anyhow::Result<Self> {
        method.formats.check(backend)?;
        let optimizer = match (backend, &method.package) {
            (Backend::Cpu, Some(package)) => Optimizer::Package(Box::new(PackageOptimizer::new(package)?)),
            (Backend::Gpu(_), Some(_)) => bail!("packages need --device cpu, got gpu"),
            (Backend::Gpu(gpu), None) => {
                let diagnostics = if counts { Diagnostics::RateHistograms } else { Diagnostics::Off };
                let mut optimizer = FusedOptimizer::new(gpu, Options::new().with_diagnostics(diagnostics))?;
                let group = optimizer.add_group(method.group(), |_| true)?;
                Optimizer::Fused(Box::new(optimizer), group)
            }
            (Backend::Cpu, None) => {
                Optimizer::Cpu(Box::new(CpuOptimizer::new(method.group(), method.formats.dtype(), counts)))
            }
        };
        let rates = counts.then(Rates::default);
        let model = match method.formats.dtype() {
            DType::F32 => model,
            dtype => tensors::rounded(model, dtype),
        };
        Ok(Self { model: Some(model), optimizer, method: method.clone(), step: 0, rates })
    }

    /// Continues where another learner was saved. The model only has to have the same shapes.
    pub fn resume(
        model: M,
        method: &Method,
        backend: &Backend,
        checkpoint: &Checkpoint,
        state: &LearnerState,
    ) -> anyhow::Result<Self> {
        let shapes = tensors::collect(&model, |_| true);
        let mut values = BTreeMap::new();
        for parameter in checkpoint.parameters() {
            values.insert(parameter.label.to_owned(), checkpoint.values(parameter.label)?);
        }
        for (path, text) in &state.tensors {
            values.insert(path.clone(), numbers::read(text).map_err(anyhow::Error::msg)?);
        }
        for (path, old) in &shapes {
            let (found, expected) = (values.get(path).map(Vec::len), old.len());
            ensure!(
                found == Some(expected),
                "tensor {path:?}: expected {expected} saved numbers, got {found:?}"
            );
        }
        // Formats of weights round the new model, and not what was saved.
        let mut learner = Self::new(model, method, backend, state.rates.is_some())?;
        let model = learner.model.take().context("a model")?;
        learner.model = Some(tensors::replace(model, |path| values.remove(path)));
        match &mut learner.optimizer {
            Optimizer::Fused(optimizer, _) => {
                optimizer.restore(checkpoint, learner.model.as_ref().context("a model")?)?;
            }
            Optimizer::Cpu(optimizer) => {
                optimizer.restore(checkpoint)?;
                // With master weights the network sees fewer bits than the checkpoint has.
                let model = learner.model.take().context("a model")?;
                learner.model = Some(tensors::replace(model, |path| optimizer.values(path)));
            }
            Optimizer::Package(optimizer) => {
                if let Some(saved) = &state.package {
                    optimizer.restore(&method.hyperparameters_at(state.step + 1), saved)?;
                }
            }
        }
        learner.step = state.step;
        learner.rates = state.rates.clone();
        Ok(learner)
    }

    /// What [`Learner::resume`] continues from.
    pub fn save(&mut self) -> anyhow::Result<(Checkpoint, LearnerState)> {
        self.take_counts()?;
        let model = self.model.as_ref().context("an earlier step failed")?.valid();
        let mut package = None;
        let checkpoint = match &mut self.optimizer {
            Optimizer::Fused(optimizer, _) => optimizer.checkpoint_with_values(&model)?,
            Optimizer::Cpu(optimizer) => optimizer.checkpoint()?,
            Optimizer::Package(optimizer) => {
                package = optimizer.save()?;
                // Without parameters: all of them are in the state.
                CpuOptimizer::new(self.method.group(), DType::F32, false).checkpoint()?
            }
        };
        let tensors = tensors::collect(&model, |path| checkpoint.parameter(path).is_none());
        let tensors = tensors.into_iter().map(|(path, values)| (path, numbers::write(values))).collect();
        Ok((checkpoint, LearnerState { step: self.step, rates: self.rates.clone(), tensors, package }))
    }

    pub fn model(&self) -> &M {
        self.model.as_ref().expect("a model: a learner whose step failed is not used again")
    }

    /// Takes one step. Returns the loss before it.
    pub fn step(&mut self, loss: impl FnOnce(&M) -> Tensor<1>) -> anyhow::Result<f32> {
        let model = self.model.take().context("an earlier step failed")?;
        self.step += 1;
        let loss = loss(&model);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let hyperparameters = self.method.hyperparameters_at(self.step);
        self.model = Some(match &mut self.optimizer {
            Optimizer::Fused(optimizer, group) => {
                optimizer.set_hyperparameters(*group, hyperparameters)?;
                optimizer.step_groups(model, gradients).map_err(|error| error.into_parts().1)?
            }
            Optimizer::Cpu(optimizer) => optimizer.step(hyperparameters, model, gradients),
            Optimizer::Package(optimizer) => optimizer.step(&hyperparameters, model, gradients)?,
        });
        let is_last_of_window = (self.step + 1).is_power_of_two();
        if is_last_of_window {
            self.close_window()?;
        }
        Ok(loss.into_scalar::<f32>())
    }

    /// Brings the counts of the open window up to date.
    fn take_counts(&mut self) -> anyhow::Result<()> {
        let Some(rates) = &mut self.rates else { return Ok(()) };
        let counts = match &mut self.optimizer {
            Optimizer::Fused(optimizer, _) => optimizer.take_rate_histograms()?.into(),
            Optimizer::Cpu(optimizer) => optimizer.take_counts(),
            Optimizer::Package(_) => RateCounts::default(),
        };
        rates.open.merge(&counts);
        Ok(())
    }

    fn close_window(&mut self) -> anyhow::Result<()> {
        self.take_counts()?;
        let Some(rates) = &mut self.rates else { return Ok(()) };
        let first = rates.windows.last().map_or(1, |((_, last), _)| last + 1);
        if first <= self.step {
            rates.windows.push(((first, self.step), std::mem::take(&mut rates.open)));
        }
        Ok(())
    }

    /// The counted learning rates; empty if none were counted.
    pub fn windows(&mut self) -> anyhow::Result<Windows> {
        self.close_window()?;
        Ok(self.rates.as_ref().map(|rates| rates.windows.clone()).unwrap_or_default())
    }
}

/// What a learner without parameters saves.
#[cfg(test)]
pub fn saved_for_tests() -> (Checkpoint, LearnerState) {
    let checkpoint = CpuOptimizer::new(adamod::Adam::new().into(), DType::F32, false).checkpoint();
    (
        checkpoint.expect("nothing to refuse"),
        LearnerState { step: 0, rates: None, tensors: BTreeMap::new(), package: None },
    )
}

#[cfg(test)]
mod tests {
    use adamod::{Hyperparameters, RuleKind, Sgd, StateFormat};
    use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::common::test_backends;
    use crate::formats::{Formats, Weights};
    use crate::method::{Growth, Schedule};
    use crate::packages::tests::stand_in;
    use crate::packages::{Package, PackageName};
    use crate::statistics::mean;
    use crate::weights;

    fn method(rule: RuleKind, beta3: f64) -> Method {
        let hyperparameters = Hyperparameters::from(rule.with_defaults()).with_learning_rate(0.1);
        Method::new("", hyperparameters, Schedule::Constant).with_beta3(beta3)
    }

    /// A small network with running statistics, whose first tensor is large enough for low-bit state.
    #[derive(Module, Debug)]
    struct Network {
        first: Linear,
        norm: BatchNorm,
        last: Linear,
    }

    impl Network {
        fn new(device: &Device, seed: u64) -> Self {
            let network = Self {
                first: LinearConfig::new(16, 40).init(device),
                norm: BatchNormConfig::new(40).init(device),
                last: LinearConfig::new(40, 3).init(device),
            };
            weights::draw(network, seed)
        }

        fn loss(&self, step: u64) -> Tensor<1> {
            let input: Vec<f32> =
                (0..5 * 16).map(|i| ((i as u64 * 7 + step * 13) % 31) as f32 / 15.0 - 1.0).collect();
            let input = Tensor::<2>::from_data(TensorData::new(input, [5, 16]), &self.first.weight.device());
            let output = self.last.forward(self.norm.forward(self.first.forward(input)));
            (output - 1.0).square().mean()
        }
    }

    fn steps(learner: &mut Learner<Network>, steps: std::ops::RangeInclusive<u64>) -> Vec<f32> {
        steps.map(|step| learner.step(|network| network.loss(step)).unwrap()).collect()
    }

    /// Losses of some steps, and what was counted.
    fn run(backend: &Backend, method: &Method, seed: u64, counts: bool) -> (Vec<f32>, Windows) {
        let network = Network::new(&backend.device().autodiff(), seed);
        let mut learner = Learner::new(network, method, backend, counts).unwrap();
        let losses = steps(&mut learner, 1..=5);
        (losses, learner.windows().unwrap())
    }

    /// All tensors, running statistics included.
    fn values(learner: &Learner<Network>) -> BTreeMap<String, Vec<f32>> {
        tensors::collect(&learner.model().valid(), |_| true)
    }

    fn growing() -> Method {
        let growth = Some(Growth { start: 2.0, fraction: 0.5 });
        Method { growth, ..method(RuleKind::AdaMod, 0.999) }
    }

    fn stored(state: StateFormat, weights: Weights) -> Method {
        Method { formats: Formats { state, weights }, ..method(RuleKind::AdaMod, 0.9) }
    }

    #[test]
    fn a_seed_determines_a_run() {
        for backend in &test_backends() {
            for &rule in RuleKind::ALL {
                let of = |seed| run(backend, &method(rule, 0.9), seed, false).0;
                assert_eq!(of(1), of(1));
                assert_ne!(of(1), of(2));
            }
        }
    }

    #[test]
    fn all_rules_reduce_the_loss_each_in_its_way() {
        let last = |rule, beta3| {
            let losses = run(&Backend::Cpu, &method(rule, beta3), 1, false).0;
            assert!(losses[4] < losses[0], "{rule:?}: {losses:?}");
            losses[4]
        };
        // Those of the paper.
        let rules = [RuleKind::AdaMod, RuleKind::Adam, RuleKind::Sgd];
        let losses = rules.map(|rule| last(rule, 0.9));
        for (index, loss) in losses.iter().enumerate() {
            assert!(!losses[..index].contains(loss), "{losses:?}");
        }
        let adam = last(RuleKind::Adam, 0.9);
        // With beta3 = 0 the bound is the rate itself.
        assert!((last(RuleKind::AdaMod, 0.0) - adam).abs() < 1e-4 * adam.abs());
        // A memory that grows is another method than either end of it.
        let losses = run(&Backend::Cpu, &growing(), 1, false).0;
        assert!(![last(RuleKind::AdaMod, 0.999), last(RuleKind::AdaMod, 0.6)].contains(&losses[4]));
    }

    #[test]
    fn windows_cover_all_steps_and_all_weights() {
        let elements = 16 * 40 + 40 + 2 * 40 + 40 * 3 + 3;
        for backend in &test_backends() {
            let (_, windows) = run(backend, &method(RuleKind::AdaMod, 0.9), 1, true);
            let steps: Vec<_> = windows.iter().map(|(steps, _)| *steps).collect();
            assert_eq!(steps, [(1, 1), (2, 3), (4, 5)]);
            for ((first, last), counts) in &windows {
                let window = counts.window((*first, *last)).unwrap();
                assert_eq!(window.eta.iter().sum::<u64>(), elements * (last - first + 1));
                assert_eq!(window.bounded.iter().sum::<u64>(), elements * (last - first + 1));
            }
            assert_eq!(windows[0].1.window((1, 1)).unwrap().clipped, elements);
            assert!(run(backend, &method(RuleKind::Adam, 0.9), 1, false).1.is_empty());
        }
    }

    /// Steps of the kernels and of the reference with the same gradients.
    #[test]
    fn the_cpu_steps_with_the_bits_of_the_kernels() {
        let [cpu, gpu] = test_backends();
        if !is_exact(&gpu) {
            return;
        }
        let methods = [
            method(RuleKind::AdaMod, 0.9),
            method(RuleKind::Adam, 0.9),
            method(RuleKind::Sgd, 0.9),
            growing(),
            stored(StateFormat::Bf16, Weights::F32),
            stored(StateFormat::Q8, Weights::F32),
        ];
        for method in methods {
            let learner = |backend: &Backend| {
                let network = Network::new(&backend.device().autodiff(), 1);
                Learner::new(network, &method, backend, true).unwrap()
            };
            let (mut of_cpu, mut of_gpu) = (learner(&cpu), learner(&gpu));
            for step in 1..=6 {
                // The gradient of the sum of products with these numbers is these numbers.
                let loss = |network: &Network| {
                    let mut number = step as f32;
                    let mut product = |tensor: Tensor<1>| {
                        let [len] = tensor.dims();
                        number += 1.0;
                        let factors: Vec<f32> =
                            (0..len).map(|i| (i as f32 * 0.37 + number).sin() * 0.3).collect();
                        let factors = Tensor::from_data(TensorData::new(factors, [len]), &tensor.device());
                        (tensor * factors).sum()
                    };
                    product(network.first.weight.val().flatten(0, 1))
                        + product(network.last.weight.val().flatten(0, 1))
                        + product(network.norm.gamma.val())
                };
                of_cpu.step(loss).unwrap();
                of_gpu.step(loss).unwrap();
                let bits = |learner: &Learner<Network>| -> Vec<(String, Vec<u32>)> {
                    let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect();
                    values(learner).into_iter().map(|(path, numbers)| (path, bits(numbers))).collect()
                };
                assert!(bits(&of_cpu) == bits(&of_gpu), "{}, step {step}", method.description());
            }
            if method.formats.state == StateFormat::F32 {
                assert_eq!(of_cpu.windows().unwrap(), of_gpu.windows().unwrap(), "{}", method.description());
            }
        }
    }

    /// Whether the adapter rounds as the reference does.
    fn is_exact(backend: &Backend) -> bool {
        let Backend::Gpu(gpu) = backend else { return false };
        gpu.wgpu_device().adapter_info().name.contains("llvmpipe")
    }

    #[test]
    fn a_learner_continues_with_the_same_bits_wherever_it_was_saved() {
        for backend in &test_backends() {
            let mut methods =
                vec![method(RuleKind::AdaMod, 0.9), growing(), stored(StateFormat::Q8, Weights::F32)];
            if matches!(backend, Backend::Cpu) {
                methods.extend(
                    [Weights::Bf16, Weights::Split24, Weights::Split32]
                        .map(|weights| stored(StateFormat::Bf16, weights)),
                );
            }
            methods.iter().for_each(|method| assert_continues(backend, method));
        }
    }

    fn assert_continues(backend: &Backend, method: &Method) {
        let network = |seed| Network::new(&backend.device().autodiff(), seed);
        let mut whole = Learner::new(network(1), method, backend, true).unwrap();
        let losses = steps(&mut whole, 1..=6);
        for broken in 0..6 {
            let mut before = Learner::new(network(1), method, backend, true).unwrap();
            let first = steps(&mut before, 1..=broken);
            let (checkpoint, state) = before.save().unwrap();
            // The state goes through a file.
            let state: LearnerState = serde_json::from_value(serde_json::to_value(&state).unwrap()).unwrap();
            let mut after = Learner::resume(network(2), method, backend, &checkpoint, &state).unwrap();
            let both = [first, steps(&mut after, broken + 1..=6)].concat();
            let what = format!("{}, {}, saved after step {broken}", backend.name(), method.description());
            assert_eq!(both, losses, "{what}");
            assert_eq!(values(&after), values(&whole), "{what}");
            assert_eq!(after.windows().unwrap(), whole.windows().unwrap(), "{what}");
        }
    }

    fn by_package(package: Package) -> Method {
        let formats = package.name.formats();
        Method { formats, package: Some(package), ..method(RuleKind::Adam, 0.9) }
    }

    /// The mean distance between the weights of two learners after some steps, and the mean distance that weights have moved.
    fn distance(one: &Method, other: &Method) -> (f64, f64) {
        let after = |method: &Method, count| {
            let network = Network::new(&Backend::Cpu.device().autodiff(), 1);
            let mut learner = Learner::new(network, method, &Backend::Cpu, false).unwrap();
            steps(&mut learner, 1..=count);
            // Not what batch norm has seen.
            let is_weight = |path: &str| !path.contains("running");
            tensors::collect(learner.model(), is_weight).into_values().flatten().collect::<Vec<_>>()
        };
        let distances = |a: &[f32], b: &[f32]| {
            mean(&a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).collect::<Vec<_>>())
        };
        let (a, b) = (after(one, 6), after(other, 6));
        (distances(&a, &b), distances(&a, &after(one, 0)))
    }

    #[test]
    fn packages_step_all_weights_and_continue() {
        let by_stand_in = by_package(stand_in());
        let sgd = Sgd::new().with_momentum(0.5);
        let hyperparameters = Hyperparameters::from(sgd).with_learning_rate(0.1);
        let ours = Method::new("", hyperparameters, Schedule::Constant);
        let (distance, moved) = distance(&by_stand_in, &ours);
        assert!(distance < 1e-5 * moved && moved > 0.01, "{distance} of {moved}");
        assert_continues(&Backend::Cpu, &by_stand_in);
    }

    /// The packages themselves against the library in the formats that are nearest to theirs.
    #[test]
    #[ignore = "needs a Python with bitsandbytes and FlashOptim, named by ADAMOD_PACKAGES_PYTHON"]
    fn real_packages_are_near_the_library_and_continue() {
        let python = std::env::var_os("ADAMOD_PACKAGES_PYTHON").expect("ADAMOD_PACKAGES_PYTHON");
        for name in [PackageName::BitsAndBytes, PackageName::FlashOptim] {
            let package = Package { name, python: (&python).into() };
            package.versions().unwrap();
            let method = by_package(package);
            let (distance, moved) = distance(&method, &Method { package: None, ..method.clone() });
            assert!(distance < 0.1 * moved && moved > 0.1, "{}: {distance} of {moved}", name.name());
            assert_continues(&Backend::Cpu, &method);
        }
    }

    #[test]
    fn a_learner_does_not_continue_from_another_model() {
        let backend = &Backend::Cpu;
        let method = method(RuleKind::AdaMod, 0.9);
        let device = backend.device().autodiff();
        let mut learner = Learner::new(Network::new(&device, 1), &method, backend, false).unwrap();
        steps(&mut learner, 1..=1);
        let (checkpoint, state) = learner.save().unwrap();
        let other = LinearConfig::new(4, 3).init(&device);
        let error = Learner::resume(other, &method, backend, &checkpoint, &state).err().unwrap();
        assert!(
            error.to_string().contains("\"bias\"") || error.to_string().contains("\"weight\""),
            "{error}"
        );
    }

    #[test]
    fn weights_below_32_bits_need_the_cpu() {
        let [_, gpu] = test_backends();
        let network = Network::new(&gpu.device().autodiff(), 1);
        let method = stored(StateFormat::F32, Weights::Split24);
        let error = Learner::new(network, &method, &gpu, false).err().unwrap().to_string();
        assert!(error.contains("--device cpu"), "{error}");
    }
}

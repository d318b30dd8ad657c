//! Burn's configurations: the same numbers as Burn's optimizers, or an error that names the field.

use adamod_burn::adamod::{AdaMod, Options, WeightDecay};
use adamod_burn::{Error, FusedConfig, FusedOptimizer};
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::Tensor;

use crate::common::{Network, Ranks, assert_close, device, elements, gpu, values};

const LEARNING_RATE: f64 = 1e-3;

/// Largest differences from [`Formula`] and from Burn after 200 steps, of values up to 0.8. On lavapipe they were 9.0e-7 and 2.4e-7.
const TOLERANCE: [f64; 2] = [2e-6, 1e-6];

/// The same for AdamW: 3.3e-6 and 6.2e-6. Its default decay changes a value by 1e-7 of itself per step, about one unit in the last place,
/// to which the adapter and Burn both round. Burn was 4.7e-6 from the formula.
const ADAMW_TOLERANCE: [f64; 2] = [6e-6, 1e-5];

/// Burn's formulas in f64, with hyperparameters that are f32 numbers as Burn's are.
#[derive(Clone, Copy, Default)]
struct Formula {
    /// Betas and epsilon.
    adam: Option<[f32; 3]>,
    momentum: f64,
    coupled: f32,
    decoupled: f32,
    clipping: Option<Clip>,
}

#[derive(Clone, Copy)]
enum Clip {
    Norm(f32),
    Value(f32),
}

impl Formula {
    fn step(&self, t: i32, theta: &mut [f64], state: &mut [[f64; 2]], gradients: &[f32]) {
        let mut gradients: Vec<f64> = gradients.iter().map(|g| f64::from(*g)).collect();
        match self.clipping {
            None => {}
            Some(Clip::Norm(most)) => {
                let norm = gradients.iter().map(|g| g * g).sum::<f64>().sqrt();
                let scale = (f64::from(most) / norm).min(1.0);
                gradients.iter_mut().for_each(|g| *g *= scale);
            }
            Some(Clip::Value(most)) => {
                let most = f64::from(most);
                gradients.iter_mut().for_each(|g| *g = g.clamp(-most, most));
            }
        }
        for ((theta, [m, v]), g) in theta.iter_mut().zip(state).zip(gradients) {
            let g = g + f64::from(self.coupled) * *theta;
            let decayed = *theta * (1.0 - LEARNING_RATE * f64::from(self.decoupled));
            let direction = match self.adam.map(|of| of.map(f64::from)) {
                Some([beta1, beta2, epsilon]) => {
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *m / (1.0 - beta1.powi(t)) / ((*v / (1.0 - beta2.powi(t))).sqrt() + epsilon)
                }
                None => {
                    *m = self.momentum * *m + g;
                    *m
                }
            };
            *theta = decayed - LEARNING_RATE * direction;
        }
    }
}

/// The gradients of a step, in the order of `values`.
fn gradients_of(module: &Ranks, step: usize) -> Vec<Vec<f32>> {
    struct Take(GradientsParams, Vec<Vec<f32>>);
    impl ModuleVisitor for Take {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(elements(self.0.remove::<D>(param.id).expect("a gradient")));
        }
    }
    let mut take = Take(module.gradients(step), Vec::new());
    module.visit(&mut take);
    take.1
}

/// Takes the same steps with Burn's optimizer, the adapter and the formula.
#[track_caller]
fn assert_as_burn(
    config: &impl FusedConfig,
    mut burn: ModuleOptimizer,
    formula: Formula,
    steps: usize,
    tolerance: [f64; 2],
    what: &str,
) {
    let mut fused = config.init_fused(gpu()).expect("an optimizer");
    let module = Ranks::new(&device());
    let mut exact: Vec<Vec<f64>> =
        values(&module).iter().map(|(_, values)| values.iter().map(|x| f64::from(*x)).collect()).collect();
    let mut states: Vec<_> = exact.iter().map(|values| vec![[0.0; 2]; values.len()]).collect();
    let (mut found, mut expected) = (module.clone(), module);
    for step in 0..steps {
        for ((theta, state), gradients) in exact.iter_mut().zip(&mut states).zip(gradients_of(&found, step)) {
            formula.step(step as i32 + 1, theta, state, &gradients);
        }
        let gradients = found.gradients(step);
        found = fused.step(LEARNING_RATE, found, gradients).expect("a step");
        let gradients = expected.gradients(step);
        expected = burn.step(LEARNING_RATE, expected, gradients);
    }
    let (found, expected) = (values(&found), values(&expected));
    for (((path, found), (_, expected)), exact) in found.iter().zip(&expected).zip(&exact) {
        for ((found, expected), exact) in found.iter().zip(expected).zip(exact) {
            let of = |expected: f64| (f64::from(*found) - expected).abs();
            let (from_formula, from_burn) = (of(*exact), of(f64::from(*expected)));
            let is_close = from_formula <= tolerance[0] && from_burn <= tolerance[1];
            assert!(is_close, "{what}, {path}: {found}, Burn {expected}, formula {exact}");
        }
    }
}

fn momentum(dampening: f64, nesterov: bool) -> Option<MomentumConfig> {
    Some(MomentumConfig { momentum: 0.9, dampening, nesterov })
}

const ADAM: Formula =
    Formula { adam: Some([0.9, 0.999, 1e-5]), momentum: 0.0, coupled: 0.0, decoupled: 0.0, clipping: None };
const ADAMW: Formula = Formula { decoupled: 1e-4, ..ADAM };
const SGD: Formula = Formula { adam: None, ..ADAM };

/// Every configuration that the core has a kernel for, but for clipping.
#[test]
fn two_hundred_steps_are_those_of_burn() {
    let decay = || Some(WeightDecayConfig::new(0.05));
    let other = AdamConfig::new().with_beta_1(0.8).with_beta_2(0.95).with_epsilon(1e-7);
    for (config, formula, what) in [
        (AdamConfig::new(), ADAM, "Adam"),
        (AdamConfig::new().with_weight_decay(decay()), Formula { coupled: 0.05, ..ADAM }, "Adam with decay"),
        (other, Formula { adam: Some([0.8, 0.95, 1e-7]), ..ADAM }, "Adam with other betas"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, TOLERANCE, what);
    }
    let other = AdamWConfig::new().with_weight_decay(0.1).with_epsilon(1e-8);
    for (config, formula, what) in [
        (AdamWConfig::new(), ADAMW, "AdamW"),
        (other, Formula { adam: Some([0.9, 0.999, 1e-8]), decoupled: 0.1, ..ADAM }, "AdamW with more decay"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, ADAMW_TOLERANCE, what);
    }
    let with_momentum = SgdConfig::new().with_momentum(momentum(0.0, false));
    for (config, formula, what) in [
        (SgdConfig::new(), SGD, "SGD"),
        (SgdConfig::new().with_weight_decay(decay()), Formula { coupled: 0.05, ..SGD }, "SGD with decay"),
        (with_momentum, Formula { momentum: 0.9, ..SGD }, "SGD with momentum"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, TOLERANCE, what);
    }
}

#[test]
fn clipping_is_that_of_each_tensor_as_in_burn() {
    for (clipping, clip, what) in [
        (GradientClippingConfig::Norm(0.5), Clip::Norm(0.5), "the norm of each tensor"),
        (GradientClippingConfig::Norm(1e6), Clip::Norm(1e6), "a norm that no tensor has"),
        (GradientClippingConfig::Value(0.25), Clip::Value(0.25), "values"),
    ] {
        let clipped = |formula| Formula { clipping: Some(clip), ..formula };
        let config = SgdConfig::new().with_gradient_clipping(Some(clipping.clone()));
        assert_as_burn(&config, config.init(), clipped(SGD), 50, TOLERANCE, what);
        let config = AdamConfig::new().with_grad_clipping(Some(clipping.clone()));
        assert_as_burn(&config, config.init(), clipped(ADAM), 50, TOLERANCE, what);
        let config = AdamWConfig::new().with_grad_clipping(Some(clipping));
        assert_as_burn(&config, config.init(), clipped(ADAMW), 50, ADAMW_TOLERANCE, what);
    }
}

#[test]
fn clipping_that_is_set_later_is_that_of_the_configuration() {
    let norm = GradientClipping::Norm(0.5);
    let trained = |mut optimizer: FusedOptimizer| {
        let module = (0..3).fold(Ranks::new(&device()), |module, step| {
            let gradients = module.gradients(step);
            optimizer.step(LEARNING_RATE, module, gradients).expect("a step")
        });
        values(&module)
    };
    let fused = |config: AdamConfig| config.init_fused(gpu()).expect("an optimizer");
    let configured = AdamConfig::new().with_grad_clipping(Some(GradientClippingConfig::Norm(0.5)));
    let expected = trained(fused(configured.clone()));
    let later = fused(AdamConfig::new()).with_grad_clipping(norm.clone()).expect("clipping");
    // Burn tunes its reductions, so the last bits of a norm may differ from one step to another.
    assert_close(&trained(later), &expected, 1e-6, "with_grad_clipping");

    let mut by_group = FusedOptimizer::new(gpu(), Options::new()).expect("an optimizer");
    let of_core = AdamConfig::new().fused_group().expect("a group").group;
    let group = by_group.add_group(of_core, |_| true).expect("a group");
    by_group.set_grad_clipping(group, Some(norm)).expect("clipping");
    assert_close(&trained(by_group), &expected, 1e-6, "set_grad_clipping");

    let unclipped = trained(fused(AdamConfig::new()));
    assert_ne!(unclipped, expected);
}

#[test]
fn fields_without_a_kernel_are_refused_by_name() {
    let fields = [
        (AdamConfig::new().with_amsgrad(true).fused_group(), "AdamConfig: amsgrad is true, expected false"),
        (AdamWConfig::new().with_amsgrad(true).fused_group(), "AdamWConfig: amsgrad is true, expected false"),
        (
            AdamWConfig::new().with_cautious_weight_decay(true).fused_group(),
            "AdamWConfig: cautious_weight_decay is true, expected false",
        ),
        (
            SgdConfig::new().with_momentum(Some(MomentumConfig::new())).fused_group(),
            "SgdConfig: momentum.dampening is 0.1, expected 0",
        ),
        (
            SgdConfig::new().with_momentum(momentum(0.0, true)).fused_group(),
            "SgdConfig: momentum.nesterov is true, expected false",
        ),
    ];
    for (found, message) in fields {
        let error = found.err().expect("a field without a kernel");
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(error.to_string().starts_with(message), "{error}");
    }
    // The core divides by epsilon where a second moment is zero.
    let error = AdamConfig::new().with_epsilon(0.0).init_fused(gpu()).expect_err("no epsilon");
    assert!(error.to_string().contains("epsilon"), "{error}");
}

#[test]
fn the_last_group_takes_precedence_as_in_burn() {
    let biases = || ParamGroup::from_predicate("bias");
    let convolution = || ParamGroup::from_predicate("convolution");
    let clipped = SgdConfig::new().with_gradient_clipping(Some(GradientClippingConfig::Value(1e-3)));
    let mut burn = AdamWConfig::new()
        .init()
        .with_group(convolution(), SgdConfig::new().build(), Some(GradientClipping::Value(1e-3)))
        .with_group(biases(), AdamWConfig::new().with_weight_decay(0.0).build(), None);
    let mut fused = AdamWConfig::new()
        .init_fused(gpu())
        .and_then(|optimizer| optimizer.with_group(convolution(), &clipped))
        .and_then(|optimizer| optimizer.with_group(biases(), &AdamWConfig::new().with_weight_decay(0.0)))
        .expect("groups");
    let (mut found, mut expected) = (Ranks::new(&device()), Ranks::new(&device()));
    for step in 0..20 {
        let gradients = expected.gradients(step);
        expected = burn.step(LEARNING_RATE, expected, gradients);
        let gradients = found.gradients(step);
        found = fused.step(LEARNING_RATE, found, gradients).expect("a step");
    }
    assert_close(&values(&found), &values(&expected), 1e-5, "groups");
}

#[test]
fn a_group_that_is_added_later_starts_anew() {
    let mut optimizer = AdamConfig::new().init_fused(gpu()).expect("an optimizer");
    let module = Ranks::new(&device());
    let gradients = module.gradients(0);
    let module = optimizer.step(LEARNING_RATE, module, gradients).expect("a step");
    let mut optimizer =
        optimizer.with_group(ParamGroup::from_predicate("cube"), &SgdConfig::new()).expect("a group");
    let gradients = module.gradients(1);
    optimizer.step(LEARNING_RATE, module, gradients).expect("a step");
    let steps = optimizer.with_core(|core| {
        ["cube", "matrix"].map(|path| core.parameter(path).and_then(|parameter| core.step_count(parameter)))
    });
    assert_eq!(steps.expect("steps"), [Some(1), Some(2)]);
}

#[test]
fn the_rules_of_the_core_are_configurations_too() {
    let group = AdaMod::new().fused_group().expect("a group");
    assert_eq!(group.group.hyperparameters.weight_decay, WeightDecay::None);
    assert!(group.clipping.is_none());
    let mut optimizer = AdaMod::new().init_fused(gpu()).expect("an optimizer");
    let network = Network::new(&device());
    let gradients = network.gradients(0);
    optimizer.step(LEARNING_RATE, network, gradients).expect("a step");
}

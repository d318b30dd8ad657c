//! Burn's configurations: the same numbers as Burn's optimizers, or an error that names the field.

use adamod_burn::adamod::{AdaMod, Options, WeightDecay};
use adamod_burn::{Error, FusedConfig, FusedOptimizer};
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdaGradConfig, AdamConfig, AdamWConfig, GradientsParams, LionConfig, ModuleOptimizer, RmsPropConfig,
    SgdConfig,
};
use burn::tensor::Tensor;

use crate::common::{Network, Ranks, assert_close, device, elements, gpu, values};

const LEARNING_RATE: f64 = 1e-3;

/// Largest differences from [`Formula`] and from Burn after 200 steps, of values up to 0.8. On lavapipe they were 9.0e-7 and 3.0e-7.
const TOLERANCE: [f64; 2] = [2e-6, 1e-6];

/// The same for AdamW's default decay: 5.1e-6 and 2.4e-7. It changes a value by one unit in the last place or so per step, and the
/// errors of rounding the value to f32 add up. They are the same in Burn.
const SMALL_DECAY_TOLERANCE: [f64; 2] = [1e-5, 1e-6];

/// Burn's formulas in f64, with hyperparameters that are f32 numbers as Burn's are.
#[derive(Clone, Copy)]
struct Formula {
    update: Update,
    coupled: f32,
    decoupled: f32,
    /// Leaves out decoupled decay where it works against the step.
    cautious_decay: bool,
    clipping: Option<Clip>,
}

#[derive(Clone, Copy)]
enum Update {
    Adam { betas: [f32; 2], epsilon: f32, amsgrad: bool },
    Sgd { momentum: f64, dampening: f64, nesterov: bool },
    RmsProp { alpha: f32, momentum: f32, epsilon: f32, centered: bool },
    AdaGrad { lr_decay: f64, epsilon: f32 },
    Lion { betas: [f32; 2] },
}

impl Update {
    /// What the learning rate multiplies.
    fn direction(self, t: i32, g: f64, state: &mut [f64; 3]) -> f64 {
        let average = |of: &mut f64, value: f64, beta: f32| {
            let beta = f64::from(beta);
            *of = beta * *of + (1.0 - beta) * value;
            *of
        };
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(t);
        let [a, b, c] = state;
        match self {
            Update::Adam { betas: [beta1, beta2], epsilon, amsgrad } => {
                let m = average(a, g, beta1);
                let mut v = average(b, g * g, beta2);
                if amsgrad {
                    *c = c.max(v);
                    v = *c;
                }
                m / correction(beta1) / ((v / correction(beta2)).sqrt() + f64::from(epsilon))
            }
            Update::Sgd { momentum, dampening, nesterov } => {
                *a = if t == 1 { g } else { momentum * *a + (1.0 - dampening) * g };
                if nesterov { momentum * *a + g } else { *a }
            }
            Update::RmsProp { alpha, momentum, epsilon, centered } => {
                let mut v = average(a, g * g, alpha);
                if centered {
                    v -= average(b, g, alpha).powi(2);
                }
                *c = f64::from(momentum) * *c + g / (v.sqrt() + f64::from(epsilon));
                *c
            }
            Update::AdaGrad { lr_decay, epsilon } => {
                *a += g * g;
                g / (a.sqrt() + f64::from(epsilon)) / (1.0 + f64::from(t - 1) * lr_decay)
            }
            Update::Lion { betas: [beta1, beta2] } => {
                let mut interpolated = *a;
                average(a, g, beta2);
                match average(&mut interpolated, g, beta1) {
                    0.0 => 0.0,
                    direction => direction.signum(),
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Clip {
    Norm(f32),
    Value(f32),
}

impl Formula {
    fn step(&self, t: i32, theta: &mut [f64], state: &mut [[f64; 3]], gradients: &[f32]) {
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
        for ((theta, state), g) in theta.iter_mut().zip(state).zip(gradients) {
            let direction = self.update.direction(t, g + f64::from(self.coupled) * *theta, state);
            let decays = !self.cautious_decay || direction * *theta >= 0.0;
            let decay = LEARNING_RATE * f64::from(self.decoupled);
            // Burn rounds the factor `1 - decay`, except with cautious decay.
            let decay = if self.cautious_decay { decay } else { 1.0 - f64::from((1.0 - decay) as f32) };
            *theta -= if decays { decay * *theta } else { 0.0 } + LEARNING_RATE * direction;
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
    let mut states: Vec<_> = exact.iter().map(|values| vec![[0.0; 3]; values.len()]).collect();
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

const fn formula(update: Update) -> Formula {
    Formula { update, coupled: 0.0, decoupled: 0.0, cautious_decay: false, clipping: None }
}

const ADAM: Formula = formula(Update::Adam { betas: [0.9, 0.999], epsilon: 1e-5, amsgrad: false });
/// With a second moment that rises and falls, so that its maximum is another number.
const AMSGRAD: Formula = formula(Update::Adam { betas: [0.9, 0.8], epsilon: 1e-5, amsgrad: true });
const ADAMW: Formula = Formula { decoupled: 1e-4, ..ADAM };
const SGD: Formula = formula(Update::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false });

fn decay() -> Option<WeightDecayConfig> {
    Some(WeightDecayConfig::new(0.05))
}

#[test]
fn two_hundred_steps_of_adam_are_those_of_burn() {
    let other = AdamConfig::new().with_beta_1(0.8).with_beta_2(0.95).with_epsilon(1e-7);
    let others = formula(Update::Adam { betas: [0.8, 0.95], epsilon: 1e-7, amsgrad: false });
    for (config, formula, what) in [
        (AdamConfig::new(), ADAM, "Adam"),
        (AdamConfig::new().with_weight_decay(decay()), Formula { coupled: 0.05, ..ADAM }, "Adam with decay"),
        (other, others, "Adam with other betas"),
        (AdamConfig::new().with_amsgrad(true).with_beta_2(0.8), AMSGRAD, "AMSGrad"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, TOLERANCE, what);
    }
}

#[test]
fn two_hundred_steps_of_adamw_are_those_of_burn() {
    let more = || AdamWConfig::new().with_weight_decay(0.1).with_epsilon(1e-8);
    let more_decay = Formula {
        decoupled: 0.1,
        ..formula(Update::Adam { betas: [0.9, 0.999], epsilon: 1e-8, amsgrad: false })
    };
    let cautious = Formula { cautious_decay: true, ..more_decay };
    let amsgrad = AdamWConfig::new().with_amsgrad(true).with_beta_2(0.8);
    for (config, formula, tolerance, what) in [
        (AdamWConfig::new(), ADAMW, SMALL_DECAY_TOLERANCE, "AdamW"),
        (more(), more_decay, TOLERANCE, "AdamW with more decay"),
        (more().with_cautious_weight_decay(true), cautious, TOLERANCE, "AdamW with cautious decay"),
        (amsgrad, Formula { decoupled: 1e-4, ..AMSGRAD }, SMALL_DECAY_TOLERANCE, "AdamW with AMSGrad"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, tolerance, what);
    }
}

#[test]
fn checkpoints_have_the_decay_of_the_configuration_though_steps_round_it() {
    let mut fused = AdamWConfig::new().init_fused(gpu()).expect("an optimizer");
    let module = Ranks::new(&device());
    let gradients = module.gradients(0);
    fused.step(LEARNING_RATE, module, gradients).expect("a step");
    let checkpoint = fused.checkpoint().expect("a checkpoint");
    let [group] = checkpoint.groups() else { panic!("one group") };
    let hyperparameters = group.hyperparameters;
    assert_eq!(hyperparameters.weight_decay, WeightDecay::Decoupled(f64::from(1e-4_f32)));
    assert_eq!(hyperparameters.learning_rate, LEARNING_RATE);
}

/// The one difference of cautious decay: where the first moment is exactly 0, Burn decays positive values only.
#[test]
fn cautious_decay_without_a_moment_decays_values_of_both_signs() {
    #[derive(Module, Debug)]
    struct One {
        weight: Param<Tensor<1>>,
    }
    let config = AdamWConfig::new().with_cautious_weight_decay(true).with_weight_decay(10.0);
    let model = One { weight: Param::from_tensor(Tensor::<1>::from_floats([1.0, -1.0], &device())) };
    let gradients = || {
        let mut gradients = GradientsParams::new();
        gradients.register(model.weight.id, Tensor::<1>::zeros([2], &gpu().device()));
        gradients
    };
    let mut fused = config.init_fused(gpu()).expect("an optimizer");
    let found = fused.step(0.0625, model.clone(), gradients()).expect("a step");
    assert_eq!(elements(found.weight.val()), [0.375, -0.375]);
    let of_burn = config.init().step(0.0625, model.clone(), gradients());
    assert_eq!(elements(of_burn.weight.val()), [0.375, -1.0]);
}

#[test]
fn two_hundred_steps_of_sgd_are_those_of_burn() {
    let sgd = |dampening, nesterov| formula(Update::Sgd { momentum: 0.9, dampening, nesterov });
    let with = |momentum| SgdConfig::new().with_momentum(momentum);
    let defaults = Some(MomentumConfig::new());
    let none = Some(MomentumConfig { momentum: 0.0, dampening: 0.0, nesterov: true });
    for (config, formula, what) in [
        (SgdConfig::new(), SGD, "SGD"),
        (SgdConfig::new().with_weight_decay(decay()), Formula { coupled: 0.05, ..SGD }, "SGD with decay"),
        (with(momentum(0.0, false)), sgd(0.0, false), "SGD with momentum"),
        (with(defaults), sgd(0.1, false), "SGD with the default momentum, which has dampening"),
        (with(momentum(0.0, true)), sgd(0.0, true), "SGD with Nesterov momentum"),
        (with(none), SGD, "SGD with momentum 0"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, TOLERANCE, what);
    }
}

#[test]
fn two_hundred_steps_of_rmsprop_are_those_of_burn() {
    let rmsprop =
        |momentum, centered| formula(Update::RmsProp { alpha: 0.99, momentum, epsilon: 1e-5, centered });
    let new = RmsPropConfig::new;
    for (config, formula, what) in [
        (new(), rmsprop(0.9, false), "RMSprop"),
        (new().with_momentum(0.0), rmsprop(0.0, false), "RMSprop without momentum"),
        (
            new().with_weight_decay(decay()),
            Formula { coupled: 0.05, ..rmsprop(0.9, false) },
            "RMSprop with decay",
        ),
        (new().with_centered(true), rmsprop(0.9, true), "centered RMSprop"),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, TOLERANCE, what);
    }
}

#[test]
fn two_hundred_steps_of_adagrad_are_those_of_burn() {
    let adagrad = |lr_decay| formula(Update::AdaGrad { lr_decay, epsilon: 1e-5 });
    for (config, formula, what) in [
        (AdaGradConfig::new(), adagrad(0.0), "AdaGrad"),
        (AdaGradConfig::new().with_lr_decay(0.1), adagrad(0.1), "AdaGrad with decay of the rate"),
        (
            AdaGradConfig::new().with_weight_decay(decay()),
            Formula { coupled: 0.05, ..adagrad(0.0) },
            "AdaGrad with decay",
        ),
    ] {
        assert_as_burn(&config, config.init(), formula, 200, TOLERANCE, what);
    }
}

#[test]
fn two_hundred_steps_of_lion_are_those_of_burn() {
    let lion = formula(Update::Lion { betas: [0.9, 0.99] });
    for (config, formula, what) in [
        (LionConfig::new(), lion, "Lion"),
        (LionConfig::new().with_weight_decay(0.1), Formula { decoupled: 0.1, ..lion }, "Lion with decay"),
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
        assert_as_burn(&config, config.init(), clipped(ADAMW), 50, TOLERANCE, what);
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
fn dampening_without_a_kernel_is_refused_by_name() {
    let none = Some(MomentumConfig { momentum: 0.0, dampening: 0.1, nesterov: false });
    let fields = [
        (momentum(0.1, true), "SgdConfig: momentum.dampening is 0.1, expected 0 with nesterov"),
        (none, "SgdConfig: momentum.dampening is 0.1, expected 0 without momentum"),
    ];
    for (momentum, message) in fields {
        let found = SgdConfig::new().with_momentum(momentum).fused_group();
        let error = found.err().expect("a field without a kernel");
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

#[test]
fn hyperparameters_out_of_the_cores_range_are_refused_by_name() {
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

//! Burn's configurations: the same numbers as Burn's optimizers, or an error that names the field.

use adamod_burn::adamod::{AdaMod, Options, WeightDecay};
use adamod_burn::{Error, FusedConfig, FusedOptimizer};
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::module::ParamGroup;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig};

use crate::common::{Network, Ranks, assert_close, assert_same, device, gpu, values};

const LEARNING_RATE: f64 = 1e-3;
const STEPS: usize = 200;

/// The largest differences on lavapipe were 2.4e-7 (Adam, whose bias corrections Burn computes in f32).
const TOLERANCE: f32 = 1e-6;

/// Takes the same steps with Burn's optimizer and the adapter.
#[track_caller]
fn assert_as_burn(config: &impl FusedConfig, mut burn: ModuleOptimizer, what: &str) {
    let mut fused = config.init_fused(gpu()).expect("an optimizer");
    let module = Ranks::new(&device());
    let (mut found, mut expected) = (module.clone(), module);
    for step in 0..STEPS {
        let gradients = found.gradients(step);
        found = fused.step(LEARNING_RATE, found, gradients).expect("a step");
        let gradients = expected.gradients(step);
        expected = burn.step(LEARNING_RATE, expected, gradients);
    }
    assert_close(&values(&found), &values(&expected), TOLERANCE, what);
}

fn momentum(dampening: f64, nesterov: bool) -> Option<MomentumConfig> {
    Some(MomentumConfig { momentum: 0.9, dampening, nesterov })
}

/// Every configuration that the core has a kernel for, but for clipping.
#[test]
fn two_hundred_steps_are_those_of_burn() {
    let decay = || Some(WeightDecayConfig::new(0.05));
    for (config, what) in [
        (AdamConfig::new(), "Adam"),
        (AdamConfig::new().with_weight_decay(decay()), "Adam with decay"),
        (AdamConfig::new().with_beta_1(0.8).with_beta_2(0.95).with_epsilon(1e-7), "Adam with other betas"),
    ] {
        assert_as_burn(&config, config.init(), what);
    }
    for (config, what) in [
        (AdamWConfig::new(), "AdamW"),
        (AdamWConfig::new().with_weight_decay(0.1).with_epsilon(1e-8), "AdamW with more decay"),
    ] {
        assert_as_burn(&config, config.init(), what);
    }
    for (config, what) in [
        (SgdConfig::new(), "SGD"),
        (SgdConfig::new().with_weight_decay(decay()), "SGD with decay"),
        (SgdConfig::new().with_momentum(momentum(0.0, false)), "SGD with momentum"),
    ] {
        assert_as_burn(&config, config.init(), what);
    }
}

#[test]
fn clipping_is_that_of_each_tensor_as_in_burn() {
    for (clipping, what) in [
        (GradientClippingConfig::Norm(0.5), "the norm of each tensor"),
        (GradientClippingConfig::Norm(1e6), "a norm that no tensor has"),
        (GradientClippingConfig::Value(0.25), "values"),
    ] {
        let config = SgdConfig::new().with_gradient_clipping(Some(clipping.clone()));
        assert_as_burn(&config, config.init(), what);
        let config = AdamConfig::new().with_grad_clipping(Some(clipping.clone()));
        assert_as_burn(&config, config.init(), what);
        let config = AdamWConfig::new().with_grad_clipping(Some(clipping));
        assert_as_burn(&config, config.init(), what);
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
    assert_same(&trained(later), &expected, "with_grad_clipping");

    let mut by_group = FusedOptimizer::new(gpu(), Options::new()).expect("an optimizer");
    let of_core = AdamConfig::new().fused_group().expect("a group").group;
    let group = by_group.add_group(of_core, |_| true).expect("a group");
    by_group.set_grad_clipping(group, Some(norm)).expect("clipping");
    assert_same(&trained(by_group), &expected, "set_grad_clipping");

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
    let output = || ParamGroup::from_predicate("output");
    let clipped = SgdConfig::new().with_gradient_clipping(Some(GradientClippingConfig::Value(1e-3)));
    let mut burn = AdamWConfig::new()
        .init()
        .with_group(output(), SgdConfig::new().build(), Some(GradientClipping::Value(1e-3)))
        .with_group(biases(), AdamWConfig::new().with_weight_decay(0.0).build(), None);
    let mut fused = AdamWConfig::new()
        .init_fused(gpu())
        .and_then(|optimizer| optimizer.with_group(output(), &clipped))
        .and_then(|optimizer| optimizer.with_group(biases(), &AdamWConfig::new().with_weight_decay(0.0)))
        .expect("groups");
    let (mut found, mut expected) = (Network::new(&device()), Network::new(&device()));
    for step in 0..20 {
        let gradients = expected.gradients(step);
        expected = burn.step(LEARNING_RATE, expected, gradients);
        let gradients = found.gradients(step);
        found = fused.step(LEARNING_RATE, found, gradients).expect("a step");
    }
    assert_close(&values(&found), &values(&expected), TOLERANCE, "groups");
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

//! Training through the adapter.

use adamod_burn::adamod::{Hyperparameters, Options, Precision, Rule, WeightDecay};
use adamod_burn::operations::AdaMod;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};

use crate::common::{Network, Ranks, adamod, device, hyperparameters, optimizer, values};

const LEARNING_RATE: f64 = 1e-2;

fn losses(mut step: impl FnMut(Network, GradientsParams) -> Network) -> Vec<f32> {
    let mut network = Network::new(&device());
    (0..50)
        .map(|index| {
            let loss = network.loss(index);
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            network = step(network.clone(), gradients);
            loss.into_scalar()
        })
        .collect()
}

fn assert_close(found: &[f32], needed: &[f32], relative: f32) {
    assert_eq!(found.len(), needed.len());
    for (index, (found, needed)) in found.iter().zip(needed).enumerate() {
        let difference = (found - needed).abs();
        assert!(difference <= relative * needed.abs(), "{index}: {found} {needed}");
    }
}

#[test]
fn losses_are_those_of_adamod_in_tensor_operations() {
    let mut fused = adamod();
    let found = losses(|network, gradients| fused.step(LEARNING_RATE, network, gradients).expect("a step"));
    let mut operations = ModuleOptimizer::from(AdaMod::new(hyperparameters()));
    let needed = losses(|network, gradients| operations.step(LEARNING_RATE, network, gradients));
    assert!(needed[49] < 0.5 * needed[0], "it trains: {needed:?}");
    assert_close(&found, &needed, 1e-4);
}

#[test]
fn losses_of_adam_are_those_of_burns_adamw() {
    let hyperparameters =
        Hyperparameters { weight_decay: WeightDecay::Decoupled(0.01), ..Hyperparameters::default() };
    let mut fused =
        optimizer(Options { rule: Rule::Adam, ..Options::default() }, hyperparameters, Precision::default());
    let found = losses(|network, gradients| fused.step(LEARNING_RATE, network, gradients).expect("a step"));
    let mut burn = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    let needed = losses(|network, gradients| burn.step(LEARNING_RATE, network, gradients));
    assert_close(&found, &needed, 1e-4);
}

#[test]
fn parameters_of_every_rank_step_as_in_tensor_operations() {
    let mut fused = adamod();
    let mut operations = ModuleOptimizer::from(AdaMod::new(hyperparameters()));
    let module = Ranks::new(&device());
    let (mut found, mut needed) = (module.clone(), module);
    for step in 0..5 {
        let (of_found, of_needed) = (found.gradients(step), needed.gradients(step));
        found = fused.step(LEARNING_RATE, found, of_found).expect("a step");
        needed = operations.step(LEARNING_RATE, needed, of_needed);
    }
    let (found, needed) = (values(&found), values(&needed));
    assert_eq!(found.len(), 5);
    for ((path, found), (_, needed)) in found.iter().zip(&needed) {
        for (found, needed) in found.iter().zip(needed) {
            assert!((found - needed).abs() <= 1e-6 + 1e-5 * needed.abs(), "{path}: {found} {needed}");
        }
    }
}

#[test]
fn accumulated_gradients_step_as_their_sum() {
    let network = Network::new(&device());
    let mut accumulator = GradientsAccumulator::new();
    accumulator.accumulate(&network, network.gradients(0));
    accumulator.accumulate(&network, network.gradients(1));
    let found = adamod().step(LEARNING_RATE, network.clone(), accumulator.grads()).expect("a step");

    let loss = network.loss(0) + network.loss(1);
    let gradients = GradientsParams::from_grads(loss.backward(), &network);
    let needed = adamod().step(LEARNING_RATE, network, gradients).expect("a step");
    for ((path, found), (_, needed)) in values(&found).iter().zip(&values(&needed)) {
        for (found, needed) in found.iter().zip(needed) {
            // The first step is about as large whatever the gradient: what differs is rounding near zero.
            assert!((found - needed).abs() <= 1e-5, "{path}: {found} {needed}");
        }
    }
}

#[test]
fn a_parameter_without_a_gradient_is_left_alone() {
    let module = Ranks::new(&device());
    let before = values(&module);
    let mut optimizer = adamod();
    let mut gradients = module.gradients(0);
    let left_out = module.cube.id;
    gradients.remove::<3>(left_out);
    let module = optimizer.step(LEARNING_RATE, module, gradients).expect("a step");
    for ((path, before), (_, after)) in before.iter().zip(&values(&module)) {
        assert_eq!(before == after, path == "cube", "{path}");
    }
    // With a gradient it takes its first step when the others take their second.
    let gradients = module.gradients(1);
    optimizer.step(LEARNING_RATE, module, gradients).expect("a step");
    let steps = optimizer
        .with_core(|core| {
            ["cube", "matrix"]
                .map(|path| core.parameter(path).and_then(|parameter| core.step_count(parameter)))
        })
        .expect("steps");
    assert_eq!(steps, [Some(1), Some(2)]);
}

#[test]
fn frozen_parameters_stay_and_stay_frozen() {
    let mut network = Network::new(&device());
    network.output = network.output.no_grad();
    let before = values(&network);
    let mut optimizer = adamod();
    for step in 0..3 {
        let gradients = network.gradients(step);
        network = optimizer.step(LEARNING_RATE, network, gradients).expect("a step");
    }
    for ((path, before), (_, after)) in before.iter().zip(&values(&network)) {
        assert_eq!(before == after, path.starts_with("output."), "{path}");
    }
    assert!(!network.output.weight.is_require_grad());
    assert!(network.layers[0].weight.is_require_grad());
}

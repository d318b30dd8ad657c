//! Training through the adapter.

use adamod_burn::adamod::{Adam, Formula, Hyperparameters, Options, WeightDecay};
use adamod_burn::operations::AdaMod;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};

use crate::common::{
    Network, Ranks, WEIGHT_DECAY, adamod, device, hyperparameters, operations, optimizer, rule, values,
};

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

fn assert_close(found: &[f32], expected: &[f32], relative: f32) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= relative * expected.abs(), "{index}: {found} {expected}");
    }
}

#[test]
fn losses_are_those_of_adamod_in_tensor_operations() {
    let mut fused = adamod();
    let found = losses(|network, gradients| fused.step(LEARNING_RATE, network, gradients).expect("a step"));
    let mut operations = ModuleOptimizer::from(operations());
    let expected = losses(|network, gradients| operations.step(LEARNING_RATE, network, gradients));
    assert!(expected[49] < 0.5 * expected[0], "the loss falls: {expected:?}");
    assert_close(&found, &expected, 1e-4);
}

#[test]
fn losses_of_the_authors_formula_are_those_of_tensor_operations() {
    let rule = rule().with_formula(Formula::AuthorsCode);
    let mut fused = optimizer(Options::new(), hyperparameters().with_rule(rule));
    let found = losses(|network, gradients| fused.step(LEARNING_RATE, network, gradients).expect("a step"));
    let mut operations = ModuleOptimizer::from(AdaMod::new(rule).with_weight_decay(WEIGHT_DECAY));
    let expected = losses(|network, gradients| operations.step(LEARNING_RATE, network, gradients));
    assert_close(&found, &expected, 1e-4);
}

#[test]
fn losses_of_adam_are_those_of_burns_adamw() {
    let adam = Hyperparameters::from(Adam::new()).with_weight_decay(WeightDecay::Decoupled(0.01));
    let mut fused = optimizer(Options::new(), adam);
    let found = losses(|network, gradients| fused.step(LEARNING_RATE, network, gradients).expect("a step"));
    let mut burn = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    let expected = losses(|network, gradients| burn.step(LEARNING_RATE, network, gradients));
    assert_close(&found, &expected, 1e-4);
}

#[test]
fn parameters_of_every_rank_step_as_in_tensor_operations() {
    let mut fused = adamod();
    let mut operations = ModuleOptimizer::from(operations());
    let module = Ranks::new(&device());
    let (mut found, mut expected) = (module.clone(), module);
    for step in 0..5 {
        let (of_found, of_expected) = (found.gradients(step), expected.gradients(step));
        found = fused.step(LEARNING_RATE, found, of_found).expect("a step");
        expected = operations.step(LEARNING_RATE, expected, of_expected);
    }
    let (found, expected) = (values(&found), values(&expected));
    assert_eq!(found.len(), 5);
    for ((path, found), (_, expected)) in found.iter().zip(&expected) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "{path}: {found} {expected}");
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
    let expected = adamod().step(LEARNING_RATE, network, gradients).expect("a step");
    for ((path, found), (_, expected)) in values(&found).iter().zip(&values(&expected)) {
        for (found, expected) in found.iter().zip(expected) {
            // The size of the first step hardly depends on the gradient. Only gradients near zero differ, by rounding.
            assert!((found - expected).abs() <= 1e-5, "{path}: {found} {expected}");
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

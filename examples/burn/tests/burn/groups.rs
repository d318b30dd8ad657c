//! Groups by path.

use adamod_burn::adamod::{Hyperparameters, Options, Precision, Rule};
use adamod_burn::{Error, FusedOptimizer};
use burn::module::Module;

use crate::common::{Network, assert_same, device, gpu, values};

/// SGD without momentum: a step is the learning rate times the gradient.
fn sgd() -> (Options, Hyperparameters) {
    let hyperparameters = Hyperparameters { momentum: 0.0, ..Hyperparameters::default() };
    (Options { rule: Rule::Sgd, ..Options::default() }, hyperparameters)
}

#[test]
fn the_first_group_that_takes_a_path_has_it() {
    let (options, hyperparameters) = sgd();
    let mut optimizer = FusedOptimizer::new(gpu(), options).expect("an optimizer");
    let mut add = |takes: fn(&str) -> bool| {
        optimizer.add_group(hyperparameters, Precision::default(), takes).expect("a group")
    };
    let biases = add(|path| path.ends_with(".bias"));
    let layers = add(|path| path.starts_with("layers."));
    let rest = add(|_| true);
    for (group, rate) in [(biases, 0.0), (layers, 0.5), (rest, 0.25)] {
        optimizer.set_learning_rate(group, rate).expect("a rate");
    }
    let network = Network::new(&device());
    let before = values(&network);
    let gradients = network.gradients(0);
    let of_all = [network.layers[0].weight.id, network.layers[1].weight.id, network.output.weight.id]
        .map(|id| crate::common::elements(gradients.get::<2>(id).expect("a gradient")));
    let after = values(&optimizer.step_groups(network, gradients).expect("a step"));
    let paths: Vec<_> = after.iter().map(|(path, _)| path.as_str()).collect();
    let layer = |index| [format!("layers.{index}.weight"), format!("layers.{index}.bias")];
    let needed = [layer(0), layer(1), ["output.weight".to_owned(), "output.bias".to_owned()]].concat();
    assert_eq!(paths, needed);
    let mut weights = of_all.iter().zip([0.5, 0.5, 0.25_f32]);
    for ((path, before), (_, after)) in before.iter().zip(&after) {
        if path.ends_with("bias") {
            assert_eq!(before, after, "{path}");
            continue;
        }
        let (gradients, rate) = weights.next().expect("as many weights as gradients");
        for ((before, after), gradient) in before.iter().zip(after).zip(gradients) {
            let needed = before - rate * gradient;
            assert!((after - needed).abs() <= 1e-6, "{path}: {after} {needed}");
        }
    }
}

#[test]
fn one_rate_for_all_replaces_those_of_groups() {
    let (options, hyperparameters) = sgd();
    let mut optimizer = FusedOptimizer::new(gpu(), options).expect("an optimizer");
    let group = optimizer.add_group(hyperparameters, Precision::default(), |_| true).expect("a group");
    let network = Network::new(&device());
    let before = values(&network);
    let gradients = network.gradients(0);
    let network = optimizer.step(0.0, network, gradients).expect("a step");
    assert_same(&values(&network), &before, "no rate");
    assert_eq!(optimizer.hyperparameters(group).map(|of| of.learning_rate), Some(0.0));
}

#[test]
fn a_parameter_that_no_group_takes_is_refused_by_its_path() {
    let (options, hyperparameters) = sgd();
    let mut optimizer = FusedOptimizer::new(gpu(), options).expect("an optimizer");
    optimizer
        .add_group(hyperparameters, Precision::default(), |path| path != "layers.1.bias")
        .expect("a group");
    let network = Network::new(&device());
    let before = values(&network);
    let gradients = network.gradients(0);
    let error = optimizer.step(0.1, network, gradients).expect_err("no group");
    assert!(matches!(error.error(), Error::NoGroup { label } if label == "layers.1.bias"), "{error}");
    let (network, _) = error.into_parts();
    assert_same(&values(&network), &before, "refused");
    // Frozen, it needs none.
    let mut network = network;
    network.layers[1] = network.layers[1].clone().no_grad();
    let gradients = network.gradients(0);
    let network = optimizer.step(0.1, network, gradients).expect("a step");
    assert_ne!(before, values(&network));
}

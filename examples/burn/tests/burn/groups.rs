//! Groups by path.

use adamod_burn::adamod::{self, AdaMod, Adam, ErrorKind, Hyperparameters, Options, RuleKind, Sgd};
use adamod_burn::{Error, FusedOptimizer};
use burn::module::Module;

use crate::common::{Network, Ranks, assert_same, device, gpu, optimizer, parameter, values, wave};

/// SGD without momentum: a step is the learning rate times the gradient.
fn sgd() -> Sgd {
    Sgd::new().with_momentum(0.0)
}

fn fused() -> FusedOptimizer {
    FusedOptimizer::new(gpu(), Options::new()).expect("an optimizer")
}

#[test]
fn the_first_group_that_takes_a_path_has_it() {
    let mut optimizer = fused();
    let mut add = |takes: fn(&str) -> bool| optimizer.add_group(sgd(), takes).expect("a group");
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
    let expected = [layer(0), layer(1), ["output.weight".to_owned(), "output.bias".to_owned()]].concat();
    assert_eq!(paths, expected);
    let mut weights = of_all.iter().zip([0.5, 0.5, 0.25_f32]);
    for ((path, before), (_, after)) in before.iter().zip(&after) {
        if path.ends_with("bias") {
            assert_eq!(before, after, "{path}");
            continue;
        }
        let (gradients, rate) = weights.next().expect("as many weights as gradients");
        for ((before, after), gradient) in before.iter().zip(after).zip(gradients) {
            let expected = before - rate * gradient;
            assert!((after - expected).abs() <= 1e-6, "{path}: {after} {expected}");
        }
    }
}

#[test]
fn one_rate_for_all_replaces_those_of_groups() {
    let mut optimizer = fused();
    let group = optimizer.add_group(sgd(), |_| true).expect("a group");
    let network = Network::new(&device());
    let before = values(&network);
    let gradients = network.gradients(0);
    let network = optimizer.step(0.0, network, gradients).expect("a step");
    assert_same(&values(&network), &before, "no rate");
    assert_eq!(optimizer.hyperparameters(group).map(|of| of.learning_rate), Some(0.0));
}

#[test]
fn a_parameter_that_no_group_takes_is_refused_by_its_path() {
    let mut optimizer = fused();
    optimizer.add_group(sgd(), |path| path != "layers.1.bias").expect("a group");
    let network = Network::new(&device());
    let before = values(&network);
    let gradients = network.gradients(0);
    let error = optimizer.step(0.1, network, gradients).expect_err("no group");
    assert!(matches!(error.error(), Error::NoGroup { label } if label == "layers.1.bias"), "{error}");
    let (network, _) = error.into_parts();
    assert_same(&values(&network), &before, "refused");
    // A frozen parameter needs no group.
    let mut network = network;
    network.layers[1] = network.layers[1].clone().no_grad();
    let gradients = network.gradients(0);
    let network = optimizer.step(0.1, network, gradients).expect("a step");
    assert_ne!(before, values(&network));
}

#[test]
fn groups_have_their_own_rules() {
    let is_first = |path: &str| path.starts_with("convolution");
    // The gradients of `Ranks` do not depend on its values.
    let trained = |mut optimizer: FusedOptimizer| {
        let module = (0..3).fold(Ranks::new(&device()), |module, step| {
            let gradients = module.gradients(step);
            optimizer.step(0.01, module, gradients).expect("a step")
        });
        values(&module)
    };
    for (first, rest) in [(RuleKind::AdaMod, RuleKind::Sgd), (RuleKind::Adam, RuleKind::AdaMod)] {
        let mut mixed = fused();
        mixed.add_group(first.with_defaults(), is_first).expect("a group");
        mixed.add_group(rest.with_defaults(), |_| true).expect("a group");
        let [first, rest] =
            [first, rest].map(|rule| trained(optimizer(Options::new(), rule.with_defaults())));
        let expected: Vec<_> = first
            .into_iter()
            .zip(rest)
            .map(|(first, rest)| {
                assert_ne!(first, rest);
                if is_first(&first.0) { first } else { rest }
            })
            .collect();
        assert_same(&trained(mixed), &expected, "groups with two rules");
    }
}

#[test]
fn a_group_keeps_its_rule() {
    let mut optimizer = fused();
    let group = optimizer.add_group(AdaMod::new(), |_| true).expect("a group");
    let error = optimizer.set_hyperparameters(group, Adam::new()).expect_err("another rule");
    let is_rule = |error: &adamod::Error| {
        matches!(error.kind(), ErrorKind::Rule { found: RuleKind::Adam, expected: RuleKind::AdaMod })
    };
    assert!(matches!(&error, Error::Core(of) if is_rule(of)), "{error}");
    assert_eq!(optimizer.hyperparameters(group), Some(&Hyperparameters::new()));
    optimizer.set_hyperparameters(group, AdaMod::new().with_epsilon(1e-6)).expect("the same rule");
}

#[test]
fn a_parameter_that_is_forgotten_starts_anew() {
    let mut optimizer = optimizer(Options::new(), AdaMod::new());
    let module = Ranks::new(&device());
    let gradients = module.gradients(0);
    let mut module = optimizer.step(0.01, module, gradients).expect("a step");
    // Its length may change then.
    module.vector = parameter(wave(&[9], 0.5, &device()));
    let mut gradients = module.gradients(1);
    gradients.register(module.vector.id, wave(&[9], 1.5, &gpu().device()));
    let error = optimizer.step(0.01, module, gradients).expect_err("another length");
    let (module, error) = error.into_parts();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert!(optimizer.forget("vector").expect("no error"));
    assert!(!optimizer.forget("vector").expect("no error"));
    assert!(!optimizer.forget("no such path").expect("no error"));

    let mut gradients = module.gradients(1);
    gradients.register(module.vector.id, wave(&[9], 1.5, &gpu().device()));
    optimizer.step(0.01, module, gradients).expect("a step");
    let steps = optimizer.with_core(|core| {
        ["vector", "matrix"].map(|path| core.parameter(path).and_then(|parameter| core.step_count(parameter)))
    });
    assert_eq!(steps.expect("steps"), [Some(1), Some(2)]);
}

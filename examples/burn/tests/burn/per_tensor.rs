//! The route through Burn's optimizer trait.

use adamod_burn::adamod::{Options, RuleKind};
use adamod_burn::{Error, PerTensor};
use burn::optim::ModuleOptimizer;
use burn::tensor::FloatDType;

use crate::common::{Network, Ranks, adamod, assert_same, device, gpu, hyperparameters, values};

const LEARNING_RATE: f64 = 3e-3;

fn per_tensor() -> PerTensor {
    PerTensor::new(gpu(), Options::new(), hyperparameters()).expect("an optimizer")
}

#[test]
fn it_has_the_bits_of_the_module_route() {
    let mut fused = adamod();
    let route = per_tensor();
    let mut of_trait = ModuleOptimizer::from(route.clone());
    let (mut found, mut expected) = (Network::new(&device()), Network::new(&device()));
    for step in 0..5 {
        let gradients = found.gradients(step);
        found = of_trait.step(LEARNING_RATE, found, gradients);
        let gradients = expected.gradients(step);
        expected = fused.step(LEARNING_RATE, expected, gradients).expect("a step");
        assert_same(&values(&found), &values(&expected), "the trait");
    }
    assert!(route.take_error().is_none());
}

#[test]
fn a_record_continues_with_the_same_bits() {
    let train = |optimizer: &mut ModuleOptimizer, mut module: Ranks, steps: std::ops::Range<usize>| {
        for step in steps {
            let gradients = module.gradients(step);
            module = optimizer.step(LEARNING_RATE, module, gradients);
        }
        module
    };
    let mut first = ModuleOptimizer::from(per_tensor());
    let module = train(&mut first, Ranks::new(&device()), 0..3);
    let record = first.into_bytes().expect("a record");
    let mut second = ModuleOptimizer::from(per_tensor()).from_bytes(record).expect("the record");
    // A clone of the optimizer has state of its own, too.
    let mut third = first.clone();
    let found = values(&train(&mut second, module.clone(), 3..5));
    let cloned = values(&train(&mut third, module.clone(), 3..5));
    let expected = values(&train(&mut first, module, 3..5));
    assert_same(&found, &expected, "from a record");
    assert_same(&cloned, &expected, "a clone");
}

#[test]
fn records_keep_the_states_of_every_rule() {
    for &rule in RuleKind::ALL {
        let new = || {
            let per_tensor = PerTensor::new(gpu(), Options::new(), rule.with_defaults());
            ModuleOptimizer::from(per_tensor.expect("an optimizer"))
        };
        let step = |optimizer: &mut ModuleOptimizer, module: Ranks, step: usize| {
            let gradients = module.gradients(step);
            optimizer.step(LEARNING_RATE, module, gradients)
        };
        let mut first = new();
        let module = step(&mut first, Ranks::new(&device()), 0);
        let record = first.into_bytes().expect("a record");
        let mut second = new().from_bytes(record).expect("the record");
        let found = step(&mut second, module.clone(), 1);
        let expected = step(&mut first, module, 1);
        assert_same(&values(&found), &values(&expected), rule.name());
    }
}

#[test]
fn an_error_leaves_the_tensor_and_is_kept() {
    let route = per_tensor();
    let mut optimizer = ModuleOptimizer::from(route.clone());
    let mut module = Ranks::new(&device());
    module.vector = module.vector.map(|value| value.inner().cast(FloatDType::F16).autodiff().require_grad());
    let before = values(&module);
    let gradients = module.gradients(0);
    let module = optimizer.step(LEARNING_RATE, module, gradients);
    for ((path, before), (_, after)) in before.iter().zip(&values(&module)) {
        assert_eq!(before == after, path == "vector", "{path}");
    }
    let error = route.take_error().expect("an error");
    assert!(matches!(error, Error::PerTensorDType { .. }), "{error}");
    assert!(route.take_error().is_none());
}

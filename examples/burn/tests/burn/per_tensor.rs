//! The route through Burn's optimizer trait.

use adamod_burn::adamod::{Options, RuleKind};
use adamod_burn::{Error, PerTensor};
use burn::grad_clipping::GradientClipping;
use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrSchedulerConfig};
use burn::module::{Module, Param, ParamGroup};
use burn::optim::{GradientsParams, ModuleOptimizer, MultiGradientsParams, SgdConfig};
use burn::tensor::{FloatDType, Tensor};

use crate::common::{Network, Ranks, adamod, assert_same, device, gpu, hyperparameters, parameter, values};

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

/// A model as Burn's `Learner` trains it: it takes its own steps.
#[derive(Module, Debug)]
struct Learned {
    network: Network,
    empty: Param<Tensor<1>>,
    #[module(skip)]
    route: PerTensor,
}

impl Learned {
    /// What a model's `TrainStep::optimize` does.
    fn optimize(
        self,
        optimizer: &mut ModuleOptimizer,
        learning_rate: ModuleLearningRate,
        gradients: GradientsParams,
    ) -> Self {
        self.route.clone().step_fused(optimizer, learning_rate, self, gradients)
    }

    /// What a model's `TrainStep::optimize_multi` does.
    fn optimize_multi(
        self,
        optimizer: &mut ModuleOptimizer,
        learning_rate: ModuleLearningRate,
        gradients: MultiGradientsParams,
    ) -> Self {
        self.route.clone().step_fused(optimizer, learning_rate, self, gradients)
    }
}

#[test]
fn all_tensors_step_together_with_the_bits_of_the_module_route() {
    let mut fused = adamod();
    let route = per_tensor();
    let mut of_trait = ModuleOptimizer::from(route.clone());
    let empty = parameter(Tensor::<1>::empty([0], &device()));
    let mut found = Learned { network: Network::new(&device()), empty, route: route.clone() };
    let mut expected = Network::new(&device());
    for step in 0..5 {
        let mut gradients = found.network.gradients(step);
        gradients.register(found.empty.id, Tensor::<1>::empty([0], &gpu().device()));
        let rate = LEARNING_RATE.into();
        found = if step % 2 == 0 {
            found.optimize(&mut of_trait, rate, gradients)
        } else {
            let gradients = MultiGradientsParams { grads: vec![(gradients, gpu().device())] };
            found.optimize_multi(&mut of_trait, rate, gradients)
        };
        let gradients = expected.gradients(step);
        expected = fused.step(LEARNING_RATE, expected, gradients).expect("a step");
        assert_same(&values(&found.network), &values(&expected), "together");
        assert_eq!(found.empty.val().dims(), [0]);
    }
    assert!(found.network.output.weight.is_require_grad());
    assert!(route.take_error().is_none());
    // State stays with Burn's optimizer.
    let record = of_trait.into_bytes().expect("a record");
    let mut again = ModuleOptimizer::from(per_tensor()).from_bytes(record).expect("the record");
    let gradients = found.network.gradients(5);
    let found = values(&again.step(LEARNING_RATE, found.network, gradients));
    let gradients = expected.gradients(5);
    let expected = fused.step(LEARNING_RATE, expected, gradients).expect("a step");
    assert_same(&found, &values(&expected), "from a record");
}

/// Groups of other optimizers, rates by group and Burn's clipping stay Burn's.
#[test]
fn other_optimizers_step_beside_tensors_that_step_together() {
    let sgd = |optimizer: ModuleOptimizer| {
        let members = ParamGroup::from_any_predicates(vec!["matrix", "bias"]);
        optimizer
            .with_group(members, SgdConfig::new().build(), None)
            .with_grad_clipping(GradientClipping::Value(0.3))
    };
    let mut rates = ModuleLrSchedulerConfig::new(0.01.into())
        .with_group(ParamGroup::from_path("cube"), 0.03)
        .init()
        .expect("a scheduler");
    let route = per_tensor();
    let mut together = sgd(ModuleOptimizer::from(route.clone()));
    let mut one_by_one = sgd(ModuleOptimizer::from(per_tensor()));
    let module = Ranks::new(&device());
    let (mut found, mut expected) = (module.clone(), module);
    for step in 0..4 {
        let rate = rates.step();
        let gradients = found.gradients(step);
        found = route.step_fused(&mut together, rate.clone(), found, gradients);
        let gradients = expected.gradients(step);
        expected = one_by_one.step(rate, expected, gradients);
        assert_same(&values(&found), &values(&expected), "beside SGD");
    }
    assert!(route.take_error().is_none());
}

#[test]
fn a_tensor_that_is_refused_stays_while_the_others_step() {
    let route = per_tensor();
    let mut optimizer = ModuleOptimizer::from(route.clone());
    let mut module = Ranks::new(&device());
    module.matrix = module.matrix.map(|value| value.inner().cast(FloatDType::F16).autodiff().require_grad());
    let before = values(&module);
    let gradients = module.gradients(0);
    let module = route.step_fused(&mut optimizer, LEARNING_RATE, module, gradients);
    for ((path, before), (_, after)) in before.iter().zip(&values(&module)) {
        assert_eq!(before == after, path == "matrix", "{path}");
    }
    assert!(matches!(route.take_error(), Some(Error::PerTensorDType { .. })));
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

//! Records of Burn's own optimizers.

use adamod_burn::adamod::{AdaMod, Options};
use adamod_burn::{Error, FusedConfig, FusedOptimizer, PerTensor};
use burn::module::Module;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdaGradConfig, AdamConfig, AdamWConfig, AdanConfig, LambConfig, LionConfig, ModuleOptimizer,
    OptimizerRecord, RmsPropConfig, SgdConfig,
};

use crate::common::{Ranks, adamod, assert_close, assert_same, device, gpu, values};

const LEARNING_RATE: f64 = 2e-3;

/// As over 200 steps of tests/burn/configs.rs.
const TOLERANCE: f32 = 1e-6;

fn burn(optimizer: &mut ModuleOptimizer, module: Ranks, steps: std::ops::Range<usize>) -> Ranks {
    steps.fold(module, |module, step| {
        let gradients = module.gradients(step);
        optimizer.step(LEARNING_RATE, module, gradients)
    })
}

fn fused(optimizer: &mut FusedOptimizer, module: Ranks, steps: std::ops::Range<usize>) -> Ranks {
    steps.fold(module, |module, step| {
        let gradients = module.gradients(step);
        optimizer.step(LEARNING_RATE, module, gradients).expect("a step")
    })
}

/// The record as it is in a file.
fn saved(optimizer: &ModuleOptimizer) -> OptimizerRecord {
    OptimizerRecord::from_bytes(optimizer.into_bytes().expect("a record")).expect("a record")
}

/// Both routes continue Burn's own training.
#[track_caller]
fn assert_continues(config: &impl FusedConfig, mut of_burn: ModuleOptimizer, what: &str) {
    let module = burn(&mut of_burn, Ranks::new(&device()), 0..10);
    let (record, again) = (saved(&of_burn), saved(&of_burn));
    let expected = values(&burn(&mut of_burn, module.clone(), 10..20));

    let mut optimizer = config.init_fused(gpu()).expect("an optimizer");
    optimizer.load_record(record, &module).expect("a record of the same rule");
    assert_close(&values(&fused(&mut optimizer, module.clone(), 10..20)), &expected, TOLERANCE, what);

    let group = config.fused_group().expect("a group").group;
    let route = PerTensor::new(gpu(), Options::new(), group).expect("an optimizer");
    let mut optimizer = ModuleOptimizer::from(route.clone()).load_record(again);
    assert_close(&values(&burn(&mut optimizer, module.clone(), 10..20)), &expected, TOLERANCE, what);
    assert!(route.take_error().is_none());

    // Without the record the numbers are others.
    let mut fresh = config.init_fused(gpu()).expect("an optimizer");
    let (fresh, mut differs) = (values(&fused(&mut fresh, module, 10..20)), false);
    for ((_, fresh), (_, expected)) in fresh.iter().zip(&expected) {
        differs |=
            fresh.iter().zip(expected).any(|(fresh, expected)| (fresh - expected).abs() > 10.0 * TOLERANCE);
    }
    assert!(differs, "{what}");
}

#[test]
fn records_of_burns_adam_and_adamw_are_converted() {
    assert_continues(&AdamConfig::new(), AdamConfig::new().init(), "Adam");
    // The second moment rises and falls, so that its maximum is another number.
    let amsgrad = AdamConfig::new().with_amsgrad(true).with_beta_2(0.8);
    assert_continues(&amsgrad, amsgrad.init(), "AMSGrad");
    assert_continues(&AdamWConfig::new(), AdamWConfig::new().init(), "AdamW");
    let amsgrad = AdamWConfig::new().with_amsgrad(true).with_beta_2(0.8);
    assert_continues(&amsgrad, amsgrad.init(), "AdamW with AMSGrad");
}

#[test]
fn records_of_burns_sgd_are_converted() {
    for (dampening, nesterov) in [(0.0, false), (0.1, false), (0.0, true)] {
        let momentum = MomentumConfig { momentum: 0.9, dampening, nesterov };
        let sgd = SgdConfig::new().with_momentum(Some(momentum));
        assert_continues(&sgd, sgd.init(), &format!("SGD with dampening {dampening}, Nesterov {nesterov}"));
    }
}

#[test]
fn records_of_burns_rmsprop_adagrad_and_lion_are_converted() {
    for (momentum, centered) in [(0.9, false), (0.0, false), (0.9, true), (0.0, true)] {
        let rmsprop = RmsPropConfig::new().with_momentum(momentum).with_centered(centered);
        assert_continues(
            &rmsprop,
            rmsprop.init(),
            &format!("RMSprop, momentum {momentum}, centered {centered}"),
        );
    }
    let adagrad = AdaGradConfig::new().with_lr_decay(0.1);
    assert_continues(&adagrad, adagrad.init(), "AdaGrad");
    assert_continues(&LionConfig::new(), LionConfig::new().init(), "Lion");
}

#[test]
fn a_record_of_the_route_by_tensors_continues_with_the_same_bits() {
    let route = PerTensor::new(gpu(), Options::new(), AdaMod::new()).expect("an optimizer");
    let mut first = ModuleOptimizer::from(route);
    let module = burn(&mut first, Ranks::new(&device()), 0..3);
    let mut second = AdaMod::new().init_fused(gpu()).expect("an optimizer");
    second.load_record(saved(&first), &module).expect("a record");
    let found = values(&fused(&mut second, module.clone(), 3..6));
    assert_same(&found, &values(&burn(&mut first, module, 3..6)), "from a record");
}

#[test]
fn records_of_other_optimizers_are_refused() {
    let others = [
        ("Adan", AdanConfig::new().init()),
        ("LAMB", LambConfig::new().init()),
        ("SGD without momentum", SgdConfig::new().init()),
        // The states of other rules, which are not Adam's.
        ("AMSGrad", AdamConfig::new().with_amsgrad(true).init()),
        ("AdaGrad", AdaGradConfig::new().init()),
        ("Lion", LionConfig::new().init()),
        ("RMSprop", RmsPropConfig::new().init()),
        ("SGD", SgdConfig::new().with_momentum(Some(MomentumConfig::new())).init()),
    ];
    for (name, mut other) in others {
        let module = burn(&mut other, Ranks::new(&device()), 0..2);
        let before = values(&module);

        let mut optimizer = AdamConfig::new().init_fused(gpu()).expect("an optimizer");
        let error = optimizer.load_record(saved(&other), &module).expect_err(name);
        assert!(matches!(error, Error::Record { .. }), "{name}: {error}");
        let steps =
            optimizer.with_core(|core| core.parameters().filter_map(|id| core.step_count(id)).sum::<u64>());
        assert_eq!(steps.expect("steps"), 0, "{name}");

        let adam = AdamConfig::new().fused_group().expect("a group").group;
        let route = PerTensor::new(gpu(), Options::new(), adam).expect("an optimizer");
        let mut optimizer = ModuleOptimizer::from(route.clone()).load_record(saved(&other));
        let module = burn(&mut optimizer, module, 2..3);
        assert!(route.take_error().is_some(), "{name}");
        assert_same(&values(&module), &before, name);
        // The error stays with the state.
        burn(&mut optimizer, module, 3..4);
        assert!(route.take_error().is_some(), "{name}");
    }
}

#[test]
fn a_record_of_another_rule_or_module_is_refused_by_name() {
    let mut adam = AdamConfig::new().init();
    let module = burn(&mut adam, Ranks::new(&device()), 0..2);
    let mut optimizer = adamod();
    let error = optimizer.load_record(saved(&adam), &module).expect_err("another rule");
    assert!(
        error.to_string().contains("expected [\"exp_avg\", \"exp_avg_sq\", \"exp_avg_lr\"] of adamod"),
        "{error}"
    );
    fused(&mut optimizer, module, 2..3);

    let mut optimizer = AdamConfig::new().init_fused(gpu()).expect("an optimizer");
    let other = Ranks::new(&device());
    let error = optimizer.load_record(saved(&adam), &other).expect_err("another module");
    assert!(error.to_string().contains("the module has no parameter with this id"), "{error}");
}

#[test]
fn plain_sgd_has_nothing_to_continue() {
    let mut of_burn = SgdConfig::new().init();
    let module = burn(&mut of_burn, Ranks::new(&device()), 0..2);
    let group = SgdConfig::new().fused_group().expect("a group").group;
    let route = PerTensor::new(gpu(), Options::new(), group).expect("an optimizer");
    let mut optimizer = ModuleOptimizer::from(route.clone()).load_record(saved(&of_burn));
    let found = values(&burn(&mut optimizer, module.clone(), 2..5));
    assert!(route.take_error().is_none());
    assert_close(&found, &values(&burn(&mut of_burn, module, 2..5)), TOLERANCE, "SGD");
}

/// Burn's own file, its module included, continues in the adapter.
#[test]
fn a_run_of_burns_continues_from_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut of_burn = AdamConfig::new().init();
    let module = burn(&mut of_burn, Ranks::new(&device()), 0..5);
    of_burn.save(folder.path().join("optimizer.bpk")).expect("saved");
    module.clone().into_record().save(folder.path().join("module.bpk")).expect("saved");
    let expected = values(&burn(&mut of_burn, module, 5..8));

    let record = burn::store::ModuleRecord::load(folder.path().join("module.bpk")).expect("a module");
    let module = Ranks::new(&device()).load_record(record);
    let record = OptimizerRecord::load(folder.path().join("optimizer.bpk")).expect("a record");
    let mut optimizer = AdamConfig::new().init_fused(gpu()).expect("an optimizer");
    optimizer.load_record(record, &module).expect("the same parameters");
    assert_close(&values(&fused(&mut optimizer, module, 5..8)), &expected, TOLERANCE, "from files");
}

//! Learning rates of Burn's schedulers, one for each group of Burn's.

use adamod_burn::adamod::{Control, DeviceControl, Options};
use adamod_burn::{FusedConfig, FusedOptimizer};
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::{
    ModuleLearningRate, ModuleLrScheduler, ModuleLrSchedulerConfig,
};
use burn::module::ParamGroup;
use burn::optim::AdamConfig;

use crate::common::{Ranks, assert_close, assert_same, device, gpu, values};

const STEPS: usize = 12;

/// A linear schedule for all, and others for two parts. Two of them have the same rate in the first step and part then.
fn scheduler() -> ModuleLrScheduler {
    ModuleLrSchedulerConfig::new(LinearLrSchedulerConfig::new(0.01, 0.002, 6).into())
        .with_group(
            ParamGroup::from_predicate("convolution"),
            CosineAnnealingLrSchedulerConfig::new(0.01, STEPS),
        )
        .with_group(ParamGroup::from_path("cube"), 0.05)
        .init()
        .expect("a scheduler")
}

fn fused(options: Options) -> FusedOptimizer {
    AdamConfig::new().init_fused_with(gpu(), options).expect("an optimizer")
}

fn train(
    optimizer: &mut FusedOptimizer,
    scheduler: &mut ModuleLrScheduler,
    module: Ranks,
    steps: std::ops::Range<usize>,
) -> Ranks {
    steps.fold(module, |module, step| {
        let gradients = module.gradients(step);
        optimizer.step(scheduler.step(), module, gradients).expect("a step")
    })
}

#[test]
fn each_group_of_a_scheduler_has_its_rate_as_in_burn() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let mut found = Ranks::new(&device());
        found = train(&mut fused(Options::new().with_control(control)), &mut scheduler(), found, 0..STEPS);
        let (mut burn, mut rates) = (AdamConfig::new().init(), scheduler());
        let mut expected = Ranks::new(&device());
        for step in 0..STEPS {
            let gradients = expected.gradients(step);
            expected = burn.step(rates.step(), expected, gradients);
        }
        // The largest difference on lavapipe was 8.4e-7, with rates of up to 0.05.
        assert_close(&values(&found), &values(&expected), 3e-6, &format!("{control:?}"));
    }
}

#[test]
fn a_checkpoint_does_not_depend_on_how_rates_were_split() {
    let (mut first, mut rates) = (fused(Options::new()), scheduler());
    let module = train(&mut first, &mut rates, Ranks::new(&device()), 0..5);
    let checkpoint = first.checkpoint().expect("a checkpoint");
    let expected = train(&mut first, &mut rates, module.clone(), 5..STEPS);

    let mut second = fused(Options::new());
    second.restore(&checkpoint, &module).expect("the same groups");
    let mut rates = scheduler();
    for _ in 0..5 {
        rates.step();
    }
    let found = train(&mut second, &mut rates, module, 5..STEPS);
    assert_same(&values(&found), &values(&expected), "restored");
    let groups = first.checkpoint().and_then(|_| first.with_core(|core| core.groups().len()));
    assert_eq!(groups.expect("groups"), 1);
}

#[test]
fn one_rate_of_a_scheduler_is_that_number() {
    let step = |rate: ModuleLearningRate| {
        let module = Ranks::new(&device());
        let gradients = module.gradients(0);
        values(&fused(Options::new()).step(rate, module, gradients).expect("a step"))
    };
    let mut scheduler = ModuleLrScheduler::new(0.125);
    assert_same(&step(scheduler.step()), &step(0.125.into()), "a scheduler");
}

#[test]
fn groups_keep_their_rates() {
    let mut optimizer = FusedOptimizer::new(gpu(), Options::new()).expect("an optimizer");
    let adam = AdamConfig::new().fused_group().expect("a group").group;
    let cube = optimizer.add_group(adam, |path| path == "cube").expect("a group");
    let rest = optimizer.add_group(adam, |_| true).expect("a group");
    let module = Ranks::new(&device());
    let gradients = module.gradients(0);
    let module = optimizer.step(scheduler().step(), module, gradients).expect("a step");
    let rate =
        |optimizer: &FusedOptimizer, group| optimizer.hyperparameters(group).map(|of| of.learning_rate);
    assert_eq!([cube, rest].map(|group| rate(&optimizer, group)), [Some(0.05), Some(0.01)]);
    let gradients = module.gradients(1);
    optimizer.step_groups(module, gradients).expect("a step");
}

#[test]
fn a_rate_of_one_group_that_is_refused_leaves_all() {
    let mut scheduler = ModuleLrSchedulerConfig::new(0.01.into())
        .with_group(ParamGroup::from_path("convolution.bias"), f64::NAN)
        .init();
    let Ok(scheduler) = &mut scheduler else {
        // Burn has refused it.
        return;
    };
    let module = Ranks::new(&device());
    let before = values(&module);
    let gradients = module.gradients(0);
    let error = fused(Options::new()).step(scheduler.step(), module, gradients).expect_err("not a number");
    assert!(error.to_string().contains("learning_rate"), "{error}");
    assert_same(&values(&error.into_parts().0), &before, "refused");
}

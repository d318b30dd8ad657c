//! Schedules that go by the steps that the device has taken.

use adamod::{
    AdaMod, Control, DeviceControl, ErrorKind, Hyperparameters, Options, Step, WeightDecay, Workgroups,
    schedule,
};

use crate::common::{Engine, Layout, Model, Tolerance, all, gpu, rules, to_f64};

const VALUES: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };

fn options() -> Options {
    Options::new().with_control(Control::Device(DeviceControl::new()))
}

fn factors() -> Vec<f32> {
    (0..8).map(|step| schedule::linear_warmup(1.0, 0.125, 7, step) as f32).collect()
}

/// Against the reference, which takes the same steps with the rates of the steps taken.
#[test]
fn a_skipped_step_does_not_move_the_schedule_on() {
    let factors = factors();
    for rule in rules() {
        for workgroups in [Workgroups::Cpu, Workgroups::Gpu] {
            let decay = WeightDecay::Decoupled(0.1);
            let hyperparameters =
                Hyperparameters::from(rule).with_learning_rate(0.05).with_weight_decay(decay);
            let options = options().with_workgroups(workgroups);
            let model = Model::new(hyperparameters, &[300, 5, 1025]).with_options(options);
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
            engine.optimizer.set_schedule(&factors).unwrap();
            let mut twin = model.twin::<f64>();
            let mut taken = 0;
            for step in 0..14 {
                let mut gradients = model.gradients(step);
                if step % 4 == 1 {
                    gradients[1][3] = f32::NAN;
                    engine.step(&all(&gradients));
                    continue;
                }
                let factor = factors[taken.min(7)];
                let learning_rate = hyperparameters.learning_rate * f64::from(factor);
                twin.set_hyperparameters(0, hyperparameters.with_learning_rate(learning_rate));
                taken += 1;
                engine.step(&all(&gradients));
                let wide = to_f64(&all(&gradients));
                twin.step(&wide.iter().map(Option::as_deref).collect::<Vec<_>>());
            }
            assert_eq!(engine.optimizer.read_progress().wait().unwrap().taken, 10);
            for index in 0..3 {
                VALUES.check(&engine.values(index), twin.values(index)).unwrap();
            }
        }
    }
}

/// Steps recorded before a change keep the factors that they were recorded with.
#[test]
fn a_schedule_changes_in_order_with_recorded_steps() {
    let model = Model::new(AdaMod::new(), &[300]).with_options(options());
    let gradients = model.gradients(1);
    let run = |submit_each: bool| {
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        engine.write_gradients(&all(&gradients));
        let mut encoder = gpu().encoder();
        for factors in [&[0.5, 0.25][..], &[1.0], &[0.0, 0.0, 0.0, 0.125]] {
            engine.optimizer.set_schedule(factors).unwrap();
            engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
            if submit_each {
                gpu().submit(std::mem::replace(&mut encoder, gpu().encoder()));
            }
        }
        gpu().submit(encoder);
        engine.bits()
    };
    let at_once = run(false);
    assert!(run(true) == at_once);
    // A constant factor of a power of two is a learning rate that is as many times smaller.
    let bits_with = |learning_rate, factors: &[f32]| {
        let hyperparameters = Hyperparameters::from(AdaMod::new()).with_learning_rate(learning_rate);
        let model = Model::new(hyperparameters, &[300]).with_options(options());
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        engine.optimizer.set_schedule(factors).unwrap();
        for step in 0..4 {
            engine.step(&all(&model.gradients(step)));
        }
        engine.bits()
    };
    assert!(bits_with(0.01, &[0.25]) == bits_with(0.0025, &[1.0]));
    assert!(bits_with(0.01, &[0.25]) != bits_with(0.01, &[1.0]));
}

#[test]
fn factors_out_of_range_are_refused_and_the_schedule_stays() {
    let model = Model::new(AdaMod::new(), &[300]).with_options(options());
    let gradients = model.gradients(1);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    engine.optimizer.set_schedule(&[0.0]).unwrap();
    let before = engine.values(0);
    for factors in [&[0.5, 1.5][..], &[-0.1], &[f32::NAN], &[f32::INFINITY]] {
        let error = engine.optimizer.set_schedule(factors).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutOfRange(of) if of.name == "schedule"), "{error}");
    }
    let error = engine.optimizer.set_schedule(&[]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Schedule { found: 0, .. }), "{error}");
    engine.step(&all(&gradients));
    assert_eq!(engine.values(0), before);
    let mut host = gpu().optimizer(Options::new()).unwrap();
    assert!(matches!(host.set_schedule(&[1.0]).unwrap_err().kind(), ErrorKind::NoControl));
}

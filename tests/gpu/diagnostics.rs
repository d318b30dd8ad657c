//! Histograms of learning rates against counts on the CPU.

use adamod::{
    BINS, Control, DeviceControl, Diagnostics, Hyperparameters, LearningRates, ReadError, Rule, Workgroups,
};

use crate::common::{Engine, Layout, Model, all, gpu};

fn bin_of(rate: f64) -> usize {
    (0..BINS).rev().find(|&bin| rate >= LearningRates::lower_edge(bin)).unwrap_or(0)
}

/// Counts of one step from the state after it: eta by Algorithm 2, line 8, from exp_avg_sq.
fn count(engine: &Engine<'_>, h: &Hyperparameters, into: &mut LearningRates) {
    for index in 0..engine.ids.len() {
        let state = engine.state(index);
        let correction = 1.0 / (1.0 - h.betas[1].powi(state.step as i32));
        let v = state.tensor("exp_avg_sq").unwrap();
        for (element, &v) in v.iter().enumerate() {
            let eta = h.learning_rate as f32 / ((v * correction as f32).sqrt() + h.epsilon as f32);
            let bounded = state.tensor("exp_avg_lr").map_or(eta, |s| s[element].min(eta));
            into.eta[bin_of(eta.into())] += 1;
            into.bounded[bin_of(bounded.into())] += 1;
            into.clipped += u64::from(bounded < eta);
        }
    }
}

#[test]
fn learning_rates_are_counted_like_on_the_cpu() {
    for rule in [Rule::AdaMod, Rule::Adam] {
        for (layout, workgroups) in
            [(Layout::TwoPools(256), Workgroups::Gpu), (Layout::OnePool(4), Workgroups::Cpu)]
        {
            let h = Hyperparameters::default();
            let mut model = Model::new(rule, h, &[1757, 3, 1024, 5000]);
            model.options.workgroups = workgroups;
            model.options.diagnostics = Diagnostics::LearningRates;
            let mut engine = Engine::new(gpu(), &model, layout);
            let mut expected =
                LearningRates { eta: [0; BINS], bounded: [0; BINS], clipped: 0, update_norm: 0.0 };
            let mut squares = 0.0;
            for step in 0..3 {
                let mut gradients = model.gradients(step);
                // Zero gradients have the rate alpha / epsilon, 1e5.
                gradients[0][..900].fill(0.0);
                let values = |engine: &Engine<'_>| -> Vec<f32> {
                    (0..engine.ids.len()).flat_map(|index| engine.values(index)).collect()
                };
                let before = values(&engine);
                engine.step(&all(&gradients));
                let moved =
                    before.iter().zip(values(&engine)).map(|(&old, new)| f64::from(new) - f64::from(old));
                squares += moved.map(|x| x * x).sum::<f64>();
                count(&engine, &h, &mut expected);
            }
            let counted = engine.optimizer.read_learning_rates_blocking().unwrap();
            let norm = counted.update_norm;
            assert!((norm / squares.sqrt() - 1.0).abs() < 1e-6, "{norm} instead of {}", squares.sqrt());
            expected.update_norm = norm;
            if gpu().is_exact() {
                assert_eq!(counted, expected, "{rule:?} {layout:?}");
            }
            let elements = 3 * model.lengths().iter().sum::<usize>() as u64;
            assert_eq!(counted.eta.iter().sum::<u64>(), elements);
            assert_eq!(counted.bounded.iter().sum::<u64>(), elements);
            assert_eq!(counted.eta[bin_of(1e5)], 3 * 900);
            assert_eq!(counted.clipped > 0, rule == Rule::AdaMod);
            let again = engine.optimizer.read_learning_rates_blocking().unwrap();
            assert_eq!((again.eta, again.update_norm), ([0; BINS], 0.0));
        }
    }
}

#[test]
fn counting_changes_no_bit_of_the_step() {
    let model = Model::new(Rule::AdaMod, Hyperparameters::default(), &[1757, 3, 1024]);
    let mut counting = model.clone();
    counting.options.diagnostics = Diagnostics::LearningRates;
    let mut engines = [&model, &counting].map(|model| Engine::new(gpu(), model, Layout::TwoPools(256)));
    for step in 0..5 {
        let gradients = model.gradients(step);
        for engine in &mut engines {
            engine.step(&all(&gradients));
        }
    }
    assert_eq!(engines[0].bits(), engines[1].bits());
}

#[test]
fn norms_of_updates_of_any_size_are_counted_and_infinite_ones_show() {
    for learning_rate in [1e-12, 1e-3, 1e6] {
        let h = Hyperparameters { learning_rate, ..Hyperparameters::default() };
        let mut model = Model::new(Rule::Adam, h, &[2000]);
        model.tensors[0].1.fill(0.0);
        model.options.diagnostics = Diagnostics::LearningRates;
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut gradients = model.gradients(1);
        engine.step(&all(&gradients));
        let norm = engine.values(0).iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let counted = engine.optimizer.read_learning_rates_blocking().unwrap().update_norm;
        assert!((counted / norm - 1.0).abs() < 1e-6, "{counted:e} instead of {norm:e}");
        gradients[0][7] = f32::NAN;
        engine.step(&all(&gradients));
        let counted = engine.optimizer.read_learning_rates_blocking().unwrap().update_norm;
        assert_eq!(counted, f64::INFINITY);
    }
}

/// What was asked for is a picture of that moment, and the optimizer can be used while it is on its way.
#[test]
fn steps_go_on_while_counters_are_read() {
    let mut model = Model::new(Rule::AdaMod, Hyperparameters::default(), &[100]);
    model.options.diagnostics = Diagnostics::LearningRates;
    model.options.control = Control::Device(DeviceControl::default());
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let gradients = model.gradients(1);
    engine.step(&all(&gradients));
    let rates = engine.optimizer.read_learning_rates();
    let progress = engine.optimizer.read_progress();
    engine.step(&all(&gradients));
    engine.step(&all(&gradients));
    assert_eq!(engine.optimizer.read_learning_rates_blocking().unwrap().eta.iter().sum::<u64>(), 200);
    assert_eq!(engine.optimizer.read_progress_blocking().unwrap().taken, 3);
    assert_eq!(pollster::block_on(rates).unwrap().eta.iter().sum::<u64>(), 100);
    assert_eq!(pollster::block_on(progress).unwrap().taken, 1);
}

#[test]
fn reading_rates_without_diagnostics_is_an_error() {
    let model = Model::new(Rule::AdaMod, Hyperparameters::default(), &[8]);
    let engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let error = engine.optimizer.read_learning_rates_blocking().unwrap_err();
    assert!(matches!(error, ReadError::NoDiagnostics));
}

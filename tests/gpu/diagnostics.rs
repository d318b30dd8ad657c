//! Histograms of learning rates against counts on the CPU.

use adamod::{
    AdaMod, Adam, BINS, Control, DeviceControl, Diagnostics, ErrorKind, Hyperparameters, Options,
    RateHistograms, Rule, RuleKind, Sgd, Workgroups,
};

use crate::common::{Engine, Layout, Model, all, gpu};

fn bin_of(rate: f64) -> usize {
    (0..BINS).rev().find(|&bin| rate >= RateHistograms::lower_edge(bin)).unwrap_or(0)
}

/// Counts of one step of AdaMod or Adam from the state after it: eta by Algorithm 2, line 8, from exp_avg_sq.
fn count(engine: &Engine<'_>, h: &Hyperparameters, into: &mut RateHistograms) {
    let (beta2, epsilon) = match h.rule {
        Rule::AdaMod(rule) => (rule.betas[1], rule.epsilon),
        Rule::Adam(rule) => (rule.betas[1], rule.epsilon),
        _ => return,
    };
    for index in 0..engine.ids.len() {
        let state = engine.state(index);
        let correction = 1.0 / (1.0 - beta2.powi(state.step as i32));
        let v = state.tensor("exp_avg_sq").unwrap();
        for (element, &v) in v.iter().enumerate() {
            let eta = h.learning_rate as f32 / ((v * correction as f32).sqrt() + epsilon as f32);
            let bounded = state.tensor("exp_avg_lr").map_or(eta, |s| s[element].min(eta));
            into.eta[bin_of(eta.into())] += 1;
            into.bounded[bin_of(bounded.into())] += 1;
            into.clipped += u64::from(bounded < eta);
        }
    }
}

/// Options that count learning rates.
fn counting() -> Options {
    Options::new().with_diagnostics(Diagnostics::RateHistograms)
}

fn take(engine: &Engine<'_>) -> RateHistograms {
    engine.optimizer.take_rate_histograms().wait().unwrap()
}

#[test]
fn learning_rates_are_counted_like_on_the_cpu() {
    for rule in RuleKind::ALL.iter().filter(|rule| rule.has_element_rates()) {
        for (layout, workgroups) in
            [(Layout::TwoPools(256), Workgroups::Gpu), (Layout::OnePool(4), Workgroups::Cpu)]
        {
            let h = Hyperparameters::from(rule.with_defaults());
            let options = counting().with_workgroups(workgroups);
            let model = Model::new(h, &[1757, 3, 1024, 5000]).with_options(options);
            let mut engine = Engine::new(gpu(), &model, layout);
            let mut expected = take(&engine);
            assert_eq!((expected.eta, expected.bounded), ([0; BINS], [0; BINS]));
            assert_eq!((expected.clipped, expected.update_norm), (0, 0.0));
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
            let counted = take(&engine);
            let norm = counted.update_norm;
            assert!((norm / squares.sqrt() - 1.0).abs() < 1e-6, "{norm} instead of {}", squares.sqrt());
            expected.update_norm = norm;
            let is_counted = [RuleKind::AdaMod, RuleKind::Adam].contains(rule);
            if gpu().is_exact() && is_counted {
                assert_eq!(counted, expected, "{rule} {layout:?}");
            }
            let elements = 3 * model.lengths().iter().sum::<usize>() as u64;
            assert_eq!(counted.eta.iter().sum::<u64>(), elements);
            assert_eq!(counted.bounded.iter().sum::<u64>(), elements);
            if is_counted {
                assert_eq!(counted.eta[bin_of(1e5)], 3 * 900);
            }
            let has_bound = [RuleKind::AdaMod, RuleKind::AdaBound].contains(rule);
            assert_eq!(counted.clipped > 0, has_bound, "{rule}");
            let again = take(&engine);
            assert_eq!((again.eta, again.update_norm), ([0; BINS], 0.0));
        }
    }
}

#[test]
fn counting_changes_no_bit_of_the_step() {
    let model = Model::new(AdaMod::new(), &[1757, 3, 1024]);
    let counting = model.clone().with_options(counting());
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
        let h = Hyperparameters::from(Adam::new()).with_learning_rate(learning_rate);
        let mut model = Model::new(h, &[2000]).with_options(counting());
        model.tensors[0].values.fill(0.0);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut gradients = model.gradients(1);
        engine.step(&all(&gradients));
        let norm = engine.values(0).iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let counted = take(&engine).update_norm;
        assert!((counted / norm - 1.0).abs() < 1e-6, "{counted:e} instead of {norm:e}");
        gradients[0][7] = f32::NAN;
        engine.step(&all(&gradients));
        let counted = take(&engine).update_norm;
        assert_eq!(counted, f64::INFINITY);
    }
}

/// What was asked for is a picture of that moment, and the optimizer can be used while it is on its way.
#[test]
fn steps_go_on_while_counters_are_read() {
    let options = counting().with_control(Control::Device(DeviceControl::new()));
    let model = Model::new(AdaMod::new(), &[100]).with_options(options);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let gradients = model.gradients(1);
    engine.step(&all(&gradients));
    let rates = engine.optimizer.take_rate_histograms();
    let progress = engine.optimizer.read_progress();
    engine.step(&all(&gradients));
    engine.step(&all(&gradients));
    assert_eq!(take(&engine).eta.iter().sum::<u64>(), 200);
    assert_eq!(engine.optimizer.read_progress().wait().unwrap().taken, 3);
    assert_eq!(pollster::block_on(rates).unwrap().eta.iter().sum::<u64>(), 100);
    assert_eq!(pollster::block_on(progress).unwrap().taken, 1);
}

#[test]
fn reading_rates_without_diagnostics_is_an_error() {
    let model = Model::new(AdaMod::new(), &[8]);
    let engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let error = engine.optimizer.take_rate_histograms().wait().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoDiagnostics), "{error}");
}

/// SGD has one rate for all elements: there is nothing to count, and its updates are in no norm.
#[test]
fn groups_without_rates_of_elements_count_nothing() {
    let mut model = Model::new(Adam::new(), &[700, 33]).with_options(counting());
    model.tensors[0].values.fill(0.0);
    let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(256));
    model.add_group(Sgd::new(), &[5000]);
    let mut mixed = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let gradients = model.gradients(1);
    alone.step(&all(&gradients[..2]));
    mixed.step(&all(&gradients));
    let counted = take(&mixed);
    assert_eq!(counted.eta.iter().sum::<u64>(), 733);
    assert_eq!(counted, take(&alone));
    assert_ne!(mixed.values(2), model.tensors[2].values);
}

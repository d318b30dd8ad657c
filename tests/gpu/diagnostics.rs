//! Histograms of learning rates against counts on the CPU.

use adamod::{BINS, Diagnostics, Hyperparameters, LearningRates, ReadError, Rule};

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
        for layout in [Layout::TwoPools(256), Layout::OnePool(4)] {
            let h = Hyperparameters::default();
            let mut model = Model::new(rule, h, &[1757, 3, 1024, 5000]);
            model.options.diagnostics = Diagnostics::LearningRates;
            let mut engine = Engine::new(gpu(), &model, layout);
            let mut expected = LearningRates { eta: [0; BINS], bounded: [0; BINS], clipped: 0 };
            for step in 0..3 {
                let mut gradients = model.gradients(step);
                // Zero gradients have the rate alpha / epsilon, 1e5.
                gradients[0][..900].fill(0.0);
                engine.step(&all(&gradients));
                count(&engine, &h, &mut expected);
            }
            let counted = engine.optimizer.read_learning_rates_blocking().unwrap();
            if gpu().is_exact() {
                assert_eq!(counted, expected, "{rule:?} {layout:?}");
            }
            let elements = 3 * model.lengths().iter().sum::<usize>() as u64;
            assert_eq!(counted.eta.iter().sum::<u64>(), elements);
            assert_eq!(counted.bounded.iter().sum::<u64>(), elements);
            assert_eq!(counted.eta[bin_of(1e5)], 3 * 900);
            assert_eq!(counted.clipped > 0, rule == Rule::AdaMod);
            let again = engine.optimizer.read_learning_rates_blocking().unwrap();
            assert_eq!(again.eta, [0; BINS]);
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
fn reading_rates_without_diagnostics_is_an_error() {
    let model = Model::new(Rule::AdaMod, Hyperparameters::default(), &[8]);
    let engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let error = engine.optimizer.read_learning_rates_blocking().unwrap_err();
    assert!(matches!(error, ReadError::NoDiagnostics));
}

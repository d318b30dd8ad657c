//! Low-bit state moves parameters as f64 state does. These tests use the CPU twin; tests/gpu compares the twin with the device bit for
//! bit.

mod common;

use adamod::reference::{Reference, Storage};
use adamod::{AdaMod, Hyperparameters, Rule, RuleForm, RuleKind, StateFormat};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, LogNormal, StandardNormal};

use common::rules;

const ELEMENTS: usize = 2048;

/// Median absolute relative errors of the movement of parameters and of exp_avg_lr after a stationary, noisy stream of gradients.
fn errors(state: StateFormat, scales: &[f64], steps: u64) -> (f64, f64) {
    let rule = AdaMod::new().with_betas([0.9, 0.999, 0.9999]);
    let (mut exact, mut stored) = (Reference::<f64>::new(), Reference::<f32>::new());
    let group = (exact.add_group(rule), stored.add_group(rule));
    exact.add_parameter(group.0, vec![0.0; ELEMENTS]);
    let storage = Storage::new().with_state(state).with_label("stream").with_seed(1);
    stored.add_stored_parameter(group.1, vec![0.0; ELEMENTS], storage);
    let mut rng = StdRng::seed_from_u64(2);
    let normal = |rng: &mut StdRng| -> f64 { StandardNormal.sample(rng) };
    let means: Vec<f64> = scales.iter().map(|scale| 0.3 * scale * normal(&mut rng)).collect();
    for _ in 0..steps {
        let gradients: Vec<f32> =
            means.iter().zip(scales).map(|(mean, scale)| (mean + scale * normal(&mut rng)) as f32).collect();
        let wide: Vec<f64> = gradients.iter().map(|&g| g.into()).collect();
        exact.step(&[Some(&wide)]);
        stored.step(&[Some(&gradients)]);
    }
    let scale = if state.is_debiased() { -(0.9999_f64.ln() * steps as f64).exp_m1() } else { 1.0 };
    let median = |got: &mut dyn Iterator<Item = f64>, expected: &[f64]| {
        let mut errors: Vec<f64> =
            got.zip(expected).map(|(got, expected)| (got / expected - 1.0).abs()).collect();
        errors.sort_by(f64::total_cmp);
        errors[errors.len() / 2]
    };
    let moved = median(&mut stored.values(0).iter().map(|&x| x.into()), exact.values(0));
    let rates = median(&mut stored.state(0)[2].iter().map(|&x| f64::from(x) * scale), &exact.state(0)[2]);
    (moved, rates)
}

/// Scales that are similar within a quant block: lognormal with a deviation of 0.7 around the level of the block.
fn alike() -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(3);
    let spread = LogNormal::new(0.0, 0.7).unwrap();
    let levels: Vec<f64> = (0..ELEMENTS / 32).map(|_| 10_f64.powf(rng.random_range(-5.0..0.0))).collect();
    (0..ELEMENTS).map(|i| levels[i / 32] * spread.sample(&mut rng)).collect()
}

/// Scales over five decades in every quant block.
fn mixed() -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(4);
    (0..ELEMENTS).map(|_| 10_f64.powf(rng.random_range(-5.0..0.0))).collect()
}

#[test]
fn two_thousand_steps_move_parameters_as_f64_does() {
    for (state, scales, bound) in [
        (StateFormat::F32, alike(), 1e-4),
        (StateFormat::Bf16, alike(), 0.02),
        (StateFormat::Bf16, mixed(), 0.02),
        (StateFormat::Q8, alike(), 0.04),
        (StateFormat::Q8, mixed(), 0.08),
    ] {
        let (moved, rates) = errors(state, &scales, 2000);
        println!("{state:?}: parameters {moved:.4}, exp_avg_lr {rates:.4}, bound {bound}");
        assert!(
            moved < bound && rates < bound,
            "{state:?}: parameters {moved}, exp_avg_lr {rates}, bound {bound}"
        );
    }
}

/// The rules that limit steps. A step of SGD is as large as the gradient.
fn bounded_rules() -> Vec<Rule> {
    rules().into_iter().filter(|rule| rule.kind().has_element_rates()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Finite gradients never give a non-finite parameter or state, in any state format.
    #[test]
    fn finite_gradients_give_finite_parameters(
        stream in prop::collection::vec(
            prop::collection::vec(
                prop_oneof![
                    Just(0.0_f32), Just(1e-30), Just(-1e30), Just(1e30), Just(f32::MAX), Just(f32::MIN), Just(1e-45),
                    -1.0_f32..1.0, any::<f32>().prop_filter("finite", |x| x.is_finite()),
                ],
                40,
            ),
            1..12,
        ),
        state in prop::sample::select(StateFormat::ALL.to_vec()),
        rule in prop::sample::select(bounded_rules()),
    ) {
        prop_assume!(rule.form().refusal(state).is_none());
        let mut twin = Reference::<f32>::new();
        let group = twin.add_group(rule);
        twin.add_stored_parameter(group, vec![1.0; 40], Storage::new().with_state(state).with_label("p"));
        for gradients in &stream {
            twin.step(&[Some(gradients)]);
            prop_assert!(twin.values(0).iter().all(|x| x.is_finite()), "{rule:?} {state:?}: {gradients:?}");
            prop_assert!(twin.state(0).iter().flatten().all(|x| x.is_finite()), "{rule:?} {state:?}: {gradients:?}");
        }
    }
}

/// The error of each element's movement in a format of state, relative to f64, after 2,000 steps of noisy gradients with a mean of half a
/// deviation.
fn movement_errors(form: RuleForm, state: StateFormat) -> Vec<f64> {
    const ELEMENTS: usize = 256;
    let learning_rate = match form.rule() {
        RuleKind::AdaDelta => 1.0,
        RuleKind::Lion => 1e-4,
        rule => (0.1 * rule.default_learning_rate()).min(1e-3),
    };
    let hyperparameters = Hyperparameters::from(form.with_defaults()).with_learning_rate(learning_rate);
    let mut rng = StdRng::seed_from_u64(1);
    let uniform = |rng: &mut StdRng, count| (0..count).map(|_| rng.random_range(-1.0..1.0)).sum::<f64>();
    let scales: Vec<f64> = (0..ELEMENTS).map(|_| (0.7 * uniform(&mut rng, 3)).exp()).collect();
    let (mut truth, mut stored) = (Reference::<f64>::new(), Reference::<f32>::new());
    let (group, of_stored) = (truth.add_group(hyperparameters), stored.add_group(hyperparameters));
    let expected = truth.add_parameter(group, vec![0.0; ELEMENTS]);
    let storage = Storage::new().with_state(state).with_label("weight");
    let found = stored.add_stored_parameter(of_stored, vec![0.0; ELEMENTS], storage);
    for _ in 0..2000 {
        // Nearly normal, with deviation 1.
        let gradient: Vec<f32> =
            scales.iter().map(|scale| (scale * (0.5 + 0.5 * uniform(&mut rng, 12))) as f32).collect();
        let wide: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
        truth.step(&[Some(&wide)]);
        stored.step(&[Some(&gradient)]);
    }
    let pairs = stored.values(found).iter().zip(truth.values(expected));
    pairs.map(|(&found, expected)| f64::from(found) / expected - 1.0).collect()
}

/// In every format that a rule has parameters move as in f64. `docs/rules.md` has what was measured: medians of at most 0.8% in bf16 and
/// 3.1% in q8, and averages within 0.2% and 1.6%.
#[test]
fn parameters_of_every_rule_move_as_in_f64_with_few_bits_of_state() {
    for form in RuleForm::all().filter(|form| !form.states().is_empty()) {
        for (state, median, average) in [(StateFormat::Bf16, 0.012, 0.004), (StateFormat::Q8, 0.045, 0.025)] {
            if form.refusal(state).is_some() {
                continue;
            }
            let mut errors = movement_errors(form, state);
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            errors.iter_mut().for_each(|error| *error = error.abs());
            errors.sort_by(f64::total_cmp);
            let found = errors[errors.len() / 2];
            assert!(
                found <= median && mean.abs() <= average,
                "{form} in {}: {found:e}, {mean:e}",
                state.name()
            );
        }
    }
}

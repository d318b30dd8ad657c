//! The update kernel against the CPU twins: `shaders/kernels/update.wgsl` and `src/reference.rs`.

use adamod::reference::Reference;
use adamod::{
    AdaMod, Control, DeviceControl, Formula, Group, Hyperparameters, Objective, Options, RuleForm, Sign,
    Step, WeightDecay, Workgroups,
};
use proptest::prelude::*;

use crate::common::{Engine, Layout, Model, Tolerance, all, float_bits, gpu, rules, to_f64};

/// Lengths around a word, a workgroup's lanes and a chunk.
const LENGTHS: [usize; 14] = [1, 2, 3, 4, 5, 255, 256, 257, 1023, 1024, 1025, 1757, 2048, 4099];

/// After tens of steps with heavy-tailed gradients. Measured on lavapipe over the tests below: at most 0.09 of it.
const VALUES: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };
/// Likewise for every state, relative to its largest element besides its own. Measured: at most 0.48 of it.
const STATES_RELATIVE: f64 = 1e-5;

fn steps_against(twins: &mut Twins, engine: &mut Engine<'_>, model: &Model, steps: u64) {
    for step in 1..=steps {
        let gradients = model.gradients(step);
        // Tensor i misses every (i + 3)-th step, but for the first tensor.
        let present: Vec<_> = all(&gradients)
            .into_iter()
            .enumerate()
            .map(|(i, g)| g.filter(|_| i == 0 || step % (i as u64 + 3) != 0))
            .collect();
        engine.step(&present);
        twins.step(&present);
        if [1, 2, 5].contains(&step) || step == steps {
            twins.assert_equal(engine, step);
        }
    }
}

struct Twins {
    f64: Reference<f64>,
    f32: Reference<f32>,
}

impl Twins {
    fn new(model: &Model) -> Self {
        Self { f64: model.twin(), f32: model.twin() }
    }

    fn step(&mut self, gradients: &[Option<&[f32]>]) {
        let wide = to_f64(gradients);
        let wide: Vec<_> = wide.iter().map(Option::as_deref).collect();
        self.f64.step(&wide);
        self.f32.step(gradients);
    }

    fn assert_equal(&self, engine: &Engine<'_>, step: u64) {
        for index in 0..engine.ids.len() {
            let values = engine.values(index);
            let state = engine.state(index);
            assert_eq!(state.step, self.f64.step_count(index));
            if let Err(error) = VALUES.check(&values, self.f64.values(index)) {
                panic!("step {step}, values of tensor {index}: {error}");
            }
            for ((name, got), expected) in state.tensors.iter().zip(self.f64.state(index)) {
                let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                let tolerance = Tolerance { absolute: STATES_RELATIVE * largest, relative: STATES_RELATIVE };
                if let Err(error) = tolerance.check(got, expected) {
                    panic!("step {step}, {name} of tensor {index}: {error}");
                }
            }
            if engine.gpu.is_exact() {
                assert_eq!(
                    float_bits(&values),
                    float_bits(self.f32.values(index)),
                    "step {step}, tensor {index}"
                );
                for ((name, got), expected) in state.tensors.iter().zip(self.f32.state(index)) {
                    assert_eq!(
                        float_bits(got),
                        float_bits(expected),
                        "step {step}, {name} of tensor {index}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_rule_formula_decay_and_objective_agrees_with_the_twins() {
    let fully_decoupled = WeightDecay::FullyDecoupled { lambda: 1e-3, max_learning_rate: 0.25 };
    let decays =
        [WeightDecay::None, WeightDecay::Decoupled(1e-2), WeightDecay::Coupled(1e-2), fully_decoupled];
    for rule in rules() {
        for weight_decay in decays {
            // The other way with caution.
            for objective in [Objective::Minimize, Objective::Maximize] {
                let is_cautious = objective == Objective::Maximize;
                let has_decay = !matches!(weight_decay, WeightDecay::Coupled(_));
                let hyperparameters = Hyperparameters::from(rule)
                    .with_weight_decay(weight_decay)
                    .with_objective(objective)
                    .with_cautious(is_cautious)
                    .with_cautious_weight_decay(is_cautious && has_decay);
                let model = Model::new(hyperparameters, &LENGTHS);
                let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
                steps_against(&mut Twins::new(&model), &mut engine, &model, 12);
            }
        }
    }
}

/// The kernels of a launch without caution have no code for it, so groups that become cautious, and parameters that join such a group, take
/// others. In the second optimizer one more group is cautious all the time.
#[test]
fn caution_may_come_and_go() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let plain = Hyperparameters::from(AdaMod::new()).with_weight_decay(WeightDecay::Decoupled(0.5));
        let cautious = plain.with_cautious(true).with_cautious_weight_decay(true);
        let mut model = Model::new(plain, &[300, 40]);
        model.add_group(cautious, &[]);
        model.options = Options::new().with_control(control);
        let mut beside = model.clone();
        beside.add_group(cautious, &[8]);
        let mut engines = [&model, &beside].map(|model| Engine::new(gpu(), model, Layout::TwoPools(256)));
        let mut never = Engine::new(gpu(), &model, Layout::TwoPools(256));
        for step in 0..8 {
            let gradients = beside.gradients(step);
            for (engine, tensors) in engines.iter_mut().zip([2, 3]) {
                let Engine { optimizer, groups, ids, .. } = engine;
                match step {
                    2 => optimizer.set_hyperparameters(groups[0], cautious).unwrap(),
                    4 => optimizer.set_hyperparameters(groups[0], plain).unwrap(),
                    5 => optimizer.set_group(ids[1], groups[1]).unwrap(),
                    7 => optimizer.set_group(ids[1], groups[0]).unwrap(),
                    _ => {}
                }
                engine.step(&all(&gradients[..tensors]));
            }
            never.step(&all(&gradients[..2]));
            for tensor in 0..2 {
                let [found, expected] = engines.each_ref().map(|engine| float_bits(&engine.values(tensor)));
                assert_eq!(found, expected, "step {step}, tensor {tensor}");
                assert_eq!(
                    found != float_bits(&never.values(tensor)),
                    step >= 2,
                    "step {step}, tensor {tensor}"
                );
            }
        }
    }
}

/// Caution leaves states alone. What it leaves out is where the step and the gradient, or the step and the parameter, have other signs.
#[test]
fn cautious_steps_and_decay_are_left_out_where_signs_differ() {
    for rule in rules() {
        let decayed = Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(0.5));
        let run = |hyperparameters: Hyperparameters| {
            let model = Model::new(hyperparameters, &[300]);
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
            engine.step(&all(&model.gradients(1)));
            let before = engine.values(0);
            engine.optimizer.write_parameter(engine.ids[0], &model.tensors[0].values).unwrap();
            let gradients = model.gradients(2);
            engine.step(&all(&gradients));
            let states: Vec<_> = engine.state(0).tensors.iter().map(|(_, of)| float_bits(of)).collect();
            (model.tensors[0].values.clone(), gradients[0].clone(), before, engine.values(0), states)
        };
        // All start the second step from the same values and states.
        let plain = run(decayed.with_weight_decay(WeightDecay::None));
        let full = run(decayed);
        let cautious = run(decayed.with_weight_decay(WeightDecay::None).with_cautious(true));
        let careful = run(decayed.with_cautious_weight_decay(true));
        assert!(cautious.4 == plain.4 && careful.4 == plain.4 && full.4 == plain.4, "{rule:?}");
        let (mut kept, mut left) = ([0; 2], [0; 2]);
        for (i, (&start, &gradient)) in plain.0.iter().zip(&plain.1).enumerate() {
            let step = start - plain.3[i];
            if step == 0.0 {
                // It is too small to show.
                continue;
            }
            let moves = step * gradient.signum() > 0.0;
            let decays = step * start.signum() >= 0.0;
            assert_eq!(cautious.3[i], if moves { plain.3[i] } else { start }, "{rule:?}, element {i}");
            assert_eq!(careful.3[i], if decays { full.3[i] } else { plain.3[i] }, "{rule:?}, element {i}");
            kept[0] += usize::from(moves);
            left[0] += usize::from(!moves);
            kept[1] += usize::from(decays);
            left[1] += usize::from(!decays);
        }
        // Without an average of gradients every step has the gradient's sign.
        let has_average =
            rule.states().iter().any(|state| state.sign == Sign::Signed && state.name != "grad_avg");
        assert!(kept[0] > 0 && kept[1] > 0 && left[1] > 0, "{rule:?}: {kept:?} {left:?}");
        assert_eq!(left[0] > 0, has_average, "{rule:?}: {left:?}");
    }
}

#[test]
fn groups_with_their_own_hyperparameters_share_a_dispatch() {
    let mut model = Model::new(AdaMod::new(), &LENGTHS);
    let second = AdaMod::new().with_betas([0.8, 0.98, 0.0]).with_epsilon(1e-9);
    let second =
        Hyperparameters::from(second).with_learning_rate(3e-2).with_weight_decay(WeightDecay::Decoupled(0.1));
    let third = AdaMod::new().with_betas([0.0, 0.5, 0.9999]).with_formula(Formula::AuthorsCode);
    let third = Hyperparameters::from(third)
        .with_learning_rate(5e-4)
        .with_weight_decay(WeightDecay::Coupled(0.3))
        .with_objective(Objective::Maximize);
    model.groups.extend([second, third].map(Group::from));
    for (index, tensor) in model.tensors.iter_mut().enumerate() {
        tensor.group = index % 3;
    }
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    steps_against(&mut Twins::new(&model), &mut engine, &model, 30);
    engine.optimizer.warm_up(&Step::all()).unwrap();
    assert_eq!(engine.optimizer.launches().len(), 1);
}

#[test]
fn every_layout_agrees_with_the_twins_and_leaves_neighbours_alone() {
    let layouts = [
        Layout::TwoPools(4),
        Layout::TwoPools(16),
        Layout::OnePool(4),
        Layout::OnePool(16),
        Layout::OwnBuffers,
        Layout::Mixed,
    ];
    for form in RuleForm::all() {
        for layout in layouts {
            let model = Model::new(form.with_defaults(), &LENGTHS);
            let mut engine = Engine::new(gpu(), &model, layout);
            let gradients = model.gradients(1);
            engine.step(&all(&gradients));
            engine.assert_neighbours_untouched(&all(&gradients));
            let mut twins = Twins::new(&model);
            twins.step(&all(&gradients));
            twins.assert_equal(&engine, 1);
        }
    }
}

#[test]
fn schedules_change_the_rate_from_step_to_step() {
    let model = Model::new(AdaMod::new(), &[1757, 5]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut twins = Twins::new(&model);
    for step in 1..=20 {
        let learning_rate = adamod::schedule::linear_warmup(1e-2, 1e-4, 10, step);
        let hyperparameters = Hyperparameters::new().with_learning_rate(learning_rate);
        let group = engine.groups[0];
        engine.optimizer.set_learning_rate(group, learning_rate).unwrap();
        twins.f64.set_hyperparameters(0, hyperparameters);
        twins.f32.set_hyperparameters(0, hyperparameters);
        let gradients = model.gradients(step);
        engine.step(&all(&gradients));
        twins.step(&all(&gradients));
    }
    twins.assert_equal(&engine, 20);
}

/// Gradients at the edges of f32 in every rule: zero, tiny, subnormal, and past the square root of the largest number.
#[test]
fn extreme_finite_gradients_never_give_a_non_finite_value() {
    let extremes = [0.0, -0.0, 1e-12, -1e-30, 1e-45, 1e19, -1e30, f32::MAX, f32::MIN];
    // SGD's step is as large as the gradient.
    for rule in rules().into_iter().filter(|rule| rule.kind().has_element_rates()) {
        let model = Model::new(rule, &[extremes.len() * 3]);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut twin = model.twin::<f32>();
        for step in 0..20 {
            let gradient: Vec<f32> = (0..extremes.len() * 3)
                .map(|i| extremes[(i * 7 + step * (i % 3)) % extremes.len()])
                .collect();
            engine.step(&[Some(&gradient)]);
            twin.step(&[Some(&gradient)]);
        }
        let values = engine.values(0);
        assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
        if engine.gpu.is_exact() {
            assert_eq!(float_bits(&values), float_bits(twin.values(0)));
        }
    }
}

#[test]
fn nan_and_infinite_gradients_show_in_the_values_they_belong_to_and_nowhere_else() {
    for rule in rules() {
        let model = Model::new(rule, &[9]);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut gradient = vec![0.5_f32; 9];
        gradient[1] = f32::NAN;
        gradient[5] = f32::INFINITY;
        gradient[8] = f32::NEG_INFINITY;
        engine.step(&[Some(&gradient)]);
        for (index, value) in engine.values(0).iter().enumerate() {
            let is_poisoned = [1, 5, 8].contains(&index);
            assert_eq!(value.is_finite(), !is_poisoned, "{rule:?} element {index} is {value}");
        }
    }
}

/// Rounding adds up in long runs, so they are allowed ten times as much. Measured: at most 0.21 of that.
#[test]
fn three_thousand_steps_stay_close_to_f64() {
    for rule in rules() {
        let model = Model::new(rule, &[300]);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut twins = Twins::new(&model);
        for step in 1..=3000 {
            let gradients = model.gradients(step);
            engine.step(&all(&gradients));
            twins.step(&all(&gradients));
        }
        let tolerance = Tolerance { absolute: 1e-5, relative: 1e-4 };
        tolerance.check(&engine.values(0), twins.f64.values(0)).unwrap();
    }
}

#[test]
fn the_comparator_fails_past_its_tolerance_and_on_nan() {
    let tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };
    assert!(tolerance.check(&[1.0], &[1.0 + 1e-5]).is_ok());
    assert!(tolerance.check(&[1.0], &[1.0 + 2e-5]).is_err());
    assert!(tolerance.check(&[f32::NAN], &[1.0]).is_err());
    assert!(tolerance.check(&[1.0], &[f64::NAN]).is_err());
    assert!(tolerance.check(&[1.0], &[1.0, 1.0]).is_err());
    // A twin of another rule is told apart by the same checks that the tests above rely on.
    let model = Model::new(AdaMod::new(), &[64]);
    let other = Model::new(AdaMod::new().with_formula(Formula::AuthorsCode), &[64]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut twins = Twins::new(&other);
    for step in 0..10 {
        let gradients = model.gradients(step);
        engine.step(&all(&gradients));
        twins.step(&all(&gradients));
    }
    assert!(VALUES.check(&engine.values(0), twins.f64.values(0)).is_err());
}

fn hyperparameters() -> impl Strategy<Value = Hyperparameters> {
    let beta = || prop_oneof![Just(0.0), 0.0..0.99, Just(0.999), Just(0.9999)];
    let decay = prop_oneof![
        Just(WeightDecay::None),
        (0.0..0.5).prop_map(WeightDecay::Decoupled),
        (0.0..0.5).prop_map(WeightDecay::Coupled),
        (0.0..0.5).prop_map(|lambda| WeightDecay::FullyDecoupled { lambda, max_learning_rate: 1e-1 }),
    ];
    (
        prop::sample::select(rules()),
        (1e-5_f64..1e-1),
        [beta(), beta(), beta()],
        prop_oneof![Just(1e-8), Just(1e-9), 1e-8..1e-2],
        0.0..0.95,
        decay,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(rule, learning_rate, betas, epsilon, momentum, weight_decay, maximize, cautious)| {
            let [beta1, beta2, beta3] = betas;
            let mut changed = rule;
            for (name, value) in [
                ("betas[0]", beta1),
                ("betas[1]", beta2),
                ("betas[2]", beta3),
                ("alpha", beta2),
                ("rho", beta2),
                ("epsilon", epsilon),
            ] {
                changed.set_hyperparameter(name, value);
            }
            // Nesterov momentum needs momentum.
            let nesterov = rule.hyperparameters().contains(&("nesterov", 1.0));
            if !(nesterov && momentum == 0.0) {
                changed.set_hyperparameter("momentum", momentum);
            }
            Hyperparameters::from(changed)
                .with_cautious(cautious)
                .with_cautious_weight_decay(cautious && !matches!(weight_decay, WeightDecay::Coupled(_)))
                .with_learning_rate(learning_rate)
                .with_weight_decay(weight_decay)
                .with_objective(if maximize { Objective::Maximize } else { Objective::Minimize })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// On adapters with exact arithmetic every bit is the f32 twin's, whatever the hyperparameters, lengths and layout.
    #[test]
    fn any_model_agrees_with_the_f32_twin(
        hyperparameters in hyperparameters(),
        lengths in prop::collection::vec(1_usize..3000, 1..6),
        layout in prop::sample::select(vec![
            Layout::TwoPools(4), Layout::TwoPools(256), Layout::OnePool(4), Layout::OnePool(32), Layout::OwnBuffers,
        ]),
        workgroups in prop::sample::select(vec![Workgroups::Cpu, Workgroups::Gpu]),
        seed in 0_u64..1_000_000,
    ) {
        let options = Options::new().with_workgroups(workgroups);
        let model = Model::new(hyperparameters, &lengths).with_options(options);
        let mut engine = Engine::new(gpu(), &model, layout);
        let mut twin = model.twin::<f32>();
        for step in 0..3 {
            let gradients = model.gradients(seed + step);
            engine.step(&all(&gradients));
            twin.step(&all(&gradients));
            engine.assert_neighbours_untouched(&all(&gradients));
        }
        for index in 0..lengths.len() {
            let values = engine.values(index);
            if engine.gpu.is_exact() {
                prop_assert_eq!(float_bits(&values), float_bits(twin.values(index)));
                for ((_, got), expected) in engine.state(index).tensors.iter().zip(twin.state(index)) {
                    prop_assert_eq!(float_bits(got), float_bits(expected));
                }
            } else {
                let wide: Vec<f64> = twin.values(index).iter().map(|&x| x.into()).collect();
                prop_assert_eq!(VALUES.check(&values, &wide), Ok(()));
            }
        }
    }
}

//! Groups of several rules in one optimizer: each steps as it would alone, and all of them share one step.

use adamod::{
    Control, DeviceControl, Group, Hyperparameters, NonFinite, Optimizer, Options, Rule, RuleForm, RuleKind,
    Sgd, StateFormat, Step, WeightDecay, Workgroups,
};

use crate::common::{
    Engine, Layout, Model, Tensor, all, float_bits, gpu, precision, rules, rules_by_states, rules_in,
};

const LENGTHS: [usize; 11] = [1757, 3, 1024, 40, 5000, 257, 33, 2051, 1, 700, 96];

const LAYOUTS: [Layout; 4] = [Layout::TwoPools(256), Layout::OnePool(4), Layout::OwnBuffers, Layout::Mixed];

/// A group for every rule in every form and variant, whose tensors lie between those of other groups. A lane that prepares the coefficients
/// of several parameters meets several groups and several step counts.
fn mixed(state: StateFormat, options: Options) -> Model {
    mixed_of(&rules_in(state), state, options)
}

fn mixed_of(rules: &[Rule], state: StateFormat, options: Options) -> Model {
    let mut model = Model { options, groups: Vec::new(), tensors: Vec::new() };
    for (index, &rule) in rules.iter().enumerate() {
        let hyperparameters = Hyperparameters::from(rule)
            .with_learning_rate(1e-3 * (index % 5 + 1) as f64)
            .with_weight_decay(WeightDecay::Decoupled(1e-2));
        let group = Group::new(hyperparameters).with_precision(precision(state));
        model.add_group(group, &[0, 4].map(|next| LENGTHS[(2 * index + next) % LENGTHS.len()]));
    }
    // Neighbours in the buffers have different rules.
    model.tensors.sort_by_key(|tensor| LENGTHS.iter().position(|&len| len == tensor.len()));
    model
}

/// The part of a model whose groups have this rule.
fn only(model: &Model, rule: RuleKind) -> Model {
    let is_own = |group: usize| model.groups[group].hyperparameters.rule.kind() == rule;
    let kept: Vec<_> = (0..model.groups.len()).filter(|&group| is_own(group)).collect();
    let tensors = model.tensors.iter().filter_map(|tensor| {
        let group = kept.iter().position(|&of| of == tensor.group)?;
        Some(Tensor { group, ..tensor.clone() })
    });
    Model {
        options: model.options.clone(),
        groups: kept.iter().map(|&group| model.groups[group]).collect(),
        tensors: tensors.collect(),
    }
}

/// Of a step's gradients those that parameters with this rule have.
fn gradients_of<'a>(
    model: &Model,
    rule: RuleKind,
    gradients: &[Option<&'a [f32]>],
) -> Vec<Option<&'a [f32]>> {
    let rule_of = |tensor: &Tensor| model.groups[tensor.group].hyperparameters.rule.kind();
    let pairs = model.tensors.iter().zip(gradients);
    pairs.filter(|(tensor, _)| rule_of(tensor) == rule).map(|(_, gradient)| *gradient).collect()
}

/// Some gradients are missing: in steps 3 and 6 all of one rule, in step 5 those of two tensors of three.
fn present<'a>(model: &Model, step: u64, gradients: &'a [Vec<f32>]) -> Vec<Option<&'a [f32]>> {
    let rule_of = |index: usize| model.groups[model.tensors[index].group].hyperparameters.rule.kind();
    let missing = RuleKind::ALL[step as usize % RuleKind::ALL.len()];
    all(gradients)
        .into_iter()
        .enumerate()
        .map(|(index, gradient)| {
            gradient.filter(|_| match step {
                3 | 6 => rule_of(index) != missing,
                5 => index % 3 == 0,
                _ => true,
            })
        })
        .collect()
}

/// The bits of a mixed engine's tensors with this rule.
fn bits_of_rule(engine: &Engine<'_>, model: &Model, rule: RuleKind) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let rule_of = |tensor: &Tensor| model.groups[tensor.group].hyperparameters.rule.kind();
    let bits = engine.bits().into_iter().zip(&model.tensors);
    bits.filter(|(_, tensor)| rule_of(tensor) == rule).map(|(bits, _)| bits).collect()
}

#[test]
fn groups_of_several_rules_step_as_optimizers_of_their_own() {
    for (state, layouts) in StateFormat::ALL.into_iter().zip([&LAYOUTS[..2], &LAYOUTS[2..3], &LAYOUTS[3..]]) {
        for &layout in layouts {
            let model = mixed(state, Options::new().with_seed(3));
            let mut engine = Engine::new(gpu(), &model, layout);
            let parts = RuleKind::ALL.iter().map(|&rule| {
                let part = only(&model, rule);
                (rule, Engine::new(gpu(), &part, layout))
            });
            let mut parts: Vec<_> = parts.collect();
            let mut twin = model.twin::<f32>();
            for step in 0..8 {
                let gradients = model.gradients(step);
                let gradients = present(&model, step, &gradients);
                engine.step(&gradients);
                engine.assert_neighbours_untouched(&gradients);
                twin.step(&gradients);
                for (rule, part) in &mut parts {
                    part.step(&gradients_of(&model, *rule, &gradients));
                }
            }
            for (rule, part) in &parts {
                assert!(bits_of_rule(&engine, &model, *rule) == part.bits(), "{rule}, {state:?}, {layout:?}");
            }
            for index in 0..model.tensors.len() {
                let count = engine.optimizer.step_count(engine.ids[index]);
                assert_eq!(count, Some(twin.step_count(index)));
                if gpu().is_exact() {
                    assert_eq!(engine.value_bits(index), float_bits(twin.values(index)));
                }
            }
        }
    }
}

/// The clip is of the norm over all groups. Optimizers of one rule each that are given this norm, as the devices of a cluster are,
/// take the same steps.
#[test]
fn a_norm_is_common_to_all_rules() {
    for (state, layout) in [(StateFormat::F32, LAYOUTS[0]), (StateFormat::Q8, LAYOUTS[3])] {
        let settings = DeviceControl::new().with_max_norm(2.0);
        let model = mixed(state, Options::new().with_control(Control::Device(settings)));
        let mut engine = Engine::new(gpu(), &model, layout);
        let parts = RuleKind::ALL.iter().map(|&rule| {
            let part = only(&model, rule);
            (rule, Engine::new(gpu(), &part, layout))
        });
        let mut parts: Vec<_> = parts.collect();
        for step in 0..8 {
            let gradients = model.gradients(step);
            let gradients = present(&model, step, &gradients);
            engine.step(&gradients);
            let norm = engine.optimizer.read_progress().wait().unwrap().norm;
            let mut squares = 0.0;
            for (rule, part) in &mut parts {
                let gradients = gradients_of(&model, *rule, &gradients);
                part.write_gradients(&gradients);
                let pairs = part.ids.iter().zip(&gradients);
                let ids: Vec<_> = pairs.filter_map(|(&id, gradient)| gradient.map(|_| id)).collect();
                part.record(&Step::of(&ids).norm());
                let own = part.optimizer.read_progress().wait().unwrap().norm;
                squares += f64::from(own).powi(2);
                let control = part.optimizer.control_buffer().unwrap();
                gpu().queue.write_buffer(control, Optimizer::NORM_OFFSET, &norm.to_le_bytes());
                part.record(&Step::of(&ids).after_norm());
            }
            let error = f64::from(norm) / squares.sqrt() - 1.0;
            assert!(error.abs() < 1e-6, "step {step}: {norm:e} instead of {:e}", squares.sqrt());
            assert!(norm > 2.0, "the clip does something");
        }
        for (rule, part) in &parts {
            assert!(bits_of_rule(&engine, &model, *rule) == part.bits(), "{rule}, {state:?}, {layout:?}");
        }
    }
}

/// A dispatch for each form of a rule, not for each group or formula.
#[test]
fn launches_name_the_rules() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let model = mixed(StateFormat::F32, Options::new().with_control(control));
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        assert_eq!(engine.optimizer.launches().len(), 0);
        engine.optimizer.warm_up(&Step::all()).unwrap();
        let found: Vec<_> = engine
            .optimizer
            .launches()
            .map(|launch| (launch.form, launch.segments as usize, launch.workgroups as usize))
            .collect();
        let expected: Vec<_> = RuleForm::all()
            .map(|form| {
                let is_own =
                    |tensor: &&Tensor| model.groups[tensor.group].hyperparameters.rule.form() == form;
                let lengths: Vec<_> = model.tensors.iter().filter(is_own).map(Tensor::len).collect();
                (form, lengths.len(), lengths.iter().map(|len| len.div_ceil(1024)).sum())
            })
            .collect();
        let sorted = |mut launches: Vec<_>| {
            launches.sort();
            launches
        };
        assert_eq!(sorted(found), sorted(expected));
        // Nothing was counted.
        assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(0));
    }
}

#[test]
fn steps_of_all_rules_are_counted_once_and_taken_back_together() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let model = mixed(StateFormat::F32, Options::new().with_control(control));
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let recorded = |engine: &Engine<'_>| -> Vec<u64> {
            engine.ids.iter().map(|&id| engine.optimizer.step_count(id).unwrap()).collect()
        };
        for step in 0..3 {
            engine.step(&all(&model.gradients(step)));
        }
        assert_eq!(recorded(&engine), vec![3; model.tensors.len()]);
        let counts = engine.optimizer.step_counts();
        let mut encoder = gpu().encoder();
        let few = [engine.ids[0], engine.ids[3]];
        engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
        engine.optimizer.encode(&mut encoder, &Step::of(&few)).unwrap();
        drop(encoder);
        assert_ne!(recorded(&engine), vec![3; model.tensors.len()]);
        engine.optimizer.rewind(&counts).unwrap();
        assert_eq!(recorded(&engine), vec![3; model.tensors.len()]);
        engine.step(&all(&model.gradients(3)));
        for index in 0..model.tensors.len() {
            assert_eq!(engine.state(index).step, 4);
        }
        if control != Control::Host {
            assert_eq!(engine.optimizer.read_progress().wait().unwrap().taken, 4);
        }
    }
}

/// Whichever group has the infinite or NaN gradient: the run ends as one without that step, and gradients are zeroed all the same.
#[test]
fn a_step_with_a_non_finite_gradient_is_skipped_for_all_rules() {
    // On a CPU every rule has a kernel of its own for 8-bit state, which SwiftShader compiles for minutes and with gigabytes.
    for (state, layout, workgroups) in
        [(StateFormat::F32, LAYOUTS[1], Workgroups::Auto), (StateFormat::Q8, LAYOUTS[3], Workgroups::Gpu)]
    {
        let options = Options::new()
            .with_zero_gradients(true)
            .with_workgroups(workgroups)
            .with_control(Control::Device(DeviceControl::new()));
        let model = mixed_of(&rules_by_states(), state, options);
        let run = |poisoned: Option<usize>| {
            let mut engine = Engine::new(gpu(), &model, layout);
            engine.step(&all(&model.gradients(0)));
            if let Some(tensor) = poisoned {
                let before = engine.bits();
                let mut gradients = model.gradients(100);
                let last = gradients[tensor].len() - 1;
                gradients[tensor][last] = if tensor % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
                engine.step(&all(&gradients));
                assert!(engine.bits() == before, "tensor {tensor}, {layout:?}");
                engine.assert_neighbours_untouched(&all(&gradients));
            }
            for step in 1..3 {
                engine.step(&all(&model.gradients(step)));
            }
            let progress = engine.optimizer.read_progress().wait().unwrap();
            assert_eq!((progress.taken, progress.skipped), (3, u32::from(poisoned.is_some())));
            for index in 0..model.tensors.len() {
                assert_eq!(engine.state(index).step, 3);
            }
            engine.bits()
        };
        let clean = run(None);
        for group in 0..model.groups.len() {
            let tensor = model.tensors.iter().position(|tensor| tensor.group == group);
            assert!(run(tensor) == clean, "group {group}, {layout:?}");
        }
    }
}

#[test]
fn non_finite_gradients_that_propagate_stay_in_their_own_group() {
    let settings = DeviceControl::new().with_non_finite(NonFinite::Propagate);
    let model = mixed(StateFormat::F32, Options::new().with_control(Control::Device(settings)));
    let (mut clean, mut poisoned) = (
        Engine::new(gpu(), &model, Layout::TwoPools(256)),
        Engine::new(gpu(), &model, Layout::TwoPools(256)),
    );
    let mut gradients = model.gradients(1);
    clean.step(&all(&gradients));
    gradients[4][17] = f32::NAN;
    poisoned.step(&all(&gradients));
    for index in 0..model.tensors.len() {
        let (expected, mut found) = (clean.values(index), poisoned.values(index));
        if index == 4 {
            assert!(found[17].is_nan());
            found[17] = expected[17];
        }
        assert_eq!(found, expected, "tensor {index}");
    }
}

/// A rule whose first group comes late and whose last parameter goes: the others do not notice.
#[test]
fn rules_come_and_go() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        for state in [StateFormat::F32, StateFormat::Q8] {
            let options = Options::new().with_control(control);
            let group = Group::new(rules()[0]).with_precision(precision(state));
            let model = Model::new(group, &[1757, 3]).with_options(options.clone());
            let late = Group::new(Sgd::new()).with_precision(precision(state));
            let mut late = Model::new(late, &[2050]).with_options(options);
            late.tensors[0].label = "late".to_owned();
            let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(256));
            let mut late_alone = Engine::new(gpu(), &late, Layout::TwoPools(256));

            let mut both = model.clone();
            both.groups.extend(late.groups.clone());
            both.tensors.extend(late.tensors.iter().cloned().map(|tensor| Tensor { group: 1, ..tensor }));
            let mut engine = Engine::new(gpu(), &both, Layout::TwoPools(256));
            // It is removed before it has stepped, and comes back after the others' third step.
            let (tensor, location) = (both.tensors[2].clone(), engine.locations[2]);
            engine.remove_tensor(2);
            let rules_of = |engine: &Engine<'_>| -> Vec<_> {
                let mut rules: Vec<_> =
                    engine.optimizer.launches().map(|launch| launch.form.rule()).collect();
                rules.sort();
                rules
            };
            for step in 0..9 {
                if step == 3 {
                    engine.add_tensor(tensor.clone(), location);
                } else if step == 6 {
                    assert_eq!(engine.bits()[2..], late_alone.bits()[..], "{control:?}, {state:?}");
                    engine.remove_tensor(2);
                    engine.optimizer.remove_group(engine.groups[1]).unwrap();
                }
                let gradients = model.gradients(step);
                let late_gradients = late.gradients(step);
                let both: Vec<_> = match engine.ids.len() {
                    3 => all(&gradients).into_iter().chain(all(&late_gradients)).collect(),
                    _ => all(&gradients),
                };
                engine.step(&both);
                alone.step(&all(&gradients));
                if both.len() == 3 {
                    late_alone.step(&all(&late_gradients));
                    assert_eq!(rules_of(&engine), [RuleKind::AdaMod, RuleKind::Sgd]);
                } else {
                    assert_eq!(rules_of(&engine), [RuleKind::AdaMod]);
                }
            }
            assert_eq!(engine.bits(), alone.bits(), "{control:?}, {state:?}");
        }
    }
}

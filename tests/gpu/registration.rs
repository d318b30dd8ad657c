//! What registration refuses, and that the optimizer works on afterwards.

use adamod::{
    AdaMod, Control, DeviceControl, Error, ErrorKind, Group, GroupId, Hyperparameters, Optimizer, Options,
    OutOfRange, Parameter, Precision, Role, RuleKind, Sgd, State, StateFormat, Step, View, ViewError, Views,
    WeightDecay,
};

use crate::common::{Engine, Gpu, Layout, Model, all, gpu};

fn optimizer() -> (Optimizer, GroupId) {
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    (optimizer, group)
}

fn parameter<'a>(label: &'a str, len: u64, values: View<'a>, gradients: View<'a>) -> Parameter<'a> {
    Parameter::new(label, len).with_views(Views::new(values, gradients))
}

/// Registers and steps a good parameter: what was refused before has left no trace.
fn assert_works_on(mut optimizer: Optimizer, group: GroupId) {
    let buffer = gpu().buffer(64);
    let good = parameter("good", 4, View::new(&buffer, 0), View::new(&buffer, 32));
    let id = optimizer.add_parameter(group, good).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    assert_eq!(optimizer.step_count(id), Some(1));
}

/// Label, role and fault of a view that was refused.
fn refused(error: &Error) -> (&str, Role, &ViewError) {
    match error.kind() {
        ErrorKind::View { role, error: found } => (error.label().unwrap(), *role, found),
        _ => panic!("{error}"),
    }
}

#[test]
fn buffers_without_storage_usage_are_refused() {
    let (mut optimizer, group) = optimizer();
    let uniform = gpu().device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let good = gpu().buffer(64);
    let bad = parameter("wte", 4, View::new(&good, 0), View::new(&uniform, 0));
    let error = optimizer.add_parameter(group, bad).unwrap_err();
    assert_eq!(refused(&error), ("wte", Role::Gradients, &ViewError::Usage { found: uniform.usage() }));
    assert_works_on(optimizer, group);
}

#[test]
fn misaligned_and_overlong_views_are_refused() {
    let (mut optimizer, group) = optimizer();
    let buffer = gpu().buffer(64);
    let other = gpu().buffer(64);
    let mut add = |len, values| {
        let bad = parameter("wte", len, View::new(&buffer, values), View::new(&other, 0));
        optimizer.add_parameter(group, bad).unwrap_err()
    };
    for (len, values, expected) in [
        (4, 2, ViewError::Alignment { found: 2 }),
        (17, 0, ViewError::OutOfBounds { end: 68, size: 64 }),
        (1, 64, ViewError::OutOfBounds { end: 68, size: 64 }),
        (u64::MAX, 0, ViewError::OutOfBounds { end: u64::MAX, size: 64 }),
        (u64::MAX / 4, u64::MAX - 3, ViewError::OutOfBounds { end: u64::MAX, size: 64 }),
    ] {
        assert_eq!(refused(&add(len, values)), ("wte", Role::Values, &expected));
    }
    assert_works_on(optimizer, group);
}

/// Lengths that no buffer has are refused also where no view tells.
#[test]
fn parameters_that_no_buffer_can_hold_are_refused() {
    let (mut optimizer, group) = optimizer();
    for len in [u64::MAX, u64::MAX / 4, 1 << 62, 1 << 41] {
        let error = optimizer.add_parameter(group, Parameter::new("huge", len)).unwrap_err();
        let is_too_long = matches!(error.kind(), ErrorKind::TooLong { len: found, most, .. } if *found == len && *most < len);
        assert!(is_too_long && error.label() == Some("huge"), "{error}");
    }
    let most = gpu().device.limits().max_buffer_size.min(1 << 40) / 4;
    assert!(optimizer.add_parameter(group, Parameter::new("huge", most + 1)).is_err());
    let longest = optimizer.add_parameter(group, Parameter::new("longest", most)).unwrap();
    assert_eq!(optimizer.state_bytes_of(longest), Some(12 * most.next_multiple_of(4)));
    optimizer.remove_parameter(longest).unwrap();
    assert_works_on(optimizer, group);
}

#[test]
fn empty_and_repeated_parameters_are_refused() {
    let (mut optimizer, group) = optimizer();
    let buffer = gpu().buffer(256);
    let at = |offset| View::new(&buffer, offset);
    let error = optimizer.add_parameter(group, parameter("empty", 0, at(0), at(64))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Empty) && error.label() == Some("empty"), "{error}");
    let error = optimizer.add_parameter(group, parameter("", 4, at(0), at(64))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::EmptyLabel), "{error}");
    optimizer.add_parameter(group, parameter("once", 4, at(0), at(64))).unwrap();
    let error = optimizer.add_parameter(group, parameter("once", 4, at(128), at(192))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::DuplicateLabel) && error.label() == Some("once"), "{error}");
    // The bytes of the refused one are free.
    optimizer.add_parameter(group, parameter("twice", 4, at(128), at(192))).unwrap();
    assert_works_on(optimizer, group);
}

#[test]
fn overlaps_are_refused_in_either_order_and_role() {
    let (mut optimizer, group) = optimizer();
    let buffer = gpu().buffer(1024);
    let at = |offset| View::new(&buffer, offset);
    // 64 elements are 256 bytes.
    optimizer.add_parameter(group, parameter("first", 64, at(256), at(512))).unwrap();
    let cases = [
        // Values into the first's values from below, from above, within, around; into its gradients.
        (64, 4, 0, Role::Values, Role::Values, 256),
        (1, 508, 0, Role::Values, Role::Values, 508),
        (1, 300, 0, Role::Values, Role::Values, 300),
        (1, 600, 0, Role::Values, Role::Gradients, 600),
        (1, 0, 764, Role::Gradients, Role::Gradients, 764),
        (1, 0, 256, Role::Gradients, Role::Values, 256),
    ];
    for (len, values, gradients, role, other_role, byte) in cases {
        let bad = parameter("second", len, at(values), at(gradients));
        let error = optimizer.add_parameter(group, bad).unwrap_err();
        let expected = ViewError::Overlap { other_role, other_label: "first".to_owned(), byte };
        assert_eq!(refused(&error), ("second", role, &expected));
    }
    // A gradient aliasing its own parameter, whole and by one element.
    for gradients in [0, 12] {
        let bad = parameter("alias", 4, at(0), at(gradients));
        let error = optimizer.add_parameter(group, bad).unwrap_err();
        let (label, role, found) = refused(&error);
        assert_eq!((label, role), ("alias", Role::Gradients));
        assert!(matches!(found, ViewError::Overlap { other_role: Role::Values, .. }), "{error}");
    }
    // In the place of a parameter that was removed, too, it is itself that it overlaps.
    let removed = optimizer.add_parameter(group, parameter("removed", 4, at(0), at(16))).unwrap();
    optimizer.remove_parameter(removed).unwrap();
    let error = optimizer.add_parameter(group, parameter("alias", 4, at(0), at(12))).unwrap_err();
    let (_, _, found) = refused(&error);
    assert!(matches!(found, ViewError::Overlap { other_label, .. } if other_label == "alias"), "{error}");
    // Neighbours may touch.
    optimizer.add_parameter(group, parameter("below", 64, at(0), at(768))).unwrap();
    assert_works_on(optimizer, group);
}

#[test]
fn views_can_be_set_anew_and_are_checked_again() {
    let model = Model::new(AdaMod::new(), &[64, 64]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    let buffer = gpu().buffer(1024);
    let (id, buffers) = (engine.ids[0], engine.buffers.clone());
    let bad = Views::new(View::new(&buffer, 0), engine.views(1, &buffers).gradients);
    let error = engine.optimizer.set_views(id, bad).unwrap_err();
    assert!(matches!(refused(&error), ("tensor.0", Role::Gradients, ViewError::Overlap { .. })), "{error}");
    // The old views still hold.
    engine.step(&all(&model.gradients(2)));
    let good = Views::new(View::new(&buffer, 0), View::new(&buffer, 512));
    engine.optimizer.set_views(id, good).unwrap();
    let before = engine.values(0);
    engine.step(&all(&model.gradients(3)));
    assert_eq!(engine.values(0), before, "the old place is no longer written");
    assert_eq!(engine.optimizer.step_count(id), Some(3));
}

#[test]
fn hyperparameters_are_checked_when_added_and_when_set() {
    let (mut optimizer, group) = optimizer();
    let bad = AdaMod::new().with_betas([0.9, 1.0, 0.999]);
    for error in
        [optimizer.add_group(bad).unwrap_err(), optimizer.set_hyperparameters(group, bad).unwrap_err()]
    {
        assert!(
            matches!(error.kind(), ErrorKind::OutOfRange(OutOfRange { name: "betas[1]", .. })),
            "{error}"
        );
        assert_eq!(error.to_string(), "betas[1] is 1, expected a number in [0, 1)");
    }
    assert!(optimizer.set_learning_rate(group, f64::NAN).is_err());
    assert_eq!(optimizer.group(group), Some(&Group::new(AdaMod::new())));
    let negative = Hyperparameters::new().with_weight_decay(WeightDecay::Decoupled(-0.1));
    assert!(optimizer.add_group(negative).is_err());
    assert_eq!(optimizer.groups().count(), 1);
    assert_works_on(optimizer, group);
}

/// A group's parameters have the states of its rule.
#[test]
fn a_group_keeps_its_rule_and_its_precision() {
    let (mut optimizer, group) = optimizer();
    for rule in RuleKind::ALL.iter().filter(|rule| **rule != RuleKind::AdaMod) {
        let error = optimizer.set_hyperparameters(group, rule.with_defaults()).unwrap_err();
        let is_refused = matches!(
            error.kind(),
            ErrorKind::Rule { found, expected: RuleKind::AdaMod } if found == rule
        );
        assert!(is_refused, "{error}");
    }
    let precision = Precision::new(StateFormat::Q8).with_f32_state_below(7);
    let other = optimizer.add_group(Group::new(Sgd::new()).with_precision(precision)).unwrap();
    let faster = Hyperparameters::from(Sgd::new().with_momentum(0.5)).with_learning_rate(0.25);
    optimizer.set_hyperparameters(other, faster).unwrap();
    let expected = Group::new(faster).with_precision(precision);
    assert_eq!(optimizer.group(other), Some(&expected));
    let groups: Vec<_> = optimizer.groups().map(|(id, group)| (id, *group)).collect();
    assert_eq!(groups, [(group, Group::new(AdaMod::new())), (other, expected)]);
    let member = optimizer.add_parameter(other, Parameter::new("scale", 4)).unwrap();
    assert_eq!(optimizer.group_of(member), Some(other));
    assert_eq!(optimizer.label(member), Some("scale"));
    assert_eq!(optimizer.parameters().collect::<Vec<_>>(), [member]);
    optimizer.remove_parameter(member).unwrap();
    assert_works_on(optimizer, group);
}

#[test]
fn groups_of_another_optimizer_are_refused() {
    let (mut first, group) = optimizer();
    let (_, foreign) = optimizer();
    let buffer = gpu().buffer(64);
    let error = first
        .add_parameter(foreign, parameter("p", 4, View::new(&buffer, 0), View::new(&buffer, 32)))
        .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownGroup), "{error}");
    assert!(first.group(foreign).is_none());
    assert_works_on(first, group);
}

#[test]
fn parameters_without_views_are_refused_where_views_are_needed() {
    let (mut optimizer, group) = optimizer();
    let id = optimizer.add_parameter(group, Parameter::new("pooled", 4)).unwrap();
    let error = optimizer.submit(&Step::all()).unwrap_err();
    assert!(error.to_string().contains("pooled"), "{error}");
    let error = optimizer.read_parameter(id).wait().unwrap_err();
    assert!(error.to_string().contains("pooled"), "{error}");
    assert_eq!(optimizer.read_state(id).wait().unwrap().tensor("exp_avg_lr"), Some(&[0.0; 4][..]));
    let buffer = gpu().buffer(64);
    let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 32));
    optimizer.set_views(id, views).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    assert_eq!(optimizer.step_count(id), Some(1));
}

#[test]
fn reading_values_needs_a_buffer_that_can_be_copied() {
    let (mut optimizer, group) = optimizer();
    let storage_only = gpu().device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let views = parameter("p", 4, View::new(&storage_only, 0), View::new(&storage_only, 32));
    let id = optimizer.add_parameter(group, views).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    let error = optimizer.read_parameter(id).wait().unwrap_err();
    assert!(error.to_string().contains("COPY_SRC"), "{error}");
    assert_eq!(optimizer.read_state(id).wait().unwrap().step, 1);
}

#[test]
fn devices_below_the_limits_are_refused() {
    let small = Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffers_per_shader_stage: 4, ..limits });
    let error = small.optimizer(Options::new()).unwrap_err();
    let ErrorKind::Limit { limit, found: 4, expected: 8 } = error.kind() else { panic!("{error}") };
    assert_eq!(*limit, "max_storage_buffers_per_shader_stage");
}

/// Views that a parameter has only in steps: `warm_up` tells of it as `encode` does.
#[test]
fn warming_up_parameters_without_views_is_an_error() {
    let (mut optimizer, group) = optimizer();
    optimizer.add_parameter(group, Parameter::new("moving", 4)).unwrap();
    let error = optimizer.warm_up(&Step::all()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoViews) && error.label() == Some("moving"), "{error}");
    assert_eq!(optimizer.launches().count(), 0);
}

#[test]
fn states_of_another_rule_are_not_written() {
    let (mut optimizer, group) = optimizer();
    let id = optimizer.add_parameter(group, Parameter::new("wte", 4)).unwrap();
    let good = optimizer.read_state(id).wait().unwrap();
    let with = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    for bad in [
        with(|state| drop(state.tensors.pop())),
        with(|state| state.tensors[2].0 = "exp_avg"),
        with(|state| state.tensors.push(("momentum_buffer", vec![0.0; 4]))),
        with(|state| state.tensors.clear()),
    ] {
        let error = optimizer.write_state(id, &bad).unwrap_err();
        let ErrorKind::States { expected, .. } = error.kind() else { panic!("{error}") };
        assert_eq!(*expected, ["exp_avg", "exp_avg_sq", "exp_avg_lr"]);
    }
    let error = optimizer.write_state(id, &with(|state| state.tensors[1].1.push(0.0))).unwrap_err();
    let is_refused = matches!(
        error.kind(),
        ErrorKind::Length { what, found: 5, expected: 4 } if what == "exp_avg_sq"
    );
    assert!(is_refused, "{error}");
    // Their order does not matter.
    let reversed = with(|state| {
        state.tensors.reverse();
        state.tensors[0].1 = vec![0.5; 4];
    });
    optimizer.write_state(id, &reversed).unwrap();
    assert_eq!(optimizer.read_state(id).wait().unwrap().tensor("exp_avg_lr"), Some(&[0.5; 4][..]));
    optimizer.remove_parameter(id).unwrap();
    assert_works_on(optimizer, group);
}

/// What is read is what was there at the call, though steps are submitted before it resolves; the optimizer is free meanwhile.
#[test]
fn reads_are_of_the_moment_they_are_asked_for() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let model = Model::new(AdaMod::new(), &[1500]).with_options(Options::new().with_control(control));
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        engine.step(&all(&model.gradients(1)));
        let expected = (engine.values(0), engine.state(0));
        let values = engine.optimizer.read_parameter(engine.ids[0]);
        let state = engine.optimizer.read_state(engine.ids[0]);
        for step in 2..5 {
            engine.step(&all(&model.gradients(step)));
        }
        let id = engine.ids[0];
        engine.optimizer.remove_parameter(id).unwrap();
        // Nothing is left for a first poll to submit.
        gpu().device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        assert_eq!(pollster::block_on(values).unwrap(), expected.0);
        assert_eq!(pollster::block_on(state).unwrap(), expected.1);
    }
}

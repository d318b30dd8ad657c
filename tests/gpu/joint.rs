//! Steps of several optimizers of one loss: one norm, one loss scale, one decision to skip.

use adamod::{
    AdaMod, Control, DType, DeviceControl, ErrorKind, JointError, JointStep, LossScale, MasterWeights,
    NonFinite, Optimizer, Options, Progress, StateFormat, Step, Workgroups,
};

use crate::common::{Engine, Gpu, Kind, Layout, Model, all, gpu, number_of};

const DYNAMIC: LossScale =
    LossScale::Dynamic { initial: 1024.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 3 };

fn controls() -> [DeviceControl; 5] {
    let control = DeviceControl::new();
    [
        control.with_max_norm(0.25),
        control.with_loss_scale(DYNAMIC),
        control.with_loss_scale(DYNAMIC).with_max_norm(1e-3),
        control.with_non_finite(NonFinite::Propagate).with_max_norm(10.0),
        control.with_non_finite(NonFinite::Propagate).with_loss_scale(LossScale::Constant(8.0)),
    ]
}

fn model(control: DeviceControl) -> Model {
    let bf16 = Kind {
        values: DType::Bf16,
        gradients: DType::Bf16,
        master_weights: MasterWeights::Split24,
        ..Kind::f32()
    };
    let q8 = Kind { state: StateFormat::Q8, ..Kind::f32() };
    let tensors = [(Kind::f32(), 1500), (q8, 4096), (bf16, 33), (Kind::f32(), 5), (bf16, 2049), (q8, 6000)];
    Model::of_kinds(AdaMod::new(), &tensors).with_options(options(control))
}

fn options(control: DeviceControl) -> Options {
    Options::new().with_control(Control::Device(control))
}

/// The part of a model that one of `members` optimizers has: every `members`-th tensor.
fn part_of(model: &Model, member: usize, members: usize) -> Model {
    let tensors = model.tensors.iter().skip(member).step_by(members).cloned().collect();
    Model { options: model.options.clone(), groups: model.groups.clone(), tensors }
}

fn progress(optimizer: &Optimizer) -> Progress {
    optimizer.read_progress().wait().unwrap()
}

/// The gradients of a step: heavy-tailed, one of them infinite in step 4.
fn gradients_of(model: &Model, step: u64) -> Vec<Vec<f32>> {
    let mut gradients = model.gradients(step);
    if step == 4 {
        gradients[5][5999] = f32::INFINITY;
    }
    gradients
}

fn joint<'a>(engines: &'a mut [Engine<'_>], steps: &[Step<'a>]) -> JointStep<'a> {
    let mut members = engines.iter_mut().zip(steps).map(|(engine, step)| (&mut engine.optimizer, *step));
    let (first, step) = members.next().unwrap();
    members.fold(JointStep::new(first, step), |joint, (optimizer, step)| joint.with(optimizer, step))
}

/// All bits of an engine, with one NaN for all. WGSL gives a NaN no sign, 8-bit state keeps the one it gets, and kernels of different layouts
/// may give different ones (llvmpipe's do in OpenGL). So elements whose value is NaN have no state here.
fn bits_of(engine: &Engine) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut bits = engine.bits();
    for ((values, states), tensor) in bits.iter_mut().zip(&engine.tensors) {
        for (index, value) in values.iter_mut().enumerate() {
            if number_of(tensor.kind.values, *value).is_nan() {
                *value = f32::NAN.to_bits();
                states.iter_mut().for_each(|state| state[index] = 0);
            }
        }
    }
    bits
}

/// How a joint step is recorded.
#[derive(Clone, Copy, Debug)]
enum Recorded {
    Submitted,
    Encoded,
    /// In halves, with the norm written back by the engine.
    Halves,
}

#[test]
fn optimizers_together_are_one_optimizer_bit_for_bit() {
    let layouts = [Layout::TwoPools(16), Layout::OwnBuffers, Layout::OnePool(256)];
    for control in controls() {
        for (members, workgroups, recorded) in [
            (1, Workgroups::Cpu, Recorded::Submitted),
            (2, Workgroups::Cpu, Recorded::Submitted),
            (3, Workgroups::Gpu, Recorded::Encoded),
            (2, Workgroups::Gpu, Recorded::Halves),
        ] {
            if matches!(recorded, Recorded::Halves) && !control.uses_norm() {
                continue;
            }
            let mut model = model(control);
            model.options.workgroups = workgroups;
            let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(16));
            let mut together: Vec<_> = (0..members)
                .map(|member| Engine::new(gpu(), &part_of(&model, member, members), layouts[member]))
                .collect();
            for step in 0..10 {
                let gradients = gradients_of(&model, step);
                alone.write_gradients(&all(&gradients));
                for (member, engine) in together.iter().enumerate() {
                    let own: Vec<_> = gradients.iter().skip(member).step_by(members).cloned().collect();
                    engine.write_gradients(&all(&own));
                }
                // The first tensor, the first optimizer's, has no gradient in step 7.
                let rest = if step == 7 { 1 } else { 0 };
                alone.optimizer.submit(&Step::of(&alone.ids[rest..])).unwrap();
                let ids = together[0].ids.clone();
                let mut steps = vec![Step::all(); members];
                steps[0] = Step::of(&ids[rest..]);
                match recorded {
                    Recorded::Submitted => {
                        joint(&mut together, &steps).submit().unwrap();
                    }
                    Recorded::Encoded => {
                        joint(&mut together, &steps).warm_up().unwrap();
                        let mut encoder = gpu().encoder();
                        joint(&mut together, &steps).encode(&mut encoder).unwrap();
                        gpu().submit(encoder);
                    }
                    Recorded::Halves => {
                        let halves: Vec<_> = steps.iter().map(|step| step.norm()).collect();
                        joint(&mut together, &halves).submit().unwrap();
                        let first = &together[0].optimizer;
                        let norm = progress(first).norm;
                        let control = first.control_buffer().unwrap();
                        gpu().queue.write_buffer(control, Optimizer::NORM_OFFSET, &norm.to_le_bytes());
                        let halves: Vec<_> = steps.iter().map(|step| step.after_norm()).collect();
                        joint(&mut together, &halves).submit().unwrap();
                    }
                }
                let case = format!("{control:?}, {members} members, step {step}");
                for engine in &together {
                    assert_eq!(progress(&engine.optimizer), progress(&alone.optimizer), "{case}");
                }
            }
            let expected = bits_of(&alone);
            for (member, engine) in together.iter().enumerate() {
                let own: Vec<_> = expected.iter().skip(member).step_by(members).cloned().collect();
                assert!(bits_of(engine) == own, "{control:?}: optimizer {member} of {members}");
            }
            let of_alone: Vec<_> = alone.ids.iter().map(|&id| alone.optimizer.step_count(id)).collect();
            for (member, engine) in together.iter().enumerate() {
                for (index, &id) in engine.ids.iter().enumerate() {
                    assert_eq!(engine.optimizer.step_count(id), of_alone[members * index + member]);
                }
            }
        }
    }
}

/// Norms of both optimizers together that are past f32, though each is not.
#[test]
fn a_joint_norm_past_f32_clips_as_that_of_one_optimizer() {
    let tensors = [(Kind::f32(), 40), (Kind::f32(), 60)];
    let model = Model::of_kinds(AdaMod::new(), &tensors).with_options(options(controls()[0]));
    let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let mut together: Vec<_> =
        (0..2).map(|member| Engine::new(gpu(), &part_of(&model, member, 2), Layout::TwoPools(16))).collect();
    for _ in 0..3 {
        alone.step(&[Some(&[4e37; 40]), Some(&[4e37; 60])]);
        together[0].write_gradients(&[Some(&[4e37; 40])]);
        together[1].write_gradients(&[Some(&[4e37; 60])]);
        joint(&mut together, &[Step::all(); 2]).submit().unwrap();
    }
    assert_eq!(progress(&alone.optimizer).norm, f32::MAX);
    assert_eq!(progress(&together[1].optimizer), progress(&alone.optimizer));
    assert_eq!([together[0].bits(), together[1].bits()].concat(), alone.bits());
}

/// The first optimizer's loss scale and multiplier hold, whatever the others' were.
#[test]
fn all_follow_the_first() {
    let model = model(controls()[1]);
    let mut together: Vec<_> =
        (0..3).map(|member| Engine::new(gpu(), &part_of(&model, member, 3), Layout::TwoPools(16))).collect();
    let write = |engine: &Engine<'_>, offset, number: f32| {
        let control = engine.optimizer.control_buffer().unwrap();
        gpu().queue.write_buffer(control, offset, &number.to_le_bytes());
    };
    write(&together[0], Optimizer::LOSS_SCALE_OFFSET, 64.0);
    write(&together[0], Optimizer::MULTIPLIER_OFFSET, 0.5);
    write(&together[1], Optimizer::LOSS_SCALE_OFFSET, 2.0);
    write(&together[2], Optimizer::MULTIPLIER_OFFSET, 3.0);
    let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(16));
    write(&alone, Optimizer::LOSS_SCALE_OFFSET, 64.0);
    write(&alone, Optimizer::MULTIPLIER_OFFSET, 0.5);
    let gradients = model.gradients(1);
    alone.step(&all(&gradients));
    for (member, engine) in together.iter().enumerate() {
        let own: Vec<_> = gradients.iter().skip(member).step_by(3).cloned().collect();
        engine.write_gradients(&all(&own));
    }
    joint(&mut together, &[Step::all(); 3]).submit().unwrap();
    let expected = alone.bits();
    for (member, engine) in together.iter().enumerate() {
        assert_eq!(progress(&engine.optimizer), progress(&alone.optimizer));
        assert!(engine.bits() == expected.iter().skip(member).step_by(3).cloned().collect::<Vec<_>>());
    }
}

/// An optimizer without parameters is no hindrance, first or not.
#[test]
fn optimizers_without_parameters_take_part() {
    let model = model(controls()[0]);
    let gradients = model.gradients(3);
    let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(16));
    alone.step(&all(&gradients));
    for place in 0..2 {
        let mut engines = vec![
            Engine::new(gpu(), &model, Layout::TwoPools(16)),
            Engine::empty(gpu(), model.options.clone(), &[]),
        ];
        engines[0].write_gradients(&all(&gradients));
        engines.rotate_left(place);
        joint(&mut engines, &[Step::all(); 2]).submit().unwrap();
        engines.rotate_left(place);
        assert!(engines[0].bits() == alone.bits());
        assert_eq!(progress(&engines[1].optimizer), progress(&alone.optimizer));
    }
}

#[test]
fn optimizers_that_cannot_take_part_are_named_and_nothing_is_recorded() {
    let control = controls()[0];
    let mut model = model(control);
    model.options.label = "first".to_owned();
    let mut first = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let other_gpu = gpu().sibling();
    let refused = |first: &mut Engine<'_>, gpu: &Gpu, options: Options, step: Step<'_>| {
        let mut other = gpu.optimizer(options.with_label("second")).unwrap();
        let error =
            JointStep::new(&mut first.optimizer, Step::all()).with(&mut other, step).submit().unwrap_err();
        assert!(error.to_string().contains("optimizer \"second\" of the joint step"), "{error}");
        match error.kind() {
            ErrorKind::Joint { error, .. } => error.clone(),
            kind => panic!("{kind:?}"),
        }
    };
    assert_eq!(refused(&mut first, &other_gpu, options(control), Step::all()), JointError::Device);
    assert_eq!(refused(&mut first, gpu(), Options::new(), Step::all()), JointError::Host);
    assert_eq!(refused(&mut first, gpu(), options(control), Step::all().norm()), JointError::Half);
    let found = control.with_max_norm(0.5);
    let error = JointError::Control { found: Box::new(found), expected: Box::new(control) };
    assert_eq!(refused(&mut first, gpu(), options(found), Step::all()), error);
    // A parameter of the second that has no views: the first one's step count does not advance.
    let mut second = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let group = second.groups[0];
    second.optimizer.add_parameter(group, adamod::Parameter::new("unseen", 8)).unwrap();
    let before = first.bits();
    let joint = JointStep::new(&mut first.optimizer, Step::all()).with(&mut second.optimizer, Step::all());
    let error = joint.submit().unwrap_err();
    assert_eq!(error.label(), Some("unseen"));
    assert_eq!(first.optimizer.step_count(first.ids[0]), Some(0));
    assert!(first.bits() == before);
    // It works after all that.
    let gradients = model.gradients(0);
    first.step(&all(&gradients));
    let mut alone = Engine::new(gpu(), &model, Layout::TwoPools(16));
    alone.step(&all(&gradients));
    assert!(first.bits() == alone.bits());
}

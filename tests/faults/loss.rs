//! Lost devices: every call returns an error and none panics, and a new device continues from the last checkpoint.

use adamod::{
    AdaMod, Checkpoint, CheckpointError, Control, DeviceControl, Error, ErrorKind, Optimizer, State, Step,
    Update,
};

use crate::common::{Engine, Gpu, Layout, Model, all};
use crate::errors::{Refused as _, checked};
use crate::injection::{Fault, in_child};

const LENGTHS: [usize; 4] = [1, 33, 1025, 5000];
/// Steps before the checkpoint.
const BEFORE: u64 = 3;
/// All steps.
const ALL: u64 = 7;

fn models() -> [Model; 2] {
    [Control::Host, Control::Device(DeviceControl::new())].map(|control| {
        let mut model = Model::new(AdaMod::new(), &LENGTHS);
        model.options.control = control;
        model
    })
}

/// What another device needs to continue.
struct Saved {
    values: Vec<Vec<f32>>,
    /// State of the second tensor.
    state: State,
    checkpoint: Checkpoint,
}

fn train<'g>(gpu: &'g Gpu, model: &Model) -> (Engine<'g>, Saved) {
    let mut engine = Engine::new(gpu, model, Layout::TwoPools(256));
    for step in 0..BEFORE {
        engine.step(&all(&model.gradients(step)));
    }
    let values = (0..LENGTHS.len()).map(|index| engine.values(index)).collect();
    let checkpoint = engine.optimizer.checkpoint().wait().unwrap();
    let state = engine.state(1);
    (engine, Saved { values, state, checkpoint })
}

/// The values and states at the end of a run without a fault.
fn undisturbed(gpu: &Gpu, model: &Model) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let (mut engine, _) = train(gpu, model);
    for step in BEFORE..ALL {
        engine.step(&all(&model.gradients(step)));
    }
    engine.bits()
}

/// Checks that a new device continues with the same bits.
fn assert_continues(gpu: &Gpu, model: &Model, saved: &Saved, expected: &[(Vec<u32>, Vec<Vec<u32>>)]) {
    let mut engine = Engine::new(gpu, model, Layout::TwoPools(256));
    engine.optimizer.restore(&saved.checkpoint).unwrap();
    for (&id, values) in engine.ids.iter().zip(&saved.values) {
        engine.optimizer.write_parameter(id, values).unwrap();
    }
    for step in BEFORE..ALL {
        engine.step(&all(&model.gradients(step)));
    }
    assert!(engine.bits() == expected);
}

/// Whether a read failed because the device is lost. wgpu may report that as a copy that could not be mapped.
fn is_lost_or_unmapped(error: &Error) -> bool {
    error.is_lost() || matches!(error.kind(), ErrorKind::Map(_))
}

/// Checks that every method that needs the device returns an error, and that no step is counted.
fn assert_all_refused(engine: &mut Engine<'_>, model: &Model, saved: &Saved) {
    let gpu = engine.gpu;
    let id = engine.ids[1];
    let counts = |engine: &Engine<'_>| {
        engine.ids.iter().map(|&id| engine.optimizer.step_count(id)).collect::<Vec<_>>()
    };
    let before = counts(engine);
    let buffers = engine.buffers.clone();
    let is_device = engine.optimizer.control_buffer().is_some();
    for _ in 0..2 {
        let mut encoder = gpu.encoder();
        let updates = [Update::new(id, engine.views(1, &buffers))];
        for step in [Step::all(), Step::of(&[id]), Step::at(&updates)] {
            let mut errors = vec![
                engine.optimizer.submit(&step).refused(),
                engine.optimizer.encode(&mut encoder, &step).refused(),
            ];
            if is_device {
                errors.push(engine.optimizer.submit(&step.norm()).refused());
                errors.push(engine.optimizer.submit(&step.after_norm()).refused());
            }
            for error in errors {
                assert!(error.is_lost(), "{step:?}: {error}");
            }
        }
        let optimizer = &engine.optimizer;
        let mut errors = vec![
            optimizer.read_state(id).wait().refused(),
            optimizer.read_parameter(id).wait().refused(),
            optimizer.checkpoint().wait().refused(),
            pollster::block_on(optimizer.checkpoint()).refused(),
        ];
        if is_device {
            errors.push(optimizer.read_progress().wait().refused());
        }
        for error in &errors {
            assert!(is_lost_or_unmapped(error), "{error}");
        }
        let error = engine.optimizer.write_parameter(id, &saved.values[1]).refused();
        assert!(error.is_lost(), "{error}");
        let error = engine.optimizer.write_state(id, &saved.state).refused();
        assert!(error.is_lost(), "{error}");
        let error = engine.optimizer.restore(&saved.checkpoint).refused();
        assert!(matches!(&error, CheckpointError::Optimizer(error) if error.is_lost()), "{error}");
        let error = engine.optimizer.remove_parameter(id).refused();
        assert!(error.is_lost(), "{error}");
        let error = Optimizer::new(&gpu.device, &gpu.queue, model.options.clone()).refused();
        assert!(error.is_lost(), "{error}");
    }
    assert_eq!(counts(engine), before);
    assert_eq!(engine.optimizer.label(id), Some("tensor.1"));
}

#[test]
fn a_device_lost_on_submit_is_an_error_and_the_next_one_continues() {
    in_child("loss::a_device_lost_on_submit_is_an_error_and_the_next_one_continues", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        for model in models() {
            let expected = undisturbed(&gpu, &model);
            for submit in 1..4 {
                let doomed = gpu.sibling();
                let (mut engine, saved) = train(&doomed, &model);
                layer.arm(Fault::LoseOnSubmit(submit));
                let faults = layer.faults();
                let mut taken = 0;
                let error = loop {
                    engine.write_gradients(&all(&model.gradients(BEFORE + taken)));
                    match engine.optimizer.submit(&Step::all()) {
                        Ok(_) => taken += 1,
                        Err(error) => break checked(error),
                    }
                };
                assert_eq!(layer.faults(), faults + 1);
                assert!(error.is_lost(), "{error}");
                assert_eq!(taken, submit - 1);
                assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(BEFORE + taken));
                assert_all_refused(&mut engine, &model, &saved);
                drop(engine);
                assert_continues(&gpu.sibling(), &model, &saved, &expected);
            }
        }
    });
}

#[test]
fn a_device_lost_while_it_is_waited_for_is_an_error_and_not_a_panic() {
    in_child("loss::a_device_lost_while_it_is_waited_for_is_an_error_and_not_a_panic", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        let [model, _] = models();
        let expected = undisturbed(&gpu, &model);
        for query in 1..5 {
            type Read = fn(&Engine<'_>) -> Result<(), Error>;
            let reads: [Read; 3] = [
                |engine| engine.optimizer.read_state(engine.ids[3]).wait().map(drop),
                |engine| engine.optimizer.read_parameter(engine.ids[3]).wait().map(drop),
                |engine| engine.optimizer.checkpoint().wait().map(drop),
            ];
            for read in reads {
                let doomed = gpu.sibling();
                let (mut engine, saved) = train(&doomed, &model);
                layer.arm(Fault::LoseOnQuery(query));
                // The device may finish before it is queried often enough.
                let error = checked((0..10).find_map(|_| read(&engine).err()).expect("the fault"));
                assert!(is_lost_or_unmapped(&error), "{error}");
                layer.arm(Fault::None);
                assert_all_refused(&mut engine, &model, &saved);
                drop(engine);
                assert_continues(&gpu.sibling(), &model, &saved, &expected);
            }
        }
    });
}

/// The caller destroys the device. This test works on every backend.
#[test]
fn a_destroyed_device_is_an_error_and_the_next_one_continues() {
    let gpu = Gpu::with_limits(|limits| limits);
    for model in models() {
        let expected = undisturbed(&gpu, &model);
        let doomed = gpu.sibling();
        let (mut engine, saved) = train(&doomed, &model);
        doomed.device.destroy();
        assert_all_refused(&mut engine, &model, &saved);
        drop(engine);
        assert_continues(&gpu.sibling(), &model, &saved, &expected);
    }
}

/// A future that is pending when the device is lost resolves to an error when it is polled again.
#[test]
fn a_checkpoint_under_way_when_the_device_is_lost_is_an_error() {
    in_child("loss::a_checkpoint_under_way_when_the_device_is_lost_is_an_error", |layer| {
        let doomed = Gpu::with_limits(|limits| limits);
        let [model, _] = models();
        let (mut engine, _) = train(&doomed, &model);
        layer.arm(Fault::Hang);
        let checkpoint = engine.optimizer.checkpoint();
        layer.arm(Fault::LoseOnSubmit(1));
        let error = engine.optimizer.submit(&Step::all()).refused();
        assert!(error.is_lost(), "{error}");
        let error = pollster::block_on(checkpoint).refused();
        assert!(is_lost_or_unmapped(&error), "{error}");
    });
}

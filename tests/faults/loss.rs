//! Devices that are lost: an error each time, never a panic, and a new device goes on from the last checkpoint.

use adamod::{
    Checkpoint, CheckpointError, Control, CreateError, DeviceControl, EncodeError, Hyperparameters,
    Optimizer, ReadError, RemoveError, Rule, Update, WriteError,
};

use crate::common::{Engine, Gpu, Layout, Model, all};
use crate::injection::{Fault, in_child};

const LENGTHS: [usize; 4] = [1, 33, 1025, 5000];
/// Steps before the checkpoint, and in all.
const BEFORE: u64 = 3;
const ALL: u64 = 7;

fn models() -> [Model; 2] {
    [Control::Host, Control::Device(DeviceControl::default())].map(|control| {
        let mut model = Model::new(Rule::AdaMod, Hyperparameters::default(), &LENGTHS);
        model.options.control = control;
        model
    })
}

/// Everything that a continuation needs.
struct Saved {
    values: Vec<Vec<f32>>,
    checkpoint: Checkpoint,
}

fn train<'g>(gpu: &'g Gpu, model: &Model) -> (Engine<'g>, Saved) {
    let mut engine = Engine::new(gpu, model, Layout::TwoPools(256));
    for step in 0..BEFORE {
        engine.step(&all(&model.gradients(step)));
    }
    let values = (0..LENGTHS.len()).map(|index| engine.values(index)).collect();
    let checkpoint = engine.optimizer.checkpoint_blocking().unwrap();
    (engine, Saved { values, checkpoint })
}

/// What a run that nothing happens to ends with.
fn undisturbed(gpu: &Gpu, model: &Model) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let (mut engine, _) = train(gpu, model);
    for step in BEFORE..ALL {
        engine.step(&all(&model.gradients(step)));
    }
    engine.bits()
}

/// A new device goes on with the same bits.
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

/// Every method that needs the device says that it is lost, and nothing is counted.
fn assert_all_refused(engine: &mut Engine<'_>, model: &Model, saved: &Saved) {
    let gpu = engine.gpu;
    let id = engine.ids[1];
    let counts = |engine: &Engine<'_>| {
        engine.ids.iter().map(|&id| engine.optimizer.step_count(id)).collect::<Vec<_>>()
    };
    let before = counts(engine);
    for _ in 0..2 {
        assert!(matches!(engine.optimizer.step(), Err(EncodeError::Lost)));
        let mut encoder = gpu.encoder();
        assert!(matches!(engine.optimizer.encode(&mut encoder), Err(EncodeError::Lost)));
        assert!(matches!(engine.optimizer.encode_present(&mut encoder, &[id]), Err(EncodeError::Lost)));
        let views = engine.locations[1].views(&engine.buffers);
        let update = Update { parameter: id, views };
        assert!(engine.optimizer.encode_views(&mut encoder, &[update]).is_err());
        let error = engine.optimizer.read_state_blocking(id).unwrap_err();
        assert!(matches!(error, ReadError::Lost | ReadError::Map(_)), "{error}");
        let error = engine.optimizer.read_parameter_blocking(id).unwrap_err();
        assert!(matches!(error, ReadError::Lost | ReadError::Map(_)), "{error}");
        let error = engine.optimizer.checkpoint_blocking().unwrap_err();
        assert!(matches!(error, ReadError::Lost | ReadError::Map(_)), "{error}");
        let error = pollster::block_on(engine.optimizer.checkpoint()).unwrap_err();
        assert!(matches!(error, ReadError::Lost | ReadError::Map(_)), "{error}");
        let error = engine.optimizer.write_parameter(id, &saved.values[1]).unwrap_err();
        assert!(matches!(error, WriteError::Lost), "{error}");
        let error = engine.optimizer.restore(&saved.checkpoint).unwrap_err();
        assert!(matches!(error, CheckpointError::Lost), "{error}");
        let error = engine.optimizer.remove_parameter(id).unwrap_err();
        assert!(matches!(error, RemoveError::Lost), "{error}");
        let error = Optimizer::new(&gpu.device, &gpu.queue, model.options).unwrap_err();
        assert!(matches!(error, CreateError::Lost), "{error}");
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
                    match engine.optimizer.step() {
                        Ok(_) => taken += 1,
                        Err(error) => break error,
                    }
                };
                assert_eq!(layer.faults(), faults + 1);
                assert!(matches!(error, EncodeError::Lost), "{error}");
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
            type Read = fn(&Engine<'_>) -> Result<(), ReadError>;
            let reads: [Read; 3] = [
                |engine| engine.optimizer.read_state_blocking(engine.ids[3]).map(drop),
                |engine| engine.optimizer.read_parameter_blocking(engine.ids[3]).map(drop),
                |engine| engine.optimizer.checkpoint_blocking().map(drop),
            ];
            for read in reads {
                let doomed = gpu.sibling();
                let (mut engine, saved) = train(&doomed, &model);
                layer.arm(Fault::LoseOnQuery(query));
                // The device may be done before it is asked so often.
                let error = (0..10).find_map(|_| read(&engine).err()).expect("the fault");
                assert!(matches!(error, ReadError::Lost | ReadError::Map(_)), "{error}");
                layer.arm(Fault::None);
                assert_all_refused(&mut engine, &model, &saved);
                drop(engine);
                assert_continues(&gpu.sibling(), &model, &saved, &expected);
            }
        }
    });
}

/// A device that its owner destroys is lost as any other, on every backend.
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

/// A future that is waiting when the device goes away ends with an error once it is polled again.
#[test]
fn a_checkpoint_under_way_when_the_device_is_lost_is_an_error() {
    in_child("loss::a_checkpoint_under_way_when_the_device_is_lost_is_an_error", |layer| {
        let doomed = Gpu::with_limits(|limits| limits);
        let [model, _] = models();
        let (mut engine, _) = train(&doomed, &model);
        layer.arm(Fault::Hang);
        let checkpoint = engine.optimizer.checkpoint();
        layer.arm(Fault::LoseOnSubmit(1));
        assert!(engine.optimizer.step().is_err());
        let error = pollster::block_on(checkpoint).unwrap_err();
        assert!(matches!(error, ReadError::Lost | ReadError::Map(_)), "{error}");
    });
}

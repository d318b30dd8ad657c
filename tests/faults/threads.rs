//! Several threads: types that can move between them, and work that goes on at the same time.

use std::sync::mpsc;

use adamod::{
    AdaMod, Adam, Checkpoint, CheckpointError, Control, DeviceControl, Error, Optimizer, Options, OutOfRange,
    Progress, RateHistograms, Readback, State, StepCounts, ViewError,
};

use crate::common::{Engine, Gpu, Layout, Model, all, gpu};
use crate::errors::Refused as _;

/// This test passes if it compiles.
#[test]
fn optimizers_checkpoints_and_errors_are_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Optimizer>();
    check::<Options>();
    check::<Checkpoint>();
    check::<State>();
    check::<StepCounts>();
    check::<Error>();
    check::<OutOfRange>();
    check::<ViewError>();
    check::<CheckpointError>();
    check::<Readback<Vec<f32>>>();
    check::<Readback<State>>();
    check::<Readback<Checkpoint>>();
    check::<Readback<Progress>>();
    check::<Readback<RateHistograms>>();
}

fn models() -> [Model; 2] {
    let mut first = Model::new(AdaMod::new(), &[1000, 5, 3000]);
    first.options.control = Control::Device(DeviceControl::new());
    [first, Model::new(Adam::new(), &[2000, 33])]
}

fn train(gpu: &Gpu, model: &Model, steps: u64) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut engine = Engine::new(gpu, model, Layout::TwoPools(256));
    for step in 0..steps {
        engine.step(&all(&model.gradients(step)));
        // An error on one thread does not appear on the other: error scopes belong to threads.
        engine.optimizer.set_learning_rate(engine.groups[0], -1.0).refused();
    }
    engine.bits()
}

#[test]
fn two_optimizers_on_one_device_do_not_disturb_each_other() {
    let models = models();
    let alone: Vec<_> = models.iter().map(|model| train(gpu(), model, 40)).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            models.iter().map(|model| scope.spawn(move || train(gpu(), model, 40))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(alone == together);
}

/// One thread trains and takes checkpoints. Another waits for them, writes them and reads them back.
#[test]
fn a_writer_of_checkpoints_runs_beside_the_training_loop() {
    let [_, model] = models();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let steps = 60;
    let (sender, receiver) = mpsc::channel::<Readback<Checkpoint>>();
    let written: Vec<Checkpoint> = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = Vec::new();
            for pending in receiver {
                let checkpoint = pollster::block_on(pending).unwrap();
                checkpoint.save(&path).unwrap();
                written.push(Checkpoint::load(&path).unwrap());
            }
            written
        });
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
        for step in 0..steps {
            engine.step(&all(&model.gradients(step)));
            if step % 5 == 4 {
                sender.send(engine.optimizer.checkpoint()).unwrap();
            }
        }
        drop(sender);
        // The last checkpoints arrive when the device is polled.
        gpu().device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        writer.join().unwrap()
    });
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut expected = Vec::new();
    for step in 0..steps {
        engine.step(&all(&model.gradients(step)));
        if step % 5 == 4 {
            expected.push(engine.optimizer.checkpoint().wait().unwrap());
        }
    }
    assert!(written == expected);
}

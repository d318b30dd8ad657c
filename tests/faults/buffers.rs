//! Buffers that are destroyed or belong to another device, and submits that fail.

use adamod::{AdaMod, Error, ErrorKind, Step, Update, View, Views};

use crate::common::{Engine, Layout, Model, all, gpu};
use crate::errors::Refused as _;

fn model() -> Model {
    Model::new(AdaMod::new(), &[100, 2000])
}

fn is_of_device(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Device(_))
}

/// The buffer of the gradients is destroyed. Once it is replaced, training continues with the same bits.
#[test]
fn a_submit_that_fails_counts_no_step_and_can_be_repeated() {
    let model = model();
    let (mut engine, mut other) = (
        Engine::new(gpu(), &model, Layout::TwoPools(256)),
        Engine::new(gpu(), &model, Layout::TwoPools(256)),
    );
    let gradients = model.gradients(1);
    engine.step(&all(&gradients));
    other.step(&all(&gradients));
    engine.buffers[1].destroy();
    for _ in 0..2 {
        let error = engine.optimizer.submit(&Step::all()).refused();
        assert!(is_of_device(&error), "{error}");
        assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
    }
    // An engine that submits by itself takes the count back.
    let counts = engine.optimizer.step_counts();
    let mut encoder = gpu().encoder();
    let scope = gpu().device.push_error_scope(wgpu::ErrorFilter::Validation);
    engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
    gpu().submit(encoder);
    assert!(pollster::block_on(scope.pop()).is_some());
    engine.optimizer.rewind(&counts).unwrap();
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));

    engine.buffers[1] = gpu().buffer(other.buffers[1].size());
    for index in 0..2 {
        let views = engine.locations[index].views(&engine.buffers);
        engine.optimizer.set_views(engine.ids[index], views).unwrap();
    }
    let gradients = model.gradients(2);
    engine.step(&all(&gradients));
    other.step(&all(&gradients));
    assert_eq!(engine.bits(), other.bits());
}

#[test]
fn destroyed_buffers_are_errors_of_reads_writes_and_moving_views() {
    let model = model();
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    let (id, state) = (engine.ids[0], engine.state(0));
    engine.buffers[0].destroy();
    let error = engine.optimizer.read_parameter(id).wait().refused();
    assert!(is_of_device(&error) || matches!(error.kind(), ErrorKind::Map(_)), "{error}");
    let error = engine.optimizer.write_parameter(id, &[0.0; 100]).refused();
    assert!(is_of_device(&error), "{error}");
    let gone = gpu().buffer(1024);
    let own = gpu().buffer(1024);
    gone.destroy();
    let update = Update::new(id, Views::new(View::new(&gone, 0), View::new(&own, 0)));
    let error = engine.optimizer.encode(&mut gpu().encoder(), &Step::at(&[update])).refused();
    assert!(is_of_device(&error), "{error}");
    // The state lies in a buffer of the optimizer.
    assert_eq!(engine.state(0), state);
    let (values, gradients) = (gpu().buffer(1024), gpu().buffer(1024));
    let update = Update::new(id, Views::new(View::new(&values, 0), View::new(&gradients, 0)));
    let mut encoder = gpu().encoder();
    engine.optimizer.encode(&mut encoder, &Step::at(&[update])).unwrap();
    gpu().submit(encoder);
    assert_eq!(engine.state(0).step, 2);
}

#[test]
fn buffers_of_another_device_are_errors_when_registered_or_read() {
    let other = gpu().sibling();
    let (foreign, own) = (other.buffer(8192), gpu().buffer(8192));
    let model = model();
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let id = engine.ids[0];
    let buffers = engine.buffers.clone();
    engine.optimizer.set_views(id, Views::new(View::new(&foreign, 0), View::new(&own, 0))).unwrap();
    let error = engine.optimizer.submit(&Step::all()).refused();
    assert!(is_of_device(&error), "{error}");
    let error = engine.optimizer.read_parameter(id).wait().refused();
    assert!(is_of_device(&error) || matches!(error.kind(), ErrorKind::Map(_)), "{error}");
    let error = engine.optimizer.write_parameter(id, &[0.0; 100]).refused();
    assert!(is_of_device(&error), "{error}");
    assert_eq!(engine.optimizer.step_count(id), Some(0));
    engine.optimizer.set_views(id, engine.locations[0].views(&buffers)).unwrap();
    engine.step(&all(&model.gradients(1)));
    assert_eq!(engine.optimizer.step_count(id), Some(1));
}

//! Devices that make no progress, and reads that nobody waits for.

use std::time::Duration;

use adamod::{AdaMod, ErrorKind};

use crate::common::{Engine, Gpu, Layout, Model, all};
use crate::errors::Refused as _;
use crate::injection::{Fault, in_child};

#[test]
fn blocking_reads_give_up_after_the_timeout_and_work_again_later() {
    in_child("hang::blocking_reads_give_up_after_the_timeout_and_work_again_later", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        let mut model = Model::new(AdaMod::new(), &[1, 33, 1025]);
        let limit = Duration::from_millis(200);
        model.options.device_timeout = limit;
        let mut engine = Engine::new(&gpu, &model, Layout::TwoPools(256));
        engine.step(&all(&model.gradients(1)));
        let before = engine.bits();
        layer.arm(Fault::Hang);
        for _ in 0..2 {
            let errors = [
                engine.optimizer.read_state(engine.ids[0]).wait().refused(),
                engine.optimizer.read_parameter(engine.ids[0]).wait().refused(),
                engine.optimizer.checkpoint().wait().refused(),
            ];
            for error in &errors {
                let is_timeout =
                    matches!(*error.kind(), ErrorKind::Timeout { limit: found } if found == limit);
                assert!(is_timeout, "{error}");
            }
            // The first two are about a parameter.
            assert_eq!(errors.map(|error| error.label().is_some()), [true, true, false]);
        }
        // Steps can still be recorded and submitted, and more of them than a ring has slots.
        for step in 2..30 {
            engine.step(&all(&model.gradients(step)));
        }
        layer.arm(Fault::None);
        assert_ne!(engine.bits(), before);
        let mut other = Engine::new(&gpu, &model, Layout::TwoPools(256));
        for step in 1..30 {
            other.step(&all(&model.gradients(step)));
        }
        assert!(engine.bits() == other.bits());
    });
}

#[test]
fn futures_that_are_dropped_disturb_nothing() {
    let gpu = Gpu::with_limits(|limits| limits);
    let model = Model::new(AdaMod::new(), &[33, 1025]);
    let mut engine = Engine::new(&gpu, &model, Layout::TwoPools(256));
    let mut other = Engine::new(&gpu, &model, Layout::TwoPools(256));
    for step in 0..5 {
        engine.step(&all(&model.gradients(step)));
        other.step(&all(&model.gradients(step)));
        drop(engine.optimizer.checkpoint());
        drop(engine.optimizer.read_state(engine.ids[0]));
    }
    assert!(engine.bits() == other.bits());
}

//! The commands of a step as the driver gets them.

use adamod::{AdaMod, Control, DeviceControl, NonFinite, Step};

use crate::common::{Engine, Gpu, Layout, Model, all};
use crate::injection::in_child;

/// 148 tensors of many sizes in two pools.
fn model(control: Control) -> Model {
    let lengths: Vec<usize> = (0..148).map(|index| 1 + index * 37 % 3000).collect();
    let mut model = Model::new(AdaMod::new(), &lengths);
    model.options.control = control;
    model
}

/// A step that the host prepares is one dispatch. The device needs one more to prepare it, with or without a norm. Barriers separate
/// the dispatches, and the step from the one before.
#[test]
fn a_step_over_148_pooled_tensors_is_one_dispatch_and_at_most_two_barriers() {
    in_child("launches::a_step_over_148_pooled_tensors_is_one_dispatch_and_at_most_two_barriers", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        let propagating = DeviceControl::new().with_non_finite(NonFinite::Propagate);
        for (control, dispatches, most_barriers) in [
            (Control::Host, 1, 2),
            (Control::Device(propagating), 2, 2),
            (Control::Device(DeviceControl::new()), 2, 2),
        ] {
            let model = model(control);
            let mut engine = Engine::new(&gpu, &model, Layout::TwoPools(256));
            engine.step(&all(&model.gradients(1)));
            engine.optimizer.submit(&Step::all()).unwrap();
            let before = layer.submits().len();
            for _ in 0..3 {
                engine.optimizer.submit(&Step::all()).unwrap();
            }
            let steps = &layer.submits()[before..];
            println!("{control:?}: {steps:?}");
            assert_eq!(steps.len(), 3);
            for step in steps {
                assert_eq!(step.dispatches, dispatches, "{control:?}");
                assert!(step.barriers <= most_barriers, "{control:?}: {step:?}");
            }
            // Ten steps in one encoder have ten times as many. The first time, rings grow.
            let mut ten_in_one = || {
                let mut encoder = gpu.encoder();
                for _ in 0..10 {
                    engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
                }
                let before = layer.submits().len();
                gpu.submit(encoder);
                gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
                layer.submits()[before]
            };
            ten_in_one();
            let together = ten_in_one();
            println!("{control:?}, ten in one encoder: {together:?}");
            assert_eq!(together.dispatches, 10 * dispatches);
            assert!(together.barriers <= 10 * most_barriers, "{together:?}");
        }
    });
}

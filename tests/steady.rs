//! The steady path: recording a step allocates the same for one tensor and for thousands. Counted, not timed.

mod common;

use adamod::{Control, DeviceControl, Hyperparameters, Rule};

use common::{Engine, Layout, Model, all, gpu};

/// Least allocations, and least bytes, over several steady steps; containers within wgpu grow now and then.
fn steady_allocations(tensors: usize, control: Control) -> (u64, u64) {
    let mut model = Model::new(Rule::AdaMod, Hyperparameters::default(), &vec![256; tensors]);
    model.options.control = control;
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    let counts = (0..20).map(|_| {
        let measured = allocation_counter::measure(|| {
            engine.optimizer.step().unwrap();
        });
        gpu().device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        (measured.count_total, measured.bytes_total)
    });
    counts.skip(10).reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))).unwrap()
}

#[test]
fn a_steady_step_allocates_the_same_for_one_tensor_and_for_thousands() {
    for control in [Control::Host, Control::Device(DeviceControl::default())] {
        let one = steady_allocations(1, control);
        for tensors in [148, 3000] {
            assert_eq!(steady_allocations(tensors, control), one, "{tensors} tensors, {control:?}");
        }
    }
}

#[test]
fn optimizers_can_be_sent_to_and_shared_between_threads() {
    fn assert_send_and_sync<T: Send + Sync>() {}
    assert_send_and_sync::<adamod::Optimizer>();
}

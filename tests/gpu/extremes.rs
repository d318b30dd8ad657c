//! Numbers at the edges of f32 in steps that the device prepares: loss scales, clips, norms, multipliers and step counts.

use adamod::{
    AdaMod, Adam, Control, DeviceControl, ErrorKind, Hyperparameters, LossScale, NonFinite, Optimizer,
    Options, Parameter, ParameterId, Progress, Sgd, State, Step, View, Views, reference::Reference,
};

use crate::common::gpu;

/// An optimizer of one parameter, whose gradients follow its values in one buffer.
struct One {
    optimizer: Optimizer,
    id: ParameterId,
    buffer: wgpu::Buffer,
    len: usize,
}

impl One {
    fn new(control: DeviceControl, hyperparameters: impl Into<Hyperparameters>, values: &[f32]) -> Self {
        let options = Options::new().with_control(Control::Device(control));
        let mut optimizer = gpu().optimizer(options).unwrap();
        let group = optimizer.add_group(hyperparameters.into()).unwrap();
        let bytes = 4 * values.len() as u64;
        let buffer = gpu().buffer(2 * bytes);
        let views = Views::new(View::new(&buffer, 0), View::new(&buffer, bytes));
        let parameter = Parameter::new("p", values.len() as u64).with_views(views);
        let id = optimizer.add_parameter(group, parameter).unwrap();
        optimizer.write_parameter(id, values).unwrap();
        Self { optimizer, id, buffer, len: values.len() }
    }

    fn write_gradient(&self, gradient: &[f32]) {
        gpu().queue.write_buffer(&self.buffer, 4 * self.len as u64, bytemuck::cast_slice(gradient));
    }

    fn step(&mut self, gradient: &[f32]) -> Vec<f32> {
        self.write_gradient(gradient);
        self.optimizer.submit(&Step::all()).unwrap();
        self.values()
    }

    fn values(&self) -> Vec<f32> {
        self.optimizer.read_parameter(self.id).wait().unwrap()
    }

    fn progress(&self) -> Progress {
        self.optimizer.read_progress().wait().unwrap()
    }

    fn write_control(&self, offset: u64, value: f32) {
        let control = self.optimizer.control_buffer().unwrap();
        gpu().queue.write_buffer(control, offset, &value.to_le_bytes());
    }
}

/// SGD whose step is the gradient.
fn plain() -> Hyperparameters {
    Hyperparameters::from(Sgd::new().with_momentum(0.0)).with_learning_rate(1.0)
}

fn assert_close(found: &[f32], expected: &[f32]) {
    for (found, expected) in found.iter().zip(expected) {
        // Two roundings of a division and one of a product: 4e-7.
        assert!((found / expected - 1.0).abs() <= 1e-6, "{found:e}, expected {expected:e}");
    }
}

#[test]
fn a_loss_scale_stays_where_its_reciprocal_is_normal() {
    for scale in [2_f64.powi(127), 2_f64.powi(-127), f64::INFINITY, 0.0, -1.0] {
        let control = DeviceControl::new().with_loss_scale(LossScale::Constant(scale));
        let options = Options::new().with_control(Control::Device(control));
        let error = gpu().optimizer(options).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutOfRange(of) if of.name == "loss_scale"), "{error}");
    }
    let (initial, most) = (2_f32.powi(124), 2_f32.powi(126));
    let growing = LossScale::Dynamic {
        initial: initial.into(),
        growth_factor: 8.0,
        backoff_factor: 0.5,
        growth_interval: 1,
    };
    let mut one = One::new(DeviceControl::new().with_loss_scale(growing), plain(), &[1.0, 2.0]);
    // Each gradient is 1 and -0.5 times the scale.
    assert_eq!(one.step(&[initial, -0.5 * initial]), [0.0, 2.5]);
    for step in 1..4 {
        assert_eq!(one.progress().loss_scale, most);
        let moved = step as f32;
        assert_eq!(one.step(&[most, -0.5 * most]), [-moved, 2.5 + 0.5 * moved]);
    }
    assert_eq!((one.progress().taken, one.progress().skipped), (4, 0));
}

#[test]
fn a_clip_and_a_loss_scale_whose_product_is_subnormal_still_step() {
    for max_norm in [1e-3, 1e-8, 1e-20] {
        let control =
            DeviceControl::new().with_max_norm(max_norm).with_loss_scale(LossScale::Constant(65_536.0));
        let mut one = One::new(control, plain(), &[0.0, 0.0]);
        // The norm without the loss scale is 5e30.
        let values = one.step(&[3e30 * 65_536.0, -4e30 * 65_536.0]);
        assert_close(&values, &[-0.6 * max_norm as f32, 0.8 * max_norm as f32]);
        assert_close(&[one.progress().norm], &[5e30]);
    }
}

#[test]
fn finite_gradients_whose_norm_overflows_are_clipped_like_others() {
    let gradient = vec![1e38; 100];
    let mut one = One::new(DeviceControl::new().with_max_norm(1.0), plain(), &[0.0; 100]);
    assert_close(&one.step(&gradient), &[-0.1; 100]);
    let progress = one.progress();
    assert_eq!((progress.taken, progress.skipped, progress.norm), (1, 0, f32::MAX));

    // Without a clip they are stepped as they are. The learning rate is a normal number, which no device flushes.
    let mut one = One::new(DeviceControl::new(), plain().with_learning_rate(2e-38), &[0.0; 100]);
    assert_close(&one.step(&gradient), &[-2.0; 100]);
    // A gradient that is not finite is skipped, as ever.
    let mut gradient = gradient;
    gradient[7] = f32::INFINITY;
    assert_close(&one.step(&gradient), &[-2.0; 100]);
    assert_eq!((one.progress().taken, one.progress().skipped), (1, 1));
    assert_eq!(one.progress().norm, f32::INFINITY);
}

#[test]
fn a_multiplier_or_a_norm_that_is_not_finite_skips_the_step() {
    for wrong in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut one = One::new(DeviceControl::new().with_max_norm(1e3), AdaMod::new(), &[1.0, 2.0]);
        one.write_control(Optimizer::MULTIPLIER_OFFSET, wrong);
        assert_eq!(one.step(&[1.0, 1.0]), [1.0, 2.0]);
        one.write_control(Optimizer::MULTIPLIER_OFFSET, 1.0);

        one.write_gradient(&[1.0, 1.0]);
        one.optimizer.submit(&Step::all().norm()).unwrap();
        one.write_control(Optimizer::NORM_OFFSET, wrong);
        one.optimizer.submit(&Step::all().after_norm()).unwrap();
        assert_eq!(one.values(), [1.0, 2.0]);
        assert_eq!((one.progress().taken, one.progress().skipped), (0, 2));

        let values = one.step(&[1.0, 1.0]);
        assert!(values[0] < 1.0 && values.iter().all(|value| value.is_finite()), "{values:?}");
        assert_eq!(one.optimizer.read_state(one.id).wait().unwrap().step, 1);
    }
}

#[test]
fn a_multiplier_scales_gradients_with_and_without_a_clip() {
    let mut one = One::new(DeviceControl::new(), plain(), &[0.0, 0.0]);
    one.write_control(Optimizer::MULTIPLIER_OFFSET, 0.25);
    assert_eq!(one.step(&[4.0, -8.0]), [-1.0, 2.0]);
    // A product below f32's normal numbers: 2^-100 / 2^100.
    let control = DeviceControl::new().with_loss_scale(LossScale::Constant(2_f64.powi(100)));
    let mut one = One::new(control, plain(), &[0.0, 0.0]);
    one.write_control(Optimizer::MULTIPLIER_OFFSET, -2_f32.powi(-100));
    assert_eq!(one.step(&[2_f32.powi(127), -2_f32.powi(120)]), [2_f32.powi(-73), -2_f32.powi(-80)]);
}

#[test]
fn the_step_of_an_element_whose_second_moment_vanishes_is_finite() {
    let adam = |epsilon: f64| Hyperparameters::from(Adam::new().with_betas([0.9, 0.0]).with_epsilon(epsilon));
    let error = adam(1e-30).with_learning_rate(0.1).validate().unwrap_err();
    assert_eq!(error.name, "learning_rate / (1 - betas[0]) / epsilon");
    // 0.1 / 0.1 / 5.5e-20 is just below 2^64.
    let hyperparameters = adam(5.5e-20).with_learning_rate(0.1);
    hyperparameters.validate().unwrap();
    let control = DeviceControl::new().with_non_finite(NonFinite::Propagate);
    let mut one = One::new(control, hyperparameters, &[1.0, 1.0]);
    let mut twin = Reference::<f32>::new();
    let group = twin.add_group(hyperparameters);
    let parameter = twin.add_parameter(group, vec![1.0, 1.0]);
    for gradient in [[f32::MAX, 1.0], [0.0, 0.0], [f32::MIN, 0.0]] {
        let values = one.step(&gradient);
        twin.step(&[Some(&gradient)]);
        assert!(values.iter().chain(twin.values(parameter)).all(|value| value.is_finite()), "{values:?}");
    }
}

#[test]
fn step_counts_stop_at_the_largest_number() {
    let mut one = One::new(DeviceControl::new(), AdaMod::new(), &[1.0]);
    let states = ["exp_avg", "exp_avg_sq", "exp_avg_lr"];
    let state = State::new(u64::from(u32::MAX) - 1, states.map(|name| (name, vec![0.5])).to_vec());
    one.optimizer.write_state(one.id, &state).unwrap();
    let mut before = 1.0;
    for _ in 0..3 {
        let values = one.step(&[1.0]);
        assert!(values[0] < before, "{values:?}");
        before = values[0];
        assert_eq!(one.optimizer.read_state(one.id).wait().unwrap().step, u64::from(u32::MAX));
    }
}

#[test]
fn the_largest_norm_may_change_and_be_off() {
    let mut one = One::new(DeviceControl::new(), plain(), &[0.0, 0.0]);
    assert_eq!(one.step(&[3.0, 4.0]), [-3.0, -4.0]);
    // Steps recorded before one submit each have the norm of their moment.
    one.write_gradient(&[3.0, 4.0]);
    let mut encoder = gpu().encoder();
    for max_norm in [Some(2.5), None, Some(10.0), Some(1.25)] {
        one.optimizer.set_max_norm(max_norm).unwrap();
        one.optimizer.encode(&mut encoder, &Step::all()).unwrap();
    }
    gpu().submit(encoder);
    let steps = 1.0 + 0.5 + 1.0 + 1.0 + 0.25;
    assert_eq!(one.values(), [-3.0 * steps, -4.0 * steps]);
    let error = one.optimizer.set_max_norm(Some(0.0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfRange(of) if of.name == "max_norm"), "{error}");
    let control = DeviceControl::new().with_non_finite(NonFinite::Propagate);
    let mut without = One::new(control, plain(), &[0.0]);
    let error = without.optimizer.set_max_norm(Some(1.0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoNorm), "{error}");
    assert_eq!(without.step(&[1.0]), [-1.0]);
}

#[test]
fn skipped_steps_in_a_row_are_counted_and_the_scale_stays_above_its_least() {
    let control = DeviceControl::new().with_loss_scale(LossScale::DYNAMIC).with_least_loss_scale(16_384.0);
    let mut one = One::new(control, plain(), &[0.0]);
    for (gradient, in_a_row, scale) in [
        (f32::NAN, 1, 32_768.0),
        (f32::INFINITY, 2, 16_384.0),
        (f32::NAN, 3, 16_384.0),
        (1.0, 0, 16_384.0),
        (f32::NAN, 1, 16_384.0),
    ] {
        one.step(&[gradient]);
        let progress = one.progress();
        assert_eq!((progress.skipped_in_a_row, progress.loss_scale), (in_a_row, scale));
    }
    assert_eq!((one.progress().taken, one.progress().skipped), (1, 4));
}

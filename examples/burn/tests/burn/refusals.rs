//! After an error the module is as it was, and the optimizer works.

use std::process::Command;

use adamod_burn::adamod::{
    CheckpointError, Control, DeviceControl, ErrorKind, LossScale, MasterWeights, Options,
};
use adamod_burn::{Error, FusedConfig, FusedOptimizer, Gpu, StepError};
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{DType, Device, DeviceKind, FloatDType, Tensor};

use crate::common::{
    Network, Ranks, adamod, assert_same, device, gpu, hyperparameters, optimizer, parameter, values, wave,
};

#[derive(Module, Debug)]
struct Vector {
    weight: Param<Tensor<1>>,
}

impl Vector {
    fn new(elements: usize) -> Self {
        Self { weight: parameter(wave(&[elements], 0.0, &device())) }
    }

    fn with(self, gradient: Tensor<1>) -> (Self, GradientsParams) {
        let mut gradients = GradientsParams::new();
        gradients.register(self.weight.id, gradient);
        (self, gradients)
    }
}

fn is_of_the_core(error: &Error, is_kind: impl Fn(&ErrorKind) -> bool) -> bool {
    matches!(error, Error::Core(of) if is_kind(of.kind()))
}

fn gradient(elements: usize) -> Tensor<1> {
    wave(&[elements], 1.0, &gpu().device())
}

/// Asserts that the module of a refused step is unchanged, and that it steps with the same optimizer.
fn still_steps(mut optimizer: FusedOptimizer, error: StepError<Vector>, before: &[(String, Vec<f32>)]) {
    let (module, _) = error.into_parts();
    assert_same(&values(&module), before, "refused");
    let (module, gradients) = module.with(gradient(8));
    let module = optimizer.step(1e-3, module, gradients).expect("a step");
    assert_ne!(before, values(&module));
}

#[test]
fn a_gradient_of_another_shape() {
    let mut optimizer = adamod();
    let (module, gradients) = Vector::new(8).with(gradient(9));
    let before = values(&module);
    let error = optimizer.step(1e-3, module, gradients).expect_err("another shape");
    assert!(matches!(error.error(), Error::Shape { label, .. } if label == "weight"), "{error}");
    still_steps(optimizer, error, &before);
}

#[test]
fn a_learning_rate_that_is_not_a_number() {
    let mut optimizer = adamod();
    let (module, gradients) = Vector::new(8).with(gradient(8));
    let before = values(&module);
    let error = optimizer.step(f64::NAN, module, gradients).expect_err("not a number");
    assert!(
        is_of_the_core(error.error(), |kind| {
            matches!(kind, ErrorKind::OutOfRange(of) if of.name == "learning_rate")
        }),
        "{error}"
    );
    still_steps(optimizer, error, &before);
}

#[test]
fn a_parameter_that_has_grown() {
    let mut optimizer = adamod();
    let (module, gradients) = Vector::new(8).with(gradient(8));
    let small = optimizer.step(1e-3, module, gradients).expect("a step");
    let (large, gradients) = Vector::new(9).with(gradient(9));
    let error = optimizer.step(1e-3, large, gradients).expect_err("another length");
    assert!(matches!(error.error(), Error::Changed { label, .. } if label == "weight"), "{error}");
    let (small, gradients) = small.with(gradient(8));
    optimizer.step(1e-3, small, gradients).expect("a step");
}

#[test]
fn a_half_without_master_weights() {
    let mut optimizer = adamod();
    let half = |tensor: Tensor<1>| tensor.cast(FloatDType::F16);
    let weight = parameter(half(wave(&[8], 0.0, &gpu().device())).autodiff());
    let (module, gradients) = Vector { weight }.with(half(gradient(8)));
    assert_eq!(module.weight.val().dtype(), DType::F16);
    let before = values(&module);
    let error = optimizer.step(1e-3, module, gradients).expect_err("no master weights");
    assert!(
        is_of_the_core(error.error(), |kind| {
            matches!(kind, ErrorKind::MasterWeights { found: MasterWeights::None, .. })
        }),
        "{error}"
    );
    assert!(matches!(error.error(), Error::Core(of) if of.label() == Some("weight")), "{error}");
    let (module, _) = error.into_parts();
    assert_same(&values(&module), &before, "refused");
}

#[test]
fn a_device_that_was_opened_before_is_opened_again() {
    let again = Gpu::open(DeviceKind::DefaultDevice).expect("the same device");
    assert_eq!(again.wgpu_device(), gpu().wgpu_device());
}

/// Set in the process whose first tensor opens the device.
const CHILD: &str = "ADAMOD_BURN_OPENS_BY_A_TENSOR";

#[test]
fn a_device_that_a_tensor_has_opened() {
    if std::env::var_os(CHILD).is_some() {
        Tensor::<1>::zeros([3], &Device::default()).into_data();
        let error = Gpu::open(DeviceKind::DefaultDevice).expect_err("opened before");
        assert!(matches!(error, Error::InUse { kind: DeviceKind::DefaultDevice, .. }), "{error}");
        assert!(error.to_string().contains("call Gpu::open before the first tensor"), "{error}");
        return;
    }
    let name = "refusals::a_device_that_a_tensor_has_opened";
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("a process");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn clipping_of_tensors_with_a_loss_scale() {
    let control = DeviceControl::new().with_loss_scale(LossScale::DYNAMIC);
    let options = Options::new().with_control(Control::Device(control));
    let config = AdamConfig::new().with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)));
    let error = config.init_fused_with(gpu(), options.clone()).expect_err("a loss scale");
    assert!(matches!(error, Error::ClippingWithLossScale { .. }), "{error}");
    let mut optimizer = FusedOptimizer::new(gpu(), options).expect("an optimizer");
    let group = optimizer.add_group(hyperparameters(), |_| true).expect("a group");
    let error =
        optimizer.set_grad_clipping(group, Some(GradientClipping::Value(1.0))).expect_err("a loss scale");
    assert!(matches!(error, Error::ClippingWithLossScale { .. }), "{error}");
    optimizer.set_grad_clipping(group, None).expect("no clipping");
}

#[test]
fn zeroed_gradients() {
    let options = Options::new().with_zero_gradients(true);
    let error = FusedOptimizer::new(gpu(), options).expect_err("zeroed gradients");
    assert!(matches!(error, Error::ZeroedGradients), "{error}");
}

#[test]
fn a_multiplier_that_is_not_finite_or_without_device_control() {
    let error = adamod().set_gradient_multiplier(1.0).expect_err("no control");
    assert!(is_of_the_core(&error, |kind| matches!(kind, ErrorKind::NoControl)), "{error}");
    let options = Options::new().with_control(Control::Device(DeviceControl::new()));
    let mut optimizer = optimizer(options, hyperparameters());
    let error = optimizer.set_gradient_multiplier(f32::NAN).expect_err("not a number");
    assert!(matches!(error, Error::Multiplier { found } if found.is_nan()), "{error}");
    optimizer.set_gradient_multiplier(0.5).expect("a multiplier");
}

#[test]
fn a_checkpoint_of_another_module() {
    let mut of_ranks = adamod();
    let ranks = Ranks::new(&device());
    let gradients = ranks.gradients(0);
    of_ranks.step(1e-3, ranks, gradients).expect("a step");
    let checkpoint = of_ranks.checkpoint().expect("a checkpoint");

    let mut optimizer = adamod();
    let network = Network::new(&device());
    let error = optimizer.restore(&checkpoint, &network).expect_err("another module");
    let extra = |of: &Error| matches!(of, Error::Checkpoint(CheckpointError::ExtraParameter { .. }));
    assert!(extra(&error), "{error}");
    let gradients = network.gradients(0);
    optimizer.step(1e-3, network, gradients).expect("a step");
}

#[test]
fn a_refused_step_converts_into_every_error_type() {
    fn boxed(optimizer: &mut FusedOptimizer) -> Result<Vector, Box<dyn std::error::Error + Send + Sync>> {
        let (module, gradients) = Vector::new(8).with(gradient(9));
        Ok(optimizer.step(1e-3, module, gradients)?)
    }
    fn own(optimizer: &mut FusedOptimizer) -> Result<Vector, Error> {
        let (module, gradients) = Vector::new(8).with(gradient(9));
        Ok(optimizer.step(1e-3, module, gradients)?)
    }
    let mut optimizer = optimizer(Options::new(), hyperparameters());
    assert!(boxed(&mut optimizer).is_err_and(|error| error.to_string().contains("shape")));
    assert!(matches!(own(&mut optimizer), Err(Error::Shape { .. })));
}

//! Formats, rules and control: steps have the bits of the core.

use adamod_burn::adamod::{
    self, Control, DeviceControl, Diagnostics, Formula, Group, Hyperparameters, MasterWeights, Options,
    Parameter, ParameterId, Precision, Rule, RuleKind, Sgd, StateFormat, Step, View, Views, wgpu,
};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};

use crate::common::{
    Ranks, WEIGHT_DECAY, assert_same, device, elements, gpu, hyperparameters, optimizer, rule, stored,
    values, wave,
};

const LEARNING_RATE: f64 = 2e-3;
const STEPS: usize = 4;

/// The core alone, with the tensors and gradients of [`Ranks`].
struct Core {
    optimizer: adamod::Optimizer,
    parameters: Vec<(String, ParameterId, wgpu::Buffer)>,
}

impl Core {
    fn new(options: Options, group: Group, tensors: &[(String, Vec<f32>)]) -> Self {
        let (device, queue) = (gpu().wgpu_device(), gpu().wgpu_queue());
        let mut optimizer = adamod::Optimizer::new(device, queue, options).expect("an optimizer");
        let group = optimizer.add_group(group).expect("a group");
        optimizer.set_learning_rate(group, LEARNING_RATE).expect("a rate");
        let parameters = tensors
            .iter()
            .map(|(path, elements)| {
                let buffer = || {
                    device.create_buffer(&wgpu::BufferDescriptor {
                        label: None,
                        size: 4 * elements.len() as u64,
                        usage: wgpu::BufferUsages::STORAGE
                            | wgpu::BufferUsages::COPY_SRC
                            | wgpu::BufferUsages::COPY_DST,
                        mapped_at_creation: false,
                    })
                };
                let (values, gradients) = (buffer(), buffer());
                let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
                let parameter = Parameter::new(path, elements.len() as u64).with_views(views);
                let parameter = optimizer.add_parameter(group, parameter).expect("a parameter");
                optimizer.write_parameter(parameter, elements).expect("values");
                (path.clone(), parameter, gradients)
            })
            .collect();
        Self { optimizer, parameters }
    }

    fn step(&mut self, gradients: &[Vec<f32>]) {
        for ((_, _, buffer), elements) in self.parameters.iter().zip(gradients) {
            let bytes: Vec<u8> = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
            gpu().wgpu_queue().write_buffer(buffer, 0, &bytes);
        }
        self.optimizer.submit(&Step::all()).expect("a step");
    }

    fn values(&self) -> Vec<(String, Vec<f32>)> {
        let read = |parameter| self.optimizer.read_parameter(parameter).wait().expect("values");
        self.parameters.iter().map(|(path, parameter, _)| (path.clone(), read(*parameter))).collect()
    }
}

/// The gradients of a step, in the order of `values`.
fn gradients_of(module: &Ranks, step: usize) -> Vec<Vec<f32>> {
    let mut gradients = module.gradients(step);
    let bias = module.convolution.bias.as_ref().expect("a bias").id;
    let take = |found: Option<Vec<f32>>| found.expect("a gradient");
    vec![
        take(gradients.remove::<1>(module.vector.id).map(elements)),
        take(gradients.remove::<2>(module.matrix.id).map(elements)),
        take(gradients.remove::<3>(module.cube.id).map(elements)),
        take(gradients.remove::<4>(module.convolution.weight.id).map(elements)),
        take(gradients.remove::<1>(bias).map(elements)),
    ]
}

fn norm_of(tensors: &[Vec<f32>]) -> f64 {
    tensors.iter().flatten().map(|element| f64::from(*element).powi(2)).sum::<f64>().sqrt()
}

fn assert_bits_of_the_core(options: &Options, group: Group) {
    let mut module = Ranks::new(&device());
    let mut core = Core::new(options.clone(), group, &values(&module));
    let mut fused = optimizer(options.clone(), group);
    for step in 0..STEPS {
        core.step(&gradients_of(&module, step));
        let gradients = module.gradients(step);
        module = fused.step(LEARNING_RATE, module, gradients).expect("a step");
        let what = format!("{options:?} {group:?}, step {step}");
        assert_same(&values(&module), &core.values(), &what);
    }
}

#[test]
fn every_rule_and_format_of_state_has_the_bits_of_the_core() {
    let rules = RuleKind::ALL.iter().map(|kind| match kind {
        RuleKind::AdaMod => rule().into(),
        other => other.with_defaults(),
    });
    let authors: Rule = rule().with_formula(Formula::AuthorsCode).into();
    for rule in rules.chain([authors]) {
        for state in StateFormat::ALL {
            let group = Group::new(Hyperparameters::from(rule).with_weight_decay(WEIGHT_DECAY))
                .with_precision(Precision::new(state).with_f32_state_below(16));
            assert_bits_of_the_core(&Options::new().with_seed(3), group);
        }
    }
}

#[test]
fn steps_that_the_device_controls_have_the_bits_of_the_core() {
    let options = Options::new().with_control(Control::Device(DeviceControl::new()));
    assert_bits_of_the_core(&options, hyperparameters().into());
}

#[test]
fn a_clip_to_a_global_norm_bounds_the_update() {
    // SGD without momentum: the update is the rate times the clipped gradient.
    let options = Options::new().with_control(Control::Device(DeviceControl::new().with_max_norm(1.0)));
    let module = Ranks::new(&device());
    let before = values(&module);
    let mut fused = optimizer(options, Sgd::new().with_momentum(0.0));
    let gradients = module.gradients(0);
    let module = fused.step(0.5, module, gradients).expect("a step");
    let squares: f64 = before
        .iter()
        .zip(&values(&module))
        .flat_map(|((_, before), (_, after))| before.iter().zip(after))
        .map(|(before, after)| f64::from(after - before).powi(2))
        .sum();
    assert!((squares.sqrt() - 0.5).abs() < 1e-4, "{}", squares.sqrt());
    let progress = fused.progress().expect("progress");
    assert_eq!(progress.taken, 1);
    let norm = norm_of(&gradients_of(&module, 0));
    assert!(norm > 10.0 && (f64::from(progress.norm) - norm).abs() < 1e-5 * norm, "{progress:?} {norm}");
}

#[test]
fn a_step_with_a_gradient_that_is_not_finite_is_skipped() {
    let options = Options::new().with_control(Control::Device(DeviceControl::new()));
    let mut fused = optimizer(options, hyperparameters());
    let module = Ranks::new(&device());
    let before = values(&module);
    let mut gradients = module.gradients(0);
    gradients.register(module.vector.id, wave(&[7], 0.0, &gpu().device()).mul_scalar(f32::INFINITY));
    let module = fused.step(LEARNING_RATE, module, gradients).expect("a step");
    assert_same(&values(&module), &before, "skipped");
    assert_eq!(fused.progress().expect("progress").skipped, 1);
}

#[test]
fn learning_rates_are_counted_for_every_element_and_step() {
    let options = Options::new().with_diagnostics(Diagnostics::RateHistograms);
    let mut fused = optimizer(options, hyperparameters());
    let mut module = Ranks::new(&device());
    for step in 0..STEPS {
        let gradients = module.gradients(step);
        module = fused.step(LEARNING_RATE, module, gradients).expect("a step");
    }
    let elements: usize = values(&module).iter().map(|(_, values)| values.len()).sum();
    let rates = fused.take_rate_histograms().expect("rates");
    assert_eq!(rates.eta.iter().sum::<u64>(), (STEPS * elements) as u64);
    assert_eq!(fused.take_rate_histograms().expect("rates").eta.iter().sum::<u64>(), 0);
}

#[test]
fn halves_with_master_weights_step_as_f32() {
    #[derive(Module, Debug)]
    struct Half {
        weight: Param<Tensor<1>>,
    }
    // Both start from the same halves.
    let half = |tensor: Tensor<1>| tensor.cast(FloatDType::F16);
    let at = |phase| half(wave(&[1031], phase, &gpu().device()));
    let group = stored(Precision::default().with_master_weights(MasterWeights::F32));
    let mut fused = optimizer(Options::new(), group);
    let mut of_f32 = optimizer(Options::new(), group);
    let mut module = Half { weight: Param::from_tensor(at(0.0).autodiff()) };
    let mut wide = Half { weight: Param::from_tensor(at(0.0).cast(FloatDType::F32).autodiff()) };
    for step in 0..STEPS {
        let gradient = at(step as f32 + 1.0);
        let mut gradients = GradientsParams::new();
        gradients.register(module.weight.id, gradient.clone());
        module = fused.step(LEARNING_RATE, module, gradients).expect("a step");
        let mut gradients = GradientsParams::new();
        gradients.register(wide.weight.id, gradient.cast(FloatDType::F32));
        wide = of_f32.step(LEARNING_RATE, wide, gradients).expect("a step");
    }
    assert_eq!(elements(module.weight.val()), elements(half(wide.weight.val().inner())));
}

/// Burn has no bf16 in WGSL, but tensors from the host or a file may have it, and go back there.
#[test]
fn bf16_with_master_weights_steps_as_f32() {
    #[derive(Module, Debug)]
    struct Half {
        weight: Param<Tensor<1>>,
    }
    let rounded = |elements: Vec<f32>| TensorData::new(elements, [1031]).convert_dtype(DType::BF16);
    let data = |phase: f32| rounded((0..1031).map(|i| (0.7 * i as f32 + phase).sin()).collect());
    let of = |phase, dtype: DType| {
        Tensor::<1>::from_data(data(phase).convert_dtype(dtype), (&gpu().device(), dtype))
    };
    let group = stored(Precision::default().with_master_weights(MasterWeights::F32));
    let [found, expected] = [DType::BF16, DType::F32].map(|dtype| {
        let mut fused = optimizer(Options::new(), group);
        let mut module = Half { weight: Param::from_tensor(of(0.0, dtype).autodiff()) };
        for step in 0..STEPS {
            let mut gradients = GradientsParams::new();
            gradients.register(module.weight.id, of(step as f32 + 1.0, dtype));
            module = fused.step(LEARNING_RATE, module, gradients).expect("a step");
        }
        assert_eq!(module.weight.val().dtype(), dtype);
        elements(module.weight.val())
    });
    assert_ne!(found, expected);
    let expected = rounded(expected).convert::<f32>().try_into_vec::<f32>().expect("f32 elements");
    assert_eq!(found, expected);
}

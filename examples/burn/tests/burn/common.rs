//! A device, two modules, optimizers, and reads of tensors.

use std::sync::LazyLock;

use adamod_burn::adamod::{AdaMod, Group, Hyperparameters, Options, Precision, WeightDecay};
use adamod_burn::{FusedOptimizer, Gpu, operations};
use burn::backend::Backend;
use burn::backend::wgpu::{AutoCompiler, CubeBackend, CubeTensor, Wgpu, wgpu};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, DeviceKind, Tensor, TensorData, activation};
use burn_fusion::{Fusion, FusionBackend};

/// The device of all tests.
pub fn gpu() -> &'static Gpu {
    static GPU: LazyLock<Gpu> =
        LazyLock::new(|| Gpu::open(DeviceKind::DefaultDevice).expect("an adapter and Burn's runtime on it"));
    &GPU
}

/// The device that tests train on.
pub fn device() -> Device {
    gpu().device().autodiff()
}

/// A small network.
#[derive(Module, Debug)]
pub struct Network {
    pub layers: Vec<Linear>,
    pub output: Linear,
}

impl Network {
    pub fn new(device: &Device) -> Self {
        let layer = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        seeded(Self { layers: vec![layer(5, 24), layer(24, 33)], output: layer(33, 3) })
    }

    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        let hidden = self.layers.iter().fold(input, |x, layer| activation::tanh(layer.forward(x)));
        self.output.forward(hidden)
    }

    /// Loss of the batch of a step.
    pub fn loss(&self, step: usize) -> Tensor<1> {
        let device = self.output.weight.val().device();
        let input = wave(&[16, 5], 0.31 * step as f32, &device);
        let target = input.clone().slice([0..16, 0..3]).square();
        (self.forward(input) - target).square().mean()
    }

    pub fn gradients(&self, step: usize) -> GradientsParams {
        GradientsParams::from_grads(self.loss(step).backward(), self)
    }
}

/// Numbers that are the same on every device and in every run.
pub fn wave<const D: usize>(shape: &[usize; D], phase: f32, device: &Device) -> Tensor<D> {
    let elements: usize = shape.iter().product();
    let data: Vec<f32> = (0..elements).map(|i| (0.7 * i as f32 + phase).sin()).collect();
    Tensor::from_data(TensorData::new(data, *shape), device)
}

/// The module with values that are the same on every device and in every run.
fn seeded<M: Module>(module: M) -> M {
    struct Seed {
        parameters: usize,
    }
    impl ModuleMapper for Seed {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.parameters += 1;
            let phase = 1.3 * self.parameters as f32;
            param.map(|value| {
                let shape = value.dims();
                let device = value.device().without_autodiff();
                let scale = 1.0 / (shape[0] as f32).sqrt();
                wave(&shape, phase, &device).mul_scalar(scale).autodiff().require_grad()
            })
        }
    }
    module.map(&mut Seed { parameters: 0 })
}

/// Parameters of ranks 1 to 4.
#[derive(Module, Debug)]
pub struct Ranks {
    pub vector: Param<Tensor<1>>,
    pub matrix: Param<Tensor<2>>,
    pub cube: Param<Tensor<3>>,
    pub convolution: Conv2d,
}

impl Ranks {
    pub fn new(device: &Device) -> Self {
        seeded(Self {
            vector: parameter(wave(&[7], 0.0, device)),
            matrix: parameter(wave(&[5, 1031], 1.0, device)),
            cube: parameter(wave(&[2, 3, 5], 2.0, device)),
            convolution: Conv2dConfig::new([2, 3], [3, 3]).init(device),
        })
    }

    /// A gradient for every parameter.
    pub fn gradients(&self, step: usize) -> GradientsParams {
        let mut gradients = GradientsParams::new();
        let device = self.vector.val().device().without_autodiff();
        let phase = step as f32;
        gradients.register(self.vector.id, wave(&[7], phase, &device));
        gradients.register(self.matrix.id, wave(&[5, 1031], phase + 0.1, &device));
        gradients.register(self.cube.id, wave(&[2, 3, 5], phase + 0.2, &device));
        gradients.register(self.convolution.weight.id, wave(&[3, 2, 3, 3], phase + 0.3, &device));
        if let Some(bias) = &self.convolution.bias {
            gradients.register(bias.id, wave(&[3], phase + 0.4, &device));
        }
        gradients
    }
}

/// A parameter that requires gradients.
pub fn parameter<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(value)
}

/// An optimizer with one group.
pub fn optimizer(options: Options, group: impl Into<Group>) -> FusedOptimizer {
    let mut optimizer = FusedOptimizer::new(gpu(), options).expect("an optimizer");
    optimizer.add_group(group, |_| true).expect("a group");
    optimizer
}

/// An optimizer with the hyperparameters of most tests.
pub fn adamod() -> FusedOptimizer {
    optimizer(Options::new(), hyperparameters())
}

/// The same in tensor operations.
pub fn operations() -> operations::AdaMod {
    operations::AdaMod::new(rule()).with_weight_decay(WEIGHT_DECAY)
}

pub const WEIGHT_DECAY: WeightDecay = WeightDecay::Decoupled(0.01);

pub fn rule() -> AdaMod {
    AdaMod::new().with_betas([0.9, 0.99, 0.95])
}

pub fn hyperparameters() -> Hyperparameters {
    Hyperparameters::from(rule()).with_weight_decay(WEIGHT_DECAY)
}

/// Hyperparameters and precision of most tests of low-bit state.
pub fn stored(precision: Precision) -> Group {
    Group::new(hyperparameters()).with_precision(precision)
}

/// Every float parameter's path and elements.
pub fn values<M: Module>(module: &M) -> Vec<(String, Vec<f32>)> {
    struct Values {
        path: Vec<String>,
        values: Vec<(String, Vec<f32>)>,
    }
    impl ModuleVisitor for Values {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.values.push((self.path.join("."), elements(param.val())));
        }
    }
    let mut visitor = Values { path: Vec::new(), values: Vec::new() };
    module.visit(&mut visitor);
    visitor.values
}

/// Asserts that two modules have the same bits.
#[track_caller]
pub fn assert_same(found: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)], what: &str) {
    assert_eq!(found.len(), expected.len());
    for ((path, found), (expected_path, expected)) in found.iter().zip(expected) {
        assert_eq!((path, found.len()), (expected_path, expected.len()));
        let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
        if let Some(index) = found.iter().zip(expected).position(differs) {
            panic!("{what}: element {index} of {path} is {}, expected {}", found[index], expected[index]);
        }
    }
}

/// Elements of a tensor in f32.
pub fn elements<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("f32 elements")
}

/// The buffer and byte offset of a tensor.
pub fn place<const D: usize>(tensor: Tensor<D>) -> (wgpu::Buffer, u64) {
    let primitive = tensor.inner().try_into_primitive::<Wgpu>().expect("a tensor on wgpu");
    let tensor = Wgpu::resolved(primitive);
    let server = tensor.client.get_resource::<cubecl::wgpu::WgpuServer<AutoCompiler>>(tensor.handle);
    let resource = server.expect("a buffer");
    (resource.resource().buffer.clone(), resource.resource().offset)
}

/// Burn's backend with fusion or without.
trait Resolve: Backend {
    /// The tensor after all operations that are queued for it.
    fn resolved(tensor: Self::FloatTensorPrimitive) -> CubeTensor;
}

impl Resolve for CubeBackend {
    fn resolved(tensor: CubeTensor) -> CubeTensor {
        tensor
    }
}

impl<B: FusionBackend<FloatTensorPrimitive = CubeTensor>> Resolve for Fusion<B> {
    fn resolved(tensor: Self::FloatTensorPrimitive) -> CubeTensor {
        tensor.client.clone().resolve_tensor_float::<B>(tensor)
    }
}

/// Asserts that two modules have close values.
#[track_caller]
pub fn assert_close(
    found: &[(String, Vec<f32>)],
    expected: &[(String, Vec<f32>)],
    tolerance: f32,
    what: &str,
) {
    assert_eq!(found.len(), expected.len());
    for ((path, found), (expected_path, expected)) in found.iter().zip(expected) {
        assert_eq!((path, found.len()), (expected_path, expected.len()));
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let is_close = (found - expected).abs() <= tolerance;
            assert!(is_close, "{what}: element {index} of {path} is {found}, expected {expected}");
        }
    }
}

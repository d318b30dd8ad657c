//! A multilayer perceptron: where its tensors lie, and its forward and backward pass as lists of kernel launches.

use std::num::NonZeroU64;

use adamod::wgpu;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Normal};

use crate::digits::{CLASSES, PIXELS};
use crate::gpu::{Gpu, Kernel, Launch, whole, workgroups};

/// Widths from the pixels to the logits. ReLU follows every layer but the last.
pub const WIDTHS: &[usize] = &[PIXELS, 64, 64, 64, 64, CLASSES];

/// Every tensor of a pool starts at a multiple of this, WebGPU's alignment of a binding's offset. So the kernels here can bind each tensor
/// alone, while the optimizer binds the whole pools.
const TENSOR_ALIGNMENT_BYTES: u64 = 256;
/// Inputs that a kernel reads at once.
const VECTOR_ELEMENTS: usize = 4;
const ELEMENT_BYTES: u64 = size_of::<f32>() as u64;

/// Where a tensor lies in the pool of parameters, and its gradient in the pool of gradients.
pub struct Tensor {
    pub label: String,
    pub offset_bytes: u64,
    pub len: usize,
}

impl Tensor {
    /// The elements of the tensor in the contents of a pool.
    pub fn range(&self) -> std::ops::Range<usize> {
        let first = (self.offset_bytes / ELEMENT_BYTES) as usize;
        first..first + self.len
    }

    /// The tensor's part of a pool.
    fn within<'a>(&self, pool: &'a wgpu::Buffer) -> wgpu::BufferBinding<'a> {
        wgpu::BufferBinding {
            buffer: pool,
            offset: self.offset_bytes,
            size: NonZeroU64::new(self.len as u64 * ELEMENT_BYTES),
        }
    }
}

/// One fully connected layer.
struct Layer {
    inputs: usize,
    outputs: usize,
    weights: Tensor,
    biases: Tensor,
    rectified: bool,
}

impl Layer {
    /// `struct Layer` of layer.wgsl.
    fn uniform(&self) -> [u32; 3] {
        [self.inputs as u32, self.outputs as u32, u32::from(self.rectified)]
    }
}

/// Lays out the tensors of all layers one after the other. Also returns the size of the pool in bytes.
fn lay_out(widths: &[usize]) -> (Vec<Layer>, u64) {
    let count = widths.len() - 1;
    assert!(
        widths[..count].iter().all(|inputs| inputs.is_multiple_of(VECTOR_ELEMENTS)),
        "the kernels take inputs four at a time"
    );
    let mut pool_bytes = 0;
    let mut tensor = |label: String, len: usize| {
        let offset_bytes = pool_bytes;
        pool_bytes += (len as u64 * ELEMENT_BYTES).next_multiple_of(TENSOR_ALIGNMENT_BYTES);
        Tensor { label, offset_bytes, len }
    };
    let layers = widths
        .windows(2)
        .enumerate()
        .map(|(index, width)| Layer {
            inputs: width[0],
            outputs: width[1],
            weights: tensor(format!("layer{index}.weights"), width[0] * width[1]),
            biases: tensor(format!("layer{index}.biases"), width[1]),
            rectified: index + 1 < count,
        })
        .collect();
    (layers, pool_bytes)
}

/// The network: its two pools and its kernels.
pub struct Network {
    /// All weights and biases.
    pub parameters: wgpu::Buffer,
    /// Their gradients, at the same offsets.
    pub gradients: wgpu::Buffer,
    layers: Vec<Layer>,
    uniforms: Vec<wgpu::Buffer>,
    forward: Kernel,
    backward_parameters: Kernel,
    backward_input: Kernel,
}

/// The forward pass for a number of rows.
pub struct Forward {
    /// The input, the output of each hidden layer, and the logits.
    pub activations: Vec<wgpu::Buffer>,
    launches: Vec<Launch>,
    rows: usize,
}

/// The backward pass that belongs to a forward pass.
pub struct Backward {
    /// Filled by the loss.
    pub logit_gradients: wgpu::Buffer,
    /// From the last layer to the first: the gradients of its parameters, then those of its input, which the first layer does not need.
    pub launches: Vec<Launch>,
}

impl Network {
    /// A network of these widths with all parameters zero.
    pub fn new(gpu: &Gpu, widths: &[usize]) -> Self {
        let (layers, pool_bytes) = lay_out(widths);
        let pool_len = (pool_bytes / ELEMENT_BYTES) as usize;
        let kernel = |label: &str, source: &str| {
            gpu.kernel(
                label,
                &format!(
                    "{}
{source}",
                    include_str!("layer.wgsl")
                ),
            )
        };
        Self {
            parameters: gpu.buffer("digits.parameters", pool_len),
            gradients: gpu.buffer("digits.gradients", pool_len),
            uniforms: layers.iter().map(|layer| gpu.uniform("digits.layer", &layer.uniform())).collect(),
            layers,
            forward: kernel("digits.forward", include_str!("forward.wgsl")),
            backward_parameters: kernel(
                "digits.backward_parameters",
                include_str!("backward_parameters.wgsl"),
            ),
            backward_input: kernel("digits.backward_input", include_str!("backward_input.wgsl")),
        }
    }

    /// Weights and biases of all layers.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|layer| [&layer.weights, &layer.biases])
    }

    /// Contents of the pool of parameters at the start of a run: weights after He et al. (2015), with variance 2 / inputs, and
    /// biases of zero.
    pub fn initial_parameters(&self, seed: u64) -> Vec<f32> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut pool = vec![0.0; (self.parameters.size() / ELEMENT_BYTES) as usize];
        for layer in &self.layers {
            let deviation = (2.0 / layer.inputs as f32).sqrt();
            let normal = Normal::new(0.0, deviation).expect("a layer has inputs");
            pool[layer.weights.range()].fill_with(|| normal.sample(&mut rng));
        }
        pool
    }

    /// Prepares the forward pass for `rows` images.
    pub fn forward(&self, gpu: &Gpu, rows: usize) -> Forward {
        let widths = [self.layers[0].inputs].into_iter();
        let activations: Vec<_> = widths
            .chain(self.layers.iter().map(|layer| layer.outputs))
            .map(|width| gpu.buffer("digits.activations", rows * width))
            .collect();
        let launches = self.layers.iter().enumerate().map(|(l, layer)| {
            gpu.launch(
                &self.forward,
                [
                    whole(&self.uniforms[l]),
                    layer.weights.within(&self.parameters),
                    layer.biases.within(&self.parameters),
                    whole(&activations[l]),
                    whole(&activations[l + 1]),
                ],
                workgroups(rows * layer.outputs),
            )
        });
        Forward { launches: launches.collect(), activations, rows }
    }

    /// Prepares the backward pass: from the gradients of the logits to those of all parameters.
    pub fn backward(&self, gpu: &Gpu, forward: &Forward) -> Backward {
        let mut launches = Vec::new();
        let width = |l: usize| self.layers[l].outputs;
        let gradients_of = |l: usize| gpu.buffer("digits.activation_gradients", forward.rows * width(l));

        let logit_gradients = gradients_of(self.layers.len() - 1);
        let mut output_gradients = logit_gradients.clone();
        for (l, layer) in self.layers.iter().enumerate().rev() {
            launches.push(gpu.launch(
                &self.backward_parameters,
                [
                    whole(&self.uniforms[l]),
                    whole(&forward.activations[l]),
                    whole(&output_gradients),
                    layer.weights.within(&self.gradients),
                    layer.biases.within(&self.gradients),
                ],
                workgroups(layer.weights.len / VECTOR_ELEMENTS),
            ));
            // The gradients of the pixels have no use.
            if l > 0 {
                let input_gradients = gradients_of(l - 1);
                launches.push(gpu.launch(
                    &self.backward_input,
                    [
                        whole(&self.uniforms[l]),
                        layer.weights.within(&self.parameters),
                        whole(&forward.activations[l]),
                        whole(&output_gradients),
                        whole(&input_gradients),
                    ],
                    workgroups(forward.rows * layer.inputs / VECTOR_ELEMENTS),
                ));
                output_gradients = input_gradients;
            }
        }
        Backward { logit_gradients, launches }
    }
}

impl Forward {
    /// The buffer of the images.
    pub fn input(&self) -> &wgpu::Buffer {
        &self.activations[0]
    }

    /// The buffer of the unnormalised log-probabilities of the classes.
    pub fn logits(&self) -> &wgpu::Buffer {
        &self.activations[self.activations.len() - 1]
    }

    /// Records the pass.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for launch in &self.launches {
            launch.record(pass);
        }
    }
}

impl Backward {
    /// Records the pass.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for launch in &self.launches {
            launch.record(pass);
        }
    }
}

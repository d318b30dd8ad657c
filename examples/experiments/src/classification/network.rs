//! ResNet (He et al. 2016) and DenseNet (Huang et al. 2017) for small images.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AvgPool2d, AvgPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

/// Sizes of a network.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Channels of an image.
    pub inputs: usize,
    pub classes: usize,
    /// Channels after the first convolution. The ResNet has twice and four times as many in its other stages; each layer of the DenseNet adds
    /// half as many.
    pub channels: usize,
}

const DENSE_BLOCKS: usize = 2;
const LAYERS_OF_DENSE_BLOCK: usize = 4;

/// Scores images, shape `[images, channels, height, width]`, for each class, shape `[images, classes]`.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it; sizes depend on the feature fusion")]
pub enum Network {
    ResNet(ResNet),
    DenseNet(DenseNet),
}

impl Network {
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        match self {
            Network::ResNet(network) => network.forward(images),
            Network::DenseNet(network) => network.forward(images),
        }
    }
}

/// A convolution without bias that keeps the image's size divided by the stride.
fn convolution(inputs: usize, outputs: usize, kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let padding = kernel / 2;
    Conv2dConfig::new([inputs, outputs], [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
        .with_bias(false)
        .init(device)
}

/// Mean over the pixels.
fn pool(features: Tensor<4>) -> Tensor<2> {
    let [images, channels, height, width] = features.dims();
    features.reshape([images, channels, height * width]).mean_dim(2).reshape([images, channels])
}

/// Three stages of one residual block each; the image is halved between them.
#[derive(Module, Debug)]
pub struct ResNet {
    first: Conv2d,
    norm: BatchNorm,
    blocks: Vec<ResidualBlock>,
    output: Linear,
}

#[derive(Module, Debug)]
struct ResidualBlock {
    convolutions: [Conv2d; 2],
    norms: [BatchNorm; 2],
    /// Where the shape changes.
    shortcut: Option<Conv2d>,
}

impl ResNet {
    pub fn new(sizes: Sizes, device: &Device) -> Self {
        let stages = [1, 2, 4].map(|factor| factor * sizes.channels);
        let [narrow, .., wide] = stages;
        let block = |(inputs, outputs)| {
            let stride = if inputs == outputs { 1 } else { 2 };
            ResidualBlock {
                convolutions: [
                    convolution(inputs, outputs, 3, stride, device),
                    convolution(outputs, outputs, 3, 1, device),
                ],
                norms: [0, 1].map(|_| BatchNormConfig::new(outputs).init(device)),
                shortcut: (stride > 1).then(|| convolution(inputs, outputs, 1, stride, device)),
            }
        };
        let inputs = [narrow].into_iter().chain(stages);
        Self {
            first: convolution(sizes.inputs, narrow, 3, 1, device),
            norm: BatchNormConfig::new(narrow).init(device),
            blocks: inputs.zip(stages).map(block).collect(),
            output: LinearConfig::new(wide, sizes.classes).init(device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let features = relu(self.norm.forward(self.first.forward(images)));
        let features = self.blocks.iter().fold(features, |features, block| block.forward(features));
        self.output.forward(pool(features))
    }
}

impl ResidualBlock {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [first, second] = &self.convolutions;
        let hidden = relu(self.norms[0].forward(first.forward(input.clone())));
        let residual = self.norms[1].forward(second.forward(hidden));
        let shortcut = match &self.shortcut {
            Some(convolution) => convolution.forward(input),
            None => input,
        };
        relu(shortcut + residual)
    }
}

/// Dense blocks: each layer sees the outputs of all layers before it.
#[derive(Module, Debug)]
pub struct DenseNet {
    first: Conv2d,
    blocks: Vec<DenseBlock>,
    norm: BatchNorm,
    output: Linear,
}

#[derive(Module, Debug)]
struct DenseBlock {
    layers: Vec<DenseLayer>,
    /// Halves channels and image; not after the last block.
    transition: Option<DenseLayer>,
    halve: AvgPool2d,
}

/// Norm, ReLU, convolution.
#[derive(Module, Debug)]
struct DenseLayer {
    norm: BatchNorm,
    convolution: Conv2d,
}

impl DenseNet {
    pub fn new(sizes: Sizes, device: &Device) -> Self {
        let (first, growth) = (sizes.channels, sizes.channels / 2);
        let layer = |inputs, outputs, kernel| DenseLayer {
            norm: BatchNormConfig::new(inputs).init(device),
            convolution: convolution(inputs, outputs, kernel, 1, device),
        };
        let mut channels = first;
        let mut blocks = Vec::new();
        for block in 1..=DENSE_BLOCKS {
            let layers =
                (0..LAYERS_OF_DENSE_BLOCK).map(|i| layer(channels + i * growth, growth, 3)).collect();
            channels += LAYERS_OF_DENSE_BLOCK * growth;
            let transition = (block < DENSE_BLOCKS).then(|| layer(channels, channels / 2, 1));
            if transition.is_some() {
                channels /= 2;
            }
            let halve = AvgPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
            blocks.push(DenseBlock { layers, transition, halve });
        }
        Self {
            first: convolution(sizes.inputs, first, 3, 1, device),
            blocks,
            norm: BatchNormConfig::new(channels).init(device),
            output: LinearConfig::new(channels, sizes.classes).init(device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let features = self.first.forward(images);
        let features = self.blocks.iter().fold(features, |features, block| block.forward(features));
        self.output.forward(pool(relu(self.norm.forward(features))))
    }
}

impl DenseBlock {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let features = self.layers.iter().fold(input, |features, layer| {
            let new = layer.forward(features.clone());
            Tensor::cat(vec![features, new], 1)
        });
        match &self.transition {
            Some(transition) => self.halve.forward(transition.forward(features)),
            None => features,
        }
    }
}

impl DenseLayer {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.convolution.forward(relu(self.norm.forward(input)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::test_backends;
    use crate::weights;

    fn networks(sizes: Sizes, device: &Device) -> [Network; 2] {
        [Network::ResNet(ResNet::new(sizes, device)), Network::DenseNet(DenseNet::new(sizes, device))]
    }

    /// Those of the digits.
    const SIZES: Sizes = Sizes { inputs: 1, classes: 10, channels: 16 };

    #[test]
    fn every_image_has_a_score_a_class() {
        let device = test_backends()[0].device();
        let colours = Sizes { inputs: 3, classes: 100, channels: 6 };
        for (sizes, height, width) in [(SIZES, 8, 8), (SIZES, 5, 4), (colours, 9, 13)] {
            for network in networks(sizes, &device) {
                let scores = network.forward(Tensor::zeros([3, sizes.inputs, height, width], &device));
                assert_eq!(scores.dims(), [3, sizes.classes]);
            }
        }
    }

    #[test]
    fn networks_for_the_digits_keep_their_sizes() {
        let device = test_backends()[0].device();
        assert_eq!(networks(SIZES, &device).map(|network| network.num_params()), [78_042, 21_738]);
    }

    #[test]
    fn the_test_scores_of_an_image_do_not_depend_on_its_batch() {
        let device = test_backends()[0].device();
        let image = |i: usize| -> Vec<f32> { (0..64).map(|p| ((p * (i + 3)) % 17) as f32 / 16.0).collect() };
        let images = |list: &[usize]| {
            let pixels: Vec<f32> = list.iter().flat_map(|&i| image(i)).collect();
            Tensor::<1>::from_floats(pixels.as_slice(), &device).reshape([list.len(), 1, 8, 8])
        };
        for network in networks(SIZES, &device) {
            let network = weights::draw(network, 1);
            let scores = |list: &[usize]| -> Vec<f32> {
                network.forward(images(list)).into_data().iter::<f32>().collect()
            };
            let (alone, together) = (scores(&[1]), scores(&[1, 2, 3]));
            for (alone, together) in alone.iter().zip(&together) {
                assert!((alone - together).abs() <= 1e-4 + 1e-4 * alone.abs(), "{alone}, {together}");
            }
        }
    }
}

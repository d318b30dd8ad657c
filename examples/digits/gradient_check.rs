//! Compares the backward kernels with finite differences of a forward pass in f64 on the CPU.

use crate::gpu::Gpu;
use crate::network::{Network, Tensor};
use crate::train::loss_launch;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Small, so that every parameter can be checked. As with the digits, the last width is not a multiple of 4.
const WIDTHS: &[usize] = &[8, 20, 12, 5];
const ROWS: usize = 7;
/// The slot of the loss. All others stay 0.
const STEP: u32 = 2;
const STEPS: usize = 4;

/// The distance of the central differences, whose error grows with its square.
const DIFFERENCE: f64 = 1e-5;
/// Largest error measured on lavapipe: 5.1e-8, on gradients up to 0.65.
const ABSOLUTE_TOLERANCE: f64 = 1e-6;
const RELATIVE_TOLERANCE: f64 = 1e-5;

fn is_close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * expected.abs()
}

/// A minibatch and a pool of parameters, biases included, all random.
struct Case {
    images: Vec<f32>,
    labels: Vec<u32>,
    pool: Vec<f32>,
}

impl Case {
    fn random(network: &Network) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut uniform =
            |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random_range(-0.7..0.7)).collect() };
        Self {
            images: uniform(ROWS * WIDTHS[0]),
            pool: uniform(network.parameters.size() as usize / 4),
            labels: (0..ROWS as u32).map(|row| row * 3 % 5).collect(),
        }
    }

    /// Mean softmax cross-entropy, from its definition.
    fn loss(&self, pool: &[f64], tensors: &[&Tensor]) -> f64 {
        let row_loss = |(image, label): (&[f32], &u32)| {
            let mut activations: Vec<f64> = image.iter().copied().map(f64::from).collect();
            for (l, layer) in tensors.chunks(2).enumerate() {
                let (weights, biases) = (&pool[layer[0].range()], &pool[layer[1].range()]);
                let outputs = biases.iter().zip(weights.chunks(activations.len()));
                let outputs = outputs.map(|(bias, weights)| {
                    let products = weights.iter().zip(&activations).map(|(w, a)| w * a);
                    bias + products.sum::<f64>()
                });
                let hidden = l + 1 < tensors.len() / 2;
                activations = outputs.map(|sum| if hidden { sum.max(0.0) } else { sum }).collect();
            }
            let normalizer: f64 = activations.iter().map(|logit| logit.exp()).sum();
            normalizer.ln() - activations[*label as usize]
        };
        let rows = self.images.chunks(WIDTHS[0]).zip(&self.labels);
        rows.map(row_loss).sum::<f64>() / ROWS as f64
    }
}

/// Runs the kernels on a case. Returns the losses and the pool of gradients.
fn on_gpu(gpu: &Gpu, network: &Network, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let forward = network.forward(gpu, ROWS);
    let backward = network.backward(gpu, &forward);
    let step = gpu.filled("test.step", &[STEP]);
    let labels = gpu.filled("test.labels", &case.labels);
    let losses = gpu.buffer("test.losses", STEPS);
    let loss = loss_launch(gpu, &step, &labels, &forward, &backward, &losses);
    gpu.write(&network.parameters, &case.pool);
    gpu.write(forward.input(), &case.images);

    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    forward.record(&mut pass);
    loss.record(&mut pass);
    backward.record(&mut pass);
    drop(pass);
    gpu.queue.submit([encoder.finish()]);

    pollster::block_on(async {
        assert_eq!(gpu.read::<u32>(&step).await.unwrap(), [STEP + 1]);
        (gpu.read(&losses).await.unwrap(), gpu.read(&network.gradients).await.unwrap())
    })
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let gpu = pollster::block_on(Gpu::open()).unwrap();
    let network = Network::new(&gpu, WIDTHS);
    let case = Case::random(&network);
    let (losses, gradients) = on_gpu(&gpu, &network, &case);

    let tensors: Vec<&Tensor> = network.tensors().collect();
    let pool: Vec<f64> = case.pool.iter().copied().map(f64::from).collect();
    let loss = case.loss(&pool, &tensors);
    let (slot, others) = (losses[STEP as usize], [losses[0], losses[1], losses[3]]);
    assert!(is_close(f64::from(slot), loss), "loss {slot}, not {loss}");
    assert_eq!(others, [0.0; 3]);

    for tensor in &tensors {
        for element in tensor.range() {
            let shifted = |by: f64| {
                let mut pool = pool.clone();
                pool[element] += by;
                case.loss(&pool, &tensors)
            };
            let slope = (shifted(DIFFERENCE) - shifted(-DIFFERENCE)) / (2.0 * DIFFERENCE);
            let found = f64::from(gradients[element]);
            assert!(is_close(found, slope), "{} at {element}: {found}, not {slope}", tensor.label);
        }
    }
}

#[test]
fn the_comparison_notices_wrong_gradients() {
    assert!(is_close(0.5, 0.5));
    for wrong in [0.5001, -0.5, 0.0, f64::NAN, f64::INFINITY] {
        assert!(!is_close(wrong, 0.5), "{wrong}");
    }
}

#[test]
fn no_tensor_is_written_past_its_end() {
    const SENTINEL: f32 = 12345.0;
    let gpu = pollster::block_on(Gpu::open()).unwrap();
    let network = Network::new(&gpu, WIDTHS);
    let case = Case::random(&network);
    let pool_len = network.gradients.size() as usize / 4;
    gpu.write(&network.gradients, &vec![SENTINEL; pool_len]);
    let (_, gradients) = on_gpu(&gpu, &network, &case);

    let mut padding = vec![true; pool_len];
    for tensor in network.tensors() {
        padding[tensor.range()].fill(false);
    }
    for (element, value) in gradients.iter().enumerate() {
        assert_eq!(*value == SENTINEL, padding[element], "element {element}");
    }
}

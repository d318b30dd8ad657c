//! A network on the CPU in f32: features or embedded tokens, a tanh layer, softmax.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Sizes of a network.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Rows and columns of the table of embeddings, if inputs are tokens.
    pub embedding: Option<(usize, usize)>,
    /// Inputs of the tanh layer: features, or the embeddings of an example's tokens one after the other.
    pub inputs: usize,
    pub hidden: usize,
    pub classes: usize,
}

/// Names of a network's tensors in their order. A network without embeddings lacks the last one.
pub const TENSORS: [&str; 5] = ["hidden.weight", "hidden.bias", "output.weight", "output.bias", "embedding"];

/// Inputs of examples, one after the other.
#[derive(Clone, Debug)]
pub enum Inputs {
    Features(Vec<f32>),
    Tokens(Vec<u8>),
}

/// Inputs and labels.
#[derive(Clone, Debug)]
pub struct Examples {
    pub inputs: Inputs,
    pub labels: Vec<usize>,
}

impl Examples {
    /// The examples with these indices.
    pub fn select(&self, indices: impl Iterator<Item = usize> + Clone) -> Self {
        fn gather<T: Copy>(all: &[T], count: usize, indices: impl Iterator<Item = usize>) -> Vec<T> {
            let width = all.len() / count;
            indices.flat_map(|i| all[i * width..(i + 1) * width].iter().copied()).collect()
        }
        let count = self.labels.len();
        let inputs = match &self.inputs {
            Inputs::Features(all) => Inputs::Features(gather(all, count, indices.clone())),
            Inputs::Tokens(all) => Inputs::Tokens(gather(all, count, indices.clone())),
        };
        Self { inputs, labels: indices.map(|i| self.labels[i]).collect() }
    }
}

/// The results of a pass over examples.
pub struct Pass {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Fraction of the examples whose class was the most probable.
    pub accuracy: f64,
    /// One for each tensor.
    pub gradients: Vec<Vec<f32>>,
}

impl Network {
    /// Uniform in plus or minus sqrt(3 / fan-in); biases are zero.
    pub fn initial(&self, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut uniform = |len: usize, limit: f32| -> Vec<f32> {
            (0..len).map(|_| limit * (2.0 * rng.random::<f32>() - 1.0)).collect()
        };
        let limit = |fan_in: usize| (3.0 / fan_in as f32).sqrt();
        let mut tensors = vec![
            uniform(self.inputs * self.hidden, limit(self.inputs)),
            vec![0.0; self.hidden],
            uniform(self.hidden * self.classes, limit(self.hidden)),
            vec![0.0; self.classes],
        ];
        tensors.extend(self.embedding.map(|(rows, columns)| uniform(rows * columns, 1.0)));
        tensors
    }

    fn embedded(&self, tensors: &[&[f32]], inputs: &Inputs) -> Vec<f32> {
        match (inputs, self.embedding) {
            (Inputs::Features(features), None) => features.clone(),
            (Inputs::Tokens(tokens), Some((_, columns))) => {
                let row = |&token: &u8| &tensors[4][usize::from(token) * columns..][..columns];
                tokens.iter().flat_map(row).copied().collect()
            }
            _ => panic!("tokens need embeddings, and only they"),
        }
    }

    /// Runs the forward and backward pass.
    pub fn pass(&self, tensors: &[&[f32]], examples: &Examples) -> Pass {
        let (count, classes) = (examples.labels.len(), self.classes);
        let x = self.embedded(tensors, &examples.inputs);
        let mut h = affine(&x, tensors[0], tensors[1], self.inputs);
        h.iter_mut().for_each(|h| *h = h.tanh());
        let mut scores = affine(&h, tensors[2], tensors[3], self.hidden);
        let (mut loss, mut correct) = (0.0, 0);
        for (scores, &label) in scores.chunks_mut(classes).zip(&examples.labels) {
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            correct += usize::from(scores[label] == largest);
            let margin = scores[label] - largest;
            scores.iter_mut().for_each(|z| *z = (*z - largest).exp());
            let sum: f32 = scores.iter().sum();
            loss += f64::from(sum.ln() - margin);
            // From here on, the scores are the gradient of the mean loss.
            scores.iter_mut().for_each(|z| *z /= sum * count as f32);
            scores[label] -= 1.0 / count as f32;
        }
        let (output_weight, output_bias, mut before) = backward(&h, tensors[2], &scores, classes);
        before.iter_mut().zip(&h).for_each(|(d, h)| *d *= 1.0 - h * h);
        let (hidden_weight, hidden_bias, d_inputs) = backward(&x, tensors[0], &before, self.hidden);
        let mut gradients = vec![hidden_weight, hidden_bias, output_weight, output_bias];
        if let (Inputs::Tokens(tokens), Some((rows, columns))) = (&examples.inputs, self.embedding) {
            let mut table = vec![0.0; rows * columns];
            for (&token, d) in tokens.iter().zip(d_inputs.chunks(columns)) {
                let row = &mut table[usize::from(token) * columns..][..columns];
                row.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
            }
            gradients.push(table);
        }
        Pass { loss: loss / count as f64, accuracy: correct as f64 / count as f64, gradients }
    }
}

/// `x * weight + bias`; weights lie input by input.
fn affine(x: &[f32], weight: &[f32], bias: &[f32], inputs: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len() / inputs * bias.len());
    for x in x.chunks(inputs) {
        let start = y.len();
        y.extend_from_slice(bias);
        let y = &mut y[start..];
        for (x, row) in x.iter().zip(weight.chunks(bias.len())) {
            y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
        }
    }
    y
}

/// Gradients of weight, bias and inputs, from the gradient of the outputs.
fn backward(x: &[f32], weight: &[f32], d: &[f32], outputs: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let inputs = weight.len() / outputs;
    let (mut d_weight, mut d_bias) = (vec![0.0; weight.len()], vec![0.0; outputs]);
    let mut d_x = Vec::with_capacity(x.len());
    for (x, d) in x.chunks(inputs).zip(d.chunks(outputs)) {
        d_bias.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
        for (x, row) in x.iter().zip(d_weight.chunks_mut(outputs)) {
            row.iter_mut().zip(d).for_each(|(sum, d)| *sum += x * d);
        }
        d_x.extend(weight.chunks(outputs).map(|row| row.iter().zip(d).map(|(w, d)| w * d).sum::<f32>()));
    }
    (d_weight, d_bias, d_x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let network = Network { embedding: Some((4, 3)), inputs: 6, hidden: 5, classes: 4 };
        let examples = Examples { inputs: Inputs::Tokens(vec![0, 1, 1, 3, 0, 0]), labels: vec![2, 0, 3] };
        let tensors = network.initial(1);
        let loss = |tensors: &[Vec<f32>]| {
            let views: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
            network.pass(&views, &examples)
        };
        let gradients = loss(&tensors).gradients;
        for (tensor, gradient) in gradients.iter().enumerate() {
            for (i, &g) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut moved = tensors.clone();
                    moved[tensor][i] += by;
                    loss(&moved).loss
                };
                let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                // f32 losses near 1 divided by 2e-2: 1e-5 of rounding, and the third derivative's 1e-4.
                assert!((difference - f64::from(g)).abs() < 2e-4, "{tensor} {i}: {difference} {g}");
            }
        }
        // Token 2 does not occur.
        assert_eq!(gradients[4][6..9], [0.0; 3]);
    }
}

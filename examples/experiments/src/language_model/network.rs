//! A language model of stacked LSTM layers (Hochreiter and Schmidhuber 1997; forget gates of Gers et al. 2000).
//!
//! All four gates of a step are one product. `burn::nn::Lstm` makes eight, which is what its steps cost on small networks.

use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, tanh};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{numbers, tensors};

/// Sizes of a network.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Different tokens.
    pub vocabulary: usize,
    /// Elements of a token's representation.
    pub embedding: usize,
    /// Hidden units of a layer.
    pub hidden: usize,
    pub layers: usize,
}

/// Predicts the next token.
#[derive(Module, Debug)]
pub struct LanguageModel {
    embedding: Embedding,
    layers: Vec<LstmLayer>,
    output: Linear,
}

#[derive(Module, Debug)]
struct LstmLayer {
    input: Linear,
    recurrent: Linear,
}

/// What a layer remembers, each of shape `[sequences, hidden]`.
#[derive(Clone)]
struct Memory {
    cell: Tensor<2>,
    hidden: Tensor<2>,
}

/// What all layers remember.
#[derive(Clone, Default)]
pub struct State(Vec<Memory>);

impl State {
    /// Cell and hidden units of each layer, as numbers.
    pub fn to_numbers(&self) -> Vec<String> {
        let both = self.0.iter().flat_map(|memory| [&memory.cell, &memory.hidden]);
        both.map(|tensor| numbers::write(tensors::numbers(tensor.clone()))).collect()
    }

    /// The same state again.
    ///
    /// # Errors
    /// If they are not the numbers of two tensors a layer with a row for each sequence.
    pub fn of_numbers(texts: &[String], sequences: usize, device: &Device) -> Result<Self, String> {
        let tensor = |text: &String| -> Result<Tensor<2>, String> {
            let values: Vec<f32> = numbers::read(text)?;
            if !values.len().is_multiple_of(sequences) {
                return Err(format!(
                    "{} numbers: expected a row for each of {sequences} sequences",
                    values.len()
                ));
            }
            let hidden = values.len() / sequences;
            Ok(Tensor::from_data(TensorData::new(values, [sequences, hidden]), device))
        };
        let memory = |pair: &[String]| match pair {
            [cell, hidden] => Ok(Memory { cell: tensor(cell)?, hidden: tensor(hidden)? }),
            _ => Err("expected two tensors a layer".to_owned()),
        };
        Ok(Self(texts.chunks(2).map(memory).collect::<Result<_, _>>()?))
    }

    /// The same values, through which no gradient flows: truncated backpropagation through time.
    pub fn detach(self) -> Self {
        let detach = |memory: Memory| Memory { cell: memory.cell.detach(), hidden: memory.hidden.detach() };
        Self(self.0.into_iter().map(detach).collect())
    }
}

impl LanguageModel {
    pub fn new(sizes: &Sizes, device: &Device) -> Self {
        let Sizes { vocabulary, embedding, hidden, layers } = *sizes;
        let layer = |inputs| LstmLayer {
            input: LinearConfig::new(inputs, 4 * hidden).init(device),
            recurrent: LinearConfig::new(hidden, 4 * hidden).with_bias(false).init(device),
        };
        Self {
            embedding: EmbeddingConfig::new(vocabulary, embedding).init(device),
            layers: (0..layers).map(|i| layer(if i == 0 { embedding } else { hidden })).collect(),
            output: LinearConfig::new(hidden, vocabulary).init(device),
        }
    }

    /// Scores of the token after each, shape `[steps * sequences, vocabulary]`, from tokens of shape `[steps, sequences]`.
    fn forward(&self, tokens: Tensor<2, Int>, state: State) -> (Tensor<2>, State) {
        let [steps, sequences] = tokens.dims();
        let embedded = self.embedding.forward(tokens);
        let [.., width] = embedded.dims();
        let mut values: Vec<Tensor<2>> = (0..steps)
            .map(|step| embedded.clone().slice_dim(0, step..step + 1).reshape([sequences, width]))
            .collect();
        let mut old = state.0.into_iter();
        let mut new = Vec::new();
        for layer in &self.layers {
            let (outputs, memory) = layer.forward(values, old.next());
            values = outputs;
            new.push(memory);
        }
        (self.output.forward(Tensor::cat(values, 0)), State(new))
    }

    /// Mean cross-entropy of a token, and the state after the last.
    pub fn loss(&self, window: &Window, state: State, criterion: &CrossEntropyLoss) -> (Tensor<1>, State) {
        let (scores, state) = self.forward(window.tokens.clone(), state);
        let [tokens, _] = scores.dims();
        (criterion.forward(scores, window.next.clone().reshape([tokens])), state)
    }
}

impl LstmLayer {
    /// One value and one output a step, each of shape `[sequences, units]`.
    fn forward(&self, values: Vec<Tensor<2>>, memory: Option<Memory>) -> (Vec<Tensor<2>>, Memory) {
        let [sequences, _] = values[0].dims();
        let [hidden, _] = self.recurrent.weight.dims();
        let zeros = || Tensor::zeros([sequences, hidden], &values[0].device());
        let Memory { mut cell, hidden: mut output } =
            memory.unwrap_or_else(|| Memory { cell: zeros(), hidden: zeros() });
        let mut outputs = Vec::with_capacity(values.len());
        for value in values {
            let gates = self.input.forward(value) + self.recurrent.forward(output);
            let gate =
                |index: usize| gates.clone().slice([0..sequences, index * hidden..(index + 1) * hidden]);
            cell = sigmoid(gate(0)) * cell + sigmoid(gate(1)) * tanh(gate(2));
            output = sigmoid(gate(3)) * tanh(cell.clone());
            outputs.push(output.clone());
        }
        (outputs, Memory { cell, hidden: output })
    }
}

/// Some steps of several sequences beside each other. Each tensor has shape `[steps, sequences]`.
pub struct Window {
    pub tokens: Tensor<2, Int>,
    pub next: Tensor<2, Int>,
}

/// A text cut into sequences of equal length; what is left over at its end is dropped.
pub struct Sequences {
    /// Token by token, all sequences side by side.
    tokens: Vec<i32>,
    count: usize,
}

impl Sequences {
    pub fn new(text: &[u32], count: usize) -> Self {
        let length = text.len() / count;
        let tokens = (0..length).flat_map(|step| (0..count).map(move |i| text[i * length + step] as i32));
        Self { tokens: tokens.collect(), count }
    }

    /// The number of windows of `steps` steps, one after the other; the last step of a sequence is only predicted.
    pub fn windows(&self, steps: usize) -> usize {
        (self.tokens.len() / self.count).saturating_sub(1) / steps
    }

    pub fn window(&self, index: usize, steps: usize, device: &Device) -> Window {
        let from = |first: usize| {
            let tokens = self.tokens[first * self.count..][..steps * self.count].to_vec();
            Tensor::from_data(TensorData::new(tokens, [steps, self.count]), device)
        };
        Window { tokens: from(index * steps), next: from(index * steps + 1) }
    }
}

pub fn criterion(device: &Device) -> CrossEntropyLoss {
    CrossEntropyLossConfig::new().init(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::test_backends;
    use crate::weights;

    fn model(device: &Device) -> LanguageModel {
        let sizes = Sizes { vocabulary: 11, embedding: 6, hidden: 8, layers: 3 };
        weights::draw(LanguageModel::new(&sizes, device), 1)
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5 + 1e-4 * expected.abs(), "{found}, expected {expected}");
        }
    }

    #[test]
    fn every_token_but_the_first_of_a_sequence_is_predicted_once() {
        let device = test_backends()[0].device();
        let text: Vec<u32> = (0..23).collect();
        let sequences = Sequences::new(&text, 2);
        // Two sequences of 11, so 10 predictions each: 3 windows of 3.
        assert_eq!(sequences.windows(3), 3);
        let window = sequences.window(2, 3, &device);
        let tokens = |tensor: Tensor<2, Int>| tensor.into_data().iter::<i32>().collect::<Vec<_>>();
        assert_eq!(tokens(window.tokens), [6, 17, 7, 18, 8, 19]);
        assert_eq!(tokens(window.next), [7, 18, 8, 19, 9, 20]);
    }

    #[test]
    fn the_state_carries_over_to_the_next_window() {
        let device = test_backends()[0].device();
        let model = model(&device);
        let text: Vec<u32> = (0..26).map(|i| (i * i) % 11).collect();
        let sequences = Sequences::new(&text, 2);
        let tokens = |index, steps| sequences.window(index, steps, &device).tokens;
        let (whole, _) = model.forward(tokens(0, 8), State::default());
        let (first, state) = model.forward(tokens(0, 4), State::default());
        let (second, _) = model.forward(tokens(1, 4), state.detach());
        assert_close(&[values(first), values(second)].concat(), &values(whole));
    }

    #[test]
    fn a_layer_computes_the_equations() {
        let device = test_backends()[0].device();
        let layer = weights::draw(
            LstmLayer {
                input: LinearConfig::new(1, 4).init(&device),
                recurrent: LinearConfig::new(1, 4).with_bias(false).init(&device),
            },
            5,
        );
        let (input, recurrent) = (values(layer.input.weight.val()), values(layer.recurrent.weight.val()));
        let inputs = [0.5_f32, -1.0, 2.0];
        let tensors = inputs.iter().map(|&value| Tensor::<2>::from_floats([[value]], &device)).collect();
        let (outputs, _) = layer.forward(tensors, None);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let (mut cell, mut hidden) = (0.0_f32, 0.0_f32);
        for (value, output) in inputs.into_iter().zip(outputs) {
            let gate = |i: usize| input[i] * value + recurrent[i] * hidden;
            let gates = [0, 1, 2, 3].map(gate);
            cell = sigmoid(gates[0]) * cell + sigmoid(gates[1]) * gates[2].tanh();
            hidden = sigmoid(gates[3]) * cell.tanh();
            assert_close(&values(output), &[hidden]);
        }
    }
}

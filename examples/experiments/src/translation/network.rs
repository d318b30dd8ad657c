//! The Transformer of Vaswani et al. 2017: encoder and decoder, norms after the residual sums, sinusoidal positions, ReLU.

use burn::module::Module;
use burn::nn::activation::ActivationConfig;
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::transformer::{
    TransformerDecoder, TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoder,
    TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig, PositionalEncoding,
    PositionalEncodingConfig,
};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::tokenizer::{END, PADDING, START};

/// Sizes of a network.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Different tokens.
    pub vocabulary: usize,
    /// Tokens of the longest sentence, [`END`] included.
    pub longest: usize,
    /// Layers of the encoder, and of the decoder.
    pub layers: usize,
    /// Elements of a token's representation.
    pub width: usize,
    pub heads: usize,
    /// Hidden units of the feed-forward networks.
    pub feed_forward: usize,
    pub dropout: f64,
}

/// Translates sentences of tokens.
#[derive(Module, Debug)]
pub struct Translator {
    source_embedding: Embedding,
    target_embedding: Embedding,
    positions: PositionalEncoding,
    dropout: Dropout,
    encoder: TransformerEncoder,
    decoder: TransformerDecoder,
    output: Linear,
}

/// What the decoder looks at: the encoder's output, and which of its positions are padding.
pub struct Memory {
    states: Tensor<3>,
    padding: Tensor<2, Bool>,
}

impl Translator {
    pub fn new(sizes: &Sizes, device: &Device) -> Self {
        let Sizes { vocabulary, longest, layers, width, heads, feed_forward, dropout } = *sizes;
        let embedding = || EmbeddingConfig::new(vocabulary, width).init(device);
        Self {
            source_embedding: embedding(),
            target_embedding: embedding(),
            positions: PositionalEncodingConfig::new(width).with_max_sequence_size(longest).init(device),
            dropout: DropoutConfig::new(dropout).init(),
            encoder: TransformerEncoderConfig::new(width, feed_forward, heads, layers)
                .with_dropout(dropout)
                .with_activation(ActivationConfig::Relu)
                .init(device),
            decoder: TransformerDecoderConfig::new(width, feed_forward, heads, layers)
                .with_dropout(dropout)
                .with_activation(ActivationConfig::Relu)
                .init(device),
            output: LinearConfig::new(width, vocabulary).init(device),
        }
    }

    fn embed(&self, embedding: &Embedding, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [_, width] = embedding.weight.dims();
        let embedded = embedding.forward(tokens).mul_scalar((width as f64).sqrt());
        self.dropout.forward(self.positions.forward(embedded))
    }

    /// Reads source sentences, shape `[sentences, tokens]`.
    pub fn encode(&self, source: Tensor<2, Int>) -> Memory {
        let padding = source.clone().equal_scalar(PADDING);
        let input = TransformerEncoderInput::new(self.embed(&self.source_embedding, source));
        Memory { states: self.encoder.forward(input.mask_pad(padding.clone())), padding }
    }

    /// Scores of the next token after each token of the target, shape `[sentences, tokens, vocabulary]`.
    pub fn decode(&self, memory: &Memory, target: Tensor<2, Int>) -> Tensor<3> {
        let [sentences, length] = target.dims();
        let device = target.device();
        // Padding is last: the mask of the future hides it from all tokens that count.
        let input =
            TransformerDecoderInput::new(self.embed(&self.target_embedding, target), memory.states.clone());
        let input = input
            .memory_mask_pad(memory.padding.clone())
            .target_mask_attn(generate_autoregressive_mask(sentences, length, &device));
        self.output.forward(self.decoder.forward(input))
    }

    /// Mean cross-entropy of a target token.
    pub fn loss(&self, batch: &Batch, criterion: &CrossEntropyLoss) -> Tensor<1> {
        let memory = self.encode(batch.source.clone());
        let scores = self.decode(&memory, batch.target.clone());
        let [sentences, length, vocabulary] = scores.dims();
        let scores = scores.reshape([sentences * length, vocabulary]);
        criterion.forward(scores, batch.next.clone().reshape([sentences * length]))
    }

    /// The most likely next token, again and again, until every sentence has ended or is `longest` tokens long.
    pub fn translate(&self, source: Tensor<2, Int>, longest: usize) -> Vec<Vec<u32>> {
        let [sentences, _] = source.dims();
        let device = source.device();
        let memory = self.encode(source);
        let mut translations = vec![vec![START]; sentences];
        while translations[0].len() < longest {
            let length = translations[0].len();
            let scores = self.decode(&memory, rows(&translations, &device));
            let last = scores.slice([0..sentences, length - 1..length]);
            let next: Vec<i64> = last.argmax(2).into_data().iter::<i64>().collect();
            for (translation, token) in translations.iter_mut().zip(next) {
                translation.push(token as u32);
            }
            if translations.iter().all(|translation| translation.contains(&END)) {
                break;
            }
        }
        translations.into_iter().map(|translation| translation[1..].to_vec()).collect()
    }
}

/// The loss that leaves out padding.
pub fn criterion(device: &Device) -> CrossEntropyLoss {
    CrossEntropyLossConfig::new().with_pad_tokens(Some(vec![PADDING as usize])).init(device)
}

/// Tokens of a pair of sentences; both end with [`END`].
#[derive(Clone, Debug)]
pub struct Example {
    pub source: Vec<u32>,
    pub target: Vec<u32>,
}

/// Several pairs, filled up to the longest. Each tensor has shape `[sentences, tokens]`.
pub struct Batch {
    pub source: Tensor<2, Int>,
    /// What the decoder has seen: begins with [`START`].
    pub target: Tensor<2, Int>,
    /// What it is to say next.
    pub next: Tensor<2, Int>,
}

impl Batch {
    pub fn new(examples: &[&Example], device: &Device) -> Self {
        let sources: Vec<_> = examples.iter().map(|example| example.source.clone()).collect();
        let next: Vec<_> = examples.iter().map(|example| example.target.clone()).collect();
        let shifted = |target: &Vec<u32>| [&[START], &target[..target.len() - 1]].concat();
        let targets: Vec<_> = next.iter().map(shifted).collect();
        Self { source: rows(&sources, device), target: rows(&targets, device), next: rows(&next, device) }
    }
}

/// Sentences as rows, filled up with [`PADDING`].
fn rows(sentences: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    // Burn compiles kernels anew for new shapes, which takes longer than a step: few different lengths.
    const LENGTHS: usize = 8;
    let longest = sentences.iter().map(Vec::len).max().unwrap_or(0).next_multiple_of(LENGTHS);
    let padded = sentences.iter().flat_map(|sentence| {
        let padding = std::iter::repeat_n(PADDING, longest - sentence.len());
        sentence.iter().copied().chain(padding).map(|token| token as i32)
    });
    Tensor::from_data(TensorData::new(padded.collect(), [sentences.len(), longest]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::test_backends;
    use crate::weights;

    fn translator(device: &Device) -> Translator {
        let sizes = Sizes {
            vocabulary: 20,
            longest: 16,
            layers: 2,
            width: 16,
            heads: 2,
            feed_forward: 32,
            dropout: 0.0,
        };
        weights::draw(Translator::new(&sizes, device), 1)
    }

    fn example(source: &[u32], target: &[u32]) -> Example {
        Example { source: source.to_vec(), target: target.to_vec() }
    }

    fn scores(translator: &Translator, examples: &[&Example], device: &Device) -> Vec<f32> {
        let batch = Batch::new(examples, device);
        let memory = translator.encode(batch.source);
        translator.decode(&memory, batch.target).into_data().iter::<f32>().collect()
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-4 + 1e-4 * expected.abs(), "{found}, expected {expected}");
        }
    }

    #[test]
    fn a_padded_sentence_has_the_scores_it_has_alone() {
        let device = test_backends()[0].device();
        let translator = translator(&device);
        let short = example(&[5, 6, END], &[7, END]);
        // Alone the source is filled up to 8 tokens, together to 16.
        let long = example(&[8, 9, 10, 11, 12, 8, 9, 10, 11, END], &[13, 14, 15, 16, END]);
        let alone = scores(&translator, &[&short], &device);
        let together = scores(&translator, &[&short, &long], &device);
        assert_close(&together[..alone.len()], &alone);
    }

    #[test]
    fn no_score_depends_on_later_tokens() {
        let device = test_backends()[0].device();
        let translator = translator(&device);
        let of = |target: &[u32]| scores(&translator, &[&example(&[5, 6, END], target)], &device);
        // The last token of a target is only ever predicted.
        let (one, other) = (of(&[7, 8, 9, END]), of(&[7, 8, 17, END]));
        assert_close(&one[..3 * 20], &other[..3 * 20]);
        assert_ne!(one[3 * 20..], other[3 * 20..]);
    }

    #[test]
    fn padding_has_no_loss() {
        let device = test_backends()[0].device();
        let translator = translator(&device);
        let criterion = criterion(&device);
        let loss = |examples: &[&Example]| {
            translator.loss(&Batch::new(examples, &device), &criterion).into_scalar::<f32>()
        };
        let (short, long) = (example(&[5, END], &[7, END]), example(&[8, 9, END], &[10, 11, 12, END]));
        let expected = (2.0 * loss(&[&short]) + 4.0 * loss(&[&long])) / 6.0;
        assert_close(&[loss(&[&short, &long])], &[expected]);
    }

    #[test]
    fn translations_end_at_the_longest_length() {
        let device = test_backends()[0].device();
        let translations = translator(&device).translate(rows(&[vec![5, 6, END], vec![7, END]], &device), 6);
        assert_eq!(translations.len(), 2);
        assert!(translations.iter().all(|translation| (1..6).contains(&translation.len())));
    }

    #[test]
    fn the_seed_decides_the_weights() {
        let device = test_backends()[0].device();
        let example = example(&[5, 6, END], &[7, END]);
        let sizes = Sizes {
            vocabulary: 20,
            longest: 8,
            layers: 1,
            width: 8,
            heads: 2,
            feed_forward: 8,
            dropout: 0.0,
        };
        let of = |seed| scores(&weights::draw(Translator::new(&sizes, &device), seed), &[&example], &device);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }
}

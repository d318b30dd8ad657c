//! The lengths of the tensors of well-known models.

/// The embedding width of GPT-2 small.
pub const GPT2_WIDTH: u64 = 768;

/// The 148 tensors of GPT-2 small (124,439,808 parameters at its own width): token and position embeddings, twelve tensors for each of
/// twelve layers, and the last norm. Vocabulary and context have the same size at every width.
pub fn gpt2_small(width: u64) -> Vec<u64> {
    const VOCABULARY: u64 = 50_257;
    const CONTEXT: u64 = 1_024;
    const LAYERS: usize = 12;
    let linear = |from, to| [from * to, to];
    let norm = [width, width];
    let layer = [
        norm,
        linear(width, 3 * width),
        linear(width, width),
        norm,
        linear(width, 4 * width),
        linear(4 * width, width),
    ];
    let mut lengths = vec![VOCABULARY * width, CONTEXT * width];
    for _ in 0..LAYERS {
        lengths.extend(layer.as_flattened());
    }
    lengths.extend(norm);
    lengths
}

/// The 161 tensors of ResNet-50 (25,557,032 parameters), as in torchvision.
pub fn resnet50() -> Vec<u64> {
    let convolution = |from: u64, to: u64, side: u64| [to * from * side * side, to, to];
    let mut lengths = convolution(3, 64, 7).to_vec();
    let mut from = 64;
    for (width, blocks) in [(64, 3), (128, 4), (256, 6), (512, 3)] {
        let to = 4 * width;
        for block in 0..blocks {
            lengths.extend(convolution(from, width, 1));
            lengths.extend(convolution(width, width, 3));
            lengths.extend(convolution(width, to, 1));
            if block == 0 {
                lengths.extend(convolution(from, to, 1));
            }
            from = to;
        }
    }
    lengths.extend([2_048 * 1_000, 1_000]);
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_their_published_sizes() {
        let gpt2 = gpt2_small(GPT2_WIDTH);
        assert_eq!((gpt2.len(), gpt2.iter().sum::<u64>()), (148, 124_439_808));
        let resnet = resnet50();
        assert_eq!((resnet.len(), resnet.iter().sum::<u64>()), (161, 25_557_032));
    }
}

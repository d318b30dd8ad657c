// Gradients in a buffer that holds no parameters of the launch, and are not zeroed.

@group(0) @binding(GRADIENTS_BINDING) var<storage, read> gradients: array<Word>;

fn gradient_word(segment: u32, index: u32) -> Word {
    return gradients[index];
}

fn set_gradient_word(segment: u32, index: u32, word: Word) {
}

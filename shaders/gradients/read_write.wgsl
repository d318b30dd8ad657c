// Gradients that are zeroed, or that lie in the parameters' buffer but too far away for one binding. WebGPU refuses a buffer that is
// bound both `read` and `read_write`.

@group(0) @binding(GRADIENTS_BINDING) var<storage, read_write> gradients: array<Word>;

fn gradient_word(segment: u32, index: u32) -> Word {
    return gradients[index];
}

fn set_gradient_word(segment: u32, index: u32, word: Word) {
    gradients[index] = word;
}

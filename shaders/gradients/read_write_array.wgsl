// Gradients in buffers of their own, which are elements of a binding array and are zeroed.

@group(1) @binding(GRADIENTS_BINDING) var<storage, read_write> gradients: binding_array<Words>;

fn gradient_word(segment: u32, index: u32) -> Word {
    return gradients[element_of(segment)].words[index];
}

fn set_gradient_word(segment: u32, index: u32, word: Word) {
    gradients[element_of(segment)].words[index] = word;
}

// Gradients in buffers of their own, which are elements of a binding array and are not zeroed.

@group(1) @binding(GRADIENTS_BINDING) var<storage, read> gradients: binding_array<Words>;

fn gradient_word(segment: u32, index: u32) -> Word {
    return gradients[element_of(segment)].words[index];
}

fn set_gradient_word(segment: u32, index: u32, word: Word) {
}

// Gradients in the parameters' buffer and within one binding of them. Browsers refuse two writable bindings of
// overlapping ranges, so the parameters' binding serves both.

fn gradient_word(segment: u32, index: u32) -> Word {
    return parameters[index];
}

fn set_gradient_word(segment: u32, index: u32, word: Word) {
    parameters[index] = word;
}

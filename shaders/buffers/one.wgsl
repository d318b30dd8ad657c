// The parameters of all segments of a launch lie in one binding.

@group(0) @binding(PARAMETERS_BINDING) var<storage, read_write> parameters: array<Word>;

fn parameter_word(segment: u32, index: u32) -> Word {
    return parameters[index];
}

fn set_parameter_word(segment: u32, index: u32, word: Word) {
    parameters[index] = word;
}

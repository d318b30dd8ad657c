// The parameters of each segment have a binding of their own.

@group(1) @binding(PARAMETERS_BINDING) var<storage, read_write> parameters: binding_array<Words>;

fn parameter_word(segment: u32, index: u32) -> Word {
    return parameters[element_of(segment)].words[index];
}

fn set_parameter_word(segment: u32, index: u32, word: Word) {
    parameters[element_of(segment)].words[index] = word;
}

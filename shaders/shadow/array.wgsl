// The shadow copy of each segment has a binding of its own.

const HAS_SHADOW = true;

struct ShadowWords {
    words: array<u32>,
}

@group(1) @binding(SHADOW_BINDING) var<storage, read_write> shadow: binding_array<ShadowWords>;

fn shadow_word(segment: u32, index: u32) -> u32 {
    return shadow[element_of(segment)].words[index];
}

fn set_shadow_word(segment: u32, index: u32, word: u32) {
    shadow[element_of(segment)].words[index] = word;
}

// The shadow copies of all segments of a launch lie in one binding.

const HAS_SHADOW = true;

@group(0) @binding(SHADOW_BINDING) var<storage, read_write> shadow: array<u32>;

fn shadow_word(segment: u32, index: u32) -> u32 {
    return shadow[index];
}

fn set_shadow_word(segment: u32, index: u32, word: u32) {
    shadow[index] = word;
}

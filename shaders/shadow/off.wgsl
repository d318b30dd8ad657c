// No shadow copies.

const HAS_SHADOW = false;

fn shadow_word(segment: u32, index: u32) -> u32 {
    return 0u;
}

fn set_shadow_word(segment: u32, index: u32, word: u32) {
}

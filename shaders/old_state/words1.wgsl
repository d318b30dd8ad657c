// Old state in words of 4 bytes.

fn old_word(buffer: u32, word: u32) -> u32 {
    return old_at(buffer, word);
}

// Four words.
fn old_run(buffer: u32, word: u32) -> vec4<u32> {
    return vec4(old_at(buffer, word), old_at(buffer, word + 1u), old_at(buffer, word + 2u), old_at(buffer, word + 3u));
}

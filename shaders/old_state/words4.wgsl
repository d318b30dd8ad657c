// Old state in words of 16 bytes, where blocks hold nothing below 32 bits.

fn old_word(buffer: u32, word: u32) -> u32 {
    let quad = old_at(buffer, word / 4u);
    let half = select(quad.xy, quad.zw, (word & 2u) != 0u);
    return select(half.x, half.y, (word & 1u) != 0u);
}

// Four words from anywhere, out of the two quads that they lie in.
fn old_run(buffer: u32, word: u32) -> vec4<u32> {
    let a = old_at(buffer, word / 4u);
    let b = old_at(buffer, (word + 3u) / 4u);
    let by_two = (word & 2u) != 0u;
    let first = select(a, vec4(a.zw, b.xy), by_two);
    // The word after the first four, if the start is odd.
    let next = select(b.x, b.z, by_two);
    return select(first, vec4(first.yzw, next), (word & 1u) != 0u);
}

// State in words of 8 bytes, for launches whose blocks hold nothing below 16 bits but pairs of words of 4 bytes.

@group(0) @binding(STATE_BINDING) var<storage, read_write> state: array<vec2<u32>>;

fn state_4(start: u32, index: u32) -> vec4<u32> {
    let i = start / 2u + 2u * index;
    return vec4(state[i], state[i + 1u]);
}

fn set_state_4(start: u32, index: u32, words: vec4<u32>) {
    let i = start / 2u + 2u * index;
    state[i] = words.xy;
    state[i + 1u] = words.zw;
}

fn state_2(start: u32, index: u32) -> vec2<u32> {
    return state[start / 2u + index];
}

fn set_state_2(start: u32, index: u32, words: vec2<u32>) {
    state[start / 2u + index] = words;
}

// Words of 4 bytes are only stored in pairs.
fn state_1(start: u32, index: u32) -> u32 {
    let pair = state[start / 2u + index / 2u];
    return select(pair.x, pair.y, index % 2u == 1u);
}

fn set_state_1(start: u32, index: u32, word: u32) {
}

fn state_pair(start: u32, index: u32, has_second: bool) -> vec2<u32> {
    return state[start / 2u + index];
}

fn set_state_pair(start: u32, index: u32, has_second: bool, words: vec2<u32>) {
    state[start / 2u + index] = words;
}

// State in words of 16 bytes, for launches whose blocks hold nothing below 32 bits.

@group(0) @binding(STATE_BINDING) var<storage, read_write> state: array<vec4<u32>>;

fn state_4(start: u32, index: u32) -> vec4<u32> {
    return state[start / 4u + index];
}

fn set_state_4(start: u32, index: u32, words: vec4<u32>) {
    state[start / 4u + index] = words;
}

fn state_2(start: u32, index: u32) -> vec2<u32> {
    return vec2(0u);
}

fn set_state_2(start: u32, index: u32, words: vec2<u32>) {
}

fn state_1(start: u32, index: u32) -> u32 {
    return 0u;
}

fn set_state_1(start: u32, index: u32, word: u32) {
}

fn state_pair(start: u32, index: u32, has_second: bool) -> vec2<u32> {
    return vec2(0u);
}

fn set_state_pair(start: u32, index: u32, has_second: bool, words: vec2<u32>) {
}

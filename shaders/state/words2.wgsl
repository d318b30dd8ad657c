// State in words of 8 bytes, for launches whose blocks hold nothing below 16 bits.

@group(0) @binding(STATE_BINDING) var<storage, read_write> state: array<vec2<u32>>;

fn state_4(index: u32) -> vec4<u32> {
    return vec4(state[index / 2u], state[index / 2u + 1u]);
}

fn set_state_4(index: u32, word: vec4<u32>) {
    state[index / 2u] = word.xy;
    state[index / 2u + 1u] = word.zw;
}

fn state_2(index: u32) -> vec2<u32> {
    return state[index / 2u];
}

fn set_state_2(index: u32, word: vec2<u32>) {
    state[index / 2u] = word;
}

fn state_1(index: u32) -> u32 {
    return 0u;
}

fn set_state_1(index: u32, word: u32) {
}

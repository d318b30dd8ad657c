// State in words of 16 bytes, for launches whose blocks hold nothing below 32 bits.

@group(0) @binding(STATE_BINDING) var<storage, read_write> state: array<vec4<u32>>;

fn state_4(index: u32) -> vec4<u32> {
    return state[index / 4u];
}

fn set_state_4(index: u32, word: vec4<u32>) {
    state[index / 4u] = word;
}

fn state_2(index: u32) -> vec2<u32> {
    return vec2(0u);
}

fn set_state_2(index: u32, word: vec2<u32>) {
}

fn state_1(index: u32) -> u32 {
    return 0u;
}

fn set_state_1(index: u32, word: u32) {
}

// State in words of 4 bytes: blocks may hold anything.

@group(0) @binding(STATE_BINDING) var<storage, read_write> state: array<u32>;

fn state_4(index: u32) -> vec4<u32> {
    return vec4(state[index], state[index + 1u], state[index + 2u], state[index + 3u]);
}

fn set_state_4(index: u32, word: vec4<u32>) {
    state[index] = word.x;
    state[index + 1u] = word.y;
    state[index + 2u] = word.z;
    state[index + 3u] = word.w;
}

fn state_2(index: u32) -> vec2<u32> {
    return vec2(state[index], state[index + 1u]);
}

fn set_state_2(index: u32, word: vec2<u32>) {
    state[index] = word.x;
    state[index + 1u] = word.y;
}

fn state_1(index: u32) -> u32 {
    return state[index];
}

fn set_state_1(index: u32, word: u32) {
    state[index] = word;
}

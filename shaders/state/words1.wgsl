// State in words of 4 bytes: blocks may hold anything.

@group(0) @binding(STATE_BINDING) var<storage, read_write> state: array<u32>;

fn state_4(start: u32, index: u32) -> vec4<u32> {
    let i = start + 4u * index;
    return vec4(state[i], state[i + 1u], state[i + 2u], state[i + 3u]);
}

fn set_state_4(start: u32, index: u32, words: vec4<u32>) {
    let i = start + 4u * index;
    state[i] = words.x;
    state[i + 1u] = words.y;
    state[i + 2u] = words.z;
    state[i + 3u] = words.w;
}

fn state_2(start: u32, index: u32) -> vec2<u32> {
    let i = start + 2u * index;
    return vec2(state[i], state[i + 1u]);
}

fn set_state_2(start: u32, index: u32, words: vec2<u32>) {
    let i = start + 2u * index;
    state[i] = words.x;
    state[i + 1u] = words.y;
}

fn state_1(start: u32, index: u32) -> u32 {
    return state[start + index];
}

fn set_state_1(start: u32, index: u32, word: u32) {
    state[start + index] = word;
}

fn state_pair(start: u32, index: u32, has_second: bool) -> vec2<u32> {
    let i = start + 2u * index;
    return vec2(state[i], state[i + u32(has_second)]);
}

fn set_state_pair(start: u32, index: u32, has_second: bool, words: vec2<u32>) {
    let i = start + 2u * index;
    state[i] = words.x;
    if has_second {
        state[i + 1u] = words.y;
    }
}

// A chunk's block: one part for each state, then the scales of 8-bit states, then the master weights.

// Words of 32 bits that so many quads take in a part.
fn part_words(at: Place, quads: u32) -> u32 {
    switch state_format(at.format) {
        case STATE_F32: {
            return 4u * quads;
        }
        case STATE_BF16: {
            return 2u * quads;
        }
        default: {
            return quads;
        }
    }
}

// Where the part of a state starts.
fn start_of_state(at: Place, index: u32) -> u32 {
    return at.block + index * part_words(at, at.quads);
}

// Where the part of the master weights starts.
fn start_of_master(at: Place) -> u32 {
    let scales = select(0u, (at.quads + 7u) / 8u, state_format(at.format) == STATE_Q8);
    return start_of_state(at, STATES) + scales;
}

fn load_plain(at: Place, index: u32) -> vec4<f32> {
    if state_format(at.format) == STATE_BF16 {
        return bitcast<vec4<f32>>(widen(BF16, halves_of(state_2(start_of_state(at, index), at.quad))));
    }
    return bitcast<vec4<f32>>(state_4(start_of_state(at, index), at.quad));
}

// The state of a quad, in a format above 8 bits.
fn load_state(at: Place) -> State {
    var loaded: State;
    if STATES > 0u {
        loaded[0] = load_plain(at, 0u);
    }
    if STATES > 1u {
        loaded[1] = load_plain(at, 1u);
    }
    if STATES > 2u {
        loaded[2] = load_plain(at, 2u);
    }
    return loaded;
}

fn store_f32(at: Place, index: u32, value: vec4<f32>) {
    set_state_4(start_of_state(at, index), at.quad, bitcast<vec4<u32>>(value));
}

// Rounds all states stochastically to bf16.
fn store_bf16(at: Place, state: State, random: Random) {
    var bits: array<vec4<u32>, MAX_STATES>;
    var sizes = abs(state[0]);
    if STATES > 0u {
        bits[0] = bitcast<vec4<u32>>(state[0]) + (random.state[0] >> vec4(16u));
    }
    if STATES > 1u {
        bits[1] = bitcast<vec4<u32>>(state[1]) + (random.state[1] >> vec4(16u));
        sizes += abs(state[1]);
    }
    if STATES > 2u {
        bits[2] = bitcast<vec4<u32>>(state[2]) + (random.state[2] >> vec4(16u));
        sizes += abs(state[2]);
    }
    // One look at all numbers, as in `bf16_rounded_up_from`.
    if !RARE_PATHS_APART || bitcast<u32>((sizes.x + sizes.y) + (sizes.z + sizes.w)) >= 0x7f800000u {
        if STATES > 0u {
            bits[0] = with_special(bits[0], bitcast<vec4<u32>>(state[0]));
        }
        if STATES > 1u {
            bits[1] = with_special(bits[1], bitcast<vec4<u32>>(state[1]));
        }
        if STATES > 2u {
            bits[2] = with_special(bits[2], bitcast<vec4<u32>>(state[2]));
        }
    }
    if STATES > 0u {
        set_state_2(start_of_state(at, 0u), at.quad, pack_halves(bits[0] >> vec4(16u)));
    }
    if STATES > 1u {
        set_state_2(start_of_state(at, 1u), at.quad, pack_halves(bits[1] >> vec4(16u)));
    }
    if STATES > 2u {
        set_state_2(start_of_state(at, 2u), at.quad, pack_halves(bits[2] >> vec4(16u)));
    }
}

// Stores the state of a quad, in a format above 8 bits.
fn store_state(at: Place, state: State, random: Random) {
    if state_format(at.format) == STATE_BF16 {
        store_bf16(at, state, random);
        return;
    }
    if STATES > 0u {
        store_f32(at, 0u, state[0]);
    }
    if STATES > 1u {
        store_f32(at, 1u, state[1]);
    }
    if STATES > 2u {
        store_f32(at, 2u, state[2]);
    }
}

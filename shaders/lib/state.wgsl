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

fn place_in_part(at: Place, index: u32) -> u32 {
    return at.block + index * part_words(at, at.quads) + part_words(at, at.quad);
}

fn place_of_master(at: Place) -> u32 {
    let scales = select(0u, (at.quads + 7u) / 8u, state_format(at.format) == STATE_Q8);
    return at.block + STATES * part_words(at, at.quads) + scales;
}

fn load_plain(at: Place, index: u32) -> vec4<f32> {
    if state_format(at.format) == STATE_BF16 {
        return bitcast<vec4<f32>>(widen(BF16, halves_of(state_2(place_in_part(at, index)))));
    }
    return bitcast<vec4<f32>>(state_4(place_in_part(at, index)));
}

fn load_state(at: Place, scales: u32) -> State {
    if state_format(at.format) == STATE_Q8 {
        return load_quantized(at, scales);
    }
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

fn store_plain(at: Place, index: u32, value: vec4<f32>, random: vec4<u32>) {
    let bits = bitcast<vec4<u32>>(value);
    if state_format(at.format) == STATE_BF16 {
        set_state_2(place_in_part(at, index), pack_halves(bf16_rounded_up_from(bits, random >> vec4(16u))));
    } else {
        set_state_4(place_in_part(at, index), bits);
    }
}

// `scales` are those that `scales_of` returned.
fn store_state(at: Place, scales: u32, state: State, random: Random) {
    if state_format(at.format) == STATE_Q8 {
        store_quantized(at, scales, state, random);
        return;
    }
    if STATES > 0u {
        store_plain(at, 0u, state[0], random.state[0]);
    }
    if STATES > 1u {
        store_plain(at, 1u, state[1], random.state[1]);
    }
    if STATES > 2u {
        store_plain(at, 2u, state[2], random.state[2]);
    }
}

// A chunk's block of state: one part a state, then the scales of quantized ones, then what master weights need.

// What the rules know as states; a rule with fewer leaves the last ones alone. SGD has its momentum_buffer in the first.
struct State {
    exp_avg: vec4<f32>,
    exp_avg_sq: vec4<f32>,
    exp_avg_lr: vec4<f32>,
}

// Words of 32 bits of a part, and of a place in it.
fn part_words(at: Place, words: u32) -> u32 {
    return words << (2u - state_format(at.format));
}

fn place_in_part(at: Place, index: u32) -> u32 {
    return at.block + index * part_words(at, at.words) + part_words(at, at.word);
}

fn place_of_master(at: Place) -> u32 {
    let scales = select(0u, (at.words + 7u) / 8u, state_format(at.format) == STATE_Q8);
    return at.block + STATES * part_words(at, at.words) + scales;
}

fn load_f32(at: Place, index: u32) -> vec4<f32> {
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
    loaded.exp_avg = load_f32(at, 0u);
    if STATES > 1u {
        loaded.exp_avg_sq = load_f32(at, 1u);
    }
    if STATES > 2u {
        loaded.exp_avg_lr = load_f32(at, 2u);
    }
    return loaded;
}

fn store_f32(at: Place, index: u32, value: vec4<f32>, random: vec4<u32>) {
    let bits = bitcast<vec4<u32>>(value);
    if state_format(at.format) == STATE_BF16 {
        set_state_2(place_in_part(at, index), pack_halves(bf16_rounded_up_from(bits, random >> vec4(16u))));
    } else {
        set_state_4(place_in_part(at, index), bits);
    }
}

// `scales` are those that `scales_of` has found.
fn store_state(at: Place, scales: u32, stepped: State, random: Random) {
    if state_format(at.format) == STATE_Q8 {
        store_quantized(at, scales, stepped, random);
        return;
    }
    store_f32(at, 0u, stepped.exp_avg, random.exp_avg);
    if STATES > 1u {
        store_f32(at, 1u, stepped.exp_avg_sq, random.exp_avg_sq);
    }
    if STATES > 2u {
        store_f32(at, 2u, stepped.exp_avg_lr, random.exp_avg_lr);
    }
}

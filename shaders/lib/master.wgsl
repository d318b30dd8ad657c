// Master weights: the f32 value of a 16-bit parameter, stored as the difference between the bits of the two. A difference of zero
// stands for the parameter's own value, so zeroed state is right at the start. src/storage/master.rs mirrors it.

fn load_difference(at: Place) -> vec4<u32> {
    let start = start_of_master(at);
    switch master_weights(at.format) {
        case MASTER_SPLIT24: {
            // A byte, in units of 2^-8 of the 16-bit number's last place.
            let bytes = vec4(state_1(start, at.quad)) << vec4(24u, 16u, 8u, 0u);
            return bitcast<vec4<u32>>(bitcast<vec4<i32>>(bytes & vec4(0xff000000u)) >> vec4(16u));
        }
        case MASTER_SPLIT32: {
            let halves = halves_of(state_2(start, at.quad));
            return bitcast<vec4<u32>>(bitcast<vec4<i32>>(halves << vec4(16u)) >> vec4(16u));
        }
        case MASTER_F32: {
            return state_4(start, at.quad);
        }
        default: {
            return vec4(0u);
        }
    }
}

fn store_difference(at: Place, difference: vec4<u32>) {
    let start = start_of_master(at);
    let kept = select(vec4(0u), difference, at.mask);
    switch master_weights(at.format) {
        case MASTER_SPLIT24: {
            let bytes = ((kept >> vec4(8u)) & vec4(0xffu)) << vec4(0u, 8u, 16u, 24u);
            set_state_1(start, at.quad, bytes.x | bytes.y | bytes.z | bytes.w);
        }
        case MASTER_SPLIT32: {
            set_state_2(start, at.quad, pack_halves(kept & vec4(0xffffu)));
        }
        case MASTER_F32: {
            set_state_4(start, at.quad, kept);
        }
        default: {
        }
    }
}

// The f32 bits of four parameters.
fn theta_of(at: Place, raw: vec4<u32>) -> vec4<u32> {
    let dtype = values_dtype(at.format);
    if dtype == F32 {
        return raw;
    }
    return widen(dtype, halves_of(raw.xy)) + load_difference(at);
}

// To 24 bits, to nearest even.
fn rounded_to_24_bits(bits: vec4<u32>) -> vec4<u32> {
    let even = (bits >> vec4(8u)) & vec4(1u);
    let rounded = (bits + vec4(0x7fu) + even) & vec4(0xffffff00u);
    return select(rounded, bits, (bits & INFINITY) == INFINITY);
}

// Stores four parameters and their master weights. What lies past the tensor's end stays as it is.
fn store_theta(at: Place, raw: vec4<u32>, theta: vec4<u32>, random: vec4<u32>) {
    let dtype = values_dtype(at.format);
    if dtype == F32 {
        var stored = theta;
        if !at.mask.w {
            stored = select(raw, theta, at.mask);
        }
        store_parameters(at, stored);
        return;
    }
    if WHOLE && is_rounded_stochastically(at.format) {
        // Compilers take the high halves where they are, without shifting them down first, if nothing else happens to them.
        store_parameters(at, vec4(pack_halves(bf16_rounded_up_from(theta, random >> vec4(16u))), 0u, 0u));
        return;
    }
    let master = master_weights(at.format);
    var bits = theta;
    var halves: vec4<u32>;
    if dtype == BF16 && master == MASTER_NONE {
        halves = bf16_rounded_up_from(bits, random >> vec4(16u));
    } else if master == MASTER_F32 {
        halves = narrow(dtype, bits);
    } else {
        // Ties go up, so that the difference fits into 16 bits with a sign.
        if master == MASTER_SPLIT24 {
            bits = rounded_to_24_bits(bits);
        }
        halves = bf16_rounded_up_from(bits, vec4(0x8000u));
    }
    let is_special = (bits & INFINITY) == INFINITY;
    if master != MASTER_NONE {
        store_difference(at, select(bits - widen(dtype, halves), vec4(0u), is_special));
    }
    if !at.mask.w {
        halves = select(halves_of(raw.xy), halves, at.mask);
    }
    store_parameters(at, vec4(pack_halves(halves), 0u, 0u));
}

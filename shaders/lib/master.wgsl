// Master weights: the f32 value of a 16-bit parameter, stored as the difference between the bits of the two (f16: see below). A
// difference of zero stands for the parameter's own value, so zeroed state is right at the start. src/storage/master.rs mirrors it.

// The differences of a quad, of a byte each, in a word; 0 with other master weights.
fn load_bytes(at: Place) -> u32 {
    if master_weights(at.format) == MASTER_SPLIT24 {
        return state_1(start_of_master(at), at.quad);
    }
    return 0u;
}

// The differences of a quad. `word` has them if they are bytes.
fn load_difference(at: Place, word: u32) -> vec4<u32> {
    let start = start_of_master(at);
    switch master_weights(at.format) {
        case MASTER_SPLIT24: {
            // In units of 2^-8 of the 16-bit number's last place.
            let bytes = vec4(word) << vec4(24u, 16u, 8u, 0u);
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

// Stores differences, but for those of a byte: it returns their word, because a launch may store such words in pairs.
fn store_difference(at: Place, difference: vec4<u32>) -> u32 {
    let start = start_of_master(at);
    let kept = select(vec4(0u), difference, at.mask);
    switch master_weights(at.format) {
        case MASTER_SPLIT24: {
            let bytes = ((kept >> vec4(8u)) & vec4(0xffu)) << vec4(0u, 8u, 16u, 24u);
            return bytes.x | bytes.y | bytes.z | bytes.w;
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
    return 0u;
}

// Split master weights of f16. f16 has fixed point up to 2^-14, and there the master weights continue it: they are a difference in units
// of 2^-32 (8 bits) or 2^-40 (16 bits). Above, they are a difference of bits, in units of 2^-8 of the f16 number's last place (8 bits), or
// of f32's last place (16 bits).
const F16_FIXED = vec4(0x400u);
// 2^-14 and half of its last place in f16: smaller numbers are at most 2^-14 as f16.
const F16_FIXED_END = vec4(0x38801000u);
const LARGEST_F16 = vec4(0x7bffu);

fn is_split_f16(dtype: u32, master: u32) -> bool {
    return dtype == F16 && (master == MASTER_SPLIT24 || master == MASTER_SPLIT32);
}

fn shifted_down(difference: vec4<u32>, bits: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(bitcast<vec4<i32>>(difference) >> vec4(bits));
}

fn joined_f16(master: u32, halves: vec4<u32>, difference: vec4<u32>) -> vec4<u32> {
    let sign = (halves & vec4(0x8000u)) << vec4(16u);
    let magnitude = halves & vec4(0x7fffu);
    var normal: vec4<u32>;
    var small: vec4<f32>;
    if master == MASTER_SPLIT24 {
        let rest = shifted_down(difference, 8u);
        normal = f32_of_f16(halves) + (rest << vec4(5u));
        small = vec4<f32>((magnitude << vec4(8u)) + rest) * 0x1p-32;
    } else {
        normal = f32_of_f16(halves) + difference;
        small = vec4<f32>((magnitude << vec4(16u)) + difference) * 0x1p-40;
    }
    return select(normal, sign | bitcast<vec4<u32>>(small), magnitude <= F16_FIXED);
}

struct Split {
    halves: vec4<u32>,
    difference: vec4<u32>,
}

// Finite numbers past the largest f16 are held there. Ties go up, so that the difference fits.
fn split_f16(master: u32, bits: vec4<u32>) -> Split {
    let sign = (bits >> vec4(16u)) & vec4(0x8000u);
    let magnitude = bits & MAGNITUDE;
    let small = bitcast<vec4<f32>>(min(magnitude, F16_FIXED_END));
    var normal: vec4<u32>;
    var small_half: vec4<u32>;
    var small_rest: vec4<u32>;
    if master == MASTER_SPLIT24 {
        let even = (magnitude >> vec4(5u)) & vec4(1u);
        normal = min((magnitude + vec4(0xfu) + even) & vec4(0xffffffe0u), vec4(0x477fefe0u));
        let fixed = vec4<u32>(round(small * 0x1p32));
        small_half = (fixed + vec4(0x80u)) >> vec4(8u);
        small_rest = (fixed - (small_half << vec4(8u))) << vec4(8u);
    } else {
        normal = min(magnitude, vec4(0x477fefffu));
        let fixed = vec4<u32>(round(small * 0x1p40));
        small_half = (fixed + vec4(0x8000u)) >> vec4(16u);
        small_rest = fixed - (small_half << vec4(16u));
    }
    let normal_half = (normal - vec4(0x38000000u) + vec4(0x1000u)) >> vec4(13u);
    var normal_rest = normal - ((normal_half << vec4(13u)) + vec4(0x38000000u));
    if master == MASTER_SPLIT24 {
        normal_rest = normal_rest << vec4(3u);
    }
    let is_small = magnitude < F16_FIXED_END;
    let is_special = magnitude >= INFINITY;
    let halves = sign | select(normal_half, small_half, is_small);
    let difference = select(normal_rest, small_rest, is_small);
    return Split(select(halves, f16_of_f32(bits), is_special), select(difference, vec4(0u), is_special));
}

// The f32 bits of four parameters. `bytes` is what `load_bytes` loads.
fn theta_of(at: Place, raw: vec4<u32>, bytes: u32) -> vec4<u32> {
    let dtype = values_dtype(at.format);
    if dtype == F32 {
        return raw;
    }
    let master = master_weights(at.format);
    if is_split_f16(dtype, master) {
        return joined_f16(master, halves_of(raw.xy), load_difference(at, bytes));
    }
    return widen(dtype, halves_of(raw.xy)) + load_difference(at, bytes);
}

// To 24 bits, to nearest even.
fn rounded_to_24_bits(bits: vec4<u32>) -> vec4<u32> {
    let even = (bits >> vec4(8u)) & vec4(1u);
    let rounded = (bits + vec4(0x7fu) + even) & vec4(0xffffff00u);
    return select(rounded, bits, (bits & INFINITY) == INFINITY);
}

// Stores four parameters and their master weights, and returns what `store_difference` does. What lies past the tensor's end stays as it is.
fn store_theta(at: Place, raw: vec4<u32>, theta: vec4<u32>, random: vec4<u32>) -> u32 {
    let dtype = values_dtype(at.format);
    if dtype == F32 {
        var stored = theta;
        if !at.mask.w {
            stored = select(raw, theta, at.mask);
        }
        store_parameters(at, stored);
        return 0u;
    }
    if WHOLE && is_rounded_stochastically(at.format) {
        // Compilers take the high halves where they are, without shifting them down first, if nothing else happens to them.
        store_parameters(at, vec4(pack_halves(bf16_rounded_up_from(theta, random >> vec4(16u))), 0u, 0u));
        return 0u;
    }
    let master = master_weights(at.format);
    var halves: vec4<u32>;
    var bytes = 0u;
    if is_split_f16(dtype, master) {
        let split = split_f16(master, theta);
        halves = split.halves;
        bytes = store_difference(at, split.difference);
    } else {
        var bits = theta;
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
            bytes = store_difference(at, select(bits - widen(dtype, halves), vec4(0u), is_special));
        }
    }
    if !at.mask.w {
        halves = select(halves_of(raw.xy), halves, at.mask);
    }
    store_parameters(at, vec4(pack_halves(halves), 0u, 0u));
    return bytes;
}

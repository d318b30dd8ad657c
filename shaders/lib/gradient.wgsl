// The f32 bits of four gradients.
fn gradient_bits(at: Place) -> vec4<u32> {
    let raw = load_gradients(at);
    let dtype = gradients_dtype(at.format);
    if dtype == F32 {
        return raw;
    }
    return widen(dtype, halves_of(raw.xy));
}

fn zero_gradients(at: Place) {
    if at.mask.w {
        store_gradients(at, vec4(0u));
        return;
    }
    // The tensor's last quad: what lies past its end stays as it is.
    let raw = load_gradients(at);
    if gradients_dtype(at.format) == F32 {
        store_gradients(at, select(raw, vec4(0u), at.mask));
    } else {
        store_gradients(at, vec4(pack_halves(select(halves_of(raw.xy), vec4(0u), at.mask)), 0u, 0u));
    }
}

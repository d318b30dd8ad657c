// A 16-bit shadow copy of f32 parameters, for the next forward pass.

fn store_shadow(at: Place, theta: vec4<u32>) {
    let dtype = shadow_dtype(at.format);
    if !HAS_SHADOW || dtype == F32 {
        return;
    }
    let halves = narrow(dtype, theta);
    let words = pack_halves(halves);
    let first = at.shadow + 2u * at.quad;
    if at.mask.w {
        set_shadow_word(at.segment, first, words.x);
        set_shadow_word(at.segment, first + 1u, words.y);
        return;
    }
    // The tensor's last quad: a half word past its end stays as it is.
    if at.mask.y {
        set_shadow_word(at.segment, first, words.x);
    } else {
        set_shadow_word(at.segment, first, halves.x | (shadow_word(at.segment, first) & 0xffff0000u));
    }
    if at.mask.z {
        set_shadow_word(at.segment, first + 1u, halves.z | (shadow_word(at.segment, first + 1u) & 0xffff0000u));
    }
}

// A 16-bit shadow copy of f32 parameters, for the next forward pass.

@group(0) @binding(SHADOW_BINDING) var<storage, read_write> shadow: array<u32>;

fn store_shadow(at: Place, theta: vec4<u32>) {
    let dtype = shadow_dtype(at.format);
    if dtype == F32 {
        return;
    }
    let halves = narrow(dtype, theta);
    let words = pack_halves(halves);
    if at.mask.w {
        shadow[at.shadow] = words.x;
        shadow[at.shadow + 1u] = words.y;
        return;
    }
    // The tensor's last quad: a half word past its end stays as it is.
    if at.mask.y {
        shadow[at.shadow] = words.x;
    } else {
        shadow[at.shadow] = halves.x | (shadow[at.shadow] & 0xffff0000u);
    }
    if at.mask.z {
        shadow[at.shadow + 1u] = halves.z | (shadow[at.shadow + 1u] & 0xffff0000u);
    }
}

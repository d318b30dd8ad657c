// A 16-bit shadow copy of f32 parameters, for the next forward pass.

@group(0) @binding(SHADOW_BINDING) var<storage, read_write> shadow: array<u32>;

fn store_shadow(at: Place, theta: vec4<u32>) {
    let dtype = shadow_dtype(at.format);
    if dtype == F32 {
        return;
    }
    let halves = narrow(dtype, theta);
    let words = pack_halves(halves);
    let first = at.shadow + 2u * at.quad;
    if at.mask.w {
        shadow[first] = words.x;
        shadow[first + 1u] = words.y;
        return;
    }
    // The tensor's last quad: a half word past its end stays as it is.
    if at.mask.y {
        shadow[first] = words.x;
    } else {
        shadow[first] = halves.x | (shadow[first] & 0xffff0000u);
    }
    if at.mask.z {
        shadow[first + 1u] = halves.z | (shadow[first + 1u] & 0xffff0000u);
    }
}

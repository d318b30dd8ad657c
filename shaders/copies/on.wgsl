// A copy of each f32 parameter in 16 bits, for the next forward pass.

@group(0) @binding(7) var<storage, read_write> copies: array<u32>;

fn store_copies(at: Place, theta: vec4<u32>) {
    let dtype = copies_dtype(at.format);
    if dtype == F32 {
        return;
    }
    let halves = narrow(dtype, theta);
    let words = pack_halves(halves);
    if at.mask.w {
        copies[at.copies] = words.x;
        copies[at.copies + 1u] = words.y;
        return;
    }
    // A tensor's last word: a half behind its end stays as it is.
    if at.mask.y {
        copies[at.copies] = words.x;
    } else {
        copies[at.copies] = halves.x | (copies[at.copies] & 0xffff0000u);
    }
    if at.mask.z {
        copies[at.copies + 1u] = halves.z | (copies[at.copies + 1u] & 0xffff0000u);
    }
}

// A copy of each f32 parameter in 16 bits, for the next forward pass.

@group(0) @binding(7) var<storage, read_write> copies: array<u32>;

fn store_copies(at: Place, theta: vec4<u32>) {
    let dtype = copies_dtype(at.format);
    if dtype == F32 {
        return;
    }
    let halves = narrow(dtype, theta);
    let old = copies[at.copies] >> 16u;
    copies[at.copies] = halves.x | (select(old, halves.y, at.mask.y) << 16u);
    if at.mask.z {
        let old_last = copies[at.copies + 1u] >> 16u;
        copies[at.copies + 1u] = halves.z | (select(old_last, halves.w, at.mask.w) << 16u);
    }
}

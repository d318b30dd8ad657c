// No copies in 16 bits.

fn store_copies(at: Place, theta: vec4<u32>) {
}

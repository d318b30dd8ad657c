// No shadow copies.

fn store_shadow(at: Place, theta: vec4<u32>) {
}

// No diagnostics: the calls of the kernel vanish.

fn begin_observation(lane: u32) {
}

fn observe(at: Place, theta: vec4<f32>, stepped: Stepped) {
}

fn end_observation(lane: u32) {
}

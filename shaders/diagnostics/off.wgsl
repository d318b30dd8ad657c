// No diagnostics: the calls of the kernel vanish.

fn observe(at: Place, stepped: Stepped) {
}

fn end_observation(lane: u32) {
}

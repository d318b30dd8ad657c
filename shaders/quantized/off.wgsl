// No 8-bit state in this launch.

// No lane waits for another. Where lanes go round a loop, few of them are past its end, and software adapters execute a branch at
// every lane's cost.
fn is_idle(at: Place) -> bool {
    return LANES >= CHUNK_ELEMENTS / 4u && at.is_extra;
}

fn load_scales(at: Place) -> u32 {
    return 0u;
}

fn load_quantized(at: Place, scales: u32) -> State {
    return State();
}

fn scales_of(at: Place, format: u32, lane: u32, before: u32, state: State) -> u32 {
    return 0u;
}

fn store_quantized(at: Place, scales: u32, state: State, random: Random) {
}

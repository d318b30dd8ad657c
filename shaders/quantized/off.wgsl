// No state of 8 bits in this launch.

fn load_scales(at: Place) -> u32 {
    return 0u;
}

fn load_quantized(at: Place, scales: u32) -> State {
    return State();
}

fn store_quantized(at: Place, lane: u32, before: u32, stepped: State, random: Random) {
}

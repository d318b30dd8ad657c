// No state of 8 bits in this launch.

fn load_quantized(at: Place) -> State {
    return State();
}

fn store_quantized(at: Place, lane: u32, stepped: State, random: Random) {
}

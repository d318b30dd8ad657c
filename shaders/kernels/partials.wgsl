// The norm from the partial sums of all launches, and the preparation of the step, in a dispatch of its own. Metal and Direct3D 12 take it,
// where compilers have mistaken the barriers of `norm_and_prepare`.

@compute @workgroup_size(LANES)
fn norm_of_partials(@builtin(local_invocation_index) lane: u32) {
    // All have arrived.
    let sum = sum_of_partials(arrayLength(&partials) / PARTIAL_WORDS, lane);
    if lane == 0u {
        set_norm(sum);
    }
    if !NORM_ONLY {
        prepare_rows(lane);
    }
}

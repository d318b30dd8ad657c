// Preparation of a step that looks at no gradients.

// A step without gradients has norm 0.
@compute @workgroup_size(1)
fn no_norm() {
    kept.control.norm = 0.0;
    kept.sum_of_squares = array<u32, 7>();
}

// A norm in the control buffer is the engine's, which all devices clip to alike.
@compute @workgroup_size(LANES)
fn prepare(@builtin(local_invocation_index) lane: u32) {
    if lane == 0u {
        kept.norm_excess = 1.0;
    }
    prepare_rows(lane);
}

// The norm in the control buffer is that of a joint step.
@compute @workgroup_size(LANES)
fn prepare_joint(@builtin(local_invocation_index) lane: u32) {
    prepare_rows(lane);
}

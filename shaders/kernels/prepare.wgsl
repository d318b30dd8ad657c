// Preparation of a step that looks at no gradients.

// A step without gradients has norm 0.
@compute @workgroup_size(1)
fn no_norm() {
    kept.control.norm = 0.0;
}

// A norm in the control buffer is the engine's, which all devices clip to alike.
@compute @workgroup_size(LANES)
fn prepare(@builtin(local_invocation_index) lane: u32) {
    if lane == 0u {
        kept.norm_excess = 1.0;
    }
    prepare_rows(lane);
}

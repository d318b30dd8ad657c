// The step. One workgroup owns one chunk: it reads parameters, gradients and state once, and writes parameters and state
// once. Linked after the tables, the arithmetic, one rule, one access, one binding of gradients and one diagnostics.

fn update_lane(c: Coefficients, at: Place, tail: bool) {
    let theta = load_parameters(at, tail);
    let stepped = step(c, bitcast<vec4<f32>>(theta), load_gradients(at, tail), load_state(at, tail));
    store_parameters(at, theta, stepped.parameters, tail);
    store_state(at, stepped.state, tail);
    observe(at, stepped, tail);
}

// The grid has two dimensions where one is too short, so its last row may reach past the chunks.
@compute @workgroup_size(LANES)
fn update(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.y * workgroups.x + workgroup.x;
    if index >= arrayLength(&chunks) {
        return;
    }
    let chunk = chunks[index];
    let segment = segments[chunk.segment];
    let c = coefficients[segment.coefficients];
    if c.enabled == 0u {
        return;
    }
    let at = place(segment, chunk, lane);
    // Every branch on `elements` is uniform in the workgroup: whole chunks pay for no guard.
    if chunk.elements == CHUNK_ELEMENTS {
        update_lane(c, at, false);
    } else if at.mask.x {
        update_lane(c, at, true);
    }
    end_observation(lane);
}

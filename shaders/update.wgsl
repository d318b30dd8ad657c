// The step. One workgroup owns one chunk: it reads parameters, gradients and state once, and writes parameters and state
// once. Linked after the tables, the arithmetic, one rule, one access, one binding of gradients and one diagnostics.

fn update_word(c: Coefficients, at: Place) {
    let theta = load_parameters(at);
    let stepped = step(c, bitcast<vec4<f32>>(theta), load_gradients(at), load_state(at));
    store_parameters(at, theta, stepped.parameters);
    store_state(at, stepped.state);
    observe(at, stepped);
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
    for (var word = lane; word < words_of(chunk); word += LANES) {
        update_word(c, place(segment, chunk, word));
    }
    end_observation(lane);
}

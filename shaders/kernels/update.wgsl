// The step. One workgroup owns one chunk. It reads parameters, gradients and state once, and writes parameters and state once. Linked
// after the files that it uses: lib/, and one file of each folder of variants.

// Gradients are set to zero once they have been read, also in a skipped step.
override ZERO_GRADIENTS: bool = false;

// A quad before the step.
struct Quad {
    at: Place,
    // Its parameters as they are stored.
    raw: vec4<u32>,
    elements: Elements,
}

fn needs_random(format: u32) -> bool {
    return state_format(format) != STATE_F32 || is_rounded_stochastically(format);
}

// Loads a quad without its state. `bytes` is what `load_bytes` loads.
fn load_quad(at: Place, bytes: u32) -> Quad {
    var quad: Quad;
    quad.at = at;
    quad.raw = load_parameters(at);
    quad.elements.theta = bitcast<vec4<f32>>(theta_of(at, quad.raw, bytes));
    quad.elements.gradient = gradient_bits(at);
    // Past the tensor's end state is zero, and stays zero. A positive state would not without the masks of `step_quad`.
    if !at.mask.w {
        quad.elements.theta = select(vec4(0.0), quad.elements.theta, at.mask);
        quad.elements.gradient = select(vec4(0u), quad.elements.gradient, at.mask);
    }
    return quad;
}

fn step_quad(c: Coefficients, general: General, quad: Quad) -> Stepped {
    var stepped = step_rows(c, general, quad);
    if !quad.at.mask.w {
        if SIGN_0 == POSITIVE {
            stepped.state[0] = select(vec4(0.0), stepped.state[0], quad.at.mask);
        }
        if SIGN_1 == POSITIVE {
            stepped.state[1] = select(vec4(0.0), stepped.state[1], quad.at.mask);
        }
        if SIGN_2 == POSITIVE {
            stepped.state[2] = select(vec4(0.0), stepped.state[2], quad.at.mask);
        }
    }
    return stepped;
}

// Stores a quad without its state.
fn store_quad(quad: Quad, stepped: Stepped, random: Random) {
    let bytes = store_theta(quad.at, quad.raw, bitcast<vec4<u32>>(stepped.theta), random.parameters);
    if master_weights(quad.at.format) == MASTER_SPLIT24 {
        set_state_1(start_of_master(quad.at), quad.at.quad, bytes);
    }
    finish_quad(quad, stepped);
}

// What follows once parameters are stored.
fn finish_quad(quad: Quad, stepped: Stepped) {
    store_shadow(quad.at, bitcast<vec4<u32>>(stepped.theta));
    if ZERO_GRADIENTS {
        zero_gradients(quad.at);
    }
    observe(observed(quad.at), quad.elements.theta, stepped);
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
    if c.activity == INACTIVE {
        return;
    }
    let format = format_of(segment);
    let is_debiased = state_format(format) != STATE_F32;
    let general =
        General(c.gradient_scale, c.gradient_prescale, c.coupled_decay, c.decoupled_decay, c.options, is_debiased);
    begin_rows(chunk);
    begin_observation(lane);
    // All lanes go round together, because lanes that share a quant block work together. With lanes for all quads the compiler sees no
    // loop.
    var first = 0u;
    loop {
        if c.activity == ACTIVE {
            update_lane(c, general, segment, chunk, format, first, lane);
        } else if ZERO_GRADIENTS {
            skip_lane(segment, chunk, first + lane);
        }
        continuing {
            first += LANES;
            break if LANES * LANE_QUADS >= CHUNK_ELEMENTS / 4u || first * LANE_QUADS >= quads_of(chunk);
        }
    }
    end_observation(lane);
}

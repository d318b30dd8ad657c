// The step. One workgroup owns one chunk. It reads parameters, gradients and state once, and writes parameters and state once. Linked
// after the files that it uses: lib/, and one file of each folder of variants.

// Gradients are set to zero once they have been read, also in a skipped step.
override ZERO_GRADIENTS: bool = false;

fn needs_random(format: u32) -> bool {
    return state_format(format) != STATE_F32 || is_rounded_stochastically(format);
}

fn update_quad(c: Coefficients, general: General, at: Place, format: u32, lane: u32) {
    if is_idle(at) {
        return;
    }
    let raw = load_parameters(at);
    var theta = bitcast<vec4<f32>>(theta_of(at, raw));
    var gradient = gradient_bits(at);
    let scales = load_scales(at);
    let old = load_state(at, scales);
    // Past the tensor's end state is zero, and stays zero. A positive state would not without this.
    if !at.mask.w {
        theta = select(vec4(0.0), theta, at.mask);
        gradient = select(vec4(0u), gradient, at.mask);
    }
    var stepped = step(general, c, Elements(theta, gradient, old));
    if !at.mask.w {
        if SIGN_0 == POSITIVE {
            stepped.state[0] = select(vec4(0.0), stepped.state[0], at.mask);
        }
        if SIGN_1 == POSITIVE {
            stepped.state[1] = select(vec4(0.0), stepped.state[1], at.mask);
        }
        if SIGN_2 == POSITIVE {
            stepped.state[2] = select(vec4(0.0), stepped.state[2], at.mask);
        }
    }
    let new_scales = scales_of(at, format, lane, scales, stepped.state);
    if at.is_extra {
        return;
    }
    var random: Random;
    if needs_random(format) {
        random = random_of(at.key, c.step, at.quad_of_tensor);
    }
    store_state(at, new_scales, stepped.state, random);
    store_theta(at, raw, bitcast<vec4<u32>>(stepped.theta), random.parameters);
    store_shadow(at, bitcast<vec4<u32>>(stepped.theta));
    if ZERO_GRADIENTS {
        zero_gradients(at);
    }
    observe(at, theta, stepped);
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
    begin_observation(lane);
    // All lanes go round together, because lanes that share a quant block work together. With a lane for each quad the compiler sees no
    // loop.
    var first = 0u;
    loop {
        let at = place(segment, chunk, first + lane);
        if c.activity == ACTIVE {
            update_quad(c, general, at, format, lane);
        } else if ZERO_GRADIENTS && !at.is_extra {
            zero_gradients(at);
        }
        continuing {
            first += LANES;
            break if LANES >= CHUNK_ELEMENTS / 4u || first >= quads_of(chunk);
        }
    }
    end_observation(lane);
}

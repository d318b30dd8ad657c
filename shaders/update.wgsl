// The step. One workgroup owns one chunk: it reads parameters, gradients and state once, and writes parameters and state
// once. Linked after the files it uses: one of each folder beside it.

// Gradients are set to zero once they are read, also in a step that is called off.
override ZERO_GRADIENTS: bool = false;

fn draws(format: u32) -> bool {
    return state_format(format) != STATE_F32 || is_rounded_stochastically(format);
}

fn update_word(c: Coefficients, at: Place, format: u32, lane: u32) {
    if is_idle(at) {
        return;
    }
    let raw = load_parameters(at);
    var theta = bitcast<vec4<f32>>(theta_of(at, raw));
    var gradient = gradient_bits(at);
    let scales = load_scales(at);
    let old = load_state(at, scales);
    // Past a tensor's end state is zero, and stays zero.
    if !at.mask.w {
        theta = select(vec4(0.0), theta, at.mask);
        gradient = select(vec4(0u), gradient, at.mask);
    }
    var stepped = step(c, theta, gradient, old);
    if !at.mask.w {
        stepped.state.exp_avg_lr = select(vec4(0.0), stepped.state.exp_avg_lr, at.mask);
    }
    let new_scales = scales_of(at, format, lane, scales, stepped.state);
    if at.is_extra {
        return;
    }
    var random: Random;
    if draws(format) {
        random = random_of(at.key, c.step, at.word_of_tensor);
    }
    store_state(at, new_scales, stepped.state, random);
    store_theta(at, raw, bitcast<vec4<u32>>(stepped.parameters), random.parameters);
    store_copies(at, bitcast<vec4<u32>>(stepped.parameters));
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
    var c = coefficients[segment.coefficients];
    if c.activity == INACTIVE {
        return;
    }
    let format = format_of(segment);
    if state_format(format) == STATE_F32 {
        c.debiased_lr_scale = 1.0;
    } else {
        c.exp_avg_lr_weight = c.debiased_lr_weight;
    }
    begin_observation(lane);
    // All lanes go round together: quantized state is stored by lanes that work together. With a lane for each word, once, and
    // the compiler sees no loop.
    var first = 0u;
    loop {
        let at = place(segment, chunk, first + lane);
        if c.activity == ACTIVE {
            update_word(c, at, format, lane);
        } else if ZERO_GRADIENTS && !at.is_extra {
            zero_gradients(at);
        }
        continuing {
            first += LANES;
            break if LANES >= CHUNK_ELEMENTS / 4u || first >= words_of(chunk);
        }
    }
    end_observation(lane);
}

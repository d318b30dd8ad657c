// SGD with momentum as in torch.optim.SGD (dampening 0, no Nesterov), the paper's SGDM.
//
//   g = gradient (scaled; coupled decay added)
//   b = momentum b + g
//   theta = theta - alpha lambda theta - alpha b

struct State {
    momentum_buffer: vec4<f32>,
}

struct Stepped {
    parameters: vec4<f32>,
    state: State,
    eta: vec4<f32>,
    bounded: vec4<f32>,
}

fn load_state(at: Place) -> State {
    return State(load_state_word(at, 0u));
}

fn store_state(at: Place, state: State) {
    store_state_word(at, 0u, state.momentum_buffer);
}

fn step(c: Coefficients, theta: vec4<f32>, gradient_bits: vec4<u32>, old: State) -> Stepped {
    let g = scaled_gradient(c, bitcast<vec4<f32>>(gradient_bits), theta);
    let b = c.momentum * old.momentum_buffer + g;
    let rate = vec4(c.step_size);
    return Stepped(moved(c, theta, rate, b), State(b), rate, rate);
}

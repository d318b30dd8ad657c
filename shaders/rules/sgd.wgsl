// SGD with momentum as in torch.optim.SGD (dampening 0, no Nesterov), the paper's SGDM.
//
//   g = gradient (scaled; coupled decay added)
//   b = momentum b + g
//   theta = theta - alpha lambda theta - alpha b

const STATES = 1u;

struct Stepped {
    parameters: vec4<f32>,
    state: State,
    eta: vec4<f32>,
    bounded: vec4<f32>,
}

fn step(c: Coefficients, theta: vec4<f32>, gradient_bits: vec4<u32>, old: State) -> Stepped {
    let g = scaled_gradient(c, bitcast<vec4<f32>>(gradient_bits), theta);
    let b = c.momentum * old.exp_avg + g;
    let rate = vec4(c.step_size);
    return Stepped(moved(c, theta, rate, b), State(b, vec4(0.0), vec4(0.0)), rate, rate);
}

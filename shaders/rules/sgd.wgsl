// SGD with momentum as in torch.optim.SGD without dampening and Nesterov momentum, the paper's SGDM.
//
//   g = gradient (scaled; coupled decay added)
//   b = momentum b + g
//   theta = theta - alpha lambda theta - alpha b

struct SgdCoefficients {
    momentum: f32,
    step_size: f32,
}

// The coefficients of step t, from those with all corrections 1.
fn sgd_coefficients(base: SgdCoefficients, variant: u32, decay: Decay) -> SgdCoefficients {
    return base;
}

fn sgd_step(general: General, c: SgdCoefficients, e: Elements) -> Stepped {
    let buffer = c.momentum * e.state[0] + scaled_gradient(general, e);
    let rate = vec4(c.step_size);
    let theta = apply_step(general, e.theta, rate, buffer);
    return Stepped(theta, State(buffer, e.state[1], e.state[2]), rate, rate);
}

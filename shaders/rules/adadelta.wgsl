// AdaDelta (Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method"), Algorithm 1, as in torch.optim.Adadelta.
//
//   g = gradient (scaled; coupled decay added)
//   v = rho v + (1 - rho) g^2
//   d = sqrt(u + epsilon) / sqrt(v + epsilon) g
//   u = rho u + (1 - rho) d^2
//   theta = theta - alpha lambda theta - alpha d

struct AdaDeltaCoefficients {
    weight: f32,
    step_size: f32,
    epsilon: f32,
}

// The coefficients of step t: they are the same at every step.
fn adadelta_coefficients(base: AdaDeltaCoefficients, variant: u32, decay: Decay) -> AdaDeltaCoefficients {
    return base;
}

fn adadelta_step(general: General, c: AdaDeltaCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let square_avg = ema(e.state[0], g * g, c.weight);
    let ratio = sqrt(e.state[1] + c.epsilon) / sqrt(square_avg + c.epsilon);
    let delta = ratio * g;
    let acc_delta = ema(e.state[1], delta * delta, c.weight);
    let rate = c.step_size * ratio;
    let theta = apply_step(general, e.theta, g, vec4(c.step_size), delta);
    return Stepped(theta, State(square_avg, acc_delta, e.state[2]), rate, rate);
}

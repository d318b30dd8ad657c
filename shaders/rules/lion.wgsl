// Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"), Algorithm 2, as in the authors' code.
//
//   g = gradient (scaled; coupled decay added)
//   d = sign(beta1 m + (1 - beta1) g)
//   m = beta2 m + (1 - beta2) g
//   theta = theta - alpha lambda theta - alpha d

struct LionCoefficients {
    direction_weight: f32,
    exp_avg_weight: f32,
    step_size: f32,
}

// The coefficients of step t: they are the same at every step.
fn lion_coefficients(base: LionCoefficients, variant: u32, decay: Decay) -> LionCoefficients {
    return base;
}

fn lion_step(general: General, c: LionCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let direction = signum(ema(e.state[0], g, c.direction_weight));
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let rate = vec4(c.step_size);
    let theta = apply_step(general, e.theta, g, rate, direction);
    return Stepped(theta, State(m, e.state[1], e.state[2]), rate, rate);
}

// AdaGrad (Duchi et al. 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization"), diagonal, as in
// torch.optim.Adagrad.
//
//   g = gradient (scaled; coupled decay added)
//   s = s + g^2                                s starts from the initial value
//   eta = alpha / (1 + (t - 1) lr_decay) / (sqrt(s) + epsilon)
//   theta = theta - alpha lambda theta - eta g

struct AdaGradCoefficients {
    step_size: f32,
    initial: f32,
    epsilon: f32,
    lr_decay: f32,
}

// 2^127. Squares are at most 2^126, so a larger sum could become infinite. A sum that an infinite gradient made so stays infinite.
const ADAGRAD_SUM_LIMIT: f32 = 0x1p127;

// The coefficients of step t, from those of the first step.
fn adagrad_coefficients(base: AdaGradCoefficients, variant: u32, decay: Decay) -> AdaGradCoefficients {
    var c = base;
    c.step_size = base.step_size / (1.0 + f32(decay.t - 1u) * base.lr_decay);
    c.initial = select(0.0, base.initial, decay.t == 1u);
    return c;
}

fn adagrad_step(general: General, c: AdaGradCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let grown = (e.state[0] + c.initial) + g * g;
    let bits = bitcast<vec4<u32>>(grown);
    let is_limited = (bits > vec4(bitcast<u32>(ADAGRAD_SUM_LIMIT))) & (bits < vec4(INFINITY));
    let sum = select(grown, vec4(ADAGRAD_SUM_LIMIT), is_limited);
    let eta = eta_of(c.step_size, sum, 1.0, c.epsilon);
    let theta = apply_step(general, e.theta, g, eta, g);
    return Stepped(theta, State(sum, e.state[1], e.state[2]), eta, eta);
}

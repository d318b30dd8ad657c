// AdaBound and AMSBound (Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate"), as in the authors' code.
//
//   g = gradient (scaled; coupled decay added)
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) g^2              with amsbound v is then the largest so far
//   eta = alpha sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + epsilon)
//   final = final_lr alpha / base_lr
//   eta^ = clip(eta, final (1 - 1 / (gamma t + 1)), final (1 + 1 / (gamma t)))
//   theta = theta - alpha lambda theta - eta^ m
//
// The paper's Algorithm 2 has no bias correction and divides alpha by the root of t. The authors' code, which is followed here, is the other
// way round.

struct AdaBoundCoefficients {
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    step_size: f32,
    epsilon: f32,
    lower_bound: f32,
    upper_bound: f32,
    gamma: f32,
}

// Forms.
const ADABOUND_AMSBOUND = 1u;

// The coefficients of step t, from those with all corrections 1 and both bounds final.
fn adabound_coefficients(base: AdaBoundCoefficients, variant: u32, decay: Decay) -> AdaBoundCoefficients {
    var c = base;
    c.step_size = base.step_size * sqrt(decay.one_minus_power[1]) / decay.one_minus_power[0];
    let closeness = base.gamma * f32(decay.t);
    c.lower_bound = base.lower_bound * (closeness / (closeness + 1.0));
    c.upper_bound = base.upper_bound * (1.0 + 1.0 / closeness);
    return c;
}

fn adabound_step(general: General, c: AdaBoundCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    var largest = e.state[2];
    var second = v;
    if FORM == ADABOUND_AMSBOUND {
        largest = larger(largest, v);
        second = largest;
    }
    let eta = eta_of(c.step_size, second, 1.0, c.epsilon);
    let below = select(eta, vec4(c.upper_bound), eta > vec4(c.upper_bound));
    let bounded = select(below, vec4(c.lower_bound), below < vec4(c.lower_bound));
    let theta = apply_step(general, e.theta, g, bounded, m);
    return Stepped(theta, State(m, v, largest), eta, bounded);
}

// NosAdam (Huang et al. 2019, "Nostalgic Adam: Weighting More of the Past Gradients When Designing the Adaptive Learning Rate"), Algorithm 2
// with b_k = k^-gamma, as in the authors' code.
//
//   g = gradient (scaled; coupled decay added)
//   m = beta1 m + (1 - beta1) g
//   B_t = 1 + 2^-gamma + ... + t^-gamma
//   v = B_(t - 1) / B_t v + t^-gamma / B_t g^2
//   m^ = m / (1 - beta1^t)
//   eta = alpha / (sqrt(v) + epsilon)
//   theta = theta - alpha lambda theta - eta m^

struct NosAdamCoefficients {
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    step_size: f32,
    exp_avg_correction: f32,
    epsilon: f32,
    gamma: f32,
}

const NOSADAM_FIRST = 16u;

fn nosadam_power(k: f32, gamma: f32) -> f32 {
    return exp_of(-gamma * log_of(k));
}

// B_t: term by term up to 16, and by the formula of Euler and Maclaurin beyond.
fn nosadam_sum_of_weights(t: u32, gamma: f32) -> f32 {
    var sum = 0.0;
    for (var k = 1u; k <= min(t, NOSADAM_FIRST); k++) {
        sum += nosadam_power(f32(k), gamma);
    }
    if t <= NOSADAM_FIRST {
        return sum;
    }
    let first = f32(NOSADAM_FIRST);
    let last = f32(t);
    let log = log_of(last / first);
    let rise = (1.0 - gamma) * log;
    let slope = select(exp_minus_one(rise) / rise, 1.0, rise == 0.0);
    let at_first = nosadam_power(first, gamma);
    let at_last = nosadam_power(last, gamma);
    let integral = first * at_first * log * slope;
    return sum + integral + 0.5 * (at_last - at_first) - gamma / 12.0 * (at_last / last - at_first / first);
}

// The coefficients of step t, from those with all corrections 1.
fn nosadam_coefficients(base: NosAdamCoefficients, variant: u32, decay: Decay) -> NosAdamCoefficients {
    var c = base;
    c.exp_avg_correction = 1.0 / decay.one_minus_power[0];
    let latest = nosadam_power(f32(decay.t), base.gamma);
    let sum = nosadam_sum_of_weights(decay.t, base.gamma);
    let weight = latest / sum;
    c.exp_avg_sq_weight = select(weight, -((sum - latest) / sum), weight > 0.5);
    return c;
}

fn nosadam_step(general: General, c: NosAdamCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c.step_size, v, 1.0, c.epsilon);
    let theta = apply_step(general, e.theta, g, eta, m * c.exp_avg_correction);
    return Stepped(theta, State(m, v, e.state[2]), eta, eta);
}

// NAdam (Dozat 2016, "Incorporating Nesterov Momentum into Adam"), as in torch.optim.NAdam.
//
//   g = gradient (scaled; coupled decay added)
//   mu_t = beta1 (1 - 0.96^(t psi) / 2)         psi is the momentum decay
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) g^2
//   v^ = v / (1 - beta2^t)
//   eta = alpha / (sqrt(v^) + epsilon)
//   d = mu_(t + 1) m / (1 - mu_1 ... mu_(t + 1)) + (1 - mu_t) g / (1 - mu_1 ... mu_t)
//   theta = theta - alpha lambda theta - eta d
//
// PyTorch keeps the product of all mu. Here it comes from t: ln of the product of 1 - q^i / 2, with q = 0.96^psi, is a sum over i of a series
// in q^i / 2, and each term of the series is a geometric sum over i.

struct NAdamCoefficients {
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    step_size: f32,
    exp_avg_factor: f32,
    gradient_factor: f32,
    exp_avg_sq_correction: f32,
    epsilon: f32,
    log_q: f32,
}

// The coefficients of step t, from those with all corrections and factors 1.
fn nadam_coefficients(base: NAdamCoefficients, variant: u32, decay: Decay) -> NAdamCoefficients {
    var c = base;
    c.exp_avg_sq_correction = 1.0 / decay.one_minus_power[1];
    let beta1 = 1.0 - decay.one_minus_beta[0];
    // q^k, q^(t k), and 1 - each.
    let q = exp_of(base.log_q);
    let one_minus_q = -exp_minus_one(base.log_q);
    let log_q_t = f32(decay.t) * base.log_q;
    let q_t = exp_of(log_q_t);
    let one_minus_q_t = -exp_minus_one(log_q_t);
    var power = 1.0;
    var one_minus_power = 0.0;
    var power_t = 1.0;
    var one_minus_power_t = 0.0;
    var half_power = 1.0;
    // The logarithm of the product of 1 - q^i / 2, negated.
    var series = 0.0;
    for (var k = 1u; k <= 28u; k++) {
        one_minus_power += one_minus_q * power;
        power *= q;
        one_minus_power_t += one_minus_q_t * power_t;
        power_t *= q_t;
        half_power *= 0.5;
        let sum = select(power * one_minus_power_t / one_minus_power, f32(decay.t), one_minus_power == 0.0);
        series += half_power / f32(k) * sum;
    }
    // Of the momenta of steps 1 to t: 1 - their product, and the product.
    let beta1_t = 1.0 - decay.one_minus_power[0];
    let one_minus_product = decay.one_minus_power[0] - beta1_t * exp_minus_one(-series);
    let product = beta1_t * exp_of(-series);
    // 1 - mu of step t, and of the next.
    let one_minus_mu = decay.one_minus_beta[0] + beta1 * 0.5 * q_t;
    let one_minus_next = decay.one_minus_beta[0] + beta1 * 0.5 * q_t * q;
    let next = beta1 * (0.5 + 0.5 * (one_minus_q_t + one_minus_q * q_t));
    c.gradient_factor = one_minus_mu / one_minus_product;
    c.exp_avg_factor = next / (one_minus_product + product * one_minus_next);
    return c;
}

fn nadam_step(general: General, c: NAdamCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c.step_size, v, c.exp_avg_sq_correction, c.epsilon);
    let direction = c.exp_avg_factor * m + c.gradient_factor * g;
    let theta = apply_step(general, e.theta, g, eta, direction);
    return Stepped(theta, State(m, v, e.state[2]), eta, eta);
}

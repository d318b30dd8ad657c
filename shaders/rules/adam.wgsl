// Adam, Algorithm 1 of the AdaMod paper; with coupled or decoupled weight decay torch.optim.Adam and AdamW.
//
//   3:  g = gradient (scaled; coupled decay added)
//   4:  m = beta1 m + (1 - beta1) g
//   5:  v = beta2 v + (1 - beta2) g^2
//   6:  m^ = m / (1 - beta1^t)
//   7:  v^ = v / (1 - beta2^t)
//       with amsgrad v^ = max(v, v of all steps before) / (1 - beta2^t), as in PyTorch
//   8:  eta = alpha / (sqrt(v^) + epsilon)
//   9:  theta = theta - alpha lambda theta - eta m^

struct AdamCoefficients {
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    step_size: f32,
    exp_avg_correction: f32,
    exp_avg_sq_correction: f32,
    epsilon: f32,
}

// Forms.
const ADAM_AMSGRAD = 1u;

// The coefficients of step t, from those with all corrections 1.
fn adam_coefficients(base: AdamCoefficients, variant: u32, decay: Decay) -> AdamCoefficients {
    var c = base;
    c.exp_avg_correction = 1.0 / decay.one_minus_power[0];
    c.exp_avg_sq_correction = 1.0 / decay.one_minus_power[1];
    return c;
}

fn adam_step(general: General, c: AdamCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    var largest = e.state[2];
    var second = v;
    if FORM == ADAM_AMSGRAD {
        largest = larger(largest, v);
        second = largest;
    }
    let eta = eta_of(c.step_size, second, c.exp_avg_sq_correction, c.epsilon);
    let theta = apply_step(general, e.theta, g, eta, m * c.exp_avg_correction);
    return Stepped(theta, State(m, v, largest), eta, eta);
}

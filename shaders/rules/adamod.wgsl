// AdaMod, Algorithm 2 of "An Adaptive and Momental Bound Method for Stochastic Learning".
//
//   3:  g = gradient (scaled; coupled decay added)
//   4:  m = beta1 m + (1 - beta1) g
//   5:  v = beta2 v + (1 - beta2) g^2
//   6:  m^ = m / (1 - beta1^t)
//   7:  v^ = v / (1 - beta2^t)
//   8:  eta = alpha / (sqrt(v^) + epsilon)
//   9:  s = beta3 s + (1 - beta3) eta          s_0 = 0, and no bias correction
//  10:  eta^ = min(eta, s)
//  11:  theta = theta - alpha lambda theta - eta^ m^
//
// Averages are written as steps towards the new value (`ema`), which f32 rounds better. The authors' published code differs in lines
// 6 to 8. It is the same step with other coefficients.

struct AdaModCoefficients {
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    exp_avg_lr_weight: f32,
    step_size: f32,
    exp_avg_correction: f32,
    exp_avg_sq_correction: f32,
    epsilon: f32,
    // For averages that are stored debiased, as s / (1 - beta3^t): the weight for `ema`, and 1 - beta3^t.
    debiased_lr_weight: f32,
    debiased_lr_scale: f32,
}

// Variants: the two published formulas.
const ADAMOD_PAPER = 0u;
const ADAMOD_AUTHORS_CODE = 1u;

// The coefficients of step t, from those with all corrections 1.
fn adamod_coefficients(base: AdaModCoefficients, variant: u32, decay: Decay) -> AdaModCoefficients {
    var c = base;
    let correction1 = decay.one_minus_power[0];
    let correction2 = decay.one_minus_power[1];
    if variant == ADAMOD_PAPER {
        c.exp_avg_correction = 1.0 / correction1;
        c.exp_avg_sq_correction = 1.0 / correction2;
    } else {
        c.step_size = c.step_size * sqrt(correction2) / correction1;
    }
    c.debiased_lr_scale = decay.one_minus_power[2];
    let weight = decay.one_minus_beta[2] / c.debiased_lr_scale;
    let rest = max(c.debiased_lr_scale - decay.one_minus_beta[2], 0.0) / c.debiased_lr_scale;
    c.debiased_lr_weight = select(weight, -rest, weight > 0.5);
    return c;
}

fn adamod_step(general: General, coefficients: AdaModCoefficients, e: Elements) -> Stepped {
    var c = coefficients;
    if general.is_debiased {
        c.exp_avg_lr_weight = c.debiased_lr_weight;
    } else {
        c.debiased_lr_scale = 1.0;
    }
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c.step_size, v, c.exp_avg_sq_correction, c.epsilon);
    let s = ema(e.state[2], eta, c.exp_avg_lr_weight);
    let bounded = min(eta, s * c.debiased_lr_scale);
    let theta = apply_step(general, e.theta, g, bounded, m * c.exp_avg_correction);
    return Stepped(theta, State(m, v, s), eta, bounded);
}

// RAdam (Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond"), Algorithm 2, as in torch.optim.RAdam.
//
//   g = gradient (scaled; coupled decay added)
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) g^2
//   m^ = m / (1 - beta1^t)
//   rho_inf = 2 / (1 - beta2) - 1
//   rho = rho_inf - 2 t beta2^t / (1 - beta2^t)
//   r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
//   eta = alpha r sqrt(1 - beta2^t) / (sqrt(v) + epsilon)  if rho > 5, else alpha
//   theta = theta - alpha lambda theta - eta m^
//
// A step that is not rectified has factor 0 of v and epsilon 1, so it is the same code with other coefficients.

struct RAdamCoefficients {
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    step_size: f32,
    exp_avg_correction: f32,
    exp_avg_sq_factor: f32,
    epsilon: f32,
}

// rho is 2 a - 1, where a is the mean of 1 to t in which i has the weight beta2^(i - 1). Sums over runs of steps are put together by the
// binary digits of t. All terms are positive, so nothing cancels.
fn radam_rho(one_minus_beta: f32, t: u32) -> f32 {
    // Of the steps so far: their number, sum of weights, sum of weighted steps, and beta2^number.
    var steps = 0.0;
    var sum = 0.0;
    var weighted = 0.0;
    var power = 1.0;
    // Of a run of 1, 2, 4, ... steps; the last is 1 - beta2^number.
    var run = 1.0;
    var run_sum = 1.0;
    var run_weighted = 1.0;
    var run_rest = one_minus_beta;
    for (var digits = t; digits != 0u; digits >>= 1u) {
        let run_power = 1.0 - run_rest;
        if (digits & 1u) == 1u {
            weighted += power * (run_weighted + steps * run_sum);
            sum += power * run_sum;
            power *= run_power;
            steps += run;
        }
        run_weighted += run_power * (run_weighted + run * run_sum);
        run_sum += run_power * run_sum;
        run_rest += run_rest * run_power;
        run += run;
    }
    return 2.0 * weighted / sum - 1.0;
}

// The coefficients of step t, from those with all corrections 1. They are not rectified if no step is.
fn radam_coefficients(base: RAdamCoefficients, variant: u32, decay: Decay) -> RAdamCoefficients {
    var c = base;
    c.exp_avg_correction = 1.0 / decay.one_minus_power[0];
    let most = 2.0 / decay.one_minus_beta[1] - 1.0;
    let rho = min(radam_rho(decay.one_minus_beta[1], decay.t), most);
    if base.exp_avg_sq_factor == 0.0 || rho <= 5.0 {
        c.exp_avg_sq_factor = 0.0;
        c.epsilon = 1.0;
    } else {
        let ratio = (rho - 4.0) / (most - 4.0) * ((rho - 2.0) / (most - 2.0)) * (most / rho);
        c.step_size = base.step_size * sqrt(ratio) * sqrt(decay.one_minus_power[1]);
    }
    return c;
}

fn radam_step(general: General, c: RAdamCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c.step_size, v, c.exp_avg_sq_factor, c.epsilon);
    let theta = apply_step(general, e.theta, g, eta, m * c.exp_avg_correction);
    return Stepped(theta, State(m, v, e.state[2]), eta, eta);
}

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
// Averages are written as steps towards the new value (`ema`), which f32 rounds better. The authors' published code differs
// in lines 6 to 8; it is the same kernel with other coefficients (src/hyperparameters.rs).

const STATES = 3u;

struct Stepped {
    parameters: vec4<f32>,
    state: State,
    eta: vec4<f32>,
    bounded: vec4<f32>,
}

fn step(c: Coefficients, theta: vec4<f32>, gradient_bits: vec4<u32>, old: State) -> Stepped {
    let g = limited_gradient(c, gradient_bits, theta);
    let m = ema(old.exp_avg, g, c.exp_avg_weight);
    let v = ema(old.exp_avg_sq, g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c, v);
    let s = ema(old.exp_avg_lr, eta, c.exp_avg_lr_weight);
    let bounded = min(eta, s * c.debiased_lr_scale);
    return Stepped(moved(c, theta, bounded, m), State(m, v, s), eta, bounded);
}

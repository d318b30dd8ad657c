// Adam, Algorithm 1 of the AdaMod paper; with coupled or decoupled weight decay torch.optim.Adam and AdamW.
//
//   3:  g = gradient (scaled; coupled decay added)
//   4:  m = beta1 m + (1 - beta1) g
//   5:  v = beta2 v + (1 - beta2) g^2
//   6:  m^ = m / (1 - beta1^t)
//   7:  v^ = v / (1 - beta2^t)
//   8:  eta = alpha / (sqrt(v^) + epsilon)
//   9:  theta = theta - alpha lambda theta - eta m^

const STATES = 2u;

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
    return Stepped(moved(c, theta, eta, m), State(m, v, vec4(0.0)), eta, eta);
}

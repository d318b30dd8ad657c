// RMSprop (Tieleman and Hinton 2012, lecture 6.5 of "Neural Networks for Machine Learning"; centered: Graves 2013), as in
// torch.optim.RMSprop. The decay rate is PyTorch's `alpha`; alpha below is the learning rate.
//
//   g = gradient (scaled; coupled decay added)
//   v = decay v + (1 - decay) g^2
//   n = decay n + (1 - decay) g                centered
//   d = g / (sqrt(v - n^2) + epsilon)          centered; else g / (sqrt(v) + epsilon)
//   b = momentum b + d                         with momentum
//   theta = theta - alpha lambda theta - alpha b  with momentum, else alpha d
//
// v - n^2 is a variance, but its rounding errors may be below zero. It is zero then; PyTorch has NaN.

struct RmsPropCoefficients {
    square_avg_weight: f32,
    momentum: f32,
    step_size: f32,
    epsilon: f32,
}

// Bits of the form.
const RMSPROP_MOMENTUM = 1u;
const RMSPROP_CENTERED = 2u;

// The coefficients of step t: they are the same at every step.
fn rmsprop_coefficients(base: RmsPropCoefficients, variant: u32, decay: Decay) -> RmsPropCoefficients {
    return base;
}

fn rmsprop_step(general: General, c: RmsPropCoefficients, e: Elements) -> Stepped {
    var state = e.state;
    let g = limited_gradient(general, e);
    state[0] = ema(state[0], g * g, c.square_avg_weight);
    var second = state[0];
    if (FORM & RMSPROP_CENTERED) != 0u {
        const MEAN = 1u + (FORM & RMSPROP_MOMENTUM);
        state[MEAN] = ema(state[MEAN], g, c.square_avg_weight);
        let variance = second - state[MEAN] * state[MEAN];
        second = select(variance, vec4(0.0), variance < vec4(0.0));
    }
    let eta = eta_of(c.step_size, second, 1.0, c.epsilon);
    var rate = eta;
    var direction = g;
    if (FORM & RMSPROP_MOMENTUM) != 0u {
        state[1] = c.momentum * state[1] + eta_of(1.0, second, 1.0, c.epsilon) * g;
        rate = vec4(c.step_size);
        direction = state[1];
    }
    return Stepped(apply_step(general, e.theta, g, rate, direction), state, eta, eta);
}

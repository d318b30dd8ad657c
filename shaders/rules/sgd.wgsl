// SGD with momentum, the paper's SGDM, as in torch.optim.SGD.
//
//   g = gradient (scaled; coupled decay added)
//   b = momentum b + (1 - dampening) g         b = g in the first step
//   d = g + momentum b  with Nesterov momentum, else b; g without momentum
//   theta = theta - alpha lambda theta - alpha d

struct SgdCoefficients {
    momentum: f32,
    gradient_weight: f32,
    nesterov: f32,
    step_size: f32,
}

// Forms.
const SGD_PLAIN = 1u;

// The coefficients of step t, from those of all steps but the first.
fn sgd_coefficients(base: SgdCoefficients, variant: u32, decay: Decay) -> SgdCoefficients {
    var c = base;
    if decay.t == 1u {
        c.gradient_weight = 1.0;
    }
    return c;
}

fn sgd_step(general: General, c: SgdCoefficients, e: Elements) -> Stepped {
    let g = scaled_gradient(general, e);
    var buffer = e.state[0];
    var direction = g;
    if FORM != SGD_PLAIN {
        buffer = c.momentum * buffer + c.gradient_weight * g;
        direction = buffer;
        // Uniform.
        if c.nesterov != 0.0 {
            direction = g + c.momentum * buffer;
        }
    }
    let rate = vec4(c.step_size);
    let theta = apply_step(general, e.theta, g, rate, direction);
    return Stepped(theta, State(buffer, e.state[1], e.state[2]), rate, rate);
}

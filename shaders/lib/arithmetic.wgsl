// Arithmetic that the rules share. No bindings. src/rules/arithmetic.rs mirrors it line by line.

// 2^63. The square of a larger gradient would make exp_avg_sq infinite in f32, and the next step infinity - infinity. With this
// clamp, finite gradients never make a parameter non-finite.
const GRADIENT_LIMIT: f32 = 0x1p63;

// The bits of 1.
const ONE = 0x3f800000u;

fn scaled_gradient(general: General, e: Elements) -> vec4<f32> {
    // Without a branch: compilers would compute both ways and select.
    let gradient = general.gradient_prescale * bitcast<vec4<f32>>(e.gradient);
    return general.gradient_scale * gradient + general.coupled_decay * e.theta;
}

// The scaled gradient, clamped. Infinity and NaN pass, in the gradient as in the parameter. They are recognized by their bits, since
// WGSL lets a compiler fold `x != x` to false. A gradient that only the scale makes infinite is clamped.
fn limited_gradient(general: General, e: Elements) -> vec4<f32> {
    let usual = general.gradient_scale * bitcast<vec4<f32>>(e.gradient) + general.coupled_decay * e.theta;
    // One look at four numbers: none is clamped, infinite or NaN if the sum of their magnitudes is at most the limit. The prescale is
    // uniform and rarely needed.
    let has_prescale = bitcast<u32>(general.gradient_prescale) != ONE;
    let sizes = abs(usual);
    let sum = bitcast<u32>((sizes.x + sizes.y) + (sizes.z + sizes.w));
    if RARE_PATHS_APART && sum < select(bitcast<u32>(GRADIENT_LIMIT) + 1u, 0u, has_prescale) {
        return usual;
    }
    let scaled = scaled_gradient(general, e);
    let limited = clamp(scaled, vec4(-GRADIENT_LIMIT), vec4(GRADIENT_LIMIT));
    let largest = max(e.gradient & MAGNITUDE, bitcast<vec4<u32>>(e.theta) & MAGNITUDE);
    return select(scaled, limited, largest < INFINITY);
}

// Exponential moving average with decay rate beta: weight is 1 - beta for beta >= 1/2, else -beta. A step from the nearer end has its
// fixed point exactly at `latest`, and beta = 0 gives `latest` exactly.
fn ema(old: vec4<f32>, latest: vec4<f32>, weight: f32) -> vec4<f32> {
    // The weight is uniform, and integers can be compared once for all lanes.
    let base = select(latest, old, bitcast<i32>(weight) > 0);
    return base + weight * (latest - old);
}

// Algorithms 1 and 2, lines 7 and 8: the learning rate of each element.
fn eta_of(step_size: f32, v: vec4<f32>, correction: f32, epsilon: f32) -> vec4<f32> {
    return step_size / (sqrt(v * correction) + epsilon);
}

// The larger of two numbers; `latest` if it is NaN.
fn larger(old: vec4<f32>, latest: vec4<f32>) -> vec4<f32> {
    return select(latest, old, old > latest);
}

// 1, 0 or -1. Infinity and NaN pass, so that they show in the parameter.
fn signum(x: vec4<f32>) -> vec4<f32> {
    return select(x, sign(x), (bitcast<vec4<u32>>(x) & MAGNITUDE) < INFINITY);
}

// Whether any group of a launch steps or decays cautiously.
override CAUTION: bool = true;

// Decoupled weight decay of the old theta, then Algorithm 1, line 9, or Algorithm 2, line 11: the step, which is rate * direction, is
// subtracted. `gradient` is what the rule sees of it.
fn apply_step(general: General, theta: vec4<f32>, gradient: vec4<f32>, rate: vec4<f32>, direction: vec4<f32>) -> vec4<f32> {
    // Uniform. Each side has products of its own, so that a compiler can contract those of the other.
    if CAUTION && general.options != 0u {
        return apply_cautious_step(general, theta, gradient, rate * direction);
    }
    return (theta - general.decoupled_decay * theta) - rate * direction;
}

// The same with caution. A NaN is neither left out nor of any sign.
fn apply_cautious_step(general: General, theta: vec4<f32>, gradient: vec4<f32>, step: vec4<f32>) -> vec4<f32> {
    let zero = vec4(0.0);
    var decay = general.decoupled_decay * theta;
    var taken = step;
    if (general.options & CAUTIOUS_DECAY) != 0u {
        decay = select(decay, zero, ((step > zero) & (theta < zero)) | ((step < zero) & (theta > zero)));
    }
    if (general.options & CAUTIOUS) != 0u {
        taken = select(step, zero, ((step >= zero) & (gradient <= zero)) | ((step <= zero) & (gradient >= zero)));
    }
    return (theta - decay) - taken;
}

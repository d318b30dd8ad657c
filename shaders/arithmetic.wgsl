// Arithmetic that the rules share. No bindings: src/reference.rs mirrors it line by line.

// 2^63: its square leaves two bits of room in f32. A gradient past it would make exp_avg_sq infinite, and the next step
// infinity - infinity. Held here, a finite gradient can never make a parameter non-finite.
const GRADIENT_LIMIT: f32 = 0x1p63;

fn scaled_gradient(c: Coefficients, g: vec4<f32>, theta: vec4<f32>) -> vec4<f32> {
    return c.gradient_scale * g + c.coupled_decay * theta;
}

// Infinity and NaN pass, of the parameter as of its gradient, so that they show. They are told by their bits: WGSL lets a compiler
// fold `x != x` to false. What the scale has made infinite is held.
fn limited_gradient(c: Coefficients, bits: vec4<u32>, theta: vec4<f32>) -> vec4<f32> {
    let scaled = scaled_gradient(c, bitcast<vec4<f32>>(bits), theta);
    let limited = clamp(scaled, vec4(-GRADIENT_LIMIT), vec4(GRADIENT_LIMIT));
    let largest = max(bits & MAGNITUDE, bitcast<vec4<u32>>(theta) & MAGNITUDE);
    return select(scaled, limited, largest < INFINITY);
}

// Exponential moving average with decay beta: weight is 1 - beta for beta >= 1/2, else -beta. Stepping from the nearer end
// has its fixed point exactly at `latest`, and beta = 0 gives `latest` exactly.
fn ema(old: vec4<f32>, latest: vec4<f32>, weight: f32) -> vec4<f32> {
    let base = select(latest, old, weight > 0.0);
    return base + weight * (latest - old);
}

// Algorithm 1 and 2, lines 7 and 8: the learning rate of each element.
fn eta_of(c: Coefficients, v: vec4<f32>) -> vec4<f32> {
    return c.step_size / (sqrt(v * c.exp_avg_sq_correction) + c.epsilon);
}

// Decoupled weight decay on the old theta, then Algorithm 1, line 9, or Algorithm 2, line 11.
fn moved(c: Coefficients, theta: vec4<f32>, rate: vec4<f32>, m: vec4<f32>) -> vec4<f32> {
    let decayed = theta - c.decoupled_decay * theta;
    return decayed - rate * (m * c.exp_avg_correction);
}

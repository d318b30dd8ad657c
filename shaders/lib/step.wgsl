// What the step of a rule reads and writes, four elements at a time.

// The states of a rule, in the order of its list in Rust. A rule with fewer leaves the last ones alone.
alias State = array<vec4<f32>, MAX_STATES>;

// The coefficients that do not depend on the rule.
struct General {
    gradient_scale: f32,
    gradient_prescale: f32,
    coupled_decay: f32,
    decoupled_decay: f32,
    // CAUTIOUS and CAUTIOUS_DECAY, or 0.
    options: u32,
    // Whether averages that declare a decay rate are stored debiased.
    is_debiased: bool,
}

struct Elements {
    theta: vec4<f32>,
    // Bits of the gradient: arithmetic could change a NaN.
    gradient: vec4<u32>,
    state: State,
}

struct Stepped {
    theta: vec4<f32>,
    state: State,
    // The learning rates before and after the rule's bound, for histograms.
    eta: vec4<f32>,
    bounded: vec4<f32>,
}

// What coefficients of step t depend on: of each decay rate 1 - beta and 1 - beta^t, and t itself.
struct Decay {
    one_minus_beta: array<f32, 3>,
    one_minus_power: array<f32, 3>,
    t: u32,
}

// What a step needs to know and the host does not: whether it takes place, by what gradients are multiplied, and each
// parameter's step count and coefficients. One workgroup finds it: the only one of `prepare`, or the last one that adds up
// gradients.

// A group's hyperparameters, and 1 - beta^(2^k) of each beta: products of these give 1 - beta^t in f32 without cancellation.
struct Group {
    learning_rate: f32,
    epsilon: f32,
    coupled_decay: f32,
    decoupled_decay: f32,
    momentum: f32,
    // 1, or -1 to maximize.
    sign: f32,
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    exp_avg_lr_weight: f32,
    one_minus_beta3: f32,
    one_minus_powers: array<array<f32, 32>, 3>,
}

const NO_GROUP = 0xffffffffu;

// What the host says of a parameter in this step.
struct Row {
    group: u32,
    activity: u32,
}

// Engines read the loss scale, and may write the multiplier and, between `encode_norm` and `encode_after_norm`, the norm.
struct Control {
    loss_scale: f32,
    // Gradients are multiplied by it, besides what the loss scale and the clip make of them.
    multiplier: f32,
    // Of the gradients of the last step, without the loss scale; infinite if one of them is not finite.
    norm: f32,
    // Steps since the loss scale last changed.
    growth_tracker: u32,
    taken: u32,
    skipped: u32,
}

// What is kept from step to step.
struct Kept {
    control: Control,
    // Workgroups that have added up their gradients; zero between steps.
    arrived: atomic<u32>,
    step_counts: array<u32>,
}

override USES_NORM: bool = false;
override SKIPS: bool = false;
override IS_DYNAMIC: bool = false;
override GROWTH_FACTOR: f32 = 2.0;
override BACKOFF_FACTOR: f32 = 0.5;
override GROWTH_INTERVAL: u32 = 2000u;
// The smallest normal number.
const LEAST_LOSS_SCALE: f32 = 0x1p-126;
// 0: no clip.
override MAX_NORM: f32 = 0.0;

// Rules and formulas as they differ in their coefficients.
const PAPER = 0u;
const AUTHORS_CODE = 1u;
const SGD = 2u;
override FORMULA: u32 = 0u;

@group(0) @binding(8) var<storage, read> rows: array<Row>;
@group(0) @binding(9) var<storage, read> groups: array<Group>;
@group(0) @binding(10) var<storage, read_write> kept: Kept;
@group(0) @binding(11) var<storage, read_write> prepared: array<Coefficients>;

var<workgroup> is_skipped: u32;
var<workgroup> gradient_multiplier: f32;

fn is_finite_number(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn decide() {
    let loss_scale = kept.control.loss_scale;
    var clip = 1.0;
    var finite = true;
    if USES_NORM {
        finite = is_finite_number(kept.control.norm);
        // Of the gradients as the step takes them.
        let norm = kept.control.norm * abs(kept.control.multiplier);
        if MAX_NORM > 0.0 && finite && norm > MAX_NORM {
            clip = MAX_NORM / norm;
        }
    }
    let skips = SKIPS && !finite;
    is_skipped = u32(skips);
    gradient_multiplier = kept.control.multiplier * clip / loss_scale;
    kept.control.skipped += u32(skips);
    kept.control.taken += u32(!skips);
    if IS_DYNAMIC {
        if finite {
            kept.control.growth_tracker += 1u;
            // Past it, if it came from a checkpoint of another interval.
            if kept.control.growth_tracker >= GROWTH_INTERVAL {
                kept.control.growth_tracker = 0u;
                let grown = loss_scale * GROWTH_FACTOR;
                kept.control.loss_scale = select(loss_scale, grown, is_finite_number(grown));
            }
        } else {
            kept.control.growth_tracker = 0u;
            // Zero would be the end: the loss times zero says nothing.
            kept.control.loss_scale = max(loss_scale * BACKOFF_FACTOR, LEAST_LOSS_SCALE);
        }
    }
}

// 1 - beta^t from t's binary digits, since 1 - ab = (1 - a) + (1 - b) a. All terms are positive.
fn one_minus_power(group: u32, beta: u32, t: u32) -> f32 {
    var result = 0.0;
    var k = 0u;
    for (var digits = t; digits != 0u; digits >>= 1u) {
        if (digits & 1u) == 1u {
            result += groups[group].one_minus_powers[beta][k] * (1.0 - result);
        }
        k++;
    }
    return result;
}

fn coefficients_of(group: u32, t: u32) -> Coefficients {
    var c: Coefficients;
    c.gradient_scale = groups[group].sign * gradient_multiplier;
    c.coupled_decay = groups[group].coupled_decay;
    c.decoupled_decay = groups[group].decoupled_decay;
    c.momentum = groups[group].momentum;
    c.exp_avg_weight = groups[group].exp_avg_weight;
    c.exp_avg_sq_weight = groups[group].exp_avg_sq_weight;
    c.exp_avg_lr_weight = groups[group].exp_avg_lr_weight;
    c.epsilon = groups[group].epsilon;
    c.step_size = groups[group].learning_rate;
    c.exp_avg_correction = 1.0;
    c.exp_avg_sq_correction = 1.0;
    let correction1 = one_minus_power(group, 0u, t);
    let correction2 = one_minus_power(group, 1u, t);
    if FORMULA == PAPER {
        c.exp_avg_correction = 1.0 / correction1;
        c.exp_avg_sq_correction = 1.0 / correction2;
    } else if FORMULA == AUTHORS_CODE {
        c.step_size = c.step_size * sqrt(correction2) / correction1;
    }
    c.debiased_lr_scale = one_minus_power(group, 2u, t);
    let lr_weight = groups[group].one_minus_beta3 / c.debiased_lr_scale;
    let rest = max(c.debiased_lr_scale - groups[group].one_minus_beta3, 0.0) / c.debiased_lr_scale;
    c.debiased_lr_weight = select(lr_weight, -rest, lr_weight > 0.5);
    c.step = t;
    c.activity = ACTIVE;
    return c;
}

// To be called in uniform control flow.
fn prepare_rows(lane: u32) {
    if lane == 0u {
        decide();
    }
    workgroupBarrier();
    // Most parameters of a group have taken equally many steps: what was found for the last one often holds.
    var known: Coefficients;
    var group_of_known = NO_GROUP;
    // There are as many as rows. Those are bound with an offset, and what is behind their slot counts as theirs in Direct3D 12.
    for (var i = lane; i < arrayLength(&prepared); i += LANES) {
        let row = rows[i];
        if row.activity != ACTIVE {
            prepared[i].activity = INACTIVE;
        } else if is_skipped == 1u {
            prepared[i].activity = SKIPPED;
        } else {
            let t = kept.step_counts[i] + 1u;
            kept.step_counts[i] = t;
            if row.group != group_of_known || t != known.step {
                known = coefficients_of(row.group, t);
                group_of_known = row.group;
            }
            prepared[i] = known;
        }
    }
}

// Of a step without gradients.
@compute @workgroup_size(1)
fn no_norm() {
    kept.control.norm = 0.0;
}

@compute @workgroup_size(LANES)
fn prepare(@builtin(local_invocation_index) lane: u32) {
    prepare_rows(lane);
}

// What a step needs that the host does not know with Control::Device: whether it takes place, the factor of its gradients, and the step
// count and coefficients of each parameter. One workgroup computes them: the only one of `prepare`, or the last one of the norm.

// The hyperparameters of a group.
struct Group {
    // 1, or -1 to maximize.
    sign: f32,
    coupled_decay: f32,
    decoupled_decay: f32,
    // CAUTIOUS and CAUTIOUS_DECAY, or 0.
    options: u32,
    rule: u32,
    // Which of the rule's formulas is computed.
    variant: u32,
    // Bit i is set if coefficient i is proportional to the learning rate.
    rate_coefficients: u32,
    // What the rule's function computes coefficients from: those with all bias corrections 1.
    coefficients: array<f32, MAX_COEFFICIENTS>,
    // Indices of its decay rates.
    decay_rates: array<u32, 3>,
}

const GROUP_WORDS = 10u + MAX_COEFFICIENTS;
// A decay rate is 1 - beta, and 1 - beta^(2^k) for k from 0 to 31, whose products give 1 - beta^t in f32 without cancellation.
const DECAY_RATE_WORDS = 33u;

// What a step reads of the host's settings. Groups often share decay rates, which are much larger.
struct GroupTable {
    // The largest norm; 0 for no clip.
    max_norm: f32,
    // Word where the decay rates start.
    decay_rates: u32,
    // The groups, then the decay rates.
    words: array<u32>,
}

const NO_GROUP = 0xffffffffu;

// A parameter in this step.
struct Row {
    group: u32,
    activity: u32,
}

// Engines read the loss scale. They may write the multiplier and, between the two halves of a step, the norm.
struct Control {
    loss_scale: f32,
    // An additional factor of the gradients, besides the loss scale and the clip.
    multiplier: f32,
    // Norm of the gradients of the last step, without the loss scale. Infinite if one of them is not finite; the largest finite number if
    // all are finite and the norm is larger.
    norm: f32,
    // Steps since the loss scale last changed.
    growth_tracker: u32,
    taken: u32,
    skipped: u32,
    skipped_in_a_row: u32,
}

// What the device keeps from step to step.
struct ControlBuffer {
    control: Control,
    // The number of workgroups that have summed their gradients; zero between steps.
    arrived: atomic<u32>,
    // How many times the norm is larger than `control.norm`, if that is the largest finite number.
    norm_excess: f32,
    // Factor of all learning rates: that of the schedule for the step that is prepared, or 1.
    rate_factor: f32,
    // The words of a `Partial`: the sum of squares behind the norm, while the halves of a joint step are recorded.
    sum_of_squares: array<u32, 7>,
    step_counts: array<u32>,
}

override USES_NORM: bool = false;
override SKIPS: bool = false;
override IS_DYNAMIC: bool = false;
override GROWTH_FACTOR: f32 = 2.0;
override BACKOFF_FACTOR: f32 = 0.5;
override GROWTH_INTERVAL: u32 = 2000u;
override LEAST_LOSS_SCALE: f32 = 0x1p-126;
// The largest number whose reciprocal is a normal number.
const MOST_LOSS_SCALE: f32 = 0x1p126;
const LARGEST: f32 = 0x1.fffffep127;

@group(0) @binding(ROWS_BINDING) var<storage, read> rows: array<Row>;
@group(0) @binding(GROUPS_BINDING) var<storage, read> table: GroupTable;
@group(0) @binding(CONTROL_BINDING) var<storage, read_write> kept: ControlBuffer;
@group(0) @binding(PREPARED_BINDING) var<storage, read_write> prepared: array<Coefficients>;

var<workgroup> is_skipped: u32;
var<workgroup> gradient_multiplier: f32;
var<workgroup> gradient_prescale: f32;

fn is_finite_number(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn is_normal_number(x: f32) -> bool {
    return is_finite_number(x) && abs(x) >= 0x1p-126;
}

// A positive normal number as mantissa * 2^exponent, with a mantissa from 1 to 2.
struct Wide {
    mantissa: f32,
    exponent: i32,
}

fn wide(x: f32) -> Wide {
    let bits = bitcast<u32>(x);
    return Wide(bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u), i32((bits >> 23u) & 0xffu) - 127);
}

fn over(one: Wide, other: Wide) -> Wide {
    return Wide(one.mantissa / other.mantissa, one.exponent - other.exponent);
}

fn two_to_the(exponent: i32) -> f32 {
    return bitcast<f32>(u32(clamp(exponent, -126, 127) + 127) << 23u);
}

// A factor that is not a normal number, or comes from numbers that are not, as the product of two normal numbers.
fn set_wide_multiplier(is_clipped: bool) {
    let multiplier = kept.control.multiplier;
    var factor: Wide;
    if is_clipped {
        factor = over(wide(table.max_norm), wide(kept.control.norm));
        if kept.control.norm == LARGEST {
            factor = over(factor, wide(kept.norm_excess));
        }
    } else {
        factor = wide(abs(multiplier));
    }
    factor = over(factor, wide(kept.control.loss_scale));
    let half = factor.exponent / 2;
    gradient_multiplier = sign(multiplier) * factor.mantissa * two_to_the(factor.exponent - half);
    gradient_prescale = two_to_the(half);
}

fn decide() {
    let loss_scale = kept.control.loss_scale;
    let multiplier = kept.control.multiplier;
    var clip = 1.0;
    var finite = is_finite_number(multiplier);
    if USES_NORM {
        finite = finite && is_finite_number(kept.control.norm);
        // The norm of the gradients as the step uses them.
        let norm = kept.control.norm * abs(multiplier);
        if table.max_norm > 0.0 && finite && norm > table.max_norm {
            clip = table.max_norm / norm;
        }
    }
    let skips = SKIPS && !finite;
    is_skipped = u32(skips);
    gradient_multiplier = multiplier * clip / loss_scale;
    gradient_prescale = 1.0;
    let is_clipped = clip != 1.0;
    let is_saturated = USES_NORM && kept.control.norm == LARGEST;
    let is_plain = is_normal_number(gradient_multiplier) && is_normal_number(clip) && !(is_clipped && is_saturated);
    if finite && is_normal_number(multiplier) && !is_plain {
        set_wide_multiplier(is_clipped);
    }
    kept.control.skipped += u32(skips);
    kept.control.skipped_in_a_row = select(0u, kept.control.skipped_in_a_row + 1u, skips);
    kept.control.taken += u32(!skips);
    if IS_DYNAMIC {
        if finite {
            kept.control.growth_tracker += 1u;
            // It may be past it after a checkpoint with another interval.
            if kept.control.growth_tracker >= GROWTH_INTERVAL {
                kept.control.growth_tracker = 0u;
                kept.control.loss_scale = min(loss_scale * GROWTH_FACTOR, MOST_LOSS_SCALE);
            }
        } else {
            kept.control.growth_tracker = 0u;
            // A scale of zero could never grow again.
            kept.control.loss_scale = max(loss_scale * BACKOFF_FACTOR, LEAST_LOSS_SCALE);
        }
    }
}

fn table_float(word: u32) -> f32 {
    return bitcast<f32>(table.words[word]);
}

fn group_at(index: u32) -> Group {
    let first = index * GROUP_WORDS;
    var group: Group;
    group.sign = table_float(first);
    group.coupled_decay = table_float(first + 1u);
    group.decoupled_decay = table_float(first + 2u);
    group.options = table.words[first + 3u];
    group.rule = table.words[first + 4u];
    group.variant = table.words[first + 5u];
    group.rate_coefficients = table.words[first + 6u];
    for (var i = 0u; i < MAX_COEFFICIENTS; i++) {
        group.coefficients[i] = table_float(first + 7u + i);
    }
    for (var i = 0u; i < 3u; i++) {
        group.decay_rates[i] = table.words[first + 7u + MAX_COEFFICIENTS + i];
    }
    return group;
}

// 1 - beta^t from the binary digits of t, since 1 - ab = (1 - a) + (1 - b) a. All terms are positive. `powers` is the word of 1 - beta^1.
fn one_minus_power(powers: u32, t: u32) -> f32 {
    var result = 0.0;
    var k = 0u;
    for (var digits = t; digits != 0u; digits >>= 1u) {
        if (digits & 1u) == 1u {
            result += table_float(powers + k) * (1.0 - result);
        }
        k++;
    }
    return result;
}

fn coefficients_of(index: u32, t: u32) -> Coefficients {
    let group = group_at(index);
    var decay: Decay;
    decay.t = t;
    for (var beta = 0u; beta < 3u; beta++) {
        let word = table.decay_rates + group.decay_rates[beta] * DECAY_RATE_WORDS;
        decay.one_minus_beta[beta] = table_float(word);
        decay.one_minus_power[beta] = one_minus_power(word + 1u, t);
    }
    var c: Coefficients;
    c.gradient_scale = group.sign * gradient_multiplier;
    c.gradient_prescale = gradient_prescale;
    c.coupled_decay = group.coupled_decay;
    c.decoupled_decay = group.decoupled_decay * kept.rate_factor;
    c.options = group.options;
    var of_rule = group.coefficients;
    for (var i = 0u; i < MAX_COEFFICIENTS; i++) {
        let is_rate = ((group.rate_coefficients >> i) & 1u) == 1u;
        of_rule[i] *= select(1.0, kept.rate_factor, is_rate);
    }
    c.of_rule = coefficients_of_rule(group.rule, of_rule, group.variant, decay);
    c.step = t;
    c.activity = ACTIVE;
    return c;
}

// Call it in uniform control flow.
fn prepare_rows(lane: u32) {
    if lane == 0u {
        decide();
    }
    workgroupBarrier();
    // Most parameters of a group have the same step count, so the coefficients of the last one often serve the next.
    var known: Coefficients;
    var group_of_known = NO_GROUP;
    // `prepared` has as many entries as `rows`. The length of `rows` is not used: it is bound with a dynamic offset, and Direct3D 12 then
    // counts what lies behind its slot.
    for (var i = lane; i < arrayLength(&prepared); i += LANES) {
        let row = rows[i];
        if row.activity != ACTIVE {
            prepared[i].activity = INACTIVE;
        } else if is_skipped == 1u {
            prepared[i].activity = SKIPPED;
        } else {
            // The count stops at the largest number.
            let t = max(kept.step_counts[i] + 1u, kept.step_counts[i]);
            kept.step_counts[i] = t;
            if row.group != group_of_known || t != known.step {
                known = coefficients_of(row.group, t);
                group_of_known = row.group;
            }
            prepared[i] = known;
        }
    }
}

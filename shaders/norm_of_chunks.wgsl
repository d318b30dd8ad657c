// The pass before a step that needs the gradients' norm: each workgroup adds up equally many chunks that follow each other, and
// the last one to be done adds up what the others found and prepares the step.

// Partial sums on their way from one workgroup to another, two words each. Every launch but the last binds its own part.
//
// WGSL gives no order between what two workgroups do to different words, so each word says for itself whether it has
// arrived: zero means not yet. Words of a Partial differ from zero once their highest bit is flipped, for sums are not
// negative. Whoever takes a word leaves zero for the next step.
@group(0) @binding(12) var<storage, read_write> partials: array<atomic<u32>>;
const ARRIVED = 0x80000000u;

// The norm is asked for, and the step comes later: the engine adds up the norm over its devices in between.
override NORM_ONLY: bool = false;

// Adds the squares of a word of gradients, given as bits.
fn joined(sum: Partial, bits: vec4<u32>) -> Partial {
    let magnitudes = bits & MAGNITUDE;
    let largest = max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
    if largest >= 0x7f800000u {
        return Partial(0.0, NOT_FINITE);
    }
    // NOT_FINITE is above all exponents, so it stays.
    let exponent = max(sum.exponent, clamp(i32(largest >> 23u) - 127, LEAST_EXPONENT, MOST_EXPONENT));
    let scaled = bitcast<vec4<f32>>(magnitudes) * power_of_two(-exponent);
    return Partial(scaled_to(sum, exponent) + dot(scaled, scaled), exponent);
}

// In lane 0, the sum of the chunks that fall to one of so many workgroups.
fn sum_of_chunks(index: u32, workgroups: u32, lane: u32) -> Partial {
    let count = arrayLength(&chunks);
    let share = (count + workgroups - 1u) / workgroups;
    let first = min(index * share, count);
    let end = min(first + share, count);
    var sum = LongSum(ZERO, ZERO, 0u);
    for (var i = first; i < end; i++) {
        let chunk = chunks[i];
        let segment = segments[chunk.segment];
        if rows[segment.coefficients].activity == ACTIVE {
            // As in `update`.
            var word = lane;
            loop {
                let at = place(segment, chunk, word);
                let is_counted = at.mask & vec4(!at.is_extra);
                sum.some = joined(sum.some, select(vec4(0u), gradient_bits(at), is_counted));
                sum = counted(sum);
                continuing {
                    word += LANES;
                    break if LANES >= CHUNK_ELEMENTS / 4u || word >= words_of(chunk);
                }
            }
        }
    }
    return added_over_lanes(lane, added(sum.total, sum.some));
}

fn give(index: u32, partial: Partial) {
    atomicStore(&partials[2u * index], bitcast<u32>(partial.sum) ^ ARRIVED);
    atomicStore(&partials[2u * index + 1u], bitcast<u32>(partial.exponent) ^ ARRIVED);
}

fn taken_word(index: u32, is_awaited: bool) -> u32 {
    var word = atomicExchange(&partials[index], 0u);
    while is_awaited && word == 0u {
        word = atomicExchange(&partials[index], 0u);
    }
    return word;
}

// Nothing is written between the entries of two launches.
fn taken(index: u32, is_awaited: bool) -> Partial {
    let sum = taken_word(2u * index, is_awaited);
    let exponent = taken_word(2u * index + 1u, is_awaited);
    if sum == 0u {
        return ZERO;
    }
    return Partial(bitcast<f32>(sum ^ ARRIVED), bitcast<i32>(exponent ^ ARRIVED));
}

// In lane 0, the sum of all launches' partial sums. Only those of the last launch can still be on their way.
fn sum_of_partials(first_awaited: u32, lane: u32) -> Partial {
    var sum = LongSum(ZERO, ZERO, 0u);
    for (var i = lane; i < arrayLength(&partials) / 2u; i += LANES) {
        sum.some = added(sum.some, taken(i, i >= first_awaited));
        sum = counted(sum);
    }
    return added_over_lanes(lane, added(sum.total, sum.some));
}

// All launches of a step but the last.
@compute @workgroup_size(LANES)
fn norm_of_chunks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sum = sum_of_chunks(workgroup.x, workgroups.x, lane);
    if lane == 0u {
        give(workgroup.x, sum);
    }
}

var<workgroup> is_last: bool;

// The last launch, which binds the partial sums of all.
@compute @workgroup_size(LANES)
fn norm_and_prepare(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = arrayLength(&partials) / 2u - workgroups.x;
    let own = sum_of_chunks(workgroup.x, workgroups.x, lane);
    if lane == 0u {
        give(first + workgroup.x, own);
        is_last = atomicAdd(&kept.arrived, 1u) + 1u == workgroups.x;
    }
    if !workgroupUniformLoad(&is_last) {
        return;
    }
    let sum = sum_of_partials(first, lane);
    if lane == 0u {
        atomicStore(&kept.arrived, 0u);
        kept.control.norm = norm_of(sum, kept.control.loss_scale);
    }
    if !NORM_ONLY {
        prepare_rows(lane);
    }
}

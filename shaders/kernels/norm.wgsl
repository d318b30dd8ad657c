// The pass before a step that needs the norm of the gradients. Each workgroup sums the same number of consecutive chunks. The workgroup
// that finishes last sums the partial sums of all workgroups and prepares the step.

// Partial sums, two words each. Every launch but the last binds only its own.
//
// WGSL gives no order between what two workgroups do to different words, so each word says for itself whether it has arrived: zero means
// not yet. The words of a partial sum are never zero once their highest bit is flipped, because sums are not negative. The workgroup
// that consumes a word leaves zero for the next step.
@group(0) @binding(PARTIALS_BINDING) var<storage, read_write> partials: array<atomic<u32>>;
const ARRIVED = 0x80000000u;

// Only the norm is computed. The engine sums it over its devices before it records the rest of the step.
override NORM_ONLY: bool = false;

// Adds the squares of a quad of gradients, given as bits.
fn accumulate(sum: Partial, bits: vec4<u32>) -> Partial {
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

// In lane 0, the sum over the chunks of workgroup `index` of `workgroups`.
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
            var quad = lane;
            loop {
                let at = place(segment, chunk, quad);
                let is_counted = at.mask & vec4(!at.is_extra);
                sum.some = accumulate(sum.some, select(vec4(0u), gradient_bits(at), is_counted));
                sum = counted(sum);
                continuing {
                    quad += LANES;
                    break if LANES >= CHUNK_ELEMENTS / 4u || quad >= quads_of(chunk);
                }
            }
        }
    }
    return added_over_lanes(lane, added(sum.total, sum.some));
}

fn publish(index: u32, partial: Partial) {
    atomicStore(&partials[2u * index], bitcast<u32>(partial.sum) ^ ARRIVED);
    atomicStore(&partials[2u * index + 1u], bitcast<u32>(partial.exponent) ^ ARRIVED);
}

fn consume_word(index: u32, is_awaited: bool) -> u32 {
    var word = atomicExchange(&partials[index], 0u);
    while is_awaited && word == 0u {
        word = atomicExchange(&partials[index], 0u);
    }
    return word;
}

// Entries between two launches are never written.
fn consume(index: u32, is_awaited: bool) -> Partial {
    let sum = consume_word(2u * index, is_awaited);
    let exponent = consume_word(2u * index + 1u, is_awaited);
    if sum == 0u {
        return ZERO;
    }
    return Partial(bitcast<f32>(sum ^ ARRIVED), bitcast<i32>(exponent ^ ARRIVED));
}

// In lane 0, the sum of the partial sums of all launches. Only those of the last launch may not have arrived yet.
fn sum_of_partials(first_awaited: u32, lane: u32) -> Partial {
    var sum = LongSum(ZERO, ZERO, 0u);
    for (var i = lane; i < arrayLength(&partials) / 2u; i += LANES) {
        sum.some = added(sum.some, consume(i, i >= first_awaited));
        sum = counted(sum);
    }
    return added_over_lanes(lane, added(sum.total, sum.some));
}

// All launches of a step but the last one.
@compute @workgroup_size(LANES)
fn norm_of_chunks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sum = sum_of_chunks(workgroup.x, workgroups.x, lane);
    if lane == 0u {
        publish(workgroup.x, sum);
    }
}

var<workgroup> is_last: bool;

// The last launch, which binds the partial sums of all launches.
@compute @workgroup_size(LANES)
fn norm_and_prepare(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = arrayLength(&partials) / 2u - workgroups.x;
    let own = sum_of_chunks(workgroup.x, workgroups.x, lane);
    if lane == 0u {
        publish(first + workgroup.x, own);
        is_last = atomicAdd(&kept.arrived, 1u) + 1u == workgroups.x;
    }
    if !workgroupUniformLoad(&is_last) {
        return;
    }
    let sum = sum_of_partials(first, lane);
    if lane == 0u {
        atomicStore(&kept.arrived, 0u);
        let loss_scale = kept.control.loss_scale;
        kept.control.norm = norm_of(sum, loss_scale);
        if sum.exponent != NOT_FINITE && !is_finite_number(kept.control.norm) {
            kept.control.norm = LARGEST;
            kept.norm_excess = excess_of(sum, loss_scale);
        }
    }
    if !NORM_ONLY {
        prepare_rows(lane);
    }
}

// The pass before a step that needs the norm of the gradients. Each workgroup sums the same number of consecutive chunks. Then the partial
// sums of all workgroups are summed and the step is prepared, by the workgroup that finishes last or by a dispatch of its own
// (partials.wgsl).

// Adds the squares of a quad of gradients, given as bits.
fn accumulate(squares: Squares, bits: vec4<u32>) -> Squares {
    let magnitudes = bits & MAGNITUDE;
    let largest = max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
    if largest >= 0x7f800000u {
        return Squares(0.0, NOT_FINITE);
    }
    // NOT_FINITE is above all exponents, so it stays.
    let exponent = max(squares.exponent, clamp(i32(largest >> 23u) - 127, LEAST_EXPONENT, MOST_EXPONENT));
    let scaled = bitcast<vec4<f32>>(magnitudes) * power_of_two(-exponent);
    return Squares(scaled_to(squares, exponent) + dot(scaled, scaled), exponent);
}

// The sum over the chunks of workgroup `index` of `workgroups`. Which chunks these are depends on where the tensors lie. Within a chunk a
// lane adds numbers in a fixed order.
fn sum_of_chunks(index: u32, workgroups: u32, lane: u32) -> Partial {
    let count = arrayLength(&chunks);
    let share = (count + workgroups - 1u) / workgroups;
    let first = min(index * share, count);
    let end = min(first + share, count);
    var sum = EMPTY;
    for (var i = first; i < end; i++) {
        let chunk = chunks[i];
        let segment = segments[chunk.segment];
        if rows[segment.coefficients].activity == ACTIVE {
            var squares = ZERO;
            // As in `update`.
            var quad = lane;
            loop {
                let at = place_within(segment, chunk, quad);
                let is_counted = at.mask & vec4(!at.is_extra);
                squares = accumulate(squares, select(vec4(0u), gradient_bits(at), is_counted));
                continuing {
                    quad += LANES;
                    break if LANES >= CHUNK_ELEMENTS / 4u || quad >= quads_of(chunk);
                }
            }
            sum = added(sum, partial_of(squares));
        }
    }
    return added_over_lanes(lane, sum);
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
    let first = arrayLength(&partials) / PARTIAL_WORDS - workgroups.x;
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
        set_norm(sum);
    }
    if !NORM_ONLY {
        prepare_rows(lane);
    }
}

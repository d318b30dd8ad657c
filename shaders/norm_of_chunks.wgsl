// The first pass of a step that needs the gradients' norm: each workgroup adds up equally many chunks that follow each other.

// What the host says of a parameter in this step.
struct Row {
    group: u32,
    activity: u32,
}

@group(0) @binding(8) var<storage, read> rows: array<Row>;
// One a workgroup.
@group(0) @binding(9) var<storage, read_write> partials: array<Partial>;

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

@compute @workgroup_size(LANES)
fn norm_of_chunks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.y * workgroups.x + workgroup.x;
    let needed = arrayLength(&partials);
    if index >= needed {
        return;
    }
    let count = arrayLength(&chunks);
    let share = (count + needed - 1u) / needed;
    let first = min(index * share, count);
    let end = min(first + share, count);
    var sum = LongSum(ZERO, ZERO, 0u);
    for (var i = first; i < end; i++) {
        let chunk = chunks[i];
        let segment = segments[chunk.segment];
        if rows[segment.coefficients].activity == ACTIVE {
            for (var word = lane; word < words_of(chunk); word += LANES) {
                let at = place(segment, chunk, word);
                sum.some = joined(sum.some, select(vec4(0u), gradient_bits(at), at.mask));
                sum = counted(sum);
            }
        }
    }
    let total = added_over_lanes(lane, added(sum.total, sum.some));
    if lane == 0u {
        partials[index] = total;
    }
}

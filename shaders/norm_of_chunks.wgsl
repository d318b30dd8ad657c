// The first pass of a step that needs the gradients' norm: one workgroup a chunk.

// What the host says of a parameter in this step.
struct Row {
    group: u32,
    activity: u32,
}

@group(0) @binding(8) var<storage, read> rows: array<Row>;
@group(0) @binding(9) var<storage, read_write> partials: array<Partial>;

fn partial_of(bits: vec4<u32>) -> Partial {
    let magnitudes = bits & MAGNITUDE;
    let largest = max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
    if largest >= 0x7f800000u {
        return Partial(0.0, NOT_FINITE);
    }
    let exponent = clamp(i32(largest >> 23u) - 127, LEAST_EXPONENT, MOST_EXPONENT);
    let scaled = bitcast<vec4<f32>>(magnitudes) * power_of_two(-exponent);
    return Partial(dot(scaled, scaled), exponent);
}

@compute @workgroup_size(LANES)
fn norm_of_chunks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.y * workgroups.x + workgroup.x;
    if index >= arrayLength(&chunks) {
        return;
    }
    let chunk = chunks[index];
    let segment = segments[chunk.segment];
    var sum = ZERO;
    if rows[segment.coefficients].activity == ACTIVE {
        for (var word = lane; word < words_of(chunk); word += LANES) {
            let at = place(segment, chunk, word);
            sum = added(sum, partial_of(select(vec4(0u), gradient_bits(at), at.mask)));
        }
    }
    let total = added_over_lanes(lane, sum);
    if lane == 0u {
        partials[index] = total;
    }
}

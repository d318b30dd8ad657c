// The pass before a step that needs the norm of the gradients. Each workgroup sums the same number of consecutive chunks. The workgroup
// that finishes last sums the partial sums of all workgroups and prepares the step.

// Partial sums, each in the words of a `Partial`. Every launch but the last binds only its own.
//
// WGSL gives no order between what two workgroups do to different words, so each word says for itself whether it has arrived: zero means
// not yet. The words of a partial sum have 31 bits, so they are never zero once their highest bit is flipped. The workgroup that consumes a
// word leaves zero for the next step.
@group(0) @binding(PARTIALS_BINDING) var<storage, read_write> partials: array<atomic<u32>>;
const ARRIVED = 0x80000000u;
const PARTIAL_WORDS = 8u;

// Only the norm is computed. The engine sums it over its devices before it records the rest of the step.
override NORM_ONLY: bool = false;

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
                let at = place(segment, chunk, quad);
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

fn publish_words(first: u32, words: vec3<u32>) {
    atomicStore(&partials[first], words.x ^ ARRIVED);
    atomicStore(&partials[first + 1u], words.y ^ ARRIVED);
    atomicStore(&partials[first + 2u], words.z ^ ARRIVED);
}

// A workgroup adds fewer than 2^30 numbers of 32 bits to a counter, so its high word is below 2^30 and can take a bit of the low word.
fn publish(index: u32, partial: Partial) {
    let first = PARTIAL_WORDS * index;
    publish_words(first, partial.low & vec3(~ARRIVED));
    atomicStore(&partials[first + 3u], partial.top ^ ARRIVED);
    publish_words(first + 4u, (partial.high << vec3(1u)) | (partial.low >> vec3(31u)));
}

fn consume_word(index: u32, is_awaited: bool) -> u32 {
    var word = atomicExchange(&partials[index], 0u);
    while is_awaited && word == 0u {
        word = atomicExchange(&partials[index], 0u);
    }
    return word ^ ARRIVED;
}

fn consume_words(first: u32, is_awaited: bool) -> vec3<u32> {
    let x = consume_word(first, is_awaited);
    let y = consume_word(first + 1u, is_awaited);
    let z = consume_word(first + 2u, is_awaited);
    return vec3(x, y, z);
}

// Entries between two launches are never written.
fn consume(index: u32, is_awaited: bool) -> Partial {
    let first = PARTIAL_WORDS * index;
    let top = consume_word(first + 3u, is_awaited);
    if top == ARRIVED {
        return EMPTY;
    }
    let low = consume_words(first, is_awaited);
    let high = consume_words(first + 4u, is_awaited);
    return Partial(low | (high << vec3(31u)), top, high >> vec3(1u));
}

// The sum of the partial sums of all launches. Only those of the last launch may not have arrived yet.
fn sum_of_partials(first_awaited: u32, lane: u32) -> Partial {
    var sum = EMPTY;
    for (var i = lane; i < arrayLength(&partials) / PARTIAL_WORDS; i += LANES) {
        sum = added(sum, consume(i, i >= first_awaited));
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

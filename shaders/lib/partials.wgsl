// The partial sums of the norm, one for each workgroup of the pass over the gradients.

// Each in the words of a `Partial`. Every launch but the last binds only its own.
//
// WGSL gives no order between what two workgroups do to different words, so each word says for itself whether it has arrived: zero means
// not yet. The words of a partial sum have 31 bits, so they are never zero once their highest bit is flipped. The workgroup that consumes a
// word leaves zero for the next step.
@group(0) @binding(PARTIALS_BINDING) var<storage, read_write> partials: array<atomic<u32>>;
const ARRIVED = 0x80000000u;
const PARTIAL_WORDS = 8u;

// Only the norm is computed. The engine sums it over its devices before it records the rest of the step.
override NORM_ONLY: bool = false;

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

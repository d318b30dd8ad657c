// State follows its rows. One workgroup writes the block of one new chunk; it reads the blocks of the old ones wherever its rows come
// from. src/storage/rows.rs mirrors it.

// Both sides of a branch may cost their time here.
const SKIPS_RARE_PATHS = false;

override STATES: u32 = 0u;
override SIGN_0: u32 = SIGNED;
override SIGN_1: u32 = SIGNED;
override SIGN_2: u32 = SIGNED;

const ANY_BUFFER = 0xffffffffu;
// The buffer that holds all old blocks, one after the other, if one does. The compiler then removes the code of the others.
override OLD_BUFFER: u32 = ANY_BUFFER;

// Where new rows come from.
const FROM_BUFFER = 0u;
const FROM_SAME = 1u;

struct Remap {
    // Its key and format.
    segment: Segment,
    row_len: u32,
    old_rows: u32,
    elements: u32,
    // Old chunks, which come first in `chunks`.
    old_chunks: u32,
    // FROM_BUFFER, FROM_SAME or another number: from nowhere.
    source: u32,
    // Word of the bound sources where they start.
    first_source: u32,
    // Word of the bound step counts, and the count of the host, which binds this table there.
    step: u32,
    host_step: u32,
    // The state that starts from the mean of its column in fresh rows, or a number above all states.
    rates: u32,
    // Bands of old rows, whose sums the means are made from.
    bands: u32,
}

struct RemapTable {
    head: Remap,
    // Of an old chunk the buffer that holds its block, and its word there. Of a new chunk its number, and its word in the bound state.
    chunks: array<vec2<u32>>,
}

@group(0) @binding(REMAP_BINDING) var<storage, read> table: RemapTable;
@group(0) @binding(SOURCES_BINDING) var<storage, read> sources: array<u32>;
@group(0) @binding(STEPS_BINDING) var<storage, read> steps: array<u32>;
// The mean of each column, then of each band and column a sum and a count.
@group(0) @binding(MEANS_BINDING) var<storage, read_write> means: array<u32>;

// Copies of what every element needs: a compiler that does not know what is uniform loads it once.
var<private> head: Remap;
// If the blocks follow each other: the first one, and the distance between two.
var<private> first_block: u32;
var<private> block_stride: u32;

fn begin() {
    head = table.head;
    first_block = table.chunks[0].y;
    block_stride = table.chunks[min(1u, head.old_chunks - 1u)].y - first_block;
}

fn sign_of(index: u32) -> u32 {
    return select(select(SIGN_2, SIGN_1, index == 1u), SIGN_0, index == 0u);
}

// Four old elements, or that there are none.
struct Origins {
    is_kept: vec4<bool>,
    // The buffers of their chunks' blocks, where these start, and the chunks' quads.
    buffer: vec4<u32>,
    block: vec4<u32>,
    quads: vec4<u32>,
    // Which of the chunk's elements they are.
    index: vec4<u32>,
    // Their columns.
    column: vec4<u32>,
}

fn chunk_entries(number: vec4<u32>) -> array<vec4<u32>, 2> {
    // The blocks follow each other.
    if OLD_BUFFER != ANY_BUFFER {
        return array<vec4<u32>, 2>(vec4(OLD_BUFFER), vec4(first_block) + number * block_stride);
    }
    let x = table.chunks[number.x];
    let y = table.chunks[number.y];
    let z = table.chunks[number.z];
    let w = table.chunks[number.w];
    return array<vec4<u32>, 2>(vec4(x.x, y.x, z.x, w.x), vec4(x.y, y.y, z.y, w.y));
}

fn origins_at(element: vec4<u32>, is_kept: vec4<bool>, column: vec4<u32>) -> Origins {
    // The first element stands for none.
    let at = select(vec4(0u), element, is_kept);
    let number = at / vec4(CHUNK_ELEMENTS);
    let entries = chunk_entries(number);
    let elements = min(vec4(head.old_rows * head.row_len) - number * CHUNK_ELEMENTS, vec4(CHUNK_ELEMENTS));
    let index = at % vec4(CHUNK_ELEMENTS);
    return Origins(is_kept, entries[0], entries[1], (elements + vec4(3u)) / vec4(4u), index, column);
}

// The old row of a new one; any number past the old rows is none.
fn source_of(row: u32) -> u32 {
    switch head.source {
        case FROM_BUFFER: {
            return sources[head.first_source + row];
        }
        case FROM_SAME: {
            return row;
        }
        default: {
            return 0xffffffffu;
        }
    }
}

// Row and column of a chunk's first element.
struct Start {
    row: u32,
    column: u32,
    inverse_row_len: f32,
}

fn start_of(first: u32) -> Start {
    let row = first / head.row_len;
    return Start(row, first - row * head.row_len, 1.0 / f32(head.row_len));
}

// What is rare stands in loops that go round once at most, here and below: software adapters execute both ways of a branch, but no loop that
// all lanes skip.

// The elements that those of a new quad continue. `mask` has those that exist.
fn origins_of(start: Start, quad: u32, mask: vec4<bool>) -> Origins {
    // Past the end as the first one.
    let n = vec4(start.column + 4u * quad) + select(vec4(0u), vec4(0u, 1u, 2u, 3u), mask);
    let row = rows_in(n, head.row_len, start.inverse_row_len);
    let column = n - row * head.row_len;
    var source = vec4(source_of(start.row + row.x));
    for (var rounds = u32(row.x != row.w || row.y != row.z); rounds > 0u; rounds--) {
        source = vec4(
            source.x,
            source_of(start.row + row.y),
            source_of(start.row + row.z),
            source_of(start.row + row.w),
        );
    }
    return origins_at(source * head.row_len + column, mask & (source < vec4(head.old_rows)), column);
}

fn part_words_of(format: u32, quads: vec4<u32>) -> vec4<u32> {
    if state_format(format) == STATE_F32 {
        return quads * 4u;
    }
    if state_format(format) == STATE_BF16 {
        return quads * 2u;
    }
    return quads;
}

// Four words from `by` later on.
fn shifted(words: vec4<u32>, by: u32) -> vec4<u32> {
    let one = select(words, vec4(0u, words.xyz), (by & 1u) != 0u);
    return select(one, vec4(0u, 0u, one.xy), (by & 2u) != 0u);
}

// Words that follow each other lie in two quads of words at most. A quad of elements with the end of a row has two such runs. Other words are
// loaded one by one, as all words are where any buffer may hold them: compilers take minutes if each load has its choice of buffers.
fn old_words(o: Origins, word: vec4<u32>) -> vec4<u32> {
    let in_first = word == word.xxxx + vec4(0u, 1u, 2u, 3u);
    let in_last = word + vec4(3u, 2u, 1u, 0u) == word.wwww;
    let has_runs = OLD_BUFFER != ANY_BUFFER && all(in_first | in_last);
    var words = vec4(0u);
    if OLD_BUFFER != ANY_BUFFER {
        words = old_run(OLD_BUFFER, word.x);
        for (var rounds = u32(has_runs && !in_first.w); rounds > 0u; rounds--) {
            // The last run may start before the buffer, where its first words are not wanted.
            let last = old_run(OLD_BUFFER, max(word.w, 3u) - 3u);
            words = select(select(last, shifted(last, 3u - word.w), word.w < 3u), words, in_first);
        }
    }
    for (var i = select(0u, 4u, has_runs); i < 4u; i++) {
        words[i] = old_word(o.buffer[i], word[i]);
    }
    return words;
}

fn old_halves(o: Origins, start: vec4<u32>) -> vec4<u32> {
    return (old_words(o, start + o.index / vec4(2u)) >> (vec4(16u) * (o.index % vec4(2u)))) & vec4(0xffffu);
}

fn old_bytes(o: Origins, start: vec4<u32>) -> vec4<u32> {
    return (old_words(o, start + o.index / vec4(4u)) >> (vec4(8u) * (o.index % vec4(4u)))) & vec4(0xffu);
}

// Bits of numbers of an old state.
fn old_bits(index: u32, o: Origins, format: u32) -> vec4<u32> {
    let start = o.block + index * part_words_of(format, o.quads);
    if state_format(format) == STATE_F32 {
        return old_words(o, start + o.index);
    }
    if state_format(format) == STATE_BF16 {
        return old_halves(o, start) << vec4(16u);
    }
    let scales = old_words(o, o.block + STATES * o.quads + o.index / vec4(32u));
    let codes = old_bytes(o, start);
    let sign = sign_of(index);
    return bitcast<vec4<u32>>(vec4(
        decode(sign, vec2(codes.x, 0u), scale_in(scales.x, index, sign)).a.x,
        decode(sign, vec2(codes.y, 0u), scale_in(scales.y, index, sign)).a.x,
        decode(sign, vec2(codes.z, 0u), scale_in(scales.z, index, sign)).a.x,
        decode(sign, vec2(codes.w, 0u), scale_in(scales.w, index, sign)).a.x,
    ));
}

// The bits of a state of a quad: those of the old elements, or what fresh ones start from.
fn new_bits(index: u32, o: Origins, format: u32, mask: vec4<bool>) -> vec4<u32> {
    var fresh = vec4(0u);
    for (var rounds = u32(index == head.rates && any(mask & !o.is_kept)); rounds > 0u; rounds--) {
        fresh = vec4(means[o.column.x], means[o.column.y], means[o.column.z], means[o.column.w]);
        fresh = select(vec4(0u), fresh, mask);
    }
    return select(fresh, old_bits(index, o, format), o.is_kept);
}

// Moves one state of a quad, in a format above 8 bits.
fn move_state(index: u32, at: Place, o: Origins) {
    let bits = new_bits(index, o, at.format, at.mask);
    if state_format(at.format) == STATE_F32 {
        set_state_4(start_of_state(at, index), at.quad, bits);
        return;
    }
    // Old numbers are of that type already.
    let halves = select(bf16_of_f32(bits), bits >> vec4(16u), o.is_kept);
    set_state_2(start_of_state(at, index), at.quad, pack_halves(halves));
}

// Moves a quad's master weights. A fresh element has no difference: its master weight is its value.
fn move_master(at: Place, o: Origins) {
    let scales = select(vec4(0u), (o.quads + vec4(7u)) / vec4(8u), vec4(state_format(at.format) == STATE_Q8));
    let old = o.block + STATES * part_words_of(at.format, o.quads) + scales;
    let start = start_of_master(at);
    switch master_weights(at.format) {
        case MASTER_SPLIT24: {
            let bytes = select(vec4(0u), old_bytes(o, old), o.is_kept) << vec4(0u, 8u, 16u, 24u);
            set_state_1(start, at.quad, bytes.x | bytes.y | bytes.z | bytes.w);
        }
        case MASTER_SPLIT32: {
            set_state_2(start, at.quad, pack_halves(select(vec4(0u), old_halves(o, old), o.is_kept)));
        }
        case MASTER_F32: {
            set_state_4(start, at.quad, select(vec4(0u), old_words(o, old + o.index), o.is_kept));
        }
        default: {
        }
    }
}

fn both_extremes(one: Extremes, other: Extremes) -> Extremes {
    return Extremes(max(one.largest, other.largest), min(one.smallest, other.smallest));
}

// Moves the 8-bit state of a quant block. If it continues one old quant block it moves as it is, else it is decoded and encoded, rounded
// stochastically.
fn move_quant_block(segment: Segment, chunk: Chunk, start: Start, block: u32) {
    let format = format_of(segment);
    let quads = quads_of(chunk);
    let elements = min(chunk.elements - 32u * block, 32u);
    let scale_start = chunk.state + STATES * quads + block;
    var origins: array<Origins, 8>;
    var is_whole = true;
    for (var quad = 0u; 4u * quad < elements; quad++) {
        let i = vec4(4u * quad) + vec4(0u, 1u, 2u, 3u);
        let mask = i < vec4(elements);
        let o = origins_of(start, 8u * block + quad, mask);
        origins[quad] = o;
        let first = origins[0];
        let continues = o.is_kept & (o.buffer == first.buffer.xxxx) & (o.block == first.block.xxxx)
            & (o.index == first.index.xxxx + i);
        is_whole = is_whole && all(continues | !mask);
    }
    let first = origins[0];
    if is_whole && first.index.x % 32u == 0u {
        let old_block = first.index.x / 32u;
        let scale_word = first.block.x + STATES * first.quads.x + old_block;
        set_state_1(scale_start, 0u, old_word(first.buffer.x, scale_word));
        for (var index = 0u; index < STATES; index++) {
            for (var quad = 0u; 4u * quad < elements; quad++) {
                let word = first.block.x + index * first.quads.x + 8u * old_block + quad;
                // Codes past the end are zero.
                let bits = 8u * min(elements - 4u * quad, 4u);
                let codes = extractBits(old_word(first.buffer.x, word), 0u, bits);
                set_state_1(chunk.state + index * quads, 8u * block + quad, codes);
            }
        }
        return;
    }
    var scales = 0u;
    let seed = seed_of(segment.key, steps[head.step], chunk.first / 4u + 8u * block);
    for (var index = 0u; index < STATES; index++) {
        let sign = sign_of(index);
        var values: array<vec4<f32>, 8>;
        for (var quad = 0u; 4u * quad < elements; quad++) {
            let mask = vec4(4u * quad) + vec4(0u, 1u, 2u, 3u) < vec4(elements);
            values[quad] = bitcast<vec4<f32>>(new_bits(index, origins[quad], format, mask));
        }
        var extremes = all_extremes(sign, Pair(values[0], values[1]));
        extremes = both_extremes(extremes, all_extremes(sign, Pair(values[2], values[3])));
        extremes = both_extremes(extremes, all_extremes(sign, Pair(values[4], values[5])));
        extremes = both_extremes(extremes, all_extremes(sign, Pair(values[6], values[7])));
        let scale = new_scale(sign == SIGNED, extremes, shift_in(0u, index));
        let coding = coding_of(scale);
        // Without numbers above zero the scale is that of a new block.
        if extremes.largest > 0u {
            scales |= part_of_scales(index, sign == SIGNED, scale);
        }
        for (var pair = 0u; pair < 4u; pair++) {
            var a = random_of(seed + vec4(2u * pair * PCG_FACTOR, 0u, 0u, 0u));
            var b = random_of(seed + vec4((2u * pair + 1u) * PCG_FACTOR, 0u, 0u, 0u));
            let numbers = Pair(values[2u * pair], values[2u * pair + 1u]);
            let codes = encode(sign, numbers, true, coding, a.state[index], b.state[index]);
            let quad = 8u * block + 2u * pair;
            if quad < quads {
                set_state_1(chunk.state + index * quads, quad, codes.x);
            }
            if quad + 1u < quads {
                set_state_1(chunk.state + index * quads, quad + 1u, codes.y);
            }
        }
    }
    set_state_1(scale_start, 0u, scales);
}

// The grid has two dimensions where one is too short, so its last row may reach past the chunks.
@compute @workgroup_size(LANES)
fn remap(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    begin();
    let index = head.old_chunks + workgroup.y * workgroups.x + workgroup.x;
    if index >= arrayLength(&table.chunks) {
        return;
    }
    let number = table.chunks[index].x;
    let first = number * CHUNK_ELEMENTS;
    let segment = head.segment;
    let chunk = Chunk(0u, first, min(head.elements - first, CHUNK_ELEMENTS), table.chunks[index].y);
    let format = format_of(segment);
    let start = start_of(first);
    if state_format(format) == STATE_Q8 {
        // A lane moves whole quant blocks.
        for (var block = lane; 32u * block < chunk.elements; block += LANES) {
            move_quant_block(segment, chunk, start, block);
        }
        if master_weights(format) == MASTER_NONE {
            return;
        }
    }
    for (var quad = lane; quad < quads_of(chunk); quad += LANES) {
        let at = place(segment, chunk, quad, false);
        let origins = origins_of(start, quad, at.mask);
        if state_format(format) != STATE_Q8 {
            if STATES > 0u {
                move_state(0u, at, origins);
            }
            if STATES > 1u {
                move_state(1u, at, origins);
            }
            if STATES > 2u {
                move_state(2u, at, origins);
            }
        }
        move_master(at, origins);
    }
}

// The bits of 1.
const ONE = 0x3f800000u;

// Sums the reciprocals of four columns of a band of old rows. Bands are as many rows as `bands` of them need.
@compute @workgroup_size(LANES)
fn rates_of_bands(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    begin();
    let thread = (workgroup.y * workgroups.x + workgroup.x) * LANES + lane;
    let threads_per_band = (head.row_len + 3u) / 4u;
    if thread >= head.bands * threads_per_band {
        return;
    }
    let band = thread / threads_per_band;
    let first = 4u * (thread % threads_per_band);
    let mask = vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(head.row_len);
    // Past the last column as the first one.
    let column = vec4(first) + select(vec4(0u), vec4(0u, 1u, 2u, 3u), mask);
    let rows = (head.old_rows + head.bands - 1u) / head.bands;
    let format = format_of(head.segment);
    var sum = vec4(0.0);
    var count = vec4(0u);
    for (var row = band * rows; row < min((band + 1u) * rows, head.old_rows); row++) {
        let origins = origins_at(vec4(row * head.row_len) + column, vec4(true), column);
        let bits = old_bits(head.rates, origins, format);
        // Above zero, normal and finite.
        let counts = (bits >= vec4(0x00800000u)) & (bits < vec4(0x7f800000u));
        sum += select(vec4(0.0), 1.0 / bitcast<vec4<f32>>(select(vec4(ONE), bits, counts)), counts);
        count += select(vec4(0u), vec4(1u), counts);
    }
    for (var i = 0u; i < 4u; i++) {
        if mask[i] {
            let at = head.row_len + 2u * (band * head.row_len + first + i);
            means[at] = bitcast<u32>(sum[i]);
            means[at + 1u] = count[i];
        }
    }
}

// The harmonic mean of each column.
@compute @workgroup_size(LANES)
fn mean_rates(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    begin();
    let column = (workgroup.y * workgroups.x + workgroup.x) * LANES + lane;
    if column >= head.row_len {
        return;
    }
    var sum = 0.0;
    var count = 0u;
    for (var band = 0u; band < head.bands; band++) {
        let at = head.row_len + 2u * (band * head.row_len + column);
        sum += bitcast<f32>(means[at]);
        count += means[at + 1u];
    }
    var mean = 0u;
    if count > 0u {
        mean = bitcast<u32>(f32(count) / sum);
    }
    means[column] = mean;
}

// State follows its rows. One workgroup writes the block of one new chunk; it reads the blocks of the old ones wherever its rows come
// from. src/storage/rows.rs mirrors it.

// Both sides of a branch may cost their time here.
const SKIPS_RARE_PATHS = false;

override STATES: u32 = 0u;
override SIGN_0: u32 = SIGNED;
override SIGN_1: u32 = SIGNED;
override SIGN_2: u32 = SIGNED;

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
    // Of an old chunk the buffer that holds its block, and its word there. Of a new chunk its number, and its word in the bound state.
    chunks: array<vec2<u32>>,
}

@group(0) @binding(REMAP_BINDING) var<storage, read> table: Remap;
@group(0) @binding(SOURCES_BINDING) var<storage, read> sources: array<u32>;
@group(0) @binding(STEPS_BINDING) var<storage, read> steps: array<u32>;
// The mean of each column, then of each band and column a sum and a count.
@group(0) @binding(MEANS_BINDING) var<storage, read_write> means: array<u32>;

fn sign_of(index: u32) -> u32 {
    return select(select(SIGN_2, SIGN_1, index == 1u), SIGN_0, index == 0u);
}

// An old element, or that there is none.
struct Origin {
    is_kept: bool,
    buffer: u32,
    // Where the block of its chunk starts, and the chunk's quads.
    block: u32,
    quads: u32,
    // Which of the chunk's elements it is.
    index: u32,
}

fn origin_at(element: u32) -> Origin {
    let number = element / CHUNK_ELEMENTS;
    let chunk = table.chunks[number];
    let elements = min(table.old_rows * table.row_len - number * CHUNK_ELEMENTS, CHUNK_ELEMENTS);
    return Origin(true, chunk.x, chunk.y, (elements + 3u) / 4u, element % CHUNK_ELEMENTS);
}

// The old row of a new one; any number past the old rows is none.
fn source_of(row: u32) -> u32 {
    switch table.source {
        case FROM_BUFFER: {
            return sources[table.first_source + row];
        }
        case FROM_SAME: {
            return row;
        }
        default: {
            return 0xffffffffu;
        }
    }
}

// The elements of a new quad, and their columns.
struct Origins {
    each: array<Origin, 4>,
    columns: vec4<u32>,
}

fn origins_of(quad: u32) -> Origins {
    var origins: Origins;
    let first = 4u * quad;
    var row = first / table.row_len;
    var column = first - row * table.row_len;
    var old = source_of(row);
    for (var i = 0u; i < 4u; i++) {
        origins.columns[i] = column;
        if first + i < table.elements && old < table.old_rows {
            origins.each[i] = origin_at(old * table.row_len + column);
        }
        column += 1u;
        if column == table.row_len && first + i + 1u < table.elements {
            column = 0u;
            row += 1u;
            old = source_of(row);
        }
    }
    return origins;
}

fn part_words_of(format: u32, quads: u32) -> u32 {
    return select(select(quads, 2u * quads, state_format(format) == STATE_BF16), 4u * quads, state_format(format) == STATE_F32);
}

fn old_master(origin: Origin, format: u32) -> u32 {
    let scales = select(0u, (origin.quads + 7u) / 8u, state_format(format) == STATE_Q8);
    return origin.block + STATES * part_words_of(format, origin.quads) + scales;
}

fn old_full(origin: Origin, start: u32) -> u32 {
    return old_word(origin.buffer, start + origin.index);
}

fn old_half(origin: Origin, start: u32) -> u32 {
    return (old_word(origin.buffer, start + origin.index / 2u) >> (16u * (origin.index % 2u))) & 0xffffu;
}

fn old_byte(origin: Origin, start: u32) -> u32 {
    return (old_word(origin.buffer, start + origin.index / 4u) >> (8u * (origin.index % 4u))) & 0xffu;
}

// A number of an old state.
fn old_value(index: u32, origin: Origin, format: u32) -> f32 {
    let start = origin.block + index * part_words_of(format, origin.quads);
    switch state_format(format) {
        case STATE_F32: {
            return bitcast<f32>(old_full(origin, start));
        }
        case STATE_BF16: {
            return bitcast<f32>(old_half(origin, start) << 16u);
        }
        default: {
            let scales = old_word(origin.buffer, origin.block + STATES * origin.quads + origin.index / 32u);
            let sign = sign_of(index);
            return decode(sign, vec2(old_byte(origin, start), 0u), scale_in(scales, index, sign)).a.x;
        }
    }
}

// The bits that a state of a fresh row starts from.
fn fresh_bits(index: u32, column: u32) -> u32 {
    if index == table.rates {
        return means[column];
    }
    return 0u;
}

// Moves a quad's state in a format above 8 bits.
fn move_state(at: Place, origins: Origins) {
    for (var index = 0u; index < STATES; index++) {
        let part = index * part_words(at, 1u);
        var words: vec4<u32>;
        for (var i = 0u; i < 4u; i++) {
            let origin = origins.each[i];
            let start = origin.block + part * origin.quads;
            if state_format(at.format) == STATE_F32 {
                if origin.is_kept {
                    words[i] = old_full(origin, start);
                } else if at.mask[i] {
                    words[i] = fresh_bits(index, origins.columns[i]);
                }
            } else if origin.is_kept {
                words[i] = old_half(origin, start);
            } else if at.mask[i] {
                words[i] = bf16_of_f32(vec4(fresh_bits(index, origins.columns[i]))).x;
            }
        }
        if state_format(at.format) == STATE_F32 {
            set_state_4(start_of_state(at, index), at.quad, words);
        } else {
            set_state_2(start_of_state(at, index), at.quad, pack_halves(words));
        }
    }
}

// Moves a quad's master weights. A fresh element has no difference: its master weight is its value.
fn move_master(at: Place, origins: Origins) {
    let master = master_weights(at.format);
    if master == MASTER_NONE {
        return;
    }
    var words: vec4<u32>;
    for (var i = 0u; i < 4u; i++) {
        let origin = origins.each[i];
        if origin.is_kept {
            let start = old_master(origin, at.format);
            switch master {
                case MASTER_SPLIT24: {
                    words[i] = old_byte(origin, start);
                }
                case MASTER_SPLIT32: {
                    words[i] = old_half(origin, start);
                }
                default: {
                    words[i] = old_full(origin, start);
                }
            }
        }
    }
    let start = start_of_master(at);
    switch master {
        case MASTER_SPLIT24: {
            let bytes = words << vec4(0u, 8u, 16u, 24u);
            set_state_1(start, at.quad, bytes.x | bytes.y | bytes.z | bytes.w);
        }
        case MASTER_SPLIT32: {
            set_state_2(start, at.quad, pack_halves(words));
        }
        default: {
            set_state_4(start, at.quad, words);
        }
    }
}

fn both_extremes(one: Extremes, other: Extremes) -> Extremes {
    return Extremes(max(one.largest, other.largest), min(one.smallest, other.smallest));
}

// Moves the 8-bit state of a quant block. If it continues one old quant block it moves as it is, else it is decoded and encoded, rounded
// stochastically.
fn move_quant_block(segment: Segment, chunk: Chunk, block: u32) {
    let format = format_of(segment);
    let quads = quads_of(chunk);
    let elements = min(chunk.elements - 32u * block, 32u);
    let first = chunk.first + 32u * block;
    let scale_start = chunk.state + STATES * quads + block;
    // Old elements, and columns.
    var olds: array<u32, 32>;
    var columns: array<u32, 32>;
    var row = first / table.row_len;
    var column = first - row * table.row_len;
    var source = source_of(row);
    var is_whole = true;
    for (var i = 0u; i < 32u; i++) {
        olds[i] = 0xffffffffu;
        if i < elements {
            columns[i] = column;
            if source < table.old_rows {
                olds[i] = source * table.row_len + column;
            }
            is_whole = is_whole && olds[i] != 0xffffffffu && olds[i] == olds[0] + i;
            column += 1u;
            if column == table.row_len && i + 1u < elements {
                column = 0u;
                row += 1u;
                source = source_of(row);
            }
        }
    }
    if is_whole && olds[0] % 32u == 0u {
        let origin = origin_at(olds[0]);
        let old_block = origin.index / 32u;
        state[scale_start] = old_word(origin.buffer, origin.block + STATES * origin.quads + old_block);
        for (var index = 0u; index < STATES; index++) {
            for (var quad = 0u; 4u * quad < elements; quad++) {
                let codes = old_word(origin.buffer, origin.block + index * origin.quads + 8u * old_block + quad);
                // Codes past the end are zero.
                let bits = 8u * min(elements - 4u * quad, 4u);
                state[chunk.state + index * quads + 8u * block + quad] = extractBits(codes, 0u, bits);
            }
        }
        return;
    }
    var scales = 0u;
    let seed = seed_of(segment.key, steps[table.step], first / 4u);
    for (var index = 0u; index < STATES; index++) {
        let sign = sign_of(index);
        var values: array<vec4<f32>, 8>;
        for (var i = 0u; i < elements; i++) {
            if olds[i] == 0xffffffffu {
                values[i / 4u][i % 4u] = bitcast<f32>(fresh_bits(index, columns[i]));
            } else {
                values[i / 4u][i % 4u] = old_value(index, origin_at(olds[i]), format);
            }
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
                state[chunk.state + index * quads + quad] = codes.x;
            }
            if quad + 1u < quads {
                state[chunk.state + index * quads + quad + 1u] = codes.y;
            }
        }
    }
    state[scale_start] = scales;
}

// The grid has two dimensions where one is too short, so its last row may reach past the chunks.
@compute @workgroup_size(LANES)
fn remap(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = table.old_chunks + workgroup.y * workgroups.x + workgroup.x;
    if index >= arrayLength(&table.chunks) {
        return;
    }
    let number = table.chunks[index].x;
    let first = number * CHUNK_ELEMENTS;
    let segment = table.segment;
    let chunk = Chunk(0u, first, min(table.elements - first, CHUNK_ELEMENTS), table.chunks[index].y);
    let format = format_of(segment);
    for (var quad = lane; quad < quads_of(chunk); quad += LANES) {
        if state_format(format) == STATE_Q8 {
            // A lane moves whole quant blocks.
            if quad * 32u < chunk.elements {
                move_quant_block(segment, chunk, quad);
            }
            if master_weights(format) == MASTER_NONE {
                continue;
            }
        }
        let at = place(segment, chunk, quad, false);
        let origins = origins_of(first / 4u + quad);
        if state_format(format) != STATE_Q8 {
            move_state(at, origins);
        }
        move_master(at, origins);
    }
}

fn is_counted(rate: f32) -> bool {
    let bits = bitcast<u32>(rate);
    return bits >= 0x00800000u && bits < 0x7f800000u;
}

// Sums the reciprocals of one column of a band of old rows. Bands are as many rows as `bands` of them need.
@compute @workgroup_size(LANES)
fn rates_of_bands(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let thread = (workgroup.y * workgroups.x + workgroup.x) * LANES + lane;
    if thread >= table.bands * table.row_len {
        return;
    }
    let band = thread / table.row_len;
    let column = thread % table.row_len;
    let rows = (table.old_rows + table.bands - 1u) / table.bands;
    let format = format_of(table.segment);
    var sum = 0.0;
    var count = 0u;
    for (var row = band * rows; row < min((band + 1u) * rows, table.old_rows); row++) {
        let rate = old_value(table.rates, origin_at(row * table.row_len + column), format);
        if is_counted(rate) {
            sum += 1.0 / rate;
            count += 1u;
        }
    }
    means[table.row_len + 2u * thread] = bitcast<u32>(sum);
    means[table.row_len + 2u * thread + 1u] = count;
}

// The harmonic mean of each column.
@compute @workgroup_size(LANES)
fn mean_rates(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = (workgroup.y * workgroups.x + workgroup.x) * LANES + lane;
    if column >= table.row_len {
        return;
    }
    var sum = 0.0;
    var count = 0u;
    for (var band = 0u; band < table.bands; band++) {
        let at = table.row_len + 2u * (band * table.row_len + column);
        sum += bitcast<f32>(means[at]);
        count += means[at + 1u];
    }
    var mean = 0u;
    if count > 0u {
        mean = bitcast<u32>(f32(count) / sum);
    }
    means[column] = mean;
}

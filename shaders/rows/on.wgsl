// Rates by column, and rows that rest in this step.

// Some tensors of the launch have a mask.
override HAS_MASKS: bool = false;

// What a segment of the launch has, in 8 words of the table.
struct SegmentRows {
    // Word of the table where the factors of its columns start, and how many there are; none means 1.
    factors: u32,
    period: u32,
    // The factor of its first element.
    phase: u32,
    // Word of the bound masks that has the row of its first element, if `row_len` is above zero.
    mask: u32,
    row_len: u32,
    // The bit there of that row, and the column of its first element.
    row: u32,
    column: u32,
    padding: u32,
}

const SEGMENT_ROWS_WORDS = 8u;

@group(0) @binding(ROW_TABLE_BINDING) var<storage, read> row_table: array<u32>;
@group(0) @binding(ROW_MASKS_BINDING) var<storage, read> row_masks: array<u32>;

// Those of the workgroup's chunk, with phase, row and column of its first element.
var<private> rows: SegmentRows;
var<private> inverse_period: f32;
var<private> inverse_row_len: f32;

fn begin_rows(chunk: Chunk) {
    let first = chunk.segment * SEGMENT_ROWS_WORDS;
    rows.factors = row_table[first];
    rows.period = row_table[first + 1u];
    if rows.period > 0u {
        rows.phase = (row_table[first + 2u] + chunk.first) % rows.period;
        inverse_period = 1.0 / f32(rows.period);
    }
    rows.row_len = row_table[first + 4u];
    if HAS_MASKS && rows.row_len > 0u {
        let column = row_table[first + 6u] + chunk.first;
        rows.mask = row_table[first + 3u];
        rows.row = row_table[first + 5u] + column / rows.row_len;
        rows.column = column % rows.row_len;
        inverse_row_len = 1.0 / f32(rows.row_len);
    }
}

fn factors_of(at: Place) -> vec4<f32> {
    if rows.period == 0u {
        return vec4(1.0);
    }
    let n = vec4(rows.phase + 4u * at.quad) + vec4(0u, 1u, 2u, 3u);
    let i = vec4(rows.factors) + n - rows_in(n, rows.period, inverse_period) * rows.period;
    return bitcast<vec4<f32>>(vec4(row_table[i.x], row_table[i.y], row_table[i.z], row_table[i.w]));
}

// Which of a quad's elements step.
fn steps_in(at: Place) -> vec4<bool> {
    if !HAS_MASKS || rows.row_len == 0u {
        return vec4(true);
    }
    // Past the tensor's end as the first element.
    let offsets = select(vec4(0u), vec4(0u, 1u, 2u, 3u), at.mask);
    let n = vec4(rows.column + 4u * at.quad) + offsets;
    let row = vec4(rows.row) + rows_in(n, rows.row_len, inverse_row_len);
    // The rows of a word are a multiple of four elements, so a quad has no rows of two words.
    let bits = row_masks[rows.mask + (row.x >> 5u)];
    return ((vec4(bits) >> (row & vec4(31u))) & vec4(1u)) == vec4(1u);
}

// None of a quad's elements steps.
fn rests(at: Place) -> bool {
    return HAS_MASKS && !any(steps_in(at));
}

fn step_with_factor(c: Coefficients, general: General, elements: Elements, factor: f32) -> Stepped {
    var scaled = general;
    scaled.decoupled_decay *= factor;
    return step(scaled, with_factor(c, factor), elements);
}

fn step_rows(c: Coefficients, general: General, quad: Quad) -> Stepped {
    let f = factors_of(quad.at);
    var stepped = step_with_factor(c, general, quad.elements, f.x);
    if any(f != f.xxxx) {
        let y = step_with_factor(c, general, quad.elements, f.y);
        let z = step_with_factor(c, general, quad.elements, f.z);
        let w = step_with_factor(c, general, quad.elements, f.w);
        stepped.theta = vec4(stepped.theta.x, y.theta.y, z.theta.z, w.theta.w);
        stepped.eta = vec4(stepped.eta.x, y.eta.y, z.eta.z, w.eta.w);
        stepped.bounded = vec4(stepped.bounded.x, y.bounded.y, z.bounded.z, w.bounded.w);
        stepped.state[0] = vec4(stepped.state[0].x, y.state[0].y, z.state[0].z, w.state[0].w);
        stepped.state[1] = vec4(stepped.state[1].x, y.state[1].y, z.state[1].z, w.state[1].w);
        stepped.state[2] = vec4(stepped.state[2].x, y.state[2].y, z.state[2].z, w.state[2].w);
    }
    if HAS_MASKS {
        let stepping = steps_in(quad.at);
        stepped.theta = select(quad.elements.theta, stepped.theta, stepping);
        stepped.state[0] = select(quad.elements.state[0], stepped.state[0], stepping);
        stepped.state[1] = select(quad.elements.state[1], stepped.state[1], stepping);
        stepped.state[2] = select(quad.elements.state[2], stepped.state[2], stepping);
    }
    return stepped;
}

// A place whose mask has only elements that step.
fn observed(at: Place) -> Place {
    var place = at;
    if HAS_MASKS {
        place.mask = at.mask & steps_in(at);
    }
    return place;
}

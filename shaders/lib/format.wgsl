// How a tensor is stored: five fields in one word of its segment.

const BY_SEGMENT = 0xffffffffu;
// The format of all segments, if they have the same one. The compiler then removes the code of the others.
override FORMAT: u32 = BY_SEGMENT;

// Data types.
const F32 = 0u;
const F16 = 1u;
const BF16 = 2u;

// Formats of state.
const STATE_F32 = 0u;
const STATE_BF16 = 1u;
const STATE_Q8 = 2u;

// Ranges of a state's values, on which its 8-bit codes depend.
const SIGNED = 0u;
const NON_NEGATIVE = 1u;
const POSITIVE = 2u;

// Master weights: what is stored of a 16-bit parameter's f32 value besides the parameter.
const MASTER_NONE = 0u;
const MASTER_SPLIT24 = 1u;
const MASTER_SPLIT32 = 2u;
const MASTER_F32 = 3u;

fn format_of(segment: Segment) -> u32 {
    if FORMAT == BY_SEGMENT {
        return segment.format;
    }
    return FORMAT;
}

fn values_dtype(format: u32) -> u32 {
    return format & 3u;
}

fn gradients_dtype(format: u32) -> u32 {
    return (format >> 2u) & 3u;
}

fn state_format(format: u32) -> u32 {
    return (format >> 4u) & 3u;
}

fn master_weights(format: u32) -> u32 {
    return (format >> 6u) & 3u;
}

fn shadow_dtype(format: u32) -> u32 {
    return (format >> 8u) & 3u;
}

fn is_rounded_stochastically(format: u32) -> bool {
    return values_dtype(format) == BF16 && master_weights(format) == MASTER_NONE;
}

// Words of 32 bits that a quad of a data type takes.
fn quad_words(dtype: u32) -> u32 {
    return select(2u, 4u, dtype == F32);
}

// No 8-bit state in this launch: lanes work alone, on a quad each.

const LANE_QUADS = 1u;

fn update_lane(c: Coefficients, general: General, segment: Segment, chunk: Chunk, format: u32, first: u32, lane: u32) {
    var at = place_within(segment, chunk, first + lane);
    // Where lanes go round a loop, few of them are past its end, and software adapters execute a branch at every lane's cost.
    if LANES >= CHUNK_ELEMENTS / 4u {
        at = place(segment, chunk, lane, lane >= quads_of(chunk));
        if at.is_extra {
            return;
        }
    }
    if rests(at) {
        if ZERO_GRADIENTS && !at.is_extra {
            zero_gradients(at);
        }
        return;
    }
    var quad = load_quad(at, load_bytes(at));
    quad.elements.state = load_state(at);
    let stepped = step_quad(c, general, quad);
    if at.is_extra {
        return;
    }
    var random: Random;
    if needs_random(format) {
        random = random_of(seed_of(at.key, c.step, at.quad_of_tensor));
    }
    store_state(at, stepped.state, random);
    store_quad(quad, stepped, random);
}

// A skipped step.
fn skip_lane(segment: Segment, chunk: Chunk, quad: u32) {
    if quad < quads_of(chunk) {
        zero_gradients(place(segment, chunk, quad, false));
    }
}

// A joint step of several optimizers: one norm, one loss scale and one decision to skip. `kept` is the control buffer of the first optimizer,
// which decides; `other` is that of another one.

@group(0) @binding(OTHER_CONTROL_BINDING) var<storage, read_write> other: ControlBuffer;

// Adds the other optimizer's sum of squares to the first one's. Sums are exact, so their order does not matter.
@compute @workgroup_size(1)
fn join() {
    set_norm(added(partial_of_words(kept.sum_of_squares), partial_of_words(other.sum_of_squares)));
}

// Gives the other optimizer everything that the decision depends on, so that it decides alike.
@compute @workgroup_size(1)
fn follow() {
    other.control = kept.control;
    other.norm_excess = kept.norm_excess;
}

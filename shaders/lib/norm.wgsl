// The norm in the control buffer.

fn words_of_partial(sum: Partial) -> array<u32, 7> {
    return array(sum.low.x, sum.low.y, sum.low.z, sum.top, sum.high.x, sum.high.y, sum.high.z);
}

fn partial_of_words(words: array<u32, 7>) -> Partial {
    return Partial(vec3(words[0], words[1], words[2]), words[3], vec3(words[4], words[5], words[6]));
}

// Sets the norm, and keeps the sum of squares for a joint step.
fn set_norm(sum: Partial) {
    kept.sum_of_squares = words_of_partial(sum);
    let loss_scale = kept.control.loss_scale;
    let squares = squares_of(sum);
    kept.control.norm = norm_of(squares, loss_scale);
    if squares.exponent != NOT_FINITE && !is_finite_number(kept.control.norm) {
        kept.control.norm = LARGEST;
        kept.norm_excess = excess_of(squares, loss_scale);
    }
}

// For launches whose segments have bindings of their own, as elements of binding arrays. wgpu allows no dynamic offsets beside binding
// arrays, so they have a bind group of their own.

struct Words {
    words: array<Word>,
}

// The element of a segment. The segments of a launch have consecutive numbers, and its first chunk is in the first of them.
fn element_of(segment: u32) -> u32 {
    return segment - chunks[0].segment;
}

// For launches whose segments have bindings of their own, as elements of binding arrays. wgpu allows no dynamic offsets beside binding
// arrays, so they have a bind group of their own.

struct Words {
    words: array<Word>,
}

// The element of a segment. Those of a launch follow each other, and its first chunk is in the first one.
fn element_of(segment: u32) -> u32 {
    return segment - chunks[0].segment;
}

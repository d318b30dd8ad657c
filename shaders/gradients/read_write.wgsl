// Gradients in the parameters' buffer, but too far away for one binding: WebGPU refuses one buffer bound both `read` and
// `read_write`, so they are bound `read_write` and only read.

@group(0) @binding(4) var<storage, read_write> gradients: array<Word>;

fn gradient_word(index: u32) -> Word {
    return gradients[index];
}

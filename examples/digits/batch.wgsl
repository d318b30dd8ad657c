// Gathers the minibatch of the current step: row r is image order[step * rows + r].
//
// The GPU counts the step (loss.wgsl advances it), so that any number of steps can be recorded before one submit, without an upload in
// between.

@group(0) @binding(0) var<storage, read> step: u32;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read> images: array<f32>;
@group(0) @binding(3) var<storage, read> labels: array<u32>;
@group(0) @binding(4) var<storage, read_write> batch_images: array<f32>;
@group(0) @binding(5) var<storage, read_write> batch_labels: array<u32>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let element = id.x;
    if element >= arrayLength(&batch_images) {
        return;
    }
    let rows = arrayLength(&batch_labels);
    let pixels = arrayLength(&batch_images) / rows;
    let row = element / pixels;
    let pixel = element % pixels;

    let image = order[step * rows + row];
    batch_images[element] = images[image * pixels + pixel];
    if pixel == 0u {
        batch_labels[row] = labels[image];
    }
}

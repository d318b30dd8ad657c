// losses[step] = mean of the squared errors of all pixels and colors. One workgroup, which then advances the step.

@group(0) @binding(0) var<storage, read_write> step: u32;
@group(0) @binding(1) var<storage, read> errors: array<vec4<f32>>;
// One for each step of the run, read back at its end.
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;

var<workgroup> partial_sums: array<f32, WORKGROUP_THREADS>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    let pixels = arrayLength(&errors);
    var sum = 0.0;
    for (var pixel = thread; pixel < pixels; pixel += WORKGROUP_THREADS) {
        let error = errors[pixel].xyz;
        sum += dot(error, error);
    }
    partial_sums[thread] = sum;
    workgroupBarrier();

    if thread == 0u {
        for (var other = 1u; other < WORKGROUP_THREADS; other++) {
            sum += partial_sums[other];
        }
        losses[step] = sum / f32(3u * pixels);
        step += 1u;
    }
}

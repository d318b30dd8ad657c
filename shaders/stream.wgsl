// The memory traffic of a step without its tables and arithmetic: gradients are read, parameters and STATES states are read,
// increased by the gradient and written back. Whole chunks of one tensor, and blocks of state as the step has them.

const LANES = 256u;

override STATES: u32 = 3u;

@group(0) @binding(0) var<storage, read> gradients: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> parameters: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn stream(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunk = workgroup.y * workgroups.x + workgroup.x;
    let index = chunk * LANES + lane;
    if index >= arrayLength(&parameters) {
        return;
    }
    let gradient = gradients[index];
    parameters[index] += gradient;
    let block = chunk * STATES * LANES + lane;
    state[block] += gradient;
    if STATES > 1u {
        state[block + LANES] += gradient;
    }
    if STATES > 2u {
        state[block + 2u * LANES] += gradient;
    }
}

// The memory traffic of a step without its tables and arithmetic: it reads gradients, parameters and STATES states, adds the gradient to
// the others and writes them back. The tensor has whole chunks, and blocks of state as in the step.

// Threads per workgroup, as many as the step has on the device. A workgroup has one chunk.
override LANES: u32 = 256u;
const QUADS = 256u;

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
    if chunk * QUADS >= arrayLength(&parameters) {
        return;
    }
    var quad = lane;
    loop {
        let index = chunk * QUADS + quad;
        let gradient = gradients[index];
        parameters[index] += gradient;
        let block = chunk * STATES * QUADS + quad;
        if STATES > 0u {
            state[block] += gradient;
        }
        if STATES > 1u {
            state[block + QUADS] += gradient;
        }
        if STATES > 2u {
            state[block + 2u * QUADS] += gradient;
        }
        continuing {
            quad += LANES;
            break if LANES >= QUADS || quad >= QUADS;
        }
    }
}

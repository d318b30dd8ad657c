// The memory traffic of a step without its tables and arithmetic: gradients are read, parameters and STATES states are read,
// increased by the gradient and written back. Whole chunks of one tensor, and blocks of state as the step has them.

// Threads of a workgroup, as many as the step has there. A workgroup has a chunk.
override LANES: u32 = 256u;
const WORDS = 256u;

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
    if chunk * WORDS >= arrayLength(&parameters) {
        return;
    }
    var word = lane;
    loop {
        let index = chunk * WORDS + word;
        let gradient = gradients[index];
        parameters[index] += gradient;
        let block = chunk * STATES * WORDS + word;
        state[block] += gradient;
        if STATES > 1u {
            state[block + WORDS] += gradient;
        }
        if STATES > 2u {
            state[block + 2u * WORDS] += gradient;
        }
        continuing {
            word += LANES;
            break if LANES >= WORDS || word >= WORDS;
        }
    }
}

// A plain copy in words of four elements: the measure of what a device's memory can move. Half of its bytes are read, half
// written.

// Threads of a workgroup, as many as the step has there. A workgroup copies as many words as a whole chunk has.
override LANES: u32 = 256u;
const WORDS = 256u;

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> destination: array<vec4<u32>>;

// The grid has two dimensions where one is too short, so its last row may reach past the end.
@compute @workgroup_size(LANES)
fn copy(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.y * workgroups.x + workgroup.x) * WORDS;
    var word = lane;
    loop {
        if first + word < arrayLength(&destination) {
            destination[first + word] = source[first + word];
        }
        continuing {
            word += LANES;
            break if LANES >= WORDS || word >= WORDS;
        }
    }
}

// A plain copy, one quad at a time: the measure of what a device's memory can move. It reads half of its bytes and writes the other
// half.

// Threads per workgroup, as many as the step has on the device. A workgroup copies as many quads as a chunk has.
override LANES: u32 = 256u;
const QUADS = 256u;

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> destination: array<vec4<u32>>;

// The grid has two dimensions if one is too short, so its last row may reach past the end.
@compute @workgroup_size(LANES)
fn copy(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.y * workgroups.x + workgroup.x) * QUADS;
    var quad = lane;
    loop {
        if first + quad < arrayLength(&destination) {
            destination[first + quad] = source[first + quad];
        }
        continuing {
            quad += LANES;
            break if LANES >= QUADS || quad >= QUADS;
        }
    }
}

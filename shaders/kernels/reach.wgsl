// Copies the words of each element of one binding array to those of another. Whether all arrive depends on how wgpu checks indices.

override LANES: u32 = 256u;

struct Words {
    words: array<u32>,
}

@group(1) @binding(GRADIENTS_BINDING) var<storage, read> from_elements: binding_array<Words>;
@group(1) @binding(PARAMETERS_BINDING) var<storage, read_write> to_elements: binding_array<Words>;

@compute @workgroup_size(LANES)
fn reach(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let element = workgroup.x;
    for (var i = lane; i < REACH_WORDS; i += LANES) {
        to_elements[element].words[i] = from_elements[element].words[i];
    }
}

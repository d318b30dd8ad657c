// output[row][o] = activation(biases[o] + sum over i of weights[o][i] * input[row][i])

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> biases: array<f32>;
@group(0) @binding(3) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let element = id.x;
    if element >= arrayLength(&output) {
        return;
    }
    let row = element / layer.outputs;
    let o = element % layer.outputs;
    let quads = layer.inputs / 4u;

    // Not `dot`, whose order of additions is the driver's. Drivers may also move the parentheses of a sum (lavapipe does), so it has none.
    var sums = vec4<f32>();
    for (var q = 0u; q < quads; q++) {
        sums += weights[o * quads + q] * input[row * quads + q];
    }
    let sum = biases[o] + sums.x + sums.y + sums.z + sums.w;
    output[element] = select(sum, max(sum, 0.0), layer.rectified == 1u);
}

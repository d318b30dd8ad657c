// weight_gradients[o][i] = sum over rows of output_gradients[row][o] * input[row][i]
// bias_gradients[o]      = sum over rows of output_gradients[row][o]

@group(0) @binding(1) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> output_gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> weight_gradients: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> bias_gradients: array<f32>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let element = id.x;
    if element >= arrayLength(&weight_gradients) {
        return;
    }
    let quads = layer.inputs / 4u;
    let o = element / quads;
    let q = element % quads;
    let rows = arrayLength(&output_gradients) / layer.outputs;

    var weight_sum = vec4<f32>();
    var bias_sum = 0.0;
    for (var row = 0u; row < rows; row++) {
        let output_gradient = output_gradients[row * layer.outputs + o];
        weight_sum += output_gradient * input[row * quads + q];
        bias_sum += output_gradient;
    }
    weight_gradients[element] = weight_sum;
    if q == 0u {
        bias_gradients[o] = bias_sum;
    }
}

// input_gradients[row][i] = ReLU'(i) * sum over o of output_gradients[row][o] * weights[o][i]
//
// The input of this layer is the ReLU of the previous one, whose derivative is 1 where the input is above 0.

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> output_gradients: array<f32>;
@group(0) @binding(4) var<storage, read_write> input_gradients: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let element = id.x;
    if element >= arrayLength(&input_gradients) {
        return;
    }
    let quads = layer.inputs / 4u;
    let row = element / quads;
    let q = element % quads;

    var sum = vec4<f32>();
    for (var o = 0u; o < layer.outputs; o++) {
        sum += output_gradients[row * layer.outputs + o] * weights[o * quads + q];
    }
    input_gradients[element] = select(vec4<f32>(), sum, input[element] > vec4<f32>());
}

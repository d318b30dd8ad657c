// A fully connected layer, output = activation(weights * input + biases). This precedes each of its three kernels.
//
// Weights are [outputs][inputs], activations [rows][inputs] and [rows][outputs]. Kernels read inputs as vec4<f32>: every layer has a
// multiple of 4 of them.

struct Layer {
    inputs: u32,
    outputs: u32,
    // 1: the activation is ReLU, 0: it is the identity.
    rectified: u32,
}

@group(0) @binding(0) var<uniform> layer: Layer;

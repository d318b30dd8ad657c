// Softmax cross-entropy: the mean loss of the batch, and its gradient by the logits,
// (softmax(logits) - one_hot(label)) / rows. One workgroup; it is the last reader of `step` and advances it.

@group(0) @binding(0) var<storage, read_write> step: u32;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> logit_gradients: array<f32>;
// One for each step of the run, read back at its end.
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;

var<workgroup> partial_sums: array<f32, WORKGROUP_THREADS>;

// Writes the gradients of one row and returns its loss.
fn cross_entropy(row: u32, rows: u32, classes: u32) -> f32 {
    let first = row * classes;
    // Softmax does not change when a constant is subtracted, and exp does not overflow below 0.
    var largest = logits[first];
    for (var c = 1u; c < classes; c++) {
        largest = max(largest, logits[first + c]);
    }
    var normalizer = 0.0;
    for (var c = 0u; c < classes; c++) {
        normalizer += exp(logits[first + c] - largest);
    }
    for (var c = 0u; c < classes; c++) {
        let probability = exp(logits[first + c] - largest) / normalizer;
        let target_probability = select(0.0, 1.0, c == labels[row]);
        logit_gradients[first + c] = (probability - target_probability) / f32(rows);
    }
    return log(normalizer) - (logits[first + labels[row]] - largest);
}

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    let rows = arrayLength(&labels);
    let classes = arrayLength(&logits) / rows;

    var sum = 0.0;
    for (var row = thread; row < rows; row += WORKGROUP_THREADS) {
        sum += cross_entropy(row, rows, classes);
    }
    partial_sums[thread] = sum;
    workgroupBarrier();

    if thread == 0u {
        for (var other = 1u; other < WORKGROUP_THREADS; other++) {
            sum += partial_sums[other];
        }
        losses[step] = sum / f32(rows);
        step += 1u;
    }
}

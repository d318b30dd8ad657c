// Softmax cross-entropy: the mean loss of the batch, and its gradient by the logits,
// (softmax(logits) - one_hot(label)) / rows. One workgroup; it is the last reader of `step` and advances it.

@group(0) @binding(0) var<storage, read_write> step: u32;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> logit_gradients: array<f32>;
// One for each step of the run, read back at its end.
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;

var<workgroup> partial_sums: array<f32, WORKGROUP_THREADS>;

// e^x for x <= 0. Drivers' own exp and log differ from each other; this and the next function have the same bits on all devices that round
// sums, products and quotients correctly.
fn exponential(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2. The first part of ln 2 has few bits, so that its product with n is exact.
    let n = round(x * 1.442695041);
    if n < -126.0 {
        return 0.0;
    }
    let r = (x - n * 0.693359375) + n * 2.12194440e-4;
    // Taylor's series. The next term is below 6e-9.
    var sum = 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    return sum * bitcast<f32>(u32(i32(n) + 127) << 23u);
}

// The natural logarithm of x >= 1. Infinity and NaN stay as they are.
fn logarithm(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7f800000u) == 0x7f800000u {
        return x;
    }
    // x = 2^n m with m from sqrt(1/2) to sqrt(2), and ln m = 2 artanh f.
    var n = f32(i32(bits >> 23u) - 127);
    var m = bitcast<f32>((bits & 0x007fffffu) | 0x3f800000u);
    if m > 1.414213562 {
        m *= 0.5;
        n += 1.0;
    }
    let f = (m - 1.0) / (m + 1.0);
    let square = f * f;
    // The next term is below 1e-9.
    var sum = 1.0 / 9.0;
    sum = sum * square + 1.0 / 7.0;
    sum = sum * square + 1.0 / 5.0;
    sum = sum * square + 1.0 / 3.0;
    sum = sum * square + 1.0;
    return n * 0.693147181 + 2.0 * f * sum;
}

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
        normalizer += exponential(logits[first + c] - largest);
    }
    for (var c = 0u; c < classes; c++) {
        let probability = exponential(logits[first + c] - largest) / normalizer;
        let target_probability = select(0.0, 1.0, c == labels[row]);
        logit_gradients[first + c] = (probability - target_probability) / f32(rows);
    }
    return logarithm(normalizer) - (logits[first + labels[row]] - largest);
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

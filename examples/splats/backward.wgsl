// The gradient of the loss by a Gaussian's row. A workgroup for each Gaussian gathers over the pixels in its reach, in an order of its own, so
// there are no atomic additions (WebGPU has none of floats) and the same run has the same bits.
//
// With e = errors[p], f = falloff and s = f * dot(e, splat.color), the pixels give
//
//   sum f e   sum s q   sum s q.x^2   sum s q.y^2   sum s q.x q.y
//
// and the chain rule makes all nine gradients of them, times 2 / (3 pixels), because the loss is a mean over three colors.

@group(0) @binding(0) var<uniform> picture: Picture;
@group(0) @binding(1) var<storage, read> rows: array<Row>;
@group(0) @binding(2) var<storage, read> splats: array<Splat>;
@group(0) @binding(3) var<storage, read> errors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> gradients: array<Row>;
// The lengths of the gradients of the position, added up: where they are large, detail is missing.
@group(0) @binding(5) var<storage, read_write> scores: array<f32>;

const SUMS = 8u;

var<workgroup> partial_sums: array<array<f32, SUMS>, WORKGROUP_THREADS>;
var<workgroup> sums: array<f32, SUMS>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = workgroup.x;
    let splat = splats[i];
    let size = vec2(f32(picture.width), f32(picture.height));
    let low = vec2<u32>(clamp(floor(splat.position - splat.reach), vec2<f32>(), size));
    let high = vec2<u32>(clamp(ceil(splat.position + splat.reach), vec2<f32>(), size));
    let across = high.x - low.x;

    var color_sum = vec3<f32>();
    var first_moment = vec2<f32>();
    var second_moment = vec3<f32>();
    for (var n = thread; n < across * (high.y - low.y); n += WORKGROUP_THREADS) {
        let pixel = low + vec2(n % across, n / across);
        let error = errors[pixel.y * picture.width + pixel.x].xyz;
        let q = unit_offset(splat, center_of(pixel));
        let colored = falloff(q) * error;
        let s = dot(colored, splat.color);
        color_sum += colored;
        first_moment += s * q;
        second_moment += s * vec3(q * q, q.x * q.y);
    }
    partial_sums[thread] = array(
        color_sum.x, color_sum.y, color_sum.z,
        first_moment.x, first_moment.y,
        second_moment.x, second_moment.y, second_moment.z,
    );
    workgroupBarrier();
    if thread < SUMS {
        var sum = 0.0;
        for (var other = 0u; other < WORKGROUP_THREADS; other++) {
            sum += partial_sums[other][thread];
        }
        sums[thread] = 2.0 * sum / f32(3u * arrayLength(&errors));
    }
    workgroupBarrier();
    if thread > 0u {
        return;
    }

    let row = rows[i];
    let opacity = sigmoid(row.opacity);
    let color = vec3(sums[0], sums[1], sums[2]);
    let position = transpose(splat.to_unit) * vec2(sums[3], sums[4]);
    // How much longer the first axis is than the second. A circle does not change when it turns.
    let aspect = exp(row.log_scale[0] - row.log_scale[1]);
    var gradient: Row;
    gradient.position = array(position.x, position.y);
    gradient.log_scale = array(sums[5], sums[6]);
    gradient.angle = sums[7] * (aspect - 1.0 / aspect);
    gradient.color = array(opacity * color.x, opacity * color.y, opacity * color.z);
    gradient.opacity = (1.0 - opacity) * dot(color, splat.color);
    gradients[i] = gradient;
    scores[i] += length(position);
}

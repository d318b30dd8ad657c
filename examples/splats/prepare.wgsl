// What pixels need of a Gaussian, computed once for all of them. A thread for each Gaussian.

@group(0) @binding(0) var<storage, read> rows: array<Row>;
@group(0) @binding(1) var<storage, read_write> splats: array<Splat>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&rows) {
        return;
    }
    let row = rows[id.x];
    let scale = exp(vec2(row.log_scale[0], row.log_scale[1]));
    let cosine = cos(row.angle);
    let sine = sin(row.angle);
    let axes = mat2x2(vec2(cosine, sine), vec2(-sine, cosine));

    var splat: Splat;
    splat.position = vec2(row.position[0], row.position[1]);
    splat.reach = sqrt(CUTOFF * (axes[0] * axes[0] * scale.x * scale.x + axes[1] * axes[1] * scale.y * scale.y));
    splat.to_unit = transpose(mat2x2(axes[0] / scale.x, axes[1] / scale.y));
    splat.color = sigmoid(row.opacity) * vec3(row.color[0], row.color[1], row.color[2]);
    splats[id.x] = splat;
}

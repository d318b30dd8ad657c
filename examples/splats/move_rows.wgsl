// Rows after a refinement: new row r is old row parents[r], as it is (sides[r] == 0) or as one half of it (sides[r] == 1 or -1).
//
// The halves lie on the longer axis. Together they have the parent's mass and its variance along that axis,
//
//   2 * HALF_COLOR * HALF_SCALE == 1,  HALF_SCALE^2 + HALF_DISTANCE^2 == 1
//
// with the HALF_SCALE of 3D Gaussian Splatting (Kerbl et al. 2023). There small Gaussians are cloned instead, which in a sum would make them
// twice as bright.

@group(0) @binding(0) var<storage, read> parents: array<u32>;
@group(0) @binding(1) var<storage, read> sides: array<f32>;
@group(0) @binding(2) var<storage, read> old_rows: array<Row>;
@group(0) @binding(3) var<storage, read_write> new_rows: array<Row>;

const HALF_SCALE = 1.0 / 1.6;
const HALF_DISTANCE = sqrt(1.0 - HALF_SCALE * HALF_SCALE);
const HALF_COLOR = 0.5 / HALF_SCALE;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&new_rows) {
        return;
    }
    var row = old_rows[parents[id.x]];
    let side = sides[id.x];
    if side != 0.0 {
        let longer = select(1u, 0u, row.log_scale[0] > row.log_scale[1]);
        let axis = select(vec2(-sin(row.angle), cos(row.angle)), vec2(cos(row.angle), sin(row.angle)), longer == 0u);
        let shift = side * HALF_DISTANCE * exp(row.log_scale[longer]) * axis;
        row.position = array(row.position[0] + shift.x, row.position[1] + shift.y);
        row.log_scale[longer] += log(HALF_SCALE);
        row.color = array(HALF_COLOR * row.color[0], HALF_COLOR * row.color[1], HALF_COLOR * row.color[2]);
    }
    new_rows[id.x] = row;
}

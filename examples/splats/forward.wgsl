// errors[pixel] = sum of all Gaussians - target[pixel]
//
// A workgroup for each tile of 8 x 8 pixels. Its threads first test all Gaussians against the tile and keep the list of those that reach it in
// workgroup memory, as a bit for each; then each thread sums that list for its pixel, in order. The list needs no atomics, no sorting and no
// memory that grows. Testing all Gaussians for each tile is cheap for thousands of them; with millions, sort by tile instead.

@group(0) @binding(0) var<uniform> picture: Picture;
@group(0) @binding(1) var<storage, read> splats: array<Splat>;
@group(0) @binding(2) var<storage, read> target_pixels: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> errors: array<vec4<f32>>;

const TILE_PIXELS = 8u;
const_assert TILE_PIXELS * TILE_PIXELS == WORKGROUP_THREADS;

var<workgroup> reaching: array<u32, (MOST_SPLATS + 31u) / 32u>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tiles_across = (picture.width + TILE_PIXELS - 1u) / TILE_PIXELS;
    let corner = TILE_PIXELS * vec2(workgroup.x % tiles_across, workgroup.x / tiles_across);
    let half_tile = f32(TILE_PIXELS) / 2.0;
    let middle = vec2<f32>(corner) + half_tile;

    let count = arrayLength(&splats);
    let words = (count + 31u) / 32u;
    for (var word = thread; word < words; word += WORKGROUP_THREADS) {
        var bits = 0u;
        for (var i = 32u * word; i < min(32u * word + 32u, count); i++) {
            let reaches = all(abs(splats[i].position - middle) <= splats[i].reach + half_tile);
            bits |= select(0u, 1u << (i % 32u), reaches);
        }
        reaching[word] = bits;
    }
    workgroupBarrier();

    let pixel = corner + vec2(thread % TILE_PIXELS, thread / TILE_PIXELS);
    if pixel.x >= picture.width || pixel.y >= picture.height {
        return;
    }
    var sum = vec3<f32>();
    for (var word = 0u; word < words; word++) {
        for (var bits = reaching[word]; bits != 0u; bits &= bits - 1u) {
            let splat = splats[32u * word + firstTrailingBit(bits)];
            sum += falloff(unit_offset(splat, center_of(pixel))) * splat.color;
        }
    }
    let index = pixel.y * picture.width + pixel.x;
    errors[index] = vec4(sum - target_pixels[index].xyz, 0.0);
}

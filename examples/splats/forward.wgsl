// errors[pixel] = sum of all Gaussians - target[pixel]
//
// A workgroup for each tile of 8 x 8 pixels. It goes through the Gaussians in batches: its threads test a word of 32 each against the tile, which
// leaves a bit for each that reaches it, and then each thread sums those for its pixel, in order. That needs no atomics, no sorting and
// no lists in memory. Testing all Gaussians for each tile is cheap for thousands of them; with millions, sort by tile instead.

@group(0) @binding(0) var<uniform> picture: Picture;
@group(0) @binding(1) var<storage, read> splats: array<Splat>;
@group(0) @binding(2) var<storage, read> target_pixels: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> errors: array<vec4<f32>>;

const TILE_PIXELS = 8u;
const_assert TILE_PIXELS * TILE_PIXELS == WORKGROUP_THREADS;

// A bit for each Gaussian of a batch.
var<workgroup> reaching: array<u32, WORKGROUP_THREADS>;

@compute @workgroup_size(WORKGROUP_THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tiles_across = (picture.width + TILE_PIXELS - 1u) / TILE_PIXELS;
    let corner = TILE_PIXELS * vec2(workgroup.x % tiles_across, workgroup.x / tiles_across);
    let half_tile = f32(TILE_PIXELS) / 2.0;
    let middle = vec2<f32>(corner) + half_tile;
    let pixel = corner + vec2(thread % TILE_PIXELS, thread / TILE_PIXELS);

    let count = arrayLength(&splats);
    let words = (count + 31u) / 32u;
    var sum = vec3<f32>();
    for (var batch = 0u; batch < words; batch += WORKGROUP_THREADS) {
        let first = 32u * (batch + thread);
        var bits = 0u;
        for (var i = first; i < min(first + 32u, count); i++) {
            let reaches = all(abs(splats[i].position - middle) <= splats[i].reach + half_tile);
            bits |= select(0u, 1u << (i % 32u), reaches);
        }
        reaching[thread] = bits;
        workgroupBarrier();
        for (var word = 0u; word < min(WORKGROUP_THREADS, words - batch); word++) {
            for (var bits = reaching[word]; bits != 0u; bits &= bits - 1u) {
                let splat = splats[32u * (batch + word) + firstTrailingBit(bits)];
                sum += falloff(unit_offset(splat, center_of(pixel))) * splat.color;
            }
        }
        workgroupBarrier();
    }
    if pixel.x < picture.width && pixel.y < picture.height {
        let index = pixel.y * picture.width + pixel.x;
        errors[index] = vec4(sum - target_pixels[index].xyz, 0.0);
    }
}

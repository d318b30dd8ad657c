// What all kernels share. WORKGROUP_THREADS comes from the host.
//
// A pixel is the sum of all Gaussians (GaussianImage, Zhang et al. 2024, arXiv:2403.08551):
//
//   pixel(p) = sum over i of opacity_i * color_i * exp(-|q|^2 / 2),  q = to_unit_i * (p - position_i)
//
// A sum has no order, so nothing is sorted by depth, and the gradient of a Gaussian does not depend on what lies before it.

// The parameters of a Gaussian, as the optimizer steps them.
struct Row {
    // The center, in pixels from the upper left corner.
    position: array<f32, 2>,
    // Logarithms of the standard deviations along the two axes, in pixels.
    log_scale: array<f32, 2>,
    // From the picture's x axis to the first axis, in radians.
    angle: f32,
    color: array<f32, 3>,
    // Before the sigmoid.
    opacity: f32,
}

// A Gaussian, as pixels see it.
struct Splat {
    position: vec2<f32>,
    // Half the size of the box around the pixels that it changes.
    reach: vec2<f32>,
    // From pixels to standard deviations along the axes.
    to_unit: mat2x2<f32>,
    // Times the opacity.
    color: vec3<f32>,
}

struct Picture {
    width: u32,
    height: u32,
}

// |q|^2 at which a Gaussian ends: exp(-|q|^2 / 2) is 1/255 there.
const CUTOFF = 11.0825;

// Where a point lies, in standard deviations.
fn unit_offset(splat: Splat, point: vec2<f32>) -> vec2<f32> {
    return splat.to_unit * (point - splat.position);
}

// What a Gaussian gives to a point, between 0 and 1.
fn falloff(q: vec2<f32>) -> f32 {
    let square = q.x * q.x + q.y * q.y;
    return select(0.0, exp(-0.5 * square), square <= CUTOFF);
}

// The point at which a pixel is sampled.
fn center_of(pixel: vec2<u32>) -> vec2<f32> {
    return vec2<f32>(pixel) + 0.5;
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

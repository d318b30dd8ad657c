//! Compares the kernels with the sum of Gaussians and its finite differences, in f64 on the CPU.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::gpu::Gpu;
use crate::image::Image;
use crate::render::Renderer;
use crate::splat::{ROW_LEN, Row};

/// Not a multiple of a tile in either direction.
const SIZE: [usize; 2] = [21, 13];
/// More than the bits of one word of a tile's list.
const COUNT: usize = 40;
/// The slot of the loss. All others stay 0.
const STEP: u32 = 1;

/// |q|^2 at which a Gaussian ends.
const CUTOFF: f64 = 11.0825;
/// The distance of the central differences, whose error grows with its square.
const DIFFERENCE: f64 = 1e-6;
/// Largest error measured on lavapipe: 2.3e-8, on gradients up to 0.04.
const ABSOLUTE_TOLERANCE: f64 = 1e-7;
const RELATIVE_TOLERANCE: f64 = 1e-5;

fn is_close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * expected.abs()
}

/// A picture and Gaussians, all random. Some of them lie beyond the edges, some reach over the whole picture, and the last has no pixel.
fn case() -> (Image, Vec<Row>) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut random = |low: f32, high: f32| rng.random_range(low..high);
    let pixels = (0..SIZE[0] * SIZE[1]).map(|_| [(); 3].map(|()| random(0.0, 1.0))).collect();
    let mut rows: Vec<Row> = (0..COUNT)
        .map(|_| Row {
            position: [random(-2.0, SIZE[0] as f32 + 2.0), random(-2.0, SIZE[1] as f32 + 2.0)],
            log_scale: [random(-0.5, 2.0), random(-0.5, 2.0)],
            angle: random(-3.0, 3.0),
            color: [(); 3].map(|()| random(-0.3, 0.6)),
            opacity: random(-2.0, 2.0),
        })
        .collect();
    rows[COUNT - 1].position = [-100.0, 5.0];
    (Image { size: SIZE, pixels }, rows)
}

/// What the Gaussians give to each pixel and color, from the definition: the exponent is that of the inverse covariance. Where a Gaussian
/// ends is decided by `shape`, so that differences of the rows do not move it.
fn pixels(rows: &[[f64; ROW_LEN]], shape: &[[f64; ROW_LEN]]) -> Vec<[f64; 3]> {
    let square = |row: &[f64; ROW_LEN], x: f64, y: f64| {
        let [center_x, center_y, log_a, log_b, angle, ..] = *row;
        let (a, b) = ((2.0 * log_a).exp(), (2.0 * log_b).exp());
        let (sine, cosine) = angle.sin_cos();
        // The covariance [[xx, xy], [xy, yy]].
        let xx = a * cosine * cosine + b * sine * sine;
        let yy = a * sine * sine + b * cosine * cosine;
        let xy = (a - b) * sine * cosine;
        let (x, y) = (x - center_x, y - center_y);
        (yy * x * x - 2.0 * xy * x * y + xx * y * y) / (xx * yy - xy * xy)
    };
    let pixel = |index: usize| {
        let (x, y) = ((index % SIZE[0]) as f64 + 0.5, (index / SIZE[0]) as f64 + 0.5);
        let mut sum = [0.0; 3];
        for (row, shape) in rows.iter().zip(shape) {
            if square(shape, x, y) <= CUTOFF {
                let opacity = 1.0 / (1.0 + (-row[8]).exp());
                let part = opacity * (-0.5 * square(row, x, y)).exp();
                (0..3).for_each(|c| sum[c] += part * row[5 + c]);
            }
        }
        sum
    };
    (0..SIZE[0] * SIZE[1]).map(pixel).collect()
}

/// Mean squared error.
fn loss(rows: &[[f64; ROW_LEN]], shape: &[[f64; ROW_LEN]], image: &Image) -> f64 {
    let pairs = pixels(rows, shape).into_iter().flatten().zip(image.pixels.iter().flatten());
    let squares = pairs.map(|(found, target)| (found - f64::from(*target)).powi(2));
    squares.sum::<f64>() / (3 * image.pixels.len()) as f64
}

#[test]
fn pictures_and_gradients_are_those_of_the_definition() {
    let gpu = pollster::block_on(Gpu::open()).unwrap();
    let (image, rows) = case();
    let renderer = Renderer::new(&gpu, &image, 3).unwrap();
    let scene = renderer.scene(&rows);
    gpu.write(&renderer.step, &[STEP]);
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    scene.record(&mut encoder);
    gpu.queue.submit([encoder.finish()]);
    let (errors, losses, gradients, scores) = pollster::block_on(async {
        let errors: Vec<[f32; 4]> = gpu.read(&renderer.errors).await.unwrap();
        let losses: Vec<f32> = gpu.read(&renderer.losses).await.unwrap();
        let gradients: Vec<[f32; ROW_LEN]> = gpu.read(&scene.gradients).await.unwrap();
        let scores: Vec<f32> = gpu.read(&scene.scores).await.unwrap();
        assert_eq!(gpu.read::<u32>(&renderer.step).await.unwrap(), [STEP + 1]);
        (errors, losses, gradients, scores)
    });

    let exact: Vec<[f64; ROW_LEN]> = rows
        .iter()
        .map(|row| {
            let elements: [f32; ROW_LEN] = bytemuck::cast(*row);
            elements.map(f64::from)
        })
        .collect();
    for (index, expected) in pixels(&exact, &exact).iter().enumerate() {
        for c in 0..3 {
            let found = f64::from(errors[index][c]);
            let expected = expected[c] - f64::from(image.pixels[index][c]);
            assert!((found - expected).abs() <= 1e-5, "pixel {index}: {found}, not {expected}");
        }
    }
    let expected = loss(&exact, &exact, &image);
    assert!(is_close(losses[STEP as usize].into(), expected), "loss {losses:?}, not {expected}");
    assert_eq!([losses[0], losses[2]], [0.0; 2]);

    for row in 0..COUNT {
        for column in 0..ROW_LEN {
            let shifted = |by: f64| {
                let mut rows = exact.clone();
                rows[row][column] += by;
                loss(&rows, &exact, &image)
            };
            let slope = (shifted(DIFFERENCE) - shifted(-DIFFERENCE)) / (2.0 * DIFFERENCE);
            let found = f64::from(gradients[row][column]);
            assert!(is_close(found, slope), "row {row}, column {column}: {found}, not {slope}");
        }
        let [x, y, ..] = gradients[row];
        assert!(is_close(scores[row].into(), x.hypot(y).into()), "row {row}: score {}", scores[row]);
    }
    assert_eq!(gradients[COUNT - 1], [0.0; ROW_LEN]);
}

#[test]
fn the_comparison_notices_wrong_gradients() {
    assert!(is_close(0.01, 0.01));
    for wrong in [0.010_01, -0.01, 0.0, f64::NAN, f64::INFINITY] {
        assert!(!is_close(wrong, 0.01), "{wrong}");
    }
}

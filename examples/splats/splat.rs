//! The parameters of a Gaussian.

use bytemuck::{Pod, Zeroable};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::image::Image;

/// The row of a Gaussian in the one parameter that the optimizer steps. `struct Row` of splat.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Row {
    /// The center, in pixels from the upper left corner.
    pub position: [f32; 2],
    /// Logarithms of the standard deviations along the two axes, in pixels.
    pub log_scale: [f32; 2],
    /// From the picture's x axis to the first axis, in radians.
    pub angle: f32,
    pub color: [f32; 3],
    /// Before the sigmoid.
    pub opacity: f32,
}

/// Elements of a row.
pub const ROW_LEN: usize = size_of::<Row>() / size_of::<f32>();

/// The learning rates of a row's columns, each in the unit of its column.
pub const RATES: Row =
    Row { position: [0.4; 2], log_scale: [0.08; 2], angle: 0.08, color: [0.04; 3], opacity: 0.2 };

/// Circles at random places of a picture, in the colors that the picture has there. Their mean sum is about as bright as the picture.
pub fn scattered(image: &Image, count: usize, seed: u64) -> Vec<Row> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let [width, height] = image.size;
    let deviation = 0.5 * ((width * height) as f32 / count as f32).sqrt();
    let mut row = || {
        let position = [rng.random_range(0.0..width as f32), rng.random_range(0.0..height as f32)];
        let color = image.pixels[position[1] as usize * width + position[0] as usize];
        Row { position, log_scale: [deviation.ln(); 2], angle: 0.0, color, opacity: 0.0 }
    };
    (0..count).map(|_| row()).collect()
}

//! Pictures: read from PNG, drawn by a formula, written as a strip.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use png::{ColorType, Transformations};

/// Colors from 0 to 1, in the encoding of the file (sRGB, as a rule), row after row from the top.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Width and height.
    pub size: [usize; 2],
    pub pixels: Vec<[f32; 3]>,
}

impl Image {
    /// Reads a PNG of any color type and depth. What is transparent becomes white.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut decoder = png::Decoder::new(BufReader::new(File::open(path)?));
        decoder.set_transformations(Transformations::normalize_to_color8());
        let mut reader = decoder.read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().ok_or("the picture is larger than memory")?];
        let frame = reader.next_frame(&mut bytes)?;
        bytes.truncate(frame.buffer_size());
        let pixel = |samples: &[u8]| {
            let samples: Vec<f32> = samples.iter().map(|&sample| f32::from(sample) / 255.0).collect();
            let (color, alpha) = match (frame.color_type, samples.as_slice()) {
                (ColorType::Grayscale, &[gray]) => ([gray; 3], 1.0),
                (ColorType::GrayscaleAlpha, &[gray, alpha]) => ([gray; 3], alpha),
                (ColorType::Rgb, &[red, green, blue]) => ([red, green, blue], 1.0),
                (ColorType::Rgba, &[red, green, blue, alpha]) => ([red, green, blue], alpha),
                (other, _) => unreachable!("{other:?} is expanded"),
            };
            color.map(|color| 1.0 - alpha + alpha * color)
        };
        let pixels = bytes.chunks_exact(frame.color_type.samples()).map(pixel).collect();
        Ok(Self { size: [frame.width as usize, frame.height as usize], pixels })
    }

    /// Draws a picture by a function of (x, y), both in units of the height, each pixel the mean of 4 x 4 points.
    pub fn drawn(size: [usize; 2], color: impl Fn(f32, f32) -> [f32; 3]) -> Self {
        const POINTS: usize = 4;
        let [width, height] = size;
        let pixel = |index: usize| {
            let mut mean = [0.0; 3];
            for point in 0..POINTS * POINTS {
                let along = |pixel: usize, point: usize| {
                    (pixel as f32 + (point as f32 + 0.5) / POINTS as f32) / height as f32
                };
                let color = color(along(index % width, point % POINTS), along(index / width, point / POINTS));
                mean = [0, 1, 2].map(|c| mean[c] + color[c] / (POINTS * POINTS) as f32);
            }
            mean
        };
        Self { size, pixels: (0..width * height).map(pixel).collect() }
    }

    /// Writes pictures of one size as a PNG, side by side.
    pub fn write_strip(path: &Path, images: &[Self]) -> Result<(), Box<dyn Error>> {
        const GAP: usize = 6;
        let [width, height] = images[0].size;
        let size = [images.len() * (width + GAP) - GAP, height];
        let mut bytes = vec![255; 3 * size[0] * size[1]];
        for (index, image) in images.iter().enumerate() {
            for (row, pixels) in image.pixels.chunks(width).enumerate() {
                let first = 3 * (row * size[0] + index * (width + GAP));
                let samples = pixels.iter().flatten().map(|color| (255.0 * color).round() as u8);
                bytes[first..first + 3 * width]
                    .iter_mut()
                    .zip(samples)
                    .for_each(|(byte, sample)| *byte = sample);
            }
        }
        let mut encoder =
            png::Encoder::new(BufWriter::new(File::create(path)?), size[0] as u32, size[1] as u32);
        encoder.set_color(ColorType::Rgb);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&bytes)?;
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strip_holds_its_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("strip.png");
        // Colors that are multiples of 1/255 come back as they were; others are rounded and clamped.
        let image = |shade: f32| Image { size: [1, 2], pixels: vec![[shade, 0.2, 1.0], [-0.5, 1.5, 0.4]] };
        Image::write_strip(&path, &[image(0.0), image(1.0)]).unwrap();
        let strip = Image::read(&path).unwrap();
        let gap = [[1.0; 3]; 6];
        let row = |left, right| [vec![left], gap.to_vec(), vec![right]].concat();
        let rows = [row([0.0, 0.2, 1.0], [1.0, 0.2, 1.0]), row([0.0, 1.0, 0.4], [0.0, 1.0, 0.4])];
        assert_eq!(strip, Image { size: [8, 2], pixels: rows.concat() });
    }

    #[test]
    fn all_kinds_of_png_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let read = |color: ColorType, depth, bytes: &[u8]| {
            let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
            encoder.set_color(color);
            encoder.set_depth(depth);
            if color == ColorType::Indexed {
                encoder.set_palette(vec![0, 0, 0, 255, 51, 0]);
            }
            encoder.write_header().unwrap().write_image_data(bytes).unwrap();
            Image::read(&path).unwrap().pixels[0]
        };
        use png::BitDepth::{Eight, One, Sixteen};
        assert_eq!(read(ColorType::Grayscale, One, &[0x80]), [1.0; 3]);
        assert_eq!(read(ColorType::GrayscaleAlpha, Eight, &[51, 0]), [1.0; 3]);
        assert_eq!(read(ColorType::Rgb, Sixteen, &[255, 255, 51, 0, 0, 0]), [1.0, 0.2, 0.0]);
        assert_eq!(read(ColorType::Rgba, Eight, &[0, 255, 51, 255]), [0.0, 1.0, 0.2]);
        assert_eq!(read(ColorType::Indexed, Eight, &[1]), [1.0, 0.2, 0.0]);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.png");
        assert!(Image::read(&path).is_err());
        std::fs::write(&path, "no picture").unwrap();
        assert!(Image::read(&path).is_err());
    }
}

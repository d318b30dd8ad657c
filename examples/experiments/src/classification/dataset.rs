//! The images that the networks learn: the digits, or a set from files.

use std::path::Path;

use anyhow::ensure;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::data::images::{ImageSet, Images, Shape};
use crate::digits::{self, Digits};

/// A digit's pixel is the number of dark pixels among 4 x 4 of the scan.
const LARGEST_DIGIT_PIXEL: f32 = 16.0;
const DIGIT_SHAPE: Shape = Shape { channels: 1, height: 8, width: 8 };

/// Images for training and for testing, and how the networks see them.
pub struct Dataset {
    pub shape: Shape,
    pub classes: usize,
    pub training: Images,
    pub test: Images,
    /// Of each channel.
    scales: Vec<Scale>,
}

/// A network sees (pixel - mean) / deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    mean: f32,
    deviation: f32,
}

/// Images on the device.
pub struct Batch {
    /// Shape `[images, channels, height, width]`.
    pub images: Tensor<4>,
    pub labels: Tensor<1, Int>,
}

impl Dataset {
    /// The digits, with pixels from 0 to 1.
    pub fn digits() -> anyhow::Result<Self> {
        let digits = Digits::load().map_err(|error| anyhow::anyhow!("{error}"))?;
        let images = |images: &digits::Images| Images {
            pixels: images.pixels.iter().map(|pixel| (pixel * LARGEST_DIGIT_PIXEL) as u8).collect(),
            labels: images.labels.iter().map(|label| *label as u8).collect(),
        };
        Ok(Self {
            shape: DIGIT_SHAPE,
            classes: digits::CLASSES,
            training: images(&digits.training),
            test: images(&digits.test),
            scales: vec![Scale { mean: 0.0, deviation: LARGEST_DIGIT_PIXEL }],
        })
    }

    /// A set from a folder, or its first images for training. In each channel the training images get mean 0 and standard deviation 1.
    pub fn read(folder: &Path, training_images: Option<usize>) -> anyhow::Result<Self> {
        let ImageSet { shape, classes, mut training, test } = ImageSet::read(folder)?;
        if let Some(count) = training_images {
            let all = training.labels.len();
            ensure!(count <= all, "{count} training images: {} has {all}", folder.display());
            training.labels.truncate(count);
            training.pixels.truncate(count * shape.len());
        }
        let scales = scales(&training, shape);
        Ok(Self { shape, classes, training, test, scales })
    }

    /// Numbers and checksum of all images, for the record of the runs.
    pub fn fingerprint(&self) -> String {
        let mut checksum = crc32fast::Hasher::new();
        for images in [&self.training, &self.test] {
            checksum.update(&images.pixels);
            checksum.update(&images.labels);
        }
        let [training, test] = [&self.training, &self.test].map(|images| images.labels.len());
        format!("{training} training and {test} test images, CRC32 {:08x}", checksum.finalize())
    }

    pub fn batch(&self, images: &Images, indices: &[u32], device: &Device) -> Batch {
        let (size, channel) = (self.shape.len(), self.shape.height * self.shape.width);
        let mut pixels = Vec::with_capacity(indices.len() * size);
        for &index in indices {
            let image = &images.pixels[index as usize * size..][..size];
            for (channel, scale) in image.chunks_exact(channel).zip(&self.scales) {
                pixels.extend(channel.iter().map(|&pixel| (f32::from(pixel) - scale.mean) / scale.deviation));
            }
        }
        let labels = indices.iter().map(|&index| i32::from(images.labels[index as usize])).collect();
        let Shape { channels, height, width } = self.shape;
        let shape = [indices.len(), channels, height, width];
        Batch {
            images: Tensor::from_data(TensorData::new(pixels, shape), device),
            labels: Tensor::from_data(TensorData::new(labels, [indices.len()]), device),
        }
    }

    /// The first images in parts that are evaluated at once.
    pub fn first(&self, images: &Images, count: usize, device: &Device) -> Vec<Batch> {
        /// Images in a part.
        const PART: usize = 500;
        let indices: Vec<_> = (0..count.min(images.labels.len()) as u32).collect();
        indices.chunks(PART).map(|part| self.batch(images, part, device)).collect()
    }
}

/// Mean and standard deviation of each channel; a channel with one value only stays as it is, less that value.
fn scales(images: &Images, shape: Shape) -> Vec<Scale> {
    let size = shape.height * shape.width;
    let of_channel = |channel: usize| {
        let channels = images.pixels.chunks_exact(size).skip(channel).step_by(shape.channels);
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for pixel in channels.flatten().map(|&pixel| f64::from(pixel)) {
            count += 1.0;
            sum += pixel;
            squares += pixel * pixel;
        }
        // Sums of integers are exact, and so is a variance of zero.
        let variance = (count * squares - sum * sum) / (count * count);
        let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        Scale { mean: (sum / count) as f32, deviation: deviation as f32 }
    };
    (0..shape.channels).map(of_channel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::test_backends;
    use crate::data::images::testing::write_idx;

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn the_digits_are_as_they_were() {
        let device = test_backends()[0].device();
        let (dataset, digits) = (Dataset::digits().unwrap(), Digits::load().unwrap());
        let batch = dataset.batch(&dataset.training, &[3, 1], &device);
        assert_eq!(batch.images.dims(), [2, 1, 8, 8]);
        let pixels = |index: usize| &digits.training.pixels[index * 64..][..64];
        assert_eq!(values(batch.images), [pixels(3), pixels(1)].concat());
        let labels: Vec<u32> = batch.labels.into_data().iter::<u32>().collect();
        assert_eq!(labels, [digits.training.labels[3], digits.training.labels[1]]);
        let parts = dataset.first(&dataset.test, usize::MAX, &device);
        assert_eq!(parts.iter().map(|part| part.labels.dims()[0]).collect::<Vec<_>>(), [360]);
    }

    #[test]
    fn channels_of_the_training_images_are_standardized() {
        let device = test_backends()[0].device();
        let shape = Shape { channels: 3, height: 1, width: 2 };
        // Two images; the last channel has one value.
        let training =
            Images { pixels: vec![0, 10, 100, 200, 7, 7, 20, 30, 100, 200, 7, 7], labels: vec![0, 1] };
        let test = Images { pixels: vec![15, 15, 150, 150, 8, 8], labels: vec![1] };
        let dataset = Dataset { shape, classes: 2, scales: scales(&training, shape), training, test };
        let deviation = 125_f32.sqrt();
        assert_eq!(dataset.scales[0], Scale { mean: 15.0, deviation });
        assert_eq!(dataset.scales[2], Scale { mean: 7.0, deviation: 1.0 });
        let batch = dataset.batch(&dataset.training, &[1], &device);
        assert_eq!(values(batch.images), [5.0 / deviation, 15.0 / deviation, -1.0, 1.0, 0.0, 0.0]);
        let batch = dataset.batch(&dataset.test, &[0], &device);
        assert_eq!(values(batch.images), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn the_first_training_images_of_a_folder_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        write_idx(folder.path(), 12, 3);
        let dataset = Dataset::read(folder.path(), Some(7)).unwrap();
        assert_eq!((dataset.training.labels.len(), dataset.training.pixels.len()), (7, 140));
        assert_eq!((dataset.shape.len(), dataset.classes, dataset.test.labels.len()), (20, 10, 3));
        let all = Dataset::read(folder.path(), None).unwrap();
        assert!(all.fingerprint().starts_with("12 training and 3 test images, CRC32 "));
        let mut other = Dataset::read(folder.path(), None).unwrap();
        assert_eq!(other.fingerprint(), all.fingerprint());
        other.test.labels[2] ^= 1;
        assert_ne!(other.fingerprint(), all.fingerprint());
        let error = Dataset::read(folder.path(), Some(13)).err().expect("an error").to_string();
        assert!(error.contains("13 training images") && error.contains("has 12"), "{error}");
    }
}

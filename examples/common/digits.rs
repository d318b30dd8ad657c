//! The 1,797 handwritten digits: unpacking, and the split into training and test set.

use std::error::Error;

use flate2::read::GzDecoder;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

/// Pixels of an image, 8 x 8.
pub const PIXELS: usize = 64;
/// Digits 0 to 9.
pub const CLASSES: usize = 10;
/// Images for training.
pub const TRAINING_IMAGES: usize = 1437;
/// Images for testing.
pub const TEST_IMAGES: usize = 360;

const CSV_GZ: &[u8] = include_bytes!("../digits/digits.csv.gz");
/// A pixel is the number of dark pixels among 4 x 4 of the scan.
const LARGEST_PIXEL: f32 = 16.0;
/// All runs share one split, whatever their seed.
const SPLIT_SEED: u64 = 0;

/// Images, one after the other, and their labels.
#[derive(Default)]
pub struct Images {
    /// [`PIXELS`] values from 0 to 1 for each image, row by row.
    pub pixels: Vec<f32>,
    /// The digit of each image.
    pub labels: Vec<u32>,
}

/// The two disjoint sets.
pub struct Digits {
    pub training: Images,
    pub test: Images,
}

impl Digits {
    /// Unpacks the images and splits them.
    pub fn load() -> Result<Self, Box<dyn Error>> {
        let mut images = parse(CSV_GZ)?;
        if images.len() != TRAINING_IMAGES + TEST_IMAGES {
            return Err(format!("digits.csv.gz holds {} images", images.len()).into());
        }
        images.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(SPLIT_SEED));
        let (training, test) = images.split_at(TRAINING_IMAGES);
        Ok(Self { training: training.iter().collect(), test: test.iter().collect() })
    }
}

/// One row of the file.
type Image = ([f32; PIXELS], u32);

impl<'a> FromIterator<&'a Image> for Images {
    fn from_iter<I: IntoIterator<Item = &'a Image>>(images: I) -> Self {
        let mut all = Self::default();
        for (pixels, label) in images {
            all.pixels.extend(pixels);
            all.labels.push(*label);
        }
        all
    }
}

/// Rows of 64 pixels from 0 to 16 and the label.
fn parse(csv_gz: &[u8]) -> Result<Vec<Image>, Box<dyn Error>> {
    csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(GzDecoder::new(csv_gz))
        .deserialize()
        .map(|row| {
            let row: Vec<u32> = row?;
            let (pixels, label) = match row.as_slice() {
                [pixels @ .., label] if pixels.len() == PIXELS && (*label as usize) < CLASSES => {
                    (pixels, *label)
                }
                _ => return Err(format!("not {PIXELS} pixels and a digit: {row:?}").into()),
            };
            let scaled = std::array::from_fn(|i| pixels[i] as f32 / LARGEST_PIXEL);
            Ok((scaled, label))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_covers_all_images_once() {
        let digits = Digits::load().unwrap();
        assert_eq!(digits.training.labels.len(), TRAINING_IMAGES);
        assert_eq!(digits.test.labels.len(), TEST_IMAGES);
        assert_eq!(digits.test.pixels.len(), TEST_IMAGES * PIXELS);
        let mut found = [0; CLASSES];
        for label in digits.training.labels.iter().chain(&digits.test.labels) {
            found[*label as usize] += 1;
        }
        // Counts published with the data set.
        assert_eq!(found, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn a_malformed_row_is_refused() {
        use flate2::{Compression, write::GzEncoder};
        use std::io::Write;
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(b"1,2,3\n").unwrap();
        assert!(parse(&gz.finish().unwrap()).is_err());
    }
}

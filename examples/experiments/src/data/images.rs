//! Labelled images as they are published: CIFAR-10 and CIFAR-100 (binary version) and the IDX files of MNIST and Fashion-MNIST.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;

/// No published set comes near.
const MOST_PIXEL_BYTES: u64 = 1 << 31;
/// The networks halve images twice.
const SIDES: std::ops::RangeInclusive<usize> = 4..=1_024;
/// MNIST, Fashion-MNIST and all others with their file names have ten classes.
const IDX_CLASSES: usize = 10;

/// The size of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Shape {
    /// Values of an image.
    pub fn len(self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Images, one after the other, and their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// [`Shape::len`] values for each image: channel by channel, row by row.
    pub pixels: Vec<u8>,
    pub labels: Vec<u8>,
}

/// Images for training and for testing.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSet {
    pub shape: Shape,
    pub classes: usize,
    pub training: Images,
    pub test: Images,
}

/// A set of files that belong together.
struct Format {
    name: &'static str,
    training: &'static [&'static str],
    test: &'static str,
    read: Reader,
}

enum Reader {
    /// Records of a label for each of these numbers of classes, the last of which counts, and an image of 32 x 32 pixels in three channels.
    Cifar(&'static [usize]),
    /// Images in these files, labels in those whose names have "labels" and "idx1" in place of "images" and "idx3".
    Idx,
}

const FORMATS: [Format; 4] = [
    Format {
        name: "CIFAR-10",
        training: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        read: Reader::Cifar(&[10]),
    },
    Format { name: "CIFAR-100", training: &["train.bin"], test: "test.bin", read: Reader::Cifar(&[20, 100]) },
    Format {
        name: "MNIST",
        training: &["train-images-idx3-ubyte"],
        test: "t10k-images-idx3-ubyte",
        read: Reader::Idx,
    },
    // As some archives name them.
    Format {
        name: "MNIST",
        training: &["train-images.idx3-ubyte"],
        test: "t10k-images.idx3-ubyte",
        read: Reader::Idx,
    },
];

const CIFAR_SHAPE: Shape = Shape { channels: 3, height: 32, width: 32 };

impl ImageSet {
    /// Reads the one set that a folder holds. Files may end with `.gz`.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        ensure!(folder.is_dir(), "{} is not a folder", folder.display());
        let mut sets = FORMATS.iter().filter(|format| locate(folder, format.training[0]).is_some());
        let Some(format) = sets.next() else {
            let expected: Vec<_> =
                FORMATS.iter().map(|format| format!("{} of {}", format.training[0], format.name)).collect();
            bail!(
                "{} has no images: expected {}, and the files that belong to it",
                folder.display(),
                expected.join(" or ")
            );
        };
        if let Some(other) = sets.next() {
            bail!(
                "{} has images of {} and of {}: expected one set",
                folder.display(),
                format.name,
                other.name
            );
        }
        let part = |files: &[&str]| {
            let parts = files
                .iter()
                .map(|file| format.read.read(folder, file))
                .collect::<anyhow::Result<Vec<_>>>()?;
            joined(parts)
        };
        let ((shape, training), (test_shape, test)) = (part(format.training)?, part(&[format.test])?);
        ensure!(
            shape == test_shape,
            "{} has training images of {shape:?} and test images of {test_shape:?}",
            folder.display()
        );
        let classes = match format.read {
            Reader::Cifar(labels) => labels[labels.len() - 1],
            Reader::Idx => IDX_CLASSES,
        };
        Ok(Self { shape, classes, training, test })
    }
}

/// All images of several files.
fn joined(parts: Vec<(Shape, Images)>) -> anyhow::Result<(Shape, Images)> {
    let mut parts = parts.into_iter();
    let (shape, mut all) = parts.next().context("no files")?;
    for (other, images) in parts {
        ensure!(shape == other, "images of {shape:?} and of {other:?}");
        all.pixels.extend(images.pixels);
        all.labels.extend(images.labels);
    }
    Ok((shape, all))
}

impl Reader {
    fn read(&self, folder: &Path, file: &str) -> anyhow::Result<(Shape, Images)> {
        match self {
            Reader::Cifar(labels) => open(folder, file, |input| Ok((CIFAR_SHAPE, cifar(input, labels)?))),
            Reader::Idx => {
                let (shape, pixels) = open(folder, file, idx_images)?;
                let labels =
                    open(folder, &file.replace("images", "labels").replace("idx3", "idx1"), idx_labels)?;
                let images = pixels.len() / shape.len();
                ensure!(
                    images == labels.len(),
                    "{} has {images} images in {file} and {} labels for them",
                    folder.display(),
                    labels.len()
                );
                Ok((shape, Images { pixels, labels }))
            }
        }
    }
}

/// The path of a file, or of the file packed with gzip.
fn locate(folder: &Path, file: &str) -> Option<PathBuf> {
    [folder.join(file), folder.join(format!("{file}.gz"))].into_iter().find(|path| path.is_file())
}

/// Reads a file from its first byte to its last.
fn open<T>(
    folder: &Path,
    file: &str,
    read: impl Fn(&mut dyn Read) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let path = locate(folder, file).with_context(|| format!("{} has no {file}", folder.display()))?;
    let of_path = || {
        let input = BufReader::new(File::open(&path)?);
        let mut input: Box<dyn Read> = if path.extension().is_some_and(|extension| extension == "gz") {
            Box::new(GzDecoder::new(input))
        } else {
            Box::new(input)
        };
        let value = read(&mut *input)?;
        let more = input.read(&mut [0])?;
        ensure!(more == 0, "there is more after the last record");
        Ok(value)
    };
    of_path().with_context(|| format!("could not read {}", path.display()))
}

/// Records of CIFAR until the end of the file: labels, then 1,024 bytes of red, of green and of blue.
fn cifar(input: &mut dyn Read, classes: &[usize]) -> anyhow::Result<Images> {
    let record = classes.len() + CIFAR_SHAPE.len();
    let mut bytes = Vec::new();
    input.take(MOST_PIXEL_BYTES).read_to_end(&mut bytes)?;
    ensure!(
        !bytes.is_empty() && bytes.len().is_multiple_of(record),
        "{} bytes: expected records of {record} bytes, at least one",
        bytes.len()
    );
    let mut images = Images { pixels: Vec::with_capacity(bytes.len()), labels: Vec::new() };
    for (index, record) in bytes.chunks_exact(record).enumerate() {
        let (labels, pixels) = record.split_at(classes.len());
        for (&label, &classes) in labels.iter().zip(classes) {
            check_label(label, index, classes)?;
        }
        images.labels.extend(labels.last());
        images.pixels.extend(pixels);
    }
    Ok(images)
}

fn check_label(label: u8, image: usize, classes: usize) -> anyhow::Result<()> {
    ensure!(usize::from(label) < classes, "label {label} of image {image}: expected 0 to {}", classes - 1);
    Ok(())
}

/// The sizes in the header of an IDX file of bytes with `DIMENSIONS` dimensions.
fn idx_sizes<const DIMENSIONS: usize>(input: &mut dyn Read) -> anyhow::Result<[usize; DIMENSIONS]> {
    let mut word = || -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        input.read_exact(&mut bytes).context("the file ends in its header")?;
        Ok(u32::from_be_bytes(bytes))
    };
    // Two zeros, the type "unsigned byte", the number of dimensions.
    let expected = 0x800 + DIMENSIONS as u32;
    let magic = word()?;
    ensure!(
        magic == expected,
        "magic number {magic:#010x}: expected {expected:#010x}, an IDX file of bytes in {DIMENSIONS} dimension(s)"
    );
    let mut sizes = [0; DIMENSIONS];
    for size in &mut sizes {
        *size = word()? as usize;
    }
    ensure!(sizes[0] > 0, "there are no records");
    Ok(sizes)
}

/// Exactly `count` bytes. Allocates no more than there are.
fn exactly(input: &mut dyn Read, count: usize, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(count as u64).read_to_end(&mut bytes)?;
    ensure!(bytes.len() == count, "the file ends after {} of {count} {what}", bytes.len());
    Ok(bytes)
}

fn idx_images(input: &mut dyn Read) -> anyhow::Result<(Shape, Vec<u8>)> {
    let [count, height, width] = idx_sizes(input)?;
    ensure!(
        SIDES.contains(&height) && SIDES.contains(&width),
        "images of {height} x {width} pixels: expected {} to {} on each side",
        SIDES.start(),
        SIDES.end()
    );
    let pixels = count as u64 * (height * width) as u64;
    ensure!(pixels <= MOST_PIXEL_BYTES, "{pixels} pixels: expected at most {MOST_PIXEL_BYTES}");
    Ok((Shape { channels: 1, height, width }, exactly(input, pixels as usize, "pixels")?))
}

fn idx_labels(input: &mut dyn Read) -> anyhow::Result<Vec<u8>> {
    let [count] = idx_sizes(input)?;
    let labels = exactly(input, count, "labels")?;
    labels.iter().enumerate().try_for_each(|(index, &label)| check_label(label, index, IDX_CLASSES))?;
    Ok(labels)
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// An IDX file of bytes.
    pub fn idx(sizes: &[u32], data: &[u8]) -> Vec<u8> {
        let words = std::iter::once(0x800 + sizes.len() as u32).chain(sizes.iter().copied());
        words.flat_map(u32::to_be_bytes).chain(data.iter().copied()).collect()
    }

    /// `training` and `test` images of 5 x 4 pixels, with labels from 0 up.
    pub fn write_idx(folder: &Path, training: usize, test: usize) {
        for (name, count) in [("train", training), ("t10k", test)] {
            let pixels: Vec<u8> = (0..count * 20).map(|i| (i * 7 % 256) as u8).collect();
            let labels: Vec<u8> = (0..count).map(|i| (i % 10) as u8).collect();
            std::fs::write(
                folder.join(format!("{name}-images-idx3-ubyte")),
                idx(&[count as u32, 5, 4], &pixels),
            )
            .unwrap();
            std::fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), idx(&[count as u32], &labels))
                .unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::testing::{idx, write_idx};
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[track_caller]
    fn error_of(files: &[(&str, Vec<u8>)]) -> String {
        format!("{:#}", ImageSet::read(folder(files).path()).expect_err("an error"))
    }

    /// A record of CIFAR whose channels have one value each.
    fn record(labels: &[u8], channels: [u8; 3]) -> Vec<u8> {
        labels.iter().copied().chain(channels.into_iter().flat_map(|value| [value; 1_024])).collect()
    }

    fn cifar_10(first: Vec<u8>) -> Vec<(&'static str, Vec<u8>)> {
        let mut files = vec![("data_batch_1.bin", first), ("test_batch.bin", record(&[9], [7, 8, 9]))];
        for (name, label) in [
            ("data_batch_2.bin", 1),
            ("data_batch_3.bin", 2),
            ("data_batch_4.bin", 3),
            ("data_batch_5.bin", 4),
        ] {
            files.push((name, record(&[label], [label; 3])));
        }
        files
    }

    #[test]
    fn cifar_is_read_channel_by_channel() {
        let first = [record(&[5], [1, 2, 3]), record(&[6], [4, 5, 6])].concat();
        let set = ImageSet::read(folder(&cifar_10(first)).path()).unwrap();
        assert_eq!((set.shape, set.classes), (Shape { channels: 3, height: 32, width: 32 }, 10));
        assert_eq!(set.training.labels, [5, 6, 1, 2, 3, 4]);
        assert_eq!(set.training.pixels.len(), 6 * 3_072);
        assert_eq!([0, 1_023, 1_024, 3_071, 3_072].map(|index| set.training.pixels[index]), [1, 1, 2, 3, 4]);
        assert_eq!(set.test, Images { pixels: record(&[], [7, 8, 9]), labels: vec![9] });

        let files = [("train.bin", record(&[19, 99], [1, 2, 3])), ("test.bin", record(&[0, 50], [1, 2, 3]))];
        let set = ImageSet::read(folder(&files).path()).unwrap();
        assert_eq!(
            (set.classes, &set.training.labels[..], &set.test.labels[..]),
            (100, &[99][..], &[50][..])
        );
    }

    #[test]
    fn bad_files_of_cifar_are_refused() {
        let good = record(&[5], [1, 2, 3]);
        let error = error_of(&cifar_10(good[1..].to_vec()));
        assert!(error.contains("data_batch_1.bin: 3072 bytes: expected records of 3073 bytes"), "{error}");
        assert!(error_of(&cifar_10(Vec::new())).contains("0 bytes"));
        let error = error_of(&cifar_10([good.clone(), record(&[10], [0; 3])].concat()));
        assert!(error.contains("label 10 of image 1: expected 0 to 9"), "{error}");
        assert!(error_of(&cifar_10(good)[..3]).contains("has no data_batch_3.bin"));
        let coarse = [("train.bin", record(&[20, 0], [0; 3])), ("test.bin", record(&[0, 0], [0; 3]))];
        assert!(error_of(&coarse).contains("label 20 of image 0: expected 0 to 19"));
    }

    #[test]
    fn idx_files_are_read_packed_and_unpacked() {
        let plain = tempfile::tempdir().unwrap();
        write_idx(plain.path(), 12, 3);
        let set = ImageSet::read(plain.path()).unwrap();
        assert_eq!((set.shape, set.classes), (Shape { channels: 1, height: 5, width: 4 }, 10));
        assert_eq!(set.training.labels, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
        assert_eq!(
            (set.training.pixels.len(), set.training.pixels[21], set.test.labels.len()),
            (240, 147, 3)
        );
        let packed = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(plain.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let bytes = gzip(&std::fs::read(plain.path().join(&name)).unwrap());
            // Other archives have a dot before "idx".
            std::fs::write(packed.path().join(format!("{}.gz", name.replace("-idx", ".idx"))), bytes)
                .unwrap();
        }
        assert_eq!(ImageSet::read(packed.path()).unwrap(), set);
    }

    /// Four files of MNIST with one image each, one file replaced.
    fn mnist(replaced: &str, bytes: Vec<u8>) -> Vec<(&'static str, Vec<u8>)> {
        let mut files = vec![
            ("train-images-idx3-ubyte", idx(&[1, 4, 4], &[1; 16])),
            ("train-labels-idx1-ubyte", idx(&[1], &[3])),
            ("t10k-images-idx3-ubyte", idx(&[1, 4, 4], &[1; 16])),
            ("t10k-labels-idx1-ubyte", idx(&[1], &[3])),
        ];
        for (name, old) in &mut files {
            if *name == replaced {
                *old = bytes.clone();
            }
        }
        files
    }

    #[test]
    fn bad_idx_files_are_refused() {
        assert!(ImageSet::read(folder(&mnist("", Vec::new())).path()).is_ok());
        let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
        for (file, bytes, expected) in [
            (images, Vec::new(), "the file ends in its header"),
            (images, idx(&[1, 4, 4], &[1; 16])[..9].to_vec(), "the file ends in its header"),
            (images, idx(&[1], &[1; 16]), "magic number 0x00000801: expected 0x00000803"),
            (images, gzip(&idx(&[1, 4, 4], &[1; 16])), "magic number 0x1f8b08"),
            (images, idx(&[0, 4, 4], &[]), "there are no records"),
            (images, idx(&[1, 4, 4], &[1; 15]), "ends after 15 of 16 pixels"),
            (images, idx(&[1, 4, 4], &[1; 17]), "there is more after the last record"),
            (images, idx(&[1, 3, 4], &[1; 12]), "images of 3 x 4 pixels: expected 4 to 1024"),
            (images, idx(&[u32::MAX, 1_024, 1_024], &[]), "pixels: expected at most"),
            (images, idx(&[1, u32::MAX, u32::MAX], &[]), "images of 4294967295 x 4294967295 pixels"),
            (images, idx(&[2_000, 1_024, 1_024], &[]), "ends after 0 of"),
            (images, idx(&[2, 4, 4], &[1; 32]), "has 2 images in train-images-idx3-ubyte and 1 labels"),
            (images, idx(&[1, 4, 5], &[1; 20]), "training images of"),
            (labels, idx(&[1], &[10]), "label 10 of image 0: expected 0 to 9"),
            (labels, idx(&[2], &[1]), "ends after 1 of 2 labels"),
        ] {
            let error = error_of(&mnist(file, bytes));
            assert!(error.contains(expected), "{error}, expected {expected}");
        }
        let mut damaged = mnist("", Vec::new());
        damaged[0] = ("train-images-idx3-ubyte.gz", b"no gzip".to_vec());
        assert!(error_of(&damaged).contains("could not read"));
    }

    #[test]
    fn a_folder_without_images_or_with_two_sets_is_refused() {
        assert!(error_of(&[]).contains("has no images: expected data_batch_1.bin of CIFAR-10 or train.bin"));
        let mut both = mnist("", Vec::new());
        both.push(("train.bin", Vec::new()));
        assert!(error_of(&both).contains("has images of CIFAR-100 and of MNIST"));
        assert!(
            format!("{:#}", ImageSet::read(Path::new("/nowhere")).unwrap_err())
                .contains("/nowhere is not a folder")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(8), Just(3), any::<u8>()], 0..64)) {
            let _ = idx_images(&mut &bytes[..]);
            let _ = idx_labels(&mut &bytes[..]);
            let _ = cifar(&mut &bytes[..], &[10]);
        }
    }
}

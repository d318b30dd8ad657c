//! From what somebody drew to an image as those of the data set.

use crate::digits::PIXELS;

/// Pixels of a scan of the data set along a side. A pixel of an image counts the dark ones among 4 x 4.
const SCAN: usize = 32;
const BLOCK: usize = 4;
const SIDE: usize = SCAN / BLOCK;

/// The image of a drawing of `width` pixels a row, whose ink is from 0 to 255. As in the data set, the digit fills the height of the image, or
/// its width if it is wider than high. `None` if nothing was drawn.
pub fn image(ink: &[u8], width: usize) -> Option<[f32; PIXELS]> {
    let is_dark = |x: usize, y: usize| ink[y * width + x] > 127;
    let dark: Vec<_> =
        (0..ink.len()).map(|i| (i % width, i / width)).filter(|&(x, y)| is_dark(x, y)).collect();
    let extent = |place: fn(&(usize, usize)) -> usize| {
        Some((dark.iter().map(place).min()?, dark.iter().map(place).max()? + 1))
    };
    let ((left, right), (top, bottom)) = (extent(|p| p.0)?, extent(|p| p.1)?);
    let side = (right - left).max(bottom - top) as f64;
    // The corner of the square that the image shows, with the digit in its middle.
    let start = |low: usize, high: usize| (low + high) as f64 / 2.0 - side / 2.0;
    let (x0, y0) = (start(left, right), start(top, bottom));
    let mut image = [0.0; PIXELS];
    for i in 0..SCAN * SCAN {
        let (column, row) = (i % SCAN, i / SCAN);
        let at = |corner: f64, place: usize| corner + (place as f64 + 0.5) * side / SCAN as f64;
        let (x, y) = (at(x0, column), at(y0, row));
        let is_inside = x >= 0.0 && y >= 0.0 && (x as usize) < width && (y as usize) < ink.len() / width;
        if is_inside && is_dark(x as usize, y as usize) {
            image[row / BLOCK * SIDE + column / BLOCK] += 1.0 / (BLOCK * BLOCK) as f32;
        }
    }
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filled rectangle in a drawing of 100 x 100.
    fn rectangle(left: usize, right: usize, top: usize, bottom: usize) -> Vec<u8> {
        let is_dark = |i: usize| (left..right).contains(&(i % 100)) && (top..bottom).contains(&(i / 100));
        (0..100 * 100).map(|i| if is_dark(i) { 255 } else { 0 }).collect()
    }

    #[test]
    fn a_digit_fills_the_height_wherever_it_was_drawn() {
        // 1 wide, 4 high: the middle two of eight columns.
        let bar = image(&rectangle(3, 13, 50, 90), 100).unwrap();
        for (i, pixel) in bar.iter().enumerate() {
            assert_eq!(*pixel, if [3, 4].contains(&(i % 8)) { 1.0 } else { 0.0 }, "pixel {i}");
        }
        assert_eq!(image(&rectangle(80, 90, 10, 50), 100), Some(bar));
        assert_eq!(image(&rectangle(40, 60, 10, 90), 100), Some(bar));
    }

    #[test]
    fn nothing_has_no_image() {
        assert_eq!(image(&[0; 100], 10), None);
    }
}

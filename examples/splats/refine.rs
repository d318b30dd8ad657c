//! Refinement: which Gaussians are dropped, and which are split in two.

use adamod::Remap;

use crate::splat::Row;

/// A Gaussian that nowhere changes a pixel by one of 255 steps is dropped.
const LEAST_PEAK: f32 = 1.0 / 255.0;
/// So is one that is so thin, in pixels, that it falls between the pixels.
const LEAST_DEVIATION: f32 = 0.2;

/// The new rows, in order.
#[derive(Debug, PartialEq)]
pub struct Refinement {
    /// The old row of each new one: the source rows of `Optimizer::remap`.
    pub parents: Vec<u32>,
    /// 0 for a row that moves as it is, 1 and -1 for the halves of a split one.
    pub sides: Vec<f32>,
}

impl Refinement {
    /// Drops the Gaussians that nobody sees, then splits those with the highest scores until there are `target` rows, each at most once. At
    /// least one row stays.
    pub fn new(rows: &[Row], scores: &[f32], size: [usize; 2], target: usize) -> Self {
        let mut parents: Vec<u32> =
            (0..).zip(rows).filter(|(_, row)| is_seen(row, size)).map(|(i, _)| i).collect();
        if parents.is_empty() {
            parents.push(0);
        }
        let mut sides = vec![0.0; parents.len()];
        let mut places: Vec<usize> = (0..parents.len()).collect();
        // A stable sort: of equal scores, the first rows are split.
        places.sort_by(|a, b| scores[parents[*b] as usize].total_cmp(&scores[parents[*a] as usize]));
        places.truncate(target.saturating_sub(parents.len()));
        for place in places {
            sides[place] = 1.0;
            parents.push(parents[place]);
            sides.push(-1.0);
        }
        Self { parents, sides }
    }

    /// The source rows of a remap that gives halves fresh state.
    pub fn fresh_halves(&self) -> Vec<u32> {
        let sources = self.parents.iter().zip(&self.sides);
        sources.map(|(parent, side)| if *side == 0.0 { *parent } else { Remap::FRESH }).collect()
    }
}

/// Whether a Gaussian changes pixels of a picture.
fn is_seen(row: &Row, size: [usize; 2]) -> bool {
    let opacity = 1.0 / (1.0 + (-row.opacity).exp());
    let peak = row.color.iter().fold(0.0, |most: f32, color| most.max((opacity * color).abs()));
    let [thin, long] = {
        let [a, b] = row.log_scale.map(f32::exp);
        [a.min(b), a.max(b)]
    };
    // Three standard deviations of the longer axis hold all but 1/90 of the peak.
    let is_inside = |axis: usize| {
        let (position, end) = (row.position[axis], size[axis] as f32);
        (-3.0 * long..end + 3.0 * long).contains(&position)
    };
    peak >= LEAST_PEAK && thin >= LEAST_DEVIATION && is_inside(0) && is_inside(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: [usize; 2] = [20, 10];
    const SEEN: Row =
        Row { position: [5.0, 5.0], log_scale: [0.0; 2], angle: 0.0, color: [0.5; 3], opacity: 0.0 };

    #[test]
    fn rows_without_an_effect_are_dropped() {
        let rows = [
            SEEN,
            Row { opacity: -6.0, ..SEEN },
            Row { color: [0.0, -0.5, 0.0], ..SEEN },
            Row { color: [0.007; 3], ..SEEN },
            Row { log_scale: [1.0, -2.0], ..SEEN },
            Row { position: [22.9, 5.0], ..SEEN },
            Row { position: [23.1, 5.0], ..SEEN },
            Row { position: [5.0, -3.1], ..SEEN },
            Row { position: [f32::NAN, 5.0], ..SEEN },
        ];
        let found = Refinement::new(&rows, &[0.0; 9], SIZE, 0);
        assert_eq!(found, Refinement { parents: vec![0, 2, 5], sides: vec![0.0; 3] });
    }

    #[test]
    fn rows_with_the_highest_scores_are_split() {
        let mut rows = [SEEN; 5];
        rows[1].opacity = -20.0;
        let found = Refinement::new(&rows, &[1.0, 9.0, 3.0, 2.0, 3.0], SIZE, 6);
        assert_eq!(found.parents, [0, 2, 3, 4, 2, 4]);
        assert_eq!(found.sides, [0.0, 1.0, 0.0, 1.0, -1.0, -1.0]);
    }

    #[test]
    fn rows_are_split_once_and_one_row_stays() {
        let found = Refinement::new(&[SEEN; 2], &[0.0; 2], SIZE, 100);
        assert_eq!(found, Refinement { parents: vec![0, 1, 0, 1], sides: vec![1.0, 1.0, -1.0, -1.0] });
        let unseen = [Row { opacity: -20.0, ..SEEN }; 3];
        assert_eq!(Refinement::new(&unseen, &[0.0; 3], SIZE, 1).parents, [0]);
    }
}

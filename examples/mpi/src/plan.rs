//! Which rank has which elements of which tensor. Pure arithmetic.

use std::ops::Range;

/// Shards start at multiples of this many elements, as 8-bit state demands.
pub(crate) const UNIT_ELEMENTS: u64 = 32;

/// Some elements of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub tensor: usize,
    pub elements: Range<u64>,
}

impl Part {
    pub fn len(&self) -> u64 {
        self.elements.end - self.elements.start
    }
}

/// Tensors whose gradients are exchanged together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub tensors: Vec<usize>,
    /// The parts of each rank.
    pub pieces: Vec<Vec<Part>>,
}

/// Divides tensors, given as their number of elements and the bytes of their gradients, into buckets of at most `most` bytes or one
/// tensor. The last tensors come first: a backward pass starts with them.
pub(crate) fn buckets(tensors: &[(u64, u64)], most: u64, ranks: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0;
    for (tensor, &(_, of_tensor)) in tensors.iter().enumerate().rev() {
        match buckets.last_mut() {
            Some(last) if bytes + of_tensor <= most => {
                last.push(tensor);
                bytes += of_tensor;
            }
            _ => {
                buckets.push(vec![tensor]);
                bytes = of_tensor;
            }
        }
    }
    buckets.into_iter().map(|of| Bucket { pieces: pieces(tensors, &of, ranks), tensors: of }).collect()
}

/// Cuts the tensors of a bucket, one behind the other, into a piece for each rank: as many units each, give or take one.
fn pieces(tensors: &[(u64, u64)], bucket: &[usize], ranks: usize) -> Vec<Vec<Part>> {
    let units = |tensor: usize| tensors[tensor].0.div_ceil(UNIT_ELEMENTS);
    let all: u64 = bucket.iter().map(|&tensor| units(tensor)).sum();
    let cut = |rank: usize| (u128::from(all) * rank as u128 / ranks as u128) as u64;
    (0..ranks)
        .map(|rank| {
            let (first, end) = (cut(rank), cut(rank + 1));
            let mut start = 0;
            let mut parts = Vec::new();
            for &tensor in bucket {
                let within =
                    first.clamp(start, start + units(tensor))..end.clamp(start, start + units(tensor));
                if !within.is_empty() {
                    let elements = (within.start - start) * UNIT_ELEMENTS
                        ..((within.end - start) * UNIT_ELEMENTS).min(tensors[tensor].0);
                    parts.push(Part { tensor, elements });
                }
                start += units(tensor);
            }
            parts
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of every tensor is in one piece of one rank, and pieces differ by one unit at most.
    #[test]
    fn pieces_cover_every_element_once_and_are_alike() {
        let lengths = [1_u64, 31, 32, 33, 1000, 64, 5, 4097, 0, 96];
        let tensors: Vec<_> = lengths.iter().map(|&len| (len, 4 * len)).collect();
        for ranks in [1, 2, 3, 4, 7, 8, 64, 1000] {
            for most in [1, 200, 5000, u64::MAX] {
                let buckets = buckets(&tensors, most, ranks);
                let mut covered: Vec<Vec<u32>> = lengths.iter().map(|&len| vec![0; len as usize]).collect();
                let mut order: Vec<usize> = Vec::new();
                for bucket in &buckets {
                    order.extend(&bucket.tensors);
                    assert_eq!(bucket.pieces.len(), ranks);
                    let bytes: u64 = bucket.tensors.iter().map(|&tensor| tensors[tensor].1).sum();
                    assert!(bytes <= most || bucket.tensors.len() == 1);
                    let mut units = Vec::new();
                    for piece in &bucket.pieces {
                        for Part { tensor, elements } in piece {
                            assert!(bucket.tensors.contains(tensor) && elements.start % UNIT_ELEMENTS == 0);
                            assert!(elements.end % UNIT_ELEMENTS == 0 || elements.end == lengths[*tensor]);
                            (elements.start..elements.end).for_each(|i| covered[*tensor][i as usize] += 1);
                        }
                        units.push(piece.iter().map(|part| part.len().div_ceil(UNIT_ELEMENTS)).sum::<u64>());
                    }
                    assert!(units.iter().max().unwrap() - units.iter().min().unwrap() <= 1, "{units:?}");
                }
                assert_eq!(order, (0..lengths.len()).rev().collect::<Vec<_>>());
                assert!(covered.iter().flatten().all(|&count| count == 1), "{ranks} ranks, {most} bytes");
            }
        }
    }
}

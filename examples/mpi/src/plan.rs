//! Which rank has which elements of which tensor. Pure arithmetic.

use std::ops::Range;

use adamod::low_level::CHUNK_ELEMENTS;

/// Shards start at multiples of this many elements, a chunk of the kernels. 8-bit state would allow 32, but a chunk's squares are summed in
/// f32: with whole chunks, the norm of all shards has the bits of the norm of the whole tensors.
pub(crate) const UNIT_ELEMENTS: u64 = CHUNK_ELEMENTS as u64;

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

/// Cuts the tensors of a bucket, one behind the other, into a piece for each rank: as many elements each, give or take a unit.
fn pieces(tensors: &[(u64, u64)], bucket: &[usize], ranks: usize) -> Vec<Vec<Part>> {
    let all: u64 = bucket.iter().map(|&tensor| tensors[tensor].0).sum();
    // Where an ideal piece would start.
    let cut = |rank: usize| (u128::from(all) * rank as u128 / ranks as u128) as u64;
    (0..ranks)
        .map(|rank| {
            let mut start = 0;
            let mut parts = Vec::new();
            for &tensor in bucket {
                let len = tensors[tensor].0;
                // The nearest place where a shard of this tensor may start.
                let place = |cut: u64| match cut.saturating_sub(start) {
                    within if within >= len => len,
                    within => ((within + UNIT_ELEMENTS / 2) / UNIT_ELEMENTS * UNIT_ELEMENTS).min(len),
                };
                let elements = place(cut(rank))..place(cut(rank + 1));
                if !elements.is_empty() {
                    parts.push(Part { tensor, elements });
                }
                start += len;
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
        let lengths = [1_u64, 511, 512, 513, 100_000, 1024, 5, 4097, 0, 1536, 1025];
        let tensors: Vec<_> = lengths.iter().map(|&len| (len, 4 * len)).collect();
        for ranks in [1, 2, 3, 4, 7, 8, 64, 1000] {
            for most in [1, 9000, 30_000, u64::MAX] {
                let buckets = buckets(&tensors, most, ranks);
                let mut covered: Vec<Vec<u32>> = lengths.iter().map(|&len| vec![0; len as usize]).collect();
                let mut order: Vec<usize> = Vec::new();
                for bucket in &buckets {
                    order.extend(&bucket.tensors);
                    assert_eq!(bucket.pieces.len(), ranks);
                    let bytes: u64 = bucket.tensors.iter().map(|&tensor| tensors[tensor].1).sum();
                    assert!(bytes <= most || bucket.tensors.len() == 1);
                    let all: u64 = bucket.tensors.iter().map(|&tensor| tensors[tensor].0).sum();
                    for piece in &bucket.pieces {
                        for Part { tensor, elements } in piece {
                            assert!(bucket.tensors.contains(tensor) && elements.start % UNIT_ELEMENTS == 0);
                            assert!(elements.end % UNIT_ELEMENTS == 0 || elements.end == lengths[*tensor]);
                            (elements.start..elements.end).for_each(|i| covered[*tensor][i as usize] += 1);
                        }
                        let len: u64 = piece.iter().map(Part::len).sum();
                        assert!(len.abs_diff(all / ranks as u64) <= UNIT_ELEMENTS + 1, "{len} of {all}");
                    }
                }
                assert_eq!(order, (0..lengths.len()).rev().collect::<Vec<_>>());
                assert!(covered.iter().flatten().all(|&count| count == 1), "{ranks} ranks, {most} bytes");
            }
        }
    }
}

//! The minibatches of the training images.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

/// Indices of the training images, so many in all, of every minibatch of a run, one batch after the other. Each epoch is a new shuffle, and
/// leaves out the images at its end that do not fill a batch.
pub fn minibatches(images: usize, seed: u64, epochs: usize, batch: usize) -> Vec<u32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut epoch: Vec<u32> = (0..images as u32).collect();
    let used = steps_per_epoch(images, batch) * batch;
    let mut order = Vec::with_capacity(epochs * used);
    for _ in 0..epochs {
        epoch.shuffle(&mut rng);
        order.extend_from_slice(&epoch[..used]);
    }
    order
}

/// Whole minibatches in the training set.
pub fn steps_per_epoch(images: usize, batch: usize) -> usize {
    images / batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn an_epoch_shows_an_image_at_most_once() {
        let (images, batch) = (1_437, 128);
        let used = steps_per_epoch(images, batch) * batch;
        let order = minibatches(images, 7, 3, batch);
        assert_eq!(order.len(), 3 * used);
        for epoch in order.chunks(used) {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), used);
        }
        assert_eq!(order, minibatches(images, 7, 3, batch));
        assert_ne!(order, minibatches(images, 8, 3, batch));
    }
}

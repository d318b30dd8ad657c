//! Whether all ranks are built alike: a hash of everything that has to be the same, and the first difference by name.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::Error;
use crate::ranks::{Ranks, tag};

/// What has to be the same on all ranks: names and contents.
#[derive(Default)]
pub(crate) struct Description {
    items: Vec<(String, String)>,
}

impl Description {
    pub fn add(&mut self, what: impl Into<String>, content: impl std::fmt::Debug) {
        self.items.push((what.into(), format!("{content:?}")));
    }

    /// Compares this rank's description with those of all others.
    pub fn agree(&self, ranks: &Ranks) -> Result<(), Error> {
        let text = serde_json::to_vec(&self.items).expect("strings are JSON");
        let head = [hash_of(&text), text.len() as u64].map(u64::to_le_bytes).concat();
        let heads = ranks.all_gather(ranks.limit(), tag::AGREEMENT, "whether it agrees", head)?;
        let Some(rank) = heads.iter().position(|head| *head != heads[0]) else { return Ok(()) };
        // Rank 0 and the first one that differs show everything to all.
        let mut shown = Vec::new();
        for of in [0, rank] {
            if of == ranks.rank() {
                for other in ranks.others() {
                    ranks.send(other, tag::AGREEMENT, text.clone());
                }
                shown.push(text.clone());
            } else {
                let bytes = u64::from_le_bytes(heads[of][8..16].try_into().expect("heads have 16 bytes"));
                let (limit, what) = (ranks.limit(), "what it differs in");
                shown.push(ranks.receive_within(limit, of, tag::AGREEMENT, bytes as usize, what)?);
            }
        }
        let [expected, found] = [0, 1]
            .map(|index| serde_json::from_slice::<Vec<(String, String)>>(&shown[index]).unwrap_or_default());
        Err(difference(rank, &expected, &found))
    }
}

/// The first item that differs.
fn difference(rank: usize, expected: &[(String, String)], found: &[(String, String)]) -> Error {
    let missing = ("the end".to_owned(), "missing".to_owned());
    let count = expected.len().max(found.len());
    let at = |items: &[(String, String)], index: usize| items.get(index).unwrap_or(&missing).clone();
    let index = (0..count).find(|&index| expected.get(index) != found.get(index)).unwrap_or(count);
    let ((what, expected), (found_what, found)) = (at(expected, index), at(found, index));
    if what == found_what {
        Error::Disagreement { rank, what, found, expected }
    } else {
        Error::Disagreement { rank, what: format!("item {index}"), found: found_what, expected: what }
    }
}

/// A hash of bytes.
pub(crate) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let items = |len: u64| {
            let mut description = Description::default();
            description.add("the seed", 5);
            description.add("the length of parameter \"wte\"", len);
            description.items
        };
        let error = difference(2, &items(64), &items(65));
        assert_eq!(
            error.to_string(),
            "the length of parameter \"wte\" of rank 2 is 65, expected 64 as on rank 0"
        );
        let error = difference(1, &items(64), &items(64)[..1]);
        assert!(error.to_string().contains("expected the length of parameter"), "{error}");
    }
}

//! A map whose keys stay valid until their value is removed, and are refused from then on.

/// Key of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    /// How many values of this index were removed before.
    generation: u32,
}

impl Key {
    /// The index, which is less than [`Slots::end`] and which no other value has at the same time.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Clone, Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by key.
#[derive(Clone, Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    vacant: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), vacant: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// The index that the next inserted value gets.
    pub fn next_index(&self) -> usize {
        self.vacant.last().map_or(self.slots.len(), |&index| index as usize)
    }

    /// One more than the largest index.
    pub fn end(&self) -> usize {
        self.slots.len()
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// Adds a value.
    pub fn insert(&mut self, value: T) -> Key {
        let index = self.vacant.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(index as usize) {
            Some(slot) => slot.value = Some(value),
            None => self.slots.push(Slot { generation: 0, value: Some(value) }),
        }
        Key { index, generation: self.slots[index as usize].generation }
    }

    /// Removes a value.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant.push(key.index);
        Some(value)
    }

    /// The value of a key, unless it was removed.
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index()).filter(|slot| slot.generation == key.generation)?;
        slot.value.as_ref()
    }

    /// The value of a key, unless it was removed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation)?;
        slot.value.as_mut()
    }

    /// The value with this index.
    pub fn at(&self, index: usize) -> Option<&T> {
        self.slots.get(index)?.value.as_ref()
    }

    /// All values with their keys, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| {
            slot.value.as_ref().map(|value| (Key { index, generation: slot.generation }, value))
        })
    }
}

impl<T> std::ops::Index<Key> for Slots<T> {
    type Output = T;

    /// The value of a key that was not removed.
    fn index(&self, key: Key) -> &T {
        match self.get(key) {
            Some(value) => value,
            None => panic!("the value of {key:?} was removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_is_refused_for_ever() {
        let mut slots = Slots::default();
        let (a, b) = (slots.insert("a"), slots.insert("b"));
        assert_eq!(slots.remove(a), Some("a"));
        assert_eq!(slots.get(a), None);
        assert_eq!(slots.remove(a), None);
        assert_eq!(slots.next_index(), a.index());
        let c = slots.insert("c");
        assert_eq!(c.index(), a.index());
        assert_ne!(c, a);
        assert_eq!((slots.get(a), slots.get(b), slots.get(c)), (None, Some(&"b"), Some(&"c")));
        assert_eq!((slots.len(), slots.end()), (2, 2));
        assert_eq!(slots.iter().map(|(_, value)| *value).collect::<Vec<_>>(), ["c", "b"]);
    }
}

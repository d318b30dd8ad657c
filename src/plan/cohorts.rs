//! Step counts, without a counter per parameter.
//!
//! A step count advances only in steps in which its parameter has a gradient, and the coefficients depend on it. A cohort is the set of
//! all parameters of one group with the same step count, and one row of coefficients serves it. Parameters leave their cohort when they
//! miss a step that others in it take. As long as cohorts step as a whole, no table changes.

use std::collections::HashMap;

/// Parameters of one group with one step count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cohort {
    /// The group's index.
    pub group: u32,
    /// Steps taken.
    pub steps: u64,
    members: u32,
}

/// Stands for the cohort of a parameter that was removed.
const NONE: u32 = u32::MAX;

/// All cohorts, and which one each parameter is in.
#[derive(Clone, Debug, Default)]
pub struct Cohorts {
    list: Vec<Cohort>,
    of_parameter: Vec<u32>,
    /// Scratch: the number of members with a gradient in the current step.
    present: Vec<u32>,
}

impl Cohorts {
    /// All cohorts.
    pub fn list(&self) -> &[Cohort] {
        &self.list
    }

    /// Index of a parameter's cohort.
    pub fn of(&self, parameter: usize) -> u32 {
        self.of_parameter[parameter]
    }

    /// Steps that a parameter has taken.
    pub fn steps(&self, parameter: usize) -> u64 {
        self.list[self.of_parameter[parameter] as usize].steps
    }

    /// Adds a parameter without steps, at the end or in the place of one that was removed.
    pub fn add_parameter(&mut self, parameter: usize, group: u32) {
        let index = self.cohort(group, 0);
        self.list[index].members += 1;
        if parameter == self.of_parameter.len() {
            self.of_parameter.push(index as u32);
        } else {
            self.of_parameter[parameter] = index as u32;
        }
    }

    /// Removes a parameter. The others keep their indices; cohorts do not.
    pub fn remove_parameter(&mut self, parameter: usize) {
        let cohort = std::mem::replace(&mut self.of_parameter[parameter], NONE);
        self.list[cohort as usize].members -= 1;
        self.compact();
    }

    /// Moves a parameter to another group with its step count; others keep their index, cohorts do not.
    pub fn set_group(&mut self, parameter: usize, group: u32) {
        let steps = self.steps(parameter);
        let old = self.of_parameter[parameter] as usize;
        self.list[old].members -= 1;
        let new = self.cohort(group, steps);
        self.list[new].members += 1;
        self.of_parameter[parameter] = new as u32;
        self.compact();
    }

    /// Drops cohorts without members.
    fn compact(&mut self) {
        let mut kept = 0;
        let renumbered: Vec<u32> = self
            .list
            .iter()
            .map(|cohort| {
                kept += u32::from(cohort.members > 0);
                kept.wrapping_sub(1)
            })
            .collect();
        for of in self.of_parameter.iter_mut().filter(|of| **of != NONE) {
            *of = renumbered[*of as usize];
        }
        self.list.retain(|cohort| cohort.members > 0);
    }

    /// Regroups parameters so that each cohort steps as a whole or not at all, and returns whether cohorts changed. Step counts stay as
    /// they are.
    pub fn split(&mut self, present: &[bool]) -> bool {
        self.present.clear();
        self.present.resize(self.list.len(), 0);
        for (&cohort, &is_present) in self.of_parameter.iter().zip(present) {
            if is_present {
                self.present[cohort as usize] += 1;
            }
        }
        let whole = |(cohort, &present): (&Cohort, &u32)| present == 0 || present == cohort.members;
        if self.list.iter().zip(&self.present).all(whole) {
            return false;
        }
        let mut index = HashMap::new();
        let mut list: Vec<Cohort> = Vec::new();
        for (of, &is_present) in self.of_parameter.iter_mut().zip(present).filter(|(of, _)| **of != NONE) {
            let Cohort { group, steps, .. } = self.list[*of as usize];
            *of = *index.entry((group, steps, is_present)).or_insert_with(|| {
                list.push(Cohort { group, steps, members: 0 });
                list.len() as u32 - 1
            });
            list[*of as usize].members += 1;
        }
        self.list = list;
        true
    }

    /// Sets the step counts of parameters, and returns whether cohorts changed.
    pub fn set_steps(&mut self, counts: impl IntoIterator<Item = (usize, u64)>) -> bool {
        let of_cohort = |(index, cohort): (usize, &Cohort)| ((cohort.group, cohort.steps), index);
        let mut known: HashMap<(u32, u64), usize> = self.list.iter().enumerate().map(of_cohort).collect();
        let mut is_changed = false;
        for (parameter, steps) in counts {
            let old = self.of_parameter[parameter] as usize;
            let Cohort { group, steps: before, .. } = self.list[old];
            if before == steps {
                continue;
            }
            self.list[old].members -= 1;
            let index = *known.entry((group, steps)).or_insert_with(|| {
                self.list.push(Cohort { group, steps, members: 0 });
                self.list.len() - 1
            });
            self.list[index].members += 1;
            self.of_parameter[parameter] = index as u32;
            is_changed = true;
        }
        if is_changed {
            self.compact();
        }
        is_changed
    }

    /// Index of a cohort, which is created if there is none.
    fn cohort(&mut self, group: u32, steps: u64) -> usize {
        let found = self.list.iter().position(|cohort| cohort.group == group && cohort.steps == steps);
        found.unwrap_or_else(|| {
            self.list.push(Cohort { group, steps, members: 0 });
            self.list.len() - 1
        })
    }

    /// Counts a step of each cohort for which `steps` is true.
    pub fn advance(&mut self, steps: impl Fn(usize) -> bool) {
        for (index, cohort) in self.list.iter_mut().enumerate() {
            cohort.steps += u64::from(steps(index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(cohorts: &mut Cohorts, present: &[bool]) -> bool {
        let changed = cohorts.split(present);
        let active: Vec<bool> = (0..cohorts.list().len())
            .map(|cohort| (0..present.len()).any(|p| present[p] && cohorts.of(p) as usize == cohort))
            .collect();
        cohorts.advance(|cohort| active[cohort]);
        changed
    }

    #[test]
    fn parameters_that_alternate_regroup_once() {
        let mut cohorts = Cohorts::default();
        cohorts.add_parameter(0, 0);
        cohorts.add_parameter(1, 0);
        assert!(!step(&mut cohorts, &[true, true]));
        assert!(step(&mut cohorts, &[true, false]));
        for _ in 0..5 {
            assert!(!step(&mut cohorts, &[false, true]));
            assert!(!step(&mut cohorts, &[true, false]));
            assert!(!step(&mut cohorts, &[true, true]));
        }
        assert_eq!(cohorts.steps(0), 12);
        assert_eq!(cohorts.steps(1), 11);
    }

    proptest! {
        #[test]
        fn counts_equal_a_counter_a_parameter(
            groups in prop::collection::vec(0_u32..3, 1..8),
            presence in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 0..30),
        ) {
            let mut groups = groups;
            let mut cohorts = Cohorts::default();
            for (parameter, &group) in groups.iter().enumerate() {
                cohorts.add_parameter(parameter, group);
            }
            let mut counters = vec![0; groups.len()];
            for (number, present) in presence.iter().enumerate() {
                let present = &present[..groups.len()];
                // Now and then a parameter goes, and another one takes its place.
                if number % 5 == 4 {
                    let parameter = number % groups.len();
                    cohorts.remove_parameter(parameter);
                    cohorts.add_parameter(parameter, groups[parameter]);
                    counters[parameter] = 0;
                }
                // Or one moves to another group.
                if number % 6 == 5 {
                    let parameter = number % groups.len();
                    groups[parameter] = (groups[parameter] + 1) % 3;
                    cohorts.set_group(parameter, groups[parameter]);
                }
                // Or several get the counts of others.
                if number % 7 == 6 {
                    let counts: Vec<_> = (0..groups.len()).step_by(2).map(|p| (p, (number * p % 4) as u64)).collect();
                    let is_changed = counts.iter().any(|&(parameter, count)| counters[parameter] != count);
                    prop_assert_eq!(cohorts.set_steps(counts.iter().copied()), is_changed);
                    counts.into_iter().for_each(|(parameter, count)| counters[parameter] = count);
                }
                step(&mut cohorts, present);
                for (counter, &is_present) in counters.iter_mut().zip(present) {
                    *counter += u64::from(is_present);
                }
                // No cohort is without members, and each knows how many it has.
                let mut members = vec![0; cohorts.list().len()];
                (0..groups.len()).for_each(|parameter| members[cohorts.of(parameter) as usize] += 1);
                prop_assert!(cohorts.list().iter().map(|cohort| cohort.members).eq(members.iter().copied()));
                prop_assert!(members.iter().all(|&members| members > 0));
                for (parameter, &counter) in counters.iter().enumerate() {
                    prop_assert_eq!(cohorts.steps(parameter), counter);
                    prop_assert_eq!(cohorts.list()[cohorts.of(parameter) as usize].group, groups[parameter]);
                }
            }
        }
    }
}

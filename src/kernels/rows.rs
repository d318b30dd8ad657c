//! Hyperparameters as rows of the kernels' tables.

use std::collections::HashMap;

use bytemuck::Zeroable;

use super::abi;
use crate::hyperparameters::Hyperparameters;
use crate::rules::arithmetic::{General, one_minus_power};
use crate::rules::update_rule::{BASE, MAX_DECAY_RATES};

/// The coefficients of step `t`.
pub fn coefficient_row(hyperparameters: &Hyperparameters, t: u64) -> abi::Coefficients {
    let (general, of_rule) = hyperparameters.coefficients::<f32>(t, false);
    abi::Coefficients {
        gradient_scale: general.gradient_scale,
        gradient_prescale: 1.0,
        coupled_decay: general.coupled_decay,
        decoupled_decay: general.decoupled_decay,
        options: options(&general),
        activity: abi::ACTIVE,
        step: t as u32,
        of_rule,
    }
}

fn options(general: &General<f32>) -> u32 {
    let cautious = if general.is_cautious { abi::CAUTIOUS } else { 0 };
    cautious | if general.has_cautious_decay { abi::CAUTIOUS_DECAY } else { 0 }
}

/// The table from which the device computes the coefficients of any step. Rows are computed anew only where a group has changed, and
/// groups share the powers of equal decay rates, which are most of a row's work.
#[derive(Clone, Debug, Default)]
pub struct GroupTable {
    hyperparameters: Vec<Option<Hyperparameters>>,
    rows: Vec<abi::Group>,
    decay_rates: Vec<abi::DecayRate>,
    /// Index of each decay rate, by its bits.
    indices: HashMap<u64, u32>,
}

impl GroupTable {
    /// Brings the table up to date with these groups, the places of removed ones empty.
    pub fn update<'a>(&mut self, groups: impl ExactSizeIterator<Item = Option<&'a Hyperparameters>> + Clone) {
        // Decay rates that no group has any more are dropped once they may be half of all.
        if self.decay_rates.len() > 2 * MAX_DECAY_RATES * groups.len() {
            *self = Self::default();
        }
        self.hyperparameters.resize(groups.len(), None);
        self.rows.resize_with(groups.len(), Zeroable::zeroed);
        for (index, group) in groups.enumerate() {
            if let Some(group) = group
                && self.hyperparameters[index].as_ref() != Some(group)
            {
                self.set(index, group);
            }
        }
    }

    fn set(&mut self, index: usize, hyperparameters: &Hyperparameters) {
        let (general, coefficients) = hyperparameters.coefficients::<f32>(BASE, false);
        let rule = &hyperparameters.rule;
        let (rates, before) = (rule.decay_rates(), self.hyperparameters[index]);
        let decay_rates = if before.is_some_and(|before| before.rule.decay_rates() == rates) {
            self.rows[index].decay_rates
        } else {
            rates.map(|beta| self.decay_rate(beta))
        };
        self.rows[index] = abi::Group {
            sign: general.gradient_scale,
            coupled_decay: general.coupled_decay,
            decoupled_decay: general.decoupled_decay,
            options: options(&general),
            rule: rule.kind().code(),
            variant: rule.variant(),
            rate_coefficients: rule.kind().rate_coefficients(),
            coefficients,
            decay_rates,
        };
        self.hyperparameters[index] = Some(*hyperparameters);
    }

    fn decay_rate(&mut self, beta: f64) -> u32 {
        let next = self.decay_rates.len() as u32;
        let index = *self.indices.entry(beta.to_bits()).or_insert(next);
        if index == next {
            self.decay_rates.push(abi::DecayRate {
                one_minus_beta: (1.0 - beta) as f32,
                one_minus_powers: std::array::from_fn(|k| one_minus_power(beta, 1 << k) as f32),
            });
        }
        index
    }

    /// The table's bytes, with the largest norm or 0.
    pub fn bytes(&self, max_norm: f32) -> Vec<u8> {
        let rows: &[u8] = bytemuck::cast_slice(&self.rows);
        let head = abi::GroupTableHead { max_norm, decay_rates: (rows.len() / 4) as u32 };
        [bytemuck::bytes_of(&head), rows, bytemuck::cast_slice(&self.decay_rates)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RuleKind;
    use crate::rules::types::AdaMod;

    /// The rows of a table, with the decay rates that they name.
    fn rows(table: &GroupTable) -> Vec<(abi::Group, [abi::DecayRate; MAX_DECAY_RATES])> {
        let rate = |index: u32| table.decay_rates[index as usize];
        let row = |row: &abi::Group| {
            (abi::Group { decay_rates: [0; MAX_DECAY_RATES], ..*row }, row.decay_rates.map(rate))
        };
        table.rows.iter().map(row).collect()
    }

    #[test]
    fn an_updated_table_is_a_new_one() {
        let adamod = Hyperparameters::from(AdaMod::new());
        let mut changes = vec![
            adamod.with_learning_rate(0.25),
            adamod.with_rule(AdaMod::new().with_epsilon(1e-3)),
            adamod.with_rule(AdaMod::new().with_betas([0.5, 0.25, 0.125])),
        ];
        changes.extend(RuleKind::ALL.iter().map(|kind| Hyperparameters::from(kind.with_defaults())));
        // More decay rates than are kept.
        changes.extend((1..50).map(|i| {
            let beta = f64::from(i) / 64.0;
            adamod.with_rule(AdaMod::new().with_betas([beta, beta + 0.001, beta + 0.002]))
        }));
        let mut updated = GroupTable::default();
        for changed in &changes {
            let groups = [Some(&adamod), None, Some(changed)];
            updated.update(groups.into_iter());
            let mut new = GroupTable::default();
            new.update(groups.into_iter());
            let (updated_rows, new_rows) = (rows(&updated), rows(&new));
            assert_eq!([updated_rows[0], updated_rows[2]], [new_rows[0], new_rows[2]]);
            assert!(updated.decay_rates.len() <= 7 * MAX_DECAY_RATES, "{}", updated.decay_rates.len());
        }
    }

    #[test]
    fn groups_share_decay_rates() {
        let groups = vec![Hyperparameters::from(AdaMod::new()); 1000];
        let mut table = GroupTable::default();
        table.update(groups.iter().map(Some));
        // The second and the third default are equal.
        assert_eq!(table.decay_rates.len(), 2);
    }
}

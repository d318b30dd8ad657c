//! Hyperparameters as rows of the kernels' tables.

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

/// What the device needs to compute the coefficients of any step.
#[derive(Clone, Debug)]
pub struct GroupRow {
    hyperparameters: Hyperparameters,
    /// The row of the kernel's table.
    pub row: abi::Group,
}

impl GroupRow {
    /// The row of these hyperparameters.
    pub fn new(hyperparameters: &Hyperparameters) -> Self {
        let decay_rates = hyperparameters.rule.decay_rates();
        let one_minus_powers =
            decay_rates.map(|beta| std::array::from_fn(|k| one_minus_power(beta, 1 << k) as f32));
        Self { hyperparameters: *hyperparameters, row: row(hyperparameters, one_minus_powers) }
    }

    /// Brings the row up to date. Powers of the decay rates, which cost most of it, are kept where those have not changed.
    pub fn update(&mut self, hyperparameters: &Hyperparameters) {
        if self.hyperparameters.rule.decay_rates() != hyperparameters.rule.decay_rates() {
            *self = Self::new(hyperparameters);
        } else if self.hyperparameters != *hyperparameters {
            self.row = row(hyperparameters, self.row.one_minus_powers);
            self.hyperparameters = *hyperparameters;
        }
    }
}

fn row(hyperparameters: &Hyperparameters, one_minus_powers: [[f32; 32]; MAX_DECAY_RATES]) -> abi::Group {
    let (general, coefficients) = hyperparameters.coefficients::<f32>(BASE, false);
    let rule = &hyperparameters.rule;
    abi::Group {
        sign: general.gradient_scale,
        coupled_decay: general.coupled_decay,
        decoupled_decay: general.decoupled_decay,
        options: options(&general),
        rule: rule.kind().code(),
        variant: rule.variant(),
        rate_coefficients: rule.kind().rate_coefficients(),
        coefficients,
        one_minus_betas: rule.decay_rates().map(|beta| (1.0 - beta) as f32),
        one_minus_powers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RuleKind;
    use crate::rules::types::AdaMod;

    #[test]
    fn an_updated_row_is_a_new_one() {
        let adamod = Hyperparameters::from(AdaMod::new());
        let mut changes = vec![
            adamod.with_learning_rate(0.25),
            adamod.with_rule(AdaMod::new().with_epsilon(1e-3)),
            adamod.with_rule(AdaMod::new().with_betas([0.5, 0.25, 0.125])),
        ];
        changes.extend(RuleKind::ALL.iter().map(|kind| Hyperparameters::from(kind.with_defaults())));
        let mut updated = GroupRow::new(&adamod);
        for hyperparameters in changes {
            updated.update(&hyperparameters);
            assert_eq!(updated.row, GroupRow::new(&hyperparameters).row);
        }
    }
}

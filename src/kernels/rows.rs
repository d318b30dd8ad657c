//! Hyperparameters as rows of the kernels' tables.

use super::abi;
use crate::hyperparameters::Hyperparameters;
use crate::rules::arithmetic::one_minus_power;

/// The coefficients of step `t`.
pub fn coefficient_row(hyperparameters: &Hyperparameters, t: u64) -> abi::Coefficients {
    let (general, of_rule) = hyperparameters.coefficients::<f32>(t, false);
    abi::Coefficients {
        gradient_scale: general.gradient_scale,
        coupled_decay: general.coupled_decay,
        decoupled_decay: general.decoupled_decay,
        activity: abi::ACTIVE,
        step: t as u32,
        of_rule,
    }
}

/// What the device needs to compute the coefficients of any step.
pub fn group_row(hyperparameters: &Hyperparameters) -> abi::Group {
    // In the limit of many steps, all bias corrections are 1.
    let (general, coefficients) = hyperparameters.coefficients::<f32>(u64::MAX, false);
    let rule = &hyperparameters.rule;
    let decay_rates = rule.decay_rates();
    abi::Group {
        sign: general.gradient_scale,
        coupled_decay: general.coupled_decay,
        decoupled_decay: general.decoupled_decay,
        rule: rule.kind().code(),
        variant: rule.variant(),
        coefficients,
        one_minus_betas: decay_rates.map(|beta| (1.0 - beta) as f32),
        one_minus_powers: decay_rates
            .map(|beta| std::array::from_fn(|k| one_minus_power(beta, 1 << k) as f32)),
    }
}

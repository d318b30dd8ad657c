//! Learning-rate schedules: pure functions of the step, for
//! [`Optimizer::set_learning_rate`](crate::Optimizer::set_learning_rate) before each step.
//!
//! `step` counts from 1, as `t` does in the paper. Every function is finite for finite arguments.
//!
//! ```
//! use adamod::schedule;
//!
//! let rates: Vec<f64> = (1..=4).map(|step| schedule::linear_warmup(1e-3, 0.0, 4, step)).collect();
//! assert_eq!(rates, [0.25e-3, 0.5e-3, 0.75e-3, 1e-3]);
//! ```

/// The same rate at every step.
pub fn constant(learning_rate: f64, _step: u64) -> f64 {
    learning_rate
}

/// Rises linearly from `start` at step 0 to `learning_rate` at step `warmup_steps`, then stays there: the paper's
/// `alpha_t = alpha_0 + (alpha_w - alpha_0) / T_w * t` for `t < T_w`.
pub fn linear_warmup(learning_rate: f64, start: f64, warmup_steps: u64, step: u64) -> f64 {
    if step >= warmup_steps {
        learning_rate
    } else {
        start + (learning_rate - start) * (step as f64 / warmup_steps as f64)
    }
}

/// Rises linearly to `learning_rate` at step `warmup_steps`, then falls with the inverse square root of the step
/// (Vaswani et al. 2017, fairseq's `inverse_sqrt`). Zero `warmup_steps` are treated as one.
pub fn inverse_square_root(learning_rate: f64, warmup_steps: u64, step: u64) -> f64 {
    let warmup = warmup_steps.max(1) as f64;
    let step = step.max(1) as f64;
    learning_rate * (step / warmup).min((warmup / step).sqrt())
}

/// `learning_rate` times `factor` for every milestone before `step` (PyTorch's `MultiStepLR`: a milestone of 150
/// lets steps 1 to 150 run at the old rate).
pub fn step_decay(learning_rate: f64, milestones: &[u64], factor: f64, step: u64) -> f64 {
    let passed = milestones.iter().filter(|&&milestone| step > milestone).count();
    learning_rate * factor.powi(i32::try_from(passed).unwrap_or(i32::MAX))
}

/// Half a cosine from `learning_rate` before the first step to `final_learning_rate` at step `steps` and after.
pub fn cosine(learning_rate: f64, final_learning_rate: f64, steps: u64, step: u64) -> f64 {
    if step >= steps {
        return final_learning_rate;
    }
    let progress = step as f64 / steps as f64;
    final_learning_rate
        + (learning_rate - final_learning_rate) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_warmup_meets_its_ends() {
        assert_eq!(linear_warmup(1.0, 0.5, 10, 0), 0.5);
        assert_eq!(linear_warmup(1.0, 0.5, 10, 5), 0.75);
        assert_eq!(linear_warmup(1.0, 0.5, 10, 10), 1.0);
        assert_eq!(linear_warmup(1.0, 0.5, 10, 11), 1.0);
        assert_eq!(linear_warmup(1.0, 0.5, 0, 0), 1.0);
    }

    #[test]
    fn inverse_square_root_peaks_at_the_end_of_warmup() {
        assert_eq!(inverse_square_root(1.0, 4_000, 4_000), 1.0);
        assert_eq!(inverse_square_root(1.0, 4_000, 1_000), 0.25);
        assert_eq!(inverse_square_root(1.0, 4_000, 16_000), 0.5);
        assert_eq!(inverse_square_root(1.0, 0, 0), 1.0);
    }

    #[test]
    fn step_decay_falls_after_each_milestone() {
        let at = |step| step_decay(1.0, &[150, 225], 0.1, step);
        assert_eq!(at(150), 1.0);
        assert!((at(151) - 0.1).abs() < 1e-15);
        assert!((at(226) - 0.01).abs() < 1e-15);
        assert_eq!(constant(0.3, 99), 0.3);
    }

    #[test]
    fn cosine_is_halfway_in_the_middle() {
        assert_eq!(cosine(1.0, 0.2, 100, 0), 1.0);
        assert!((cosine(1.0, 0.2, 100, 50) - 0.6).abs() < 1e-15);
        assert_eq!(cosine(1.0, 0.2, 100, 100), 0.2);
        assert_eq!(cosine(1.0, 0.2, 0, 0), 0.2);
    }
}

//! Schedules of learning rates and of decay rates: pure functions of the step, for
//! [`Optimizer::set_learning_rate`](crate::Optimizer::set_learning_rate) and
//! [`Optimizer::set_hyperparameters`](crate::Optimizer::set_hyperparameters) before each step.
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

/// Falls from `learning_rate` by `factor` at every step: `learning_rate * factor^(step - 1)`, PyTorch's `ExponentialLR`.
pub fn exponential(learning_rate: f64, factor: f64, step: u64) -> f64 {
    learning_rate * factor.powf(step.saturating_sub(1) as f64)
}

/// Falls from `learning_rate` before the first step to `final_learning_rate` at step `steps` and after, with the given power of what is
/// left: PyTorch's `PolynomialLR`. A power of 1 is a line.
pub fn polynomial(learning_rate: f64, final_learning_rate: f64, steps: u64, power: f64, step: u64) -> f64 {
    if step >= steps {
        return final_learning_rate;
    }
    let left = 1.0 - step as f64 / steps as f64;
    final_learning_rate + (learning_rate - final_learning_rate) * left.powf(power)
}

/// One cycle over `steps` steps: half a cosine up from `start` to `learning_rate` during the first `rising_steps`, then half a cosine
/// down to `final_learning_rate` (PyTorch's `OneCycleLR` with `anneal_strategy="cos"`).
pub fn one_cycle(
    learning_rate: f64,
    start: f64,
    final_learning_rate: f64,
    rising_steps: u64,
    steps: u64,
    step: u64,
) -> f64 {
    if step < rising_steps {
        cosine(start, learning_rate, rising_steps, step)
    } else {
        cosine(learning_rate, final_learning_rate, steps.saturating_sub(rising_steps), step - rising_steps)
    }
}

/// A linear warmup over `warmup_steps` before another schedule, which sees the steps after the warmup counted from 1.
///
/// ```
/// use adamod::schedule::{after_warmup, cosine};
///
/// let rate = |step| after_warmup(100, step, |step| cosine(1e-3, 1e-5, 900, step));
/// assert_eq!(rate(50), 0.5e-3);
/// assert_eq!(rate(1000), 1e-5);
/// ```
pub fn after_warmup(warmup_steps: u64, step: u64, schedule: impl Fn(u64) -> f64) -> f64 {
    if step < warmup_steps {
        linear_warmup(schedule(0), 0.0, warmup_steps, step)
    } else {
        schedule(step - warmup_steps)
    }
}

/// A decay rate of a moving average whose memory grows with the run: `start + fraction * step` steps, up to the memory of `decay_rate`.
/// The memory of a decay rate is `1 / (1 - decay_rate)` steps. `start` is at least 1; `fraction` is at least 0.
///
/// For AdaMod's third decay rate, the memory of its bound. The bound starts at zero and takes about `start` steps to rise. Later it covers a
/// constant fraction of all steps so far: with `fraction = 1` it is the sum of all learning rates so far, divided by `start + step`.
///
/// With f32 state the bound is the average with exactly these weights. Formats below 32 bits store it debiased by the decay rate of the
/// current step ([`AdaMod::betas`](crate::AdaMod::betas)): there it is the debiased average times `1 - decay_rate^step`.
///
/// ```
/// use adamod::{AdaMod, Hyperparameters, Rule, schedule};
///
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # use adamod::{Optimizer, Options};
/// # let (device, queue) = doc::gpu();
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// let rule = AdaMod::new().with_betas([0.9, 0.999, 0.9999]);
/// let group = optimizer.add_group(rule)?;
/// for step in 1..=3 {
///     let beta3 = schedule::growing_decay_rate(0.9999, 100.0, 1.0, step);
///     let rule = rule.with_betas([0.9, 0.999, beta3]);
///     optimizer.set_hyperparameters(group, Hyperparameters::from(rule))?;
///     // ... the step ...
/// }
/// # Ok::<(), adamod::Error>(())
/// ```
pub fn growing_decay_rate(decay_rate: f64, start: f64, fraction: f64, step: u64) -> f64 {
    let memory = (start + fraction * step as f64).max(1.0);
    decay_rate.min(1.0 - 1.0 / memory)
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

    #[test]
    fn exponential_and_polynomial_are_pytorchs() {
        assert_eq!(exponential(1.0, 0.5, 1), 1.0);
        assert_eq!(exponential(1.0, 0.5, 4), 0.125);
        assert_eq!(polynomial(1.0, 0.0, 10, 2.0, 5), 0.25);
        assert_eq!(polynomial(1.0, 0.5, 10, 1.0, 5), 0.75);
        assert_eq!(polynomial(1.0, 0.5, 10, 3.0, 10), 0.5);
    }

    #[test]
    fn one_cycle_rises_and_falls() {
        let at = |step| one_cycle(1.0, 0.1, 0.0, 30, 100, step);
        assert!((at(0) - 0.1).abs() < 1e-15);
        assert!((at(15) - 0.55).abs() < 1e-15);
        assert!((at(30) - 1.0).abs() < 1e-15);
        assert!((at(65) - 0.5).abs() < 1e-15);
        assert_eq!((at(100), at(1000)), (0.0, 0.0));
    }

    #[test]
    fn a_warmup_meets_the_schedule_that_follows_it() {
        let at = |step| after_warmup(10, step, |step| cosine(1.0, 0.0, 90, step));
        assert_eq!((at(0), at(5), at(10)), (0.0, 0.5, 1.0));
        assert!((at(55) - 0.5).abs() < 1e-15);
        assert_eq!(at(100), 0.0);
        assert_eq!(after_warmup(0, 1, |_| 0.25), 0.25);
    }

    #[test]
    fn a_growing_memory_averages_all_steps_so_far_until_it_is_full() {
        let at = |step| growing_decay_rate(0.99, 10.0, 1.0, step);
        // Sums of all numbers so far, divided by start + step, until the memory is 100 steps.
        let (mut average, mut sum) = (0.0, 0.0);
        for step in 1..=90 {
            let number = f64::from(step as u32 % 7);
            average += (1.0 - at(step)) * (number - average);
            sum += number;
            let expected = sum / (10.0 + step as f64);
            assert!((average - expected).abs() < 1e-12, "step {step}: {average}, expected {expected}");
        }
        assert!((at(90) - 0.99).abs() < 1e-12);
        assert_eq!((at(91), at(u64::MAX)), (0.99, 0.99));
        assert_eq!(growing_decay_rate(0.9, 1.0, 0.0, 5), 0.0);
    }
}

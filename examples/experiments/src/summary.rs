//! Summaries of the numbers of several runs.

use crate::statistics::{deviation, mean};

/// The middle value, or the mean of the two middle ones; NaN for no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let count = sorted.len();
    if count % 2 == 1 {
        middle(count / 2)
    } else {
        0.5 * (middle((count / 2).wrapping_sub(1)) + middle(count / 2))
    }
}

/// Means of `neighbours` values each. The last may have fewer.
pub fn smooth(values: &[f32], neighbours: usize) -> Vec<f64> {
    values
        .chunks(neighbours.max(1))
        .map(|chunk| mean(&chunk.iter().map(|&value| f64::from(value)).collect::<Vec<_>>()))
        .collect()
}

/// Median (mean ± standard deviation), as in the paper's tables, or the value of a single run.
pub fn summary(values: &[f64], decimals: usize) -> String {
    match values {
        [] => "/".into(),
        [value] => format!("{value:.decimals$}"),
        _ => format!(
            "{:.decimals$} ({:.decimals$} ± {:.decimals$})",
            median(values),
            mean(values),
            deviation(values)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[5.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_summary_is_in_the_form_of_the_paper() {
        assert_eq!(summary(&[94.0, 95.0, 99.0], 2), "95.00 (96.00 ± 2.16)");
        assert_eq!(summary(&[1.25], 1), "1.2");
        assert_eq!(summary(&[], 1), "/");
    }

    #[test]
    fn smoothing_keeps_the_mean_of_each_chunk() {
        assert_eq!(smooth(&[1.0, 3.0, 5.0], 2), [2.0, 5.0]);
    }
}

//! Quantiles, means and deviations.

/// Median, and the 5 and 95% quantiles around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Band {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let [low, median, high] = [0.05, 0.5, 0.95].map(|q| quantile(&values, q));
        Self { low, median, high }
    }
}

/// Quantile of sorted values, linear between neighbours; NaN for no values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    if part == 0.0 { sorted[below] } else { sorted[below] + part * (sorted[below + 1] - sorted[below]) }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation of a sample, which divides by the number of values minus 1.
pub fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// Each value divided by its reference. Zero divided by zero counts as exact, and other values divided by zero as infinite.
pub fn ratios(values: &[f64], references: &[f64]) -> Vec<f64> {
    let ratio = |(&value, &reference): (&f64, &f64)| match (value == 0.0, reference == 0.0) {
        (true, true) => 1.0,
        _ => value / reference,
    };
    values.iter().zip(references).map(ratio).collect()
}

/// Distances of ratios from 1; infinite for NaN.
pub fn errors(ratios: &[f64]) -> Vec<f64> {
    let error = |ratio: &f64| if ratio.is_nan() { f64::INFINITY } else { (ratio - 1.0).abs() };
    ratios.iter().map(error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&sorted, 0.0), 1.0);
        assert_eq!(quantile(&sorted, 0.5), 3.0);
        assert_eq!(quantile(&sorted, 1.0), 8.0);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(median(vec![5.0, 1.0, 3.0]), 3.0);
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        assert_eq!(mean(&[1.0, 3.0]), 2.0);
        assert_eq!(deviation(&[1.0, 3.0]), 2_f64.sqrt());
    }

    #[test]
    fn what_is_not_a_number_is_an_error() {
        let ratios = ratios(&[0.0, 3.0, f64::NAN, 1.0], &[0.0, 2.0, 1.0, 0.0]);
        assert_eq!(errors(&ratios), [0.0, 0.5, f64::INFINITY, f64::INFINITY]);
    }
}

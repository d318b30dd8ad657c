//! Mean, deviation and extent.

/// Arithmetic mean; NaN for no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation of the population of values; 0 for a single value.
pub fn deviation(values: &[f64]) -> f64 {
    let center = mean(values);
    let squares: Vec<_> = values.iter().map(|value| (value - center).powi(2)).collect();
    mean(&squares).sqrt()
}

/// Least and greatest value; positive and negative infinity for no values.
pub fn extent(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    values
        .into_iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_are_those_of_the_values() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(deviation(&[1.0, 5.0]), 2.0);
        assert_eq!(deviation(&[0.7]), 0.0);
    }

    #[test]
    fn the_extent_holds_all_values() {
        assert_eq!(extent([3.0, -1.0, 2.0]), (-1.0, 3.0));
    }
}

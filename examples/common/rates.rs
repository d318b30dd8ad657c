//! Learning rates on the command line, in tables and in pictures.

/// Parses a learning rate that a log axis can show, for the command line.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err("expected a finite number above 0".into()),
    }
}

/// A learning rate as tables and pictures show it: 0.001, 1e-7.
pub fn rate_name(rate: f64) -> String {
    if (1e-4..1e4).contains(&rate) { format!("{rate}") } else { format!("{rate:e}") }
}

/// The values in ascending order, each once.
pub fn distinct(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positive_rates_are_taken() {
        assert_eq!(parse_rate("0.1"), Ok(0.1));
        assert!(["", "0", "-1", "nan", "inf", "x"].iter().all(|text| parse_rate(text).is_err()));
    }

    #[test]
    fn rates_have_short_names() {
        assert_eq!([1e-3, 0.02, 10.0].map(rate_name), ["0.001", "0.02", "10"]);
        assert_eq!([1e-7, 2.5e20].map(rate_name), ["1e-7", "2.5e20"]);
    }

    #[test]
    fn values_are_sorted_and_distinct() {
        assert_eq!(distinct(&[1.0, 0.1, 1.0, 0.01]), [0.01, 0.1, 1.0]);
    }
}

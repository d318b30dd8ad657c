//! Order statistics of a series.

/// The smallest value, the quartiles and the median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub min: f64,
    pub lower_quartile: f64,
    pub median: f64,
    pub upper_quartile: f64,
}

impl Summary {
    /// The summary of a series with at least one value. Interpolates between values.
    pub fn of(series: &[f64]) -> Self {
        let mut sorted = series.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |fraction: f64| {
            let position = fraction * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
            below + (above - below) * position.fract()
        };
        Self { min: at(0.0), lower_quartile: at(0.25), median: at(0.5), upper_quartile: at(0.75) }
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn a_summary_does_not_depend_on_order() {
        let summary = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(summary, Summary { min: 1.0, lower_quartile: 2.0, median: 3.0, upper_quartile: 4.0 });
        assert_eq!(Summary::of(&[2.0, 1.0]).median, 1.5);
        assert_eq!(Summary::of(&[7.0]).upper_quartile, 7.0);
    }
}

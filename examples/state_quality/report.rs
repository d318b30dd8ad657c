//! Tables in Markdown and CSV.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

/// A table that is built row by row.
pub struct Table {
    title: String,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: impl Into<String>, header: &[&'static str]) -> Self {
        Self { title: title.into(), header: header.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.header.len(), "cells of a row");
        self.rows.push(row);
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n| {} |\n", self.title, self.header.join(" | "));
        let _ = writeln!(text, "|{}", " --- |".repeat(self.header.len()));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    pub fn write_csv(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(&self.header)?;
        for row in &self.rows {
            writer.write_record(row)?;
        }
        Ok(writer.flush()?)
    }
}

/// An error in percent.
pub fn percent(error: f64) -> String {
    match 100.0 * error {
        percent if !percent.is_finite() => "not finite".into(),
        percent if percent >= 1000.0 => format!("{percent:.1e}"),
        percent if percent >= 10.0 => format!("{percent:.0}"),
        percent if percent >= 0.1 => format!("{percent:.2}"),
        percent => format!("{percent:.4}"),
    }
}

/// A ratio to the reference.
pub fn ratio(ratio: f64) -> String {
    if !(1e-3..1e3).contains(&ratio) && ratio != 0.0 { format!("{ratio:.1e}") } else { format!("{ratio:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_figures_or_so() {
        assert_eq!(percent(0.04123), "4.12");
        assert_eq!(percent(0.9), "90");
        assert_eq!(percent(f64::INFINITY), "not finite");
        assert_eq!(ratio(1.00012), "1.0001");
        assert_eq!(ratio(1e5), "1.0e5");
    }
}

//! The report: a table for people, or one JSON object.

use std::io::Write;

use serde::Serialize;

use super::statistics::Summary;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    pub adapter: String,
    pub driver: String,
    pub backend: String,
    pub device_type: String,
    /// `timestamps` (GPU clock) or `wall` (submit and wait).
    pub timing: &'static str,
    /// `cold` (flushed before every pass) or `warm` (as the previous pass left them).
    pub cache: &'static str,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    pub results: Vec<Measurement>,
}

/// One case in one mode. Bytes per second count what the algorithm reads and writes; a gigabyte is 10^9 bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub suite: &'static str,
    pub case: String,
    pub mode: String,
    pub tensors: usize,
    pub parameters: u64,
    pub bytes_per_parameter: f64,
    pub rounds: usize,
    pub ms_median: f64,
    pub ms_min: f64,
    pub ms_lower_quartile: f64,
    pub ms_upper_quartile: f64,
    pub gb_per_s: f64,
    pub copy_gb_per_s: f64,
    pub stream_gb_per_s: f64,
    /// Bytes per second relative to the copy kernel: the median of the ratios of all rounds.
    pub fraction_of_copy: f64,
    /// The same relative to the stream kernel.
    pub fraction_of_stream: f64,
    /// Microseconds to record and submit a steady step.
    pub host_us_median: f64,
    /// Microseconds to record it.
    pub host_record_us_median: f64,
    /// Heap allocations to record and submit it, the median over steps; only in the suite `host`.
    pub host_allocations: Option<f64>,
    /// Time relative to the default's, the median of the ratios of all rounds; only in the suite `variants`.
    pub time_of_default: Option<f64>,
    /// The number of elements that were compared with the f64 reference afterwards.
    pub verified_elements: u64,
}

/// The bytes of a kernel, and its seconds in each round.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    pub bytes: f64,
    pub seconds: &'a [f64],
}

impl Series<'_> {
    pub fn gb_per_s(self) -> f64 {
        self.bytes / Summary::of(self.seconds).median * 1e-9
    }

    /// Time relative to another kernel in the same round: the median over all rounds.
    pub fn time_of(self, other: Series<'_>) -> f64 {
        let ratios: Vec<_> = self.seconds.iter().zip(other.seconds).map(|(own, other)| own / other).collect();
        Summary::of(&ratios).median
    }

    /// Bytes per second relative to another kernel in the same round: the median over all rounds.
    pub fn fraction_of(self, other: Series<'_>) -> f64 {
        let bytes = self.bytes / other.bytes;
        let ratios: Vec<_> =
            self.seconds.iter().zip(other.seconds).map(|(own, other)| bytes * other / own).collect();
        Summary::of(&ratios).median
    }
}

impl Report {
    /// Prints the table.
    pub fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "{} ({}, {}, {})", self.adapter, self.device_type, self.backend, self.driver)?;
        let timing = match self.timing {
            "timestamps" => "GPU timestamps around each pass",
            _ => "wall time of submit and wait",
        };
        let cache = match self.cache {
            "cold" => "flushed before every pass",
            _ => "as the previous pass left them",
        };
        writeln!(
            out,
            "time: {timing}; caches: {cache}; bytes: per parameter; host: microseconds to record and submit a step"
        )?;
        let case_width = self.results.iter().map(|result| result.case.len()).max().unwrap_or(0);
        let mode_width = self.results.iter().map(|result| result.mode.len()).max().unwrap_or(0);
        let mut suite = "";
        for result in &self.results {
            if result.suite != suite {
                suite = result.suite;
                writeln!(out, "\n{suite}")?;
                let allocations = result.host_allocations.map_or("", |_| " allocations");
                let of_default = result.time_of_default.map_or("", |_| " of default");
                writeln!(
                    out,
                    "  {:case_width$}  {:mode_width$} {:>8} {:>12} {:>6} {:>9} {:>9} {:>19} {:>8} {:>8} {:>7} {:>8} {:>9} {:>8}{allocations}{of_default}",
                    "case",
                    "mode",
                    "tensors",
                    "parameters",
                    "bytes",
                    "ms",
                    "min",
                    "quartiles",
                    "GB/s",
                    "copy",
                    "of copy",
                    "stream",
                    "of stream",
                    "host us"
                )?;
            }
            let allocations =
                result.host_allocations.map_or_else(String::new, |count| format!(" {count:>11.0}"));
            let of_default =
                result.time_of_default.map_or_else(String::new, |time| format!(" {:>9.0}%", 100.0 * time));
            writeln!(
                out,
                "  {:case_width$}  {:mode_width$} {:>8} {:>12} {:>6.2} {:>9.3} {:>9.3} {:>9.3}-{:<9.3} {:>8.2} {:>8.2} {:>6.0}% {:>8.2} {:>8.0}% {:>8.0}{allocations}{of_default}",
                result.case,
                result.mode,
                result.tensors,
                result.parameters,
                result.bytes_per_parameter,
                result.ms_median,
                result.ms_min,
                result.ms_lower_quartile,
                result.ms_upper_quartile,
                result.gb_per_s,
                result.copy_gb_per_s,
                100.0 * result.fraction_of_copy,
                result.stream_gb_per_s,
                100.0 * result.fraction_of_stream,
                result.host_us_median
            )?;
        }
        let verified: u64 = self.results.iter().map(|result| result.verified_elements).sum();
        writeln!(out, "\n{verified} elements of the timed steps agree with the f64 reference")?;
        self.left_out.iter().try_for_each(|sentence| writeln!(out, "{sentence}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn fractions_compare_within_a_round() {
        let own = Series { bytes: 200.0, seconds: &[1.0, 10.0, 1.0] };
        let other = Series { bytes: 100.0, seconds: &[1.0, 10.0, 1.0] };
        assert_eq!(own.fraction_of(other), 2.0);
        assert_eq!(own.time_of(Series { bytes: 100.0, seconds: &[2.0, 5.0, 4.0] }), 0.5);
        assert!((own.gb_per_s() - 200e-9).abs() < 1e-20);
    }
}

//! The results of all runs, and the printed tables.

use std::fmt;

use adamod::RuleKind;

use crate::digits::CLASSES;
use crate::rates::rate_name;
use crate::statistics::{deviation, extent, mean};
use crate::train::Outcome;

/// The rule's name in tables and pictures.
pub fn rule_name(rule: RuleKind) -> &'static str {
    match rule {
        RuleKind::AdaMod => "AdaMod",
        RuleKind::Adam => "Adam",
        RuleKind::Sgd => "SGD, momentum 0.9",
        other => other.name(),
    }
}

/// All runs, with a row for each rule and a cell for each learning rate.
pub struct Grid {
    /// In ascending order.
    pub learning_rates: Vec<f64>,
    pub rows: Vec<Row>,
    pub steps_per_epoch: usize,
}

/// The runs of one rule.
pub struct Row {
    pub rule: RuleKind,
    /// One for each learning rate.
    pub cells: Vec<Cell>,
}

/// The runs of one rule at one learning rate.
pub struct Cell {
    /// One for each seed.
    pub outcomes: Vec<Outcome>,
}

/// A quantity over the runs of a cell.
pub struct Envelope {
    pub least: f64,
    pub mean: f64,
    pub greatest: f64,
}

impl Cell {
    /// Test accuracy of every run. A diverged run counts as guessing.
    pub fn accuracies(&self) -> Vec<f64> {
        let guessing = 1.0 / CLASSES as f64;
        self.outcomes.iter().map(|outcome| outcome.accuracy.unwrap_or(guessing)).collect()
    }

    /// Number of runs with a loss that is not finite.
    pub fn diverged(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.accuracy.is_none()).count()
    }

    /// Mean training loss of every epoch, one list for each run. A diverged run ends before its first epoch whose mean is not finite.
    pub fn epoch_losses(&self, steps_per_epoch: usize) -> Vec<Vec<f64>> {
        let of_run = |outcome: &Outcome| {
            outcome
                .losses
                .chunks(steps_per_epoch)
                .map(|losses| mean(&losses.iter().map(|loss| f64::from(*loss)).collect::<Vec<_>>()))
                .take_while(|loss| loss.is_finite())
                .collect()
        };
        self.outcomes.iter().map(of_run).collect()
    }

    /// Training loss of every epoch that all runs reached.
    pub fn loss_curve(&self, steps_per_epoch: usize) -> Vec<Envelope> {
        let runs = self.epoch_losses(steps_per_epoch);
        let common = runs.iter().map(Vec::len).min().unwrap_or(0);
        let of_epoch = |epoch: usize| {
            let losses: Vec<f64> = runs.iter().map(|run| run[epoch]).collect();
            let (least, greatest) = extent(losses.iter().copied());
            Envelope { least, mean: mean(&losses), greatest }
        };
        (0..common).map(of_epoch).collect()
    }
}

impl Row {
    /// Difference between the best and the worst learning rate, in mean accuracy.
    fn spread(&self) -> f64 {
        let means = self.cells.iter().map(|cell| mean(&cell.accuracies()));
        let (least, greatest) = extent(means);
        greatest - least
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.rows[0].cells[0].outcomes.len();
        writeln!(f, "Test accuracy in %, mean ± standard deviation over {seeds} seed(s)")?;
        self.write_header(f, "spread")?;
        for row in &self.rows {
            write_row(f, row, accuracy_text)?;
            writeln!(f, "{:>8.1}", 100.0 * row.spread())?;
        }
        writeln!(f, "\nTraining loss in the last epoch, mean over the seeds")?;
        self.write_header(f, "")?;
        for row in &self.rows {
            write_row(f, row, |cell| self.loss_text(cell))?;
            writeln!(f)?;
        }
        writeln!(
            f,
            "\nspread: best minus worst mean accuracy of the row. Diverged runs count as guessing, 10 %."
        )
    }
}

impl Grid {
    fn write_header(&self, f: &mut fmt::Formatter<'_>, last: &str) -> fmt::Result {
        write!(f, "{:<18}", "")?;
        for rate in &self.learning_rates {
            write!(f, "{:>19}", format!("alpha {}", rate_name(*rate)))?;
        }
        writeln!(f, "{last:>8}")
    }

    fn loss_text(&self, cell: &Cell) -> String {
        let epochs = cell.epoch_losses(self.steps_per_epoch);
        let last: Vec<f64> = (epochs.iter().zip(&cell.outcomes))
            .filter(|(_, outcome)| outcome.accuracy.is_some())
            .filter_map(|(losses, _)| losses.last().copied())
            .collect();
        match last.as_slice() {
            [] => "diverged".into(),
            values => format!("{:.2e}", mean(values)),
        }
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, row: &Row, text: impl Fn(&Cell) -> String) -> fmt::Result {
    write!(f, "{:<18}", rule_name(row.rule))?;
    row.cells.iter().try_for_each(|cell| write!(f, "{:>19}", text(cell)))
}

fn accuracy_text(cell: &Cell) -> String {
    let accuracies = cell.accuracies();
    match (cell.diverged(), accuracies.len()) {
        (0, _) => format!("{:.1} ± {:.1}", 100.0 * mean(&accuracies), 100.0 * deviation(&accuracies)),
        (diverged, runs) if diverged == runs => "diverged".into(),
        (diverged, _) => format!("{:.1}, {diverged} diverged", 100.0 * mean(&accuracies)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(losses: &[f32], accuracy: Option<f64>) -> Outcome {
        Outcome { losses: losses.to_vec(), accuracy }
    }

    fn grid() -> Grid {
        let good = |accuracy| Cell { outcomes: vec![outcome(&[2.0, 1.0, 0.5, 0.25], Some(accuracy))] };
        let diverged = Cell { outcomes: vec![outcome(&[2.0, 4.0, f32::NAN, f32::NAN], None)] };
        Grid {
            learning_rates: vec![0.1, 1.0],
            rows: vec![
                Row { rule: RuleKind::AdaMod, cells: vec![good(0.9), good(0.85)] },
                Row { rule: RuleKind::Sgd, cells: vec![good(0.9), diverged] },
            ],
            steps_per_epoch: 2,
        }
    }

    #[test]
    fn a_diverged_run_ends_early_and_counts_as_guessing() {
        let cell = &grid().rows[1].cells[1];
        assert_eq!(cell.epoch_losses(2), [vec![3.0]]);
        assert_eq!(cell.accuracies(), [0.1]);
        assert_eq!(cell.diverged(), 1);
    }

    #[test]
    fn the_tables_show_spread_and_divergence() {
        let text = grid().to_string();
        let line = |start: &str| {
            let found: Vec<_> = text.lines().filter(|line| line.starts_with(start)).collect();
            found.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(line("AdaMod"), ["AdaMod 90.0 ± 0.0 85.0 ± 0.0 5.0", "AdaMod 3.75e-1 3.75e-1"]);
        assert_eq!(
            line("SGD"),
            ["SGD, momentum 0.9 90.0 ± 0.0 diverged 80.0", "SGD, momentum 0.9 3.75e-1 diverged"]
        );
    }
}

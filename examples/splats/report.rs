//! What the runs show, as a table.

use std::fmt;

use crate::fit::{Outcome, REFINE_EVERY, Refined, Rule};
use crate::statistics::{deviation, mean};

/// All runs, with the same seeds in each cell.
pub struct Grid {
    pub cells: Vec<Cell>,
    /// Refinements of a run.
    pub refinements: usize,
}

/// The runs of one rule and one way to refine, a run for each seed.
pub struct Cell {
    pub rule: Rule,
    pub refined: Refined,
    pub outcomes: Vec<Outcome>,
}

impl Rule {
    /// The name in tables and pictures.
    pub fn title(self) -> &'static str {
        match self {
            Self::Adam => "Adam",
            Self::AdaMod => "AdaMod",
        }
    }
}

impl Refined {
    /// The name in tables and pictures.
    pub fn title(self) -> &'static str {
        match self {
            Self::Follows => "state follows, also to halves",
            Self::FreshHalves => "state follows, halves start fresh",
            Self::Reset => "state is reset",
        }
    }
}

impl Cell {
    /// The PSNR of a step, counted from 1, of each run.
    pub fn psnr(&self, step: usize) -> Vec<f64> {
        self.outcomes.iter().map(|outcome| outcome.psnr[step - 1]).collect()
    }

    /// Steps of a run.
    pub fn steps(&self) -> usize {
        self.outcomes[0].psnr.len()
    }

    /// Mean loss of PSNR from the step of a refinement to the lowest of the steps until the next one.
    fn dip(&self, refinements: usize) -> Option<f64> {
        let dip = |psnr: &[f64], refinement: usize| {
            let step = refinement * REFINE_EVERY;
            let until = (step + REFINE_EVERY).min(psnr.len());
            psnr[step - 1] - psnr[step..until].iter().copied().fold(f64::INFINITY, f64::min)
        };
        let dips = self.outcomes.iter().flat_map(|outcome| {
            (1..=refinements)
                .filter(|refinement| refinement * REFINE_EVERY < outcome.psnr.len())
                .map(|refinement| dip(&outcome.psnr, refinement))
        });
        let dips: Vec<f64> = dips.collect();
        (!dips.is_empty()).then(|| mean(&dips))
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.cells.first() else { return Ok(()) };
        let steps = first.steps();
        let last_refinement = self.refinements * REFINE_EVERY;
        writeln!(f, "PSNR in dB, mean ± standard deviation over {} seed(s)", first.outcomes.len())?;
        let (half, last) = (format!("step {}", steps.div_ceil(2)), format!("step {steps}"));
        writeln!(f, "{:44}{half:>14}{last:>14}{:>16}", "", "refinement dip")?;
        for cell in &self.cells {
            let at = |step| {
                let psnr = cell.psnr(step);
                format!("{:.2} ± {:.2}", mean(&psnr), deviation(&psnr))
            };
            let dip = cell.dip(self.refinements).map_or(String::from("none"), |dip| format!("{dip:.2}"));
            let name = format!("{}, {}", cell.rule.title(), cell.refined.title());
            writeln!(f, "{name:44}{:>14}{:>14}{dip:>16}", at(steps.div_ceil(2)), at(steps))?;
        }
        write!(f, "Rows are dropped and split every {REFINE_EVERY} steps until step {last_refinement}.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(psnr: Vec<Vec<f64>>) -> Cell {
        let outcome = |psnr| Outcome { psnr, frames: Vec::new(), count: 1 };
        Cell { rule: Rule::Adam, refined: Refined::Reset, outcomes: psnr.into_iter().map(outcome).collect() }
    }

    #[test]
    fn the_table_has_means_and_dips() {
        // A run that loses 3 dB at its only refinement, and one that loses 1.
        let run = |lost: f64| {
            (1..=300).map(|step| if step == 101 { 20.0 - lost } else { 20.0 + 0.01 * lost }).collect()
        };
        let grid = Grid { cells: vec![cell(vec![run(3.0), run(1.0)])], refinements: 1 };
        let dip = grid.cells[0].dip(1).unwrap();
        assert!((dip - 2.02).abs() < 1e-9, "{dip}");
        let table = grid.to_string();
        assert!(table.contains("20.02 ± 0.01"), "{table}");
        assert!(table.contains("until step 100"), "{table}");
    }

    #[test]
    fn a_run_without_refinements_has_no_dip() {
        let grid = Grid { cells: vec![cell(vec![vec![10.0]])], refinements: 0 };
        assert!(grid.to_string().contains("none"));
    }
}

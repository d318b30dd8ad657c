//! All runs of an experiment, one after the other.

use std::fmt::Display;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::method::Method;
use crate::summary::summary;

/// All runs of a method.
pub struct Cell<O> {
    pub method: Method,
    /// One for each seed.
    pub outcomes: Vec<O>,
}

impl<O> Cell<O> {
    /// Values of each run, by its name.
    pub fn named<'a, T: 'a>(
        &'a self,
        of: impl Fn(&'a O) -> &'a [T] + 'a,
    ) -> impl Iterator<Item = (String, &'a [T])> {
        let name = move |seed| format!("{}, seed {seed}", self.method.description());
        self.outcomes.iter().enumerate().map(move |(seed, outcome)| (name(seed), of(outcome)))
    }

    /// The summary of a value of the runs. Runs without the value have diverged.
    pub fn summary(&self, decimals: usize, value: impl Fn(&O) -> Option<f64>) -> String {
        let values: Vec<_> = self.outcomes.iter().filter_map(value).collect();
        match self.outcomes.len() - values.len() {
            0 => summary(&values, decimals),
            diverged => format!("{}, {diverged} diverged", summary(&values, decimals)),
        }
    }
}

/// A run in progress.
pub struct Run<'a> {
    pub method: &'a Method,
    /// Determines the initial weights and the minibatches.
    pub seed: u64,
    bar: &'a ProgressBar,
}

impl Run<'_> {
    /// Counts a step.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Counts steps that the run will not take.
    pub fn skip(&self, steps: u64) {
        self.bar.inc(steps);
    }
}

/// Shows a bar of all steps of all runs, or a line for each run if the output is not a terminal.
pub struct Runs {
    bar: ProgressBar,
    seeds: u64,
    count: u64,
    finished: std::cell::Cell<u64>,
}

impl Runs {
    /// Runs of `methods` methods, each from `seeds` seeds and with `steps` steps.
    pub fn new(methods: usize, seeds: u64, steps: u64) -> Self {
        let template = "{wide_bar} {percent:>3} %  {eta:>4} left  {msg}";
        let style = ProgressStyle::with_template(template).expect("a template that is constant");
        let count = methods as u64 * seeds;
        let bar = ProgressBar::new(count * steps).with_style(style);
        Self { bar, seeds, count, finished: std::cell::Cell::new(0) }
    }

    /// Runs a method from every seed. The bar and the lines show the name.
    pub fn of<O: Display>(
        &self,
        name: &str,
        method: &Method,
        train: impl Fn(&Run<'_>) -> anyhow::Result<O>,
    ) -> anyhow::Result<Cell<O>> {
        let mut outcomes = Vec::new();
        for seed in 0..self.seeds {
            let start = Instant::now();
            let name = format!("{name}, seed {seed}");
            self.bar.set_message(name.clone());
            let outcome = train(&Run { method, seed, bar: &self.bar })?;
            self.finished.update(|finished| finished + 1);
            if self.bar.is_hidden() {
                let seconds = start.elapsed().as_secs_f64();
                eprintln!("{} of {}: {name}, {seconds:.0} s: {outcome}", self.finished.get(), self.count);
            }
            outcomes.push(outcome);
        }
        Ok(Cell { method: method.clone(), outcomes })
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use adamod::Adam;

    use super::*;
    use crate::method::Schedule;

    #[test]
    fn every_seed_runs_once_and_lost_runs_are_counted() {
        let method =
            Method { name: "Adam", hyperparameters: Adam::new().into(), schedule: Schedule::Constant };
        let runs = Runs::new(1, 3, 1);
        let cell = runs.of("Adam", &method, |run| Ok(run.seed as f64)).unwrap();
        runs.finish();
        assert_eq!(cell.outcomes, [0.0, 1.0, 2.0]);
        assert_eq!(cell.summary(1, |value| Some(*value)), "1.0 (1.0 ± 0.8)");
        assert_eq!(cell.summary(1, |value| (*value > 0.5).then_some(*value)), "1.5 (1.5 ± 0.5), 1 diverged");
        let lost = |run: &Run<'_>| if run.seed < 1 { Ok(0.0) } else { Err(anyhow::anyhow!("lost")) };
        assert!(runs.of("Adam", &method, lost).is_err());
    }
}

//! All runs of an experiment, one after the other.

use std::cell::Cell as Counter;
use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

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
        let name = self.method.description();
        let outcomes = (0..).zip(&self.outcomes);
        outcomes.map(move |(seed, outcome)| (seeded(&name, seed), of(outcome)))
    }

    /// The same from what is known of an earlier run of each seed.
    pub fn saved(
        name: &str,
        method: &Method,
        seeds: u64,
        outcome: impl Fn(&str) -> anyhow::Result<O>,
    ) -> anyhow::Result<Self> {
        let outcomes = (0..seeds).map(|seed| outcome(&seeded(name, seed))).collect::<anyhow::Result<_>>()?;
        Ok(Self { method: method.clone(), outcomes })
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

/// The name of a method's run.
fn seeded(name: &str, seed: u64) -> String {
    format!("{name}, seed {seed}")
}

/// A run in progress.
pub struct Run<'a> {
    pub method: &'a Method,
    /// Determines the initial weights and the minibatches.
    pub seed: u64,
    runs: &'a Runs,
}

impl Run<'_> {
    /// Counts a step.
    pub fn step(&self) {
        self.runs.step();
    }

    /// Counts steps that the run will not take.
    pub fn skip(&self, steps: u64) {
        self.runs.bar.inc(steps);
    }
}

/// The first steps compile and tune kernels, so they say nothing about the time of the others.
const COMPILING_STEPS: u64 = 3;
/// The time between two lines without a terminal.
const SILENCE: Duration = Duration::from_secs(5);

/// Shows a bar of all steps of all runs. If the output is not a terminal, it shows a line every few seconds, and one for each run.
pub struct Runs {
    bar: ProgressBar,
    seeds: u64,
    count: u64,
    finished: Counter<u64>,
    /// Steps that were taken.
    taken: Counter<u64>,
    /// When the steps that compile were over.
    compiled: Counter<Option<Instant>>,
    /// When something was shown last.
    shown: Counter<Instant>,
}

impl Runs {
    /// Runs of `methods` methods, each from `seeds` seeds and with `steps` steps.
    pub fn new(methods: usize, seeds: u64, steps: u64) -> Self {
        let template = "{wide_bar} {percent:>3} %  {prefix}  {msg}";
        let style = ProgressStyle::with_template(template).expect("a template that is constant");
        let count = methods as u64 * seeds;
        let bar = ProgressBar::new(count * steps).with_style(style).with_prefix("compiling kernels");
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let (finished, taken, compiled) = (Counter::new(0), Counter::new(0), Counter::new(None));
        Self { bar, seeds, count, finished, taken, compiled, shown: Counter::new(Instant::now()) }
    }

    fn step(&self) {
        self.bar.inc(1);
        self.taken.update(|taken| taken + 1);
        if self.taken.get() == COMPILING_STEPS {
            self.compiled.set(Some(Instant::now()));
        }
        let remaining = self.bar.length().unwrap_or(0).saturating_sub(self.bar.position());
        let left = self
            .compiled
            .get()
            .and_then(|since| time_left(since.elapsed(), self.taken.get() - COMPILING_STEPS, remaining));
        let left =
            left.map_or("compiling kernels".to_owned(), |left| format!("{} left", HumanDuration(left)));
        if !self.bar.is_hidden() {
            self.bar.set_prefix(left);
        } else if self.shown.get().elapsed() >= SILENCE {
            let (position, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            self.say(&format!("step {position} of {all}, {left}"));
        }
    }

    /// Shows a line where there is no terminal for the bar.
    fn say(&self, line: &str) {
        self.shown.set(Instant::now());
        eprintln!("{line}");
    }

    /// Runs a method from every seed. The bar and the lines show the name.
    pub fn of<O: Display>(
        &self,
        name: &str,
        method: &Method,
        train: impl Fn(&Run<'_>) -> anyhow::Result<O>,
    ) -> anyhow::Result<Cell<O>> {
        let mut outcomes = Vec::new();
        if self.bar.is_hidden() && self.taken.get() == 0 {
            let steps = self.bar.length().unwrap_or(0) / self.count;
            self.say(&format!(
                "{} runs of {steps} steps; the first steps compile Burn's kernels",
                self.count
            ));
        }
        for seed in 0..self.seeds {
            let start = Instant::now();
            let name = seeded(name, seed);
            self.bar.set_message(name.clone());
            let outcome = train(&Run { method, seed, runs: self })?;
            self.finished.update(|finished| finished + 1);
            if self.bar.is_hidden() {
                let seconds = start.elapsed().as_secs_f64();
                self.say(&format!(
                    "{} of {}: {name}, {seconds:.0} s: {outcome}",
                    self.finished.get(),
                    self.count
                ));
            }
            outcomes.push(outcome);
        }
        Ok(Cell { method: method.clone(), outcomes })
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The time that the remaining steps take if they take as long as those so far; `None` before any was timed.
fn time_left(elapsed: Duration, timed: u64, remaining: u64) -> Option<Duration> {
    (timed > 0).then(|| elapsed.mul_f64(remaining as f64 / timed as f64))
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

    #[test]
    fn the_time_left_is_that_of_the_steps_so_far() {
        let seconds = |left: Option<Duration>| left.map(|left| left.as_secs_f64());
        assert_eq!(seconds(time_left(Duration::from_secs(6), 3, 10)), Some(20.0));
        assert_eq!(seconds(time_left(Duration::from_secs(6), 3, 0)), Some(0.0));
        // After the steps that compile nothing has been timed yet.
        assert_eq!(time_left(Duration::from_secs(100), 0, 10), None);
    }
}

//! All runs of an experiment: one after the other, or spread over processes. Each has a folder, in which it goes on.

use std::cell::Cell as Counter;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use adamod::Checkpoint;
use anyhow::{Context, ensure};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use plotters::style::RGBColor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::learner::LearnerState;
use crate::method::Method;
use crate::plots::Series;
use crate::store::{self, Folder, Found, Saved};
use crate::summary::summary;

/// All runs of a method that are finished.
pub struct Cell<O> {
    pub method: Method,
    /// One for each seed.
    pub outcomes: Vec<O>,
    seeds: Vec<u64>,
}

impl<O> Cell<O> {
    /// Values of each run, by its name.
    pub fn named<'a, T: 'a>(
        &'a self,
        of: impl Fn(&'a O) -> &'a [T] + 'a,
    ) -> impl Iterator<Item = (String, &'a [T])> {
        let name = self.method.description();
        let outcomes = self.seeds.iter().zip(&self.outcomes);
        outcomes.map(move |(&seed, outcome)| (seeded(&name, seed), of(outcome)))
    }

    /// A curve of each run, for a picture.
    pub fn series(&self, name: String, color: RGBColor, points: impl Fn(&O) -> Vec<f64>) -> Series {
        Series { name, color, runs: self.outcomes.iter().map(points).collect() }
    }

    /// The same from what is known of an earlier run of each seed.
    pub fn saved(
        name: &str,
        method: &Method,
        seeds: u64,
        outcome: impl Fn(&str) -> anyhow::Result<O>,
    ) -> anyhow::Result<Self> {
        let outcomes = (0..seeds).map(|seed| outcome(&seeded(name, seed))).collect::<anyhow::Result<_>>()?;
        Ok(Self { method: method.clone(), outcomes, seeds: (0..seeds).collect() })
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

/// A run in progress. The same method and seed give the same numbers, also if the run is saved and continued in between.
pub trait Training {
    /// The results.
    type Outcome: Display + Serialize + DeserializeOwned;
    /// What it keeps besides its learner.
    type Progress: Serialize + DeserializeOwned;

    /// Takes a step, counted from 1. False if the run has diverged and ends.
    fn step(&mut self, step: u64) -> anyhow::Result<bool>;

    /// Everything that the next step depends on.
    fn save(&mut self) -> anyhow::Result<(Checkpoint, LearnerState, Self::Progress)>;

    /// The results, after the last step.
    fn finish(self) -> anyhow::Result<Self::Outcome>;
}

/// The first steps compile and tune kernels, so they say nothing about the time of the others.
const COMPILING_STEPS: u64 = 3;
/// The time between two lines without a terminal.
const SILENCE: Duration = Duration::from_secs(5);
/// The time between two reports of a worker.
const WORKER_SILENCE: Duration = Duration::from_millis(200);
/// The time between two saves of a run.
const SAVE_INTERVAL: Duration = Duration::from_secs(120);

/// What this process does with runs that are not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Trains them.
    Train,
    /// Trains those that no other process has, for a process that shows how they go.
    Work,
    /// Leaves them.
    Look,
}

/// All runs of an experiment. Shows a bar of all their steps. If the output is not a terminal, it shows a line every few seconds, and one for
/// each run.
pub struct Runs {
    /// The folder with the folders of the runs.
    folder: PathBuf,
    seeds: u64,
    count: u64,
    steps: u64,
    duty: Counter<Duty>,
    /// Whether no more steps are to be taken, given the number of steps that were.
    is_over: Box<dyn Fn(u64) -> bool>,
    display: RunsDisplay,
    /// The time in milliseconds that each run took, by its name; `None` if it is not finished.
    known: RefCell<BTreeMap<String, Option<u64>>>,
    /// Whether another process had one of the runs.
    met_others: Counter<bool>,
}

/// How runs go.
struct RunsDisplay {
    bar: ProgressBar,
    count: u64,
    /// What the first steps do.
    beginning: &'static str,
    finished: Counter<u64>,
    /// Steps that were taken.
    taken: Counter<u64>,
    /// When the steps that compile were over, and how many steps had been taken then.
    compiled: Counter<Option<(Instant, u64)>>,
    /// When something was shown last.
    shown: Counter<Instant>,
    is_worker: bool,
    /// Steps that a worker has taken and those that it will not take, since it last told.
    untold: Counter<(u64, u64)>,
    /// Whether nobody listens to this worker any more.
    is_orphan: Counter<bool>,
}

impl Runs {
    /// Runs of `methods` methods, each from `seeds` seeds and with `steps` steps, in a folder. `compiles` says whether the first steps take
    /// longer than others.
    pub fn new(folder: PathBuf, methods: usize, seeds: u64, steps: u64, compiles: bool) -> Self {
        let template = "{wide_bar} {percent:>3} %  {prefix}  {msg}";
        let style = ProgressStyle::with_template(template).expect("a template that is constant");
        let count = methods as u64 * seeds;
        let beginning = if compiles { "compiling kernels" } else { "starting" };
        let bar = ProgressBar::new(count * steps).with_style(style).with_prefix(beginning);
        let display = RunsDisplay {
            bar,
            count,
            beginning,
            finished: Counter::new(0),
            taken: Counter::new(0),
            compiled: Counter::new(None),
            shown: Counter::new(Instant::now()),
            is_worker: false,
            untold: Counter::new((0, 0)),
            is_orphan: Counter::new(false),
        };
        Self {
            folder,
            seeds,
            count,
            steps,
            duty: Counter::new(Duty::Train),
            is_over: Box::new(|_| false),
            display,
            known: RefCell::new(BTreeMap::new()),
            met_others: Counter::new(false),
        }
    }

    /// Stops when this is true of the number of steps that were taken. The run in progress is saved.
    #[must_use]
    pub fn until(self, is_over: impl Fn(u64) -> bool + 'static) -> Self {
        Self { is_over: Box::new(is_over), ..self }
    }

    /// As one of several processes: leaves runs alone that another process has, and tells on standard output how its own go.
    #[must_use]
    pub fn for_another_process(mut self) -> Self {
        self.duty.set(Duty::Work);
        self.display.is_worker = true;
        self.display.bar.set_draw_target(ProgressDrawTarget::hidden());
        self
    }

    /// Whether this process trains for another one that writes the report.
    pub fn are_of_a_worker(&self) -> bool {
        self.display.is_worker
    }

    /// Runs that are not finished.
    pub fn unfinished(&self) -> u64 {
        self.known.borrow().values().filter(|time| time.is_none()).count() as u64
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Time that all finished runs have taken, in every process and call.
    pub fn time(&self) -> Duration {
        Duration::from_millis(self.known.borrow().values().flatten().sum())
    }

    /// Spreads all runs over this many processes, with the arguments of this one, and shows how they go until they have ended. After that
    /// this process trains none.
    ///
    /// # Errors
    /// If a process cannot be started or fails.
    pub fn delegate(&self, jobs: u64) -> anyhow::Result<()> {
        self.display.begin(self.count, self.steps);
        let (tell, told) = mpsc::channel();
        let mut children = Vec::new();
        for _ in 0..jobs {
            let mut child = Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1).filter(|argument| argument != "--restart"))
                .arg("--worker")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("could not start a process")?;
            let output = child.stdout.take().context("a pipe")?;
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if tell.send(line).is_err() {
                        break;
                    }
                }
            });
            children.push(child);
        }
        drop(tell);
        self.display.bar.set_message(format!("{jobs} processes"));
        // Steps of runs as they were found, by name.
        let mut found: HashMap<String, u64> = HashMap::new();
        for line in told {
            let Some(told) = Told::read(&line) else { continue };
            match told {
                Told::Found { name, steps, is_finished } => {
                    if !found.contains_key(name) {
                        found.insert(name.to_owned(), steps);
                        self.display.bar.inc(steps);
                        self.display.finished.update(|finished| finished + u64::from(is_finished));
                    }
                }
                Told::Steps { taken, skipped } => {
                    self.display.bar.inc(skipped);
                    self.display.take(taken);
                }
                Told::Done { name, seconds, outcome } => self.display.finish_run(name, seconds, outcome),
            }
        }
        let mut failed = 0;
        for mut child in children {
            failed += u64::from(!child.wait()?.success());
        }
        self.duty.set(Duty::Look);
        ensure!(failed == 0, "{failed} of {jobs} processes failed; --resume goes on with their runs");
        Ok(())
    }

    /// Runs a method from every seed. The bar and the lines show the name. Runs that are finished are read.
    pub fn of<T: Training>(
        &self,
        name: &str,
        method: &Method,
        start: impl Fn(&Method, u64, Option<&Saved<T::Progress>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Cell<T::Outcome>> {
        let mut cell = Cell { method: method.clone(), outcomes: Vec::new(), seeds: Vec::new() };
        for seed in 0..self.seeds {
            let name = seeded(name, seed);
            let start = |saved: Option<&Saved<T::Progress>>| {
                start(method, seed, saved).with_context(|| format!("could not start {name}"))
            };
            // Every call takes a step, however little time it has.
            let is_late = self.display.taken.get() > 0 && self.is_over();
            let result = if self.duty.get() == Duty::Look || is_late {
                let finished = store::finished::<T::Outcome>(&self.folder, &name)?;
                if finished.is_some() {
                    self.find(&name, self.steps, true);
                }
                finished
            } else {
                match store::open::<T::Outcome, T::Progress>(&self.folder, &name)? {
                    Found::Finished { outcome, milliseconds } => {
                        self.find(&name, self.steps, true);
                        Some((outcome, milliseconds))
                    }
                    Found::Busy => {
                        self.met_others.set(true);
                        None
                    }
                    Found::Open(folder, saved) => {
                        self.find(&name, saved.as_ref().map_or(0, |saved| saved.step), false);
                        self.train(&name, folder, saved, start)?
                    }
                }
            };
            let (outcome, milliseconds) = result.unzip();
            self.known.borrow_mut().insert(name, milliseconds);
            if let Some(outcome) = outcome {
                cell.outcomes.push(outcome);
                cell.seeds.push(seed);
            }
        }
        Ok(cell)
    }

    /// Trains all cells. If other processes had some of the runs, these are looked at once more after that: they may be finished now.
    pub fn all<C>(&self, cells: impl Fn() -> anyhow::Result<C>) -> anyhow::Result<C> {
        let found = cells()?;
        if self.display.is_worker || !self.met_others.get() {
            return Ok(found);
        }
        self.duty.set(Duty::Look);
        cells()
    }

    /// Shows what was found of a run, once, and unless other processes have told it.
    fn find(&self, name: &str, steps: u64, is_finished: bool) {
        if self.duty.get() != Duty::Look && !self.known.borrow().contains_key(name) {
            self.display.find(name, steps, is_finished);
        }
    }

    fn is_over(&self) -> bool {
        self.display.is_orphan.get() || (self.is_over)(self.display.taken.get())
    }

    /// Trains a run to its end, or saves it where it has to stop. Returns the results if it is finished, and the time in milliseconds.
    fn train<T: Training>(
        &self,
        name: &str,
        mut folder: Folder,
        saved: Option<Box<Saved<T::Progress>>>,
        start: impl Fn(Option<&Saved<T::Progress>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<(T::Outcome, u64)>> {
        self.display.begin(self.count, self.steps);
        self.display.bar.set_message(name.to_owned());
        let mut since = Instant::now();
        let mut training = start(saved.as_deref())?;
        let first = saved.map_or(0, |saved| saved.step);
        let at = |step: u64| move || format!("{name}, step {step}");
        let mut taken = first;
        for step in first + 1..=self.steps {
            let goes_on = training.step(step).with_context(at(step))?;
            self.display.take(1);
            taken = step;
            if !goes_on {
                self.display.skip(self.steps - step);
                break;
            }
            let stops = step < self.steps && self.is_over();
            if stops || since.elapsed() >= SAVE_INTERVAL {
                let (checkpoint, learner, progress) = training.save().with_context(at(step))?;
                let milliseconds = since.elapsed().as_millis() as u64;
                let saved = Saved { step, checkpoint, learner, progress };
                folder.save(&saved, milliseconds).with_context(at(step))?;
                since = Instant::now();
            }
            if stops {
                return Ok(None);
            }
        }
        let outcome = training.finish().with_context(at(taken))?;
        let milliseconds = folder.milliseconds() + since.elapsed().as_millis() as u64;
        folder.finish(taken, &outcome, since.elapsed().as_millis() as u64).with_context(at(taken))?;
        self.display.finish_run(name, milliseconds as f64 / 1e3, &outcome.to_string());
        Ok(Some((outcome, milliseconds)))
    }

    pub fn finish(&self) {
        self.display.tell_steps();
        self.display.bar.finish_and_clear();
    }
}

/// What a worker tells.
enum Told<'a> {
    /// A run and the steps that it had before.
    Found { name: &'a str, steps: u64, is_finished: bool },
    /// Steps that were taken, and steps that will not be.
    Steps { taken: u64, skipped: u64 },
    /// A run is finished.
    Done { name: &'a str, seconds: f64, outcome: &'a str },
}

impl<'a> Told<'a> {
    fn line(&self) -> String {
        match self {
            Told::Found { name, steps, is_finished } => format!("found\t{name}\t{steps}\t{is_finished}"),
            Told::Steps { taken, skipped } => format!("steps\t{taken}\t{skipped}"),
            Told::Done { name, seconds, outcome } => format!("done\t{name}\t{seconds}\t{outcome}"),
        }
    }

    fn read(line: &'a str) -> Option<Self> {
        let parts: Vec<_> = line.splitn(4, '\t').collect();
        match parts[..] {
            ["found", name, steps, is_finished] => {
                Some(Told::Found { name, steps: steps.parse().ok()?, is_finished: is_finished.parse().ok()? })
            }
            ["steps", taken, skipped] => {
                Some(Told::Steps { taken: taken.parse().ok()?, skipped: skipped.parse().ok()? })
            }
            ["done", name, seconds, outcome] => {
                Some(Told::Done { name, seconds: seconds.parse().ok()?, outcome })
            }
            _ => None,
        }
    }
}

impl RunsDisplay {
    /// Called before the first step.
    fn begin(&self, count: u64, steps: u64) {
        if self.taken.get() > 0 || self.is_worker {
            return;
        }
        if self.bar.is_hidden() {
            let compiling =
                if self.beginning == "starting" { "" } else { "; the first steps compile Burn's kernels" };
            self.say(&format!("{count} runs of {steps} steps{compiling}"));
        } else {
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    /// A run was found with steps that were taken before.
    fn find(&self, name: &str, steps: u64, is_finished: bool) {
        if self.is_worker {
            self.tell(&Told::Found { name, steps, is_finished });
        } else {
            self.bar.inc(steps);
            self.finished.update(|finished| finished + u64::from(is_finished));
        }
    }

    /// Counts steps that were taken.
    fn take(&self, steps: u64) {
        self.bar.inc(steps);
        self.taken.update(|taken| taken + steps);
        if self.is_worker {
            self.untold.update(|(taken, skipped)| (taken + steps, skipped));
            if self.shown.get().elapsed() >= WORKER_SILENCE {
                self.tell_steps();
            }
            return;
        }
        if self.taken.get() >= COMPILING_STEPS && self.compiled.get().is_none() {
            self.compiled.set(Some((Instant::now(), self.taken.get())));
        }
        let remaining = self.bar.length().unwrap_or(0).saturating_sub(self.bar.position());
        let left = self
            .compiled
            .get()
            .and_then(|(since, before)| time_left(since.elapsed(), self.taken.get() - before, remaining));
        let left = left.map_or(self.beginning.to_owned(), |left| format!("{} left", HumanDuration(left)));
        if !self.bar.is_hidden() {
            self.bar.set_prefix(left);
        } else if self.shown.get().elapsed() >= SILENCE {
            let (position, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            self.say(&format!("step {position} of {all}, {left}"));
        }
    }

    /// Counts steps that the run will not take.
    fn skip(&self, steps: u64) {
        self.bar.inc(steps);
        self.untold.update(|(taken, skipped)| (taken, skipped + steps));
    }

    fn finish_run(&self, name: &str, seconds: f64, outcome: &str) {
        self.finished.update(|finished| finished + 1);
        if self.is_worker {
            self.tell_steps();
            self.tell(&Told::Done { name, seconds, outcome });
        } else if self.bar.is_hidden() {
            let (finished, count) = (self.finished.get(), self.count);
            self.say(&format!("{finished} of {count}: {name}, {seconds:.0} s: {outcome}"));
        }
    }

    /// Shows a line where there is no terminal for the bar.
    fn say(&self, line: &str) {
        self.shown.set(Instant::now());
        eprintln!("{line}");
    }

    fn tell_steps(&self) {
        let (taken, skipped) = self.untold.take();
        if self.is_worker && taken + skipped > 0 {
            self.tell(&Told::Steps { taken, skipped });
        }
    }

    fn tell(&self, told: &Told<'_>) {
        self.shown.set(Instant::now());
        let mut output = std::io::stdout().lock();
        let written = writeln!(output, "{}", told.line()).and_then(|()| output.flush());
        if written.is_err() {
            self.is_orphan.set(true);
        }
    }
}

/// The time that the remaining steps take if they take as long as those so far; `None` before any was timed.
fn time_left(elapsed: Duration, timed: u64, remaining: u64) -> Option<Duration> {
    (timed > 0).then(|| elapsed.mul_f64(remaining as f64 / timed as f64))
}

/// Checks that a run has the same outcome whether it is whole, broken after any single step, or after every step.
#[cfg(test)]
pub fn assert_resumes<T: Training>(
    steps: u64,
    start: impl Fn(Option<&Saved<T::Progress>>) -> anyhow::Result<T>,
) where
    T::Outcome: std::fmt::Debug,
{
    let method = Method::new("", adamod::Adam::new().into(), Default::default());
    let run = |folder: &std::path::Path, most: u64| {
        let runs = Runs::new(folder.into(), 1, 1, steps, false).until(move |taken| taken >= most);
        runs.of("run", &method, |_, _, saved| start(saved)).unwrap().outcomes.pop()
    };
    let folder = || tempfile::tempdir().unwrap();
    // As text, in which NaN equals NaN.
    let text = |outcome: Option<T::Outcome>| outcome.map(|outcome| serde_json::to_string(&outcome).unwrap());
    let whole = text(run(folder().path(), u64::MAX));
    assert!(whole.is_some());
    for broken in 1..steps {
        let folder = folder();
        assert_eq!(text(run(folder.path(), broken)), None);
        assert_eq!(text(run(folder.path(), u64::MAX)), whole, "broken after step {broken}");
    }
    let folder = folder();
    let outcome = (0..steps).find_map(|_| run(folder.path(), 1));
    assert_eq!(text(outcome), whole, "broken after every step");
}

#[cfg(test)]
mod tests {
    use adamod::Adam;

    use super::*;
    use crate::method::Schedule;

    /// A run whose outcome is the sum of its steps. Fails at a step.
    struct Sum {
        sum: f64,
        fails_at: Option<u64>,
    }

    impl Training for Sum {
        type Outcome = f64;
        type Progress = f64;

        fn step(&mut self, step: u64) -> anyhow::Result<bool> {
            ensure!(self.fails_at != Some(step), "lost at step {step}");
            self.sum += step as f64;
            Ok(true)
        }

        fn save(&mut self) -> anyhow::Result<(Checkpoint, LearnerState, f64)> {
            let (checkpoint, learner) = crate::learner::saved_for_tests();
            Ok((checkpoint, learner, self.sum))
        }

        fn finish(self) -> anyhow::Result<f64> {
            Ok(self.sum)
        }
    }

    fn method() -> Method {
        Method::new("Adam", Adam::new().into(), Schedule::Constant)
    }

    fn start(_: &Method, seed: u64, saved: Option<&Saved<f64>>) -> anyhow::Result<Sum> {
        Ok(Sum { sum: saved.map_or(100.0 * seed as f64, |saved| saved.progress), fails_at: None })
    }

    #[test]
    fn every_seed_runs_once_and_lost_runs_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let runs = || Runs::new(folder.path().into(), 1, 3, 2, false);
        let cell = runs().of("Adam", &method(), start).unwrap();
        assert_eq!(cell.outcomes, [3.0, 103.0, 203.0]);
        assert_eq!(cell.summary(1, |value| Some(*value)), "103.0 (103.0 ± 81.6)");
        assert_eq!(
            cell.summary(1, |value| (*value > 50.0).then_some(*value)),
            "153.0 (153.0 ± 50.0), 1 diverged"
        );
        // Finished runs are read.
        let never =
            |_: &Method, _: u64, _: Option<&Saved<f64>>| -> anyhow::Result<Sum> { panic!("it is finished") };
        assert_eq!(runs().of("Adam", &method(), never).unwrap().outcomes, cell.outcomes);
        let lost = |_: &Method, _: u64, _: Option<&Saved<f64>>| Ok(Sum { sum: 0.0, fails_at: Some(2) });
        let error = runs().of("SGD", &method(), lost).err().unwrap();
        assert_eq!(format!("{error:#}"), "SGD, seed 0, step 2: lost at step 2");
    }

    #[test]
    fn runs_stop_in_time_and_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let of = |most: u64| {
            let runs = Runs::new(folder.path().into(), 1, 2, 4, false).until(move |taken| taken >= most);
            let cell = runs.of("Adam", &method(), start).unwrap();
            let names: Vec<_> =
                cell.named(|outcome| std::slice::from_ref(outcome)).map(|(name, _)| name).collect();
            (cell.outcomes, names.join("; "), runs.unfinished())
        };
        // The description of the method is in the name.
        let name = |seed| format!("{}, seed {seed}", method().description());
        assert_eq!(of(3), (vec![], String::new(), 2));
        assert_eq!(of(2), (vec![10.0], name(0), 1));
        // Every call takes a step.
        assert_eq!(of(0), (vec![10.0], name(0), 1));
        assert_eq!(of(9), (vec![10.0, 110.0], format!("{}; {}", name(0), name(1)), 0));
    }

    #[test]
    fn a_run_belongs_to_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let held = store::open::<f64, f64>(folder.path(), "Adam, seed 0").unwrap();
        assert!(matches!(held, Found::Open(_, None)));
        let runs = Runs::new(folder.path().into(), 1, 2, 1, false);
        assert_eq!(runs.of("Adam", &method(), start).unwrap().outcomes, [101.0]);
        assert_eq!(runs.unfinished(), 1);
        drop(held);
        let runs = Runs::new(folder.path().into(), 1, 2, 1, false);
        assert_eq!(runs.of("Adam", &method(), start).unwrap().outcomes, [1.0, 101.0]);
        assert!(runs.time() < Duration::from_secs(60));
    }

    #[test]
    fn runs_that_another_process_finishes_meanwhile_are_in_the_report() {
        let folder = tempfile::tempdir().unwrap();
        let held = store::open::<f64, f64>(folder.path(), "Adam, seed 0").unwrap();
        let Found::Open(held, None) = held else { panic!("a new run") };
        let held = RefCell::new(Some(held));
        let runs = Runs::new(folder.path().into(), 1, 2, 1, false);
        let cells = || {
            let cell = runs.of("Adam", &method(), start)?;
            if let Some(folder) = held.take() {
                assert_eq!((&cell.outcomes[..], runs.unfinished()), (&[101.0][..], 1));
                folder.finish(1, &7.0, 5_000)?;
            }
            Ok(cell)
        };
        assert_eq!(runs.all(cells).unwrap().outcomes, [7.0, 101.0]);
        assert_eq!(runs.unfinished(), 0);
        assert!(runs.time() >= Duration::from_secs(5));
    }

    #[test]
    fn a_run_that_is_used_twice_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let of = |most: u64| {
            let runs = Runs::new(folder.path().into(), 1, 2, 4, false).until(move |taken| taken >= most);
            let [one, other] = [(); 2].map(|()| runs.of("Adam", &method(), start).unwrap());
            assert_eq!(one.outcomes, other.outcomes);
            (runs.unfinished(), runs.display.bar.position())
        };
        assert_eq!(of(3).0, 2);
        assert_eq!(of(9), (0, 8));
        // Its time, too.
        let Found::Open(added, None) = store::open::<f64, f64>(folder.path(), "Adam, seed 2").unwrap() else {
            panic!("a new run")
        };
        added.finish(4, &210.0, 5_000_000).unwrap();
        let runs = Runs::new(folder.path().into(), 1, 3, 4, false);
        for _ in 0..2 {
            runs.of("Adam", &method(), start).unwrap();
        }
        assert_eq!((runs.unfinished(), runs.display.bar.position()), (0, 12));
        assert!((5_000..10_000).contains(&runs.time().as_secs()), "{:?}", runs.time());
    }

    #[test]
    fn workers_are_understood() {
        let all = [
            Told::Found { name: "Adam, seed 0", steps: 7, is_finished: true },
            Told::Steps { taken: 3, skipped: 4 },
            Told::Done { name: "Adam", seconds: 1.5, outcome: "BLEU 3\twith a tab" },
        ];
        for told in all {
            let line = told.line();
            assert_eq!(Told::read(&line).map(|told| told.line()), Some(line));
        }
        assert!(Told::read("warning: x").is_none() && Told::read("steps\tx\t1").is_none());
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

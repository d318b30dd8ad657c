//! Language modelling: the paper's Figure 7 and its Table 5.

mod network;
mod text;
mod words;

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use adamod::{AdaMod, Adam, Checkpoint, Hyperparameters, Rule, WeightDecay};
use anyhow::ensure;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLoss;
use burn::tensor::Device;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::common::{Common, fingerprint, or_default};
use crate::formats::{Comparison, Difference, FormatArguments};
use crate::learner::{Learner, LearnerState};
use crate::method::{Method, Schedule, parse_beta};
use crate::numbers;
use crate::plots::{self, Axes, BLUE, ORANGE, Panel};
use crate::rates::{parse_rate, rate_name};
use crate::report::{Report, Table};
use crate::runs::{Cell, Training};
use crate::settings::Settings;
use crate::statistics::mean;
use crate::store::Saved;
use crate::weights;

use network::{LanguageModel, Sequences, Sizes, State};
use text::{HeldOut, Text, Units};

/// An LSTM learns a text with Adam and AdaMod
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,

    /// A text file [default: English number words]
    #[arg(long)]
    text: Option<PathBuf>,

    /// A folder with the Penn Treebank's text files as Mikolov et al. published them: ptb.train.txt, ptb.valid.txt, ptb.test.txt; tokens are words
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["text", "merges"])]
    ptb: Option<PathBuf>,

    /// Lines of number words, if no file is given
    #[arg(long, default_value_t = 3_000)]
    lines: usize,

    /// Lines at the end that are only for testing
    #[arg(long, default_value_t = 20)]
    test_lines: usize,

    /// Test on other text, to choose settings without having seen the test text: ptb.valid.txt, or as many lines before the test lines
    #[arg(long)]
    validate: bool,

    /// Use words as tokens, with a vocabulary of at most N including `<eos>` and `<unk>` [default for the Penn Treebank: all, otherwise no words]
    #[arg(long, value_name = "N", conflicts_with_all = ["merges", "lines"], value_parser = clap::value_parser!(u64).range(3..=1_000_000))]
    words: Option<u64>,

    /// Merges of the byte-pair encoding; with 0, tokens are characters
    #[arg(long, default_value_t = 0)]
    merges: usize,

    /// LSTM layers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    layers: u64,

    /// Hidden units of a layer
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    hidden: u64,

    /// Width of the embedding
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    embedding: u64,

    /// Sequences in a minibatch
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,

    /// Tokens through which gradients flow back
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    window: u64,

    /// Steps of a run; the learning rate is divided by 10 after 3/5 of them, as in the paper [default: 150, with --quick 8]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    steps: Option<u64>,

    /// Learning rates alpha, comma-separated, the same for both methods [default: 0.003,0.03; with --quick 0.003]
    #[arg(long, value_delimiter = ',', value_parser = parse_rate)]
    learning_rates: Vec<f64>,

    /// AdaMod's beta3
    #[arg(long, default_value_t = 0.99, value_parser = parse_beta)]
    beta3: f64,

    #[command(flatten)]
    formats: FormatArguments,
}

impl Arguments {
    fn read(&self) -> anyhow::Result<Text> {
        let held_out = HeldOut { test_lines: self.test_lines, validate: self.validate };
        let limit = self.words.map(|words| words as usize);
        match (&self.ptb, &self.text) {
            (Some(folder), _) => Text::penn_treebank(folder, self.validate, limit.unwrap_or(usize::MAX)),
            (None, Some(path)) => {
                let pieces = Units::Pieces { merges: self.merges };
                Text::read(path, held_out, limit.map_or(pieces, |limit| Units::Words { limit }))
            }
            (None, None) => {
                ensure!(limit.is_none(), "--words: expected --text or --ptb, too");
                Text::number_words(self.lines, held_out, self.merges)
            }
        }
    }

    fn steps(&self) -> u64 {
        self.steps.unwrap_or(if self.common.quick { 8 } else { 150 })
    }

    /// Steps between two tests.
    fn interval(&self) -> u64 {
        /// Number of tests in a run.
        const TESTS: u64 = 10;
        self.steps().div_ceil(TESTS)
    }

    fn learning_rates(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.003] } else { &[0.003, 0.03] };
        or_default(&self.learning_rates, default)
    }

    fn methods(&self, learning_rate: f64) -> [Method; 2] {
        let milestone = 3 * self.steps() / 5;
        let adamod = AdaMod::new().with_betas([0.9, 0.999, self.beta3]);
        [("Adam", Rule::from(Adam::new())), ("AdaMod", adamod.into())].map(|(name, rule)| {
            // The paper decays the weights of all adaptive methods, but gives no value here. This one is from Merity et al. 2018.
            let hyperparameters = Hyperparameters::from(rule)
                .with_learning_rate(learning_rate)
                .with_weight_decay(WeightDecay::Decoupled(1.2e-6));
            let schedule = Schedule::StepDecay(if milestone > 0 { vec![milestone] } else { Vec::new() });
            Method::new(name, hyperparameters, schedule)
        })
    }
}

/// The text, cut for training and test, and the sizes of the network for it.
struct Task {
    training: Sequences,
    test: Sequences,
    sizes: Sizes,
    window: usize,
}

impl Task {
    fn new(text: &Text, arguments: &Arguments) -> anyhow::Result<Self> {
        let window = arguments.window as usize;
        let cut = |name: &str, tokens: &[u32]| {
            let sequences = Sequences::new(tokens, arguments.batch as usize);
            ensure!(
                sequences.windows(window) > 0,
                "{} tokens of {name} text: expected at least {} sequences of {} tokens",
                tokens.len(),
                arguments.batch,
                window + 1
            );
            Ok(sequences)
        };
        Ok(Self {
            training: cut("training", &text.training)?,
            test: cut("test", &text.test)?,
            sizes: Sizes {
                vocabulary: text.vocabulary,
                embedding: arguments.embedding as usize,
                hidden: arguments.hidden as usize,
                layers: arguments.layers as usize,
            },
            window,
        })
    }

    /// Perplexity of the test text.
    fn test(&self, backend: &Backend, model: &LanguageModel) -> f64 {
        let device = backend.device();
        let criterion = network::criterion(&device);
        let mut state = State::default();
        let mut losses = Vec::new();
        for index in 0..self.test.windows(self.window) {
            let window = self.test.window(index, self.window, &device);
            let (loss, next) = model.loss(&window, state, &criterion);
            state = next;
            losses.push(f64::from(loss.into_scalar::<f32>()));
        }
        mean(&losses).exp()
    }
}

/// Perplexities of a run after equal numbers of steps. A diverged run has none after it diverged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Outcome {
    #[serde(with = "numbers")]
    training: Vec<f64>,
    #[serde(with = "numbers")]
    test: Vec<f64>,
    diverged: bool,
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match (self.diverged, self.test.last(), self.training.last()) {
            (false, Some(test), Some(training)) => {
                let loss = training.ln();
                write!(f, "perplexity {test:.3} in test, {training:.3} in training, training loss {loss:.3}")
            }
            _ => f.write_str("diverged"),
        }
    }
}

/// What a run keeps besides its learner.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Progress {
    outcome: Outcome,
    /// Losses since the last test.
    #[serde(with = "numbers")]
    losses: Vec<f64>,
    /// What the layers remember: [`State::to_numbers`].
    state: Vec<String>,
}

/// A run in progress. The seed determines initial weights and where in the text it starts; the text has one order.
struct Modelling<'a> {
    backend: &'a Backend,
    task: &'a Task,
    arguments: &'a Arguments,
    device: Device,
    learner: Learner<LanguageModel>,
    criterion: CrossEntropyLoss,
    /// Window of the first step.
    first: usize,
    state: State,
    losses: Vec<f64>,
    outcome: Outcome,
}

impl<'a> Modelling<'a> {
    fn start(
        backend: &'a Backend,
        task: &'a Task,
        arguments: &'a Arguments,
        (method, seed): (&Method, u64),
        saved: Option<&Saved<Progress>>,
    ) -> anyhow::Result<Self> {
        let device = backend.device().autodiff();
        let model = weights::draw(LanguageModel::new(&task.sizes, &device), seed);
        let learner = match saved {
            None => Learner::new(model, method, backend, false)?,
            Some(saved) => Learner::resume(model, method, backend, &saved.checkpoint, &saved.learner)?,
        };
        let Progress { outcome, losses, state } =
            saved.map(|saved| saved.progress.clone()).unwrap_or_default();
        let state =
            State::of_numbers(&state, arguments.batch as usize, &device).map_err(anyhow::Error::msg)?;
        // Every seed starts at another place in the text. Multiples of the golden ratio are far from each other, however many there are.
        let windows = task.training.windows(task.window);
        let golden_ratio = 0.5 * (5_f64.sqrt() - 1.0);
        let first = ((seed as f64 * golden_ratio).fract() * windows as f64) as usize;
        let criterion = network::criterion(&device);
        Ok(Self { backend, task, arguments, device, learner, criterion, first, state, losses, outcome })
    }
}

impl Training for Modelling<'_> {
    type Outcome = Outcome;
    type Progress = Progress;

    fn step(&mut self, step: u64) -> anyhow::Result<bool> {
        let task = self.task;
        let index = (self.first + step as usize - 1) % task.training.windows(task.window);
        let mut state = std::mem::take(&mut self.state);
        if index == 0 {
            state = State::default();
        }
        let window = task.training.window(index, task.window, &self.device);
        let loss = self.learner.step(|model| {
            let (loss, state) = model.loss(&window, state, &self.criterion);
            self.state = state.detach();
            loss
        })?;
        self.losses.push(f64::from(loss));
        if !loss.is_finite() {
            self.outcome.diverged = true;
            return Ok(false);
        }
        if step.is_multiple_of(self.arguments.interval()) || step == self.arguments.steps() {
            self.outcome.training.push(mean(&std::mem::take(&mut self.losses)).exp());
            self.outcome.test.push(task.test(self.backend, &self.learner.model().valid()));
        }
        Ok(true)
    }

    fn save(&mut self) -> anyhow::Result<(Checkpoint, LearnerState, Progress)> {
        let (checkpoint, learner) = self.learner.save()?;
        let (outcome, losses) = (self.outcome.clone(), self.losses.clone());
        Ok((checkpoint, learner, Progress { outcome, losses, state: self.state.to_numbers() }))
    }

    fn finish(self) -> anyhow::Result<Outcome> {
        Ok(self.outcome)
    }
}

impl Cell<Outcome> {
    fn text(&self, of: fn(&Outcome) -> &Vec<f64>) -> String {
        self.summary(3, |outcome| of(outcome).last().copied().filter(|_| !outcome.diverged))
    }
}

/// Trains everything, prints the tables and draws the pictures.
pub fn run(arguments: &Arguments, settings: &Settings) -> anyhow::Result<()> {
    let rates = arguments.learning_rates();
    for method in rates.iter().flat_map(|&rate| arguments.methods(rate)) {
        method.hyperparameters.validate()?;
    }
    let text = arguments.read()?;
    let task = Task::new(&text, arguments)?;
    let backend = arguments.common.backend()?;
    arguments.formats.check(&backend)?;
    let versions = arguments.formats.versions(&arguments.common)?;
    let settings = &settings.clone().with_packages(&versions);
    let fingerprint = fingerprint([&text.training, &text.test]);
    let mut report = arguments.common.report("language-model", settings, &backend, &fingerprint)?;
    let seeds = arguments.common.seeds();
    let data = format!(
        "{} training and {} {} tokens, {} different; LSTM of {} layers of {} units, {} parameters; {seeds} seed(s), {} steps of \
         {} x {} tokens, beta3 {}",
        text.training.len(),
        text.test.len(),
        if arguments.validate { "validation" } else { "test" },
        text.vocabulary,
        task.sizes.layers,
        task.sizes.hidden,
        LanguageModel::new(&task.sizes, &backend.device()).num_params(),
        arguments.steps(),
        arguments.batch,
        arguments.window,
        arguments.beta3
    );
    report.say(&data)?;
    versions.into_iter().try_for_each(|(_, text)| report.say(text))?;

    let middle = rates[rates.len() / 2];
    let [adam, adamod] = arguments.methods(middle);
    let low_bits = arguments.formats.methods(&adamod);
    let packages = arguments.formats.package_methods(&adam);
    let methods = 2 * rates.len() + low_bits.len() + packages.len();
    let runs = arguments.common.runs("language-model", &backend, methods, arguments.steps())?;
    let saved = arguments.common.saved(&["training.csv"])?.zip(arguments.common.saved(&["test.csv"])?);
    let cell = |method: &Method| match &saved {
        Some((training, test)) => Cell::saved(&method.description(), method, seeds, |run| {
            Ok(Outcome { training: training.series(run)?, test: test.series(run)?, diverged: false })
        }),
        None => runs.of(&method.description(), method, |method, seed, saved| {
            Modelling::start(&backend, &task, arguments, (method, seed), saved)
        }),
    };
    let cells = |methods: &[Method]| methods.iter().map(cell).collect::<anyhow::Result<Vec<_>>>();
    let (grid, low_bits, packages) = runs.all(|| {
        let grid = rates.iter().map(|&rate| cells(&arguments.methods(rate)));
        Ok((grid.collect::<anyhow::Result<Vec<_>>>()?, cells(&low_bits)?, cells(&packages)?))
    })?;
    if !arguments.common.close(&runs, &mut report)? {
        return Ok(());
    }
    let others: Vec<_> = low_bits.iter().chain(&packages).collect();
    report_perplexity(&mut report, arguments, &grid, &others)?;
    let axes = axes(arguments);
    let comparison = |difference, method: &str| Comparison {
        difference,
        subject: format!("{method} at α = {}", rate_name(middle)),
        axes: &axes,
        points: &|outcome: &Outcome| outcome.test.clone(),
        rows: &[
            ("test", |cell| cell.text(|outcome| &outcome.test)),
            ("training", |cell| cell.text(|outcome| &outcome.training)),
        ],
    };
    let whole = &grid[rates.len() / 2];
    comparison(Difference::Formats, "AdaMod").report(&mut report, &whole[1], &low_bits)?;
    comparison(Difference::Packages, "Adam").report(&mut report, &whole[0], &packages)?;
    if let Some(least) = text.least_perplexity {
        report.say(format!("No model can have a test perplexity below {least:.3} on average."))?;
    }
    report.finish()
}

fn axes(arguments: &Arguments) -> Axes {
    let (x_step, x_end) = (arguments.interval() as f64, arguments.steps() as f64);
    Axes { x: "step", y: "perplexity", x_step, x_end, logarithmic: true, y_range: None }
}

/// Table 5 and Figure 7 at every learning rate.
fn report_perplexity(
    report: &mut Report,
    arguments: &Arguments,
    grid: &[Vec<Cell<Outcome>>],
    others: &[&Cell<Outcome>],
) -> anyhow::Result<()> {
    type Of = fn(&Outcome) -> &Vec<f64>;
    let kinds: [(&str, Of); 2] =
        [("test", |outcome| &outcome.test), ("training", |outcome| &outcome.training)];
    let name = |cell: &Cell<Outcome>| format!("α = {}", rate_name(cell.method.hyperparameters.learning_rate));
    for (kind, of) in kinds {
        report.say(Table {
            title: format!("Perplexity in {kind}: median (mean ± standard deviation)"),
            columns: grid.iter().map(|cells| name(&cells[0])).collect(),
            rows: (0..2)
                .map(|method| {
                    let cells = grid.iter().map(|cells| cells[method].text(of)).collect();
                    (grid[0][method].method.name.into(), cells)
                })
                .collect(),
        })?;
        let runs = grid
            .iter()
            .flatten()
            .chain(others.iter().copied())
            .flat_map(|cell| cell.named(move |outcome| &of(outcome)[..]))
            .collect::<Vec<_>>();
        report.write_series(
            &format!("{kind}.csv"),
            "step",
            arguments.interval(),
            arguments.steps(),
            &runs,
        )?;
        let panels: Vec<_> = (grid.iter())
            .map(|cells| {
                let series = cells.iter().zip([ORANGE, BLUE]).map(|(cell, color)| {
                    cell.series(cell.method.name.into(), color, |outcome| of(outcome).clone())
                });
                Panel { title: name(&cells[0]), series: series.collect() }
            })
            .collect();
        let title = format!("Perplexity of the LSTM in {kind}");
        plots::curves(&report.path(&format!("{kind}.svg")), &title, &axes(arguments), &panels)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::common::test_backends;
    use crate::runs::assert_resumes;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_model_has_the_same_outcome_wherever_it_is_broken() {
        let line =
            "x --lines=6 --test-lines=2 --layers=2 --hidden=4 --embedding=4 --batch=2 --window=30 --steps=25";
        let arguments = Line::parse_from(line.split(' ')).arguments;
        let text = arguments.read().unwrap();
        let task = Task::new(&text, &arguments).unwrap();
        // The text begins again within a run, and the rate falls.
        assert!((2..=20).contains(&task.training.windows(task.window)));
        let [_, adamod] = arguments.methods(0.01);
        let of = |backend: &Backend, steps| {
            assert_resumes(steps, |saved| Modelling::start(backend, &task, &arguments, (&adamod, 1), saved));
        };
        let [cpu, gpu] = test_backends();
        of(&cpu, 25);
        of(&gpu, 4);
    }
}

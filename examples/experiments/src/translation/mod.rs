//! Neural machine translation: the paper's Figures 1, 2, 3 and 9 and its Table 2.

mod bleu;
mod catalogues;
mod corpus;
mod network;

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use adamod::{AdaMod, Adam, Checkpoint, Hyperparameters, RateHistograms, Rule, RuleKind, WeightDecay};
use anyhow::ensure;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLoss;
use burn::tensor::Device;
use clap::Args;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::common::{Common, fingerprint, or_default};
use crate::formats::{Comparison, Difference, FormatArguments, Formats};
use crate::learner::{Learner, LearnerState, Windows};
use crate::method::{GrowthArguments, Method, Schedule, parse_beta};
use crate::numbers;
use crate::plots::{self, Axes, BLUE, GREEN, ORANGE, PURPLE, Panel, SCALE};
use crate::rates::{distinct, parse_rate, rate_name};
use crate::report::{Report, Table};
use crate::ridges::{Ridges, Window};
use crate::runs::{Cell, Training};
use crate::settings::Settings;
use crate::statistics::mean;
use crate::store::Saved;
use crate::summary::{smooth, summary};
use crate::weights;

use crate::tokenizer::{END, Tokenizer};
use catalogues::Direction;
use corpus::{Corpus, HeldOut, Pair};
use network::{Batch, Example, Sizes, Translator};

/// A translation has at most this many tokens more than twice its source.
const SPARE_TOKENS: usize = 10;

/// A Transformer learns to translate: Adam without and with warmup, AdaMod without
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,

    /// Source sentences, one per line [default: German number words]
    #[arg(long, requires = "target")]
    source: Option<PathBuf>,

    /// Their translations, one per line [default: English number words]
    #[arg(long, requires = "source")]
    target: Option<PathBuf>,

    /// A folder with German message catalogues, de/LC_MESSAGES/*.mo, in it or below it: docs/experiments/data.md
    #[arg(long, value_name = "FOLDER", conflicts_with = "source")]
    catalogues: Option<PathBuf>,

    /// The languages of the message catalogues
    #[arg(long, value_enum, default_value_t = Direction::GermanEnglish, requires = "catalogues")]
    direction: Direction,

    /// Pairs of number words, if no files are given
    #[arg(long, default_value_t = 12_000)]
    sentences: usize,

    /// Pairs that are only for testing
    #[arg(long, default_value_t = 50)]
    test_sentences: usize,

    /// Pairs for the validation loss, which are not for training
    #[arg(long, default_value_t = 50)]
    validation_sentences: usize,

    /// Merges of the byte-pair encoding, which both languages share
    #[arg(long, default_value_t = 100)]
    merges: usize,

    /// Pairs with a longer sentence, in tokens, are left out
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..=5_000))]
    longest: u64,

    /// Layers of the encoder, and of the decoder
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    layers: u64,

    /// Width of the network
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(2..=16_384))]
    width: u64,

    /// Heads of an attention; divides the width
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1_024))]
    heads: u64,

    /// Hidden units of the feed-forward networks
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    feed_forward: u64,

    /// Dropout; the paper has 0.3 for IWSLT'14
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,

    /// Sentences in a minibatch
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,

    /// Steps of a run [default: 200, with --quick 8]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    steps: Option<u64>,

    /// Steps of the linear warmup [default: a third of the steps]
    #[arg(long)]
    warmup: Option<u64>,

    /// Learning rates alpha, comma-separated, the same for all methods [default: 0.01,0.03; with --quick 0.03]
    #[arg(long, value_delimiter = ',', value_parser = parse_rate)]
    learning_rates: Vec<f64>,

    /// AdaMod's beta3
    #[arg(long, default_value_t = 0.999, value_parser = parse_beta)]
    beta3: f64,

    /// Other values of beta3, tried at the middle learning rate [default: 0.9,0.99,0.9999; with --quick 0.9]
    #[arg(long, value_delimiter = ',', value_parser = parse_beta)]
    other_beta3: Vec<f64>,

    #[command(flatten)]
    growth: GrowthArguments,

    #[command(flatten)]
    formats: FormatArguments,
}

impl Arguments {
    fn steps(&self) -> u64 {
        self.steps.unwrap_or(if self.common.quick { 8 } else { 200 })
    }

    /// Steps between two validations.
    fn interval(&self) -> u64 {
        /// Number of validations in a run.
        const VALIDATIONS: u64 = 20;
        (self.steps() / VALIDATIONS).max(1)
    }

    /// A point of a curve of training losses is the mean of this many steps. Short runs have twenty points, or one for each step.
    fn smoothing(&self) -> u64 {
        (self.steps() / 20).clamp(1, 10)
    }

    fn warmup(&self) -> u64 {
        self.warmup.unwrap_or(self.steps() / 3)
    }

    /// In ascending order, each once.
    fn learning_rates(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.03] } else { &[0.01, 0.03] };
        or_default(&self.learning_rates, default)
    }

    /// In ascending order, each once, with the main one.
    fn all_beta3(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.9] } else { &[0.9, 0.99, 0.9999] };
        let others = or_default(&self.other_beta3, default);
        distinct(&[&others[..], &[self.beta3]].concat())
    }

    /// Adam without warmup, Adam with it, AdaMod without, and with a beta3 that grows.
    fn methods(&self, learning_rate: f64) -> [Method; 4] {
        // Betas and epsilon of Vaswani et al., weight decay of the paper.
        let adam = Adam::new().with_betas([0.9, 0.98]).with_epsilon(1e-9).into();
        let adamod = AdaMod::new().with_betas([0.9, 0.98, self.beta3]).with_epsilon(1e-9).into();
        let method = |name, rule: Rule, schedule| {
            let hyperparameters = Hyperparameters::from(rule)
                .with_learning_rate(learning_rate)
                .with_weight_decay(WeightDecay::Decoupled(1e-4));
            Method::new(name, hyperparameters, schedule)
        };
        let adamod = method("AdaMod without warmup", adamod, Schedule::Constant);
        let growing = self.growth.method(&adamod, "AdaMod, growing beta3");
        [
            method("Adam without warmup", adam, Schedule::Constant),
            method("Adam with warmup", adam, Schedule::Warmup(self.warmup())),
            adamod,
            growing,
        ]
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.width.is_multiple_of(self.heads) && self.width.is_multiple_of(2),
            "width {}, heads {}: expected an even width that the heads divide",
            self.width,
            self.heads
        );
        ensure!((0.0..1.0).contains(&self.dropout), "dropout {}: expected a number in [0, 1)", self.dropout);
        self.learning_rates()
            .into_iter()
            .flat_map(|rate| self.methods(rate))
            .try_for_each(|method| method.hyperparameters.validate())?;
        Ok(())
    }
}

/// The corpus in tokens, and the sizes of the network for it.
struct Task {
    tokenizer: Tokenizer,
    training: Vec<Example>,
    validation: Vec<Example>,
    test: Vec<Example>,
    /// Translations of the test sentences.
    references: Vec<String>,
    /// What the message catalogues gave.
    collected: Option<String>,
    sizes: Sizes,
}

impl Task {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let held_out = HeldOut { validation: arguments.validation_sentences, test: arguments.test_sentences };
        let mut collected = None;
        let corpus = match (&arguments.catalogues, &arguments.source, &arguments.target) {
            (Some(folder), ..) => {
                let found = catalogues::collect(folder, arguments.direction)?;
                collected = Some(found.to_string());
                Corpus::shuffled(found.pairs, held_out)?
            }
            (None, Some(source), Some(target)) => Corpus::read(source, target, held_out)?,
            _ => Corpus::number_words(arguments.sentences, held_out)?,
        };
        // Includes the validation pairs, so that their number does not change the tokens.
        let known = corpus.training.iter().chain(&corpus.validation);
        let text = known.flat_map(|pair| [pair.source.as_str(), pair.target.as_str()]);
        let tokenizer = Tokenizer::train(text, arguments.merges);
        let longest = arguments.longest as usize;
        let examples = |pairs: &[Pair]| -> Vec<(Example, String)> {
            let tokens = |sentence: &str| [tokenizer.encode(sentence), vec![END]].concat();
            let example =
                |pair: &Pair| Example { source: tokens(&pair.source), target: tokens(&pair.target) };
            let all = pairs.iter().map(|pair| (example(pair), pair.target.clone()));
            all.filter(|(example, _)| example.source.len().max(example.target.len()) <= longest).collect()
        };
        let (training, _): (Vec<_>, Vec<_>) = examples(&corpus.training).into_iter().unzip();
        let (validation, _): (Vec<_>, Vec<_>) = examples(&corpus.validation).into_iter().unzip();
        let (test, references): (Vec<_>, Vec<_>) = examples(&corpus.test).into_iter().unzip();
        ensure!(
            training.len() >= arguments.batch as usize && !validation.is_empty() && !test.is_empty(),
            "{} training, {} validation and {} test pairs of at most {longest} tokens: expected at least {} for training (a \
             minibatch), and one each for validation and test",
            training.len(),
            validation.len(),
            test.len(),
            arguments.batch
        );
        let sizes = Sizes {
            vocabulary: tokenizer.vocabulary(),
            longest: (2 * longest + SPARE_TOKENS).next_multiple_of(8),
            layers: arguments.layers as usize,
            width: arguments.width as usize,
            heads: arguments.heads as usize,
            feed_forward: arguments.feed_forward as usize,
            dropout: arguments.dropout,
        };
        Ok(Self { tokenizer, training, validation, test, references, collected, sizes })
    }

    /// What the sentences are, for the record of the runs.
    fn fingerprint(&self) -> String {
        let examples = [&self.training, &self.validation, &self.test].into_iter().flatten();
        fingerprint(examples.flat_map(|example| [&example.source, &example.target]))
    }

    /// The training pairs in a new order, which hardly depends on how many pairs validation took out of them.
    fn shuffled(&self, rng: &mut Xoshiro256PlusPlus) -> Vec<&Example> {
        let mut order: Vec<_> = (0..self.training.len() + self.validation.len()).collect();
        order.shuffle(rng);
        order.into_iter().filter_map(|index| self.training.get(index)).collect()
    }
}

/// The results of a run, or what there is of them before its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Outcome {
    /// One for each step. A run ends after a loss that is not finite.
    #[serde(with = "numbers")]
    losses: Vec<f32>,
    /// Losses of the validation set after equal numbers of steps, and at the end.
    #[serde(with = "numbers")]
    validation: Vec<f32>,
    /// BLEU of the test set, one number; none if a loss was not finite.
    #[serde(with = "numbers")]
    bleu: Vec<f64>,
    /// Learning rates of the steps from the first to the last of each window.
    rates: Windows,
}

impl Outcome {
    fn bleu(&self) -> Option<f64> {
        self.bleu.first().copied()
    }

    fn windows(&self) -> Vec<Window> {
        self.rates.iter().filter_map(|(steps, counts)| counts.window(*steps)).collect()
    }

    /// Mean training loss of the last tenth of the steps.
    fn final_loss(&self) -> f64 {
        let last = self.losses.len().saturating_sub(self.losses.len().div_ceil(10));
        mean(&self.losses[last..].iter().map(|&loss| f64::from(loss)).collect::<Vec<_>>())
    }

    /// `None` if a loss was not finite.
    fn final_validation(&self) -> Option<f64> {
        let last = self.validation.last().filter(|loss| self.bleu().is_some() && loss.is_finite());
        last.map(|&loss| f64::from(loss))
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match (self.bleu(), self.final_validation()) {
            (Some(bleu), Some(validation)) => {
                let training = self.final_loss();
                write!(f, "BLEU {bleu:.1}, training loss {training:.3}, validation loss {validation:.3}")
            }
            _ => write!(f, "diverged at step {}", self.losses.len()),
        }
    }
}

/// A run in progress. The seed determines initial weights and minibatches.
struct Translation<'a> {
    backend: &'a Backend,
    task: &'a Task,
    arguments: &'a Arguments,
    seed: u64,
    device: Device,
    learner: Learner<Translator>,
    criterion: CrossEntropyLoss,
    rng: Xoshiro256PlusPlus,
    /// Pairs that are left of the current pass over the training set.
    order: Vec<&'a Example>,
    outcome: Outcome,
}

impl<'a> Translation<'a> {
    fn start(
        backend: &'a Backend,
        task: &'a Task,
        arguments: &'a Arguments,
        (method, seed, counts): (&Method, u64, bool),
        saved: Option<&Saved<Outcome>>,
    ) -> anyhow::Result<Self> {
        let device = backend.device().autodiff();
        let model = weights::draw(Translator::new(&task.sizes, &device), seed);
        let learner = match saved {
            None => Learner::new(model, method, backend, counts)?,
            Some(saved) => Learner::resume(model, method, backend, &saved.checkpoint, &saved.learner)?,
        };
        let mut run = Self {
            backend,
            task,
            arguments,
            seed,
            criterion: network::criterion(&device),
            device,
            learner,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            order: Vec::new(),
            outcome: saved.map(|saved| saved.progress.clone()).unwrap_or_default(),
        };
        for _ in 0..saved.map_or(0, |saved| saved.step) {
            run.next_examples();
        }
        Ok(run)
    }

    fn next_examples(&mut self) -> Vec<&'a Example> {
        let batch = self.arguments.batch as usize;
        if self.order.len() < batch {
            self.order = self.task.shuffled(&mut self.rng);
        }
        self.order.split_off(self.order.len() - batch)
    }
}

impl Training for Translation<'_> {
    type Outcome = Outcome;
    type Progress = Outcome;

    fn step(&mut self, step: u64) -> anyhow::Result<bool> {
        let examples = self.next_examples();
        if self.arguments.dropout > 0.0 {
            // The device draws its numbers. A seed of its own for each step lets a run continue anywhere.
            self.device.seed((self.seed << 32) + step);
        }
        let batch = Batch::new(&examples, &self.device);
        let loss = self.learner.step(|translator| translator.loss(&batch, &self.criterion))?;
        self.outcome.losses.push(loss);
        if loss.is_finite()
            && (step.is_multiple_of(self.arguments.interval()) || step == self.arguments.steps())
        {
            let translator = self.learner.model().valid();
            self.outcome.validation.push(validate(self.backend, &self.task.validation, &translator));
        }
        Ok(loss.is_finite())
    }

    fn save(&mut self) -> anyhow::Result<(Checkpoint, LearnerState, Outcome)> {
        let (checkpoint, learner) = self.learner.save()?;
        Ok((checkpoint, learner, self.outcome.clone()))
    }

    fn finish(mut self) -> anyhow::Result<Outcome> {
        if self.outcome.losses.iter().all(|loss| loss.is_finite()) {
            self.outcome.bleu = vec![test(self.backend, self.task, &self.learner.model().valid())];
        }
        self.outcome.rates = self.learner.windows()?;
        Ok(self.outcome)
    }
}

/// Losses of the runs in other formats, and of those with the steps of packages.
const FORMATS: &str = "formats.csv";
const PACKAGES: &str = "packages.csv";

/// Number of sentences that are evaluated at once.
const SENTENCES: usize = 200;

/// Mean loss per target token.
fn validate(backend: &Backend, validation: &[Example], translator: &Translator) -> f32 {
    let device = backend.device();
    let criterion = network::criterion(&device);
    let (mut sum, mut tokens) = (0.0, 0);
    for examples in validation.chunks(SENTENCES) {
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), &device);
        let count: usize = examples.iter().map(|example| example.target.len()).sum();
        sum += count as f32 * translator.loss(&batch, &criterion).into_scalar::<f32>();
        tokens += count;
    }
    sum / tokens as f32
}

/// BLEU of the test set's translations.
fn test(backend: &Backend, task: &Task, translator: &Translator) -> f64 {
    let device = backend.device();
    let mut translations = Vec::new();
    for examples in task.test.chunks(SENTENCES) {
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), &device);
        let longest = 2 * batch.source.dims()[1] + SPARE_TOKENS;
        let tokens = translator.translate(batch.source, longest.min(task.sizes.longest));
        translations.extend(tokens.iter().map(|tokens| task.tokenizer.decode(tokens)));
    }
    bleu::corpus_bleu(&translations, &task.references)
}

/// Trains everything, prints the tables and draws the pictures.
pub fn run(arguments: &Arguments, settings: &Settings) -> anyhow::Result<()> {
    arguments.check()?;
    let task = Task::new(arguments)?;
    let backend = arguments.common.backend()?;
    arguments.formats.check(&backend)?;
    let versions = arguments.formats.versions(&arguments.common)?;
    let settings = &settings.clone().with_packages(&versions);
    let mut report = arguments.common.report("translation", settings, &backend, &task.fingerprint())?;
    if let Some(collected) = &task.collected {
        report.say(collected)?;
    }
    let rates = arguments.learning_rates();
    let middle = rates[rates.len() / 2];
    let seeds = arguments.common.seeds();
    let data = format!(
        "{} training, {} validation and {} test pairs, {} tokens; Transformer of {}+{} layers, width {}, {} parameters; \
         {} seed(s), {} steps of {} sentences, warmup {} steps, beta3 {}",
        task.training.len(),
        task.validation.len(),
        task.test.len(),
        task.sizes.vocabulary,
        task.sizes.layers,
        task.sizes.layers,
        task.sizes.width,
        Translator::new(&task.sizes, &backend.device()).num_params(),
        seeds,
        arguments.steps(),
        arguments.batch,
        arguments.warmup(),
        arguments.beta3
    );
    report.say(&data)?;
    versions.into_iter().try_for_each(|(_, text)| report.say(text))?;

    let others = arguments.all_beta3().into_iter().filter(|beta3| *beta3 != arguments.beta3);
    let sweep: Vec<Method> = others.map(|beta3| arguments.methods(middle)[2].with_beta3(beta3)).collect();
    let [_, adam, adamod, _] = arguments.methods(middle);
    let low_bits = arguments.formats.methods(&adamod);
    let packages = arguments.formats.package_methods(&adam);
    let methods = 4 * rates.len() + sweep.len() + low_bits.len() + packages.len();
    let runs = arguments.common.runs("translation", &backend, methods, arguments.steps())?;
    let files = [("losses.csv", true), ("beta3.csv", true)].into_iter();
    let files = files.chain([(FORMATS, !low_bits.is_empty()), (PACKAGES, !packages.is_empty())]);
    let files: Vec<_> = files.filter_map(|(file, is_there)| is_there.then_some(file)).collect();
    let saved = arguments.common.saved(&files)?;
    let saved = saved.zip(arguments.common.saved(&["validation_losses.csv"])?);
    let cell = |method: &Method| {
        if let Some((losses, validation)) = &saved {
            let numbers = |series: Vec<f64>| series.into_iter().map(|loss| loss as f32).collect();
            return Cell::saved(&method.description(), method, seeds, |run| {
                Ok(Outcome {
                    losses: numbers(losses.series(run)?),
                    validation: numbers(validation.series(run)?),
                    ..Outcome::default()
                })
            });
        }
        runs.of(&method.description(), method, |method, seed, saved| {
            // At every learning rate, as another call may report another one. Other formats store rounded or debiased averages.
            let counts = seed == 0 && method.formats == Formats::default();
            Translation::start(&backend, &task, arguments, (method, seed, counts), saved)
        })
    };
    let cells = |methods: &[Method]| methods.iter().map(&cell).collect::<anyhow::Result<Vec<_>>>();
    let (grid, sweep, low_bits, packages) = runs.all(|| {
        let grid = rates.iter().map(|&rate| cells(&arguments.methods(rate)));
        let grid = grid.collect::<anyhow::Result<Vec<_>>>()?;
        Ok((grid, cells(&sweep)?, cells(&low_bits)?, cells(&packages)?))
    })?;
    if !arguments.common.close(&runs, &mut report)? {
        return Ok(());
    }

    let all = grid.iter().flatten().chain(&sweep).chain(&low_bits).chain(&packages);
    let losses: Vec<_> = all.flat_map(|cell| cell.named(|outcome| &outcome.validation[..])).collect();
    report.write_series("validation_losses.csv", "step", arguments.interval(), arguments.steps(), &losses)?;

    report_grid(&mut report, arguments, &rates, &grid)?;
    let cells = &grid[rates.len() / 2];
    // Histograms are in no file.
    if saved.is_none() {
        report_rates(&mut report, cells, middle)?;
    }
    let mut sweep: Vec<_> = sweep.iter().chain([&cells[2]]).collect();
    sweep.sort_by(|a, b| beta3(a).total_cmp(&beta3(b)));
    sweep.push(&cells[3]);
    report_beta3(&mut report, arguments, &sweep, &cells[0])?;
    report_formats(&mut report, arguments, (Difference::Formats, FORMATS), &cells[2], &low_bits)?;
    report_formats(&mut report, arguments, (Difference::Packages, PACKAGES), &cells[1], &packages)?;
    report.finish()
}

impl Cell<Outcome> {
    fn bleu(&self) -> String {
        self.summary(1, Outcome::bleu)
    }

    fn final_loss(&self) -> String {
        summary(&self.outcomes.iter().map(Outcome::final_loss).collect::<Vec<_>>(), 3)
    }

    fn final_validation(&self) -> String {
        self.summary(3, Outcome::final_validation)
    }
}

/// A point of a curve is the mean of some neighbours.
fn training_curve(arguments: &Arguments, outcome: &Outcome) -> Vec<f64> {
    smooth(&outcome.losses, arguments.smoothing() as usize)
}

fn validation_curve(_: &Arguments, outcome: &Outcome) -> Vec<f64> {
    outcome.validation.iter().map(|&loss| f64::from(loss)).collect()
}

fn axes(y: &'static str, x_step: u64, arguments: &Arguments) -> Axes {
    let (x_step, x_end) = (x_step as f64, arguments.steps() as f64);
    Axes { x: "step", y, x_step, x_end, logarithmic: true, y_range: None }
}

/// Table 2, and Figures 1a and 2 at every learning rate.
fn report_grid(
    report: &mut Report,
    arguments: &Arguments,
    rates: &[f64],
    grid: &[Vec<Cell<Outcome>>],
) -> anyhow::Result<()> {
    let columns: Vec<_> = rates.iter().map(|rate| format!("α = {}", rate_name(*rate))).collect();
    let table = |title: &str, text: fn(&Cell<Outcome>) -> String| Table {
        title: title.into(),
        columns: columns.clone(),
        rows: (0..grid[0].len())
            .map(|row| {
                let cells = grid.iter().map(|column| text(&column[row])).collect();
                (grid[0][row].method.name.into(), cells)
            })
            .collect(),
    };
    report.say(table("BLEU of the test sentences: median (mean ± standard deviation)", Cell::bleu))?;
    report.say(table("Training loss, mean of the last tenth of the steps", Cell::final_loss))?;
    report.say(table("Validation loss at the end", Cell::final_validation))?;

    let losses: Vec<_> =
        grid.iter().flatten().flat_map(|cell| cell.named(|outcome| &outcome.losses[..])).collect();
    report.write_series("losses.csv", "step", 1, arguments.steps(), &losses)?;

    let draw = |kind: &str, axes: &Axes, points: fn(&Arguments, &Outcome) -> Vec<f64>, file: &str| {
        let panel = |(cells, title): (&Vec<Cell<Outcome>>, &String)| Panel {
            title: title.clone(),
            series: (cells.iter().zip([ORANGE, GREEN, BLUE, PURPLE]))
                .map(|(cell, color)| {
                    cell.series(cell.method.name.into(), color, |outcome| points(arguments, outcome))
                })
                .collect(),
        };
        let panels: Vec<_> = grid.iter().zip(&columns).map(panel).collect();
        plots::curves(&report.path(file), &format!("{kind} loss of the Transformer"), axes, &panels)
    };
    draw("Training", &axes("training loss", arguments.smoothing(), arguments), training_curve, "loss.svg")?;
    let axes = axes("validation loss", arguments.interval(), arguments);
    draw("Validation", &axes, validation_curve, "validation_loss.svg")
}

/// Figures 1b, 1c and 3, and the number of extreme rates.
fn report_rates(report: &mut Report, cells: &[Cell<Outcome>], rate: f64) -> anyhow::Result<()> {
    /// The edge of a bin just above the paper's 10,000.
    const EXTREME: f64 = 16_384.0;
    let windows = |cell: &Cell<Outcome>| -> Vec<Window> {
        let all = cell.outcomes.iter().map(Outcome::windows);
        all.into_iter().find(|windows| !windows.is_empty()).unwrap_or_default()
    };
    let extreme = |window: &Window| {
        let bins = |counts: &[u64]| {
            let above = (0..counts.len()).filter(|&bin| RateHistograms::lower_edge(bin) >= EXTREME);
            above.map(|bin| counts[bin]).sum::<u64>() as f64 / counts.iter().sum::<u64>().max(1) as f64
        };
        format!("{:.2} %", 100.0 * bins(&window.bounded))
    };
    let longest = cells.iter().map(windows).max_by_key(Vec::len).unwrap_or_default();
    report.say(Table {
        title: format!(
            "Weights whose learning rate is above {EXTREME} at α = {}, by steps (seed 0)",
            rate_name(rate)
        ),
        columns: longest.iter().map(|window| format!("{}–{}", window.steps.0, window.steps.1)).collect(),
        rows: cells
            .iter()
            .map(|cell| (cell.method.name.into(), windows(cell).iter().map(extreme).collect()))
            .collect(),
    })?;
    let windows: Vec<_> = cells.iter().map(windows).collect();
    let panels: Vec<_> = (cells.iter().zip(&windows).zip([ORANGE, GREEN, BLUE, PURPLE]))
        .map(|((cell, windows), color)| Ridges {
            title: match cell.method.rule() {
                RuleKind::AdaMod => format!("{}: filled min(η, s), line η", cell.method.name),
                _ => format!("{}: η", cell.method.name),
            },
            color,
            windows,
        })
        .collect();
    let title = format!("Learning rates of the single weights over the steps, α = {}", rate_name(rate));
    plots::learning_rates(&report.path("learning_rates.svg"), &title, &panels)
}

/// AdaMod's beta3 in a cell of the sweep.
fn beta3(cell: &Cell<Outcome>) -> f64 {
    cell.method.beta3().unwrap_or(f64::NAN)
}

/// Figure 9.
fn report_beta3(
    report: &mut Report,
    arguments: &Arguments,
    sweep: &[&Cell<Outcome>],
    adam: &Cell<Outcome>,
) -> anyhow::Result<()> {
    let rate = adam.method.hyperparameters.learning_rate;
    report.say(Table {
        title: format!("AdaMod without warmup at α = {} with different beta3", rate_name(rate)),
        columns: sweep.iter().map(|cell| cell.method.beta3_name()).collect(),
        rows: vec![
            ("BLEU".into(), sweep.iter().map(|cell| cell.bleu()).collect()),
            ("training loss".into(), sweep.iter().map(|cell| cell.final_loss()).collect()),
        ],
    })?;
    let losses: Vec<_> = sweep.iter().flat_map(|cell| cell.named(|outcome| &outcome.losses[..])).collect();
    report.write_series("beta3.csv", "step", 1, arguments.steps(), &losses)?;
    let points = |outcome: &Outcome| training_curve(arguments, outcome);
    let mut series: Vec<_> = (sweep.iter().zip(SCALE.iter().cycle()))
        .map(|(cell, color)| {
            let color = if cell.method.growth.is_some() { PURPLE } else { *color };
            cell.series(cell.method.beta3_name(), color, points)
        })
        .collect();
    series.push(adam.series("Adam without warmup".into(), ORANGE, points));
    let panels = [Panel { title: format!("α = {}", rate_name(rate)), series }];
    let axes = axes("training loss", arguments.smoothing(), arguments);
    plots::curves(&report.path("beta3.svg"), "Training loss with different beta3", &axes, &panels)
}

/// A method in f32, with fewer bits, and with the steps of packages.
fn report_formats(
    report: &mut Report,
    arguments: &Arguments,
    (difference, file): (Difference, &str),
    whole: &Cell<Outcome>,
    others: &[Cell<Outcome>],
) -> anyhow::Result<()> {
    let Method { name, hyperparameters, .. } = &whole.method;
    let rate = rate_name(hyperparameters.learning_rate);
    let comparison = Comparison {
        difference,
        subject: format!("{name} at α = {rate}"),
        axes: &axes("training loss", arguments.smoothing(), arguments),
        points: &|outcome| training_curve(arguments, outcome),
        rows: &[
            ("BLEU", Cell::bleu),
            ("training loss", Cell::final_loss),
            ("validation loss", Cell::final_validation),
        ],
    };
    comparison.report(report, whole, others)?;
    if others.is_empty() {
        return Ok(());
    }
    let cells = [whole].into_iter().chain(others);
    let losses: Vec<_> = cells.flat_map(|cell| cell.named(|outcome| &outcome.losses[..])).collect();
    report.write_series(file, "step", 1, arguments.steps(), &losses)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rand::RngExt;

    use super::*;
    use crate::common::test_backends;
    use crate::runs::assert_resumes;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &str) -> Arguments {
        Line::parse_from(["experiments"].into_iter().chain(line.split_whitespace())).arguments
    }

    fn task(line: &str) -> Task {
        Task::new(&arguments(line)).unwrap()
    }

    #[test]
    fn validation_pairs_are_not_trained_on_and_hardly_change_the_order() {
        let task =
            |validation| task(&format!("--sentences=300 --merges=0 --validation-sentences={validation}"));
        let (few, many) = (task(1), task(40));
        let order = |task: &Task| -> Vec<String> {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
            let order = task.shuffled(&mut rng);
            // Later draws do not depend on the number of pairs either.
            let next = std::iter::once(rng.random::<u64>().to_string());
            order.into_iter().map(|example| task.tokenizer.decode(&example.target)).chain(next).collect()
        };
        let held_out: Vec<_> =
            many.validation.iter().map(|example| many.tokenizer.decode(&example.target)).collect();
        let mut expected = order(&few);
        assert_eq!(expected.len(), 300 - 50 - 1 + 1);
        expected.retain(|sentence| !held_out.contains(sentence));
        assert_eq!(order(&many), expected);
    }

    #[test]
    fn the_validation_loss_is_the_mean_of_all_tokens_without_dropout() {
        let backend = &test_backends()[0];
        let sizes = "--layers=1 --width=8 --heads=2 --feed-forward=8 --dropout=0.5";
        let task = task(&format!("--sentences=600 --validation-sentences=203 {sizes}"));
        let translator = weights::draw(Translator::new(&task.sizes, &backend.device().autodiff()), 1).valid();
        let loss = |examples: &[Example]| validate(backend, examples, &translator);
        let tokens =
            |examples: &[Example]| examples.iter().map(|example| example.target.len()).sum::<usize>() as f32;
        let parts = task.validation.chunks(30).map(|part| tokens(part) * loss(part)).sum::<f32>();
        let (found, expected) = (loss(&task.validation), parts / tokens(&task.validation));
        assert!((found - expected).abs() < 1e-4 * expected, "{found}, expected {expected}");
        // The loss of untrained weights is about that of guessing.
        let guessing = (task.sizes.vocabulary as f32).ln();
        assert!((0.7 * guessing..2.0 * guessing).contains(&found), "{found}, guessing {guessing}");
    }

    #[test]
    fn a_run_is_validated_about_twenty_times() {
        let interval = |steps: u64| arguments(&format!("--steps={steps}")).interval();
        assert_eq!([1, 8, 20, 39, 200, 1_999].map(interval), [1, 1, 1, 1, 10, 99]);
    }

    #[test]
    fn short_runs_have_several_points() {
        let points = |steps: u64| steps.div_ceil(arguments(&format!("--steps={steps}")).smoothing());
        assert_eq!([1, 8, 20, 39, 200, 2_000].map(points), [1, 8, 20, 39, 20, 200]);
        let quick = arguments("--quick");
        assert!(quick.steps() / quick.smoothing() >= 8);
    }

    #[test]
    fn only_whole_runs_have_a_final_validation_loss() {
        let outcome = |bleu: Option<f64>, validation: &[f32]| Outcome {
            losses: vec![1.0; 3],
            validation: validation.to_vec(),
            bleu: bleu.into_iter().collect(),
            rates: Vec::new(),
        };
        assert_eq!(outcome(Some(1.0), &[3.0, 2.0]).final_validation(), Some(2.0));
        assert_eq!(outcome(Some(1.0), &[3.0, f32::NAN]).final_validation(), None);
        assert_eq!(outcome(None, &[3.0]).final_validation(), None);
    }

    #[test]
    fn a_translation_has_the_same_outcome_wherever_it_is_broken() {
        // Less than a pass over the training pairs, and more than one.
        let sizes = "--layers=1 --width=8 --heads=2 --feed-forward=8 --merges=0 --batch=4";
        let [cpu, gpu] = test_backends();
        for (backend, steps) in [(&cpu, 5), (&gpu, 3)] {
            let line =
                format!("--sentences=16 --test-sentences=3 --validation-sentences=2 {sizes} --steps={steps}");
            let (arguments, task) = (arguments(&line), task(&line));
            let [_, _, adamod, _] = arguments.methods(0.01);
            assert_resumes(steps, |saved| {
                Translation::start(backend, &task, &arguments, (&adamod, 1, true), saved)
            });
        }
    }
}

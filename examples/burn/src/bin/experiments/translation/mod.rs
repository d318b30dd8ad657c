//! Neural machine translation: the paper's Figures 1, 2, 3 and 9 and its Table 2.

mod bleu;
mod corpus;
mod network;

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use adamod::{Hyperparameters, LearningRates, Rule, WeightDecay};
use adamod_burn::Gpu;
use anyhow::ensure;
use burn::module::Module;
use burn::tensor::DeviceKind;
use clap::Args;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use crate::common::{Common, or_default};
use crate::learner::Learner;
use crate::method::{Method, Schedule, parse_beta};
use crate::plots::{self, Axes, BLUE, GREEN, ORANGE, Panel, SCALE, Series};
use crate::rates::{distinct, parse_rate, rate_name};
use crate::report::{Report, Table};
use crate::ridges::{Ridges, Window};
use crate::runs::{Cell, Runs};
use crate::statistics::mean;
use crate::summary::{smooth, summary};
use crate::weights;

use crate::tokenizer::{END, Tokenizer};
use corpus::{Corpus, Pair};
use network::{Batch, Example, Sizes, Translator};

/// Steps that a point of a curve is the mean of.
const SMOOTHING: usize = 10;
/// Tokens that a translation may have more than twice its source.
const SPARE_TOKENS: usize = 10;

/// A Transformer learns to translate: Adam without and with warmup, AdaMod without
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,

    /// Source sentences, one a line [default: German number words]
    #[arg(long, requires = "target")]
    source: Option<PathBuf>,

    /// Their translations, one a line [default: English number words]
    #[arg(long, requires = "source")]
    target: Option<PathBuf>,

    /// Pairs of number words, where no files are given
    #[arg(long, default_value_t = 12_000)]
    sentences: usize,

    /// Pairs that are only tested on
    #[arg(long, default_value_t = 50)]
    test_sentences: usize,

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
}

impl Arguments {
    fn steps(&self) -> u64 {
        self.steps.unwrap_or(if self.common.quick { 8 } else { 200 })
    }

    fn warmup(&self) -> u64 {
        self.warmup.unwrap_or(self.steps() / 3)
    }

    /// In ascending order, each once.
    fn learning_rates(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.03] } else { &[0.01, 0.03] };
        or_default(&self.learning_rates, default)
    }

    /// In ascending order, each once; the main one is among them.
    fn all_beta3(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.9] } else { &[0.9, 0.99, 0.9999] };
        let others = or_default(&self.other_beta3, default);
        distinct(&[&others[..], &[self.beta3]].concat())
    }

    /// Adam without warmup, Adam with it, AdaMod without.
    fn methods(&self, learning_rate: f64) -> [Method; 3] {
        // Betas and epsilon of Vaswani et al., weight decay of the paper.
        let hyperparameters = Hyperparameters {
            learning_rate,
            betas: [0.9, 0.98, self.beta3],
            epsilon: 1e-9,
            weight_decay: WeightDecay::Decoupled(1e-4),
            ..Hyperparameters::default()
        };
        let method = |name, rule, schedule| Method { name, rule, hyperparameters, schedule };
        [
            method("Adam without warmup", Rule::Adam, Schedule::Constant),
            method("Adam with warmup", Rule::Adam, Schedule::Warmup(self.warmup())),
            method("AdaMod without warmup", Rule::AdaMod, Schedule::Constant),
        ]
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.width.is_multiple_of(self.heads) && self.width.is_multiple_of(2),
            "width {}, heads {}: needed is an even width that the heads divide",
            self.width,
            self.heads
        );
        ensure!((0.0..1.0).contains(&self.dropout), "dropout {}: needed is a number in [0, 1)", self.dropout);
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
    test: Vec<Example>,
    /// Translations of the test sentences.
    references: Vec<String>,
    sizes: Sizes,
}

impl Task {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let corpus = match (&arguments.source, &arguments.target) {
            (Some(source), Some(target)) => Corpus::read(source, target, arguments.test_sentences)?,
            _ => Corpus::number_words(arguments.sentences, arguments.test_sentences)?,
        };
        let text = corpus.training.iter().flat_map(|pair| [pair.source.as_str(), pair.target.as_str()]);
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
        let (test, references): (Vec<_>, Vec<_>) = examples(&corpus.test).into_iter().unzip();
        ensure!(
            training.len() >= arguments.batch as usize && !test.is_empty(),
            "{} training and {} test pairs of at most {longest} tokens: needed are a minibatch of {} and one test pair",
            training.len(),
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
        Ok(Self { tokenizer, training, test, references, sizes })
    }
}

/// What a run came to.
struct Outcome {
    /// One a step; the last may not be finite, and then it is the last.
    losses: Vec<f32>,
    /// Of the test set; none if the loss was not finite in the end.
    bleu: Option<f64>,
    windows: Vec<Window>,
}

impl Outcome {
    /// Mean training loss of the last tenth of the steps.
    fn final_loss(&self) -> f64 {
        let last = self.losses.len().saturating_sub(self.losses.len().div_ceil(10));
        mean(&self.losses[last..].iter().map(|&loss| f64::from(loss)).collect::<Vec<_>>())
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self.bleu {
            Some(bleu) => write!(f, "BLEU {bleu:.1}, training loss {:.3}", self.final_loss()),
            None => write!(f, "diverged at step {}", self.losses.len()),
        }
    }
}

/// Trains from weights and with minibatches that the seed decides.
fn train(
    gpu: &Gpu,
    task: &Task,
    method: &Method,
    seed: u64,
    arguments: &Arguments,
    counts: bool,
    runs: &Runs,
) -> anyhow::Result<Outcome> {
    let device = gpu.device().autodiff();
    // Dropout draws on the device.
    device.seed(seed);
    let model = weights::draw(Translator::new(&task.sizes, &device), seed);
    let mut learner =
        if counts { Learner::counting(model, method, gpu)? } else { Learner::new(model, method, gpu)? };
    let criterion = network::criterion(&device);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut order: Vec<&Example> = Vec::new();
    let mut losses = Vec::new();
    for _ in 0..arguments.steps() {
        if order.len() < arguments.batch as usize {
            order = task.training.iter().collect();
            order.shuffle(&mut rng);
        }
        let examples = order.split_off(order.len() - arguments.batch as usize);
        let batch = Batch::new(&examples, &device);
        losses.push(learner.step(|translator| translator.loss(&batch, &criterion))?);
        runs.step();
        if losses.last().is_some_and(|loss| !loss.is_finite()) {
            runs.skip(arguments.steps() - losses.len() as u64);
            return Ok(Outcome { losses, bleu: None, windows: learner.into_windows()? });
        }
    }
    let bleu = test(gpu, task, &learner.model().valid());
    Ok(Outcome { losses, bleu: Some(bleu), windows: learner.into_windows()? })
}

/// BLEU of the test set's translations.
fn test(gpu: &Gpu, task: &Task, translator: &Translator) -> f64 {
    const SENTENCES: usize = 200;
    let device = gpu.device();
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
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    arguments.check()?;
    let gpu = Gpu::open(DeviceKind::DefaultDevice)?;
    let mut report = arguments.common.report(&gpu, "translation")?;
    let task = Task::new(arguments)?;
    let rates = arguments.learning_rates();
    let middle = rates[rates.len() / 2];
    let seeds = arguments.common.seeds();
    report.say(format!(
        "{} training and {} test pairs, {} tokens; Transformer of {}+{} layers, width {}, {} parameters; {} seed(s), {} steps of {} \
         sentences, warmup {} steps, beta3 {}",
        task.training.len(),
        task.test.len(),
        task.sizes.vocabulary,
        task.sizes.layers,
        task.sizes.layers,
        task.sizes.width,
        Translator::new(&task.sizes, &gpu.device()).num_params(),
        seeds,
        arguments.steps(),
        arguments.batch,
        arguments.warmup(),
        arguments.beta3
    ))?;

    let others = arguments.all_beta3().into_iter().filter(|beta3| *beta3 != arguments.beta3);
    let sweep: Vec<Method> = others
        .map(|beta3| arguments.methods(middle)[2].with(|hyperparameters| hyperparameters.betas[2] = beta3))
        .collect();
    let runs = Runs::new(3 * rates.len() + sweep.len(), seeds, arguments.steps());
    let cell = |method: &Method| {
        let counts = |seed| seed == 0 && method.hyperparameters.learning_rate == middle;
        runs.of(&method.description(), method, |seed| {
            train(&gpu, &task, method, seed, arguments, counts(seed), &runs)
        })
    };
    let mut grid = Vec::new();
    for &rate in &rates {
        grid.push(arguments.methods(rate).iter().map(&cell).collect::<anyhow::Result<Vec<_>>>()?);
    }
    let mut sweep = sweep.iter().map(cell).collect::<anyhow::Result<Vec<_>>>()?;
    runs.finish();

    report_grid(&mut report, &rates, &grid)?;
    let cells = &grid[rates.len() / 2];
    report_rates(&mut report, cells, middle)?;
    sweep.push(Cell { method: cells[2].method.clone(), outcomes: Vec::new() });
    sweep.sort_by(|a, b| a.method.hyperparameters.betas[2].total_cmp(&b.method.hyperparameters.betas[2]));
    let sweep: Vec<&Cell<Outcome>> =
        sweep.iter().map(|cell| if cell.outcomes.is_empty() { &cells[2] } else { cell }).collect();
    report_beta3(&mut report, &sweep, &cells[0], middle)?;
    report.finish()
}

impl Cell<Outcome> {
    fn bleu(&self) -> String {
        self.summary(1, |outcome| outcome.bleu)
    }

    fn final_loss(&self) -> String {
        summary(&self.outcomes.iter().map(Outcome::final_loss).collect::<Vec<_>>(), 3)
    }

    fn series(&self, name: String, color: plotters::style::RGBColor) -> Series {
        let runs = self.outcomes.iter().map(|outcome| smooth(&outcome.losses, SMOOTHING)).collect();
        Series { name, color, runs }
    }

    fn named_losses(&self) -> impl Iterator<Item = (String, &[f32])> {
        let Hyperparameters { learning_rate, betas, .. } = self.method.hyperparameters;
        let name = move |seed| {
            format!("{} alpha {} beta3 {} seed {seed}", self.method.name, rate_name(learning_rate), betas[2])
        };
        self.outcomes.iter().enumerate().map(move |(seed, outcome)| (name(seed), outcome.losses.as_slice()))
    }
}

fn loss_axes() -> Axes {
    Axes { x: "step", y: "training loss", x_step: SMOOTHING as f64, logarithmic: true, y_range: None }
}

/// Table 2, and Figures 1a and 2a at every learning rate.
fn report_grid(report: &mut Report, rates: &[f64], grid: &[Vec<Cell<Outcome>>]) -> anyhow::Result<()> {
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
    let losses: Vec<_> = grid.iter().flatten().flat_map(Cell::named_losses).collect();
    report.write_series("losses.csv", &losses)?;
    let panels: Vec<_> = (grid.iter().zip(columns))
        .map(|(cells, title)| {
            let colored = cells.iter().zip([ORANGE, GREEN, BLUE]);
            let series = colored.map(|(cell, color)| cell.series(cell.method.name.into(), color)).collect();
            Panel { title, series }
        })
        .collect();
    plots::curves(&report.path("loss.svg"), "Training loss of the Transformer", &loss_axes(), &panels)
}

/// Figures 1b, 1c and 3, and how many rates are extreme.
fn report_rates(report: &mut Report, cells: &[Cell<Outcome>], rate: f64) -> anyhow::Result<()> {
    /// The edge of a bin just above the paper's 10,000.
    const EXTREME: f64 = 16_384.0;
    let windows = |cell: &Cell<Outcome>| cell.outcomes[0].windows.clone();
    let extreme = |window: &Window| {
        let bins = |counts: &[u64]| {
            let above = (0..counts.len()).filter(|&bin| LearningRates::lower_edge(bin) >= EXTREME);
            above.map(|bin| counts[bin]).sum::<u64>() as f64 / counts.iter().sum::<u64>().max(1) as f64
        };
        format!("{:.2} %", 100.0 * bins(&window.rates.bounded))
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
    let panels: Vec<_> = (cells.iter().zip([ORANGE, GREEN, BLUE]))
        .map(|(cell, color)| Ridges {
            title: match cell.method.rule {
                Rule::AdaMod => "AdaMod: filled min(η, s), line η".into(),
                _ => format!("{}: η", cell.method.name),
            },
            color,
            windows: &cell.outcomes[0].windows,
        })
        .collect();
    let title = format!("Learning rates of the single weights over the steps, α = {}", rate_name(rate));
    plots::learning_rates(&report.path("learning_rates.svg"), &title, &panels)
}

/// Figure 9.
fn report_beta3(
    report: &mut Report,
    sweep: &[&Cell<Outcome>],
    adam: &Cell<Outcome>,
    rate: f64,
) -> anyhow::Result<()> {
    let beta3 = |cell: &Cell<Outcome>| cell.method.hyperparameters.betas[2];
    report.say(Table {
        title: format!("AdaMod without warmup at α = {} with different beta3", rate_name(rate)),
        columns: sweep.iter().map(|cell| format!("beta3 = {}", beta3(cell))).collect(),
        rows: vec![
            ("BLEU".into(), sweep.iter().map(|cell| cell.bleu()).collect()),
            ("training loss".into(), sweep.iter().map(|cell| cell.final_loss()).collect()),
        ],
    })?;
    let losses: Vec<_> = sweep.iter().flat_map(|cell| cell.named_losses()).collect();
    report.write_series("beta3.csv", &losses)?;
    let mut series: Vec<_> = (sweep.iter().zip(SCALE.iter().cycle()))
        .map(|(cell, color)| cell.series(format!("beta3 = {}", beta3(cell)), *color))
        .collect();
    series.push(adam.series("Adam without warmup".into(), ORANGE));
    let panels = [Panel { title: format!("α = {}", rate_name(rate)), series }];
    plots::curves(&report.path("beta3.svg"), "Training loss with different beta3", &loss_axes(), &panels)
}

//! Language modelling: the paper's Figure 7 and its Table 5.

mod network;
mod text;

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use adamod::{AdaMod, Adam, Hyperparameters, Rule, WeightDecay};
use adamod_burn::Gpu;
use anyhow::ensure;
use burn::module::Module;
use burn::tensor::DeviceKind;
use clap::Args;

use crate::common::{Common, or_default};
use crate::learner::Learner;
use crate::method::{Method, Schedule, parse_beta};
use crate::plots::{self, Axes, BLUE, ORANGE, Panel, Series};
use crate::rates::{parse_rate, rate_name};
use crate::report::{Report, Table};
use crate::runs::{Cell, Run, Runs};
use crate::statistics::mean;
use crate::weights;

use network::{LanguageModel, Sequences, Sizes, State};
use text::Text;

/// An LSTM learns a text with Adam and AdaMod
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,

    /// A text file [default: English number words]
    #[arg(long)]
    text: Option<PathBuf>,

    /// Lines of number words, if no file is given
    #[arg(long, default_value_t = 3_000)]
    lines: usize,

    /// Lines at the end that are only for testing
    #[arg(long, default_value_t = 20)]
    test_lines: usize,

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
}

impl Arguments {
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
        [("Adam", Rule::from(Adam::new())), ("AdaMod", adamod.into())].map(|(name, rule)| Method {
            name,
            // The paper decays the weights of all adaptive methods, but gives no value here. This one is from Merity et al. 2018.
            hyperparameters: Hyperparameters::from(rule)
                .with_learning_rate(learning_rate)
                .with_weight_decay(WeightDecay::Decoupled(1.2e-6)),
            schedule: Schedule::StepDecay(if milestone > 0 { vec![milestone] } else { Vec::new() }),
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
    fn test(&self, gpu: &Gpu, model: &LanguageModel) -> f64 {
        let device = gpu.device();
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
#[derive(Default)]
struct Outcome {
    training: Vec<f64>,
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

/// Trains from weights that the seed determines. The text has one order.
fn train(gpu: &Gpu, task: &Task, arguments: &Arguments, run: &Run<'_>) -> anyhow::Result<Outcome> {
    let device = gpu.device().autodiff();
    let model = weights::draw(LanguageModel::new(&task.sizes, &device), run.seed);
    let mut learner = Learner::new(model, run.method, gpu)?;
    let criterion = network::criterion(&device);
    let windows = task.training.windows(task.window);
    // Every seed starts at another place in the text.
    let first = run.seed as usize * windows / arguments.common.seeds() as usize;
    let mut state = State::default();
    let mut losses = Vec::new();
    let mut outcome = Outcome::default();
    for step in 1..=arguments.steps() {
        let index = (first + step as usize - 1) % windows;
        if index == 0 {
            state = State::default();
        }
        let window = task.training.window(index, task.window, &device);
        let mut next = State::default();
        let loss = learner.step(|model| {
            let (loss, state) = model.loss(&window, state, &criterion);
            next = state.detach();
            loss
        })?;
        state = next;
        run.step();
        losses.push(f64::from(loss));
        if !loss.is_finite() {
            run.skip(arguments.steps() - step);
            outcome.diverged = true;
            return Ok(outcome);
        }
        if step % arguments.interval() == 0 || step == arguments.steps() {
            outcome.training.push(mean(&std::mem::take(&mut losses)).exp());
            outcome.test.push(task.test(gpu, &learner.model().valid()));
        }
    }
    Ok(outcome)
}

impl Cell<Outcome> {
    fn text(&self, of: fn(&Outcome) -> &Vec<f64>) -> String {
        self.summary(3, |outcome| of(outcome).last().copied().filter(|_| !outcome.diverged))
    }
}

/// Trains everything, prints the tables and draws the pictures.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rates = arguments.learning_rates();
    for method in rates.iter().flat_map(|&rate| arguments.methods(rate)) {
        method.hyperparameters.validate()?;
    }
    let gpu = Gpu::open(DeviceKind::DefaultDevice)?;
    let mut report = arguments.common.report(&gpu, "language-model")?;
    let text = match &arguments.text {
        Some(path) => Text::read(path, arguments.test_lines, arguments.merges)?,
        None => Text::number_words(arguments.lines, arguments.test_lines, arguments.merges)?,
    };
    let task = Task::new(&text, arguments)?;
    let seeds = arguments.common.seeds();
    report.say(format!(
        "{} training and {} test tokens, {} different; LSTM of {} layers of {} units, {} parameters; {seeds} seed(s), {} steps of \
         {} x {} tokens, beta3 {}",
        text.training.len(),
        text.test.len(),
        text.vocabulary,
        task.sizes.layers,
        task.sizes.hidden,
        LanguageModel::new(&task.sizes, &gpu.device()).num_params(),
        arguments.steps(),
        arguments.batch,
        arguments.window,
        arguments.beta3
    ))?;

    let runs = Runs::new(2 * rates.len(), seeds, arguments.steps());
    let saved = arguments.common.saved(&["training.csv"])?.zip(arguments.common.saved(&["test.csv"])?);
    let cell = |method: &Method| match &saved {
        Some((training, test)) => Cell::saved(&method.description(), method, seeds, |run| {
            Ok(Outcome { training: training.series(run)?, test: test.series(run)?, diverged: false })
        }),
        None => runs.of(&method.description(), method, |run| train(&gpu, &task, arguments, run)),
    };
    let mut grid = Vec::new();
    for &rate in &rates {
        grid.push(arguments.methods(rate).iter().map(cell).collect::<anyhow::Result<Vec<_>>>()?);
    }
    runs.finish();
    report_perplexity(&mut report, arguments, &grid)?;
    if let Some(least) = text.least_perplexity {
        report.say(format!("No model can have a test perplexity below {least:.3} on average."))?;
    }
    report.finish()
}

/// Table 5 and Figure 7 at every learning rate.
fn report_perplexity(
    report: &mut Report,
    arguments: &Arguments,
    grid: &[Vec<Cell<Outcome>>],
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
                let series = cells.iter().zip([ORANGE, BLUE]).map(|(cell, color)| Series {
                    name: cell.method.name.into(),
                    color,
                    runs: cell.outcomes.iter().map(|outcome| of(outcome).clone()).collect(),
                });
                Panel { title: name(&cells[0]), series: series.collect() }
            })
            .collect();
        let (x_step, x_end) = (arguments.interval() as f64, arguments.steps() as f64);
        let axes = Axes { x: "step", y: "perplexity", x_step, x_end, logarithmic: true, y_range: None };
        let title = format!("Perplexity of the LSTM in {kind}");
        plots::curves(&report.path(&format!("{kind}.svg")), &title, &axes, &panels)?;
    }
    Ok(())
}

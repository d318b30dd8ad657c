//! Image classification: the paper's Figures 4, 5, 6 and 8 and its Tables 3 and 4, on handwritten digits or images from files.

mod dataset;
mod network;

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use adamod::{AdaMod, Adam, Checkpoint, Hyperparameters, Rule, Sgd, WeightDecay};
use anyhow::ensure;
use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::tensor::{Device, Tensor};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::common::{Common, each_once, or_default};
use crate::data::images::Shape;
use crate::digits::TRAINING_IMAGES;
use crate::formats::{Comparison, Difference, FormatArguments};
use crate::learner::{Learner, LearnerState};
use crate::method::{GrowthArguments, Method, Schedule, parse_beta};
use crate::minibatches::{minibatches, steps_per_epoch};
use crate::numbers;
use crate::plots::{self, Axes, BLUE, GREY, ORANGE, PURPLE, Panel, SCALE};
use crate::rates::{parse_rate, rate_name};
use crate::report::{Report, Table};
use crate::runs::{Cell, Training};
use crate::settings::Settings;
use crate::statistics::{extent, mean};
use crate::store::Saved;
use crate::summary::summary;
use crate::weights;

use dataset::{Batch, Dataset};
use network::{DenseNet, Network, ResNet, Sizes};

/// AdaMod's other values of beta3 and its learning rate in the paper's Figure 8.
const BETA3_LEARNING_RATE: f64 = 0.001;
/// Tests in a run of one epoch.
const PARTS_OF_AN_EPOCH: u64 = 5;

/// A small ResNet and a small DenseNet learn images with SGD, Adam and AdaMod
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,

    /// A folder with the files of CIFAR-10 or CIFAR-100 (binary version), or of MNIST or Fashion-MNIST [default: digits of 8 x 8 pixels]
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,

    /// Train on the first N images of the folder [default: all]
    #[arg(long, value_name = "N", requires = "images", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    training_images: Option<u64>,

    /// Channels after the first convolution of a network; the ResNet's last stage has four times as many
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=1_024))]
    channels: u64,

    /// Images for training, once they are read.
    #[arg(skip = TRAINING_IMAGES)]
    images_for_training: usize,

    /// Networks, comma-separated
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Architecture::ResNet, Architecture::DenseNet])]
    networks: Vec<Architecture>,

    /// Learning rates alpha, comma-separated, the same for all rules [default: the paper's 0.001,0.01,0.1; with --quick 0.01]
    #[arg(long, value_delimiter = ',', value_parser = parse_rate)]
    learning_rates: Vec<f64>,

    /// AdaMod's beta3
    #[arg(long, default_value_t = 0.99, value_parser = parse_beta)]
    beta3: f64,

    /// Other values of beta3, tried with the first network at alpha 0.001 [default: 0.9,0.99,0.999,0.9999; with --quick 0.9]
    #[arg(long, value_delimiter = ',', value_parser = parse_beta)]
    other_beta3: Vec<f64>,

    /// Leave the comparison of beta3 out
    #[arg(long, conflicts_with_all = ["other_beta3", "growing_start", "growing_fraction", "growing_beta3"])]
    no_other_beta3: bool,

    /// Passes over the training set [default: 5, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: Option<u64>,

    /// Images in a minibatch
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,

    #[command(flatten)]
    growth: GrowthArguments,

    #[command(flatten)]
    formats: FormatArguments,
}

/// The architecture of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Architecture {
    #[value(name = "resnet")]
    ResNet,
    #[value(name = "densenet")]
    DenseNet,
}

impl Architecture {
    fn name(self) -> &'static str {
        match self {
            Architecture::ResNet => "ResNet",
            Architecture::DenseNet => "DenseNet",
        }
    }

    fn build(self, sizes: Sizes, device: &Device) -> Network {
        match self {
            Architecture::ResNet => Network::ResNet(ResNet::new(sizes, device)),
            Architecture::DenseNet => Network::DenseNet(DenseNet::new(sizes, device)),
        }
    }
}

impl Arguments {
    fn epochs(&self) -> u64 {
        self.epochs.unwrap_or(if self.common.quick { 1 } else { 5 })
    }

    fn dataset(&self) -> anyhow::Result<Dataset> {
        let count = self.training_images.map(|count| count as usize);
        let dataset =
            self.images.as_ref().map_or_else(Dataset::digits, |folder| Dataset::read(folder, count))?;
        let images = dataset.training.labels.len();
        ensure!(
            self.batch as usize <= images,
            "minibatches of {} images: there are {images} for training",
            self.batch
        );
        Ok(dataset)
    }

    fn sizes(&self, dataset: &Dataset) -> Sizes {
        let Dataset { shape, classes, .. } = *dataset;
        Sizes { inputs: shape.channels, classes, channels: self.channels as usize }
    }

    fn steps_per_epoch(&self) -> u64 {
        steps_per_epoch(self.images_for_training, self.batch as usize) as u64
    }

    fn steps(&self) -> u64 {
        self.epochs() * self.steps_per_epoch()
    }

    /// Steps between two tests: an epoch, or a part of it in a run of one epoch.
    fn interval(&self) -> u64 {
        let epoch = self.steps_per_epoch();
        if self.epochs() > 1 { epoch } else { epoch.div_ceil(PARTS_OF_AN_EPOCH) }
    }

    /// The unit of the x axis, its distance between two tests, and its last value.
    fn x_axis(&self) -> (&'static str, u64, u64) {
        if self.epochs() > 1 { ("epoch", 1, self.epochs()) } else { ("step", self.interval(), self.steps()) }
    }

    fn learning_rates(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.01] } else { &[0.001, 0.01, 0.1] };
        or_default(&self.learning_rates, default)
    }

    fn other_beta3(&self) -> Vec<f64> {
        let default: &[f64] = if self.common.quick { &[0.9] } else { &[0.9, 0.99, 0.999, 0.9999] };
        or_default(&self.other_beta3, default)
    }

    /// SGD with momentum, Adam and AdaMod. The learning rate is divided by 10 after three quarters of the epochs.
    fn methods(&self, learning_rate: f64) -> [Method; 3] {
        const WEIGHT_DECAY: f64 = 5e-4;
        let milestone = 3 * self.epochs() / 4 * self.steps_per_epoch();
        let method = |name, rule: Rule, weight_decay| {
            let hyperparameters =
                Hyperparameters::from(rule).with_learning_rate(learning_rate).with_weight_decay(weight_decay);
            let schedule = Schedule::StepDecay(if milestone > 0 { vec![milestone] } else { Vec::new() });
            Method::new(name, hyperparameters, schedule)
        };
        let adamod = AdaMod::new().with_betas([0.9, 0.999, self.beta3]);
        [
            method("SGDM", Sgd::new().into(), WeightDecay::Coupled(WEIGHT_DECAY)),
            method("Adam", Adam::new().into(), WeightDecay::Decoupled(WEIGHT_DECAY)),
            method("AdaMod", adamod.into(), WeightDecay::Decoupled(WEIGHT_DECAY)),
        ]
    }

    /// AdaMod with different beta3.
    fn sweep(&self) -> Vec<Method> {
        if self.no_other_beta3 {
            return Vec::new();
        }
        let [.., adamod] = self.methods(BETA3_LEARNING_RATE);
        let growing = self.growth.method(&adamod, "AdaMod, growing beta3");
        let others = self.other_beta3().into_iter().map(|beta3| adamod.with_beta3(beta3));
        others.chain([growing]).collect()
    }
}

impl Batch {
    fn loss(&self, network: &Network, criterion: &CrossEntropyLoss) -> Tensor<1> {
        criterion.forward(network.forward(self.images.clone()), self.labels.clone())
    }

    /// How many images get the right label.
    fn right(&self, network: &Network) -> i32 {
        let [images] = self.labels.dims();
        let found = network.forward(self.images.clone()).argmax(1).reshape([images]);
        found.equal(self.labels.clone()).int().sum().into_scalar::<i32>()
    }
}

/// Percentage of the images with the right label.
fn accuracy(batches: &[Batch], network: &Network) -> f64 {
    let images: usize = batches.iter().map(|batch| batch.labels.dims()[0]).sum();
    100.0 * f64::from(batches.iter().map(|batch| batch.right(network)).sum::<i32>()) / images as f64
}

/// The results of a run: accuracies in percent after every epoch, or part of the only one. A diverged run guesses from then on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Outcome {
    #[serde(with = "numbers")]
    training: Vec<f64>,
    #[serde(with = "numbers")]
    test: Vec<f64>,
    /// Of the last minibatch.
    #[serde(with = "numbers::one")]
    loss: f32,
}

impl Outcome {
    fn diverged(&self) -> bool {
        !self.loss.is_finite()
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let last = |accuracies: &[f64]| accuracies.last().copied().unwrap_or(f64::NAN);
        write!(
            f,
            "accuracy {:.2} % in test, {:.2} % in training, training loss {:.3}",
            last(&self.test),
            last(&self.training),
            self.loss
        )
    }
}

/// A run in progress. The seed determines initial weights and minibatches.
struct Classification<'a> {
    dataset: &'a Dataset,
    arguments: &'a Arguments,
    device: Device,
    /// As many training images as test images suffice.
    seen: Vec<Batch>,
    unseen: Vec<Batch>,
    learner: Learner<Network>,
    criterion: CrossEntropyLoss,
    /// Images of all minibatches, one after the other.
    order: Vec<u32>,
    outcome: Outcome,
}

impl<'a> Classification<'a> {
    fn start(
        backend: &Backend,
        dataset: &'a Dataset,
        arguments: &'a Arguments,
        (architecture, method, seed): (Architecture, &Method, u64),
        saved: Option<&Saved<Outcome>>,
    ) -> anyhow::Result<Self> {
        let device = backend.device();
        let count = dataset.test.labels.len();
        let seen = dataset.first(&dataset.training, count, &device);
        let unseen = dataset.first(&dataset.test, count, &device);
        let device = device.autodiff();
        let model = weights::draw(architecture.build(arguments.sizes(dataset), &device), seed);
        let learner = match saved {
            None => Learner::new(model, method, backend, false)?,
            Some(saved) => Learner::resume(model, method, backend, &saved.checkpoint, &saved.learner)?,
        };
        let criterion = CrossEntropyLossConfig::new().init(&device);
        let images = arguments.images_for_training;
        let order = minibatches(images, seed, arguments.epochs() as usize, arguments.batch as usize);
        let outcome = saved.map(|saved| saved.progress.clone()).unwrap_or_default();
        Ok(Self { dataset, arguments, device, seen, unseen, learner, criterion, order, outcome })
    }
}

impl Training for Classification<'_> {
    type Outcome = Outcome;
    type Progress = Outcome;

    fn step(&mut self, step: u64) -> anyhow::Result<bool> {
        let batch = self.arguments.batch as usize;
        if !self.outcome.diverged() {
            let indices = &self.order[(step as usize - 1) * batch..][..batch];
            let batch = self.dataset.batch(&self.dataset.training, indices, &self.device);
            self.outcome.loss = self.learner.step(|network| batch.loss(network, &self.criterion))?;
        }
        if step.is_multiple_of(self.arguments.interval()) || step == self.arguments.steps() {
            let network = self.learner.model().valid();
            let diverged = self.outcome.diverged();
            let guessing = 100.0 / self.dataset.classes as f64;
            let accuracy = |batches: &[Batch]| if diverged { guessing } else { accuracy(batches, &network) };
            let (training, test) = (accuracy(&self.seen), accuracy(&self.unseen));
            self.outcome.training.push(training);
            self.outcome.test.push(test);
        }
        Ok(true)
    }

    fn save(&mut self) -> anyhow::Result<(Checkpoint, LearnerState, Outcome)> {
        let (checkpoint, learner) = self.learner.save()?;
        Ok((checkpoint, learner, self.outcome.clone()))
    }

    fn finish(self) -> anyhow::Result<Outcome> {
        Ok(self.outcome)
    }
}

impl Cell<Outcome> {
    /// Test accuracies at the end.
    fn accuracies(&self) -> Vec<f64> {
        self.outcomes.iter().filter_map(|outcome| outcome.test.last().copied()).collect()
    }

    fn text(&self) -> String {
        let diverged = self.outcomes.iter().filter(|outcome| outcome.diverged()).count();
        let text = summary(&self.accuracies(), 2);
        if diverged > 0 { format!("{text}, {diverged} diverged") } else { text }
    }

    /// Training accuracies at the end.
    fn last_training(&self) -> String {
        let last = self.outcomes.iter().filter_map(|outcome| outcome.training.last().copied());
        summary(&last.collect::<Vec<_>>(), 2)
    }
}

/// All cells of a network: a list of methods for each learning rate.
struct Grid {
    architecture: Architecture,
    columns: Vec<[Cell<Outcome>; 3]>,
}

impl Grid {
    /// The runs of a method at the learning rate that is best for it.
    fn best(&self, method: usize) -> &Cell<Outcome> {
        let cells = self.columns.iter().map(|cells| &cells[method]);
        // A rate without a finished run is the worst.
        let quality = |cell: &Cell<Outcome>| Some(mean(&cell.accuracies())).filter(|mean| !mean.is_nan());
        let best = cells.max_by(|a, b| quality(a).unwrap_or(-1.0).total_cmp(&quality(b).unwrap_or(-1.0)));
        best.expect("a learning rate")
    }
}

/// Trains everything, prints the tables and draws the pictures.
pub fn run(arguments: &Arguments, settings: &Settings) -> anyhow::Result<()> {
    let dataset = arguments.dataset()?;
    let networks = each_once(arguments.networks.iter().copied());
    let arguments =
        &Arguments { images_for_training: dataset.training.labels.len(), networks, ..arguments.clone() };
    let rates = arguments.learning_rates();
    for &rate in rates.iter().chain([&BETA3_LEARNING_RATE]) {
        arguments.methods(rate).iter().try_for_each(|method| method.hyperparameters.validate())?;
    }
    let backend = arguments.common.backend()?;
    arguments.formats.check(&backend)?;
    let versions = arguments.formats.versions(&arguments.common)?;
    let settings = &settings.clone().with_packages(&versions);
    let mut report = arguments.common.report("classification", settings, &backend, &dataset.fingerprint())?;
    let seeds = arguments.common.seeds();
    let sizes = arguments.networks.iter().map(|architecture| {
        let parameters = architecture.build(arguments.sizes(&dataset), &backend.device()).num_params();
        format!("{} of {parameters} parameters", architecture.name())
    });
    let Shape { channels, height, width } = dataset.shape;
    let data = format!(
        "{} training and {} test images of {height} x {width} pixels, {channels} channel(s), {} classes; {}; \
         {seeds} seed(s), {} epochs of {} steps of {} images, beta3 {}",
        dataset.training.labels.len(),
        dataset.test.labels.len(),
        dataset.classes,
        sizes.collect::<Vec<_>>().join(", "),
        arguments.epochs(),
        arguments.steps_per_epoch(),
        arguments.batch,
        arguments.beta3
    );
    report.say(&data)?;
    versions.into_iter().try_for_each(|(_, text)| report.say(text))?;

    let sweep = arguments.sweep();
    let [_, adam, adamod] = arguments.methods(rates[rates.len() / 2]);
    let low_bits = arguments.formats.methods(&adamod);
    let packages = arguments.formats.package_methods(&adam);
    // The sweep may repeat methods of the grid.
    let grid = rates.iter().flat_map(|&rate| arguments.methods(rate));
    let of_grid: BTreeSet<_> = grid.map(|method| method.description()).collect();
    let new = sweep.iter().filter(|method| !of_grid.contains(&method.description())).count();
    let methods = arguments.networks.len() * of_grid.len() + new + low_bits.len() + packages.len();
    let saved = arguments.common.saved(&["training.csv"])?.zip(arguments.common.saved(&["test.csv"])?);
    let runs = arguments.common.runs("classification", &backend, methods, arguments.steps())?;
    let cell = |architecture: Architecture, method: &Method| {
        let name = format!("{}, {}", architecture.name(), method.description());
        match &saved {
            Some((training, test)) => Cell::saved(&name, method, seeds, |run| {
                Ok(Outcome { training: training.series(run)?, test: test.series(run)?, loss: 0.0 })
            }),
            None => runs.of(&name, method, |method, seed, saved| {
                Classification::start(&backend, &dataset, arguments, (architecture, method, seed), saved)
            }),
        }
    };
    let column = |architecture: Architecture, rate: f64| {
        let [sgd, adam, adamod] = arguments.methods(rate);
        Ok([cell(architecture, &sgd)?, cell(architecture, &adam)?, cell(architecture, &adamod)?])
    };
    let grid = |&architecture: &Architecture| {
        let columns = rates.iter().map(|&rate| column(architecture, rate));
        Ok(Grid { architecture, columns: columns.collect::<anyhow::Result<_>>()? })
    };
    let others = |methods: &[Method]| {
        let cells = methods.iter().map(|method| cell(arguments.networks[0], method));
        cells.collect::<anyhow::Result<Vec<_>>>()
    };
    let (grids, sweep, low_bits, packages) = runs.all(|| {
        let grids = arguments.networks.iter().map(grid).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((grids, others(&sweep)?, others(&low_bits)?, others(&packages)?))
    })?;
    if !arguments.common.close(&runs, &mut report)? {
        return Ok(());
    }

    report_best(&mut report, arguments, &grids)?;
    for grid in &grids {
        report_rates(&mut report, arguments, grid, &rates)?;
    }
    if !sweep.is_empty() {
        report_beta3(&mut report, arguments, &sweep)?;
    }
    let [_, adam, adamod] = &grids[0].columns[rates.len() / 2];
    report_formats(&mut report, arguments, Difference::Formats, adamod, &low_bits)?;
    report_formats(&mut report, arguments, Difference::Packages, adam, &packages)?;
    let others: Vec<_> = sweep.iter().chain(&low_bits).chain(&packages).collect();
    write_accuracies(&report, arguments, &grids, &others)?;
    report.finish()
}

fn axes(arguments: &Arguments, y: &'static str, lowest: f64) -> Axes {
    let (x, x_step, x_end) = arguments.x_axis();
    // After one epoch accuracies are anywhere, and so are those of other images.
    let lowest = if arguments.epochs() > 1 { lowest } else { 0.0 };
    let y_range = arguments.images.is_none().then_some(lowest..100.5);
    Axes { x, y, x_step: x_step as f64, x_end: x_end as f64, logarithmic: false, y_range }
}

/// Tables 3 and 4, and Figures 4 and 5.
fn report_best(report: &mut Report, arguments: &Arguments, grids: &[Grid]) -> anyhow::Result<()> {
    let names = grids[0].columns[0].iter().map(|cell| cell.method.name).enumerate();
    report.say(Table {
        title: "Test accuracy in %, median (mean ± standard deviation), each rule at its best learning rate"
            .into(),
        columns: grids.iter().map(|grid| grid.architecture.name().into()).collect(),
        rows: names
            .map(|(method, name)| {
                let cells = grids.iter().map(|grid| {
                    let cell = grid.best(method);
                    format!("{}, α = {}", cell.text(), rate_name(cell.method.hyperparameters.learning_rate))
                });
                (name.into(), cells.collect())
            })
            .collect(),
    })?;
    type Of = fn(&Outcome) -> &Vec<f64>;
    let kinds: [(&str, Of); 2] =
        [("training", |outcome| &outcome.training), ("test", |outcome| &outcome.test)];
    let panels: Vec<_> = (grids.iter().flat_map(|grid| kinds.map(|kind| (grid, kind))))
        .map(|(grid, (kind, of))| {
            let series = [GREY, ORANGE, BLUE].into_iter().enumerate().map(|(method, color)| {
                let cell = grid.best(method);
                let rate = rate_name(cell.method.hyperparameters.learning_rate);
                cell.series(format!("{}, α = {rate}", cell.method.name), color, |outcome| {
                    of(outcome).clone()
                })
            });
            Panel { title: format!("{}, {kind}", grid.architecture.name()), series: series.collect() }
        })
        .collect();
    let title = "Accuracy, each rule at its best learning rate";
    plots::curves(&report.path("best.svg"), title, &axes(arguments, "accuracy in %", 85.0), &panels)
}

/// The best less the worst mean; rates without a finished run have none.
fn spread(means: impl Iterator<Item = f64>) -> String {
    let (worst, best) = extent(means.filter(|mean| !mean.is_nan()));
    if best >= worst { format!("{:.2}", best - worst) } else { "/".to_owned() }
}

/// Figure 6.
fn report_rates(
    report: &mut Report,
    arguments: &Arguments,
    grid: &Grid,
    rates: &[f64],
) -> anyhow::Result<()> {
    let network = grid.architecture.name();
    let mut columns: Vec<_> = rates.iter().map(|rate| format!("α = {}", rate_name(*rate))).collect();
    columns.push("spread".into());
    let row = |method: usize| {
        let cells = || grid.columns.iter().map(|cells| &cells[method]);
        let mut texts: Vec<_> = cells().map(Cell::text).collect();
        texts.push(spread(cells().map(|cell| mean(&cell.accuracies()))));
        (grid.columns[0][method].method.name.into(), texts)
    };
    report.say(Table {
        title: format!(
            "{network}: test accuracy in %, median (mean ± standard deviation); spread: best less worst mean"
        ),
        columns,
        rows: (0..3).map(row).collect(),
    })?;
    let panels: Vec<_> = (0..3)
        .map(|method| {
            let series = (grid.columns.iter().zip(rates).zip(SCALE.iter().cycle()))
                .map(|((cells, rate), color)| {
                    cells[method]
                        .series(format!("α = {}", rate_name(*rate)), *color, |outcome| outcome.test.clone())
                })
                .collect();
            Panel { title: grid.columns[0][method].method.name.into(), series }
        })
        .collect();
    let title = format!("Test accuracy with different learning rates, {network}");
    let path = report.path(&format!("learning_rates_{}.svg", network.to_lowercase()));
    plots::curves(&path, &title, &axes(arguments, "test accuracy in %", 50.0), &panels)
}

/// Figure 8.
fn report_beta3(report: &mut Report, arguments: &Arguments, sweep: &[Cell<Outcome>]) -> anyhow::Result<()> {
    let network = arguments.networks[0].name();
    let rate = rate_name(BETA3_LEARNING_RATE);
    let beta3 = |cell: &Cell<Outcome>| cell.method.beta3_name();
    report.say(Table {
        title: format!("{network}, AdaMod at α = {rate} with different beta3: accuracy in %"),
        columns: sweep.iter().map(beta3).collect(),
        rows: vec![
            ("training".into(), sweep.iter().map(Cell::last_training).collect()),
            ("test".into(), sweep.iter().map(Cell::text).collect()),
        ],
    })?;
    let series = (sweep.iter().zip(SCALE.iter().cycle()))
        .map(|(cell, color)| {
            let color = if cell.method.growth.is_some() { PURPLE } else { *color };
            cell.series(beta3(cell), color, |outcome| outcome.training.clone())
        })
        .collect();
    let panels = [Panel { title: format!("{network}, α = {rate}"), series }];
    let title = "Training accuracy with different beta3";
    plots::curves(&report.path("beta3.svg"), title, &axes(arguments, "training accuracy in %", 0.0), &panels)
}

/// A method in f32, with fewer bits, and with the steps of packages.
fn report_formats(
    report: &mut Report,
    arguments: &Arguments,
    difference: Difference,
    whole: &Cell<Outcome>,
    others: &[Cell<Outcome>],
) -> anyhow::Result<()> {
    let Method { name, hyperparameters, .. } = &whole.method;
    let rate = rate_name(hyperparameters.learning_rate);
    let comparison = Comparison {
        difference,
        subject: format!("{}, {name} at α = {rate}", arguments.networks[0].name()),
        axes: &axes(arguments, "test accuracy in %", 50.0),
        points: &|outcome: &Outcome| outcome.test.clone(),
        rows: &[("training", Cell::last_training), ("test", Cell::text)],
    };
    comparison.report(report, whole, others)
}

/// All accuracies as numbers.
fn write_accuracies(
    report: &Report,
    arguments: &Arguments,
    grids: &[Grid],
    others: &[&Cell<Outcome>],
) -> anyhow::Result<()> {
    let cells = || {
        let of = |grid: &'_ Grid| grid.architecture.name();
        let tables = grids
            .iter()
            .flat_map(move |grid| grid.columns.iter().flatten().map(move |cell| (of(grid), cell)));
        tables.chain(others.iter().map(|cell| (arguments.networks[0].name(), *cell)))
    };
    let write = |file: &str, values: fn(&Outcome) -> &[f64]| {
        let series: Vec<_> = cells()
            .flat_map(|(network, cell)| {
                cell.named(values).map(move |(name, values)| (format!("{network}, {name}"), values))
            })
            .collect();
        let (unit, interval, end) = arguments.x_axis();
        report.write_series(file, unit, interval, end, &series)
    };
    write("training.csv", |outcome| &outcome.training)?;
    write("test.csv", |outcome| &outcome.test)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::runs::assert_resumes;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_spread_is_that_of_the_rates_with_finished_runs() {
        assert_eq!(spread([97.5, f64::NAN, 98.75].into_iter()), "1.25");
        assert_eq!(spread([f64::NAN; 2].into_iter()), "/");
    }

    #[test]
    fn a_classification_has_the_same_outcome_wherever_it_is_broken() {
        // A shuffle and a test in the middle.
        let arguments = Line::parse_from(["x", "--epochs=2", "--batch=600"]).arguments;
        assert_eq!((arguments.steps(), arguments.interval()), (4, 2));
        let dataset = Dataset::digits().unwrap();
        let methods = arguments.methods(0.01);
        assert_resumes(4, |saved| {
            let of = (Architecture::ResNet, &methods[2], 1);
            Classification::start(&Backend::Cpu, &dataset, &arguments, of, saved)
        });
        // A diverged run, which guesses.
        let [sgd, ..] = arguments.methods(1e30);
        assert_resumes(4, |saved| {
            let of = (Architecture::ResNet, &sgd, 1);
            Classification::start(&Backend::Cpu, &dataset, &arguments, of, saved)
        });
    }
}

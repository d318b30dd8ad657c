//! `adamod bench`: how fast a step is on an adapter, beside kernels that only move its bytes.
//!
//! A group of variants is measured in rounds. In each round a copy of as many bytes (at most 4 GiB), a stream kernel with the step's
//! memory traffic and the steps themselves run in turn, so that their ratios hold on a busy machine, too. Host time is measured
//! separately, with an idle device. Afterwards the results of the timed steps are compared with the f64 reference; a difference ends
//! the bench with an error.

mod clock;
mod colors;
mod designs;
mod engine;
mod error;
mod fill;
mod kernels;
mod mode;
mod models;
mod plot;
mod report;
mod resources;
mod statistics;
mod suites;

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use adamod::RuleForm;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapter::AdapterChoice;
use crate::failure::{Failure, note};
use crate::output::{Argument, Output};
use clock::{Counted, Effort, Machine, Timing, Work};
use designs::Design;
use engine::Engine;
use error::BenchError;
use fill::Filler;
use kernels::{Copy, Stream};
use report::{Measurement, Report, Series};
use statistics::Summary;
use suites::{Group, Sizes, Suite};

/// Measure the step: GPU time beside a copy kernel in the same run, and host time separately.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    adapter: AdapterChoice,
    /// What to measure; repeatable [default: a quick selection of all suites but `variants` and `large`].
    #[arg(long = "suite", value_enum, value_name = "NAME")]
    suites: Vec<Suite>,
    /// Design choices of the suite `variants`; repeatable, and implies the suite [default: all].
    #[arg(long = "variant", value_name = "NAME", value_parser = variant_names())]
    variants: Vec<String>,
    /// Rules of the suite `modes`; repeatable, and implies the suite [default: all].
    #[arg(long = "rule", value_name = "NAME", value_parser = rule)]
    rules: Vec<RuleForm>,
    /// Largest case of `roofline`, `modes`, `variants` and `large`, in elements [default: on a software adapter 2^23 for `roofline` and
    /// `large`, 2^22 for `modes` and 2^20 for `variants`; on a GPU 2^26 for `modes`, 2^25 for `variants`, more than 2^31 for `large`, and as
    /// many as it holds for `roofline`]. `modes` and `variants` are never larger than that.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1_024..=MOST_ELEMENTS))]
    max_elements: Option<u64>,
    /// Limit buffers to N bytes; larger tensors are split across several [default: the device's limit].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(LEAST_BUFFER_BYTES..))]
    max_buffer_bytes: Option<u64>,
    /// Measure models at their own width on a software adapter, too.
    #[arg(long)]
    full: bool,
    /// Rounds of each measurement [default: as many as fit into --seconds, at least 7].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// Duration of each measurement in seconds [default: 1, or 0.4 for the quick selection].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// The clock [default: timestamps if the adapter has them].
    #[arg(long, value_enum)]
    timing: Option<Timing>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Also write the report to this file, as one JSON object, after every measurement.
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
    /// Draw the suite roofline to this file, as SVG: GB/s by parameters, beside the copy and the stream kernel.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// The choices, or all of them.
fn variant_names() -> PossibleValuesParser {
    PossibleValuesParser::new(designs::names().chain([ALL_VARIANTS]))
}

const ALL_VARIANTS: &str = "all";

fn rule(text: &str) -> Result<RuleForm, String> {
    RuleForm::all().find(|form| form.to_string() == text).ok_or_else(|| {
        let names: Vec<_> = RuleForm::all().map(|form| form.to_string()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

impl Arguments {
    /// The suites that are named, or implied.
    fn suites(&self) -> impl Iterator<Item = Suite> {
        let is_quick = self.is_quick();
        let is_implied = |suite| match suite {
            Suite::Variants => !self.variants.is_empty(),
            Suite::Modes => !self.rules.is_empty(),
            _ => false,
        };
        Suite::ALL
            .into_iter()
            .filter(move |suite| is_quick || self.suites.contains(suite) || is_implied(*suite))
    }

    /// A selection of all suites, because none is named or implied.
    fn is_quick(&self) -> bool {
        self.suites.is_empty() && self.variants.is_empty() && self.rules.is_empty()
    }

    /// Leaves out design choices and rules that were not asked for.
    fn select(&self, mut group: Group) -> Option<Group> {
        if group.suite == Suite::Modes && !self.rules.is_empty() {
            group.variants.retain(|variant| self.rules.contains(&variant.mode.form));
            return (!group.variants.is_empty()).then_some(group);
        }
        if group.suite != Suite::Variants {
            return Some(group);
        }
        let takes_all = self.variants.is_empty() || self.variants.iter().any(|name| name == ALL_VARIANTS);
        group.variants.retain(|variant| {
            let is_selected =
                |design: Design| design.is_default() || self.variants.iter().any(|name| name == design.name);
            takes_all || variant.design.is_some_and(is_selected)
        });
        (group.variants.len() > 1).then_some(group)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if !(seconds > 0.0 && seconds <= 3_600.0) {
        return Err("expected a time above 0 and at most 3600".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// More than any current device holds: a terabyte for AdaMod.
const MOST_ELEMENTS: u64 = 1 << 36;

/// Room for the tables of a few tensors.
const LEAST_BUFFER_BYTES: u64 = 1 << 16;

/// The most bytes that the copy and the stream kernel move in a pass. Their speed no longer grows there, and the step needs the rest of
/// the memory.
const CEILING_BYTES: u64 = 4 << 30;

/// Bytes that are copied before every pass on a GPU: more than any current cache.
const FLUSH_BYTES: u64 = 512 << 20;

/// Runs the suites on an adapter and prints the report.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let quick = arguments.is_quick();
    if arguments.plot.is_some() && !arguments.suites().any(|suite| suite == Suite::Roofline) {
        return Err(BenchError::NothingToPlot.into());
    }
    let [plot_file, json_file] = [("--plot", &arguments.plot), ("--json-file", &arguments.json_file)]
        .map(|(option, path)| path.as_deref().map(|path| (option, path)));
    let files: Vec<Argument<'_>> = [plot_file, json_file].into_iter().flatten().collect();
    let mut outputs = Output::open_all(&[], &files)?.into_iter();
    let plot_file = plot_file.and_then(|_| outputs.next());
    let mut json_file = json_file.and_then(|_| outputs.next());
    let features = wgpu::Features::TIMESTAMP_QUERY | adamod::Optimizer::BINDING_ARRAYS;
    let (adapter, device, queue) = arguments.adapter.open(features, |limits| {
        let most = arguments.max_buffer_bytes.unwrap_or(u64::MAX);
        wgpu::Limits {
            max_buffer_size: limits.max_buffer_size.min(most),
            max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size.min(most),
            ..limits
        }
    })?;
    let machine = machine(arguments.timing, adapter.get_info(), device, queue)?;
    let sizes = Sizes {
        most_elements: arguments.max_elements.unwrap_or_else(|| default_elements(&machine, quick)),
        most_buffer_bytes: machine.device.limits().max_buffer_size,
        quick,
        full: arguments.full,
        is_cpu: machine.is_cpu(),
    };
    let effort = Effort {
        rounds: arguments.rounds,
        time: arguments.seconds.unwrap_or(Duration::from_millis(if quick { 400 } else { 1_000 })),
    };
    let groups = arguments.suites().flat_map(|suite| suites::groups(suite, sizes));
    let mut groups: VecDeque<Group> = groups.filter_map(|group| arguments.select(group)).collect();

    // Hidden if stderr is not a terminal.
    let progress = ProgressBar::new(groups.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        progress.set_style(style);
    }
    let mut report = report_of(&machine);
    let mut is_roofline_ending = false;
    let mut failed = None;
    while let Some(group) = groups.pop_front() {
        progress.inc(1);
        progress.set_message(format!("{}: {}", group.suite.name(), group.variants[0].case));
        let is_roofline = group.suite == Suite::Roofline;
        let case = format!("{}, {}", group.suite.name(), group.variants[0].case);
        // Memory may also run out between the steps.
        match machine.catch(&case, || measure(&machine, &group, effort)) {
            Ok(measurements) => {
                report.results.extend(measurements);
                if is_roofline && is_roofline_ending {
                    groups.retain(|group| group.suite != Suite::Roofline);
                }
            }
            Err(error) if is_left_out(&error, group.suite, arguments, &report.results) => {
                let (suite, case) = (group.suite.name(), &group.variants[0].case);
                report
                    .left_out
                    .push(format!("{suite}: {case} does not fit on the device: {}", error.reason()));
                // Sizes increase, so no later one fits.
                if is_roofline && !is_roofline_ending {
                    is_roofline_ending = true;
                    groups.retain(|group| group.suite != Suite::Roofline);
                    for elements in suites::sizes_below(group.parameters()).into_iter().rev() {
                        groups.push_front(suites::roofline(elements, sizes.most_buffer_bytes));
                    }
                }
            }
            // The results so far are still reported.
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
        // A long run may be killed.
        if let Some(file) = &mut json_file {
            file.write_so_far(&json(&report)?)?;
        }
    }
    progress.finish_and_clear();
    if report.results.is_empty()
        && let Some(error) = failed
    {
        return Err(error.into());
    }
    for sentence in &report.left_out {
        note(format_args!("{sentence}"));
    }

    // A failure to print is returned after the files are written, so no measurement is lost.
    let printed = print(&report, arguments.json);
    if let Some(file) = plot_file {
        file.write(plot::draw(&report).map_err(BenchError::Draw)?.as_bytes())?;
    }
    if let Some(file) = json_file {
        file.write(&json(&report)?)?;
    }
    printed?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// A report without results.
fn report_of(machine: &Machine) -> Report {
    let wgpu::AdapterInfo { name, driver, driver_info, backend, device_type, .. } = &machine.info;
    Report {
        adapter: name.clone(),
        driver: format!("{driver} {driver_info}").trim().to_owned(),
        backend: backend.to_string(),
        device_type: format!("{device_type:?}"),
        timing: match machine.timing {
            Timing::Timestamps => "timestamps",
            Timing::Wall => "wall",
        },
        cache: if machine.flush.is_some() { "cold" } else { "warm" },
        results: Vec::new(),
        left_out: Vec::new(),
    }
}

/// The report as a line.
fn json(report: &Report) -> Result<Vec<u8>, BenchError> {
    let mut json = serde_json::to_vec(report)?;
    json.push(b'\n');
    Ok(json)
}

fn print(report: &Report, json: bool) -> Result<(), BenchError> {
    let mut out = std::io::stdout().lock();
    if json {
        let text = serde_json::to_string(report)?;
        writeln!(out, "{text}")?;
    } else {
        report.print(&mut out)?;
    }
    Ok(out.flush()?)
}

/// Chooses the clock, and whether caches are flushed.
fn machine(
    timing: Option<Timing>,
    info: wgpu::AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
) -> Result<Machine, BenchError> {
    let has_timestamps = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
    let timing = match timing {
        Some(Timing::Timestamps) if !has_timestamps => {
            return Err(BenchError::NoTimestamps { adapter: info.name });
        }
        Some(timing) => timing,
        None if has_timestamps => Timing::Timestamps,
        None => Timing::Wall,
    };
    let filler = Filler::new(&device, &queue);
    let mut machine = Machine { device, queue, info, timing, filler, flush: None };
    // A software adapter has the CPU's caches. Filling them would take longer than the measured steps.
    if !machine.is_cpu() {
        let flush = machine
            .catch("flushing the caches", || Ok(Copy::new(&machine.device, &machine.filler, FLUSH_BYTES)))?;
        machine.flush = Some(flush);
    }
    Ok(machine)
}

/// Sizes that take minutes on a software adapter, and seconds on a GPU for the quick selection. Otherwise a GPU is measured up to its
/// memory.
fn default_elements(machine: &Machine, quick: bool) -> u64 {
    match (machine.is_cpu(), quick) {
        (true, _) => 1 << 23,
        (false, true) => 1 << 24,
        (false, false) => MOST_ELEMENTS,
    }
}

/// Whether an error only means that the device's memory is full. An explicitly requested size is never left out.
fn is_left_out(error: &BenchError, suite: Suite, arguments: &Arguments, results: &[Measurement]) -> bool {
    let may_be_too_large = match suite {
        Suite::Roofline => results.iter().any(|result| result.suite == suite.name()),
        Suite::Large => true,
        Suite::Tensors | Suite::Layout | Suite::Host | Suite::Modes | Suite::Variants => false,
    };
    may_be_too_large && arguments.max_elements.is_none() && error.is_too_large()
}

/// Measures and verifies the variants of a group.
fn measure(machine: &Machine, group: &Group, effort: Effort) -> Result<Vec<Measurement>, BenchError> {
    let Machine { device, filler, .. } = machine;
    let suite = group.suite.name();
    let elements = group.parameters();
    let mode = group.variants[0].mode;
    let bytes_per_parameter = mode.bytes_per_parameter();
    let bytes = (elements as f64 * bytes_per_parameter).ceil() as u64;
    // The stream kernel moves f32, so its number of elements is chosen to move as many bytes as the step.
    let states = mode.form.states().len() as u32;
    let ceiling_bytes = bytes.min(CEILING_BYTES);
    let stream_elements = ceiling_bytes / u64::from(mode.form.bytes_per_parameter());
    let name = |case: &str| format!("{suite}, {case}");
    // What the previous group had is freed before more is allocated.
    device.poll(wgpu::PollType::wait_indefinitely())?;

    let mut copy = Counted { kernel: Copy::new(device, filler, ceiling_bytes.next_multiple_of(8)), runs: 0 };
    let mut stream = Counted { kernel: Stream::new(device, filler, stream_elements, states), runs: 0 };
    let engines = group.variants.iter().map(|variant| Engine::new(machine, variant));
    let mut engines = engines.collect::<Result<Vec<_>, _>>()?;

    let mut works: Vec<&mut dyn Work> = vec![&mut copy, &mut stream];
    works.extend(engines.iter_mut().map(|engine| engine as &mut dyn Work));
    let seconds = machine.measure(&mut works, effort)?;
    let copy_series = Series { bytes: copy.kernel.bytes() as f64, seconds: &seconds[0] };
    let stream_series = Series { bytes: stream.kernel.bytes() as f64, seconds: &seconds[1] };
    let wrong = |case: &str, difference| BenchError::Wrong { case: name(case), difference };
    verify_copy(machine, &copy).map_err(|difference| wrong("copy", difference))?;
    verify_stream(machine, &stream).map_err(|difference| wrong("stream", difference))?;

    let mut results = Vec::with_capacity(engines.len());
    let seconds_of_steps = &seconds[2..];
    for ((variant, engine), seconds) in group.variants.iter().zip(&mut engines).zip(seconds_of_steps) {
        let host = machine.measure_host(engine, effort)?;
        let mode = engine.mode().name();
        let verified_elements = engine
            .verify(machine)
            .map_err(|difference| wrong(&format!("{}, {mode}", variant.case), difference))?;
        let series = Series { bytes: elements as f64 * bytes_per_parameter, seconds };
        let summary = Summary::of(seconds);
        results.push(Measurement {
            suite,
            case: variant.case.clone(),
            mode,
            tensors: engine.tensors(),
            parameters: engine.parameters(),
            bytes_per_parameter,
            rounds: seconds.len(),
            ms_median: 1e3 * summary.median,
            ms_min: 1e3 * summary.min,
            ms_lower_quartile: 1e3 * summary.lower_quartile,
            ms_upper_quartile: 1e3 * summary.upper_quartile,
            gb_per_s: series.gb_per_s(),
            copy_gb_per_s: copy_series.gb_per_s(),
            stream_gb_per_s: stream_series.gb_per_s(),
            fraction_of_copy: series.fraction_of(copy_series),
            fraction_of_stream: series.fraction_of(stream_series),
            host_us_median: 1e6 * Summary::of(&host.submit).median,
            host_record_us_median: 1e6 * Summary::of(&host.record).median,
            host_allocations: (group.suite == Suite::Host).then(|| Summary::of(&host.allocations).median),
            time_of_default: variant.design.filter(|_| group.suite == Suite::Variants).map(|_| {
                // The default is the first of its group.
                series.time_of(Series { bytes: series.bytes, seconds: &seconds_of_steps[0] })
            }),
            verified_elements,
        });
    }
    Ok(results)
}

/// Elements that are checked at the start and at the end of a buffer.
const SAMPLE_ELEMENTS: u64 = 1_024;

/// The first element and the contents of each sample of a buffer.
fn samples(machine: &Machine, buffer: &wgpu::Buffer) -> Result<Vec<(u64, Vec<u32>)>, String> {
    let elements = buffer.size() / 4;
    let sample = SAMPLE_ELEMENTS.min(elements);
    [0, elements - sample]
        .into_iter()
        .map(|start| {
            let words =
                machine.read(&[(buffer, 4 * start, 4 * sample)]).map_err(|error| error.to_string())?;
            Ok((start, words))
        })
        .collect()
}

fn verify_copy(machine: &Machine, copy: &Counted<Copy>) -> Result<(), String> {
    for (destination, buffer) in copy.kernel.destinations().iter().enumerate() {
        for (start, words) in samples(machine, buffer)? {
            for (element, got) in (start..).zip(words) {
                let expected = Copy::content(destination, element);
                if got != expected {
                    return Err(format!("element {element} is {got:#x}, expected {expected:#x}"));
                }
            }
        }
    }
    Ok(())
}

/// Every run adds exactly 1.
fn verify_stream(machine: &Machine, stream: &Counted<Stream>) -> Result<(), String> {
    let expected = stream.runs as f32;
    for buffer in stream.kernel.written() {
        for (start, words) in samples(machine, buffer)? {
            for (element, got) in (start..).zip(words.into_iter().map(f32::from_bits)) {
                if got != expected {
                    return Err(format!("element {element} is {got}, expected {expected}"));
                }
            }
        }
    }
    Ok(())
}

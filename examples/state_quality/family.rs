//! The other rules in the formats below 32 bits: states and paths against f64 over streams, and a network trained with each.

use std::error::Error;
use std::path::Path;

use adamod::reference::{Reference, Storage};
use adamod::{Hyperparameters, RuleForm, RuleKind, StateFormat};

use crate::comparison::Distances;
use crate::optimizers::{LABEL, Name};
use crate::report::{Table, percent};
use crate::statistics::{deviation, errors, mean, median, ratios};
use crate::streams::{Kind, Scales, Stream};
use crate::training::{Outcome, Task};
use crate::{ELEMENTS, INTERVALS, in_parallel, progress_bar};

/// Streams whose worst error counts.
const KINDS: [Kind; 3] = [Kind::Noise, Kind::Drift, Kind::Sparse];
const LOW_BIT: [StateFormat; 2] = [StateFormat::Bf16, StateFormat::Q8];

/// How long to measure.
pub struct Extent {
    pub stream_steps: u64,
    pub training_steps: usize,
    pub seeds: u64,
}

/// Median errors of a format after a stream.
#[derive(Clone)]
struct Errors {
    /// Of each state, in units of the root mean square that the element's state has over the steps.
    states: Vec<f64>,
    /// Of the length of the parameter's path, relative.
    path: f64,
}

impl Errors {
    /// The larger of each.
    fn worst(mut self, other: &Self) -> Self {
        self.states.iter_mut().zip(&other.states).for_each(|(worst, of)| *worst = worst.max(*of));
        Self { path: self.path.max(other.path), ..self }
    }
}

/// All forms but those of AdaMod that have state.
fn forms() -> Vec<RuleForm> {
    RuleForm::all().filter(|form| form.rule() != RuleKind::AdaMod && !form.states().is_empty()).collect()
}

fn formats(form: RuleForm) -> impl Iterator<Item = StateFormat> {
    LOW_BIT.into_iter().filter(move |format| form.refusal(*format).is_none())
}

/// The errors of every format that the form has, against f64.
fn against_f64(form: RuleForm, kind: Kind, scales: Scales, steps: u64) -> Vec<Errors> {
    let hyperparameters = Hyperparameters::from(form.with_defaults());
    let mut exact = Reference::<f64>::new();
    let group = exact.add_group(hyperparameters);
    exact.add_parameter(group, vec![0.0; ELEMENTS]);
    let mut twins: Vec<_> = formats(form)
        .map(|format| {
            let mut twin = Reference::<f32>::new();
            let group = twin.add_group(hyperparameters);
            let storage = Storage::new().with_state(format).with_label(LABEL);
            twin.add_stored_parameter(group, vec![0.0; ELEMENTS], storage);
            (twin, Distances::new(ELEMENTS))
        })
        .collect();
    let mut exact_path = Distances::new(ELEMENTS);
    let mut squares = vec![vec![0.0; ELEMENTS]; form.states().len()];
    let mut stream = Stream::new(kind, scales, ELEMENTS, steps / INTERVALS, 1.0);
    let mut gradient = vec![0.0_f32; ELEMENTS];
    for _ in 0..steps {
        stream.next(&mut gradient);
        let gradient64: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
        exact.step(&[Some(&gradient64)]);
        exact_path.go(exact.values(0).iter().copied());
        for (sums, state) in squares.iter_mut().zip(exact.state(0)) {
            sums.iter_mut().zip(state).for_each(|(sum, of)| *sum += of * of);
        }
        for (twin, path) in &mut twins {
            twin.step(&[Some(&gradient)]);
            path.go(twin.values(0).iter().map(|&x| x.into()));
        }
    }
    let errors_of = |(twin, path): &(Reference<f32>, Distances)| {
        let states =
            squares.iter().zip(twin.state(0)).zip(exact.state(0)).map(|((squares, found), expected)| {
                let units = squares.iter().map(|sum| (sum / steps as f64).sqrt());
                let elements = found.iter().zip(expected).zip(units);
                median(
                    elements
                        .map(|((found, expected), unit)| (f64::from(*found) - expected).abs() / unit)
                        .collect(),
                )
            });
        Errors { states: states.collect(), path: median(errors(&ratios(&path.lengths, &exact_path.lengths))) }
    };
    twins.iter().map(errors_of).collect()
}

/// Measures all rules, and writes the table.
pub fn measure(task: &Task, extent: &Extent, output: &Path) -> Result<Table, Box<dyn Error>> {
    let &Extent { stream_steps, training_steps, seeds } = extent;
    let forms = forms();
    let mut streams = Vec::new();
    for &form in &forms {
        for scales in Scales::ALL {
            streams.extend(KINDS.map(|kind| (form, kind, scales)));
        }
    }
    let bar = progress_bar("rules   ", streams.len() as u64)?;
    let of_streams = in_parallel(&streams, |&(form, kind, scales)| {
        let errors = against_f64(form, kind, scales, stream_steps);
        bar.inc(1);
        errors
    });
    bar.finish_and_clear();

    let with_f32 = |form| [StateFormat::F32].into_iter().chain(formats(form)).collect::<Vec<_>>();
    let mut runs = Vec::new();
    for &form in &forms {
        for format in with_f32(form) {
            runs.extend((0..seeds).map(|seed| (form, format, seed)));
        }
    }
    let bar = progress_bar("training", runs.len() as u64)?;
    let outcomes = in_parallel(&runs, |&(form, format, seed)| {
        let outcome = task.train(Hyperparameters::from(form.with_defaults()), format, seed, training_steps);
        bar.inc(1);
        outcome
    });
    bar.finish_and_clear();

    let header = [
        "form",
        "format",
        "states, alike",
        "states, five decades",
        "path, alike",
        "path, five decades",
        "final loss",
        "less F32's, same seed",
        "within F32's deviation",
    ];
    let title = format!(
        "Other rules: median errors in % after {stream_steps} steps, the worst of {} streams; digits, {training_steps} steps, {seeds} seeds: \
         mean ± deviation",
        KINDS.len()
    );
    let mut table = Table::new(title, &header);
    let losses = |form, format| -> Vec<f64> {
        let of_run = runs.iter().zip(&outcomes).filter(|((of, with, _), _)| (*of, *with) == (form, format));
        of_run.map(|(_, outcome): (_, &Outcome)| outcome.loss).collect()
    };
    for &form in &forms {
        let exact = losses(form, StateFormat::F32);
        for (place, format) in formats(form).enumerate() {
            let worst = |scales: Scales| {
                let of_form = streams.iter().zip(&of_streams);
                let all = of_form.filter(|((of, _, with), _)| (*of, *with) == (form, scales));
                all.map(|(_, errors)| errors[place].clone()).reduce(|worst, of| worst.worst(&of))
            };
            let [alike, mixed] = Scales::ALL.map(worst);
            let (Some(alike), Some(mixed)) = (alike, mixed) else { continue };
            let names = form.states().iter().map(|state| state.name);
            let states = |errors: &Errors| {
                let named = names.clone().zip(&errors.states);
                named
                    .map(|(name, error)| format!("`{name}` {}", percent(*error)))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let ours = losses(form, format);
            let differences: Vec<f64> = ours.iter().zip(&exact).map(|(a, b)| a - b).collect();
            // NaN is not within.
            let is_within = mean(&differences).abs() <= deviation(&exact);
            table.row(vec![
                format!("`{form}`"),
                Name::Format(format).to_string(),
                states(&alike),
                states(&mixed),
                percent(alike.path),
                percent(mixed.path),
                format!("{:.4} ± {:.4}", mean(&ours), deviation(&ours)),
                format!("{:+.4}", mean(&differences)),
                if is_within { "yes" } else { "no" }.into(),
            ]);
        }
    }
    table.write_csv(&output.join("family.csv"))?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_but_adamod_is_measured_in_every_format_that_it_offers() {
        let forms = forms();
        for form in RuleForm::all() {
            let is_left_out = form.rule() == RuleKind::AdaMod || form.states().is_empty();
            assert_eq!(forms.contains(&form), !is_left_out, "{form}");
        }
        assert!(forms.iter().any(|form| formats(*form).count() == LOW_BIT.len()));
    }

    #[test]
    fn errors_are_those_of_the_format() {
        let adam = RuleForm::all().find(|form| form.rule() == RuleKind::Adam).unwrap();
        let [bf16, q8] = &against_f64(adam, Kind::Drift, Scales::Alike, 200)[..] else {
            panic!("two formats")
        };
        for (fewer, more) in q8.states.iter().zip(&bf16.states) {
            assert!(0.0 < *more && more < fewer && *fewer < 0.2, "{more} {fewer}");
        }
        assert!(0.0 < bf16.path && bf16.path < 0.02 && q8.path < 0.05, "{} {}", bf16.path, q8.path);
    }
}

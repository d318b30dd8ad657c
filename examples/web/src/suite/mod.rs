//! The library's tests for places without a test runner: browsers. The same tests run outside, too, where the check compares their digests.

mod engine;
mod kernels;
mod laws;

use std::collections::{BTreeSet, HashSet};
use std::error::Error;

use adamod::{Control, DeviceControl, LossScale, NonFinite, RuleForm, Workgroups};
use serde::{Deserialize, Serialize};

use crate::gpu::Gpu;
use engine::{Engine, Kind};

/// The outcome of a test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What was tested.
    pub name: String,
    /// A digest of all bits that came out, if other devices have the same.
    pub digest: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// How much to test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Of the kernels for tensors of one kind, a sample in which every rule meets every format of state and every control. Optimizers with
    /// all kinds at once are tested for the first set of states of every rule, with one control after the other.
    Sample,
    /// All of them.
    All,
}

type Tested = Result<Option<String>, Box<dyn Error>>;

/// Steps of every combination.
const STEPS: u32 = 20;

/// Where the coefficients of a step come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Host,
    Device,
    /// With a norm, which clips, and a loss scale that changes.
    DeviceWithNorm,
}

impl Source {
    const ALL: [Self; 3] = [Self::Host, Self::Device, Self::DeviceWithNorm];

    const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Device => "device",
            Self::DeviceWithNorm => "device with norm",
        }
    }

    fn control(self) -> Control {
        let control = DeviceControl::new();
        match self {
            Self::Host => Control::Host,
            Self::Device => Control::Device(control.with_non_finite(NonFinite::Propagate)),
            Self::DeviceWithNorm => {
                let loss_scale = LossScale::Dynamic {
                    initial: 16.0,
                    growth_factor: 2.0,
                    backoff_factor: 0.5,
                    growth_interval: 3,
                };
                Control::Device(control.with_max_norm(10.0).with_loss_scale(loss_scale))
            }
        }
    }
}

/// Runs all tests and hands over each outcome as it comes.
pub async fn run(gpu: &Gpu, extent: Extent, mut report: impl FnMut(Outcome)) {
    let mut add = |name: String, tested: Tested| {
        let (digest, error) = match tested {
            Ok(digest) => (digest, None),
            Err(error) => (None, Some(error.to_string())),
        };
        report(Outcome { name, digest, error });
    };
    let is_sampled = |form: &RuleForm| extent == Extent::All || form.rule().forms().next() == Some(*form);
    for (index, form) in RuleForm::all().filter(is_sampled).enumerate() {
        for (_, source) in
            Source::ALL.into_iter().enumerate().filter(|(of, _)| extent == Extent::All || *of == index % 3)
        {
            let name = format!("{form}, {}: all types and formats in one optimizer", source.name());
            add(name, mixed(gpu, form, source).await);
        }
    }
    for Combination { form, source, kind } in combinations(extent) {
        let name = format!("{form}, {}: {}", source.name(), kind.name());
        add(name, of_one_kind(gpu, form, source, kind).await);
    }
    for source in Source::ALL {
        add(format!("{}: 100 steps before one submit", source.name()), laws::many_steps(gpu, source).await);
        add(format!("{}: a checkpoint continues", source.name()), laws::checkpoint(gpu, source).await);
    }
    add("refused copies are errors".into(), laws::refused_copies(gpu).await);
    add("a lost device is an error".into(), laws::lost_device().await);
}

/// Compiles kernels: as text all of them, or all that are not of another rule than AdaMod and every eighth of those; and pipelines of every
/// one or of a sample. Kernels of different rules differ in the rule's file alone. Outside of browsers the library's own tests do.
pub async fn compile(gpu: &Gpu, extent: Extent, mut report: impl FnMut(Outcome)) {
    let kernels = kernels::all();
    let sample = sample(&kernels);
    for (index, kernel) in kernels.iter().enumerate() {
        let whole = extent == Extent::All || sample.contains(&index);
        let is_of_another_rule =
            kernel.name.starts_with("update.") && !kernel.name.starts_with("update.adamod.");
        if !whole && is_of_another_rule && index % 8 > 0 {
            continue;
        }
        let error = kernels::compile(gpu, kernel, whole).await.err().map(|error| error.to_string());
        report(Outcome { name: format!("compile {}", kernel.name), digest: None, error });
    }
}

/// Numbers of kernels that together have every part of a name. Optimizers that train compile others.
fn sample(kernels: &[kernels::Kernel]) -> BTreeSet<usize> {
    let mut seen = HashSet::new();
    let is_new = |index: &usize| {
        // `update.RULE.PART.PART`, `norm_of_chunks.PART.PART` or `prepare`. All parts have to be marked as seen.
        kernels[*index].name.split('.').filter(|part| seen.insert(*part)).count() > 0
    };
    mixed_up(kernels.len()).filter(is_new).collect()
}

/// The numbers below `end`, each once. Neighbours of a list differ in one thing only; numbers far apart bring several new things at once.
fn mixed_up(end: usize) -> impl Iterator<Item = usize> {
    // A prime that is larger than any list here, so that it has no factor in common with a length.
    const STRIDE: usize = 7919;
    (0..end).map(move |i| i * STRIDE % end)
}

/// Every type, format and master weights of a rule in one optimizer.
async fn mixed(gpu: &Gpu, form: RuleForm, source: Source) -> Tested {
    const LENGTHS: [usize; 7] = [1, 2, 5, 33, 255, 1024, 1030];
    let tensors: Vec<_> =
        Kind::of(form).into_iter().enumerate().map(|(i, kind)| (kind, LENGTHS[i % LENGTHS.len()])).collect();
    train(gpu, form, source, &tensors, 4, Workgroups::Gpu).await
}

/// Tensors of one kind, whose kernel knows it.
async fn of_one_kind(gpu: &Gpu, form: RuleForm, source: Source, kind: Kind) -> Tested {
    train(gpu, form, source, &[(kind, 1500), (kind, 7)], 16, Workgroups::Gpu).await
}

async fn train(
    gpu: &Gpu,
    form: RuleForm,
    source: Source,
    tensors: &[(Kind, usize)],
    alignment: u64,
    workgroups: Workgroups,
) -> Tested {
    let mut engine = Engine::new(gpu, form, source.control(), tensors, alignment, workgroups)?;
    for step in 0..STEPS {
        engine.step(step)?;
    }
    engine.check(source == Source::Host).await.map(Some)
}

#[derive(Clone, Copy, Debug)]
struct Combination {
    form: RuleForm,
    source: Source,
    kind: Kind,
}

/// The combinations whose kernels for one kind are tested: all of them, or so many that every rule meets every format of state and every
/// source, and some rule every type, all master weights, and every format of state with every source.
fn combinations(extent: Extent) -> Vec<Combination> {
    let mut chosen = Vec::new();
    let mut seen = HashSet::new();
    for form in RuleForm::all() {
        let of_kind = |kind| Source::ALL.map(|source| Combination { form, source, kind });
        let all: Vec<_> = Kind::of(form).into_iter().flat_map(of_kind).collect();
        for index in mixed_up(all.len()) {
            let Combination { source, kind, .. } = all[index];
            let things = [
                format!("values {}", kind.values.name()),
                format!("gradients {}", kind.gradients.name()),
                format!("master weights {}", kind.master_weights.name()),
                format!("state {}, {}", kind.state.name(), source.name()),
                format!("{form}, state {}", kind.state.name()),
                format!("{form}, {}", source.name()),
            ];
            // All of them have to be marked as seen.
            let is_new = things.into_iter().filter(|thing| seen.insert(thing.clone())).count() > 0;
            if is_new || extent == Extent::All {
                chosen.push(all[index]);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use adamod::{DType, MasterWeights, StateFormat};

    #[test]
    fn pipelines_of_the_sample_have_every_part_and_every_rule() {
        let all = kernels::all();
        let sample = sample(&all);
        let sampled = |first: &str, part: &str| {
            let has = |name: &str| {
                let mut parts = name.trim_start_matches("update.").split('.');
                parts.next() == Some(first) && (part.is_empty() || parts.any(|of| of == part))
            };
            sample.iter().any(|&index| has(&all[index].name))
        };
        assert!(8 * sample.len() < all.len(), "{} of {}", sample.len(), all.len());
        let parts = [
            "vec4",
            "vec2",
            "scalar",
            "read",
            "read_write",
            "shared",
            "shadow",
            "rate_histograms",
            "words4",
            "words2",
            "words1",
            "q8",
        ];
        for part in parts {
            assert!(sample.iter().any(|&index| all[index].name.split('.').any(|of| of == part)), "{part}");
        }
        for form in RuleForm::all() {
            assert!(sampled(&form.to_string(), ""), "{form}");
        }
        for entry_point in [
            "norm_of_chunks",
            "norm_and_prepare",
            "norm_of_partials",
            "prepare",
            "no_norm",
            "schedule",
            "join",
        ] {
            assert!(sampled(entry_point, ""), "{entry_point}");
        }
    }

    #[test]
    fn in_the_sample_every_rule_meets_every_format_and_source() {
        let sample = combinations(Extent::Sample);
        assert!(20 * sample.len() < combinations(Extent::All).len());
        let meets = |what: &dyn Fn(&Combination) -> bool| sample.iter().any(what);
        for form in RuleForm::all() {
            for state in StateFormat::ALL.into_iter().filter(|state| form.refusal(*state).is_none()) {
                assert!(meets(&|of| of.form == form && of.kind.state == state), "{form} {state:?}");
            }
            for source in Source::ALL {
                assert!(meets(&|of| of.form == form && of.source == source), "{form} {source:?}");
            }
        }
        for dtype in DType::ALL {
            assert!(meets(&|of| of.kind.values == dtype), "{dtype}");
            assert!(meets(&|of| of.kind.gradients == dtype), "{dtype}");
        }
        for state in StateFormat::ALL {
            for source in Source::ALL {
                assert!(meets(&|of| of.kind.state == state && of.source == source), "{state:?} {source:?}");
            }
        }
        for master in MasterWeights::ALL {
            assert!(meets(&|of| of.kind.master_weights == master), "{master:?}");
        }
    }
}

//! The library's tests for places without a test runner: browsers. The same tests run outside, too, where the check compares their digests.

mod engine;
mod kernels;
mod laws;

use std::collections::{BTreeSet, HashSet};
use std::error::Error;

use adamod::{Control, DeviceControl, LossScale, NonFinite, RuleKind, Workgroups};
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
    /// Of the kernels for tensors of one kind, a sample in which every rule meets every type, format and control.
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
    for &rule in RuleKind::ALL {
        for source in Source::ALL {
            let name = format!("{rule}, {}: all types and formats in one optimizer", source.name());
            add(name, mixed(gpu, rule, source).await);
        }
    }
    for Combination { rule, source, kind } in combinations(extent) {
        let name = format!("{rule}, {}: {}", source.name(), kind.name());
        add(name, of_one_kind(gpu, rule, source, kind).await);
    }
    for source in Source::ALL {
        add(format!("{}: 100 steps before one submit", source.name()), laws::many_steps(gpu, source).await);
        add(format!("{}: a checkpoint continues", source.name()), laws::checkpoint(gpu, source).await);
    }
    add("refused copies are errors".into(), laws::refused_copies(gpu).await);
    add("a lost device is an error".into(), laws::lost_device().await);
}

/// Compiles every kernel: all of them as text, and pipelines of every one or of a sample. Outside of browsers the library's own tests do.
pub async fn compile(gpu: &Gpu, extent: Extent, mut report: impl FnMut(Outcome)) {
    let kernels = kernels::all();
    let sample = sample(&kernels);
    for (index, kernel) in kernels.iter().enumerate() {
        let whole = extent == Extent::All || sample.contains(&index);
        let error = kernels::compile(gpu, kernel, whole).await.err().map(|error| error.to_string());
        report(Outcome { name: format!("compile {}", kernel.name), digest: None, error });
    }
}

/// Numbers of kernels that together have every part of a name with every first part, which is the rule or the entry point.
fn sample(kernels: &[kernels::Kernel]) -> BTreeSet<usize> {
    // Neighbours differ in one part only. A prime stride brings several new parts at once.
    const STRIDE: usize = 101;
    let mut seen = HashSet::new();
    let mixed = (0..kernels.len()).map(|i| i * STRIDE % kernels.len());
    mixed
        .filter(|&index| {
            let name = &kernels[index].name;
            let (first, rest) = name.split_once('.').unwrap_or((name, ""));
            // All parts have to be marked as seen.
            rest.split('.').filter(|part| seen.insert((first, *part))).count() > 0
        })
        .collect()
}

/// Every type, format and master weights of a rule in one optimizer.
async fn mixed(gpu: &Gpu, rule: RuleKind, source: Source) -> Tested {
    const LENGTHS: [usize; 7] = [1, 2, 5, 33, 255, 1024, 1030];
    let tensors: Vec<_> =
        Kind::all().into_iter().enumerate().map(|(i, kind)| (kind, LENGTHS[i % LENGTHS.len()])).collect();
    train(gpu, rule, source, &tensors, 4, Workgroups::Auto).await
}

/// Tensors of one kind, whose kernel knows it.
async fn of_one_kind(gpu: &Gpu, rule: RuleKind, source: Source, kind: Kind) -> Tested {
    train(gpu, rule, source, &[(kind, 1500), (kind, 7)], 16, Workgroups::Gpu).await
}

async fn train(
    gpu: &Gpu,
    rule: RuleKind,
    source: Source,
    tensors: &[(Kind, usize)],
    alignment: u64,
    workgroups: Workgroups,
) -> Tested {
    let mut engine = Engine::new(gpu, rule, source.control(), tensors, alignment, workgroups)?;
    for step in 0..STEPS {
        engine.step(step)?;
    }
    engine.check(source == Source::Host).await.map(Some)
}

#[derive(Clone, Copy, Debug)]
struct Combination {
    rule: RuleKind,
    source: Source,
    kind: Kind,
}

/// The combinations whose kernels for one kind are tested.
fn combinations(extent: Extent) -> Vec<Combination> {
    let kinds = Kind::all();
    let mut all = Vec::new();
    for (number, &rule) in RuleKind::ALL.iter().enumerate() {
        for (place, source) in Source::ALL.into_iter().enumerate() {
            for (index, &kind) in kinds.iter().enumerate() {
                // A prime stride passes through all values of all axes; each rule and source starts elsewhere.
                const STRIDE: usize = 11;
                if extent == Extent::All || index % STRIDE == (5 * number + 4 * place) % STRIDE {
                    all.push(Combination { rule, source, kind });
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use adamod::{DType, MasterWeights, StateFormat};

    #[test]
    fn pipelines_of_the_sample_have_every_part_with_every_rule() {
        let all = kernels::all();
        let sample = sample(&all);
        let sampled = |first: &str, part: &str| {
            let has =
                |name: &str| name.split('.').next() == Some(first) && name.split('.').any(|of| of == part);
            sample.iter().any(|&index| has(&all[index].name))
        };
        assert!(8 * sample.len() < all.len(), "{} of {}", sample.len(), all.len());
        for rule in RuleKind::ALL {
            let parts =
                ["vec4", "vec2", "scalar", "read", "read_write", "shared", "words4", "words2", "words1"];
            let parts = parts
                .into_iter()
                .chain(["shadow"])
                .chain(rule.has_element_rates().then_some("rate_histograms"));
            for part in parts {
                assert!(sampled(rule.name(), part), "{rule} {part}");
            }
        }
        for entry_point in ["norm_of_chunks", "norm_and_prepare", "prepare", "no_norm"] {
            assert!(sampled(entry_point, entry_point), "{entry_point}");
        }
    }

    #[test]
    fn in_the_sample_every_rule_meets_every_type_format_and_source() {
        let sample = combinations(Extent::Sample);
        assert!(10 * sample.len() < combinations(Extent::All).len());
        for &rule in RuleKind::ALL {
            let meets =
                |what: &dyn Fn(&Combination) -> bool| sample.iter().any(|of| of.rule == rule && what(of));
            for dtype in DType::ALL {
                assert!(meets(&|of| of.kind.values == dtype), "{rule} {dtype}");
                assert!(meets(&|of| of.kind.gradients == dtype), "{rule} {dtype}");
            }
            for state in StateFormat::ALL {
                for source in Source::ALL {
                    assert!(
                        meets(&|of| of.kind.state == state && of.source == source),
                        "{rule} {state:?} {source:?}"
                    );
                }
            }
            for master in MasterWeights::ALL {
                assert!(meets(&|of| of.kind.master_weights == master), "{rule} {master:?}");
            }
        }
    }
}

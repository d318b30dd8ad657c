//! How parameters and the optimizer's state are stored.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

use adamod::{DType, MasterWeights, Precision, StateFormat};
use anyhow::{bail, ensure};
use clap::Args;

use crate::backend::Backend;
use crate::common::{Common, each_once};
use crate::method::Method;
use crate::packages::{Package, PackageName};
use crate::plots::{self, Axes, BLUE, GREEN, GREY, ORANGE, Panel, SCALE};
use crate::report::{Report, Table};
use crate::runs::Cell;

/// Data type of the parameters, and their master weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    #[default]
    F32,
    /// bf16 without master weights, rounded stochastically.
    Bf16,
    /// bf16, and 8 more bits for the optimizer.
    Split24,
    /// bf16, and the other 16 bits of an f32 for the optimizer.
    Split32,
}

/// Both formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    pub state: StateFormat,
    pub weights: Weights,
}

impl Formats {
    /// Tensors with fewer elements keep f32 state: biases and norm weights. The networks are small, so this is below the library's 4,096.
    const F32_STATE_BELOW: u64 = 256;

    pub fn precision(self) -> Precision {
        let master_weights = match self.weights {
            Weights::F32 | Weights::Bf16 => MasterWeights::None,
            Weights::Split24 => MasterWeights::Split24,
            Weights::Split32 => MasterWeights::Split32,
        };
        Precision::new(self.state)
            .with_master_weights(master_weights)
            .with_f32_state_below(Self::F32_STATE_BELOW)
    }

    /// Refuses formats that do not train on the backend.
    pub fn check(self, backend: &Backend) -> anyhow::Result<()> {
        match (self.dtype(), backend) {
            (DType::F32, _) | (_, Backend::Cpu) => Ok(()),
            (dtype, Backend::Gpu(_)) => bail!("weights in {dtype} need --device cpu, got gpu"),
        }
    }

    /// Data type of parameters and gradients.
    pub fn dtype(self) -> DType {
        if self.weights == Weights::F32 { DType::F32 } else { DType::Bf16 }
    }
}

impl Weights {
    const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Split24, Self::Split32];

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Split24 => "split24",
            Self::Split32 => "split32",
        }
    }
}

impl FromStr for Formats {
    type Err = String;

    /// The format of the state, and after a slash that of the weights: `q8/split24`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (state, weights) = text.trim().split_once('/').unwrap_or((text.trim(), "f32"));
        let known = StateFormat::ALL.into_iter().find(|format| format.name() == state);
        let weights = Weights::ALL.into_iter().find(|format| format.name() == weights);
        match (known, weights) {
            (Some(state), Some(weights)) => Ok(Self { state, weights }),
            _ => {
                Err("expected f32, bf16 or q8, and with a slash f32, bf16, split24 or split32: q8/split24"
                    .into())
            }
        }
    }
}

impl Display for Formats {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.state.name(), self.weights.name())
    }
}

/// Which formats are compared.
#[derive(Args, Clone, Debug)]
pub struct FormatArguments {
    /// Also train AdaMod at the middle learning rate with the state in these formats, comma-separated: f32, bf16 or q8; after a slash the
    /// format of the weights: f32, bf16 (rounded stochastically), split24 or split32 (bf16 with master weights), as in q8/split24. Weights
    /// other than f32 need --device cpu
    #[arg(long, value_delimiter = ',')]
    formats: Vec<Formats>,

    /// Also train Adam at the middle learning rate with the steps of these Python packages, comma-separated, and with the library's own
    /// steps in the formats of --formats. Needs --device cpu
    #[arg(long, value_enum, value_delimiter = ',')]
    packages: Vec<PackageName>,

    /// A Python with the packages in benches/peers/requirements.txt
    #[arg(long, value_name = "FILE", default_value = "python3", requires = "packages")]
    python: PathBuf,
}

impl FormatArguments {
    /// Refuses formats and packages that do not train on the backend.
    pub fn check(&self, backend: &Backend) -> anyhow::Result<()> {
        ensure!(
            self.packages.is_empty() || matches!(backend, Backend::Cpu),
            "--packages needs --device cpu, got {}",
            backend.name()
        );
        self.formats.iter().try_for_each(|formats| formats.check(backend))
    }

    /// Names and versions of the packages. Each takes a step, to see that it can. None in a process that does not report.
    pub fn versions(&self, common: &Common) -> anyhow::Result<Vec<(&'static str, String)>> {
        let packages = if common.reports() { self.distinct_packages() } else { Vec::new() };
        packages.iter().map(|package| Ok((package.name.name(), package.versions()?))).collect()
    }

    /// The method in each format but f32, which is the method itself.
    pub fn methods(&self, method: &Method) -> Vec<Method> {
        let formats =
            each_once(self.formats.iter().copied().filter(|formats| *formats != Formats::default()));
        formats.into_iter().map(|formats| Method { formats, ..method.clone() }).collect()
    }

    /// If packages are to be compared, Adam in each format but f32, and with the steps of each package.
    pub fn package_methods(&self, adam: &Method) -> Vec<Method> {
        let packages = self.distinct_packages();
        let own = if packages.is_empty() { Vec::new() } else { self.methods(adam) };
        let others = packages.into_iter().map(|package| Method {
            formats: package.name.formats(),
            package: Some(package),
            ..adam.clone()
        });
        own.into_iter().chain(others).collect()
    }

    fn distinct_packages(&self) -> Vec<Package> {
        let names = each_once(self.packages.iter().copied());
        names.into_iter().map(|name| Package { name, python: self.python.clone() }).collect()
    }
}

/// Name of a row of a table, and its text of a cell.
pub type Row<'a, O> = (&'a str, fn(&Cell<O>) -> String);

/// What runs differ in.
#[derive(Clone, Copy, Debug)]
pub enum Difference {
    Formats,
    Packages,
}

impl Difference {
    /// The picture, and its title.
    fn picture(self) -> (&'static str, &'static str) {
        match self {
            Self::Formats => ("formats.svg", "Formats of state and weights"),
            Self::Packages => ("packages.svg", "Steps of adamod and of other packages"),
        }
    }
}

/// What to report of runs that differ in their formats, or in what takes the steps.
pub struct Comparison<'a, O> {
    pub difference: Difference,
    /// The network, the method and its learning rate.
    pub subject: String,
    pub axes: &'a Axes,
    /// Values of a run over time.
    pub points: &'a dyn Fn(&O) -> Vec<f64>,
    /// Rows of the table.
    pub rows: &'a [Row<'a, O>],
}

impl<O> Comparison<'_, O> {
    /// A table, and a picture of the curves side by side. Nothing if there is nothing to compare.
    pub fn report(&self, report: &mut Report, whole: &Cell<O>, others: &[Cell<O>]) -> anyhow::Result<()> {
        if others.is_empty() {
            return Ok(());
        }
        let cells = || [whole].into_iter().chain(others);
        let (file, title) = self.difference.picture();
        report.say(Table {
            title: format!("{}: {title}", self.subject),
            columns: cells().map(|cell| cell.method.storage_name()).collect(),
            rows: (self.rows.iter())
                .map(|(name, text)| ((*name).to_owned(), cells().map(text).collect()))
                .collect(),
        })?;
        let colors = [BLUE, ORANGE, GREEN, GREY].into_iter().chain(SCALE).cycle();
        let series = cells()
            .zip(colors)
            .map(|(cell, color)| cell.series(cell.method.storage_name(), color, self.points));
        let panels = [Panel { title: self.subject.clone(), series: series.collect() }];
        plots::curves(&report.path(file), title, self.axes, &panels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names() {
        for state in StateFormat::ALL {
            for weights in Weights::ALL {
                let formats = Formats { state, weights };
                assert_eq!(formats.to_string().parse(), Ok(formats));
            }
        }
        assert_eq!("bf16".parse(), Ok(Formats { state: StateFormat::Bf16, weights: Weights::F32 }));
        assert!(["", "f16", "q8/", "q8/q8", "/f32"].iter().all(|text| text.parse::<Formats>().is_err()));
    }

    #[test]
    fn packages_are_beside_the_formats_of_the_library() {
        let method = Method::new("Adam", adamod::Adam::new().into(), Default::default());
        let arguments = |formats: &[&str], packages: &[PackageName]| FormatArguments {
            formats: formats.iter().map(|text| text.parse().unwrap()).collect(),
            packages: packages.to_vec(),
            python: "python".into(),
        };
        let both = [PackageName::FlashOptim, PackageName::BitsAndBytes, PackageName::FlashOptim];
        let methods = arguments(&["f32", "q8"], &both).package_methods(&method);
        let names: Vec<_> = methods.iter().map(Method::storage_name).collect();
        assert_eq!(names, ["q8/f32", "FlashOptim", "bitsandbytes"]);
        assert!(methods[1].description().ends_with(", FlashOptim"));
        assert_eq!([1, 2].map(|i: usize| methods[i].formats.dtype()), [DType::Bf16, DType::F32]);
        assert!(arguments(&["q8"], &[]).package_methods(&method).is_empty());
        let [cpu, gpu] = crate::common::test_backends();
        assert!(arguments(&[], &both).check(&cpu).is_ok());
        let error = arguments(&[], &both).check(&gpu).unwrap_err().to_string();
        assert!(error.contains("--packages needs --device cpu, got gpu"), "{error}");
    }

    #[test]
    fn each_format_is_a_method_of_its_own() {
        let method = Method::new("AdaMod", adamod::AdaMod::new().into(), Default::default());
        let formats = ["f32", "q8", "bf16/split24", "q8/f32"].map(|text| text.parse().unwrap()).to_vec();
        let methods =
            FormatArguments { formats, packages: Vec::new(), python: PathBuf::new() }.methods(&method);
        let names: Vec<_> = methods.iter().map(|method| method.description()).collect();
        assert_eq!(
            names,
            ["q8/f32", "bf16/split24"].map(|formats| format!("{}, {formats}", method.description()))
        );
        let group = methods[1].group();
        assert_eq!(group.precision.master_weights, MasterWeights::Split24);
        assert_eq!((group.precision.state, methods[1].formats.dtype()), (StateFormat::Bf16, DType::Bf16));
    }
}

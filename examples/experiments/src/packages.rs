//! The optimizer step of a Burn module by a Python package, to compare with: packages/optimizer.py, in a process of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use adamod::reference::rounded;
use adamod::{DType, Hyperparameters, Rule, StateFormat, WeightDecay};
use anyhow::{Context, bail, ensure};
use burn::module::Module;
use burn::optim::GradientsParams;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::formats::{Formats, Weights};
use crate::tensors;

/// A package with an optimizer that keeps few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PackageName {
    /// AdamW8bit: 8-bit state in blocks of 256, f32 weights
    #[value(name = "bitsandbytes")]
    BitsAndBytes,
    /// FlashAdamW: 8-bit state in groups of 32, bf16 weights with 24-bit master weights; an interpreter runs its kernels, slowly
    #[value(name = "flashoptim")]
    FlashOptim,
}

impl PackageName {
    /// Its name in tables and pictures.
    pub fn name(self) -> &'static str {
        match self {
            Self::BitsAndBytes => "bitsandbytes",
            Self::FlashOptim => "FlashOptim",
        }
    }

    /// The formats of the library that its formats are nearest to.
    pub fn formats(self) -> Formats {
        let weights = match self {
            Self::BitsAndBytes => Weights::F32,
            Self::FlashOptim => Weights::Split24,
        };
        Formats { state: StateFormat::Q8, weights }
    }
}

/// A package, and the Python that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: PackageName,
    pub python: PathBuf,
}

const SCRIPT: &str = include_str!("../packages/optimizer.py");

impl Package {
    /// Takes a step, to see that it can. Returns its version and those of what it needs.
    pub fn versions(&self) -> anyhow::Result<String> {
        self.try_step().with_context(|| {
            format!(
                "--python {}: expected a Python with benches/peers/requirements.txt",
                self.python.display()
            )
        })
    }

    fn try_step(&self) -> anyhow::Result<String> {
        let mut process = Process::start(self)?;
        let hyperparameters = Hyperparameters::from(adamod::Adam::new());
        let mut call = settings(&hyperparameters)?;
        call["labels"] = json!(["x"]);
        call["lengths"] = json!([512]);
        let (answer, _) = process.call("start", call, &[0.0; 512])?;
        let (_, values) = process.call("step", json!({ "learning_rate": 0.5 }), &[1.0; 512])?;
        // Adam's first step is the learning rate.
        let wrong = values.iter().find(|value| !(-0.51..-0.49).contains(*value));
        ensure!(wrong.is_none(), "{}: its first step goes to {wrong:?}, expected -0.5", process.name);
        Ok(answer["versions"].as_str().unwrap_or_default().to_owned())
    }
}

/// What the script has to know of hyperparameters.
fn settings(hyperparameters: &Hyperparameters) -> anyhow::Result<Value> {
    let Rule::Adam(rule) = hyperparameters.rule else {
        bail!("packages take steps of Adam, got {:?}", hyperparameters.rule.kind());
    };
    let weight_decay = match hyperparameters.weight_decay {
        WeightDecay::None => 0.0,
        WeightDecay::Decoupled(decay) => decay,
        other => bail!("packages take decoupled weight decay, got {other:?}"),
    };
    Ok(json!({
        "learning_rate": hyperparameters.learning_rate,
        "betas": rule.betas,
        "epsilon": rule.epsilon,
        "weight_decay": weight_decay,
    }))
}

/// Steps all parameters of a module.
pub struct PackageOptimizer {
    process: Process,
    weights: DType,
    /// Paths of all parameters, in the order of the process; `None` before the first step.
    labels: Option<Vec<String>>,
}

impl PackageOptimizer {
    pub fn new(package: &Package) -> anyhow::Result<Self> {
        Ok(Self { process: Process::start(package)?, weights: package.name.formats().dtype(), labels: None })
    }

    /// Takes a step with these hyperparameters. The first one determines which parameters there are.
    ///
    /// # Errors
    /// If the process fails, or a parameter has no gradient.
    pub fn step<M: Module>(
        &mut self,
        hyperparameters: &Hyperparameters,
        module: M,
        gradients: GradientsParams,
    ) -> anyhow::Result<M> {
        let is_new = self.labels.is_none();
        let taken = tensors::gradients(&module, gradients, |_| is_new);
        if is_new {
            let mut call = settings(hyperparameters)?;
            let values = || taken.iter().filter_map(|one| one.values.as_ref());
            call["labels"] = taken.iter().map(|one| one.label.as_str()).collect();
            call["lengths"] = values().map(Vec::len).collect();
            self.process.call("start", call, &values().flatten().copied().collect::<Vec<_>>())?;
            self.labels = Some(taken.iter().map(|one| one.label.clone()).collect());
        }
        let labels: Vec<_> = taken.iter().map(|one| one.label.clone()).collect();
        ensure!(self.labels.as_ref() == Some(&labels), "a package needs the gradients of all parameters");
        let gradients: Vec<f32> = taken.iter().flat_map(|one| one.gradient.iter().copied()).collect();
        let gradients = match self.weights {
            DType::F32 => gradients,
            weights => rounded(weights, &gradients),
        };
        let call = json!({ "learning_rate": hyperparameters.learning_rate });
        let (_, values) = self.process.call("step", call, &gradients)?;
        let mut values = &values[..];
        let mut of: HashMap<_, _> = HashMap::new();
        for one in &taken {
            let (first, rest) = values.split_at_checked(one.gradient.len()).context("too few values")?;
            of.insert(one.label.as_str(), first.to_vec());
            values = rest;
        }
        ensure!(values.is_empty(), "{} values too many", values.len());
        Ok(tensors::replace(module, |path| of.remove(path)))
    }

    /// Everything that the next step depends on, as text; `None` before the first step.
    pub fn save(&mut self) -> anyhow::Result<Option<String>> {
        if self.labels.is_none() {
            return Ok(None);
        }
        let (answer, _) = self.process.call("save", json!({}), &[])?;
        Ok(Some(answer["state"].as_str().context("a state")?.to_owned()))
    }

    /// Continues with a saved state.
    pub fn restore(&mut self, hyperparameters: &Hyperparameters, state: &str) -> anyhow::Result<()> {
        let mut call = settings(hyperparameters)?;
        call["state"] = state.into();
        let (mut answer, _) = self.process.call("restore", call, &[])?;
        self.labels = Some(serde_json::from_value(answer["labels"].take())?);
        Ok(())
    }
}

/// The script, which answers calls.
struct Process {
    name: &'static str,
    child: Child,
    // `None` once it is to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(package: &Package) -> anyhow::Result<Self> {
        let mut child = Command::new(&package.python)
            // Not from the working directory: it may have files with the names of packages.
            .args(["-P", "-c", SCRIPT])
            .arg(package.name.to_possible_value().context("a name")?.get_name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", package.python.display()))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Self { name: package.name.name(), child, input, output })
    }

    /// Sends a call with numbers. Returns the answer and its numbers.
    fn call(
        &mut self,
        call: &str,
        mut arguments: Value,
        numbers: &[f32],
    ) -> anyhow::Result<(Value, Vec<f32>)> {
        let name = self.name;
        arguments["call"] = call.into();
        arguments["numbers"] = numbers.len().into();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let input = self.input.as_mut().context("a process that has not ended")?;
        // If it has ended, its answer says why.
        let sent = writeln!(input, "{arguments}").and_then(|()| input.write_all(&bytes));
        let sent = sent.and_then(|()| input.flush());
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            self.input = None;
            bail!("{name}: its process ended without an answer: {}", self.child.wait()?);
        }
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("{name}: an answer that is not JSON"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{name}: {error}");
        }
        sent?;
        let count = answer["numbers"].as_u64().context("how many numbers follow")?;
        let mut bytes = vec![0; 4 * count as usize];
        let read = std::io::Read::read_exact(&mut self.output, &mut bytes);
        read.with_context(|| format!("{name}: its process ended within an answer"))?;
        let numbers = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok((answer, numbers))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
pub mod tests {
    use std::path::Path;

    use super::*;

    /// Stands in for a package: SGD with momentum 0.5.
    pub fn stand_in() -> Package {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("packages/stand_in.py");
        Package { name: PackageName::BitsAndBytes, python }
    }

    fn started() -> Process {
        let mut process = Process::start(&stand_in()).unwrap();
        let call = json!({ "labels": ["a", "b"], "lengths": [1, 2], "learning_rate": 0.0 });
        process.call("start", call, &[1.0, 2.0, 3.0]).unwrap();
        process
    }

    #[test]
    fn versions_come_with_a_step_that_is_checked() {
        assert_eq!(stand_in().versions().unwrap(), "stand-in 1");
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let package = Package { python: "/nowhere/python".into(), ..stand_in() };
        let error = format!("{:#}", package.versions().unwrap_err());
        assert!(error.contains("--python /nowhere/python: expected a Python with"), "{error}");
        assert!(error.contains("could not start /nowhere/python"), "{error}");
        for (learning_rate, expected) in [
            (99.0, "bitsandbytes: ValueError: too fast"),
            (98.0, "bitsandbytes: its process ended without an answer: exit status: 0"),
        ] {
            let call = json!({ "learning_rate": learning_rate });
            let error = started().call("step", call, &[0.0; 3]).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        // Other rules, and decay that the packages do not have.
        let adam = Hyperparameters::from(adamod::Adam::new());
        assert!(settings(&adam.with_weight_decay(WeightDecay::Decoupled(0.1))).is_ok());
        assert!(settings(&adam.with_weight_decay(WeightDecay::Coupled(0.1))).is_err());
        assert!(settings(&adamod::AdaMod::new().into()).is_err());
    }
}

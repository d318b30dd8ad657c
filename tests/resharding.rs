//! Checkpoints of sharded runs: saved by some number of ranks, restored into another, and every bit goes on.
#![cfg(feature = "checkpoint")]

mod common;

use std::ops::Range;
use std::path::PathBuf;

use adamod::{
    AdaMod, Checkpoint, CheckpointError, Control, DType, DeviceControl, Group, GroupId, Hyperparameters,
    MasterWeights, NonFinite, Optimizer, Options, Parameter, Precision, Restore, Rule, Sgd, Shard,
    StateFormat, Step, View, Views,
};

use common::{Gpu, Kind, bytes_of, gpu, precision};

/// Whole tensors. The second one is shorter than a chunk, and the last block of neither is whole.
const TENSORS: [(&str, u64); 2] = [("layers.0.weight", 5000), ("layers.0.bias", 333)];

/// How a run is stored.
#[derive(Clone, Debug)]
struct Setup {
    rule: Rule,
    dtype: DType,
    precision: Precision,
    control: Control,
}

impl Setup {
    fn new(dtype: DType, state: StateFormat, master_weights: MasterWeights) -> Self {
        let precision = precision(state).with_master_weights(master_weights);
        Self { rule: AdaMod::new().into(), dtype, precision, control: Control::Host }
    }

    /// Every data type, master weights and state format, another rule, and steps that the device counts.
    fn all() -> Vec<Self> {
        let mut all: Vec<_> = Kind::all()
            .into_iter()
            .filter(|kind| kind.gradients == kind.values)
            .map(|kind| Self::new(kind.values, kind.state, kind.master_weights))
            .collect();
        let bf16 = Self::new(DType::Bf16, StateFormat::Q8, MasterWeights::Split24);
        all.push(Self { rule: Sgd::new().into(), ..bf16.clone() });
        // Without a norm, which would be each rank's own.
        let mut control = DeviceControl::new();
        control.non_finite = NonFinite::Propagate;
        all.push(Self { control: Control::Device(control), ..bf16 });
        all
    }
}

/// A device of a run with its parts of all tensors.
struct Rank {
    gpu: &'static Gpu,
    optimizer: Optimizer,
    group: GroupId,
    dtype: DType,
    /// Elements of each tensor, and where they lie.
    parts: Vec<(Range<u64>, wgpu::Buffer, wgpu::Buffer)>,
}

/// The elements of a tensor that a rank has. Some ranks have nothing of a small one.
fn part(len: u64, rank: u64, ranks: u64) -> Range<u64> {
    let each = len.div_ceil(ranks).next_multiple_of(32);
    (rank * each).min(len)..((rank + 1) * each).min(len)
}

impl Rank {
    fn new(setup: &Setup, rank: u64, ranks: u64) -> Self {
        let gpu = gpu();
        let options = Options::new().with_seed(5).with_control(setup.control);
        let mut optimizer = gpu.optimizer(options).unwrap();
        let hyperparameters = Hyperparameters::from(setup.rule).with_learning_rate(0.01);
        let group = Group::new(hyperparameters).with_precision(setup.precision);
        let group = optimizer.add_group(group).unwrap();
        let mut this = Self { gpu, optimizer, group, dtype: setup.dtype, parts: Vec::new() };
        for (label, len) in TENSORS {
            this.add(label, len, part(len, rank, ranks));
        }
        this
    }

    /// Registers elements of a tensor.
    fn add(&mut self, label: &str, whole: u64, elements: Range<u64>) {
        let len = elements.end - elements.start;
        let bytes = (len * self.dtype.bytes()).next_multiple_of(4).max(4);
        let (values, gradients) = (self.gpu.buffer(bytes), self.gpu.buffer(bytes));
        if len > 0 {
            let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
            let parameter = Parameter::new(label, len)
                .with_dtype(self.dtype)
                .with_shard(Shard::new(elements.start, whole))
                .with_views(views);
            self.optimizer.add_parameter(self.group, parameter).unwrap();
        }
        self.parts.push((elements, values, gradients));
    }

    fn write(&self, buffer: &wgpu::Buffer, elements: &Range<u64>, number: impl Fn(u64) -> f32) {
        let numbers: Vec<f32> = elements.clone().map(number).collect();
        let mut bytes = bytes_of(self.dtype, &numbers);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.gpu.queue.write_buffer(buffer, 0, &bytes);
    }

    /// The values that training starts from.
    fn start(&self) {
        for (elements, values, _) in &self.parts {
            self.write(values, elements, |i| (i as f32 * 0.11).cos());
        }
    }

    fn step(&mut self, seed: u64) {
        for (elements, _, gradients) in &self.parts {
            self.write(gradients, elements, |i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * 1e-2);
        }
        self.optimizer.submit(&Step::all()).unwrap();
    }
}

fn run(setup: &Setup, ranks: u64) -> Vec<Rank> {
    (0..ranks).map(|rank| Rank::new(setup, rank, ranks)).collect()
}

fn train(ranks: &mut [Rank], steps: Range<u64>) {
    for rank in ranks {
        steps.clone().for_each(|seed| rank.step(seed));
    }
}

/// All of a run as one checkpoint.
fn whole(ranks: &[Rank]) -> Checkpoint {
    let of = |rank: &Rank| rank.optimizer.checkpoint_with_values().wait().unwrap();
    Checkpoint::merge(ranks.iter().map(of)).unwrap()
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, rank: usize) -> PathBuf {
        self.folder.path().join(format!("rank-{rank}.safetensors"))
    }

    fn save(&self, ranks: &[Rank]) {
        for (rank, number) in ranks.iter().zip(0..) {
            rank.optimizer.save_with_values(self.path(number)).unwrap();
        }
    }

    fn open(&self, ranks: usize) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::merge((0..ranks).map(|rank| Checkpoint::open(self.path(rank)).unwrap()))
    }
}

#[test]
fn any_number_of_ranks_goes_on_from_any_other_with_the_same_bits() {
    for setup in Setup::all() {
        let mut runs = [1, 2, 3].map(|ranks| run(&setup, ranks));
        let saved: Vec<_> = runs
            .iter_mut()
            .map(|ranks| {
                ranks.iter().for_each(Rank::start);
                train(ranks, 1..4);
                let files = Files::new();
                files.save(ranks);
                files
            })
            .collect();
        let at_checkpoint = whole(&runs[0]);
        // What a run has done since is forgotten by a restore.
        runs.iter_mut().for_each(|ranks| train(ranks, 4..6));
        let expected = whole(&runs[0]);
        for (files, from) in saved.iter().zip(1..) {
            let merged = files.open(from).unwrap();
            assert_eq!(merged, at_checkpoint, "{from} ranks, {setup:?}");
            for ranks in &mut runs {
                for rank in ranks.iter_mut() {
                    rank.optimizer.restore_with(&merged, &Restore::new().allow_extra()).unwrap();
                }
                train(ranks, 4..6);
                assert_eq!(whole(ranks), expected, "from {from} to {} ranks, {setup:?}", ranks.len());
            }
        }
    }
}

/// State of 32 elements shares scales. Formats without such blocks may cut tensors anywhere.
#[test]
fn a_shard_in_another_format_takes_its_part_wherever_it_starts() {
    for from in StateFormat::ALL {
        for to in StateFormat::ALL {
            let mut saved = run(&Setup::new(DType::F32, from, MasterWeights::None), 1);
            saved[0].start();
            train(&mut saved, 1..4);
            let checkpoint = whole(&saved);
            let unit = match to {
                StateFormat::F32 => 1,
                StateFormat::Bf16 => 4,
                _ => 32,
            };
            let elements = 41 * unit..108 * unit;
            let mut rank = Rank::new(&Setup::new(DType::F32, to, MasterWeights::None), 0, 1);
            let (label, len) = ("layers.0.weight", 5000);
            let id = rank.optimizer.parameter(label).unwrap();
            rank.optimizer.remove_parameter(id).unwrap();
            rank.parts.remove(0);
            rank.add(label, len, elements.clone());
            rank.optimizer.restore(&checkpoint).unwrap();
            let range = elements.start as usize..elements.end as usize;
            let id = rank.optimizer.parameter(label).unwrap();
            let state = rank.optimizer.read_state(id).wait().unwrap();
            let expected = checkpoint.state(label).unwrap();
            assert_eq!(state.step, 3);
            let relative = match to {
                StateFormat::F32 => 1e-6,
                StateFormat::Bf16 => 1e-2,
                _ => 0.08,
            };
            for ((name, found), (_, expected)) in state.tensors.iter().zip(&expected.tensors) {
                let expected = &expected[range.clone()];
                assert_eq!(found.len(), expected.len());
                let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    let allowed = if from == to { 0.0 } else { relative * (expected.abs() + 1e-4 * largest) };
                    assert!((found - expected).abs() <= allowed, "{name} from {from:?} to {to:?}");
                }
            }
            let values = rank.optimizer.read_parameter(id).wait().unwrap();
            assert_eq!(values, checkpoint.values(label).unwrap()[range]);
        }
    }
}

/// An optimizer with one parameter without views.
fn single(elements: Range<u64>, whole: u64) -> Optimizer {
    let gpu = gpu();
    let mut optimizer = gpu.optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(Sgd::new()).unwrap();
    let shard = Shard::new(elements.start, whole);
    let parameter = Parameter::new("wte", elements.end - elements.start).with_shard(shard);
    optimizer.add_parameter(group, parameter).unwrap();
    optimizer
}

fn fill(optimizer: &mut Optimizer, step: u64, number: impl Fn(u64) -> f32, len: u64) {
    let id = optimizer.parameter("wte").unwrap();
    let momentum = (0..len).map(number).collect();
    optimizer.write_state(id, &adamod::State::new(step, vec![("momentum_buffer", momentum)])).unwrap();
}

/// A rank reads no more than its own part of a file: damage elsewhere does not stop it, and damage of its own part does.
#[test]
fn a_rank_reads_its_own_part_and_verifies_it() {
    const LEN: u64 = 1 << 20;
    let files = Files::new();
    let path = files.path(0);
    let mut saving = single(0..LEN, LEN);
    fill(&mut saving, 4, |i| i as f32, LEN);
    saving.save(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut ranks = [single(0..LEN / 2, LEN), single(LEN / 2..LEN, LEN)];
    ranks[0].restore(&checkpoint).unwrap();
    let id = ranks[0].parameter("wte").unwrap();
    let state = ranks[0].read_state(id).wait().unwrap();
    assert_eq!(state.step, 4);
    assert!(
        state.tensor("momentum_buffer").unwrap().iter().zip(0..LEN / 2).all(|(&found, i)| found == i as f32)
    );
    let before = ranks[1].checkpoint().wait().unwrap();
    let error = ranks[1].restore(&checkpoint).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("rank-0.safetensors: tensor \"momentum_buffer.wte\""), "{text}");
    assert_eq!(ranks[1].checkpoint().wait().unwrap(), before);
    // A restore of everything finds the damage.
    assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("rank-0.safetensors"));
}

#[test]
fn checkpoints_that_do_not_belong_together_are_refused_by_name() {
    let checkpoint = |elements: Range<u64>, step: u64| {
        let len = elements.end - elements.start;
        let mut optimizer = single(elements, 96);
        fill(&mut optimizer, step, |i| i as f32, len);
        optimizer.checkpoint().wait().unwrap()
    };
    let merge = |checkpoints: &[&Checkpoint]| Checkpoint::merge(checkpoints.iter().copied().cloned());
    let [first, second, third] = [0..32, 32..64, 64..96].map(|elements| checkpoint(elements, 2));

    let all = merge(&[&third, &first, &second]).unwrap();
    assert_eq!(all.parameter("wte").map(|of| (of.first, of.len, of.whole)), Some((0, 96, 96)));
    // A part of a tensor may be merged, and restored where it is enough.
    let part = merge(&[&third, &second]).unwrap();
    single(40..80, 96).restore(&part).unwrap();
    let error = single(0..64, 96).restore(&part).unwrap_err().to_string();
    assert_eq!(
        error,
        "the range of parameter \"wte\" of the checkpoint is 32..96 of 96, expected 0..64 of 96 as in the optimizer"
    );
    // Equal copies are one parameter.
    assert_eq!(merge(&[&first, &second, &second.clone(), &third]).unwrap(), all);

    let error = merge(&[]).unwrap_err();
    assert!(matches!(error, CheckpointError::NothingToMerge), "{error}");
    let error = merge(&[&first, &third]).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Gap { label, first: 32, end: 64 } if label == "wte"),
        "{error}"
    );
    let error = merge(&[&first, &second, &checkpoint(48..96, 2)]).unwrap_err();
    assert!(matches!(&error, CheckpointError::Overlap { first: 48, end: 64, .. }), "{error}");
    let mut other = single(32..64, 96);
    fill(&mut other, 2, |i| -(i as f32), 32);
    let error = merge(&[&first, &second, &other.checkpoint().wait().unwrap()]).unwrap_err();
    assert!(matches!(&error, CheckpointError::Overlap { first: 32, end: 64, .. }), "{error}");
    let error = merge(&[&first, &checkpoint(32..64, 3)]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the step count of parameter \"wte\" of checkpoint 1 is 3, expected 2 as in those before it"
    );
    let mut other = single(32..64, 96);
    fill(&mut other, 2, |i| i as f32, 32);
    let group = other.groups().next().unwrap().0;
    other.set_learning_rate(group, 0.5).unwrap();
    let error = merge(&[&first, &other.checkpoint().wait().unwrap()]).unwrap_err().to_string();
    assert!(error.contains("group 0 of checkpoint 1") && error.contains("0.5"), "{error}");
    let error =
        merge(&[&first, &checkpoint(0..32, 2).filter(|_| false)]).map(|merged| merged.parameters().len());
    assert_eq!(error.unwrap(), 1, "a rank may have no parameters");
}

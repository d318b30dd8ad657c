//! The bits that an earlier version computed, and the checkpoint files that it wrote. `tests/compatibility/README.md` describes the data.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use adamod::{
    AdaMod, Adam, Checkpoint, Control, DType, DeviceControl, Formula, Group, Hyperparameters, LossScale,
    MasterWeights, Objective, Options, Rule, Sgd, StateFormat, WeightDecay, Workgroups,
};
use serde_json::{Value, json};

use common::{
    Engine, Kind, Layout, Model, Tensor, all, bits_of, bytes_of, float_bits, gpu, number_of, precision,
};

/// A folder to which the tests write their data instead of comparing with the recorded data.
fn folder_to_write() -> Option<PathBuf> {
    std::env::var_os("COMPATIBILITY_WRITE_TO").map(PathBuf::from)
}

fn recorded(path: impl AsRef<Path>) -> Vec<u8> {
    let path = common::package::folder().join("tests/compatibility").join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

// Rules and data.

const RULES: [&str; 4] = ["adamod-paper", "adamod-authors", "adam", "sgd"];
const STATE_FORMATS: [StateFormat; 3] = [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8];

fn rule(name: &str, betas: [f64; 3], epsilon: f64, momentum: f64) -> Rule {
    let adamod = AdaMod::new().with_betas(betas).with_epsilon(epsilon);
    match name {
        "adamod-paper" => adamod.into(),
        "adamod-authors" => adamod.with_formula(Formula::AuthorsCode).into(),
        "adam" => Adam::new().with_betas([betas[0], betas[1]]).with_epsilon(epsilon).into(),
        "sgd" => Sgd::new().with_momentum(momentum).into(),
        _ => panic!("no rule is called {name}"),
    }
}

/// A random word: SplitMix64 of the stream and the element.
fn random(stream: u64, element: usize) -> u64 {
    let mut z = (stream << 32 | element as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A number in [-1, 1) with 24 bits, which needs no rounding.
fn uniform(random: u64) -> f32 {
    (random >> 40) as f32 / 8_388_608.0 - 1.0
}

fn rounded(dtype: DType, numbers: &[f32]) -> Vec<f32> {
    bits_of(dtype, &bytes_of(dtype, numbers)).into_iter().map(|bits| number_of(dtype, bits)).collect()
}

/// A tensor whose values are uniform in [-2, 2). `index` is its place among all tensors of the model.
fn tensor(index: usize, label: &str, group: usize, kind: Kind, len: usize) -> Tensor {
    let values: Vec<f32> = (0..len).map(|i| 2.0 * uniform(random(1000 * index as u64, i))).collect();
    Tensor { label: label.into(), group, values: rounded(kind.values, &values), kind }
}

/// The gradient of tensor `index` in a step, before it is rounded. Steps count from 1. An eighth of the elements are zero, and the others
/// are uniform below powers of two from 2^-13 to 4.
fn raw_gradient(index: usize, len: usize, step: u64) -> Vec<f32> {
    let element = |i| {
        let random = random(1000 * index as u64 + step, i);
        let is_zero = random >> 4 & 7 == 0;
        if is_zero { 0.0 } else { uniform(random) * 2_f32.powi(2 - (random & 15) as i32) }
    };
    (0..len).map(element).collect()
}

/// The counters of the device: steps taken and skipped, and the bits of the loss scale and the norm.
fn progress(engine: &Engine) -> Option<[u32; 4]> {
    engine.optimizer.control_buffer()?;
    let progress = engine.optimizer.read_progress().wait().unwrap();
    Some([progress.taken, progress.skipped, progress.loss_scale.to_bits(), progress.norm.to_bits()])
}

// Checksums.

/// Checksums by key and run, as in golden.json.
type Golden = BTreeMap<String, BTreeMap<String, Vec<String>>>;

const LENGTHS: [usize; 6] = [1, 5, 33, 257, 1024, 2500];
/// Tensors of this length have gradients at the edges. Their state is one block.
const SPECIAL: usize = 257;
const LEARNING_RATES: [f64; 5] = [0.01, 0.02, 0.005, 0.03, 0.001];

/// A model and the start of its keys.
struct GoldenModel {
    key: String,
    model: Model,
    /// The end of each group's keys.
    groups: Vec<String>,
}

/// Data types of values and gradients, and master weights.
const TYPES: [(DType, DType, MasterWeights); 11] = [
    (DType::F32, DType::F32, MasterWeights::None),
    (DType::F16, DType::F16, MasterWeights::F32),
    (DType::F16, DType::F32, MasterWeights::F32),
    (DType::Bf16, DType::Bf16, MasterWeights::None),
    (DType::Bf16, DType::F32, MasterWeights::None),
    (DType::Bf16, DType::Bf16, MasterWeights::Split24),
    (DType::Bf16, DType::F32, MasterWeights::Split24),
    (DType::Bf16, DType::Bf16, MasterWeights::Split32),
    (DType::Bf16, DType::F32, MasterWeights::Split32),
    (DType::Bf16, DType::Bf16, MasterWeights::F32),
    (DType::Bf16, DType::F32, MasterWeights::F32),
];

/// Each rule with each kind of tensor. A model has a group for each kind of weight decay and each direction.
fn golden_models() -> Vec<GoldenModel> {
    let mut models = Vec::new();
    for name in RULES {
        for (values, gradients, master_weights) in TYPES {
            for state in STATE_FORMATS {
                let kind = Kind { values, gradients, shadow: None, state, master_weights };
                models.push(golden_model(name, kind));
            }
        }
    }
    models
}

fn golden_model(name: &str, kind: Kind) -> GoldenModel {
    let decays = [
        ("none", WeightDecay::None),
        ("decoupled", WeightDecay::Decoupled(0.05)),
        ("coupled", WeightDecay::Coupled(0.05)),
    ];
    let directions = [("min", Objective::Minimize), ("max", Objective::Maximize)];
    let rule = rule(name, [0.9, 0.999, 0.99], 1e-8, 0.9);
    let mut model = Model { options: Options::new().with_seed(11), groups: Vec::new(), tensors: Vec::new() };
    let mut groups = Vec::new();
    for (decay, weight_decay) in decays {
        for (direction, objective) in directions {
            for len in LENGTHS {
                let label = format!("{decay}/{direction}/{len}");
                model.tensors.push(tensor(model.tensors.len(), &label, model.groups.len(), kind, len));
            }
            let hyperparameters =
                Hyperparameters::from(rule).with_weight_decay(weight_decay).with_objective(objective);
            model.groups.push(Group::new(hyperparameters).with_precision(kind.precision()));
            groups.push(format!("{decay}/{direction}"));
        }
    }
    let Kind { values, gradients, state, master_weights, .. } = kind;
    let key = format!("{name}/{values}/{gradients}/{}/{}", state.name(), master_weights.name());
    GoldenModel { key, model, groups }
}

/// The gradients of all tensors. Those of special tensors are tiny in some places, not finite in step 2, and huge in step 4.
///
/// Q8 has no code for NaN. It makes a number of the payload, which depends on the compiler. So with Q8 and the host's control, which
/// skips no step, all gradients are finite.
fn golden_gradients(model: &Model, step: u64) -> Vec<Vec<f32>> {
    const TINY: [(usize, f32); 6] =
        [(7, 1e-30), (8, -1e-42), (9, 1e-20), (10, -0.0), (11, 6e-8), (12, -1e-6)];
    const NON_FINITE: [(usize, f32); 3] = [(3, f32::NAN), (100, f32::INFINITY), (200, f32::NEG_INFINITY)];
    const HUGE: [(usize, f32); 3] = [(5, 1e30), (50, -3e38), (150, 3e4)];
    const HUGE_F16: [(usize, f32); 3] = [(5, 65_504.0), (50, -60_000.0), (150, 3e4)];
    let of_tensor = |(index, tensor): (usize, &Tensor)| {
        let mut gradient = raw_gradient(index, tensor.len(), step);
        if tensor.len() == SPECIAL {
            let has_nan = model.options.control != Control::Host || tensor.kind.state != StateFormat::Q8;
            let others = match step {
                2 if has_nan => NON_FINITE.as_slice(),
                4 if tensor.kind.gradients == DType::F16 => &HUGE_F16,
                4 => &HUGE,
                _ => &[],
            };
            for &(i, number) in TINY.iter().chain(others) {
                gradient[i] = number;
            }
        }
        rounded(tensor.kind.gradients, &gradient)
    };
    model.tensors.iter().enumerate().map(of_tensor).collect()
}

/// Little-endian bytes of elements. All NaN become one, because their payload depends on the order in which a compiler takes operands.
fn canonical_bytes(dtype: DType, bits: &[u32]) -> Vec<u8> {
    let of_element = |&bits: &u32| match number_of(dtype, bits) {
        number if number.is_nan() => bytes_of(dtype, &[f32::NAN]),
        _ => bits.to_le_bytes()[..dtype.bytes() as usize].to_vec(),
    };
    bits.iter().flat_map(of_element).collect()
}

/// The bytes of a tensor's blocks of state.
fn canonical_block(tensor: &Tensor, states: usize, words: &[u32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let dtype = match tensor.kind.state {
        StateFormat::F32 => DType::F32,
        StateFormat::Bf16 => DType::Bf16,
        _ => return bytes,
    };
    // Only special tensors have NaN, and only in the part of their states.
    if tensor.len() == SPECIAL {
        let end = states * SPECIAL.next_multiple_of(4) * dtype.bytes() as usize;
        let part = canonical_bytes(dtype, &bits_of(dtype, &bytes[..end]));
        bytes[..end].copy_from_slice(&part);
    }
    bytes
}

/// CRC32 of a group's ordinary tensors one after the other, and of its special one.
fn checksum(model: &Model, group: usize, bytes_of: impl Fn(usize) -> Vec<u8>) -> String {
    let mut hashers = [crc32fast::Hasher::new(), crc32fast::Hasher::new()];
    for (index, tensor) in model.tensors.iter().enumerate().filter(|(_, tensor)| tensor.group == group) {
        hashers[usize::from(tensor.len() == SPECIAL)].update(&bytes_of(index));
    }
    hashers.map(|hasher| format!("{:08x}", hasher.finalize())).concat()
}

/// Compares the checksums of these runs with golden.json.
fn check(found: Golden, runs: &[&str]) {
    static WRITTEN: Mutex<Golden> = Mutex::new(Golden::new());
    if let Some(folder) = folder_to_write() {
        // The tests of a process write one file.
        let mut written = WRITTEN.lock().unwrap();
        for (key, runs) in found {
            written.entry(key).or_default().extend(runs);
        }
        let line = |(key, runs)| format!("{key:?}:{}", serde_json::to_string(runs).unwrap());
        let lines: Vec<_> = written.iter().map(line).collect();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("golden.json"), format!("{{\n{}\n}}\n", lines.join(",\n"))).unwrap();
        return;
    }
    let mut expected: Golden = serde_json::from_slice(&recorded("golden.json")).unwrap();
    expected.values_mut().for_each(|of| of.retain(|run, _| runs.contains(&run.as_str())));
    expected.retain(|_, of| !of.is_empty());
    let keys: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differing: Vec<String> = keys
        .iter()
        .filter(|&&key| found.get(key) != expected.get(key))
        .map(|&key| format!("{key}\n  expected {:?}\n  found    {:?}", expected.get(key), found.get(key)))
        .collect();
    let (count, all) = (differing.len(), keys.len());
    assert!(differing.is_empty(), "{count} of {all} keys differ:\n{}", differing.join("\n"));
}

#[test]
fn the_twin_computes_the_recorded_bits() {
    let mut found = Golden::new();
    for GoldenModel { key, model, groups } in golden_models() {
        let mut twin = model.twin::<f32>();
        for (step, learning_rate) in (1..).zip(LEARNING_RATES) {
            for (index, group) in model.groups.iter().enumerate() {
                twin.set_hyperparameters(index, group.hyperparameters.with_learning_rate(learning_rate));
            }
            twin.step(&all(&golden_gradients(&model, step)));
        }
        let states = model.rule().state_names().len();
        for (group, of) in groups.iter().enumerate() {
            let floats = |numbers| canonical_bytes(DType::F32, &float_bits(numbers));
            let narrowed =
                |index: usize| canonical_bytes(model.tensors[index].kind.values, twin.narrowed(index));
            let words = |index: usize| canonical_block(&model.tensors[index], states, twin.words(index));
            let mut checksums = vec![
                checksum(&model, group, |index| floats(twin.values(index))),
                checksum(&model, group, narrowed),
                checksum(&model, group, words),
            ];
            for state in 0..states {
                checksums.push(checksum(&model, group, |index| floats(&twin.state(index)[state])));
            }
            found.entry(format!("{key}/{of}")).or_default().insert("twin".into(), checksums);
        }
    }
    check(found, &["twin"]);
}

fn check_device(workgroups: Workgroups) {
    // Other adapters round or contract differently.
    if !gpu().is_exact() {
        return;
    }
    let loss_scale =
        LossScale::Dynamic { initial: 1024.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2 };
    // The last digits of a norm may depend on the number of threads that sum it.
    let clipped = if workgroups == Workgroups::Cpu { "clipped-cpu" } else { "clipped" };
    let runs = [
        ("host", Control::Host),
        ("device", Control::Device(DeviceControl::new())),
        (clipped, Control::Device(DeviceControl::new().with_loss_scale(loss_scale).with_max_norm(1.0))),
    ];
    let mut found = Golden::new();
    for GoldenModel { key, mut model, groups } in golden_models() {
        for (run, control) in runs {
            model.options = model.options.clone().with_control(control).with_workgroups(workgroups);
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
            for (step, learning_rate) in (1..).zip(LEARNING_RATES) {
                for &group in &engine.groups {
                    engine.optimizer.set_learning_rate(group, learning_rate).unwrap();
                }
                engine.step(&all(&golden_gradients(&model, step)));
            }
            // Values and states of each tensor.
            let of_tensor = |(index, tensor): (usize, &Tensor)| {
                let mut parts = vec![canonical_bytes(tensor.kind.values, &engine.value_bits(index))];
                for (_, state) in engine.state(index).tensors {
                    parts.push(canonical_bytes(DType::F32, &float_bits(&state)));
                }
                parts
            };
            let parts: Vec<_> = model.tensors.iter().enumerate().map(of_tensor).collect();
            for (group, of) in groups.iter().enumerate() {
                let checksum = |part: usize| checksum(&model, group, |index| parts[index][part].clone());
                let checksums = (0..parts[0].len()).map(checksum).collect();
                found.entry(format!("{key}/{of}")).or_default().insert(run.into(), checksums);
            }
            if let Some(progress) = progress(&engine) {
                let digits = progress.map(|number| format!("{number:08x}")).to_vec();
                found.entry(format!("{key}/progress")).or_default().insert(run.into(), digits);
            }
        }
    }
    check(found, &runs.map(|(run, _)| run));
}

#[test]
fn gpu_workgroups_compute_the_recorded_bits() {
    check_device(Workgroups::Gpu);
}

#[test]
fn cpu_workgroups_compute_the_recorded_bits() {
    check_device(Workgroups::Cpu);
}

// Checkpoints.

/// Steps before a checkpoint, and after it.
const STEPS: [u64; 2] = [4, 3];

/// An optimizer of which there is a checkpoint. It has two groups and four tensors.
struct Case {
    rule: &'static str,
    control: Control,
    /// Data type of each tensor.
    values: [DType; 4],
    /// Data type of all gradients, if it is not that of the tensors.
    gradients: Option<DType>,
    /// State format of each tensor. The first and the third tensor have their group's.
    states: [StateFormat; 4],
    master_weights: MasterWeights,
    /// Length of the first tensor.
    len: usize,
}

impl Case {
    fn new(
        rule: &'static str,
        values: [DType; 4],
        states: [StateFormat; 4],
        master_weights: MasterWeights,
    ) -> Self {
        Self { rule, control: Control::Host, values, gradients: None, states, master_weights, len: 34 }
    }

    /// The first tensor has two blocks of state instead of one.
    fn long(self) -> Self {
        Self { len: 1031, ..self }
    }

    fn with_gradients(self, dtype: DType) -> Self {
        Self { gradients: Some(dtype), ..self }
    }

    fn on_device(self, loss_scale: LossScale, max_norm: Option<f64>) -> Self {
        let control = DeviceControl::new().with_loss_scale(loss_scale);
        let control = max_norm.map_or(control, |norm| control.with_max_norm(norm));
        Self { control: Control::Device(control), ..self }
    }

    fn all() -> Vec<Self> {
        use MasterWeights::{F32, None, Split24, Split32};
        let (f32, f16, bf16) = ([DType::F32; 4], [DType::F16; 4], [DType::Bf16; 4]);
        let mixed = [DType::F32, DType::Bf16, DType::F16, DType::Bf16];
        let [in_f32, in_bf16, in_q8] = STATE_FORMATS;
        let dynamic = |initial| LossScale::Dynamic {
            initial,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 3,
        };
        let constant = LossScale::Constant;
        let [paper, authors, adam, sgd] = RULES;
        vec![
            Self::new(paper, f32, [in_f32; 4], None).long(),
            Self::new(paper, bf16, [in_q8; 4], Split24).long(),
            Self::new(paper, bf16, [in_bf16; 4], None),
            Self::new(paper, mixed, [in_q8, in_f32, in_bf16, in_bf16], F32).with_gradients(DType::F32),
            Self::new(paper, bf16, [in_q8; 4], Split32).on_device(dynamic(1024.0), Some(0.5)),
            Self::new(authors, f16, [in_q8; 4], F32),
            Self::new(authors, bf16, [in_bf16; 4], Split32).with_gradients(DType::F32),
            Self::new(authors, f32, [in_bf16; 4], None).on_device(constant(1.0), Option::None),
            Self::new(adam, bf16, [in_f32; 4], F32),
            Self::new(adam, bf16, [in_q8; 4], Split32),
            Self::new(adam, mixed, [in_f32, in_f32, in_q8, in_bf16], F32).with_gradients(DType::Bf16),
            Self::new(adam, f32, [in_f32; 4], None).on_device(constant(8.0), Some(2.0)),
            Self::new(sgd, f16, [in_q8; 4], F32),
            Self::new(sgd, f32, [in_bf16; 4], None),
            Self::new(sgd, bf16, [in_f32; 4], None).with_gradients(DType::F32),
            Self::new(sgd, bf16, [in_bf16; 4], Split24).on_device(dynamic(65_536.0), Option::None),
        ]
    }

    /// The name of its files.
    fn name(&self) -> String {
        let common = |names: [&'static str; 4]| {
            if names.iter().all(|name| *name == names[0]) { names[0] } else { "mixed" }
        };
        let control = if self.control == Control::Host { "" } else { "-device" };
        let (values, states) = (self.values.map(DType::name), self.states.map(StateFormat::name));
        let (values, states) = (common(values), common(states));
        format!("{}{control}-{values}-{states}-{}", self.rule, self.master_weights.name())
    }

    fn model(&self) -> Model {
        let [first_state, _, second_state, _] = self.states;
        let first = Hyperparameters::from(rule(self.rule, [0.9, 0.999, 0.99], 1e-8, 0.9))
            .with_learning_rate(0.01)
            .with_weight_decay(WeightDecay::Decoupled(0.02));
        let second = Hyperparameters::from(rule(self.rule, [0.8, 0.99, 0.95], 1e-6, 0.7))
            .with_learning_rate(0.003)
            .with_weight_decay(WeightDecay::Coupled(0.1 + 0.2))
            .with_objective(Objective::Maximize);
        let group = |hyperparameters, state, f32_state_below| {
            let precision = precision(state).with_master_weights(self.master_weights);
            Group::new(hyperparameters).with_precision(precision.with_f32_state_below(f32_state_below))
        };
        let f32_state_below = if first_state == second_state { 0 } else { 32 };
        let groups = vec![group(first, first_state, 0), group(second, second_state, f32_state_below)];
        let tensors =
            [("wte.weight", 0, self.len), ("bias", 1, 5), ("layers.0.weight", 1, 33), ("late \"ü\"", 0, 70)];
        let of_tensor = |(index, (label, group, len))| {
            let (values, state): (DType, _) = (self.values[index], self.states[index]);
            let gradients = self.gradients.unwrap_or(values);
            let master_weights = self.master_weights;
            tensor(index, label, group, Kind { values, gradients, shadow: None, state, master_weights }, len)
        };
        let options = Options::new().with_seed(0x0123_4567_89ab_cdef).with_control(self.control);
        Model { options, groups, tensors: tensors.into_iter().enumerate().map(of_tensor).collect() }
    }

    /// Takes a step. The first three tensors miss some steps, and the last one misses all before the checkpoint. With device control,
    /// gradients carry the loss scale, and steps 2 and 6 have an infinite one.
    fn step(&self, engine: &mut Engine, step: u64) {
        let of_tensor = |(index, tensor): (usize, &Tensor)| {
            let is_absent = if index == 3 { step <= STEPS[0] } else { (index as u64 + step) % 4 == 3 };
            let mut gradient = raw_gradient(index, tensor.len(), step);
            if let Control::Device(DeviceControl { loss_scale, .. }) = self.control {
                let (LossScale::Constant(scale) | LossScale::Dynamic { initial: scale, .. }) = loss_scale
                else {
                    panic!("the test does not know {loss_scale:?}");
                };
                gradient.iter_mut().for_each(|of| *of *= scale as f32);
                if step % 4 == 2 && index == 2 {
                    gradient[7] = f32::INFINITY;
                }
            }
            (!is_absent).then_some(gradient)
        };
        let gradients: Vec<_> = engine.tensors.iter().enumerate().map(of_tensor).collect();
        engine.step(&gradients.iter().map(Option::as_deref).collect::<Vec<_>>());
    }

    /// Writes a checkpoint and what follows from it.
    fn write(&self, folder: &Path) {
        let mut engine = Engine::new(gpu(), &self.model(), Layout::TwoPools(16));
        (1..=STEPS[0]).for_each(|step| self.step(&mut engine, step));
        let file = engine.optimizer.checkpoint().wait().unwrap().to_bytes().unwrap();
        let at_checkpoint = moment(&engine);
        (1..=STEPS[1]).for_each(|step| self.step(&mut engine, STEPS[0] + step));
        let moments = json!({ "at_checkpoint": at_checkpoint, "after": moment(&engine) });
        let path = folder.join("checkpoints").join(self.name());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_extension("safetensors"), file).unwrap();
        fs::write(path.with_extension("json"), format!("{moments}\n")).unwrap();
    }

    /// Continues from a recorded checkpoint. Restoring has no arithmetic, so its bits are compared on every adapter.
    fn check(&self, workgroups: Workgroups) {
        let name = self.name();
        let file = recorded(format!("checkpoints/{name}.safetensors"));
        let moments: Value = serde_json::from_slice(&recorded(format!("checkpoints/{name}.json"))).unwrap();
        let mut model = self.model();
        model.options = model.options.with_workgroups(workgroups);
        let parameters = moments["at_checkpoint"]["parameters"].as_array().unwrap();
        for (tensor, parameter) in model.tensors.iter_mut().zip(parameters) {
            tensor.values = from_hex(tensor.kind.values, parameter["values"].as_str().unwrap());
        }
        let checkpoint = Checkpoint::from_bytes(&file).unwrap();
        assert_eq!(checkpoint.groups(), model.groups, "{name}");
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        engine.optimizer.restore(&checkpoint).unwrap();
        let is_same = moment(&engine) == moments["at_checkpoint"];
        assert!(is_same, "{name}, {workgroups:?}: other bits after restoring");
        (1..=STEPS[1]).for_each(|step| self.step(&mut engine, STEPS[0] + step));
        let is_same = moment(&engine) == moments["after"];
        assert!(is_same || !gpu().is_exact(), "{name}, {workgroups:?}: other bits after {} steps", STEPS[1]);
    }
}

/// The hexadecimal digits of each element's bits.
fn to_hex(dtype: DType, bits: &[u32]) -> String {
    let digits = 2 * dtype.bytes() as usize;
    bits.iter().map(|bits| format!("{bits:0digits$x}")).collect()
}

/// The numbers of which these are the bits.
fn from_hex(dtype: DType, text: &str) -> Vec<f32> {
    let digits = 2 * dtype.bytes() as usize;
    let number = |start| u32::from_str_radix(&text[start..start + digits], 16).unwrap();
    (0..text.len()).step_by(digits).map(|start| number_of(dtype, number(start))).collect()
}

/// Step counts, values and states of all tensors, and the counters of the device.
fn moment(engine: &Engine) -> Value {
    let of_tensor = |(index, tensor): (usize, &Tensor)| {
        let state = engine.state(index);
        let hex =
            |(name, numbers): &(&'static str, Vec<f32>)| (*name, to_hex(DType::F32, &float_bits(numbers)));
        let states: BTreeMap<_, _> = state.tensors.iter().map(hex).collect();
        let values = to_hex(tensor.kind.values, &engine.value_bits(index));
        json!({ "step": state.step, "values": values, "states": states })
    };
    let parameters: Vec<_> = engine.tensors.iter().enumerate().map(of_tensor).collect();
    json!({ "progress": progress(engine), "parameters": parameters })
}

#[test]
fn checkpoints_of_format_version_1_continue_with_the_recorded_bits() {
    for case in Case::all() {
        match folder_to_write() {
            Some(folder) => case.write(&folder),
            None => {
                [Workgroups::Gpu, Workgroups::Cpu].into_iter().for_each(|workgroups| case.check(workgroups))
            }
        }
    }
}

// Checkpoints of version 2.

/// The optimizer of which `checkpoints-2` has the file of this name, with its tensor of 67 elements.
fn case_of_version_2(name: &str) -> (Rule, Control, StateFormat, DType, MasterWeights) {
    let device = Control::Device(DeviceControl::new());
    let plain = Sgd::new().with_momentum(0.0).into();
    match name {
        "sgd-without-momentum-f32-f32-none" => {
            (plain, Control::Host, StateFormat::F32, DType::F32, MasterWeights::None)
        }
        "sgd-without-momentum-bf16-q8-split24" => {
            (plain, device, StateFormat::Q8, DType::Bf16, MasterWeights::Split24)
        }
        "sgd-f32-f32-none" => {
            (Sgd::new().into(), Control::Host, StateFormat::F32, DType::F32, MasterWeights::None)
        }
        "adam-device-f32-q8-none" => {
            (Adam::new().into(), device, StateFormat::Q8, DType::F32, MasterWeights::None)
        }
        "adamod-f32-bf16-none" => {
            (AdaMod::new().into(), Control::Host, StateFormat::Bf16, DType::F32, MasterWeights::None)
        }
        _ => panic!("no file of version 2 is called {name}"),
    }
}

/// Version 2 has fewer hyperparameters, and SGD without momentum has a momentum buffer, which is left in the file.
#[test]
fn files_of_version_2_are_restored() {
    let folder = common::package::folder().join("tests/compatibility/checkpoints-2");
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names.len(), 5);
    for name in names {
        let (rule, control, state, dtype, master_weights) = case_of_version_2(&name);
        let hyperparameters = Hyperparameters::from(rule)
            .with_learning_rate(0.25)
            .with_weight_decay(WeightDecay::Decoupled(0.125));
        let kind = Kind { values: dtype, gradients: dtype, shadow: None, state, master_weights };
        let mut model = Model::of_kinds(hyperparameters, &[(kind, 67)])
            .with_options(Options::new().with_control(control));
        model.tensors[0].label = "p".into();
        model.tensors[0].values.fill(0.0);
        let gradient = |t: usize| (0..67).map(|i| ((i * 7 + t * 5) % 17) as f32 / 8.0 - 1.0).collect();
        let step = |engine: &mut Engine<'_>, t| engine.step(&all(&[gradient(t)]));
        let mut fresh = Engine::new(gpu(), &model, Layout::TwoPools(256));
        (0..4).for_each(|t| step(&mut fresh, t));

        let file = recorded(format!("checkpoints-2/{name}.safetensors"));
        let checkpoint = Checkpoint::from_bytes(&file).unwrap();
        // It is written in the present version, with what is left of it.
        let rewritten = Checkpoint::from_bytes(&checkpoint.to_bytes().unwrap()).unwrap();
        assert_eq!(rewritten, checkpoint, "{name}");
        for checkpoint in [checkpoint, rewritten] {
            // The file has no values, but with master weights it has a part of them.
            let mut restored = Engine::new(gpu(), &model, Layout::TwoPools(256));
            let bytes = bytes_of(dtype, &fresh.values(0));
            let (buffer, offset) = restored.locations[0].values;
            let padded: Vec<u8> =
                bytes.iter().copied().chain([0, 0]).take(bytes.len().next_multiple_of(4)).collect();
            gpu().queue.write_buffer(&restored.buffers[buffer], offset, &padded);
            restored.optimizer.restore(&checkpoint).unwrap();
            assert_eq!(restored.optimizer.step_count(restored.ids[0]), Some(4), "{name}");
            if gpu().is_exact() {
                assert_eq!(restored.bits(), fresh.bits(), "{name}");
            }
            assert!(restored.state(0).tensors.iter().map(|(name, _)| *name).eq(rule.state_names()), "{name}");
            step(&mut restored, 4);
        }
    }
}

//! Parameters and gradients in 16 bits, master weights, and state in 16 and 8 bits, against the twin that stores as they do.

use adamod::reference::{Reference, Storage, rounded};
use adamod::{
    AfterUse, DType, Formula, GroupId, Hyperparameters, MasterWeights, Optimizer, Options, Parameter,
    ParameterId, Precision, ReadError, Rule, StateFormat, Update, View, Views, WeightDecay, Workgroups,
    WriteError,
};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StudentT};

use crate::common::{Gpu, SENTINEL, gpu, rules};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const STATES: [StateFormat; 3] = [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8];
const MASTERS: [MasterWeights; 4] =
    [MasterWeights::None, MasterWeights::Split24, MasterWeights::Split32, MasterWeights::F32];
const SEED: u64 = 11;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    values: DType,
    gradients: DType,
    master_weights: MasterWeights,
    state: StateFormat,
}

impl Kind {
    /// Every kind that exists.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for values in DTYPES {
            for gradients in DTYPES {
                for master_weights in MASTERS {
                    for state in STATES {
                        all.push(Self { values, gradients, master_weights, state });
                    }
                }
            }
        }
        all.retain(|kind| match kind.values {
            DType::F32 => kind.master_weights == MasterWeights::None,
            DType::F16 => kind.master_weights == MasterWeights::F32,
            DType::Bf16 => true,
        });
        all
    }

    fn f32() -> Self {
        Self {
            values: DType::F32,
            gradients: DType::F32,
            master_weights: MasterWeights::None,
            state: StateFormat::F32,
        }
    }
}

/// Bytes of numbers in a type.
fn bytes_of(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_bits().to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_bits().to_le_bytes()).collect(),
    }
}

/// Where an engine puts tensors.
#[derive(Clone, Copy, Debug)]
struct Pools {
    /// All tensors start at multiples of this many bytes.
    alignment: u64,
    /// Whether gradients lie in the buffer of the values.
    is_shared: bool,
}

/// Tensors of many kinds in pools, with the twin beside them.
struct Engine<'g> {
    gpu: &'g Gpu,
    optimizer: Optimizer,
    twin: Reference<f32>,
    tensors: Vec<Tensor>,
    /// Values, gradients (or the same again), copies.
    buffers: [wgpu::Buffer; 3],
    /// What the buffers hold where no tensor does, and what was last written to gradients.
    expected: [Vec<u8>; 3],
    hyperparameters: Hyperparameters,
    steps: u64,
    /// Whether the device's arithmetic is the twin's, bit for bit.
    is_exact: bool,
}

struct Tensor {
    kind: Kind,
    id: ParameterId,
    initial: Vec<f32>,
    len: usize,
    values: u64,
    gradients: u64,
    copy: Option<(u64, DType)>,
}

impl<'g> Engine<'g> {
    fn new(
        gpu: &'g Gpu,
        options: Options,
        hyperparameters: Hyperparameters,
        kinds: &[(Kind, usize, Option<DType>)],
        pools: Pools,
    ) -> Self {
        let mut ends = [8, 8, 8_u64];
        let mut place = |buffer: usize, dtype: DType, len: usize| {
            let buffer = if pools.is_shared && buffer == 1 { 0 } else { buffer };
            let offset = ends[buffer].next_multiple_of(pools.alignment);
            ends[buffer] = (offset + dtype.bytes() * len as u64).next_multiple_of(4) + 8;
            offset
        };
        let places: Vec<_> = kinds
            .iter()
            .map(|&(kind, len, copy)| {
                let values = place(0, kind.values, len);
                let gradients = place(1, kind.gradients, len);
                (values, gradients, copy.map(|dtype| (place(2, dtype, len), dtype)))
            })
            .collect();
        let expected = ends.map(|end| {
            let words = vec![SENTINEL; end as usize / 4];
            bytemuck::cast_slice(&words).to_vec()
        });
        let own = ends.map(|end| gpu.buffer(end));
        let buffers = [own[0].clone(), own[usize::from(!pools.is_shared)].clone(), own[2].clone()];
        for (buffer, bytes) in own.iter().zip(&expected) {
            gpu.queue.write_buffer(buffer, 0, bytes);
        }
        let mut optimizer = Optimizer::new(&gpu.device, &gpu.queue, options).unwrap();
        let mut twin = Reference::new(options.rule, options.formula);
        let mut groups: Vec<((MasterWeights, StateFormat), GroupId)> = Vec::new();
        let mut rng = StdRng::seed_from_u64(3);
        let tensors = kinds
            .iter()
            .zip(places)
            .enumerate()
            .map(|(index, (&(kind, len, _), (values, gradients, copy)))| {
                let key = (kind.master_weights, kind.state);
                let found = groups.iter().find(|(of, _)| *of == key);
                let group = found.map(|(_, group)| *group).unwrap_or_else(|| {
                    let precision = Precision {
                        state: kind.state,
                        master_weights: kind.master_weights,
                        f32_state_below: 0,
                    };
                    let group = optimizer.add_group_with(hyperparameters, precision).unwrap();
                    groups.push((key, group));
                    group
                });
                let initial: Vec<f32> = (0..len).map(|_| rng.random_range(-2.0..2.0)).collect();
                let initial = rounded(kind.values, &initial);
                let label = format!("tensor.{index}");
                let mut views = Views::new(
                    View::new(&buffers[0], values).with_dtype(kind.values),
                    View::new(&buffers[1], gradients).with_dtype(kind.gradients),
                );
                if let Some((offset, dtype)) = copy {
                    views = views.with_copy(View::new(&buffers[2], offset).with_dtype(dtype));
                }
                let parameter = Parameter {
                    dtype: kind.values,
                    views: Some(views),
                    ..Parameter::new(&label, len as u64)
                };
                let id = optimizer.add_parameter(group, parameter).unwrap();
                let twin_group = twin.add_group(hyperparameters);
                let storage = Storage {
                    dtype: kind.values,
                    state: kind.state,
                    master_weights: kind.master_weights,
                    label: &label,
                    seed: options.seed,
                };
                twin.add_stored_parameter(twin_group, initial.clone(), storage);
                Tensor { kind, id, initial, len, values, gradients, copy }
            })
            .collect::<Vec<_>>();
        let mut engine = Self {
            gpu,
            optimizer,
            twin,
            tensors: Vec::new(),
            buffers,
            expected,
            hyperparameters,
            steps: 0,
            is_exact: gpu.is_exact(),
        };
        for tensor in tensors {
            engine.write(0, tensor.values, &bytes_of(tensor.kind.values, &tensor.initial));
            engine.tensors.push(tensor);
        }
        engine
    }

    /// Writes bytes, and keeps the halves of words beside them.
    fn write(&mut self, buffer: usize, offset: u64, bytes: &[u8]) {
        let which = if self.buffers[0] == self.buffers[buffer] { 0 } else { buffer };
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        self.expected[which][start..end].copy_from_slice(bytes);
        let word_end = end.next_multiple_of(4);
        self.gpu.queue.write_buffer(&self.buffers[buffer], offset, &self.expected[which][start..word_end]);
    }

    /// Heavy-tailed gradients of one step, as numbers of each tensor's type.
    fn gradients(&self, seed: u64, scale: f32) -> Vec<Vec<f32>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let heavy_tailed = StudentT::new(2.0).unwrap();
        self.tensors
            .iter()
            .map(|tensor| {
                let exact: Vec<f32> =
                    (0..tensor.len).map(|_| scale * heavy_tailed.sample(&mut rng)).collect::<Vec<f32>>();
                rounded(tensor.kind.gradients, &exact)
            })
            .collect()
    }

    fn step(&mut self, gradients: &[Vec<f32>]) {
        for (index, gradient) in gradients.iter().enumerate() {
            let bytes = bytes_of(self.tensors[index].kind.gradients, gradient);
            self.write(1, self.tensors[index].gradients, &bytes);
        }
        self.optimizer.step().unwrap();
        let gradients: Vec<_> = gradients.iter().map(|g| Some(g.as_slice())).collect();
        self.twin.step(&gradients);
        self.steps += 1;
    }

    /// Values in their type, state and master values are the twin's, and nothing else has changed. Where the device's arithmetic is
    /// not the twin's, numbers of few bits may be neighbours where rounding was close; most are the same.
    fn check(&mut self) {
        let contents = self
            .buffers
            .each_ref()
            .map(|buffer| -> Vec<u8> { bytemuck::cast_slice(&self.gpu.read(buffer)).to_vec() });
        let mut comparison = Comparison { is_exact: self.is_exact, near: 0, all: 0 };
        for index in 0..self.tensors.len() {
            self.check_tensor(index, &contents[0], &mut comparison);
        }
        comparison.finish();
        for (bytes, expected) in contents.iter().zip([0, usize::from(self.buffers[0] != self.buffers[1]), 2])
        {
            assert!(*bytes == self.expected[expected], "bytes beside the tensors have changed");
        }
    }

    fn check_tensor(&mut self, index: usize, contents: &[u8], comparison: &mut Comparison) {
        let tensor = &self.tensors[index];
        let kind = tensor.kind;
        let read = self.optimizer.read_parameter_blocking(tensor.id).unwrap();
        let read = &read[..tensor.len];
        let what = |name: &str| format!("{name} of {kind:?}, {} elements", tensor.len);
        // Rounded otherwise at one step, a number of few bits may be two steps away at the next, and with it what it moves.
        let moved_otherwise = match kind.state {
            StateFormat::F32 => 0.0,
            StateFormat::Bf16 | StateFormat::Q8 => 1.0,
        };
        let step_of_values = match (kind.values, kind.master_weights) {
            (DType::Bf16, MasterWeights::None) => 2_f64.powi(-6),
            (DType::Bf16, MasterWeights::Split24) => 2_f64.powi(-14),
            _ => 0.0,
        };
        let movement = self.steps as f64 * self.hyperparameters.learning_rate;
        comparison.check(&what("values"), read, self.twin.values(index), |i, expected| {
            let moved = (expected - f64::from(tensor.initial[i])).abs();
            moved_otherwise * (movement + 0.3 * moved) + step_of_values * expected.abs()
        });
        let state = self.optimizer.read_state_blocking(tensor.id).unwrap();
        for (number, (name, read)) in state.tensors.iter().enumerate() {
            let mut expected = self.twin.state(index)[number].clone();
            if number == 2 && kind.state != StateFormat::F32 {
                let scale = -(self.hyperparameters.betas[2].ln() * state.step as f64).exp_m1();
                expected.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            }
            let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs())));
            comparison.check(&what(name), read, &expected, |_, expected| match kind.state {
                StateFormat::F32 => 0.0,
                StateFormat::Bf16 => 2_f64.powi(-6) * expected.abs(),
                StateFormat::Q8 => 0.3 * expected.abs() + 2_f64.powi(-10) * largest,
            });
        }
        let bits = self.twin.narrowed(index);
        let mut narrowed: Vec<u8> = match kind.values {
            DType::F32 => bytemuck::cast_slice(bits).to_vec(),
            _ => bits.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect(),
        };
        let start = tensor.values as usize;
        if !self.is_exact {
            // They have been compared above.
            narrowed = contents[start..start + narrowed.len()].to_vec();
        }
        self.expected[0][start..start + narrowed.len()].copy_from_slice(&narrowed);
        if let Some((offset, dtype)) = tensor.copy {
            let copy = bytes_of(dtype, read);
            self.expected[2][offset as usize..offset as usize + copy.len()].copy_from_slice(&copy);
        }
    }
}

/// Numbers of the device beside the twin's.
struct Comparison {
    is_exact: bool,
    /// How many are within what f32 arithmetic may differ by.
    near: usize,
    all: usize,
}

impl Comparison {
    /// `farthest` is how far a number may be away where it is not near: of its index and of what is expected.
    fn check(&mut self, what: &str, got: &[f32], expected: &[f32], farthest: impl Fn(usize, f64) -> f64) {
        if self.is_exact {
            assert_same_bits(what, got, expected);
            return;
        }
        assert_eq!(got.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs())));
        for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let (got, expected) = (f64::from(got), f64::from(expected));
            let error = (got - expected).abs();
            let is_near = error <= 1e-6 * largest + 1e-5 * expected.abs();
            self.near += usize::from(is_near);
            self.all += 1;
            let farthest = farthest(i, expected);
            assert!(is_near || error <= farthest, "{what}: element {i} is {got:e}, expected {expected:e}");
        }
    }

    /// A twin whose learning rate is off by 3e-7 has all but 5 of a million near, and those at most 0.03 of what is allowed away.
    fn finish(self) {
        let Self { is_exact, near, all } = self;
        assert!(is_exact || 100 * near >= 99 * all, "of {all} numbers only {near} are near");
    }
}

fn assert_same_bits(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(got.to_bits() == expected.to_bits(), "{what}: element {i} is {got:e}, expected {expected:e}");
    }
}

fn options(rule: Rule) -> Options {
    Options { rule, seed: SEED, ..Options::default() }
}

/// What GPUs run, and what software adapters do.
const WORKGROUPS: [Workgroups; 2] = [Workgroups::Gpu, Workgroups::Cpu];

/// Every type of parameters and gradients with every master weights, every format of state and every rule, all of one rule in
/// one dispatch.
#[test]
fn every_combination_agrees_with_the_twin_in_one_dispatch() {
    let lengths = [1, 2, 3, 5, 31, 33, 255, 1024, 1025, 2051];
    let hyperparameters =
        Hyperparameters { weight_decay: WeightDecay::Decoupled(0.01), ..Hyperparameters::default() };
    for (rule, formula) in rules() {
        let kinds: Vec<_> = Kind::all()
            .into_iter()
            .enumerate()
            .map(|(i, kind)| (kind, lengths[i % lengths.len()], None))
            .collect();
        for pools in [
            Pools { alignment: 16, is_shared: false },
            Pools { alignment: 8, is_shared: true },
            Pools { alignment: 4, is_shared: false },
        ] {
            for workgroups in WORKGROUPS {
                let options = Options { formula, workgroups, ..options(rule) };
                let mut engine = Engine::new(gpu(), options, hyperparameters, &kinds, pools);
                assert_eq!(engine.optimizer.launches().unwrap().len(), 1);
                for step in 0..4 {
                    let gradients = engine.gradients(step, 0.1);
                    engine.step(&gradients);
                    engine.check();
                }
            }
        }
    }
}

/// The checks that devices with other arithmetic get, tried on a twin that differs as little as they do, and on some that are wrong.
#[test]
fn devices_that_round_otherwise_pass_and_those_that_err_do_not() {
    let kinds: Vec<_> = Kind::all().into_iter().map(|kind| (kind, 1030, None)).collect();
    let outcome = |twin: fn(&mut Hyperparameters)| {
        let pools = Pools { alignment: 16, is_shared: false };
        let mut engine = Engine::new(gpu(), options(Rule::AdaMod), Hyperparameters::default(), &kinds, pools);
        let mut hyperparameters = engine.hyperparameters;
        twin(&mut hyperparameters);
        (0..kinds.len()).for_each(|group| engine.twin.set_hyperparameters(group, hyperparameters));
        engine.is_exact = false;
        for step in 0..4 {
            let gradients = engine.gradients(step, 0.1);
            engine.step(&gradients);
        }
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.check())).is_ok()
    };
    assert!(outcome(|twin| twin.learning_rate *= 1.0 + 3e-7));
    assert!(outcome(|twin| twin.epsilon *= 1.01));
    assert!(!outcome(|twin| twin.learning_rate *= 1.01));
    assert!(!outcome(|twin| twin.betas[1] = 0.9985));
    assert!(!outcome(|twin| twin.betas[2] = 0.9985));
    assert!(!outcome(|twin| twin.weight_decay = WeightDecay::Decoupled(0.1)));
}

/// Kernels that know all tensors to be of one kind, whole chunks and ends.
#[test]
fn kernels_of_one_kind_agree_with_the_twin() {
    for rule in [Rule::AdaMod, Rule::Adam, Rule::Sgd] {
        for kind in Kind::all() {
            for (alignment, workgroups) in [4, 16].into_iter().zip(WORKGROUPS) {
                let tensors = [(kind, 1500, None), (kind, 7, None)];
                let pools = Pools { alignment, is_shared: false };
                let options = Options { workgroups, ..options(rule) };
                let mut engine = Engine::new(gpu(), options, Hyperparameters::default(), &tensors, pools);
                for step in 0..2 {
                    let gradients = engine.gradients(step, 1.0);
                    engine.step(&gradients);
                }
                engine.check();
            }
        }
    }
}

#[test]
fn split32_trains_as_f32_does_bit_for_bit() {
    let split32 = Kind { values: DType::Bf16, master_weights: MasterWeights::Split32, ..Kind::f32() };
    let pools = Pools { alignment: 16, is_shared: false };
    let hyperparameters =
        Hyperparameters { weight_decay: WeightDecay::Decoupled(0.01), ..Hyperparameters::default() };
    let make = |kind| Engine::new(gpu(), options(Rule::AdaMod), hyperparameters, &[(kind, 301, None)], pools);
    let (mut split, mut full) = (make(split32), make(Kind::f32()));
    // The same start: what bf16 can say.
    let start = split.optimizer.read_parameter_blocking(split.tensors[0].id).unwrap();
    full.optimizer.write_parameter(full.tensors[0].id, &start[..301]).unwrap();
    for step in 0..1000 {
        let gradients = split.gradients(step, 1.0);
        for engine in [&mut split, &mut full] {
            let bytes = bytes_of(DType::F32, &gradients[0]);
            engine.write(1, engine.tensors[0].gradients, &bytes);
            engine.optimizer.step().unwrap();
        }
    }
    let values =
        |engine: &Engine<'_>| engine.optimizer.read_parameter_blocking(engine.tensors[0].id).unwrap();
    let (split_values, full_values) = (values(&split), values(&full));
    assert_ne!(start[..301], full_values[..]);
    assert_eq!(split_values[..301], full_values[..]);
    let state = |engine: &Engine<'_>| engine.optimizer.read_state_blocking(engine.tensors[0].id).unwrap();
    assert_eq!(state(&split), state(&full));
}

#[test]
fn copies_are_written_and_gradients_zeroed_also_where_they_share_words() {
    let copies = [Some(DType::Bf16), None, Some(DType::F16)];
    let kinds: Vec<_> = [1_usize, 2, 3, 1023, 1025]
        .into_iter()
        .enumerate()
        .map(|(i, len)| (Kind { gradients: DTYPES[i % 3], ..Kind::f32() }, len, copies[i % 3]))
        .collect();
    for (alignment, is_shared) in [(16, false), (4, true)] {
        let pools = Pools { alignment, is_shared };
        let options = Options { gradients: AfterUse::Zero, ..options(Rule::AdaMod) };
        let mut engine = Engine::new(gpu(), options, Hyperparameters::default(), &kinds, pools);
        for step in 0..2 {
            let gradients = engine.gradients(step, 1.0);
            engine.step(&gradients);
        }
        let which = usize::from(!is_shared);
        for tensor in &engine.tensors {
            let start = tensor.gradients as usize;
            let bytes = tensor.len * tensor.kind.gradients.bytes() as usize;
            engine.expected[which][start..start + bytes].fill(0);
        }
        engine.check();
    }
}

#[test]
fn values_and_state_can_be_written_and_read_exactly() {
    for kind in Kind::all() {
        let pools = Pools { alignment: 16, is_shared: false };
        let tensors = [(kind, 1100, None), (kind, 5, None)];
        let mut engine =
            Engine::new(gpu(), options(Rule::AdaMod), Hyperparameters::default(), &tensors, pools);
        let gradients = engine.gradients(1, 1.0);
        engine.step(&gradients);
        // An odd length's last word has a half that the read-back does not give.
        let id = engine.tensors[0].id;
        let exact: Vec<f32> = (0..1100).map(|i| (i as f32 * 0.1).sin() / 3.0).collect();
        engine.optimizer.write_parameter(id, &exact).unwrap();
        let read = engine.optimizer.read_parameter_blocking(id).unwrap();
        let bits_kept = match (kind.values, kind.master_weights) {
            (DType::F32, _) | (_, MasterWeights::Split32 | MasterWeights::F32) => 24,
            (_, MasterWeights::Split24) => 16,
            (_, MasterWeights::None) => 8,
        };
        for (read, exact) in read.iter().zip(&exact) {
            let allowed = if bits_kept == 24 { 0.0 } else { exact.abs() * 2_f32.powi(-bits_kept) };
            assert!((read - exact).abs() <= allowed, "{kind:?}: {exact} became {read}");
        }
        // State that was read and written is the same, and so is what the next step makes of it.
        let state = engine.optimizer.read_state_blocking(id).unwrap();
        engine.optimizer.write_state(id, &state).unwrap();
        let again = engine.optimizer.read_state_blocking(id).unwrap();
        for ((name, written), (_, read)) in state.tensors.iter().zip(&again.tensors) {
            for (written, read) in written.iter().zip(read) {
                let same = written.to_bits() == read.to_bits();
                // exp_avg_lr is kept as another number, and signed codes may find another top.
                assert!(same || (written - read).abs() <= 0.13 * written.abs(), "{name} of {kind:?}");
                assert!(same || kind.state != StateFormat::F32, "{name} of {kind:?}");
            }
        }
        assert_eq!(again.step, 1);
    }
}

#[test]
fn what_16_bit_views_must_not_do_is_refused_by_name() {
    let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, Options::default()).unwrap();
    let group = optimizer.add_group(Hyperparameters::default()).unwrap();
    let (values, gradients) = (gpu().buffer(64), gpu().buffer(64));
    let view = |buffer, offset, dtype| View::new(buffer, offset).with_dtype(dtype);
    let mut add = |label: &str, dtype, values, gradients| {
        let views = Some(Views::new(values, gradients));
        optimizer.add_parameter(group, Parameter { dtype, views, ..Parameter::new(label, 3) })
    };
    let bf16 = DType::Bf16;
    let error =
        add("half", DType::F16, view(&values, 0, DType::F16), view(&gradients, 0, DType::F16)).unwrap_err();
    assert!(error.to_string().contains("f16 needs F32"), "{error}");
    let error = add("other", DType::F32, view(&values, 0, bf16), view(&gradients, 0, bf16)).unwrap_err();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.contains("bf16") && error.contains("f32"), "{error}");
    let error = add("odd", bf16, view(&values, 2, bf16), view(&gradients, 0, bf16)).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("multiple of 4"));
    add("a", bf16, view(&values, 0, bf16), view(&gradients, 0, bf16)).unwrap();
    // Three elements of two bytes own eight bytes.
    let error = add("b", bf16, view(&values, 4, bf16), view(&gradients, 8, bf16)).unwrap_err();
    assert!(error.to_string().contains("values"), "{error}");
    add("b", bf16, view(&values, 8, bf16), view(&gradients, 8, bf16)).unwrap();
    let copy = Views::new(View::new(&values, 32), View::new(&gradients, 32));
    let mut add_copy = |copy: View<'_>, views: Views<'_>| {
        let views = Some(views.with_copy(copy));
        optimizer.add_parameter(group, Parameter { views, ..Parameter::new("copied", 3) }).unwrap_err()
    };
    let error = add_copy(view(&values, 48, bf16), copy);
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("needed is another one"));
    let other = gpu().buffer(64);
    let error = add_copy(View::new(&other, 0), copy);
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("f16 or bf16"));
    // After all this it still steps.
    optimizer.step().unwrap();
}

#[test]
fn small_tensors_keep_f32_state_and_a_parameter_may_choose() {
    let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, Options::default()).unwrap();
    let precision = Precision { state: StateFormat::Q8, ..Precision::default() };
    let group = optimizer.add_group_with(Hyperparameters::default(), precision).unwrap();
    let (values, gradients) = (gpu().buffer(1 << 20), gpu().buffer(1 << 20));
    let mut offset = 0;
    let mut bytes = Vec::new();
    for (label, len, state) in
        [("small", 4095, None), ("large", 4096, None), ("chosen", 4096, Some(StateFormat::Bf16))]
    {
        let views = Some(Views::new(View::new(&values, offset), View::new(&gradients, offset)));
        offset += 4 * 4096;
        let id =
            optimizer.add_parameter(group, Parameter { views, state, ..Parameter::new(label, len) }).unwrap();
        bytes.push(optimizer.state_bytes_of(id).unwrap());
    }
    assert_eq!(bytes, [4096 * 12, 4096 * 3 + 4096 / 8, 4096 * 6]);
    optimizer.step().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_agrees_with_the_twin(
        kinds in prop::collection::vec(
            (prop::sample::select(Kind::all()), 1_usize..3000, prop::sample::select(vec![None, Some(DType::F16)])),
            1..6,
        ),
        rule in prop::sample::select(vec![Rule::AdaMod, Rule::Adam, Rule::Sgd]),
        formula in prop::sample::select(vec![Formula::Paper, Formula::AuthorsCode]),
        alignment in prop::sample::select(vec![4_u64, 8, 16, 256]),
        is_shared in any::<bool>(),
        scale in prop::sample::select(vec![1e-20_f32, 1e-4, 1.0, 10.0]),
    ) {
        let kinds: Vec<_> = kinds
            .into_iter()
            .map(|(kind, len, copy)| (kind, len, copy.filter(|_| kind.values == DType::F32)))
            .collect();
        let options = Options { formula, ..options(rule) };
        let pools = Pools { alignment, is_shared };
        let mut engine = Engine::new(gpu(), options, Hyperparameters::default(), &kinds, pools);
        for step in 0..3 {
            let gradients = engine.gradients(step, scale);
            engine.step(&gradients);
        }
        engine.check();
    }
}

/// With master weights, too, whose differences move with nothing.
#[test]
fn values_of_tensors_that_move_are_read_and_written_where_they_lie() {
    const LEN: u64 = 1100;
    let exact: Vec<f32> = (0..LEN).map(|i| (i as f32 * 0.1).sin() / 3.0).collect();
    let gradient: Vec<f32> = (0..LEN).map(|i| (i as f32 * 0.3).cos()).collect();
    let is_plain = |kind: &Kind| kind.state == StateFormat::F32 && kind.gradients == DType::F32;
    for kind in Kind::all().into_iter().filter(is_plain) {
        let gradients = gpu().buffer(4 * LEN);
        gpu().queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&gradient));
        let (pool, other) = (gpu().buffer(8 * LEN), gpu().buffer(8 * LEN));
        let at = |buffer, offset| View::new(buffer, offset).with_dtype(kind.values);
        let add = |views| {
            let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, options(Rule::AdaMod)).unwrap();
            let precision = Precision { master_weights: kind.master_weights, ..Precision::default() };
            let group = optimizer.add_group_with(Hyperparameters::default(), precision).unwrap();
            let parameter = Parameter { dtype: kind.values, views, ..Parameter::new("wte", LEN) };
            let id = optimizer.add_parameter(group, parameter).unwrap();
            (optimizer, id)
        };
        let (mut moving, id) = add(None);
        moving.write_parameter_at(id, &at(&pool, 16), &exact).unwrap();
        let views = Views::new(at(&pool, 16), View::new(&gradients, 0));
        let mut encoder = gpu().encoder();
        moving.encode_views(&mut encoder, &[Update { parameter: id, views }]).unwrap();
        encoder.copy_buffer_to_buffer(&pool, 16, &other, 64, kind.values.bytes() * LEN);
        gpu().submit(encoder);
        let read = moving.read_parameter_at_blocking(id, &at(&other, 64)).unwrap();

        let (mut fixed, same) = add(Some(Views::new(at(&pool, 4096), View::new(&gradients, 0))));
        fixed.write_parameter(same, &exact).unwrap();
        fixed.step().unwrap();
        assert_same_bits(&format!("{kind:?}"), &read, &fixed.read_parameter_blocking(same).unwrap());

        let error = moving.read_parameter_blocking(id).unwrap_err();
        assert!(matches!(error, ReadError::NoViews { .. }), "{error}");
        let error = moving.write_parameter(id, &exact).unwrap_err();
        assert!(matches!(error, WriteError::NoViews { .. }), "{error}");
        let wrong = if kind.values == DType::F32 { DType::Bf16 } else { DType::F32 };
        for view in [at(&pool, 0).with_dtype(wrong), at(&pool, 2), at(&pool, 8 * LEN - 4)] {
            let error = moving.read_parameter_at_blocking(id, &view).unwrap_err();
            assert!(matches!(error, ReadError::View { .. }), "{error}");
            let error = moving.write_parameter_at(id, &view, &exact).unwrap_err();
            assert!(matches!(error, WriteError::View { .. }), "{error}");
        }
    }
}

//! Parameters and gradients in 16 bits, master weights, and state in 16 and 8 bits, against the twin that stores as they do.

use adamod::low_level::Tuning;
use adamod::reference::Reference;
use adamod::{
    AdaMod, DType, ErrorKind, Group, Hyperparameters, MasterWeights, Options, Parameter, Precision, Role,
    Rule, RuleKind, Sgd, StateFormat, Step, Update, View, ViewError, Views, WeightDecay, Workgroups,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{
    Engine, Gpu, Kind, Layout, Model, all, bits_of, bytes_of, gpu, offers, rules, rules_and_kinds,
};

const SEED: u64 = 11;

fn options() -> Options {
    Options::new().with_seed(SEED)
}

/// An engine with tensors of many kinds, with the twin beside it.
pub struct Pair<'g> {
    pub engine: Engine<'g>,
    twin: Reference<f32>,
    model: Model,
    /// What was last written.
    gradients: Vec<Vec<f32>>,
    steps: u64,
    /// Whether the device's arithmetic is the twin's, bit for bit.
    is_exact: bool,
}

impl<'g> Pair<'g> {
    pub fn new(
        gpu: &'g Gpu,
        options: Options,
        hyperparameters: impl Into<Hyperparameters>,
        kinds: &[(Kind, usize)],
        layout: Layout,
    ) -> Self {
        let model = Model::of_kinds(hyperparameters, kinds).with_options(options);
        let engine = Engine::new(gpu, &model, layout);
        let twin = model.twin();
        Self { engine, twin, model, gradients: Vec::new(), steps: 0, is_exact: gpu.is_exact() }
    }

    /// Takes a step with gradients of this size.
    pub fn step(&mut self, seed: u64, scale: f32) {
        self.gradients = self.model.scaled_gradients(seed, scale);
        self.engine.step(&all(&self.gradients));
        self.twin.step(&all(&self.gradients));
        self.steps += 1;
    }

    /// Values in their type, state and master values are the twin's, and nothing else has changed. Where the device's arithmetic is
    /// not the twin's, numbers of few bits may be neighbours where rounding was close; most are the same.
    pub fn check(&self) {
        let flushed = FLUSHES_PER_STEP * self.steps as f64 * f64::from(f32::MIN_POSITIVE);
        let mut comparison = Comparison { is_exact: self.is_exact, flushed, near: 0, all: 0 };
        for index in 0..self.model.tensors.len() {
            self.check_tensor(index, &mut comparison);
        }
        comparison.finish();
        self.engine.assert_neighbours_untouched(&all(&self.gradients));
    }

    fn check_tensor(&self, index: usize, comparison: &mut Comparison) {
        let tensor = &self.model.tensors[index];
        let hyperparameters = self.model.groups[tensor.group].hyperparameters;
        let kind = tensor.kind;
        let read = self.engine.read_values(index);
        let what = |name: &str| format!("{name} of {kind:?}, {} elements", tensor.len());
        // Rounded otherwise at one step, a number of few bits may be two steps away at the next, and with it what it moves.
        let moved_otherwise = if kind.state == StateFormat::F32 { 0.0 } else { 1.0 };
        let step_of_values = match (kind.values, kind.master_weights) {
            (DType::Bf16, MasterWeights::None) => 2_f64.powi(-6),
            (DType::Bf16, MasterWeights::Split24) => 2_f64.powi(-14),
            (DType::F16, MasterWeights::Split24) => 2_f64.powi(-17),
            _ => 0.0,
        };
        let movement = self.steps as f64 * hyperparameters.learning_rate;
        comparison.check(&what("values"), &read, self.twin.values(index), |i, expected| {
            let moved = (expected - f64::from(tensor.values[i])).abs();
            moved_otherwise * (movement + 0.3 * moved) + step_of_values * expected.abs()
        });
        let state = self.engine.state(index);
        let declared = hyperparameters.rule.states();
        assert_eq!(state.tensors.len(), declared.len());
        for (number, (name, read)) in state.tensors.iter().enumerate() {
            let mut expected = self.twin.state(index)[number].clone();
            if let (Rule::AdaMod(rule), Some(rate)) = (hyperparameters.rule, declared[number].debiased_by)
                && kind.state.is_debiased()
            {
                let scale = -(rule.betas[rate].ln() * state.step as f64).exp_m1();
                expected.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            }
            let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs())));
            comparison.check(&what(name), read, &expected, |_, expected| match kind.state {
                StateFormat::F32 => 0.0,
                StateFormat::Bf16 => 2_f64.powi(-6) * expected.abs(),
                _ => 0.3 * expected.abs() + 2_f64.powi(-10) * largest,
            });
        }
        // Elsewhere they have been compared above.
        if self.is_exact {
            assert!(self.engine.value_bits(index) == self.twin.narrowed(index), "{}", what("bits"));
        }
        if let Some(dtype) = kind.shadow {
            let expected = bits_of(dtype, &bytes_of(dtype, &read));
            assert!(self.engine.shadow_bits(index) == Some(expected), "{}", what("shadow copy"));
        }
    }
}

/// How many subnormal numbers a step may flush to zero on the way to a state: the state as it is loaded, the gradient or its square,
/// their weighted difference, and the sum that is stored. Each moves the state by less than the smallest normal number, and averages
/// do not amplify what earlier steps left. Values move by the rate times as much, which epsilon keeps below their rounding: the root
/// of what is missing in `exp_avg_sq` is 1e-19.
const FLUSHES_PER_STEP: f64 = 4.0;

/// Numbers of the device beside the twin's.
struct Comparison {
    is_exact: bool,
    /// How far flushed subnormals may move a number.
    flushed: f64,
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
            let is_near = error <= 1e-6 * largest + 1e-5 * expected.abs() + self.flushed;
            self.near += usize::from(is_near);
            self.all += 1;
            let farthest = farthest(i, expected);
            assert!(is_near || error <= farthest, "{what}: element {i} is {got:e}, expected {expected:e}");
        }
    }

    /// A twin whose learning rate is off by 3e-7 has all but 5 of a million near, and those at most 0.03 of what is allowed away.
    fn finish(self) {
        let Self { is_exact, near, all, .. } = self;
        assert!(is_exact || 100 * near >= 99 * all, "of {all} numbers only {near} are near");
    }
}

fn assert_same_bits(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(got.to_bits() == expected.to_bits(), "{what}: element {i} is {got:e}, expected {expected:e}");
    }
}

/// What GPUs run, and what software adapters do.
const WORKGROUPS: [Workgroups; 2] = [Workgroups::Gpu, Workgroups::Cpu];

/// Every type of parameters and gradients with every master weights, every format of state and every rule. All of one rule are one
/// dispatch; on a CPU 8-bit state has one for each format.
#[test]
fn every_combination_agrees_with_the_twin_in_one_dispatch() {
    let lengths = [1, 2, 3, 5, 31, 33, 255, 1024, 1025, 2051];
    let kinds: Vec<_> =
        Kind::all().into_iter().enumerate().map(|(i, kind)| (kind, lengths[i % lengths.len()])).collect();
    for (index, rule) in rules().into_iter().enumerate() {
        let kinds: Vec<_> = kinds.iter().copied().filter(|(kind, _)| offers(&rule, kind)).collect();
        let hyperparameters = Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(0.01));
        let quantized = kinds.iter().filter(|(kind, _)| kind.state == StateFormat::Q8).count();
        for (layout, workgroups) in [
            (Layout::TwoPools(16), Workgroups::Gpu),
            (Layout::TwoPools(16), Workgroups::Cpu),
            (Layout::OnePool(8), Workgroups::Cpu),
            (Layout::OnePool(8), Workgroups::Gpu),
            (Layout::TwoPools(4), Workgroups::Gpu),
            (Layout::TwoPools(4), Workgroups::Cpu),
        ]
        .into_iter()
        .enumerate()
        // AdaMod has every layout with both workgroups, and the other rules take turns with those of a GPU: on a CPU every format has a
        // kernel of its own, which takes seconds to compile.
        .filter_map(|(number, of)| (index == 0 || number == [0, 3, 4][index % 3]).then_some(of))
        {
            let options = options().with_workgroups(workgroups);
            let mut pair = Pair::new(gpu(), options, hyperparameters, &kinds, layout);
            for step in 0..4 {
                pair.step(step, 0.1);
                let launches = if workgroups == Workgroups::Cpu { 1 + quantized } else { 1 };
                assert_eq!(pair.engine.optimizer.launches().len(), launches);
                pair.check();
            }
        }
    }
}

/// The checks that devices with other arithmetic get, tried on a twin that differs as little as they do, and on some that are wrong.
#[test]
fn devices_that_round_otherwise_pass_and_those_that_err_do_not() {
    let kinds: Vec<_> = Kind::all().into_iter().map(|kind| (kind, 1030)).collect();
    let outcome = |hyperparameters: Hyperparameters| {
        let mut pair = Pair::new(gpu(), options(), AdaMod::new(), &kinds, Layout::TwoPools(16));
        (0..pair.model.groups.len()).for_each(|group| pair.twin.set_hyperparameters(group, hyperparameters));
        pair.is_exact = false;
        (0..4).for_each(|step| pair.step(step, 0.1));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pair.check())).is_ok()
    };
    let right = Hyperparameters::new();
    let [beta1, beta2, beta3] = AdaMod::new().betas;
    assert!(outcome(right.with_learning_rate(right.learning_rate * (1.0 + 3e-7))));
    assert!(outcome(AdaMod::new().with_epsilon(1.01 * AdaMod::new().epsilon).into()));
    assert!(!outcome(right.with_learning_rate(right.learning_rate * 1.01)));
    assert!(!outcome(AdaMod::new().with_betas([beta1, 0.9985, beta3]).into()));
    assert!(!outcome(AdaMod::new().with_betas([beta1, beta2, 0.9985]).into()));
    assert!(!outcome(right.with_weight_decay(WeightDecay::Decoupled(0.1))));
}

/// Kernels that know all tensors to be of one kind, whole chunks and ends.
#[test]
fn kernels_of_one_kind_agree_with_the_twin() {
    for (rule, kind) in rules_and_kinds() {
        for (alignment, workgroups) in [4, 16].into_iter().zip(WORKGROUPS) {
            let tensors = [(kind, 1500), (kind, 7)];
            let options = options().with_workgroups(workgroups);
            let mut pair = Pair::new(gpu(), options, rule, &tensors, Layout::TwoPools(alignment));
            (0..2).for_each(|step| pair.step(step, 1.0));
            pair.check();
        }
    }
}

/// Launches in which no tensor ends within the elements of a lane, with blocks of 8-bit state in words of 8 and of 4 bytes.
#[test]
fn kernels_without_tensor_ends_agree_with_the_twin() {
    for kind in Kind::all() {
        for (lengths, workgroups) in
            [([1088, 2048], WORKGROUPS[0]), ([1056, 32], WORKGROUPS[0]), ([1088, 32], WORKGROUPS[1])]
        {
            let options = options().with_workgroups(workgroups);
            let tensors = lengths.map(|length| (kind, length));
            let rule = RuleKind::AdaMod.with_defaults();
            let mut pair = Pair::new(gpu(), options, rule, &tensors, Layout::TwoPools(16));
            (0..2).for_each(|step| pair.step(step, 1.0));
            pair.check();
        }
    }
}

#[test]
fn split32_trains_as_f32_does_bit_for_bit() {
    let split32 = Kind { values: DType::Bf16, master_weights: MasterWeights::Split32, ..Kind::f32() };
    let hyperparameters = Hyperparameters::new().with_weight_decay(WeightDecay::Decoupled(0.01));
    let make = |kind| Pair::new(gpu(), options(), hyperparameters, &[(kind, 301)], Layout::TwoPools(16));
    let (mut split, mut full) = (make(split32), make(Kind::f32()));
    // The same start: what bf16 can say.
    let start = split.engine.read_values(0);
    full.engine.optimizer.write_parameter(full.engine.ids[0], &start).unwrap();
    for step in 0..1000 {
        let gradients = split.model.gradients(step);
        for engine in [&mut split.engine, &mut full.engine] {
            engine.write_gradients(&all(&gradients));
            engine.optimizer.submit(&Step::all()).unwrap();
        }
    }
    let (split_values, full_values) = (split.engine.read_values(0), full.engine.read_values(0));
    assert_ne!(start, full_values);
    assert_eq!(split_values, full_values);
    assert_eq!(split.engine.state(0), full.engine.state(0));
}

/// Of all magnitudes that f16 has, and below and past them: split master weights have fixed point below 2^-14 and hold what is past
/// the largest number.
#[test]
fn split_f16_values_of_all_magnitudes_agree_with_the_twin() {
    for master_weights in [MasterWeights::Split24, MasterWeights::Split32] {
        let kind = Kind { values: DType::F16, master_weights, ..Kind::f32() };
        let sgd = Hyperparameters::from(Sgd::new().with_momentum(0.0)).with_learning_rate(1.0);
        let mut model = Model::of_kinds(sgd, &[(kind, 5000)]).with_options(options());
        model.tensors[0].values.fill(0.0);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        let mut twin = model.twin::<f32>();
        let rng = &mut StdRng::seed_from_u64(5);
        for step in 0..4 {
            let gradient: Vec<f32> = (0..5000)
                .map(|_| {
                    let number = rng.random_range(1.0..2.0) * f64::from(rng.random_range(-45..18)).exp2();
                    (if rng.random() { number } else { -number }) as f32
                })
                .collect();
            engine.step(&[Some(&gradient)]);
            twin.step(&[Some(&gradient)]);
            let read = engine.read_values(0);
            assert!(read.iter().all(|value| value.abs() < 65_520.0));
            if step == 0 {
                let smallest =
                    read.iter().filter(|x| **x != 0.0).fold(1.0, |least: f32, x| least.min(x.abs()));
                assert!(smallest <= 2_f32.powi(-31), "{smallest:e}");
                assert!(read.iter().any(|value| value.abs() >= 65_519.0));
            }
            for (i, (&read, &expected)) in read.iter().zip(twin.values(0)).enumerate() {
                assert!(
                    read.to_bits() == expected.to_bits(),
                    "element {i} is {read:e}, expected {expected:e}"
                );
            }
            assert!(engine.value_bits(0) == twin.narrowed(0));
        }
    }
}

#[test]
fn shadow_copies_are_written_and_gradients_zeroed_also_where_they_share_words() {
    let shadows = [Some(DType::Bf16), None, Some(DType::F16)];
    let kinds: Vec<_> = [1_usize, 2, 3, 1023, 1025]
        .into_iter()
        .enumerate()
        .map(|(i, len)| (Kind { gradients: DType::ALL[i % 3], shadow: shadows[i % 3], ..Kind::f32() }, len))
        .collect();
    for layout in [Layout::TwoPools(16), Layout::OnePool(4)] {
        let options = options().with_zero_gradients(true);
        let mut pair = Pair::new(gpu(), options, AdaMod::new(), &kinds, layout);
        (0..2).for_each(|step| pair.step(step, 1.0));
        pair.check();
    }
}

#[test]
fn values_and_state_can_be_written_and_read_exactly() {
    for kind in Kind::all() {
        let tensors = [(kind, 1100), (kind, 5)];
        let mut pair = Pair::new(gpu(), options(), AdaMod::new(), &tensors, Layout::TwoPools(16));
        pair.step(1, 1.0);
        let engine = &mut pair.engine;
        for (index, &(_, len)) in tensors.iter().enumerate() {
            let id = engine.ids[index];
            let exact: Vec<f32> = (0..len).map(|i| (i as f32 * 0.1).sin() / 3.0).collect();
            engine.optimizer.write_parameter(id, &exact).unwrap();
            let read = engine.read_values(index);
            assert_eq!(read.len(), exact.len(), "{kind:?}");
            let bits_kept = match (kind.values, kind.master_weights) {
                (DType::F32, _) | (_, MasterWeights::Split32 | MasterWeights::F32) => 24,
                (DType::F16, MasterWeights::Split24) => 19,
                (_, MasterWeights::Split24) => 16,
                (DType::Bf16, MasterWeights::None) => 8,
                _ => panic!("the test does not know {kind:?}"),
            };
            for (read, exact) in read.iter().zip(&exact) {
                let allowed = if bits_kept == 24 { 0.0 } else { exact.abs() * 2_f32.powi(-bits_kept) };
                assert!((read - exact).abs() <= allowed, "{kind:?}: {exact} became {read}");
            }
            // State that was read and written is the same, and so is what the next step makes of it.
            let state = engine.state(index);
            engine.optimizer.write_state(id, &state).unwrap();
            let again = engine.state(index);
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
}

#[test]
fn what_16_bit_views_must_not_do_is_refused_by_name() {
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let (values, gradients) = (gpu().buffer(64), gpu().buffer(64));
    let view = |buffer, offset, dtype| View::new(buffer, offset).with_dtype(dtype);
    let mut add = |label: &str, dtype, values, gradients| {
        let parameter = Parameter::new(label, 3).with_dtype(dtype).with_views(Views::new(values, gradients));
        optimizer.add_parameter(group, parameter)
    };
    let bf16 = DType::Bf16;
    let error =
        add("half", DType::F16, view(&values, 0, DType::F16), view(&gradients, 0, DType::F16)).unwrap_err();
    let found = MasterWeights::None;
    assert!(
        matches!(error.kind(), ErrorKind::MasterWeights { dtype: DType::F16, found: of } if *of == found)
    );
    assert_eq!(error.label(), Some("half"));
    assert!(error.to_string().contains("expected Split24, Split32 or F32 for f16"), "{error}");
    let error = add("other", DType::F32, view(&values, 0, bf16), view(&gradients, 0, bf16)).unwrap_err();
    let expected = ViewError::DType { found: bf16, expected: DType::F32 };
    assert!(matches!(error.kind(), ErrorKind::View { role: Role::Values, error } if *error == expected));
    let text = error.to_string();
    assert!(text.contains("bf16") && text.contains("f32"), "{text}");
    let error = add("odd", bf16, view(&values, 2, bf16), view(&gradients, 0, bf16)).unwrap_err();
    let expected = ViewError::Alignment { found: 2 };
    assert!(matches!(error.kind(), ErrorKind::View { role: Role::Values, error } if *error == expected));
    assert!(error.to_string().contains("multiple of 4"), "{error}");
    add("a", bf16, view(&values, 0, bf16), view(&gradients, 0, bf16)).unwrap();
    // Three elements of two bytes own eight bytes.
    let error = add("b", bf16, view(&values, 4, bf16), view(&gradients, 8, bf16)).unwrap_err();
    let expected = ViewError::Overlap { other_role: Role::Values, other_label: "a".to_owned(), byte: 4 };
    assert!(matches!(error.kind(), ErrorKind::View { role: Role::Values, error } if *error == expected));
    assert!(error.to_string().contains("values"), "{error}");
    add("b", bf16, view(&values, 8, bf16), view(&gradients, 8, bf16)).unwrap();
    let views = Views::new(View::new(&values, 32), View::new(&gradients, 32));
    let mut refused = |shadow: View<'_>| {
        let parameter = Parameter::new("shadowed", 3).with_views(views.with_shadow(shadow));
        optimizer.add_parameter(group, parameter).unwrap_err()
    };
    for own in [&values, &gradients] {
        let error = refused(view(own, 48, bf16));
        let expected = ViewError::ShadowBuffer;
        assert!(matches!(error.kind(), ErrorKind::View { role: Role::Shadow, error } if *error == expected));
        assert!(error.to_string().contains("expected another buffer"), "{error}");
    }
    let other = gpu().buffer(64);
    let error = refused(View::new(&other, 0));
    let expected = ViewError::ShadowDType { values: DType::F32, shadow: DType::F32 };
    assert!(matches!(error.kind(), ErrorKind::View { role: Role::Shadow, error } if *error == expected));
    assert!(error.to_string().contains("f16 or bf16"), "{error}");
    // After all this it still steps.
    optimizer.submit(&Step::all()).unwrap();
}

#[test]
fn small_tensors_keep_f32_state_and_a_parameter_may_choose() {
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let group = Group::new(AdaMod::new()).with_precision(Precision::new(StateFormat::Q8));
    let group = optimizer.add_group(group).unwrap();
    let (values, gradients) = (gpu().buffer(1 << 20), gpu().buffer(1 << 20));
    let mut offset = 0;
    let mut bytes = Vec::new();
    for (label, len, state) in
        [("small", 4095, None), ("large", 4096, None), ("chosen", 4096, Some(StateFormat::Bf16))]
    {
        let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
        offset += 4 * 4096;
        let mut parameter = Parameter::new(label, len).with_views(views);
        parameter.state = state;
        let id = optimizer.add_parameter(group, parameter).unwrap();
        bytes.push(optimizer.state_bytes_of(id).unwrap());
    }
    assert_eq!(bytes, [4096 * 12, 4096 * 3 + 4096 / 8, 4096 * 6]);
    optimizer.submit(&Step::all()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_agrees_with_the_twin(
        kinds in prop::collection::vec(
            (prop::sample::select(Kind::all()), 1_usize..3000, prop::sample::select(vec![None, Some(DType::F16)])),
            1..6,
        ),
        rule in prop::sample::select(rules()),
        alignment in prop::sample::select(vec![4_u64, 8, 16, 256]),
        is_shared in any::<bool>(),
        scale in prop::sample::select(vec![1e-20_f32, 1e-4, 1.0, 10.0]),
    ) {
        let kinds: Vec<_> = kinds
            .into_iter()
            .filter(|(kind, ..)| offers(&rule, kind))
            .map(|(kind, len, shadow)| {
                let shadow = shadow.filter(|_| kind.values == DType::F32);
                // Some forms have no states of fewer bits.
                let is_refused = rule.form().refusal(kind.state).is_some();
                let state = if is_refused { StateFormat::F32 } else { kind.state };
                (Kind { shadow, state, ..kind }, len)
            })
            .collect();
        prop_assume!(!kinds.is_empty());
        let layout = if is_shared { Layout::OnePool(alignment) } else { Layout::TwoPools(alignment) };
        let mut pair = Pair::new(gpu(), options(), rule, &kinds, layout);
        (0..3).for_each(|step| pair.step(step, scale));
        pair.check();
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
        // A view that names the parameter's type is the same as one that does not.
        let at = |buffer, offset| View::new(buffer, offset).with_dtype(kind.values);
        let views = |values| Views::new(values, View::new(&gradients, 0).with_dtype(DType::F32));
        let add = |views: Option<Views<'_>>| {
            let mut optimizer = gpu().optimizer(options()).unwrap();
            let group = Group::new(AdaMod::new()).with_precision(kind.precision());
            let group = optimizer.add_group(group).unwrap();
            let mut parameter = Parameter::new("wte", LEN).with_dtype(kind.values);
            parameter.views = views;
            let id = optimizer.add_parameter(group, parameter).unwrap();
            (optimizer, id)
        };
        let (mut moving, id) = add(None);
        moving.write_parameter_at(id, &at(&pool, 16), &exact).unwrap();
        let mut encoder = gpu().encoder();
        let updates = [Update::new(id, views(View::new(&pool, 16)))];
        moving.encode(&mut encoder, &Step::at(&updates)).unwrap();
        encoder.copy_buffer_to_buffer(&pool, 16, &other, 64, kind.values.bytes() * LEN);
        gpu().submit(encoder);
        let read = moving.read_parameter_at(id, &View::new(&other, 64)).wait().unwrap();
        assert_same_bits(
            &format!("{kind:?}"),
            &read,
            &moving.read_parameter_at(id, &at(&other, 64)).wait().unwrap(),
        );

        let (mut fixed, same) = add(Some(views(at(&pool, 4096))));
        fixed.write_parameter(same, &exact).unwrap();
        fixed.submit(&Step::all()).unwrap();
        assert_same_bits(&format!("{kind:?}"), &read, &fixed.read_parameter(same).wait().unwrap());

        let error = moving.read_parameter(id).wait().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoViews), "{error}");
        let error = moving.write_parameter(id, &exact).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoViews), "{error}");
        let wrong = if kind.values == DType::F32 { DType::Bf16 } else { DType::F32 };
        for view in [at(&pool, 0).with_dtype(wrong), at(&pool, 2), at(&pool, 8 * LEN - 4)] {
            let error = moving.read_parameter_at(id, &view).wait().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::View { role: Role::Values, .. }), "{error}");
            let error = moving.write_parameter_at(id, &view, &exact).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::View { role: Role::Values, .. }), "{error}");
        }
    }
}

/// Every choice of the step's kernels that `adamod bench --variant` measures, in launches of one kind of tensors that end within no thread's
/// elements, and of all kinds together with ragged ends. Partial sums belong to the norm, which these steps do not have.
#[test]
fn every_tuning_gives_the_bits_of_the_twin() {
    let choices = Tuning::CHOICES.into_iter().filter(|(_, tuning)| tuning.most_partials.is_none());
    for (name, tuning) in choices.chain([("default", Tuning::default())]) {
        let options = || options().with_workgroups(Workgroups::Gpu).with_tuning(tuning);
        let mixed: Vec<_> =
            Kind::all().into_iter().zip([1, 7, 1024, 1757, 31, 2052].into_iter().cycle()).collect();
        let alike = [
            (DType::F32, StateFormat::F32),
            (DType::F32, StateFormat::Bf16),
            (DType::Bf16, StateFormat::Bf16),
            (DType::Bf16, StateFormat::Q8),
        ]
        .map(|(dtype, state)| {
            let kind = Kind { values: dtype, gradients: dtype, state, ..Kind::f32() };
            vec![(kind, 1024), (kind, 2080), (kind, 32)]
        });
        for kinds in [mixed].into_iter().chain(alike) {
            println!("{name}: {kinds:?}");
            let mut pair = Pair::new(gpu(), options(), AdaMod::new(), &kinds, Layout::TwoPools(256));
            // Gradients of zero take the rare paths of 8-bit state.
            for (step, scale) in [(1, 1.0), (2, 0.0), (3, 1e-3)] {
                pair.step(step, scale);
            }
            pair.check();
        }
    }
}

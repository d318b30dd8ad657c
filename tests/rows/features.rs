//! Rates by column, and rows that rest in a step.

use adamod::reference::{Reference, Storage};
use adamod::{
    AdaMod, Control, DType, DeviceControl, Diagnostics, ErrorKind, Group, Hyperparameters, MasterWeights,
    Optimizer, Options, Parameter, ParameterId, Remap, Role, RowMask, Rule, RuleForm, Sgd, Shard,
    StateFormat, Step, Update, View, ViewError, Views, WeightDecay, Workgroups,
};

use crate::common::{Gpu, Kind, bits_of, float_bits, gpu, offers};
use crate::rows::{adamod, numbers, random, rounded, words, write};

/// A tensor of an optimizer and of its twin.
struct Tensor {
    id: ParameterId,
    kind: Kind,
    len: usize,
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
    mask: Option<(wgpu::Buffer, usize)>,
}

/// An optimizer with its twin. Buffers of all tensors are their own.
struct Pair {
    optimizer: Optimizer,
    group: adamod::GroupId,
    twin: Reference<f32>,
    twin_group: usize,
    rule: Rule,
    tensors: Vec<Tensor>,
    seed: u64,
}

impl Pair {
    fn new(options: Options, hyperparameters: Hyperparameters, kind: Kind) -> Self {
        let seed = options.seed;
        let mut optimizer = gpu().optimizer(options).unwrap();
        let group = Group::new(hyperparameters).with_precision(kind.precision());
        let group = optimizer.add_group(group).unwrap();
        let mut twin = Reference::new();
        let twin_group = twin.add_group(hyperparameters);
        Self { optimizer, group, twin, twin_group, rule: hyperparameters.rule, tensors: Vec::new(), seed }
    }

    /// Adds a tensor that starts at element `first` of a whole one.
    fn add(&mut self, kind: Kind, len: usize, first: u64, row_len: Option<usize>) -> usize {
        let label = format!("tensor.{}", self.tensors.len());
        let data = rounded(kind.values, random(len as u64, len));
        let (values, gradients) = (numbers(kind.values, len), numbers(kind.gradients, len));
        write(&values, kind.values, &data);
        // No row steps before a mask is written.
        let mask = row_len.map(|row_len| (words(&vec![0; len.div_ceil(row_len).div_ceil(32)]), row_len));
        let views = views(&values, &gradients, &mask, kind);
        let mut parameter = Parameter::new(&label, len as u64)
            .with_dtype(kind.values)
            .with_state(kind.state)
            .with_views(views);
        if first > 0 {
            parameter = parameter.with_shard(Shard::new(first, first + len as u64));
        }
        let id = self.optimizer.add_parameter(self.group, parameter).unwrap();
        let storage = Storage::new()
            .with_dtype(kind.values)
            .with_state(kind.state)
            .with_master_weights(kind.master_weights)
            .with_label(&label)
            .with_seed(self.seed)
            .with_first(first);
        self.twin.add_stored_parameter(self.twin_group, data, storage);
        self.tensors.push(Tensor { id, kind, len, values, gradients, mask });
        self.tensors.len() - 1
    }

    fn set_factors(&mut self, tensor: usize, factors: &[f32]) {
        self.optimizer.set_column_factors(self.tensors[tensor].id, factors).unwrap();
        self.twin.set_column_factors(tensor, factors);
    }

    fn set_mask(&mut self, tensor: usize, active: impl Fn(usize) -> bool) {
        let Tensor { len, mask, .. } = &self.tensors[tensor];
        let (buffer, row_len) = mask.as_ref().unwrap();
        let active: Vec<bool> = (0..len.div_ceil(*row_len)).map(active).collect();
        let mut bits = vec![0_u32; active.len().div_ceil(32)];
        for row in (0..active.len()).filter(|row| active[*row]) {
            bits[row / 32] |= 1 << (row % 32);
        }
        gpu().queue.write_buffer(buffer, 0, bytemuck::cast_slice(&bits));
        self.twin.set_row_mask(tensor, *row_len, &active);
    }

    /// Gradients of a step, written and given.
    fn gradients(&self, seed: u64) -> Vec<Vec<f32>> {
        let of = |(n, tensor): (usize, &Tensor)| {
            let gradients = rounded(tensor.kind.gradients, random(100 * seed + n as u64, tensor.len));
            write(&tensor.gradients, tensor.kind.gradients, &gradients);
            gradients
        };
        self.tensors.iter().enumerate().map(of).collect()
    }

    fn step(&mut self, seed: u64) {
        let gradients = self.gradients(seed);
        let mut encoder = gpu().encoder();
        self.optimizer.encode(&mut encoder, &Step::all()).unwrap();
        gpu().submit(encoder);
        self.twin_step(&gradients);
    }

    fn twin_step(&mut self, gradients: &[Vec<f32>]) {
        let gradients: Vec<_> = gradients.iter().map(|gradient| Some(gradient.as_slice())).collect();
        self.twin.step(&gradients);
    }

    fn value_bits(&self, tensor: usize) -> Vec<u32> {
        let Tensor { values, kind, len, .. } = &self.tensors[tensor];
        bits_of(kind.values, bytemuck::cast_slice(&gpu().read(values)))[..*len].to_vec()
    }

    fn check(&self, what: &str) {
        for (index, tensor) in self.tensors.iter().enumerate() {
            let what = format!("{what}, tensor {index}: {:?}", self.rule);
            let state = self.optimizer.read_state(tensor.id).wait().unwrap();
            assert_eq!(state.step, self.twin.step_count(index), "{what}");
            for (number, (name, got)) in state.tensors.iter().enumerate() {
                let mut expected = self.twin.state(index)[number].clone();
                let debiased =
                    self.rule.states()[number].debiased_by.filter(|_| tensor.kind.state.is_debiased());
                if let (Rule::AdaMod(rule), Some(rate)) = (self.rule, debiased) {
                    let scale = -(rule.betas[rate].ln() * state.step as f64).exp_m1();
                    expected.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
                }
                let differing = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(differing.map(|i| (i, got[i], expected[i])), None, "{name}: {what}");
            }
            let read = self.optimizer.read_parameter(tensor.id).wait().unwrap();
            assert!(float_bits(&read) == float_bits(self.twin.values(index)), "masters: {what}");
            assert!(self.value_bits(index) == self.twin.narrowed(index), "values: {what}");
        }
    }
}

fn views<'a>(
    values: &'a wgpu::Buffer,
    gradients: &'a wgpu::Buffer,
    mask: &'a Option<(wgpu::Buffer, usize)>,
    kind: Kind,
) -> Views<'a> {
    let views = Views::new(View::new(values, 0), View::new(gradients, 0).with_dtype(kind.gradients));
    match mask {
        Some((mask, row_len)) => views.with_row_mask(RowMask::new(View::new(mask, 0), *row_len as u64)),
        None => views,
    }
}

fn options() -> Options {
    Options::new().with_seed(5)
}

/// Factors that products show: no powers of two, one zero, two that are equal.
fn factors(period: usize) -> Vec<f32> {
    (0..period).map(|i| [1.0, 0.3, 0.0, 1.7, 0.3, 0.011][i % 6]).collect()
}

fn kind(state: StateFormat) -> Kind {
    Kind { state, ..Kind::f32() }
}

/// Each form of a rule with one format of state; AdaMod with all of them. Formulas are numbers in the coefficients.
fn rules_and_formats() -> Vec<(Rule, StateFormat)> {
    let all = RuleForm::all().map(RuleForm::with_defaults).enumerate().flat_map(|(index, rule)| {
        StateFormat::ALL
            .into_iter()
            .enumerate()
            .filter_map(move |(number, state)| (index == 0 || number == index % 3).then_some((rule, state)))
    });
    all.filter(|(rule, state)| offers(rule, &kind(*state))).collect()
}

/// Columns with factors, rows that rest, both and neither, at lengths around every edge, and as shards.
#[test]
fn every_rule_steps_columns_at_their_rates_and_rests_rows() {
    if !gpu().is_exact() {
        return;
    }
    for (rule, state) in rules_and_formats() {
        let h = Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(0.1));
        let mut pair = Pair::new(options(), h, kind(state));
        let mut masked = Vec::new();
        for (len, period, row_len) in
            [(1, 1, 1), (59, 59, 59), (1023, 3, 3), (1025, 2, 32), (3000, 2047, 1030), (3000, 1025, 1)]
        {
            let tensor = pair.add(kind(state), len, 0, None);
            pair.set_factors(tensor, &factors(period));
            masked.push(pair.add(kind(state), len, 0, Some(row_len)));
            let tensor = pair.add(kind(state), len, 0, Some(row_len));
            pair.set_factors(tensor, &factors(period));
            masked.push(tensor);
        }
        // 32 elements per row, and neither a multiple of the period.
        let shard = pair.add(kind(state), 1120, 1056, Some(32));
        pair.set_factors(shard, &factors(59));
        masked.push(shard);
        for step in 0..3 {
            for &tensor in &masked {
                pair.set_mask(tensor, |row| (row * 7 + step + tensor) % 5 < 2);
            }
            pair.step(step as u64);
        }
        pair.check(state.name());
    }
}

/// f32 shards may start anywhere.
#[test]
fn factors_of_a_shard_count_from_the_start_of_its_tensor() {
    if !gpu().is_exact() {
        return;
    }
    let mut pair = Pair::new(options(), adamod().into(), Kind::f32());
    for first in [4, 1000, 1024 * 59] {
        let tensor = pair.add(Kind::f32(), 2000, first, None);
        pair.set_factors(tensor, &factors(59));
    }
    pair.step(0);
    pair.step(1);
    pair.check("shards");
}

/// Values in 16 bits with master weights, and both ways of sharing a quant block among threads.
#[test]
fn every_kind_steps_columns_and_rests_rows() {
    if !gpu().is_exact() {
        return;
    }
    // Every other kind: all formats of state with all types of values and all master weights.
    for (number, kind) in Kind::all().into_iter().enumerate().step_by(2) {
        let workgroups = if number % 4 == 0 { Workgroups::Gpu } else { Workgroups::Cpu };
        let mut pair = Pair::new(options().with_workgroups(workgroups), adamod().into(), kind);
        let tensor = pair.add(kind, 1025, 0, Some(7));
        pair.set_factors(tensor, &factors(7));
        for step in 0..3 {
            pair.set_mask(tensor, |row| (row + step) % 3 != 0);
            pair.step(step as u64);
        }
        pair.check(&format!("{kind:?}"));
    }
}

/// A power of two as a factor is another learning rate: an oracle that shares nothing with the twin.
#[test]
fn a_column_steps_as_in_a_group_of_its_rate() {
    if !gpu().is_exact() {
        return;
    }
    let factors = [1.0, 0.5, 0.25, 2.0, 0.0];
    let stepped = |learning_rate: f64, factors: &[f32]| {
        let h = Hyperparameters::from(adamod()).with_learning_rate(learning_rate);
        let h = h.with_weight_decay(WeightDecay::Decoupled(0.25));
        let mut pair = Pair::new(options(), h, Kind::f32());
        let tensor = pair.add(Kind::f32(), 1777, 0, None);
        pair.set_factors(tensor, factors);
        for step in 0..3 {
            pair.step(step);
        }
        pair.value_bits(tensor)
    };
    let by_column = stepped(0.125, &factors);
    for (column, &factor) in factors.iter().enumerate() {
        let alone = stepped(0.125 * f64::from(factor), &[]);
        for i in (column..by_column.len()).step_by(factors.len()) {
            assert_eq!(by_column[i], alone[i], "element {i}, factor {factor}");
        }
    }
}

/// What rests keeps its bits, and what steps has those of a step without a mask, on every device.
#[test]
fn resting_rows_keep_their_bits_and_the_others_step_as_without_a_mask() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        for state in [StateFormat::F32, StateFormat::Bf16] {
            let kind = Kind { values: DType::Bf16, master_weights: MasterWeights::Split32, ..kind(state) };
            let options = || options().with_control(control).with_zero_gradients(true);
            let mut masked = Pair::new(options(), adamod().into(), kind);
            let mut whole = Pair::new(options(), adamod().into(), kind);
            const ROW_LEN: usize = 59;
            masked.add(kind, 59 * 70, 0, Some(ROW_LEN));
            whole.add(kind, 59 * 70, 0, None);
            masked.set_mask(0, |_| true);
            masked.step(0);
            whole.step(0);
            let states = |pair: &Pair| pair.optimizer.read_state(pair.tensors[0].id).wait().unwrap().tensors;
            let masters = |pair: &Pair| pair.optimizer.read_parameter(pair.tensors[0].id).wait().unwrap();
            let (before, before_states) = (masters(&masked), states(&masked));
            assert_eq!(float_bits(&before), float_bits(&masters(&whole)));
            let steps = |row: usize| row % 3 == 1 || row > 60;
            masked.set_mask(0, steps);
            masked.step(1);
            whole.step(1);
            let expected =
                |i: usize, before: f32, stepped: f32| if steps(i / ROW_LEN) { stepped } else { before };
            let compare = |got: &[f32], before: &[f32], stepped: &[f32]| {
                for (i, &got) in got.iter().enumerate() {
                    assert_eq!(got.to_bits(), expected(i, before[i], stepped[i]).to_bits(), "element {i}");
                }
            };
            compare(&masters(&masked), &before, &masters(&whole));
            let debiased = if state.is_debiased() { 1 } else { 0 };
            for (((_, got), (_, before)), (_, stepped)) in
                states(&masked).iter().zip(&before_states).zip(&states(&whole)).take(3 - debiased)
            {
                compare(got, before, stepped);
            }
            // Gradients of all rows have been consumed.
            assert!(gpu().read(&masked.tensors[0].gradients).iter().all(|word| *word == 0));
        }
    }
}

/// Factors and masks of steps that wait for one submit are those that they had when they were recorded; views move, too.
#[test]
fn recorded_steps_keep_their_factors() {
    if !gpu().is_exact() {
        return;
    }
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let mut pair = Pair::new(options().with_control(control), adamod().into(), Kind::f32());
        pair.add(Kind::f32(), 1500, 0, Some(10));
        pair.set_mask(0, |row| row != 3);
        let gradients = pair.gradients(0);
        let mut encoder = gpu().encoder();
        for factors in [&[1.0, 0.3][..], &[0.7], &[], &[0.1, 0.2, 0.3]] {
            pair.set_factors(0, factors);
            pair.optimizer.encode(&mut encoder, &Step::all()).unwrap();
            pair.twin_step(&gradients);
        }
        let Tensor { values, gradients: gradient, mask, .. } = &pair.tensors[0];
        let views = views(values, gradient, mask, Kind::f32());
        pair.optimizer.encode(&mut encoder, &Step::at(&[Update::new(pair.tensors[0].id, views)])).unwrap();
        gpu().submit(encoder);
        pair.twin_step(&gradients);
        pair.check("recorded");
    }
}

#[test]
fn only_launches_with_columns_or_masks_are_apart() {
    let mut pair = Pair::new(options(), adamod().into(), Kind::f32());
    let pool = gpu().buffer(1 << 16);
    let gradients = gpu().buffer(1 << 16);
    let mut add = |place: u64| {
        let views = Views::new(View::new(&pool, place), View::new(&gradients, place));
        let label = format!("pooled.{place}");
        let parameter = Parameter::new(&label, 100).with_views(views);
        pair.optimizer.add_parameter(pair.group, parameter).unwrap()
    };
    let (first, second, third) = (add(0), add(512), add(1024));
    let mut launches = |factors: &[(ParameterId, &[f32])]| {
        for (id, factors) in factors {
            pair.optimizer.set_column_factors(*id, factors).unwrap();
        }
        pair.optimizer.submit(&Step::all()).unwrap();
        pair.optimizer.launches().len()
    };
    assert_eq!(launches(&[]), 1);
    assert_eq!(launches(&[(first, &[0.5])]), 2);
    assert_eq!(launches(&[(second, &[0.5, 0.25])]), 2);
    assert_eq!(launches(&[(third, &[1.0])]), 1);
    assert_eq!(launches(&[(first, &[]), (second, &[]), (third, &[])]), 1);
}

#[test]
fn histograms_count_what_steps() {
    let options = options().with_diagnostics(Diagnostics::RateHistograms);
    let mut pair = Pair::new(options, adamod().into(), Kind::f32());
    pair.add(Kind::f32(), 3 * 101, 0, Some(3));
    pair.set_mask(0, |row| row % 2 == 0);
    pair.step(0);
    let histograms = pair.optimizer.take_rate_histograms().wait().unwrap();
    assert_eq!(histograms.bounded.iter().sum::<u64>(), 51 * 3);
}

#[test]
fn factors_out_of_range_are_refused_and_the_old_ones_stay() {
    let mut optimizer = gpu().optimizer(options()).unwrap();
    let group = optimizer.add_group(Hyperparameters::from(Sgd::new()).with_learning_rate(1.0)).unwrap();
    let (values, gradients) = (gpu().buffer(64), gpu().buffer(64));
    write(&gradients, DType::F32, &[1.0; 16]);
    let parameter =
        Parameter::new("columns", 16).with_views(Views::new(View::new(&values, 0), View::new(&gradients, 0)));
    let id = optimizer.add_parameter(group, parameter).unwrap();
    optimizer.set_column_factors(id, &[0.5, 0.25]).unwrap();
    let refuses = |optimizer: &mut Optimizer, factors: &[f32]| {
        let error = optimizer.set_column_factors(id, factors).unwrap_err();
        assert_eq!(error.label(), Some("columns"));
        error
    };
    for factor in [-1.0, f32::NAN, f32::INFINITY] {
        let error = refuses(&mut optimizer, &[1.0, factor]);
        assert!(matches!(error.kind(), ErrorKind::OutOfRange(of) if of.name == "column_factors"), "{error}");
    }
    let error = refuses(&mut optimizer, &vec![1.0; (1 << 16) + 1]);
    assert!(matches!(error.kind(), ErrorKind::ColumnFactors { most: 65_536, .. }), "{error}");
    // The product is the learning rate.
    optimizer.set_learning_rate(group, 1e10).unwrap();
    let error = refuses(&mut optimizer, &[1.0, 1e30]);
    assert!(matches!(error.kind(), ErrorKind::OutOfRange(of) if of.name == "learning_rate"), "{error}");
    optimizer.set_learning_rate(group, 1.0).unwrap();
    optimizer.set_column_factors(id, &[1.0, 1e30]).unwrap();
    let error = optimizer.set_learning_rate(group, 1e10).unwrap_err();
    assert_eq!(error.label(), Some("columns"));
    let fast = optimizer.add_group(Hyperparameters::from(Sgd::new()).with_learning_rate(1e10)).unwrap();
    assert_eq!(optimizer.set_group(id, fast).unwrap_err().label(), Some("columns"));
    optimizer.set_column_factors(id, &[0.5, 0.25]).unwrap();
    refuses(&mut optimizer, &[f32::NAN]);
    optimizer.submit(&Step::all()).unwrap();
    let values = optimizer.read_parameter(id).wait().unwrap();
    assert_eq!(values, [-0.5, -0.25].repeat(8));
    optimizer.remove_parameter(id).unwrap();
    let error = optimizer.set_column_factors(id, &[]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
    optimizer.set_learning_rate(group, 1e10).unwrap();
}

#[test]
fn masks_that_cannot_be_read_are_refused() {
    let mut optimizer = gpu().optimizer(options()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let (values, gradients, mask) = (gpu().buffer(8192), gpu().buffer(8192), gpu().buffer(8));
    let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
    let cases = [
        (RowMask::new(View::new(&mask, 0), 0), ViewError::RowLength { row_len: 0 }),
        (RowMask::new(View::new(&mask, 0), 1 << 32), ViewError::RowLength { row_len: 1 << 32 }),
        (RowMask::new(View::new(&mask, 2), 100), ViewError::Alignment { found: 2 }),
        // 65 rows take three words.
        (RowMask::new(View::new(&mask, 0), 31), ViewError::OutOfBounds { end: 12, size: 8 }),
        (RowMask::new(View::new(&values, 8000), 100), ViewError::RowMaskBuffer),
        (RowMask::new(View::new(&gradients, 8000), 100), ViewError::RowMaskBuffer),
    ];
    for (row_mask, expected) in cases {
        let views = views.with_row_mask(row_mask);
        let error =
            optimizer.add_parameter(group, Parameter::new("rows", 1985).with_views(views)).unwrap_err();
        let ErrorKind::View { role: Role::RowMask, error } = error.kind() else { panic!("{error}") };
        assert_eq!(*error, expected);
    }
    let row_mask = RowMask::new(View::new(&mask, 0), 32);
    let shard = Parameter::new("rows", 100).with_shard(Shard::new(48, 1000));
    let error = optimizer.add_parameter(group, shard.with_views(views.with_row_mask(row_mask))).unwrap_err();
    let ErrorKind::View { role: Role::RowMask, error } = error.kind() else { panic!("{error}") };
    assert_eq!(*error, ViewError::RowOfShard { first: 48, row_len: 32 });
    let parameter = Parameter::new("rows", 1985).with_views(views.with_row_mask(row_mask));
    optimizer.add_parameter(group, parameter).unwrap();
    optimizer.submit(&Step::all()).unwrap();
}

/// A mask deep in a pool that no binding can hold, whose size is no multiple of 4, and a parameter of several launches.
#[test]
fn a_mask_in_a_large_pool_is_bound_by_its_part() {
    let small =
        Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffer_binding_size: 48 << 10, ..limits });
    const LEN: u64 = 60_000;
    // Rows of a part of a word, of some words and of more than a launch.
    for row_len in [1_u64, 7, 33, 1000, 25_000] {
        let (values, gradients) = (small.buffer(4 * LEN), small.buffer(4 * LEN));
        let pool = small.buffer((1 << 20) + 2);
        let place = 4 * 12_347;
        let rows = LEN.div_ceil(row_len);
        let bits: Vec<u32> =
            (0..rows.div_ceil(32) as u32).map(|word| word.wrapping_mul(0x9e37_79b9) ^ 5).collect();
        small.queue.write_buffer(&pool, place, bytemuck::cast_slice(&bits));
        small.queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&vec![1.0_f32; LEN as usize]));
        let mut optimizer = small.optimizer(options()).unwrap();
        let group = optimizer.add_group(Hyperparameters::from(Sgd::new()).with_learning_rate(1.0)).unwrap();
        let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
        let views = views.with_row_mask(RowMask::new(View::new(&pool, place), row_len));
        let id = optimizer.add_parameter(group, Parameter::new("rows", LEN).with_views(views)).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        assert!(optimizer.launches().len() > 1);
        let steps = |row: u64| bits[row as usize / 32] >> (row % 32) & 1 == 1;
        for (i, value) in (0..).zip(optimizer.read_parameter(id).wait().unwrap()) {
            assert_eq!(
                value,
                if steps(i / row_len) { -1.0 } else { 0.0 },
                "element {i} of rows of {row_len}"
            );
        }
    }
}

#[test]
fn masks_share_bytes_with_masks_only() {
    let buffers = [(); 5].map(|()| gpu().buffer(4096));
    let [values, gradients, mask, other_values, other_gradients] = &buffers;
    let mut optimizer = gpu().optimizer(options()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let at = |mask, place| RowMask::new(View::new(mask, place), 1);
    let views = Views::new(View::new(values, 0), View::new(gradients, 0)).with_row_mask(at(mask, 64));
    let id = optimizer.add_parameter(group, Parameter::new("rows", 64).with_views(views)).unwrap();
    let other = |values, place| Views::new(View::new(values, place), View::new(other_gradients, 0));
    let refuses = |error: adamod::Error, expected: (Role, Role, u64)| {
        let ErrorKind::View { role, error: ViewError::Overlap { other_role, other_label, byte } } =
            error.kind()
        else {
            panic!("{error}")
        };
        assert_eq!((*role, *other_role, *byte), expected);
        assert_eq!(other_label, "rows");
    };
    let mut add = |views| optimizer.add_parameter(group, Parameter::new("other", 4).with_views(views));
    // The mask is bytes 64 to 72.
    refuses(add(other(mask, 68)).unwrap_err(), (Role::Values, Role::RowMask, 68));
    refuses(add(other(mask, 52)).unwrap_err(), (Role::Values, Role::RowMask, 64));
    let on_values = other(other_values, 0).with_row_mask(at(values, 128));
    refuses(add(on_values).unwrap_err(), (Role::RowMask, Role::Values, 128));
    // Views that follow are none of the mask's, and two parameters may share one.
    let shared = other(mask, 72);
    let beside = add(shared).unwrap();
    let shared = other(other_values, 0).with_row_mask(at(mask, 64));
    optimizer.set_views(beside, shared).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    // In a step at views of its own, too.
    let updates = [Update::new(id, views), Update::new(beside, shared)];
    optimizer.submit(&Step::at(&updates)).unwrap();
    let updates = [Update::new(id, views), Update::new(beside, other(mask, 68))];
    refuses(optimizer.submit(&Step::at(&updates)).unwrap_err(), (Role::Values, Role::RowMask, 68));
    // A mask that is gone leaves its bytes.
    optimizer.remove_parameter(id).unwrap();
    optimizer.set_views(beside, other(mask, 68)).unwrap();
}

/// WebGPU's least limit has 8 storage buffers, which factors or a mask use up.
#[test]
fn more_storage_buffers_than_the_device_binds_are_refused() {
    let small = Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffers_per_shader_stage: 8, ..limits });
    let [values, gradients, shadow, mask] = [(); 4].map(|()| small.buffer(4096));
    let refuses = |error: adamod::Error, expected: u64| {
        assert_eq!(error.label(), Some("rows"));
        let ErrorKind::Limit { limit, found: 8, expected: needed } = error.kind() else { panic!("{error}") };
        assert_eq!((*limit, *needed), ("max_storage_buffers_per_shader_stage", expected));
    };
    let apart = Views::new(View::new(&values, 0), View::new(&gradients, 0));
    let pooled = Views::new(View::new(&values, 0), View::new(&values, 2048));
    let shadow = View::new(&shadow, 0).with_dtype(DType::Bf16);
    let mask = RowMask::new(View::new(&mask, 0), 4);
    for has_histograms in [false, true] {
        let diagnostics = if has_histograms { Diagnostics::RateHistograms } else { Diagnostics::Off };
        let options = options().with_diagnostics(diagnostics);
        let mut optimizer = small.optimizer(options).unwrap();
        let group = optimizer.add_group(AdaMod::new()).unwrap();
        let parameter = |views| Parameter::new("rows", 100).with_views(views);
        let more = u64::from(has_histograms);
        let with_both = apart.with_shadow(shadow).with_row_mask(mask);
        refuses(optimizer.add_parameter(group, parameter(with_both)).unwrap_err(), 9 + more);
        // What has no rows goes as before.
        let id = optimizer.add_parameter(group, parameter(apart.with_shadow(shadow))).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        refuses(optimizer.set_column_factors(id, &[0.5]).unwrap_err(), 9 + more);
        refuses(optimizer.set_views(id, with_both).unwrap_err(), 9 + more);
        let at = [Update::new(id, with_both)];
        refuses(optimizer.submit(&Step::at(&at)).unwrap_err(), 9 + more);
        optimizer.submit(&Step::all()).unwrap();
        // Values and gradients of one buffer are one binding.
        optimizer.set_views(id, if has_histograms { pooled } else { pooled.with_shadow(shadow) }).unwrap();
        optimizer.set_column_factors(id, &[0.5]).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        let remap = Remap::clear(1).with_views(apart.with_shadow(shadow));
        refuses(optimizer.remap(&mut small.encoder(), id, &remap).unwrap_err(), 9 + more);
        optimizer.submit(&Step::all()).unwrap();
        assert_eq!(optimizer.step_count(id), Some(4));
    }
}

/// A checkpoint whose learning rate leads out of its range with the factors changes nothing.
#[cfg(feature = "checkpoint")]
#[test]
fn a_restore_that_factors_do_not_allow_changes_nothing() {
    let mut pair = Pair::new(options(), Hyperparameters::from(Sgd::new()), Kind::f32());
    pair.add(Kind::f32(), 100, 0, None);
    let id = pair.tensors[0].id;
    pair.step(0);
    pair.optimizer.set_learning_rate(pair.group, 1e10).unwrap();
    let checkpoint = pair.optimizer.checkpoint_with_values().wait().unwrap();
    pair.optimizer.set_learning_rate(pair.group, 1.0).unwrap();
    pair.step(1);
    pair.set_factors(0, &[1.0, 1e30]);
    let before = (pair.optimizer.read_state(id).wait().unwrap(), pair.value_bits(0));
    let error = pair.optimizer.restore(&checkpoint).unwrap_err();
    assert!(error.to_string().contains("learning_rate"), "{error}");
    assert_eq!((pair.optimizer.read_state(id).wait().unwrap(), pair.value_bits(0)), before);
    assert_eq!(pair.optimizer.step_count(id), Some(2));
    // With other factors it can be restored.
    pair.set_factors(0, &[0.5]);
    pair.optimizer.restore(&checkpoint).unwrap();
    assert_eq!(pair.optimizer.step_count(id), Some(1));
}

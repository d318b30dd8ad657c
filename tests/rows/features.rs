//! Rates by column, and rows that rest in a step.

use adamod::reference::{Reference, Storage};
use adamod::{
    AdaMod, Control, DType, DeviceControl, Diagnostics, ErrorKind, Group, Hyperparameters, MasterWeights,
    Optimizer, Options, Parameter, ParameterId, Role, RowMask, Rule, Sgd, Shard, StateFormat, Step, Update,
    View, ViewError, Views, WeightDecay, Workgroups,
};

use crate::common::{Kind, bits_of, bytes_of, float_bits, gpu, offers, rules};
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
        let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, options).unwrap();
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

const LENGTHS: [usize; 5] = [1, 59, 1023, 1025, 3000];

fn kind(state: StateFormat) -> Kind {
    Kind { state, ..Kind::f32() }
}

#[test]
fn every_rule_steps_each_column_at_its_own_rate() {
    if !gpu().is_exact() {
        return;
    }
    for rule in rules() {
        for state in StateFormat::ALL {
            if !offers(&rule, &kind(state)) {
                continue;
            }
            let h = Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(0.1));
            let mut pair = Pair::new(options(), h, kind(state));
            for (len, period) in LENGTHS.into_iter().zip([1, 59, 3, 2, 2047]) {
                let tensor = pair.add(kind(state), len, 0, None);
                pair.set_factors(tensor, &factors(period));
            }
            // Beside one without.
            pair.add(kind(state), 1500, 0, None);
            for step in 0..3 {
                pair.step(step);
            }
            pair.check(state.name());
        }
    }
}

/// Values in 16 bits with master weights, and both ways of sharing a quant block among threads.
#[test]
fn every_kind_steps_columns_and_rests_rows() {
    if !gpu().is_exact() {
        return;
    }
    for workgroups in [Workgroups::Gpu, Workgroups::Cpu] {
        for kind in Kind::all() {
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
}

#[test]
fn every_rule_rests_rows_of_every_length() {
    if !gpu().is_exact() {
        return;
    }
    for rule in rules() {
        for state in StateFormat::ALL {
            if !offers(&rule, &kind(state)) {
                continue;
            }
            let h = Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(0.1));
            let mut pair = Pair::new(options(), h, kind(state));
            for (len, row_len) in LENGTHS.into_iter().zip([1, 59, 3, 32, 1030]) {
                pair.add(kind(state), len, 0, Some(row_len));
            }
            pair.add(kind(state), 1500, 0, None);
            for step in 0..3 {
                for tensor in 0..LENGTHS.len() {
                    pair.set_mask(tensor, |row| (row * 7 + step + tensor) % 5 < 2);
                }
                pair.step(step as u64);
            }
            pair.check(state.name());
        }
    }
}

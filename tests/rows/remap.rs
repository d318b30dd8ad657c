//! [`Optimizer::remap`] moves what belongs to a row, and nothing else.

use adamod::reference::Reference;
use adamod::{
    AdaMod, Control, DType, DeviceControl, ErrorKind, FreshRows, Group, Hyperparameters, MasterWeights,
    Optimizer, Options, Parameter, ParameterId, Remap, Role, Rule, Sgd, Shard, State, StateFormat, Step,
    View, ViewError, Views,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{
    Kind, bits_of, bytes_of, float_bits, gpu, number_of, offers, precision, rules, rules_by_states,
};
use crate::rows::{adamod, numbers, random, rounded, words, write};

/// An engine with one parameter, whose rows it moves in buffers of their own.
struct Engine {
    optimizer: Optimizer,
    id: ParameterId,
    kind: Kind,
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
    /// Bits of the values in their type, as the engine has them.
    len: usize,
}

impl Engine {
    fn new(
        options: Options,
        hyperparameters: impl Into<Hyperparameters>,
        kind: Kind,
        values: &[f32],
    ) -> Self {
        let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, options).unwrap();
        let group = Group::new(hyperparameters).with_precision(kind.precision());
        let group = optimizer.add_group(group).unwrap();
        let buffers = (numbers(kind.values, values.len()), numbers(kind.gradients, values.len()));
        write(&buffers.0, kind.values, values);
        let parameter = Parameter::new("rows", values.len() as u64).with_dtype(kind.values);
        let parameter = parameter.with_views(views(&buffers.0, &buffers.1, kind));
        let id = optimizer.add_parameter(group, parameter).unwrap();
        Self { optimizer, id, kind, values: buffers.0, gradients: buffers.1, len: values.len() }
    }

    fn step(&mut self, encoder: &mut wgpu::CommandEncoder) {
        self.optimizer.encode(encoder, &Step::all()).unwrap();
    }

    fn value_bits(&self) -> Vec<u32> {
        let words = gpu().read(&self.values);
        bits_of(self.kind.values, bytemuck::cast_slice(&words))[..self.len].to_vec()
    }

    /// Moves the rows in an encoder: state by the optimizer, values by copies. Fresh rows are zero. New gradients are `gradients`.
    fn remap(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        row_len: usize,
        sources: &[u32],
        fresh: FreshRows,
        gradients: &[f32],
    ) {
        let len = sources.len() * row_len;
        // The values as they are once the steps before have run: read here, which the encoder must not have steps for.
        let bits = self.value_bits();
        let moved: Vec<f32> = gathered(&bits, row_len, sources)
            .into_iter()
            .map(|bits| number_of(self.kind.values, bits.unwrap_or(0)))
            .collect();
        let (values, gradient) = (numbers(self.kind.values, len), numbers(self.kind.gradients, len));
        write(&values, self.kind.values, &moved);
        write(&gradient, self.kind.gradients, gradients);
        let source = words(sources);
        let remap = Remap::new(row_len as u64, sources.len() as u64, View::new(&source, 0))
            .with_fresh(fresh)
            .with_views(views(&values, &gradient, self.kind));
        self.optimizer.remap(encoder, self.id, &remap).unwrap();
        (self.values, self.gradients, self.len) = (values, gradient, len);
    }

    fn state(&self) -> State {
        self.optimizer.read_state(self.id).wait().unwrap()
    }

    fn read_values(&self) -> Vec<f32> {
        self.optimizer.read_parameter(self.id).wait().unwrap()
    }
}

fn views<'a>(values: &'a wgpu::Buffer, gradients: &'a wgpu::Buffer, kind: Kind) -> Views<'a> {
    Views::new(View::new(values, 0), View::new(gradients, 0).with_dtype(kind.gradients))
}

/// What each new element continues.
fn gathered<T: Copy>(old: &[T], row_len: usize, sources: &[u32]) -> Vec<Option<T>> {
    let row = |&source: &u32| {
        let start = (source as usize).checked_mul(row_len).filter(|start| start + row_len <= old.len());
        (0..row_len).map(move |column| start.map(|start| old[start + column]))
    };
    sources.iter().flat_map(row).collect()
}

/// Sources with old rows in any order and number, fresh ones and ones past the end.
fn sources(seed: u64, old_rows: usize, rows: usize) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..rows)
        .map(|_| match rng.random_range(0..10) {
            0 => Remap::FRESH,
            1 => rng.random_range(old_rows as u32..u32::MAX),
            _ => rng.random_range(0..old_rows as u32),
        })
        .collect()
}

fn options(control: Control) -> Options {
    Options::new().with_seed(3).with_control(control)
}

/// Row lengths around quads, quant blocks and chunks, with numbers of rows before and after that make lengths around them.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 1023, 1025),
    (1, 5, 4097),
    (2, 513, 511),
    (3, 341, 400),
    (4, 256, 257),
    (31, 40, 33),
    (32, 33, 64),
    (59, 70, 61),
    (64, 17, 16),
    (1023, 2, 3),
    (1025, 3, 2),
];

/// Steps before and after a remap, recorded in turn, are those of the twin bit for bit: values, states, master weights and step count.
fn follows_the_twin(
    rule: Rule,
    kind: Kind,
    control: Control,
    shape: (usize, usize, usize),
    fresh: FreshRows,
) {
    let (row_len, old_rows, rows) = shape;
    let what = format!("{rule:?} {kind:?} {shape:?} {fresh:?}");
    let values = rounded(kind.values, random(1, row_len * old_rows));
    let h = Hyperparameters::from(rule);
    let mut engine = Engine::new(options(control), h, kind, &values);
    let mut twin = Reference::<f32>::new();
    let group = twin.add_group(h);
    let storage = adamod::reference::Storage::new()
        .with_dtype(kind.values)
        .with_state(kind.state)
        .with_master_weights(kind.master_weights)
        .with_label("rows")
        .with_seed(3);
    twin.add_stored_parameter(group, values, storage);
    for step in 0..2 {
        let gradients = rounded(kind.gradients, random(10 + step, engine.len));
        write(&engine.gradients, kind.gradients, &gradients);
        let mut encoder = gpu().encoder();
        engine.step(&mut encoder);
        gpu().submit(encoder);
        twin.step(&[Some(&gradients)]);
    }
    let sources = sources(7, old_rows, rows);
    let gradients = rounded(kind.gradients, random(20, rows * row_len));
    let narrowed: Vec<_> = twin.narrowed(0).to_vec();
    let moved = gathered(&narrowed, row_len, &sources).into_iter();
    let moved = moved.map(|bits| number_of(kind.values, bits.unwrap_or(0))).collect();
    twin.remap(0, row_len, &sources, fresh, moved);
    let mut encoder = gpu().encoder();
    engine.remap(&mut encoder, row_len, &sources, fresh, &gradients);
    gpu().submit(encoder);
    let compare = |engine: &Engine, twin: &Reference<f32>, when: &str| {
        let state = engine.state();
        assert_eq!(state.step, twin.step_count(0), "{what}, {when}");
        let debiased =
            rule.states().iter().map(|state| state.debiased_by.filter(|_| kind.state.is_debiased()));
        for (index, ((name, got), debiased)) in state.tensors.iter().zip(debiased).enumerate() {
            let mut expected = twin.state(0)[index].clone();
            if let (Some(rate), Rule::AdaMod(rule)) = (debiased, rule) {
                let scale = -(rule.betas[rate].ln() * state.step as f64).exp_m1();
                expected.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            }
            assert!(float_bits(got) == float_bits(&expected), "{name}: {what}, {when}");
        }
        assert!(engine.value_bits() == twin.narrowed(0), "values: {what}, {when}");
        assert!(float_bits(&engine.read_values()) == float_bits(twin.values(0)), "masters: {what}, {when}");
    };
    compare(&engine, &twin, "moved");
    // Two steps in one encoder.
    let mut encoder = gpu().encoder();
    for _ in 0..2 {
        engine.step(&mut encoder);
        twin.step(&[Some(&gradients)]);
    }
    gpu().submit(encoder);
    compare(&engine, &twin, "stepped");
}

fn controls() -> [Control; 2] {
    [Control::Host, Control::Device(DeviceControl::new())]
}

#[test]
fn every_shape_follows_the_twin_in_every_format_of_state() {
    if !gpu().is_exact() {
        return;
    }
    for state in StateFormat::ALL {
        for shape in SHAPES {
            for fresh in [FreshRows::Zero, FreshRows::Mean] {
                follows_the_twin(adamod(), Kind { state, ..Kind::f32() }, Control::Host, shape, fresh);
            }
        }
    }
}

#[test]
fn every_kind_follows_the_twin() {
    if !gpu().is_exact() {
        return;
    }
    for kind in Kind::all() {
        follows_the_twin(adamod(), kind, Control::Host, (59, 70, 61), FreshRows::Mean);
    }
}

#[test]
fn every_set_of_states_follows_the_twin() {
    if !gpu().is_exact() {
        return;
    }
    for rule in rules_by_states() {
        for state in StateFormat::ALL {
            let kind = Kind { state, ..Kind::f32() };
            if offers(&rule, &kind) {
                follows_the_twin(rule, kind, Control::Host, (33, 40, 50), FreshRows::Mean);
            }
        }
    }
}

/// What moves is gathered, on every device: state of f32 and bf16, 8-bit state where rows are whole quant blocks, and master weights.
#[test]
fn rows_are_gathered_bit_for_bit_on_every_device() {
    for control in controls() {
        for state in StateFormat::ALL {
            for (row_len, old_rows, rows) in SHAPES {
                let is_exact = state != StateFormat::Q8 || row_len % 32 == 0;
                let kind = Kind {
                    values: DType::Bf16,
                    gradients: DType::F32,
                    state,
                    master_weights: MasterWeights::Split24,
                    ..Kind::f32()
                };
                let values = rounded(kind.values, random(1, row_len * old_rows));
                let mut engine = Engine::new(options(control), adamod(), kind, &values);
                write(&engine.gradients, kind.gradients, &random(2, row_len * old_rows));
                let mut encoder = gpu().encoder();
                engine.step(&mut encoder);
                engine.step(&mut encoder);
                gpu().submit(encoder);
                let (state, masters) = (engine.state(), engine.read_values());
                let sources = sources(8, old_rows, rows);
                let mut encoder = gpu().encoder();
                engine.remap(&mut encoder, row_len, &sources, FreshRows::Zero, &random(3, row_len * rows));
                gpu().submit(encoder);
                let moved = engine.state();
                assert_eq!(moved.step, 2);
                for ((name, before), (_, after)) in state.tensors.iter().zip(&moved.tensors) {
                    assert_eq!(after.len(), rows * row_len);
                    for (i, (expected, &got)) in
                        gathered(before, row_len, &sources).into_iter().zip(after).enumerate()
                    {
                        let what = format!("{name} {i}, {:?}, {row_len}", kind.state);
                        match expected {
                            Some(expected) if is_exact => {
                                assert_eq!(got.to_bits(), expected.to_bits(), "{what}")
                            }
                            // A code is within an eighth, or evenly spaced below 2^-13 of the largest.
                            Some(expected) => {
                                assert!((got - expected).abs() <= 0.126 * expected.abs() + 1e-3, "{what}");
                            }
                            None if is_exact => assert_eq!(got, 0.0, "{what}"),
                            None => assert!(got.abs() < 1e-2, "{what}"),
                        }
                    }
                }
                let expected = gathered(&masters, row_len, &sources);
                let expected: Vec<_> = expected.into_iter().map(|x| x.unwrap_or(0.0)).collect();
                assert_eq!(float_bits(&engine.read_values()), float_bits(&expected));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_rows_follow_the_twin(
        row_len in prop_oneof![1_usize..70, 1020_usize..1030],
        old_rows in 1_usize..90,
        rows in 1_usize..90,
        state in prop::sample::select(StateFormat::ALL.to_vec()),
        has_means in any::<bool>(),
    ) {
        if gpu().is_exact() {
            let fresh = if has_means { FreshRows::Mean } else { FreshRows::Zero };
            let kind = Kind { state, ..Kind::f32() };
            follows_the_twin(adamod(), kind, Control::Host, (row_len, old_rows, rows), fresh);
        }
    }
}

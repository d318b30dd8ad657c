//! [`Optimizer::remap`] moves what belongs to a row, and nothing else.

use adamod::reference::Reference;
use adamod::{
    Control, DType, DeviceControl, Error, ErrorKind, FreshRows, Group, Hyperparameters, MasterWeights,
    Optimizer, Options, Parameter, ParameterId, Remap, Role, Rule, Sgd, Shard, State, StateFormat, Step,
    View, ViewError, Views,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{Gpu, Kind, bits_of, float_bits, gpu, number_of, offers, precision, rules_by_states};
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
        let mut optimizer = gpu().optimizer(options).unwrap();
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
        // At no multiple of what a binding may start at.
        let source = words(&[&[7; 3], sources].concat());
        let remap = Remap::new(row_len as u64, sources.len() as u64, View::new(&source, 12))
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
            // The first one past the end.
            2 => old_rows as u32,
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
        for (number, shape) in SHAPES.into_iter().enumerate() {
            let fresh = if number % 2 == 0 { FreshRows::Mean } else { FreshRows::Zero };
            follows_the_twin(adamod(), Kind { state, ..Kind::f32() }, Control::Host, shape, fresh);
        }
    }
}

#[test]
fn every_kind_follows_the_twin() {
    if !gpu().is_exact() {
        return;
    }
    // Gradients do not move.
    for kind in Kind::all().into_iter().filter(|kind| kind.gradients == DType::F32) {
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
            // Each control has half of the shapes, and the two all of them.
            let first = usize::from(control != Control::Host);
            for (row_len, old_rows, rows) in SHAPES.into_iter().skip(first).step_by(2) {
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
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

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

/// Steps before and after a remap in one encoder, and values that a copy in the same encoder moves: nothing waits for the host.
#[test]
fn steps_and_remaps_of_one_encoder_take_effect_in_their_order() {
    if !gpu().is_exact() {
        return;
    }
    for control in controls() {
        for state in StateFormat::ALL {
            let kind = Kind { state, ..Kind::f32() };
            let (row_len, mut rows) = (48, 90);
            let values = random(1, row_len * rows);
            let mut engine = Engine::new(options(control), adamod(), kind, &values);
            let mut twin = Reference::<f32>::new();
            let group = twin.add_group(adamod());
            let storage = adamod::reference::Storage::new().with_state(state).with_label("rows").with_seed(3);
            twin.add_stored_parameter(group, values, storage);
            // As many as the largest tensor needs.
            let gradients = random(2, row_len * 100);
            let long_enough = numbers(DType::F32, gradients.len());
            write(&long_enough, DType::F32, &gradients);
            let mut encoder = gpu().encoder();
            for new_rows in [100, 20, 21] {
                engine.step(&mut encoder);
                twin.step(&[Some(&gradients[..rows * row_len])]);
                let moved = numbers(DType::F32, new_rows * row_len);
                let kept = rows.min(new_rows) * row_len;
                encoder.copy_buffer_to_buffer(&engine.values, 0, &moved, 0, 4 * kept as u64);
                let views = views(&moved, &long_enough, kind);
                let remap = Remap::resize(row_len as u64, new_rows as u64).with_views(views);
                engine.optimizer.remap(&mut encoder, engine.id, &remap).unwrap();
                let sources: Vec<u32> = (0..new_rows as u32).collect();
                let mut values = twin.values(0)[..kept].to_vec();
                values.resize(new_rows * row_len, 0.0);
                twin.remap(0, row_len, &sources, FreshRows::default(), values);
                (engine.values, engine.len, rows) = (moved, new_rows * row_len, new_rows);
                engine.step(&mut encoder);
                twin.step(&[Some(&gradients[..rows * row_len])]);
            }
            // The first gradients were another buffer's.
            write(&engine.gradients, DType::F32, &gradients[..90 * row_len]);
            gpu().submit(encoder);
            let got = engine.state();
            assert_eq!(got.step, 6);
            for (index, (name, got)) in got.tensors.iter().enumerate().take(2) {
                assert_eq!(
                    float_bits(got),
                    float_bits(&twin.state(0)[index]),
                    "{name} {state:?} {control:?}"
                );
            }
            assert_eq!(engine.value_bits(), twin.narrowed(0));
        }
    }
}

#[test]
fn cleared_rows_are_zero_and_keep_their_step_count() {
    for state in StateFormat::ALL {
        let kind = Kind { state, ..Kind::f32() };
        let mut engine = Engine::new(options(Control::Host), adamod(), kind, &random(1, 3000));
        write(&engine.gradients, DType::F32, &random(2, 3000));
        let mut encoder = gpu().encoder();
        engine.step(&mut encoder);
        let remap = Remap::clear(100).with_fresh(FreshRows::Zero);
        engine.optimizer.remap(&mut encoder, engine.id, &remap).unwrap();
        gpu().submit(encoder);
        let state = engine.state();
        assert_eq!(state.step, 1);
        assert!(state.tensors.iter().all(|(_, of)| of.len() == 3000 && of.iter().all(|x| *x == 0.0)));
    }
}

/// The mean of a column, computed in f64 from what was read.
#[test]
fn fresh_rows_start_from_the_harmonic_mean_of_their_columns_rates() {
    for (row_len, old_rows) in [(1, 3000), (59, 600), (2000, 3)] {
        let mut engine =
            Engine::new(options(Control::Host), adamod(), Kind::f32(), &random(1, row_len * old_rows));
        let mut gradients = random(2, row_len * old_rows);
        // Rates of elements without a gradient are some 1e5, and hardly count.
        gradients.iter_mut().step_by(7).for_each(|gradient| *gradient = 0.0);
        write(&engine.gradients, DType::F32, &gradients);
        let mut encoder = gpu().encoder();
        engine.step(&mut encoder);
        engine.step(&mut encoder);
        gpu().submit(encoder);
        let before = engine.state();
        let rates = before.tensor("exp_avg_lr").unwrap();
        let mut encoder = gpu().encoder();
        let sources: Vec<u32> = (0..old_rows as u32 - 1).chain([Remap::FRESH]).collect();
        engine.remap(&mut encoder, row_len, &sources, FreshRows::Mean, &gradients);
        gpu().submit(encoder);
        let after = engine.state();
        let last = |name: &str| after.tensor(name).unwrap()[row_len * (old_rows - 1)..].to_vec();
        assert!(last("exp_avg").iter().chain(&last("exp_avg_sq")).all(|x| *x == 0.0));
        for (column, got) in last("exp_avg_lr").into_iter().enumerate() {
            let of_column = rates[column..].iter().step_by(row_len);
            let (mut sum, mut count) = (0.0, 0.0);
            for &rate in of_column {
                sum += 1.0 / f64::from(rate);
                count += 1.0;
            }
            let expected = count / sum;
            // Sums of some thousand f32 numbers of one sign: measured 2e-7 at most.
            let relative = (f64::from(got) / expected - 1.0).abs();
            assert!(relative < 1e-5, "column {column} of {row_len}: {got}, expected {expected}");
            assert!(expected < 1.0, "elements without a gradient hardly count");
        }
    }
}

/// Other parameters of the same buffers keep their state, and memory is given back.
#[test]
fn neighbours_stay_and_memory_is_given_back() {
    for state in StateFormat::ALL {
        let pools = [gpu().buffer(1 << 17), gpu().buffer(1 << 17)];
        let numbers = random(1, 1 << 15);
        write(&pools[1], DType::F32, &numbers);
        let mut optimizer = gpu().optimizer(options(Control::Host)).unwrap();
        let group = Group::new(adamod()).with_precision(precision(state));
        let group = optimizer.add_group(group).unwrap();
        let add = |optimizer: &mut Optimizer, label: &str, place: u64, len: u64| {
            let views = Views::new(View::new(&pools[0], place), View::new(&pools[1], place));
            optimizer.add_parameter(group, Parameter::new(label, len).with_views(views)).unwrap()
        };
        let first = add(&mut optimizer, "first", 0, 5000);
        let rows = add(&mut optimizer, "rows", 32 << 10, 59 * 100);
        let last = add(&mut optimizer, "last", 96 << 10, 3000);
        optimizer.submit(&Step::all()).unwrap();
        let read = |optimizer: &Optimizer, id| optimizer.read_state(id).wait().unwrap();
        let (before_first, before_last) = (read(&optimizer, first), read(&optimizer, last));
        let mut most = 0;
        for round in 0..60_u64 {
            let count = 1 + round * 37 % 130;
            let mut encoder = gpu().encoder();
            optimizer.remap(&mut encoder, rows, &Remap::resize(59, count)).unwrap();
            gpu().submit(encoder);
            assert_eq!(read(&optimizer, first), before_first);
            assert_eq!(read(&optimizer, last), before_last);
            assert_eq!(read(&optimizer, rows).tensors[0].1.len() as u64, 59 * count);
            most = most.max(optimizer.state_bytes());
        }
        // Its own memory, a smallest second buffer of 1 MiB, and the first one of all three.
        assert!(most <= 2 << 20, "{state:?}: {most} bytes");
        // A remap clears the blocks that it frees, so a parameter that reuses them steps as in new memory.
        let next = add(&mut optimizer, "next", 72 << 10, 4000);
        optimizer.warm_up(&Step::all()).unwrap();
        let state = read(&optimizer, next);
        assert!(state.tensors.iter().all(|(_, of)| of.iter().all(|x| *x == 0.0)));
    }
}

/// State in many buffers, with limits that make every few chunks a buffer of their own.
#[test]
fn state_in_several_buffers_moves_too() {
    let small =
        Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffer_binding_size: 48 << 10, ..limits });
    // What a kernel can read besides the buffer that it writes and four tables.
    let most = small.device.limits().max_storage_buffers_per_shader_stage as usize - 5;
    for state in [StateFormat::F32, StateFormat::Q8] {
        let len = if state == StateFormat::F32 { 59 * 300 } else { 59 * 1000 };
        let (values, gradients) = (small.buffer(4 * len), small.buffer(4 * len));
        small.queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&random(3, len as usize)));
        let mut optimizer = small.optimizer(options(Control::Host)).unwrap();
        let group = Group::new(adamod()).with_precision(precision(state));
        let group = optimizer.add_group(group).unwrap();
        let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
        let id = optimizer.add_parameter(group, Parameter::new("rows", len).with_views(views)).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        let before = optimizer.read_state(id).wait().unwrap();
        let rows = len as u32 / 59;
        let sources: Vec<u32> = (0..rows).map(|row| row.wrapping_mul(181) % (rows + 9)).collect();
        let source = small.buffer(4 * u64::from(rows));
        small.queue.write_buffer(&source, 0, bytemuck::cast_slice(&sources));
        let mut encoder = small.encoder();
        let remap = Remap::new(59, rows.into(), View::new(&source, 0)).with_fresh(FreshRows::Zero);
        let moved = optimizer.remap(&mut encoder, id, &remap);
        match moved.as_ref().map_err(Error::kind) {
            Err(&ErrorKind::RemapBuffers { found, most: of_error }) => {
                assert!(most < 8 && found > of_error && of_error == most, "{found}, {of_error}");
                continue;
            }
            moved => moved.unwrap(),
        };
        small.submit(encoder);
        let after = optimizer.read_state(id).wait().unwrap();
        for ((name, before), (_, after)) in before.tensors.iter().zip(&after.tensors) {
            for (i, (expected, &got)) in gathered(before, 59, &sources).into_iter().zip(after).enumerate() {
                let expected = expected.unwrap_or(0.0);
                if state == StateFormat::F32 {
                    assert_eq!(got.to_bits(), expected.to_bits(), "{name} {i}");
                } else {
                    assert!(
                        (got - expected).abs() <= 0.126 * expected.abs() + 1e-2,
                        "{name} {i}: {got} {expected}"
                    );
                }
            }
        }
    }
}

/// Means and source rows that no binding can hold.
#[test]
fn rows_that_no_binding_can_hold_are_refused() {
    let small =
        Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffer_binding_size: 48 << 10, ..limits });
    const LEN: u64 = 16_000;
    let [values, gradients, source] = [(); 3].map(|()| small.buffer(4 * LEN));
    small.queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&random(3, LEN as usize)));
    let mut optimizer = small.optimizer(options(Control::Host)).unwrap();
    let group = optimizer.add_group(adamod()).unwrap();
    let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
    let id = optimizer.add_parameter(group, Parameter::new("rows", LEN).with_views(views)).unwrap();
    optimizer.submit(&Step::all()).unwrap();
    let before = optimizer.read_state(id).wait().unwrap();
    // A mean, a sum and a count for each column.
    for (remap, needed) in
        [(Remap::clear(LEN), 12 * LEN), (Remap::new(1, LEN, View::new(&source, 0)), 4 * LEN)]
    {
        let error = optimizer.remap(&mut small.encoder(), id, &remap).unwrap_err();
        assert_eq!(error.label(), Some("rows"));
        let ErrorKind::Limit { limit, found, expected } = error.kind() else { panic!("{error}") };
        assert_eq!((*limit, *found), ("max_storage_buffer_binding_size", 48 << 10));
        assert_eq!(*expected, needed);
        assert_eq!(optimizer.read_state(id).wait().unwrap(), before);
    }
    // Nothing needs means here.
    let mut encoder = small.encoder();
    optimizer.remap(&mut encoder, id, &Remap::clear(LEN).with_fresh(FreshRows::Zero)).unwrap();
    small.submit(encoder);
    let after = optimizer.read_state(id).wait().unwrap();
    assert!(after.tensors.iter().flat_map(|(_, of)| of).all(|x| *x == 0.0));
}

#[test]
fn what_has_no_state_only_changes_its_length() {
    // Before the first step, and a rule without states.
    for (rule, steps) in [(adamod(), 0), (Rule::from(Sgd::new()), 2)] {
        let mut engine = Engine::new(options(Control::Host), rule, Kind::f32(), &[1.0; 300]);
        write(&engine.gradients, DType::F32, &[0.5; 300]);
        for _ in 0..steps {
            let mut encoder = gpu().encoder();
            engine.step(&mut encoder);
            gpu().submit(encoder);
        }
        let mut encoder = gpu().encoder();
        engine.remap(&mut encoder, 3, &[5, 4, Remap::FRESH, 99], FreshRows::Mean, &[0.5; 12]);
        engine.step(&mut encoder);
        gpu().submit(encoder);
        assert_eq!((engine.state().step, engine.len), (steps + 1, 12));
        assert_eq!(engine.read_values().len(), 12);
    }
}

#[test]
fn refused_remaps_change_nothing() {
    let (values, gradients, source) = (gpu().buffer(4 * 600), gpu().buffer(4 * 600), gpu().buffer(64));
    write(&gradients, DType::F32, &random(1, 600));
    let mut optimizer = gpu().optimizer(options(Control::Host)).unwrap();
    let group = optimizer.add_group(adamod()).unwrap();
    let place = |offset| Views::new(View::new(&values, offset), View::new(&gradients, offset));
    let id = optimizer.add_parameter(group, Parameter::new("rows", 300).with_views(place(0))).unwrap();
    optimizer.add_parameter(group, Parameter::new("other", 100).with_views(place(1600))).unwrap();
    let shard = Parameter::new("shard", 100).with_shard(Shard::new(0, 200));
    let shard = optimizer.add_parameter(group, shard).unwrap();
    optimizer.submit(&Step::of(&[id])).unwrap();
    let counts = optimizer.step_counts();
    let before = optimizer.read_state(id).wait().unwrap();
    let no_usage = gpu().device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut refused = |id: ParameterId, remap: &Remap<'_>| {
        let mut encoder = gpu().encoder();
        let error = optimizer.remap(&mut encoder, id, remap).unwrap_err();
        gpu().submit(encoder);
        let rows = optimizer.parameter("rows").unwrap();
        assert_eq!(optimizer.read_state(rows).wait().unwrap(), before, "{error}");
        error
    };
    let error = refused(shard, &Remap::clear(100));
    assert!(matches!(error.kind(), ErrorKind::RemapOfShard), "{error}");
    for row_len in [0, 7, 301] {
        let error = refused(id, &Remap::clear(row_len));
        assert!(matches!(error.kind(), ErrorKind::RowLength { len: 300, .. }), "{error}");
        assert_eq!(error.label(), Some("rows"));
    }
    let error = refused(id, &Remap::resize(3, 0));
    assert!(matches!(error.kind(), ErrorKind::Empty), "{error}");
    for rows in [1 << 32, u64::MAX] {
        let error = refused(id, &Remap::resize(3, rows));
        assert!(matches!(error.kind(), ErrorKind::RemapLength { .. }), "{error}");
    }
    let view = |error: &Error| match error.kind() {
        ErrorKind::View { role, .. } => *role,
        _ => panic!("{error}"),
    };
    // 17 rows of sources in 64 bytes, an odd place, and a buffer that no kernel can read.
    let error = refused(id, &Remap::new(3, 17, View::new(&source, 0)));
    assert_eq!(view(&error), Role::SourceRows);
    let error = refused(id, &Remap::new(3, 10, View::new(&source, 3)));
    assert_eq!(view(&error), Role::SourceRows);
    let error = refused(id, &Remap::new(3, 10, View::new(&no_usage, 0)));
    assert_eq!(view(&error), Role::SourceRows);
    // Where it lies there is room for 400 elements up to its neighbour.
    let error = refused(id, &Remap::resize(100, 5));
    assert!(
        matches!(error.kind(), ErrorKind::View { error: ViewError::Overlap { byte: 1600, .. }, .. }),
        "{error}"
    );
    let error = refused(id, &Remap::resize(3, 10).with_views(place(2396)));
    assert!(matches!(error.kind(), ErrorKind::View { error: ViewError::OutOfBounds { .. }, .. }), "{error}");
    // The device refuses a buffer of another one after the views were moved: they come back.
    let sibling = gpu().sibling();
    let foreign = sibling.buffer(64);
    let error = refused(id, &Remap::new(3, 10, View::new(&foreign, 0)).with_views(place(1200)));
    assert!(matches!(error.kind(), ErrorKind::Device(_)), "{error}");
    // State has not changed, so counts from before are still good.
    optimizer.rewind(&counts).unwrap();
    // All of it works afterwards, at the old place.
    let counts = optimizer.step_counts();
    let mut encoder = gpu().encoder();
    optimizer.remap(&mut encoder, id, &Remap::resize(100, 4)).unwrap();
    optimizer.encode(&mut encoder, &Step::of(&[id])).unwrap();
    gpu().submit(encoder);
    let after = optimizer.read_state(id).wait().unwrap();
    assert_eq!((after.step, after.tensors[0].1.len()), (2, 400));
    let error = optimizer.rewind(&counts).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StaleCounts), "{error}");
    optimizer.remove_parameter(id).unwrap();
    let error = optimizer.remap(&mut gpu().encoder(), id, &Remap::clear(1)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
}

/// A checkpoint right after a remap, restored into an optimizer of the new length, goes on bit for bit.
#[cfg(feature = "checkpoint")]
#[test]
fn a_checkpoint_right_after_a_remap_continues_bit_for_bit() {
    for control in controls() {
        for state in StateFormat::ALL {
            let kind = Kind { state, ..Kind::f32() };
            let mut engine = Engine::new(options(control), adamod(), kind, &random(1, 59 * 80));
            write(&engine.gradients, DType::F32, &random(2, 59 * 80));
            let mut encoder = gpu().encoder();
            engine.step(&mut encoder);
            gpu().submit(encoder);
            let mut encoder = gpu().encoder();
            let (sources, gradients) = (sources(4, 80, 90), random(5, 59 * 90));
            engine.remap(&mut encoder, 59, &sources, FreshRows::Mean, &gradients);
            gpu().submit(encoder);
            let checkpoint = engine.optimizer.checkpoint_with_values().wait().unwrap();
            let mut resumed = Engine::new(options(control), adamod(), kind, &vec![0.0; 59 * 90]);
            write(&resumed.gradients, DType::F32, &gradients);
            resumed.optimizer.restore(&checkpoint).unwrap();
            for engine in [&mut engine, &mut resumed] {
                let mut encoder = gpu().encoder();
                engine.step(&mut encoder);
                engine.step(&mut encoder);
                gpu().submit(encoder);
            }
            assert_eq!(engine.state(), resumed.state());
            assert_eq!(engine.value_bits(), resumed.value_bits());
        }
    }
}

/// The remap was recorded and never ran, so the state is none. The way back is to bring the parameter to its old length and restore.
#[test]
fn after_a_remap_that_was_dropped_a_checkpoint_defines_the_state_again() {
    let kind = Kind { state: StateFormat::Bf16, ..Kind::f32() };
    let [mut engine, mut undisturbed] = [(); 2].map(|()| {
        let mut engine = Engine::new(options(Control::Host), adamod(), kind, &random(1, 59 * 80));
        write(&engine.gradients, DType::F32, &random(2, 59 * 80));
        let mut encoder = gpu().encoder();
        engine.step(&mut encoder);
        gpu().submit(encoder);
        engine
    });
    let checkpoint = engine.optimizer.checkpoint_with_values().wait().unwrap();
    let counts = engine.optimizer.step_counts();
    let mut dropped = gpu().encoder();
    engine.optimizer.remap(&mut dropped, engine.id, &Remap::resize(59, 70)).unwrap();
    drop(dropped);
    let error = engine.optimizer.rewind(&counts).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StaleCounts), "{error}");
    let mut encoder = gpu().encoder();
    engine.optimizer.remap(&mut encoder, engine.id, &Remap::resize(59, 80)).unwrap();
    gpu().submit(encoder);
    engine.optimizer.restore(&checkpoint).unwrap();
    for engine in [&mut engine, &mut undisturbed] {
        let mut encoder = gpu().encoder();
        engine.step(&mut encoder);
        gpu().submit(encoder);
    }
    assert_eq!(engine.state(), undisturbed.state());
    assert_eq!(engine.value_bits(), undisturbed.value_bits());
}

/// 10,000 remaps of any kind. The memory that the optimizer and the device hold does not grow.
#[test]
#[ignore = "takes minutes"]
fn ten_thousand_remaps_leave_memory_flat() {
    soak(10_000);
}

#[test]
fn remaps_leave_memory_flat() {
    soak(300);
}

fn soak(count: u64) {
    // A device of its own, because others allocate on the shared one.
    let gpu = gpu().sibling();
    let most_rows = 90;
    let pool = 4 * 59 * most_rows;
    let (values, gradients) = (gpu.buffer(3 * pool), gpu.buffer(3 * pool));
    gpu.queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&random(3, 3 * 59 * most_rows as usize)));
    let source = gpu.buffer(4 * most_rows);
    let mut optimizer = gpu.optimizer(options(Control::Host)).unwrap();
    let mut ids = Vec::new();
    for (place, state) in (0..).zip(StateFormat::ALL) {
        let group = optimizer.add_group(Group::new(adamod()).with_precision(precision(state))).unwrap();
        let views = Views::new(View::new(&values, place * pool), View::new(&gradients, place * pool));
        let parameter = Parameter::new(state.name(), 59 * most_rows).with_views(views);
        ids.push(optimizer.add_parameter(group, parameter).unwrap());
    }
    let mut rng = StdRng::seed_from_u64(9);
    let mut most = [0; 2];
    for round in 0..count {
        let mut encoder = gpu.encoder();
        for &id in &ids {
            let rows = rng.random_range(1..=most_rows);
            let sources: Vec<u32> = (0..rows).map(|_| rng.random_range(0..most_rows as u32 + 5)).collect();
            gpu.queue.write_buffer(&source, 0, bytemuck::cast_slice(&sources));
            let remap = match rng.random_range(0..4) {
                0 => Remap::resize(59, rows),
                1 => Remap::clear(59),
                _ => Remap::new(59, rows, View::new(&source, 0)),
            };
            let fresh = if rng.random() { FreshRows::Mean } else { FreshRows::Zero };
            optimizer.remap(&mut encoder, id, &remap.with_fresh(fresh)).unwrap();
        }
        optimizer.encode(&mut encoder, &Step::all()).unwrap();
        gpu.submit(encoder);
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let half = usize::from(round >= count / 2);
        let allocated = gpu.device.generate_allocator_report();
        let bytes = allocated.map_or(0, |report| report.total_allocated_bytes);
        most[half] = most[half].max(optimizer.state_bytes() + bytes);
    }
    assert!(most[1] <= most[0] + most[0] / 4, "{most:?} bytes in the first and the second half");
    for id in ids {
        let state = optimizer.read_state(id).wait().unwrap();
        assert!(state.tensors.iter().flat_map(|(_, of)| of).all(|x| x.is_finite()));
        assert_eq!(state.step, count);
    }
}

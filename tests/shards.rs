//! The law of shards: ranks that each hold a part of every tensor take together the steps of one optimizer with the whole tensors, bit for
//! bit. The ranks are optimizers on one device.

mod common;

use std::ops::Range;

use adamod::{
    AdaMod, Control, DType, DeviceControl, ErrorKind, Group, Hyperparameters, LossScale, MasterWeights,
    NonFinite, Optimizer, Options, Parameter, Precision, Progress, Rule, Sgd, Shard, StateFormat, Step, View,
    Views, WeightDecay, Workgroups,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use common::{
    Engine, Kind, Layout, Model, Tensor, all, bytes_of, float_bits, gpu, lay_out_kinds, offers, precision,
    rules, rules_by_states,
};

const POOLS: [Layout; 3] = [Layout::TwoPools(16), Layout::TwoPools(4), Layout::OnePool(8)];
const LAYOUTS: [Layout; 5] = [POOLS[0], POOLS[1], POOLS[2], Layout::OwnBuffers, Layout::Mixed];
const WORKGROUPS: [Workgroups; 2] = [Workgroups::Gpu, Workgroups::Cpu];

/// A tensor of a model: its rule, how it is stored, and its length. The format of its state is that of its group, which tensors below the
/// group's threshold do not have.
type Wanted = (Rule, Kind, usize);

/// A model with a group for each rule and precision.
fn model_of(wanted: &[Wanted], f32_state_below: u64, options: Options) -> Model {
    let mut model = Model { options, groups: Vec::new(), tensors: Vec::new() };
    for (index, &(rule, kind, len)) in wanted.iter().enumerate() {
        let decay = match rule {
            Rule::Sgd(_) => WeightDecay::Coupled(0.01),
            _ => WeightDecay::Decoupled(0.01),
        };
        let group = Group::new(Hyperparameters::from(rule).with_weight_decay(decay))
            .with_precision(kind.precision().with_f32_state_below(f32_state_below));
        let found = model.groups.iter().position(|of| *of == group);
        let group = found.unwrap_or_else(|| {
            model.groups.push(group);
            model.groups.len() - 1
        });
        let state = if (len as u64) < f32_state_below { StateFormat::F32 } else { kind.state };
        let kind = Kind { state, ..kind };
        let mut rng = StdRng::seed_from_u64(index as u64);
        let values: Vec<f32> = (0..len).map(|_| rng.random_range(-2.0..2.0)).collect();
        let values = adamod::reference::rounded(kind.values, &values);
        model.tensors.push(Tensor { label: format!("tensor.{index}"), group, values, kind });
    }
    model
}

/// The unit of shards of a tensor.
fn unit(kind: &Kind) -> usize {
    match (kind.state, kind.values, kind.master_weights) {
        (StateFormat::Q8, _, _) => 32,
        (StateFormat::Bf16, _, _) | (_, DType::Bf16, MasterWeights::None) => 4,
        _ => 1,
    }
}

/// Cuts a tensor into a range for each rank, some of which may be empty.
fn cut(rng: &mut StdRng, kind: &Kind, len: usize, ranks: usize) -> Vec<Range<usize>> {
    let unit = unit(kind);
    let mut cuts: Vec<_> =
        (1..ranks).map(|_| (unit * rng.random_range(0..=len.div_ceil(unit))).min(len)).collect();
    cuts.sort_unstable();
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts.zip(cuts.iter().copied().chain([len])).map(|(start, end)| start..end).collect()
}

/// An engine that holds a part of some tensors.
struct Rank {
    engine: Engine<'static>,
    /// The tensor of each parameter, and which elements it is.
    parts: Vec<(usize, Range<usize>)>,
}

impl Rank {
    fn new(model: &Model, parts: Vec<(usize, Range<usize>)>, layout: Layout) -> Self {
        let parts: Vec<_> = parts.into_iter().filter(|(_, range)| !range.is_empty()).collect();
        let kinds: Vec<_> =
            parts.iter().map(|(tensor, range)| (model.tensors[*tensor].kind, range.len())).collect();
        let (locations, sizes) = lay_out_kinds(&kinds, layout);
        let mut engine = Engine::empty(gpu(), model.options.clone(), &sizes);
        for &group in &model.groups {
            engine.add_group(group);
        }
        for ((tensor, range), location) in parts.iter().zip(locations) {
            let whole = &model.tensors[*tensor];
            let part = Tensor { values: whole.values[range.clone()].to_vec(), ..whole.clone() };
            let mut bytes = bytes_of(part.kind.values, &part.values);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            let (buffer, offset) = location.values;
            gpu().queue.write_buffer(&engine.buffers[buffer], offset, &bytes);
            // The format of its state is left to the group.
            let parameter = part
                .parameter()
                .with_shard(Shard::new(range.start as u64, whole.len() as u64))
                .with_views(location.views_of(&part.kind, &engine.buffers));
            engine.ids.push(engine.optimizer.add_parameter(engine.groups[part.group], parameter).unwrap());
            engine.tensors.push(part);
            engine.locations.push(location);
        }
        Self { engine, parts }
    }

    /// Its part of the gradients of all tensors.
    fn gradients<'a>(&self, whole: &[Option<&'a [f32]>]) -> Vec<Option<&'a [f32]>> {
        let of_part = |(tensor, range): &(usize, Range<usize>)| Some(&whole[*tensor]?[range.clone()]);
        self.parts.iter().map(of_part).collect()
    }
}

fn progress(optimizer: &Optimizer) -> Progress {
    optimizer.read_progress().wait().unwrap()
}

/// Records a part of a step of the parameters that have a gradient, and submits it.
fn record(
    engine: &mut Engine<'_>,
    gradients: &[Option<&[f32]>],
    part: impl for<'s> FnOnce(Step<'s>) -> Step<'s>,
) {
    let ids = engine.ids.clone();
    let present: Vec<_> =
        ids.iter().zip(gradients).filter_map(|(&id, gradient)| gradient.map(|_| id)).collect();
    let step = if present.len() == ids.len() { Step::all() } else { Step::of(&present) };
    engine.record(&part(step));
}

/// The whole tensors and their shards.
struct Run {
    model: Model,
    whole: Engine<'static>,
    ranks: Vec<Rank>,
    has_norm: bool,
}

impl Run {
    /// Cuts and layouts are random.
    fn new(model: Model, ranks: usize, layouts: &[Layout], rng: &mut StdRng) -> Self {
        let cuts: Vec<_> =
            model.tensors.iter().map(|tensor| cut(rng, &tensor.kind, tensor.len(), ranks)).collect();
        let layout = |rng: &mut StdRng| layouts[rng.random_range(0..layouts.len())];
        let ranks = (0..ranks)
            .map(|rank| {
                let parts = cuts.iter().map(|cuts| cuts[rank].clone()).enumerate().collect();
                Rank::new(&model, parts, layout(rng))
            })
            .collect();
        let whole = Engine::new(gpu(), &model, layout(rng));
        let has_norm = matches!(model.options.control, Control::Device(settings) if settings.uses_norm());
        Self { model, whole, ranks, has_norm }
    }

    fn engines(&mut self) -> impl Iterator<Item = &mut Engine<'static>> {
        std::iter::once(&mut self.whole).chain(self.ranks.iter_mut().map(|rank| &mut rank.engine))
    }

    fn step(&mut self, gradients: &[Option<&[f32]>]) {
        if !self.has_norm {
            self.whole.step(gradients);
            for rank in &mut self.ranks {
                let gradients = rank.gradients(gradients);
                rank.engine.step(&gradients);
            }
            return;
        }
        let mut squares = 0.0;
        for rank in &mut self.ranks {
            let gradients = rank.gradients(gradients);
            rank.engine.write_gradients(&gradients);
            record(&mut rank.engine, &gradients, |step| step.norm());
            squares += f64::from(progress(&rank.engine.optimizer).norm).powi(2);
        }
        let norm = squares.sqrt() as f32;
        self.whole.write_gradients(gradients);
        record(&mut self.whole, gradients, |step| step.norm());
        let of_whole = progress(&self.whole.optimizer).norm;
        let error = f64::from(of_whole) / f64::from(norm) - 1.0;
        assert!(of_whole == norm || error.abs() < 2e-6, "the norm is {of_whole:e}, of all ranks {norm:e}");
        for engine in self.engines() {
            let control = engine.optimizer.control_buffer().unwrap();
            gpu().queue.write_buffer(control, Optimizer::NORM_OFFSET, &norm.to_le_bytes());
        }
        record(&mut self.whole, gradients, |step| step.after_norm());
        for rank in &mut self.ranks {
            let gradients = rank.gradients(gradients);
            record(&mut rank.engine, &gradients, |step| step.after_norm());
        }
    }

    fn set_learning_rate(&mut self, group: usize, learning_rate: f64) {
        for engine in self.engines() {
            engine.optimizer.set_learning_rate(engine.groups[group], learning_rate).unwrap();
        }
    }

    /// The ranks hold what the whole tensors are.
    fn check(&self) {
        let whole = everything(&self.whole);
        for (number, rank) in self.ranks.iter().enumerate() {
            for ((tensor, range), part) in rank.parts.iter().zip(everything(&rank.engine)) {
                for ((name, bits), (_, expected)) in part.iter().zip(&whole[*tensor]) {
                    let expected = if name == "step" { &expected[..] } else { &expected[range.clone()] };
                    let different = bits.iter().zip(expected).position(|(bits, expected)| bits != expected);
                    assert!(
                        bits.len() == expected.len() && different.is_none(),
                        "{name} of {:?}, group {:?}: rank {number} has elements {range:?} of {}, of which {different:?} differs",
                        self.model.tensors[*tensor].kind,
                        self.model.groups[self.model.tensors[*tensor].group],
                        self.model.tensors[*tensor].len(),
                    );
                }
            }
        }
        if self.whole.optimizer.control_buffer().is_some() {
            let expected = progress(&self.whole.optimizer);
            for rank in &self.ranks {
                assert_eq!(progress(&rank.engine.optimizer), expected);
            }
        }
    }
}

/// The bits of everything that an engine holds of each tensor: its values, its state, what its master weights make of the values, its shadow
/// copy, and its step count.
fn everything(engine: &Engine<'_>) -> Vec<Vec<(String, Vec<u32>)>> {
    (0..engine.ids.len())
        .map(|index| {
            let mut all = vec![
                ("values".to_owned(), engine.value_bits(index)),
                ("values with master weights".to_owned(), float_bits(&engine.read_values(index))),
            ];
            let state = engine.state(index);
            all.extend(state.tensors.iter().map(|(name, of)| ((*name).to_owned(), float_bits(of))));
            // The first step writes it.
            let shadow = engine.shadow_bits(index).filter(|_| state.step > 0);
            all.extend(shadow.map(|bits| ("shadow copy".to_owned(), bits)));
            all.push(("step".to_owned(), vec![state.step as u32]));
            all
        })
        .collect()
}

fn controls() -> Vec<Control> {
    let dynamic =
        LossScale::Dynamic { initial: 1024.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2 };
    vec![
        Control::Host,
        Control::Device(DeviceControl::new()),
        Control::Device(DeviceControl::new().with_non_finite(NonFinite::Propagate)),
        Control::Device(DeviceControl::new().with_max_norm(1e-3).with_loss_scale(dynamic)),
    ]
}

/// Whether a step with gradients that are not finite is skipped.
fn skips(control: Control) -> bool {
    matches!(control, Control::Device(settings) if settings.non_finite == NonFinite::Skip)
}

/// Takes steps whose learning rates change, and which some tensors miss. Where such steps are skipped, some have a gradient that is not
/// finite on one rank.
fn take_steps(run: &mut Run, steps: u64, scale: f32, rng: &mut StdRng) {
    for step in 0..steps {
        for group in 0..run.model.groups.len() {
            run.set_learning_rate(group, rng.random_range(1e-3..1e-1));
        }
        let mut gradients = run.model.scaled_gradients(rng.random(), scale);
        if skips(run.model.options.control) && rng.random_bool(0.25) {
            let tensor = rng.random_range(0..gradients.len());
            let element = rng.random_range(0..gradients[tensor].len());
            gradients[tensor][element] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][step as usize % 3];
        }
        let mut given = all(&gradients);
        for gradient in &mut given {
            if rng.random_bool(0.2) {
                *gradient = None;
            }
        }
        run.step(&given);
    }
}

/// Every type of values and gradients with every master weights, every format of state and rules with every number of states, under every
/// control.
#[test]
fn shards_of_every_kind_take_the_steps_of_the_whole_tensors() {
    let lengths = [257, 1, 1025, 40, 3, 1500, 33, 128, 700];
    let wanted: Vec<_> = rules_by_states()
        .into_iter()
        .flat_map(|rule| Kind::all().into_iter().map(move |kind| (rule, kind)))
        .filter(|(rule, kind)| offers(rule, kind))
        .enumerate()
        .map(|(index, (rule, kind))| (rule, kind, lengths[index % lengths.len()]))
        .collect();
    for (number, control) in controls().into_iter().enumerate() {
        let mut rng = StdRng::seed_from_u64(number as u64);
        // On a CPU every 8-bit format of every rule has a kernel of its own.
        let options = Options::new().with_seed(5).with_control(control).with_workgroups(Workgroups::Gpu);
        let mut run = Run::new(model_of(&wanted, 0, options), 3, &POOLS, &mut rng);
        take_steps(&mut run, 3, 0.1, &mut rng);
        run.check();
    }
}

/// A gradient that is not finite on one rank. Some ranks have no parameters.
#[test]
fn all_ranks_skip_the_step_of_a_rank_whose_gradients_are_not_finite() {
    const RANKS: usize = 8;
    let wanted = [(AdaMod::new().into(), Kind::f32(), 5), (Sgd::new().into(), Kind::f32(), 2)];
    let control = DeviceControl::new().with_max_norm(1.0).with_loss_scale(LossScale::DYNAMIC);
    let options = Options::new().with_control(Control::Device(control));
    let mut run = Run::new(model_of(&wanted, 0, options), RANKS, &LAYOUTS, &mut StdRng::seed_from_u64(3));
    let holders = run.ranks.iter().filter(|rank| !rank.parts.is_empty()).count();
    assert!((3..RANKS).contains(&holders), "{holders}");
    for (step, element) in [None, Some(0), None, Some(2), Some(4)].into_iter().enumerate() {
        let mut gradients = run.model.gradients(step as u64);
        if let Some(element) = element {
            gradients[0][element] = [f32::NAN, f32::NEG_INFINITY][step % 2];
        }
        run.step(&all(&gradients));
    }
    run.check();
    for engine in run.engines() {
        let Progress { taken, skipped, loss_scale, .. } = progress(&engine.optimizer);
        assert_eq!((taken, skipped, loss_scale), (2, 3, 8192.0));
        for index in 0..engine.ids.len() {
            assert_eq!(engine.state(index).step, 2);
        }
    }
}

/// Norms past f32 of some ranks. The largest number stands for that of all ranks.
#[test]
fn all_ranks_clip_alike_where_the_norm_is_past_f32() {
    const MAX_NORM: f32 = 1024.0;
    let sgd = Hyperparameters::from(Sgd::new().with_momentum(0.0)).with_learning_rate(1.0);
    let control = Control::Device(DeviceControl::new().with_max_norm(MAX_NORM.into()));
    let mut model = Model::new(sgd, &[4]).with_options(Options::new().with_control(control));
    model.tensors[0].values.fill(0.0);
    // The last rank has taken a step before, whose norm is past f32, too.
    for (gradient, steps_before) in [(3e38, 0), (1e30, 0), (1e30, 1)] {
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        (0..steps_before).for_each(|_| engine.step(&[Some(&[3e38; 4])]));
        let before = engine.values(0);
        engine.write_gradients(&[Some(&[gradient; 4])]);
        engine.record(&Step::all().norm());
        let control = engine.optimizer.control_buffer().unwrap();
        gpu().queue.write_buffer(control, Optimizer::NORM_OFFSET, &f32::MAX.to_le_bytes());
        engine.record(&Step::all().after_norm());
        let expected = f64::from(gradient) * f64::from(MAX_NORM) / f64::from(f32::MAX);
        for (value, before) in engine.values(0).into_iter().zip(before) {
            let moved = f64::from(before) - f64::from(value);
            // Where the value was large before, it lost digits of the step.
            let allowed = 1e-6 * expected + 1e-7 * f64::from(before.abs());
            assert!((moved - expected).abs() <= allowed, "{gradient:e} moves by {moved:e}, not {expected:e}");
        }
    }
}

prop_compose! {
    fn a_kind()(
        kind in prop::sample::select(Kind::all()),
        shadow in prop::sample::select(vec![None, None, Some(DType::F16), Some(DType::Bf16)]),
    ) -> Kind {
        Kind { shadow: shadow.filter(|_| kind.values == DType::F32), ..kind }
    }
}

fn a_length() -> impl Strategy<Value = usize> {
    let edges = vec![31, 32, 33, 1023, 1024, 1025, 2047, 2048, 2049];
    prop_oneof![4 => 1_usize..3000, 2 => prop::sample::select(edges), 1 => 3000_usize..20_000]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn shards_take_the_steps_of_the_whole_tensors(
        wanted in prop::collection::vec((prop::sample::select(rules()), a_kind(), a_length()), 1..5),
        has_threshold in any::<bool>(),
        ranks in prop::sample::select(vec![1_usize, 2, 3, 8]),
        control in prop::sample::select(controls()),
        workgroups in prop::sample::select(WORKGROUPS.to_vec()),
        scale in prop::sample::select(vec![1e-6_f32, 0.1, 1.0]),
        seed in any::<u64>(),
    ) {
        let rng = &mut StdRng::seed_from_u64(seed);
        prop_assume!(wanted.iter().all(|(rule, kind, _)| offers(rule, kind)));
        // A tensor is just long enough, and its shards are not.
        let f32_state_below = if has_threshold { wanted[0].2 as u64 } else { 0 };
        let options = Options::new().with_seed(seed).with_control(control).with_workgroups(workgroups);
        let mut run = Run::new(model_of(&wanted, f32_state_below, options), ranks, &LAYOUTS, rng);
        take_steps(&mut run, 4, scale, rng);
        run.check();
    }
}

/// The threshold is the whole tensor's.
#[test]
fn shards_have_the_format_of_state_of_their_tensor() {
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let group = Group::new(AdaMod::new()).with_precision(Precision::new(StateFormat::Q8));
    let group = optimizer.add_group(group).unwrap();
    let mut bytes = |label: &str, len, shard: Option<Shard>| {
        let mut parameter = Parameter::new(label, len);
        parameter.shard = shard;
        let id = optimizer.add_parameter(group, parameter).unwrap();
        optimizer.state_bytes_of(id).unwrap()
    };
    let (f32_state, q8) = (12 * 2048, 3 * 2048 + 2048 / 8);
    assert_eq!(bytes("part of a long tensor", 2048, Some(Shard::new(2048, 4096))), q8);
    assert_eq!(bytes("part of a short tensor", 2048, Some(Shard::new(0, 4095))), f32_state);
    assert_eq!(bytes("short tensor", 2048, None), f32_state);
}

/// Of two shards with the same values and gradients. Both would draw the same numbers if they started at the same element.
#[test]
fn shards_of_one_label_draw_different_random_numbers() {
    const LEN: usize = 8192;
    let kind = Kind { values: DType::Bf16, gradients: DType::F32, state: StateFormat::Bf16, ..Kind::f32() };
    let exact_kind = Kind { state: StateFormat::F32, master_weights: MasterWeights::F32, ..kind };
    let quantized = Kind { state: StateFormat::Q8, ..kind };
    // Moments of both signs, which have an error of mean zero.
    let run = |kind: Kind, firsts: [usize; 2]| {
        let mut model = model_of(&[(AdaMod::new().into(), kind, LEN)], 0, Options::new());
        let gradients = model.gradients(1);
        let values = model.tensors[0].values.clone();
        model.tensors[0].values.extend(values);
        firsts.map(|first| {
            let mut rank = Rank::new(&model, vec![(0, first..first + LEN)], Layout::TwoPools(16));
            rank.engine.step(&all(&gradients));
            (rank.engine.read_values(0), rank.engine.state(0).tensors[0].1.clone())
        })
    };
    let [(exact_values, exact_moments), _] = run(exact_kind, [0, LEN]);
    let correlation = |shards: [&[f32]; 2], exact: &[f32]| {
        let error = |i: usize, shard: usize| f64::from(shards[shard][i]) - f64::from(exact[i]);
        // Relative to the place of the last digit, so that no element counts for more than others.
        let errors = |shard: usize| -> Vec<f64> {
            (0..LEN).map(|i| error(i, shard) / f64::from(exact[i].abs().max(1e-3))).collect()
        };
        let [a, b] = [errors(0), errors(1)];
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!(product(&a, &a) > 0.0, "nothing was rounded");
        product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
    };
    for kind in [kind, quantized] {
        for (firsts, expected) in [([0, LEN], 0.0), ([0, 0], 1.0)] {
            let [(values, moments), (other_values, other_moments)] = run(kind, firsts);
            // Five standard deviations of independent errors.
            let allowed = 5.0 / (LEN as f64).sqrt();
            let of_values = correlation([&values, &other_values], &exact_values);
            assert!((of_values - expected).abs() < allowed, "{firsts:?}, values of {kind:?}: {of_values}");
            let of_moments = correlation([&moments, &other_moments], &exact_moments);
            assert!((of_moments - expected).abs() < allowed, "{firsts:?}, exp_avg of {kind:?}: {of_moments}");
        }
    }
}

#[test]
fn misplaced_shards_are_refused_by_name() {
    const WHOLE: u64 = 100;
    let all_f32 = precision(StateFormat::F32);
    let cases = [
        (precision(StateFormat::Q8), DType::F32, 32),
        (precision(StateFormat::Q8).with_master_weights(MasterWeights::F32), DType::F16, 32),
        (precision(StateFormat::Bf16), DType::F32, 4),
        (precision(StateFormat::Bf16).with_master_weights(MasterWeights::Split32), DType::Bf16, 4),
        (all_f32, DType::Bf16, 4),
        (all_f32, DType::F32, 1),
        (all_f32.with_master_weights(MasterWeights::F32), DType::F16, 1),
        (all_f32.with_master_weights(MasterWeights::Split24), DType::Bf16, 1),
        // Of a tensor below the threshold.
        (precision(StateFormat::Q8).with_f32_state_below(WHOLE + 1), DType::F32, 1),
    ];
    for (precision, dtype, unit) in cases {
        let mut optimizer = gpu().optimizer(Options::new()).unwrap();
        let group = optimizer.add_group(Group::new(AdaMod::new()).with_precision(precision)).unwrap();
        let buffers = [gpu().buffer(1024), gpu().buffer(1024)];
        let [values, gradients] = &buffers;
        let views = Views::new(View::new(values, 0), View::new(gradients, 0));
        let mut add = |range: Range<u64>| {
            let parameter = Parameter::new("wte", range.end - range.start)
                .with_dtype(dtype)
                .with_shard(Shard::new(range.start, WHOLE))
                .with_views(views);
            optimizer.add_parameter(group, parameter)
        };
        let misaligned =
            [(1, 1..WHOLE), (2, 2..64), (31, 31..WHOLE), (33, 32..33), (98, 64..98), (99, 0..99)];
        for (found, range) in misaligned.into_iter().filter(|_| unit > 1) {
            let error = add(range).unwrap_err();
            let expected = unit;
            assert!(
                matches!(error.kind(), ErrorKind::ShardAlignment { found: of, expected: by } if (*of, *by) == (found, expected)),
                "{error}"
            );
            assert_eq!(error.label(), Some("wte"));
            assert!(error.to_string().contains(&format!("multiple of {unit}")), "{error}");
        }
        for range in [1..WHOLE + 1, 64..WHOLE + 32, WHOLE..WHOLE + 1, u64::MAX - 31..u64::MAX] {
            let error = add(range.clone()).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Shard { first, end, whole: WHOLE } if (*first..*end) == range),
                "{error}"
            );
            assert_eq!(error.label(), Some("wte"));
        }
        // Neither label nor bytes are taken. The end of the tensor needs no alignment.
        let first = if unit == 1 { 33 } else { 32 };
        let id = add(first..WHOLE).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        assert_eq!(optimizer.step_count(id), Some(1));
        assert_eq!(optimizer.read_state(id).wait().unwrap().step, 1);
    }
    // Past the largest number.
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let parameter = Parameter::new("wte", 2).with_shard(Shard::new(u64::MAX, u64::MAX));
    let error = optimizer.add_parameter(group, parameter).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shard { first: u64::MAX, end: u64::MAX, .. }), "{error}");
    optimizer.add_parameter(group, Parameter::new("wte", 2)).unwrap();
}

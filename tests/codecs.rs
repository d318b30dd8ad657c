//! Naive decoders of stored state and parameters, and what they say of the CPU twin and of the GPU.
//!
//! The decoders follow the description of the formats, in f64 with plain loops, and share no code with the library. A
//! number that a step stores must be one of the two neighbours in its format of the number that the step computed,
//! and on average that number.
//!
//! # The formats
//! - A tensor's state lies in blocks of 1,024 elements; the last one may be shorter. A block has a part for each
//!   state, then the scales of 8-bit states, then the part of the master weights. A part has room for a multiple of
//!   four elements, and a block occupies a multiple of 16 bytes. Bytes are in little-endian order, and what no
//!   element occupies is zero.
//! - An 8-bit state shares a scale among 32 elements, its quant block. A scale has an exponent of 8 bits and a number
//!   of fraction bits from 3 to 6. The exponent, with f32's bias, gives the bottom: a power of two, or zero if the
//!   exponent is zero. Codes count the numbers of so many fraction bits upwards from the bottom. `exp_avg` (or
//!   `momentum_buffer`) always has 3 fraction bits; its code is a sign and 7 bits, and its magnitude is what the code
//!   counts less the bottom. Code 0 of `exp_avg_sq` is zero. `exp_avg_lr`, which is positive, has the bottom as code
//!   0. The scales of a quant block are one word: three exponents from the lowest byte upwards, then for the second
//!   and the third state the number of fraction bits, less 3, in 2 bits each.
//! - bf16 and f16 are the usual formats. 16-bit states are bf16.
//! - Master weights are a signed distance from the 16-bit parameter to its f32 value, counted in f32 numbers away
//!   from zero. Split24 counts 256 of them at a time (32 beside f16), in 8 bits; Split32 has 16 bits and F32 has 32.
//!   Beside an f16 number of at most 2^-14, Split24 counts multiples of 2^-32 and Split32 multiples of 2^-40.

mod common;

// The library, behind what the tests need of it.

mod library {
    use adamod::reference::{Reference, Storage};
    use adamod::{
        AdaMod, Adam, DType, Group, Hyperparameters, MasterWeights, Optimizer, Options, Parameter,
        ParameterId, Precision, Rule, Sgd, StateFormat, Step, View, Views, WeightDecay,
    };
    use safetensors::SafeTensors;

    use super::common::Gpu;
    use super::{Half, Kind, Master, Parts, Recipe, States, Steps};

    fn rule_of(recipe: &Recipe) -> Rule {
        let [beta1, beta2, _] = recipe.betas;
        match recipe.steps {
            Steps::AdaMod => AdaMod::new().with_betas(recipe.betas).with_epsilon(recipe.epsilon).into(),
            Steps::Adam => Adam::new().with_betas([beta1, beta2]).with_epsilon(recipe.epsilon).into(),
            Steps::Sgd => Sgd::new().with_momentum(recipe.momentum).into(),
        }
    }

    fn hyperparameters_of(recipe: &Recipe) -> Hyperparameters {
        Hyperparameters::from(rule_of(recipe))
            .with_learning_rate(recipe.learning_rate)
            .with_weight_decay(WeightDecay::Decoupled(recipe.decay))
    }

    fn dtype_of(kind: Kind) -> DType {
        match kind.parameter {
            None => DType::F32,
            Some(Half::F16) => DType::F16,
            Some(Half::Bf16) => DType::Bf16,
        }
    }

    fn state_of(kind: Kind) -> StateFormat {
        match kind.states {
            States::F32 => StateFormat::F32,
            States::Bf16 => StateFormat::Bf16,
            States::Q8 => StateFormat::Q8,
        }
    }

    fn master_of(kind: Kind) -> MasterWeights {
        match kind.master {
            Master::None => MasterWeights::None,
            Master::Split24 => MasterWeights::Split24,
            Master::Split32 => MasterWeights::Split32,
            Master::F32 => MasterWeights::F32,
        }
    }

    /// The CPU twin with one parameter.
    pub struct Twin(Reference<f32>);

    impl Twin {
        pub fn new(recipe: &Recipe, kind: Kind, initial: &[f32], seed: u64) -> Self {
            let mut reference = Reference::new();
            let group = reference.add_group(hyperparameters_of(recipe));
            let storage = Storage::new()
                .with_dtype(dtype_of(kind))
                .with_state(state_of(kind))
                .with_master_weights(master_of(kind))
                .with_label("tensor")
                .with_seed(seed);
            reference.add_stored_parameter(group, initial.to_vec(), storage);
            Self(reference)
        }

        pub fn step(&mut self, gradient: &[f32]) {
            self.0.step(&[Some(gradient)]);
        }

        /// The words of the state's blocks.
        pub fn words(&self) -> &[u32] {
            self.0.words(0)
        }

        /// Bits of the parameter in its type. Before the first step there are none.
        pub fn parameter_bits(&self) -> &[u32] {
            self.0.narrowed(0)
        }

        /// What the twin goes on with.
        pub fn values(&self) -> &[f32] {
            self.0.values(0)
        }

        pub fn states(&self) -> &[Vec<f32>] {
            self.0.state(0)
        }
    }

    /// An optimizer on the GPU with tensors of several kinds, each in buffers of its own.
    pub struct Device<'g> {
        gpu: &'g Gpu,
        optimizer: Optimizer,
        state_names: Vec<&'static str>,
        tensors: Vec<Tensor>,
    }

    struct Tensor {
        kind: Kind,
        id: ParameterId,
        label: String,
        elements: usize,
        values: wgpu::Buffer,
        gradients: wgpu::Buffer,
    }

    impl<'g> Device<'g> {
        /// `initial` has, for each kind, the bits of the parameter in its type.
        pub fn new(gpu: &'g Gpu, recipe: &Recipe, kinds: &[Kind], initial: &[Vec<u32>]) -> Self {
            let options = Options::new().with_seed(5);
            let mut optimizer = gpu.optimizer(options).unwrap();
            let mut tensors = Vec::new();
            for (index, (&kind, bits)) in kinds.iter().zip(initial).enumerate() {
                let precision = Precision::new(state_of(kind))
                    .with_master_weights(master_of(kind))
                    .with_f32_state_below(0);
                let group = Group::new(hyperparameters_of(recipe)).with_precision(precision);
                let group = optimizer.add_group(group).unwrap();
                let mut bytes: Vec<u8> = match kind.parameter {
                    None => bits.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
                    Some(_) => bits.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect(),
                };
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                let values = gpu.buffer(bytes.len() as u64);
                gpu.queue.write_buffer(&values, 0, &bytes);
                let gradients = gpu.buffer(4 * bits.len() as u64);
                let label = format!("tensor.{index}");
                let views =
                    Views::new(View::new(&values, 0), View::new(&gradients, 0).with_dtype(DType::F32));
                let parameter =
                    Parameter::new(&label, bits.len() as u64).with_dtype(dtype_of(kind)).with_views(views);
                let id = optimizer.add_parameter(group, parameter).unwrap();
                tensors.push(Tensor { kind, id, label, elements: bits.len(), values, gradients });
            }
            Self { gpu, optimizer, state_names: rule_of(recipe).state_names().collect(), tensors }
        }

        pub fn step(&mut self, gradients: &[Vec<f32>]) {
            for (tensor, gradient) in self.tensors.iter().zip(gradients) {
                self.gpu.queue.write_buffer(&tensor.gradients, 0, bytemuck::cast_slice(gradient));
            }
            self.optimizer.submit(&Step::all()).unwrap();
        }

        /// The stored parts of each tensor's state, and the bits of its parameter.
        pub fn read(&self) -> Vec<(Parts, Vec<u32>)> {
            let bytes = self.optimizer.checkpoint().wait().unwrap().to_bytes().unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let part = |name: String| file.tensor(&name).map(|view| view.data().to_vec()).unwrap_or_default();
            self.tensors
                .iter()
                .map(|tensor| {
                    let states = self.state_names.iter().map(|name| part(format!("{name}.{}", tensor.label)));
                    let scales = part(format!("scales.{}", tensor.label));
                    let scales =
                        scales.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
                    let master = part(format!("master.{}", tensor.label));
                    let words = self.gpu.read(&tensor.values);
                    let bits = match tensor.kind.parameter {
                        None => words,
                        Some(_) => words.iter().flat_map(|word| [word & 0xffff, word >> 16]).collect(),
                    };
                    (Parts { states: states.collect(), scales, master }, bits[..tensor.elements].to_vec())
                })
                .collect()
        }

        /// What the library itself decodes: the parameter, then each state, `exp_avg_lr` with its bias.
        pub fn read_decoded(&self) -> Vec<Vec<Vec<f32>>> {
            self.tensors
                .iter()
                .map(|tensor| {
                    let values = self.optimizer.read_parameter(tensor.id).wait().unwrap();
                    let state = self.optimizer.read_state(tensor.id).wait().unwrap();
                    std::iter::once(values)
                        .chain(state.tensors.into_iter().map(|(_, values)| values))
                        .collect()
                })
                .collect()
        }
    }
}

// What is stored, and how.

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Steps {
    AdaMod,
    Adam,
    Sgd,
}

impl Steps {
    fn signs(self) -> &'static [Sign] {
        match self {
            Steps::AdaMod => &[Sign::Signed, Sign::NonNegative, Sign::Positive],
            Steps::Adam => &[Sign::Signed, Sign::NonNegative],
            Steps::Sgd => &[Sign::Signed],
        }
    }
}

/// Hyperparameters of a test.
#[derive(Clone, Debug)]
struct Recipe {
    steps: Steps,
    learning_rate: f64,
    betas: [f64; 3],
    epsilon: f64,
    momentum: f64,
    /// Decoupled weight decay.
    decay: f64,
}

/// What a state's numbers can be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sign {
    /// `exp_avg` and `momentum_buffer`.
    Signed,
    /// `exp_avg_sq`, which keeps zeros.
    NonNegative,
    /// `exp_avg_lr`.
    Positive,
}

/// 16-bit types.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Half {
    F16,
    Bf16,
}

/// Formats of state.
#[derive(Clone, Copy, Debug, PartialEq)]
enum States {
    F32,
    Bf16,
    Q8,
}

/// Master weights.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Master {
    None,
    Split24,
    Split32,
    F32,
}

/// How a tensor is stored; a parameter that is no half is f32.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    parameter: Option<Half>,
    master: Master,
    states: States,
}

impl Kind {
    fn all() -> Vec<Self> {
        let parameters = [
            (None, Master::None),
            (Some(Half::F16), Master::Split24),
            (Some(Half::F16), Master::Split32),
            (Some(Half::F16), Master::F32),
            (Some(Half::Bf16), Master::None),
            (Some(Half::Bf16), Master::Split24),
            (Some(Half::Bf16), Master::Split32),
            (Some(Half::Bf16), Master::F32),
        ];
        let states = [States::F32, States::Bf16, States::Q8];
        let kinds = parameters
            .iter()
            .flat_map(|&(parameter, master)| states.map(|states| Self { parameter, master, states }));
        kinds.collect()
    }
}

/// The parts of a tensor's blocks, each in the order of elements and without padding.
#[derive(Clone, Debug, PartialEq)]
struct Parts {
    /// The bytes of each state.
    states: Vec<Vec<u8>>,
    /// A word for each quant block.
    scales: Vec<u32>,
    /// The bytes of the master weights.
    master: Vec<u8>,
}

const BLOCK_ELEMENTS: usize = 1024;
const QUANT_BLOCK_ELEMENTS: usize = 32;

/// Takes the words of a tensor's blocks apart, and checks that nothing else is in them.
fn split_blocks(words: &[u32], states: usize, kind: Kind, elements: usize) -> Parts {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend(word.to_le_bytes());
    }
    let state_bytes = match kind.states {
        States::F32 => 4,
        States::Bf16 => 2,
        States::Q8 => 1,
    };
    let master_bytes = match kind.master {
        Master::None => 0,
        Master::Split24 => 1,
        Master::Split32 => 2,
        Master::F32 => 4,
    };
    let mut parts = Parts { states: vec![Vec::new(); states], scales: Vec::new(), master: Vec::new() };
    let mut at = 0;
    // Copies `used` bytes and expects zeros up to `room`.
    let mut take = |used: usize, room: usize| {
        let taken = bytes[at..at + used].to_vec();
        assert!(
            bytes[at + used..at + room].iter().all(|&byte| byte == 0),
            "{kind:?}: padding after byte {}",
            at + used
        );
        at += room;
        taken
    };
    let mut first = 0;
    while first < elements {
        let here = BLOCK_ELEMENTS.min(elements - first);
        let padded = here.next_multiple_of(4);
        let mut block_bytes = 0;
        for state in &mut parts.states {
            state.extend(take(here * state_bytes, padded * state_bytes));
            block_bytes += padded * state_bytes;
        }
        if kind.states == States::Q8 {
            let mut first_of_quant_block = 0;
            while first_of_quant_block < here {
                parts.scales.push(u32::from_le_bytes(take(4, 4).try_into().unwrap()));
                block_bytes += 4;
                first_of_quant_block += QUANT_BLOCK_ELEMENTS;
            }
        }
        parts.master.extend(take(here * master_bytes, padded * master_bytes));
        block_bytes += padded * master_bytes;
        take(0, block_bytes.next_multiple_of(16) - block_bytes);
        first += here;
    }
    assert_eq!(at, bytes.len(), "{kind:?}, {elements} elements: the length of the blocks");
    parts
}

// Decoders.

/// The number `2^exponent * (1 + fraction / 2^fraction_bits)`, or below the least normal exponent `2^least * fraction
/// / 2^fraction_bits`. `biased` is the exponent's field, which is 0 for the latter.
fn float(biased: u32, fraction: u32, fraction_bits: i32, bias: i32) -> f64 {
    let fraction = f64::from(fraction) / 2_f64.powi(fraction_bits);
    if biased == 0 {
        2_f64.powi(1 - bias) * fraction
    } else {
        2_f64.powi(biased as i32 - bias) * (1.0 + fraction)
    }
}

/// A number of f32, f16 or bf16, by its fields.
fn decode_float(bits: u32, exponent_bits: u32, fraction_bits: u32) -> f64 {
    let fractions = 2_u32.pow(fraction_bits);
    let exponents = 2_u32.pow(exponent_bits);
    let (fraction, rest) = (bits % fractions, bits / fractions);
    let (biased, sign) = (rest % exponents, rest / exponents);
    let magnitude = if biased == exponents - 1 {
        if fraction == 0 { f64::INFINITY } else { f64::NAN }
    } else {
        float(biased, fraction, fraction_bits as i32, exponents as i32 / 2 - 1)
    };
    if sign == 1 { -magnitude } else { magnitude }
}

fn decode_f32(bits: u32) -> f64 {
    decode_float(bits, 8, 23)
}

fn decode_half(half: Half, bits: u32) -> f64 {
    match half {
        Half::F16 => decode_float(bits, 5, 10),
        Half::Bf16 => decode_float(bits, 8, 7),
    }
}

/// The scale of one state of a quant block.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    /// Field of the bottom's exponent.
    exponent: u32,
    fraction_bits: i32,
}

impl Scale {
    fn of(word: u32, state: usize) -> Self {
        let exponent = word.to_le_bytes()[state].into();
        let fraction_bits = match state {
            0 => return Self { exponent: word % 256, fraction_bits: 3 },
            1 => 3 + word / 2_u32.pow(24) % 4,
            _ => 3 + word / 2_u32.pow(26) % 4,
        };
        Self { exponent, fraction_bits: fraction_bits as i32 }
    }

    /// The number that `code` steps upwards from the bottom lead to.
    fn count(self, code: u32) -> f64 {
        let steps_of_octave = 2_u32.pow(self.fraction_bits as u32);
        float(self.exponent + code / steps_of_octave, code % steps_of_octave, self.fraction_bits, 127)
    }

    fn decode(self, sign: Sign, code: u8) -> f64 {
        let code = u32::from(code);
        match sign {
            Sign::Signed => {
                let magnitude = self.count(code % 128) - self.count(0);
                if code >= 128 { -magnitude } else { magnitude }
            }
            Sign::NonNegative if code == 0 => 0.0,
            Sign::NonNegative | Sign::Positive => self.count(code),
        }
    }
}

/// Numbers of each state.
fn decode_states(parts: &Parts, signs: &[Sign], kind: Kind) -> Vec<Vec<f64>> {
    let mut states = Vec::new();
    for (index, (bytes, &sign)) in parts.states.iter().zip(signs).enumerate() {
        let mut numbers = Vec::new();
        match kind.states {
            States::F32 => {
                for bytes in bytes.chunks(4) {
                    numbers.push(decode_f32(u32::from_le_bytes(bytes.try_into().unwrap())));
                }
            }
            States::Bf16 => {
                for bytes in bytes.chunks(2) {
                    numbers
                        .push(decode_half(Half::Bf16, u16::from_le_bytes(bytes.try_into().unwrap()).into()));
                }
            }
            States::Q8 => {
                for (element, &code) in bytes.iter().enumerate() {
                    let scale = Scale::of(parts.scales[element / QUANT_BLOCK_ELEMENTS], index);
                    numbers.push(scale.decode(sign, code));
                }
            }
        }
        states.push(numbers);
    }
    states
}

/// The exponent of a magnitude, and a very low one of zero.
fn exponent_of(magnitude: f64) -> i32 {
    if magnitude == 0.0 {
        return i32::MIN / 2;
    }
    // The logarithm may be rounded past a power of two.
    let mut exponent = magnitude.log2().floor() as i32 - 1;
    while magnitude >= 2_f64.powi(exponent + 1) {
        exponent += 1;
    }
    exponent
}

/// The field of an f32 number's exponent.
fn biased_exponent(magnitude: f64) -> i32 {
    (exponent_of(magnitude) + 127).max(0)
}

/// How many f32 numbers lie between zero and a magnitude that is one.
fn rank_of(magnitude: f64) -> i64 {
    // Subnormal numbers have the spacing of the least normal ones.
    let biased = biased_exponent(magnitude).max(1);
    let units = magnitude / 2_f64.powi(biased - 127 - 23);
    assert_eq!(units, units.floor(), "{magnitude} is an f32 number");
    i64::from(biased - 1) * 2_i64.pow(23) + units as i64
}

fn magnitude_of(rank: i64) -> f64 {
    assert!(rank >= 0, "a distance does not cross zero");
    decode_f32(rank as u32)
}

/// Values of a parameter: those in its type, and those that its master weights make of them.
fn decode_parameter(bits: &[u32], parts: &Parts, kind: Kind) -> (Vec<f64>, Vec<f64>) {
    let mut narrow = Vec::new();
    let mut joined = Vec::new();
    for (element, &bits) in bits.iter().enumerate() {
        let Some(half) = kind.parameter else {
            narrow.push(decode_f32(bits));
            joined.push(decode_f32(bits));
            continue;
        };
        let value = decode_half(half, bits);
        let count = match kind.master {
            Master::None => 0,
            Master::Split24 => i64::from(i8::from_le_bytes([parts.master[element]])),
            Master::Split32 => {
                i64::from(i16::from_le_bytes(parts.master[2 * element..2 * element + 2].try_into().unwrap()))
            }
            Master::F32 => {
                i64::from(i32::from_le_bytes(parts.master[4 * element..4 * element + 4].try_into().unwrap()))
            }
        };
        let is_small_f16 = half == Half::F16 && value.abs() <= 2_f64.powi(-14);
        let magnitude = match (kind.master, half) {
            (Master::Split24, _) if is_small_f16 => value.abs() + count as f64 * 2_f64.powi(-32),
            (Master::Split32, _) if is_small_f16 => value.abs() + count as f64 * 2_f64.powi(-40),
            (Master::Split24, Half::F16) => magnitude_of(rank_of(value.abs()) + 32 * count),
            (Master::Split24, Half::Bf16) => magnitude_of(rank_of(value.abs()) + 256 * count),
            _ => magnitude_of(rank_of(value.abs()) + count),
        };
        narrow.push(value);
        joined.push(if value.is_sign_negative() { -magnitude } else { magnitude });
    }
    (narrow, joined)
}

// The grid of numbers that a format can store, and the check of what was stored.

/// The magnitudes that a number can be rounded to.
#[derive(Clone, Debug)]
enum Grid {
    /// Binary floating point with so many fraction bits, and the exponent of its least normal numbers.
    Float { fraction_bits: i32, least_exponent: i32 },
    /// These, in order.
    List(Vec<f64>),
}

const F32: Grid = Grid::Float { fraction_bits: 23, least_exponent: -126 };
const BF16: Grid = Grid::Float { fraction_bits: 7, least_exponent: -126 };
const F16: Grid = Grid::Float { fraction_bits: 10, least_exponent: -14 };
/// What bf16 and 8 bits more can store.
const BF16_SPLIT24: Grid = Grid::Float { fraction_bits: 15, least_exponent: -126 };
/// What f16 and 8 bits more can store.
const F16_SPLIT24: Grid = Grid::Float { fraction_bits: 18, least_exponent: -14 };
/// What f16 and 16 bits more can store of f32.
const F16_SPLIT32: Grid = Grid::Float { fraction_bits: 23, least_exponent: -17 };

impl Grid {
    fn of_scale(scale: Scale, sign: Sign) -> Self {
        let codes = match sign {
            Sign::Signed => 0..=127,
            // Zero is stored as zero, and nothing else is.
            Sign::NonNegative => 1..=255,
            Sign::Positive => 0..=255,
        };
        Grid::List(codes.map(|code| scale.decode(sign, code)).collect())
    }

    /// The distance of neighbours about a magnitude.
    fn spacing(fraction_bits: i32, least_exponent: i32, magnitude: f64) -> f64 {
        2_f64.powi(exponent_of(magnitude).max(least_exponent) - fraction_bits)
    }

    /// The largest number that is not above the magnitude, or the least of all.
    fn below(&self, magnitude: f64) -> f64 {
        match self {
            &Grid::Float { fraction_bits, least_exponent } => {
                let spacing = Self::spacing(fraction_bits, least_exponent, magnitude);
                (magnitude / spacing).floor() * spacing
            }
            Grid::List(numbers) => {
                let mut below = numbers[0];
                for &number in numbers {
                    if number <= magnitude {
                        below = number;
                    }
                }
                below
            }
        }
    }

    /// The least number that is not below the magnitude. There must be one: a scale has room for its largest number.
    fn above(&self, magnitude: f64) -> f64 {
        match self {
            &Grid::Float { fraction_bits, least_exponent } => {
                let spacing = Self::spacing(fraction_bits, least_exponent, magnitude);
                (magnitude / spacing).ceil() * spacing
            }
            Grid::List(numbers) => {
                for &number in numbers {
                    if number >= magnitude {
                        return number;
                    }
                }
                panic!("{magnitude:e} is past the largest number, {:e}", numbers[numbers.len() - 1])
            }
        }
    }

    /// Checks that `stored` is a neighbour of a number that is within `slack` of `exact`, on the same side of zero.
    fn check(&self, exact: f64, slack: f64, stored: f64, what: &dyn Fn() -> String) {
        let least = self.below((exact.abs() - slack).max(0.0));
        let most = self.above(exact.abs() + slack);
        // Within the slack of zero, either sign will do.
        let same_side = stored == 0.0 || exact.abs() <= slack || (stored < 0.0) == (exact < 0.0);
        let is_neighbour = least <= stored.abs() && stored.abs() <= most;
        assert!(
            same_side && is_neighbour,
            "{}: {exact:e} was stored as {stored:e}, expected a magnitude from {least:e} to {most:e}",
            what()
        );
    }
}

/// Checks a number of a state: `exact` was computed, and `stored` is what was stored of it.
fn check_state(sign: Sign, grid: &Grid, exact: f64, slack: f64, stored: f64, what: &dyn Fn() -> String) {
    if exact == 0.0 && slack == 0.0 && sign != Sign::Positive {
        assert!(stored == 0.0, "{}: zero was stored as {stored:e}", what());
        return;
    }
    if sign == Sign::NonNegative && matches!(grid, Grid::List(_)) && exact > 0.0 {
        assert!(stored > 0.0, "{}: {exact:e} was stored as zero", what());
    }
    grid.check(exact, slack, stored, what);
}

/// Checks that a quant block's scale has room for its numbers, wastes no octave and no fraction bits. `before` is the
/// scale that the block had.
fn check_scale(sign: Sign, before: Scale, scale: Scale, exact: &[f64], what: &dyn Fn() -> String) {
    let largest = exact.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    let smallest = exact.iter().filter(|x| **x != 0.0).fold(largest, |smallest, x| smallest.min(x.abs()));
    let grid = Grid::of_scale(scale, sign);
    // Or it panics.
    grid.above(largest);
    if sign != Sign::Signed {
        // One octave more than the exponents span, for what is rounded up. Fraction bits are added only with an
        // octave to spare.
        let octaves = biased_exponent(largest) - biased_exponent(smallest) + 2;
        let mut expected = 3;
        for fraction_bits in 3..=6 {
            let spare = i32::from(fraction_bits > before.fraction_bits);
            if octaves + spare <= 2_i32.pow(8 - fraction_bits as u32) {
                expected = fraction_bits;
            }
        }
        assert_eq!(
            scale.fraction_bits,
            expected,
            "{}: fraction bits for {octaves} octaves, before {before:?}",
            what()
        );
    }
    if scale.exponent > 0 {
        let Grid::List(numbers) = grid else { unreachable!() };
        let top = numbers[numbers.len() - 1];
        assert!(
            largest > top / 4.0,
            "{}: the largest number is {largest:e}, {scale:?} reaches {top:e}",
            what()
        );
    }
}

/// Checks that a parameter's bits are the rounded form of what its master weights make of them, which `exact` rounds
/// to.
fn check_parameter(kind: Kind, exact: f64, slack: f64, narrow: f64, joined: f64, what: &dyn Fn() -> String) {
    let Some(half) = kind.parameter else {
        return F32.check(exact, slack, joined, what);
    };
    match kind.master {
        Master::None => return BF16.check(exact, slack, joined, what),
        Master::Split24 | Master::Split32 if (half, kind.master) != (Half::Bf16, Master::Split32) => {
            let grid = match (half, kind.master) {
                (Half::Bf16, _) => BF16_SPLIT24,
                (Half::F16, Master::Split24) => F16_SPLIT24,
                (Half::F16, _) => F16_SPLIT32,
            };
            grid.check(joined, 0.0, joined, what);
            let Grid::Float { fraction_bits, least_exponent } = grid else { unreachable!() };
            let half_a_step = Grid::spacing(fraction_bits, least_exponent, exact.abs() + slack) / 2.0;
            assert!((joined - exact).abs() <= half_a_step + slack, "{}: {exact:e} became {joined:e}", what());
        }
        _ => F32.check(exact, slack, joined, what),
    }
    // The parameter is the nearest number of its type. Between two that are equally near, split ones go away from
    // zero, and others to the even one.
    let grid = if half == Half::F16 { F16 } else { BF16 };
    let (below, above) = (grid.below(joined.abs()), grid.above(joined.abs()));
    let (down, up) = (joined.abs() - below, above - joined.abs());
    let Grid::Float { fraction_bits, least_exponent } = grid else { unreachable!() };
    let below_is_even = (below / Grid::spacing(fraction_bits, least_exponent, below)) % 2.0 == 0.0;
    let goes_down = down < up || down == up && kind.master == Master::F32 && below_is_even;
    let nearest = if goes_down { below } else { above };
    assert_eq!(narrow.abs(), nearest, "{}: the parameter of {joined:e}", what());
    assert!(narrow.is_sign_negative() == joined.is_sign_negative(), "{}: {narrow:e} of {joined:e}", what());
}

// A step as the papers write it, in f64.

/// Numbers of one element, with how far f32 arithmetic may be off.
#[derive(Clone, Debug, PartialEq)]
struct Element {
    parameter: f64,
    parameter_slack: f64,
    states: Vec<f64>,
    slacks: Vec<f64>,
}

/// Relative error that is granted to f32 arithmetic, some 30 roundings: adapters may divide and take roots less
/// exactly than f32 can store.
const F32_ERROR: f64 = 1.0 / (1 << 19) as f64;

/// Step `t` of one element. `is_debiased` says that `exp_avg_lr` is kept as `s / (1 - beta3^t)`.
fn step(
    recipe: &Recipe,
    is_debiased: bool,
    t: i32,
    gradient: f64,
    parameter: f64,
    states: &[f64],
) -> Element {
    let [beta1, beta2, beta3] = recipe.betas;
    let alpha = recipe.learning_rate;
    let decayed = parameter - alpha * recipe.decay * parameter;
    let (states, slacks, movement) = if recipe.steps == Steps::Sgd {
        let buffer = recipe.momentum * states[0] + gradient;
        let slack = F32_ERROR * (states[0].abs() + gradient.abs());
        (vec![buffer], vec![slack], alpha * buffer)
    } else {
        let m = beta1 * states[0] + (1.0 - beta1) * gradient;
        let v = beta2 * states[1] + (1.0 - beta2) * gradient * gradient;
        let m_hat = m / (1.0 - beta1.powi(t));
        let v_hat = v / (1.0 - beta2.powi(t));
        let eta = alpha / (v_hat.sqrt() + recipe.epsilon);
        let m_slack = F32_ERROR * (states[0].abs() + gradient.abs());
        if recipe.steps == Steps::Adam {
            (vec![m, v], vec![m_slack, F32_ERROR * v], eta * m_hat)
        } else {
            let before = if is_debiased { states[2] * (1.0 - beta3.powi(t - 1)) } else { states[2] };
            let s = beta3 * before + (1.0 - beta3) * eta;
            let stored = if is_debiased { s / (1.0 - beta3.powi(t)) } else { s };
            (vec![m, v, stored], vec![m_slack, F32_ERROR * v, F32_ERROR * stored], eta.min(s) * m_hat)
        }
    };
    // A moment whose terms cancel is off by more than its own size says.
    let uncertain = match recipe.steps {
        Steps::Sgd => alpha * slacks[0],
        _ if states[0] == 0.0 => 0.0,
        _ => movement.abs() * slacks[0] / states[0].abs(),
    };
    Element {
        parameter: decayed - movement,
        parameter_slack: F32_ERROR * (parameter.abs() / 8.0 + movement.abs()) + uncertain,
        states,
        slacks,
    }
}

fn recipe(steps: Steps) -> Recipe {
    Recipe { steps, learning_rate: 1e-2, betas: [0.9, 0.99, 0.95], epsilon: 1e-8, momentum: 0.9, decay: 1e-2 }
}

/// A tensor as it is stored, decoded.
#[derive(Clone)]
struct Stored {
    narrow: Vec<f64>,
    joined: Vec<f64>,
    states: Vec<Vec<f64>>,
    scales: Vec<u32>,
}

impl Stored {
    fn new(parts: &Parts, bits: &[u32], signs: &[Sign], kind: Kind) -> Self {
        let (narrow, joined) = decode_parameter(bits, parts, kind);
        let states = decode_states(parts, signs, kind);
        for state in &states {
            assert_eq!(state.len(), bits.len());
        }
        Self { narrow, joined, states, scales: parts.scales.clone() }
    }

    /// Checks that a step from `before` is stored here. `exactly` gives, for an element, what was computed.
    fn check(
        &self,
        kind: Kind,
        signs: &[Sign],
        before: &Stored,
        exactly: impl Fn(usize) -> Element,
        label: &str,
    ) {
        let elements: Vec<Element> = (0..self.joined.len()).map(exactly).collect();
        let grid_of = |i: usize, index: usize| match kind.states {
            States::F32 => F32,
            States::Bf16 => BF16,
            States::Q8 => {
                Grid::of_scale(Scale::of(self.scales[i / QUANT_BLOCK_ELEMENTS], index), signs[index])
            }
        };
        let mut grids = Vec::new();
        for (i, element) in elements.iter().enumerate() {
            if i % QUANT_BLOCK_ELEMENTS == 0 {
                grids = (0..signs.len()).map(|index| grid_of(i, index)).collect();
            }
            let what = || format!("{label}, {kind:?}, element {i} of {}", elements.len());
            let (exact, slack) = (element.parameter, element.parameter_slack);
            check_parameter(kind, exact, slack, self.narrow[i], self.joined[i], &what);
            for (index, &sign) in signs.iter().enumerate() {
                let what = || format!("{}, state {index}", what());
                let (exact, slack) = (element.states[index], element.slacks[index]);
                check_state(sign, &grids[index], exact, slack, self.states[index][i], &what);
            }
        }
        for (number, &word) in self.scales.iter().enumerate() {
            let first = number * QUANT_BLOCK_ELEMENTS;
            let of_block = &elements[first..elements.len().min(first + QUANT_BLOCK_ELEMENTS)];
            for (index, &sign) in signs.iter().enumerate() {
                // Where f32 may be off, a number may lie on either side of a power of two.
                if of_block.iter().any(|element| element.slacks[index] != 0.0) {
                    continue;
                }
                let exact: Vec<f64> = of_block.iter().map(|element| element.states[index]).collect();
                let (before, scale) = (Scale::of(before.scales[number], index), Scale::of(word, index));
                check_scale(sign, before, scale, &exact, &|| {
                    format!("{label}, quant block {number}, state {index}")
                });
            }
        }
    }
}

// Random numbers of the tests, which need no quality.

struct Random(u64);

impl Random {
    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / 2_f64.powi(31)
    }

    /// Of either sign, its magnitude evenly distributed in octaves.
    fn of_octaves(&mut self, least: f64, most: f64) -> f64 {
        let magnitude = 2_f64.powf(least + (most - least) * self.uniform());
        if self.uniform() < 0.5 { -magnitude } else { magnitude }
    }
}

/// Gradients whose quant blocks differ in what makes storing difficult, and change from step to step.
fn difficult_gradients(random: &mut Random, elements: usize, step: usize, with_tiny: bool) -> Vec<f32> {
    let center = 8.0 * (random.uniform() - 0.5);
    let mut gradients = Vec::new();
    for i in 0..elements {
        let gradient = match (i / QUANT_BLOCK_ELEMENTS + step) % 9 {
            // From a fraction of an octave to more octaves than 8 bits can hold.
            0 => random.of_octaves(center, center + 0.4),
            1 => random.of_octaves(center, center + 1.5),
            2 => random.of_octaves(center - 3.0, center),
            3 => random.of_octaves(center - 12.0, center),
            4 => random.of_octaves(center - 30.0, center),
            // Zeros among others, all zeros, and one that is not.
            5 if random.uniform() < 0.5 => 0.0,
            5 => random.of_octaves(center - 2.0, center),
            6 => 0.0,
            7 if i % QUANT_BLOCK_ELEMENTS == 13 => random.of_octaves(center - 2.0, center),
            7 => 0.0,
            // Powers of two.
            _ => random.of_octaves(-4.0, 4.0).signum() * 2_f64.powi((8.0 * random.uniform()) as i32 - 4),
        };
        // Their squares are subnormal, or zero.
        let gradient =
            if with_tiny && random.uniform() < 0.02 { random.of_octaves(-75.0, -60.0) } else { gradient };
        gradients.push(gradient as f32);
    }
    gradients
}

/// Bits of initial values in the type of a parameter: numbers between 2^-10 and 2, and one among 16 small enough to
/// be subnormal in f16.
fn initial_bits(random: &mut Random, kind: Kind, elements: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for i in 0..elements {
        let magnitude = random.of_octaves(-10.0, 1.0).abs() * if i % 16 == 3 { 2_f64.powi(-12) } else { 1.0 };
        let sign = if random.uniform() < 0.5 { 1 } else { 0 };
        // Cutting off the fraction of f32 would copy the library, so the fields are made up from the magnitude.
        let (fraction_bits, bias) = match kind.parameter {
            None => (23, 127),
            Some(Half::F16) => (10, 15),
            Some(Half::Bf16) => (7, 127),
        };
        let exponent = biased_exponent(magnitude) - 127;
        let biased = (exponent + bias).max(0);
        let unit = 2_f64.powi((exponent).max(1 - bias) - fraction_bits);
        let fraction = (magnitude / unit).floor() as u32 % 2_u32.pow(fraction_bits as u32);
        let sign_place = if kind.parameter.is_some() { 15 } else { 31 };
        bits.push(sign * 2_u32.pow(sign_place) + biased as u32 * 2_u32.pow(fraction_bits as u32) + fraction);
    }
    bits
}

fn values_of(bits: &[u32], kind: Kind) -> Vec<f64> {
    bits.iter()
        .map(|&bits| match kind.parameter {
            None => decode_f32(bits),
            Some(half) => decode_half(half, bits),
        })
        .collect()
}

/// What a tensor has before its first step.
fn untouched(bits: &[u32], states: usize, kind: Kind) -> Stored {
    let values = values_of(bits, kind);
    let scales = if kind.states == States::Q8 { bits.len().div_ceil(QUANT_BLOCK_ELEMENTS) } else { 0 };
    Stored {
        narrow: values.clone(),
        joined: values,
        states: vec![vec![0.0; bits.len()]; states],
        scales: vec![0; scales],
    }
}

fn f32_of(values: &[f64]) -> Vec<f32> {
    values
        .iter()
        .map(|&value| {
            assert_eq!(f64::from(value as f32), value);
            value as f32
        })
        .collect()
}

// Tests.

use library::{Device, Twin};

#[test]
fn halves_decode_as_the_half_crate_has_them() {
    for bits in 0..=u16::MAX {
        let f16 = half::f16::from_bits(bits).to_f64();
        let bf16 = half::bf16::from_bits(bits).to_f64();
        for (half, expected) in [(Half::F16, f16), (Half::Bf16, bf16)] {
            let decoded = decode_half(half, bits.into());
            assert!(
                decoded == expected || decoded.is_nan() && expected.is_nan(),
                "{half:?} {bits:04x}: {decoded:e}"
            );
        }
    }
}

#[test]
fn codes_decode_as_described() {
    // The bottom is 2^-3, and 8 codes make an octave.
    let scale = Scale::of(124, 0);
    let decoded = |code| scale.decode(Sign::Signed, code);
    assert_eq!([0, 1, 8, 9].map(decoded), [0.0, 1.0 / 64.0, 0.125, 0.125 + 1.0 / 32.0]);
    assert_eq!([128 + 8, 127].map(decoded), [-0.125, 2_f64.powi(12) * 1.875 - 0.125]);
    // Bottoms of 1 and 2, with 4 and 6 fraction bits.
    let word = 127 << 8 | 128 << 16 | 1 << 24 | 3 << 26;
    let decoded = |code| Scale::of(word, 1).decode(Sign::NonNegative, code);
    assert_eq!([0, 1, 16, 17, 255].map(decoded), [0.0, 1.0625, 2.0, 2.125, 2_f64.powi(15) * 1.9375]);
    let decoded = |code| Scale::of(word, 2).decode(Sign::Positive, code);
    assert_eq!(
        [0, 1, 64, 255].map(decoded),
        [2.0, 2.0 * (1.0 + 1.0 / 64.0), 4.0, 16.0 * (1.0 + 63.0 / 64.0)]
    );
    // A distance passes over a power of two.
    let bf16 = Kind { parameter: Some(Half::Bf16), master: Master::Split24, states: States::F32 };
    let parts = Parts { states: vec![], scales: vec![], master: vec![0xff, 1, 0] };
    let (narrow, joined) = decode_parameter(&[0x3f80, 0x3f80, 0xbf80], &parts, bf16);
    assert_eq!(narrow, [1.0, 1.0, -1.0]);
    assert_eq!(joined, [1.0 - 2_f64.powi(-16), 1.0 + 2_f64.powi(-15), -1.0]);
    // f16 has fixed point up to 2^-14.
    let f16 = Kind { parameter: Some(Half::F16), master: Master::Split24, states: States::F32 };
    let parts = Parts { states: vec![], scales: vec![], master: vec![0xff, 1, 0xff, 0x80, 0xff] };
    let (_, joined) = decode_parameter(&[0x3c00, 0x3c00, 0x0400, 0x8001, 0x0401], &parts, f16);
    let bottom = 2_f64.powi(-14);
    let expected = [
        1.0 - 2_f64.powi(-19),
        1.0 + 2_f64.powi(-18),
        bottom - 2_f64.powi(-32),
        -(2_f64.powi(-24) - 2_f64.powi(-25)),
        bottom + 2_f64.powi(-24) - 2_f64.powi(-32),
    ];
    assert_eq!(joined, expected);
}

#[test]
#[should_panic(expected = "expected a magnitude")]
fn a_number_that_is_no_neighbour_is_refused() {
    let scale = Scale { exponent: 127, fraction_bits: 3 };
    Grid::of_scale(scale, Sign::Positive).check(1.01, 0.0, 1.25, &|| String::new());
}

/// With all betas and the momentum zero, a step stores functions of its own gradient, which f32 arithmetic gives
/// without the library: g, g^2 and alpha / (|g| + epsilon). So what was stored is known exactly, whatever the state
/// was.
#[test]
fn what_the_twin_stores_are_the_neighbours_of_what_it_computed() {
    let mut random = Random(1);
    for steps in [Steps::AdaMod, Steps::Adam, Steps::Sgd] {
        let signs = steps.signs();
        // SGD without momentum has no state. This momentum is zero in f32.
        let momentum = f64::MIN_POSITIVE;
        let recipe = Recipe { betas: [0.0; 3], momentum, decay: 0.0, ..recipe(steps) };
        for kind in Kind::all() {
            for elements in [1, 3, 4, 5, 31, 32, 33, 1023, 1024, 1025, 2500] {
                let bits = initial_bits(&mut random, kind, elements);
                let mut before = untouched(&bits, signs.len(), kind);
                let mut twin = Twin::new(&recipe, kind, &f32_of(&before.joined), 3);
                for t in 0..4 {
                    let gradients = difficult_gradients(&mut random, elements, t, true);
                    let parameters = f32_of(&before.joined);
                    twin.step(&gradients);
                    let parts = split_blocks(twin.words(), signs.len(), kind, elements);
                    let after = Stored::new(&parts, twin.parameter_bits(), signs, kind);
                    let exactly = |i: usize| {
                        let (g, parameter) = (gradients[i], parameters[i]);
                        let square = g * g;
                        let eta = recipe.learning_rate as f32 / (square.sqrt() + recipe.epsilon as f32);
                        let movement =
                            if steps == Steps::Sgd { recipe.learning_rate as f32 * g } else { eta * g };
                        let states = [g, square, eta].map(f64::from)[..signs.len()].to_vec();
                        let slacks = vec![0.0; signs.len()];
                        Element {
                            parameter: (parameter - movement).into(),
                            parameter_slack: 0.0,
                            states,
                            slacks,
                        }
                    };
                    after.check(kind, signs, &before, exactly, &format!("{steps:?}, step {t}"));
                    // The twin goes on with what was stored.
                    assert_eq!(f32_of(&after.joined), twin.values());
                    for (decoded, state) in after.states.iter().zip(twin.states()) {
                        assert_eq!(&f32_of(decoded), state);
                    }
                    before = after;
                }
            }
        }
    }
}

/// With the usual betas, from what was stored before.
#[test]
fn steps_of_the_twin_are_those_of_the_papers() {
    let mut random = Random(2);
    for steps in [Steps::AdaMod, Steps::Adam, Steps::Sgd] {
        let (signs, recipe) = (steps.signs(), recipe(steps));
        for kind in Kind::all() {
            for elements in [5, 1025] {
                let bits = initial_bits(&mut random, kind, elements);
                let mut before = untouched(&bits, signs.len(), kind);
                let mut twin = Twin::new(&recipe, kind, &f32_of(&before.joined), 4);
                for t in 1..=8 {
                    let gradients = difficult_gradients(&mut random, elements, 0, false);
                    twin.step(&gradients);
                    let parts = split_blocks(twin.words(), signs.len(), kind, elements);
                    let after = Stored::new(&parts, twin.parameter_bits(), signs, kind);
                    let exactly = |i: usize| {
                        let states: Vec<f64> = before.states.iter().map(|state| state[i]).collect();
                        step(
                            &recipe,
                            kind.states != States::F32,
                            t,
                            gradients[i].into(),
                            before.joined[i],
                            &states,
                        )
                    };
                    after.check(kind, signs, &before, exactly, &format!("{steps:?}, step {t}"));
                    before = after;
                }
            }
        }
    }
}

/// The same of the GPU, whatever the adapter. The library's own decoders say the same of what is stored there.
#[test]
fn steps_of_the_gpu_are_those_of_the_papers() {
    let mut random = Random(3);
    for steps in [Steps::AdaMod, Steps::Adam, Steps::Sgd] {
        let (signs, recipe) = (steps.signs(), recipe(steps));
        let (mut kinds, mut lengths) = (Vec::new(), Vec::new());
        for kind in Kind::all() {
            for elements in [1, 33, 1100] {
                kinds.push(kind);
                lengths.push(elements);
            }
        }
        let bits: Vec<_> =
            kinds.iter().zip(&lengths).map(|(&kind, &len)| initial_bits(&mut random, kind, len)).collect();
        let mut before: Vec<Stored> =
            kinds.iter().zip(&bits).map(|(&kind, bits)| untouched(bits, signs.len(), kind)).collect();
        let mut device = Device::new(common::gpu(), &recipe, &kinds, &bits);
        for t in 1..=5 {
            // In some elements always zero, and nowhere subnormal, which adapters may flush to zero.
            let gradients: Vec<Vec<f32>> = lengths
                .iter()
                .map(|&len| {
                    let gradient = |i| if i % 7 == 5 { 0.0 } else { random.of_octaves(-12.0, 6.0) as f32 };
                    (0..len).map(gradient).collect()
                })
                .collect();
            device.step(&gradients);
            let decoded = device.read_decoded();
            for (index, (parts, bits)) in device.read().iter().enumerate() {
                let kind = kinds[index];
                let is_debiased = kind.states != States::F32;
                let after = Stored::new(parts, bits, signs, kind);
                let exactly = |i: usize| {
                    let states: Vec<f64> = before[index].states.iter().map(|state| state[i]).collect();
                    let gradient = gradients[index][i].into();
                    step(&recipe, is_debiased, t, gradient, before[index].joined[i], &states)
                };
                after.check(
                    kind,
                    signs,
                    &before[index],
                    exactly,
                    &format!("{steps:?}, step {t}, {}", parts.states.len()),
                );
                assert_eq!(f32_of(&after.joined), decoded[index][0], "{kind:?}");
                for (number, state) in after.states.iter().enumerate() {
                    let bias = if is_debiased && number == 2 { 1.0 - recipe.betas[2].powi(t) } else { 1.0 };
                    for (&ours, &theirs) in state.iter().zip(&decoded[index][number + 1]) {
                        let difference = (ours * bias - f64::from(theirs)).abs();
                        assert!(
                            difference <= 1e-6 * (ours * bias).abs() * f64::from(bias != 1.0),
                            "{kind:?}, state {number}"
                        );
                    }
                }
                before[index] = after;
            }
        }
    }
}

/// Draws for each number.
const SEEDS: u64 = 400;

/// ln(2 / 1e-9): by Bernstein's inequality, a count of independent draws is farther from its mean than the bound
/// below with a probability of less than 1e-9.
const LOG_DOUBT: f64 = 21.4;

/// How often a number was rounded away from zero, over the seeds.
struct Counts {
    /// The share that is due.
    share: Vec<f64>,
    ups: Vec<f64>,
}

impl Counts {
    fn check(&self, what: &str) {
        let draws = SEEDS as f64;
        let (mut deviation, mut variance, mut spread, mut spreads) = (0.0, 0.0, 0.0, 0.0);
        for (i, (&share, &ups)) in self.share.iter().zip(&self.ups).enumerate() {
            let of_one = draws * share * (1.0 - share);
            let off = ups - draws * share;
            let bound = LOG_DOUBT / 3.0 + (LOG_DOUBT * LOG_DOUBT / 9.0 + 2.0 * LOG_DOUBT * of_one).sqrt();
            assert!(off.abs() <= bound, "{what}, number {i}: {ups} of {draws} up, due are {}", draws * share);
            deviation += off;
            variance += of_one;
            if of_one > 10.0 {
                spread += off * off / of_one;
                spreads += 1.0;
            }
        }
        // All numbers together, which shows a bias that is too small for one: within five standard deviations, about
        // 1 in 2e6.
        assert!(spreads > 30.0, "{what}: numbers enough");
        let sigmas = deviation / variance.sqrt();
        assert!(sigmas.abs() < 5.0, "{what}: {sigmas} standard deviations off");
        // Counts scatter as those of independent draws: a chi-squared sum, whose standard deviation is sqrt(2 n).
        let excess = (spread - spreads) / (2.0_f64 * spreads).sqrt();
        assert!(excess.abs() < 6.0, "{what}: the counts scatter {excess} standard deviations too much");
    }
}

/// The average over many seeds is the number before storing, for every state and for a bf16 parameter without master
/// weights.
#[test]
fn the_average_over_seeds_is_what_was_computed() {
    let recipe = Recipe { betas: [0.0; 3], decay: 0.0, ..recipe(Steps::AdaMod) };
    let signs = Steps::AdaMod.signs();
    let elements = 9 * QUANT_BLOCK_ELEMENTS + 5;
    for states in [States::Bf16, States::Q8] {
        let kind = Kind { parameter: Some(Half::Bf16), master: Master::None, states };
        let mut random = Random(4);
        let initial = values_of(&initial_bits(&mut random, kind, elements), kind);
        let initial = f32_of(&initial);
        let gradients = difficult_gradients(&mut random, elements, 0, false);
        // Magnitudes of the parameter and of the states.
        let mut exact = vec![Vec::new(); 4];
        for (&parameter, &g) in initial.iter().zip(&gradients) {
            let square = g * g;
            let eta = recipe.learning_rate as f32 / (square.sqrt() + recipe.epsilon as f32);
            for (column, number) in exact.iter_mut().zip([parameter - eta * g, g, square, eta]) {
                column.push(f64::from(number).abs());
            }
        }
        let mut sums = vec![vec![0.0; elements]; 4];
        let mut scales = Vec::new();
        for seed in 0..SEEDS {
            let mut twin = Twin::new(&recipe, kind, &initial, seed);
            twin.step(&gradients);
            let parts = split_blocks(twin.words(), signs.len(), kind, elements);
            // A scale depends on numbers, not on luck.
            assert!(seed == 0 || parts.scales == scales);
            scales = parts.scales.clone();
            let (_, joined) = decode_parameter(twin.parameter_bits(), &parts, kind);
            let columns = std::iter::once(joined).chain(decode_states(&parts, signs, kind));
            for (sum, column) in sums.iter_mut().zip(columns) {
                for (sum, number) in sum.iter_mut().zip(column) {
                    *sum += number.abs();
                }
            }
        }
        for (index, name) in ["parameter", "exp_avg", "exp_avg_sq", "exp_avg_lr"].into_iter().enumerate() {
            let mut counts = Counts { share: Vec::new(), ups: Vec::new() };
            for i in 0..elements {
                let grid = match (index, states) {
                    (0, _) | (_, States::Bf16) => BF16,
                    _ => Grid::of_scale(
                        Scale::of(scales[i / QUANT_BLOCK_ELEMENTS], index - 1),
                        signs[index - 1],
                    ),
                };
                let number = exact[index][i];
                let (below, above) = (grid.below(number), grid.above(number));
                // A number below the least one is stored as the least one, and zero as zero.
                if number < below || number == 0.0 {
                    let kept = if number == 0.0 && index < 3 { 0.0 } else { below };
                    assert_eq!(sums[index][i], SEEDS as f64 * kept, "{name} {i}");
                } else if below == above {
                    assert_eq!(sums[index][i], SEEDS as f64 * number, "{name} {i}");
                } else {
                    counts.share.push((number - below) / (above - below));
                    counts.ups.push((sums[index][i] - SEEDS as f64 * below) / (above - below));
                }
            }
            counts.check(&format!("{states:?} {name}"));
        }
    }
}

#[test]
#[should_panic(expected = "standard deviations off")]
fn a_small_bias_of_all_numbers_is_refused() {
    let share: Vec<f64> = (0..300).map(|i| 0.1 + 0.8 * f64::from(i) / 300.0).collect();
    let ups = share.iter().map(|share| SEEDS as f64 * (share + 0.01)).collect();
    Counts { share, ups }.check("biased");
}

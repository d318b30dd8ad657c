//! A training engine's side of a step: tensors in buffers, gradients that stay as they are, and the check of what came out.

use adamod::format::BlockLayout;
use adamod::reference::{Reference, rounded};
use adamod::{
    Control, DType, DeviceControl, Diagnostics, Formula, Hyperparameters, MasterWeights, Optimizer, Options,
    Parameter, ParameterId, Precision, Rule, StateFormat, Update, View, Views,
};

use super::clock::{Machine, Span, Work, begin_pass};
use super::error::BenchError;

/// What is computed, and how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub rule: Rule,
    pub state: StateFormat,
    /// Type of parameters and gradients: f32 or bf16.
    pub values: DType,
    pub master_weights: MasterWeights,
    pub diagnostics: Diagnostics,
    pub gradients: Gradients,
    /// Whether f32 parameters get a copy in bf16.
    pub copies: bool,
}

/// What is done with gradients before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    AsTheyAre,
    /// Clipped to a global norm, steps prepared on the device.
    Clipped,
}

impl Mode {
    /// AdaMod in f32.
    pub const ADAMOD: Self = Self::f32(Rule::AdaMod);

    /// A rule in f32, without diagnostics.
    pub const fn f32(rule: Rule) -> Self {
        Self {
            rule,
            state: StateFormat::F32,
            values: DType::F32,
            master_weights: MasterWeights::None,
            diagnostics: Diagnostics::Off,
            gradients: Gradients::AsTheyAre,
            copies: false,
        }
    }

    /// Its name: rule and format of state, then what differs from f32: `adamod-q8+bf16+split24`.
    pub fn name(self) -> String {
        let rule = match self.rule {
            Rule::AdaMod => "adamod",
            Rule::Adam => "adam",
            Rule::Sgd => "sgd",
        };
        let state = match self.state {
            StateFormat::F32 => "f32",
            StateFormat::Bf16 => "bf16",
            StateFormat::Q8 => "q8",
        };
        let values = match self.values {
            DType::F32 => "",
            DType::F16 => "+f16",
            DType::Bf16 => "+bf16",
        };
        let master_weights = match self.master_weights {
            MasterWeights::None => "",
            MasterWeights::Split24 => "+split24",
            MasterWeights::Split32 => "+split32",
            MasterWeights::F32 => "+master-f32",
        };
        let diagnostics = match self.diagnostics {
            Diagnostics::Off => "",
            Diagnostics::LearningRates => "+learning-rates",
        };
        let gradients = match self.gradients {
            Gradients::AsTheyAre => "",
            Gradients::Clipped => "+clip",
        };
        let copies = if self.copies { "+copy" } else { "" };
        format!("{rule}-{state}{values}{master_weights}{diagnostics}{gradients}{copies}")
    }

    /// Bytes that a step has to read and write a parameter: parameter and state twice, the gradient once, and once more for its
    /// norm; a copy once.
    pub fn bytes_per_parameter(self) -> f64 {
        let Self { rule, state, master_weights, .. } = self;
        let layout = BlockLayout { states: rule.states(), state, master_weights };
        let reads = match self.gradients {
            Gradients::AsTheyAre => 1,
            Gradients::Clipped => 2,
        };
        let copy = if self.copies { DType::Bf16.bytes() } else { 0 };
        (self.values.bytes() * (2 + reads) + copy) as f64 + 2.0 * layout.bytes_per_parameter()
    }

    /// Whether every number that is stored is an f32.
    fn is_exact(self) -> bool {
        self.state == StateFormat::F32 && self.values == DType::F32
    }
}

/// Where tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All values in one buffer, all gradients in another.
    TwoPools,
    /// The same, with tensors that start between multiples of 16 bytes.
    Unaligned,
    /// Values and gradients in turn in one buffer.
    OnePool,
    /// Two buffers a tensor.
    OwnBuffers,
    /// Two pools; gradients lie elsewhere in every other step, and views are handed over at each.
    Moving,
}

/// Buffer and byte offset.
type Place = (usize, u64);

/// Pools start tensors at multiples of this, so that every access is in words.
const ALIGNMENT_BYTES: u64 = 16;
/// Elements of a sample.
const SAMPLE_ELEMENTS: u64 = 256;
/// Tensors of which samples are taken.
const SAMPLED_TENSORS: usize = 16;
/// State is read back whole, so it is checked in tensors up to this size only.
const MOST_STATE_ELEMENTS: u64 = 1 << 24;
/// Uploads are cut into pieces, so that they need little staging memory.
const UPLOAD_BYTES: usize = 16 << 20;

/// Tensors, their optimizer, and how they are stepped.
#[derive(Debug)]
pub struct Engine {
    optimizer: Optimizer,
    mode: Mode,
    placement: Placement,
    buffers: Vec<wgpu::Buffer>,
    /// Copies of all tensors, if there are any.
    copies: Option<wgpu::Buffer>,
    tensors: Vec<Tensor>,
    /// Steps recorded, which decide where moving gradients lie.
    recorded: usize,
}

#[derive(Clone, Copy, Debug)]
struct Tensor {
    id: ParameterId,
    len: u64,
    values: Place,
    /// Where the gradient lies in even steps and in odd ones; only moving ones have two places.
    gradients: [Place; 2],
    /// Byte offset of its copy.
    copy: u64,
}

impl Engine {
    /// Tensors of these lengths, filled and registered.
    pub fn new(
        machine: &Machine,
        mode: Mode,
        placement: Placement,
        lengths: &[u64],
    ) -> Result<Self, BenchError> {
        let Machine { device, queue, .. } = machine;
        let (places, sizes) = place(placement, lengths, mode.values.bytes());
        // Whether there is room is known before minutes are spent on their contents.
        let copy_bytes = |len: u64| (DType::Bf16.bytes() * len).next_multiple_of(ALIGNMENT_BYTES);
        let create = |size| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("adamod.bench.tensors"),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (buffers, copies): (Vec<_>, _) = machine.catch("tensors", || {
            let copies = mode.copies.then(|| create(lengths.iter().copied().map(copy_bytes).sum()));
            Ok((sizes.iter().copied().map(create).collect(), copies))
        })?;
        fill(machine, mode.values, &buffers, &places, lengths)?;

        let Mode { rule, diagnostics, state, master_weights, .. } = mode;
        let control = match mode.gradients {
            Gradients::AsTheyAre => Control::Host,
            // A norm that nothing exceeds: the reference does not clip.
            Gradients::Clipped => {
                Control::Device(DeviceControl { max_norm: Some(1e30), ..DeviceControl::default() })
            }
        };
        let options = Options { rule, diagnostics, control, ..Options::default() };
        let mut optimizer = Optimizer::new(device, queue, options)?;
        let precision = Precision { state, master_weights, f32_state_below: 0 };
        let group = optimizer.add_group_with(Hyperparameters::default(), precision)?;
        let mut tensors = Vec::with_capacity(lengths.len());
        let mut copy = 0;
        for (index, (&len, &(values, gradients))) in lengths.iter().zip(&places).enumerate() {
            let view = |(buffer, offset): Place| View::new(&buffers[buffer], offset).with_dtype(mode.values);
            let mut views = Views::new(view(values), view(gradients[0]));
            if let Some(copies) = &copies {
                views = views.with_copy(View::new(copies, copy).with_dtype(DType::Bf16));
            }
            let label = format!("tensor.{index}");
            let views = (placement != Placement::Moving).then_some(views);
            let parameter = Parameter { dtype: mode.values, views, ..Parameter::new(&label, len) };
            let id = optimizer.add_parameter(group, parameter)?;
            tensors.push(Tensor { id, len, values, gradients, copy });
            copy += copy_bytes(len);
        }
        Ok(Self { optimizer, mode, placement, buffers, copies, tensors, recorded: 0 })
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.len).sum()
    }

    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Compares samples of values and states with the f64 reference; tells how many elements were compared.
    pub fn verify(&self, machine: &Machine) -> Result<u64, String> {
        let stride = self.tensors.len().div_ceil(SAMPLED_TENSORS);
        let last = self.tensors.len() - 1;
        let sampled = (0..last).step_by(stride).chain([last]);
        let mut compared = 0;
        for index in sampled {
            compared += self.verify_tensor(machine, index)?;
        }
        Ok(compared)
    }

    fn verify_tensor(&self, machine: &Machine, index: usize) -> Result<u64, String> {
        let Tensor { id, len, values: (buffer, offset), copy, .. } = self.tensors[index];
        let steps = self.optimizer.step_count(id).unwrap_or(0);
        if steps != self.recorded as u64 {
            return Err(format!("tensor {index} has taken {steps} steps of {}", self.recorded));
        }
        let elements = SAMPLE_ELEMENTS.min(len);
        let mut starts = vec![0, (len - elements) / 2, len - elements];
        starts.dedup();
        let state = if len <= MOST_STATE_ELEMENTS && self.mode.is_exact() {
            let state = self.optimizer.read_state_blocking(id);
            state.map_err(|error| format!("tensor {index}: {error}"))?.tensors
        } else {
            Vec::new()
        };
        let tolerance = Tolerance::after(steps);
        // States keep their sign while gradients do, so their errors are relative to them.
        let state_tolerance = Tolerance { absolute: 1e-12, ..tolerance };
        for start in starts.iter_mut() {
            // A read starts at a whole word.
            *start -= *start % 2;
            let start = *start;
            let element_bytes = self.mode.values.bytes();
            let bytes = (element_bytes * elements).next_multiple_of(4);
            let range = (&self.buffers[buffer], offset + element_bytes * start, bytes);
            let words = machine.read(&[range]).map_err(|error| error.to_string())?;
            let got: Vec<f32> = match self.mode.values {
                DType::F32 => words.into_iter().map(f32::from_bits).collect(),
                _ => {
                    let halves: &[u16] = bytemuck::cast_slice(&words);
                    halves.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect()
                }
            };
            if let Some(copies) = &self.copies {
                let bytes = DType::Bf16.bytes();
                let range = (copies, copy + bytes * start, (bytes * elements).next_multiple_of(4));
                let words = machine.read(&[range]).map_err(|error| error.to_string())?;
                let halves: &[u16] = bytemuck::cast_slice(&words);
                let needed = rounded(DType::Bf16, &got);
                if !needed.iter().zip(halves).all(|(value, &half)| value.to_bits() >> 16 == u32::from(half)) {
                    return Err(format!("tensor {index}: its copy is not its values in bf16"));
                }
            }
            let expected = self.expected(index as u64, start..start + elements, steps);
            let context =
                |what: &str, difference| format!("tensor {index}, step {steps}, {what}: {difference}");
            if self.mode.is_exact() {
                tolerance
                    .check(start, &got, expected.values(0))
                    .map_err(|difference| context("values", difference))?;
            } else {
                self.check_movement(index as u64, start, &got, expected.values(0))
                    .map_err(|difference| context("values", difference))?;
            }
            for ((name, got), expected) in state.iter().zip(expected.state(0)) {
                let got = &got[start as usize..(start + elements) as usize];
                state_tolerance
                    .check(start, got, expected)
                    .map_err(|difference| context(name, difference))?;
            }
        }
        Ok(starts.len() as u64 * elements)
    }

    /// Numbers in fewer bits are rounded at random: values have moved as far as they should within what that may do to them.
    fn check_movement(&self, tensor: u64, start: u64, got: &[f32], expected: &[f64]) -> Result<(), String> {
        const OF_MOVEMENT: f64 = 0.35;
        // Without master weights every step rounds anew, and what that adds goes with the root of the steps.
        let roundings = match (self.mode.values, self.mode.master_weights) {
            (DType::F32, _) => 0.0,
            (_, MasterWeights::None) => 2.0 + 3.0 * (self.recorded as f64).sqrt(),
            _ => 1.0,
        };
        let last_place = roundings * 2_f64.powi(-7);
        for ((element, &got), &expected) in (start..).zip(got).zip(expected) {
            let moved = expected - f64::from(stored(self.mode.values, value(tensor, element)));
            let allowed = OF_MOVEMENT * moved.abs() + last_place * expected.abs() + 1e-6;
            let tolerance = Tolerance { absolute: allowed, relative: 0.0 };
            tolerance.check(element, &[got], &[expected])?;
        }
        Ok(())
    }

    /// The f64 twin of a part of a tensor.
    fn expected(&self, tensor: u64, elements: std::ops::Range<u64>, steps: u64) -> Reference<f64> {
        let mut reference = Reference::new(self.mode.rule, Formula::default());
        let group = reference.add_group(Hyperparameters::default());
        let stored = |number| f64::from(stored(self.mode.values, number));
        let values = elements.clone().map(|element| stored(value(tensor, element))).collect();
        let gradients: Vec<_> = elements.map(|element| stored(gradient(tensor, element))).collect();
        reference.add_parameter(group, values);
        for _ in 0..steps {
            reference.step(&[Some(&gradients)]);
        }
        reference
    }
}

impl Work for Engine {
    fn name(&self) -> String {
        format!("the {} step", self.mode.name())
    }

    fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        span: Option<Span<'_>>,
    ) -> Result<(), BenchError> {
        if self.placement == Placement::Moving {
            // `encode_views` has a pass of its own, so empty ones before and after it take the time.
            if let Some(span) = span {
                drop(begin_pass(encoder, Some(span.before())));
            }
            let turn = self.recorded % 2;
            // The optimizer is borrowed apart from the buffers.
            let Self { optimizer, buffers, tensors, mode, .. } = self;
            let view = |(buffer, offset): Place| View::new(&buffers[buffer], offset).with_dtype(mode.values);
            let updates: Vec<_> = tensors
                .iter()
                .map(|tensor| Update {
                    parameter: tensor.id,
                    views: Views::new(view(tensor.values), view(tensor.gradients[turn])),
                })
                .collect();
            optimizer.encode_views(encoder, &updates)?;
            if let Some(span) = span {
                drop(begin_pass(encoder, Some(span.after())));
            }
        } else {
            let mut pass = begin_pass(encoder, span.map(Span::around));
            self.optimizer.encode_in_pass(&mut pass)?;
        }
        self.recorded += 1;
        Ok(())
    }
}

/// Where each tensor's values and gradients lie, and the bytes of each buffer.
fn place(placement: Placement, lengths: &[u64], element_bytes: u64) -> (Vec<(Place, [Place; 2])>, Vec<u64>) {
    let mut sizes: Vec<u64> = Vec::new();
    let shift = if placement == Placement::Unaligned { 4 } else { 0 };
    let mut take = |buffer: usize, len: u64| {
        if sizes.len() <= buffer {
            sizes.resize(buffer + 1, 0);
        }
        let offset = sizes[buffer].next_multiple_of(ALIGNMENT_BYTES) + shift;
        sizes[buffer] = offset + (element_bytes * len).next_multiple_of(4);
        (buffer, offset)
    };
    let mut places: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(index, &len)| {
            let (values, gradients) = match placement {
                Placement::TwoPools | Placement::Unaligned | Placement::Moving => (0, 1),
                Placement::OnePool => (0, 0),
                Placement::OwnBuffers => (2 * index, 2 * index + 1),
            };
            let values = take(values, len);
            (values, [take(gradients, len); 2])
        })
        .collect();
    if placement == Placement::Moving {
        // The second places are in reverse order, so that every tensor moves by another distance.
        for ((_, gradients), &len) in places.iter_mut().zip(lengths).rev() {
            gradients[1] = take(1, len);
        }
    }
    for size in &mut sizes {
        *size = size.next_multiple_of(ALIGNMENT_BYTES);
    }
    (places, sizes)
}

/// Content of an element of a tensor.
type Element = fn(u64, u64) -> f32;

/// Writes values and gradients, a buffer at a time.
fn fill(
    machine: &Machine,
    dtype: DType,
    buffers: &[wgpu::Buffer],
    places: &[(Place, [Place; 2])],
    lengths: &[u64],
) -> Result<(), BenchError> {
    let mut contents: Vec<Vec<(u64, usize, Element)>> = vec![Vec::new(); buffers.len()];
    for (index, &(values, gradients)) in places.iter().enumerate() {
        contents[values.0].push((values.1, index, value));
        for gradients in gradients {
            contents[gradients.0].push((gradients.1, index, gradient));
        }
    }
    for (buffer, contents) in buffers.iter().zip(contents) {
        let mut image = vec![0_u8; buffer.size() as usize];
        let element_bytes = dtype.bytes() as usize;
        for (offset, tensor, element_of) in contents {
            let elements = image[offset as usize..].chunks_exact_mut(element_bytes);
            for (element, to) in (0..lengths[tensor]).zip(elements) {
                // bf16 is the upper half of an f32.
                let bytes = stored(dtype, element_of(tensor as u64, element)).to_le_bytes();
                to.copy_from_slice(&bytes[4 - element_bytes..]);
            }
        }
        for (piece, bytes) in image.chunks(UPLOAD_BYTES).enumerate() {
            machine.queue.write_buffer(buffer, (piece * UPLOAD_BYTES) as u64, bytes);
            if bytes.len() == UPLOAD_BYTES {
                machine.queue.submit([]);
                machine.device.poll(wgpu::PollType::wait_indefinitely())?;
            }
        }
    }
    Ok(())
}

/// A number as the type has it.
fn stored(dtype: DType, number: f32) -> f32 {
    if dtype == DType::F32 { number } else { rounded(dtype, &[number])[0] }
}

/// An element's first value, in [-1, 1).
fn value(tensor: u64, element: u64) -> f32 {
    uniform(tensor << 40 ^ element << 1)
}

/// An element's gradient at every step, in [-1, 1).
fn gradient(tensor: u64, element: u64) -> f32 {
    uniform(tensor << 40 ^ element << 1 ^ 1)
}

/// SplitMix64's output function (Steele, Lea and Flood 2014), as a float of 24 bits.
fn uniform(seed: u64) -> f32 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Largest allowed difference: `absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    absolute: f64,
    relative: f64,
}

impl Tolerance {
    /// Rounding errors of f32 add up with the steps.
    fn after(steps: u64) -> Self {
        let steps = steps as f64;
        Self { absolute: 1e-9 + 1e-7 * steps.sqrt(), relative: 1e-5 + 1e-7 * steps }
    }

    /// The first element past the tolerance, if any. NaN is past every tolerance.
    fn check(self, start: u64, got: &[f32], expected: &[f64]) -> Result<(), String> {
        for ((element, &got), &expected) in (start..).zip(got).zip(expected) {
            let difference = (f64::from(got) - expected).abs();
            let allowed = self.absolute + self.relative * expected.abs();
            let holds = difference <= allowed;
            if !holds {
                return Err(format!(
                    "element {element} is {got:e}, expected {expected:e} within {allowed:e}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_never_overlap() {
        let lengths = [5, 1_024, 3, 1];
        for placement in [
            Placement::TwoPools,
            Placement::Unaligned,
            Placement::OnePool,
            Placement::OwnBuffers,
            Placement::Moving,
        ] {
            let (places, sizes) = place(placement, &lengths, 4);
            let mut ranges: Vec<_> = places
                .iter()
                .zip(lengths)
                .flat_map(|((values, [even, odd]), len)| {
                    [values, even, odd].map(|&(buffer, offset)| (buffer, offset, offset + 4 * len))
                })
                .collect();
            ranges.sort_unstable();
            // Only moving gradients have two places; those of the others are one.
            ranges.dedup();
            let expected = if placement == Placement::Moving { 12 } else { 8 };
            assert_eq!(ranges.len(), expected, "{placement:?}");
            for pair in ranges.windows(2) {
                assert!(pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1, "{placement:?}");
            }
            for (buffer, offset, end) in ranges {
                assert!(end <= sizes[buffer], "{placement:?}");
                assert_eq!(offset % 16 == 4, placement == Placement::Unaligned);
            }
        }
    }

    #[test]
    fn a_wrong_element_and_nan_are_found() {
        let tolerance = Tolerance::after(10);
        assert_eq!(tolerance.check(0, &[1.0, 2.0], &[1.0, 2.0]), Ok(()));
        assert!(tolerance.check(0, &[1.0, 2.0], &[1.0, 2.001]).is_err());
        assert!(tolerance.check(0, &[f32::NAN], &[0.0]).is_err());
    }

    #[test]
    fn values_fill_their_range() {
        let values: Vec<_> = (0..10_000).map(|element| value(3, element)).collect();
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(values.iter().sum::<f32>().abs() < 300.0);
        assert!(values.iter().any(|&v| v > 0.99) && values.iter().any(|&v| v < -0.99));
    }
}

//! A training engine's side of a step: tensors in buffers, gradients that stay as they are, and a check of the results.

use std::collections::BTreeSet;

use adamod::reference::{Reference, rounded};
use adamod::{
    Control, DType, DeviceControl, Group, MasterWeights, Optimizer, Options, Parameter, ParameterId,
    Precision, Step, Update, View, Views, Workgroups,
};

use super::clock::{Machine, Span, Work, begin_pass};
use super::designs::Design;
use super::error::BenchError;
use super::fill::{Content, Run, number, stored};
use super::mode::{Gradients, Mode, Placement};
use super::resources::buffer;
use super::suites::Variant;

/// Buffer and byte offset.
type Place = (usize, u64);

/// Pools start tensors at multiples of this, so that a quad of f32 is one access.
const ALIGNMENT_BYTES: u64 = 16;
/// Elements per sample.
const SAMPLE_ELEMENTS: u64 = 256;
/// The most tensors that are sampled.
const SAMPLED_TENSORS: usize = 16;
/// State is read back whole, so only tensors up to this size have theirs checked.
const MOST_STATE_ELEMENTS: u64 = 1 << 24;

/// Tensors, their optimizer, and how they are stepped.
#[derive(Debug)]
pub struct Engine {
    optimizer: Optimizer,
    mode: Mode,
    placement: Placement,
    buffers: Vec<wgpu::Buffer>,
    /// Buffers of the shadow copies; none if the mode has no copies.
    shadows: Vec<wgpu::Buffer>,
    tensors: Vec<Tensor>,
    /// Recorded steps. Their number decides where moving gradients lie.
    recorded: usize,
}

#[derive(Clone, Copy, Debug)]
struct Tensor {
    id: ParameterId,
    len: u64,
    values: Place,
    /// Where the gradient lies in even and in odd steps; the two places differ only if it moves.
    gradients: [Place; 2],
    /// Where its shadow copy lies, in buffers of its own.
    shadow: Option<Place>,
    /// Elements of the tensors before it.
    first: u64,
}

impl Engine {
    /// Creates, fills and registers tensors of these lengths.
    pub fn new(machine: &Machine, variant: &Variant) -> Result<Self, BenchError> {
        let &Variant { mode, placement, ref lengths, design, .. } = variant;
        let Machine { device, queue, .. } = machine;
        let (places, sizes) = place(placement, lengths, mode.values.bytes());
        let (shadow_places, shadow_sizes) =
            if mode.shadow { place_shadows(placement, lengths) } else { (Vec::new(), Vec::new()) };
        let create = |size| buffer(device, "adamod.bench.tensors", size);
        let (buffers, shadows) = machine.catch("tensors", || {
            let shadows: Vec<_> = shadow_sizes.iter().copied().map(create).collect();
            let buffers: Vec<_> = sizes.iter().copied().map(create).collect();
            fill(machine, mode.values, &buffers, &places, lengths);
            Ok((buffers, shadows))
        })?;

        let control = match mode.gradients {
            Gradients::AsTheyAre => Control::Host,
            // A norm that no gradient exceeds, because the reference does not clip.
            Gradients::Clipped => Control::Device(DeviceControl::new().with_max_norm(1e30)),
        };
        let options = Options::new().with_diagnostics(mode.diagnostics).with_control(control);
        let options = match design {
            Some(Design { tuning, norm_dispatch, .. }) => {
                options.with_workgroups(Workgroups::Gpu).with_tuning(tuning).with_norm_dispatch(norm_dispatch)
            }
            None => options,
        };
        let mut optimizer = Optimizer::new(device, queue, options)?;
        let precision =
            Precision::new(mode.state).with_master_weights(mode.master_weights).with_f32_state_below(0);
        let group = Group::from(mode.form.with_defaults()).with_precision(precision);
        let group = optimizer.add_group(group)?;
        let mut tensors = Vec::with_capacity(lengths.len());
        let mut first = 0;
        for (index, (&len, &(values, gradients))) in lengths.iter().zip(&places).enumerate() {
            let label = format!("tensor.{index}");
            let shadow = shadow_places.get(index).copied();
            let mut parameter = Parameter::new(&label, len).with_dtype(mode.values);
            if placement != Placement::Moving {
                let mut views = views(&buffers, values, gradients[0]);
                if let Some((buffer, offset)) = shadow {
                    views = views.with_shadow(View::new(&shadows[buffer], offset).with_dtype(DType::Bf16));
                }
                parameter = parameter.with_views(views);
            }
            let id = optimizer.add_parameter(group, parameter)?;
            tensors.push(Tensor { id, len, values, gradients, shadow, first });
            first += len;
        }
        Ok(Self { optimizer, mode, placement, buffers, shadows, tensors, recorded: 0 })
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Elements of all tensors together.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.len).sum()
    }

    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Compares samples of values and states with the f64 reference, and returns the number of compared elements.
    pub fn verify(&self, machine: &Machine) -> Result<u64, String> {
        let stride = self.tensors.len().div_ceil(SAMPLED_TENSORS);
        let last = self.tensors.len() - 1;
        let mut compared = 0;
        for (index, tensor) in self.tensors.iter().enumerate() {
            if index % stride == 0 || index == last || powers_in(tensor.first, tensor.len).next().is_some() {
                compared += self.verify_tensor(machine, index)?;
            }
        }
        Ok(compared)
    }

    fn verify_tensor(&self, machine: &Machine, index: usize) -> Result<u64, String> {
        let Tensor { id, len, values: (buffer, offset), shadow, first, .. } = self.tensors[index];
        let steps = self.optimizer.step_count(id).unwrap_or(0);
        if steps != self.recorded as u64 {
            return Err(format!("the step count of tensor {index} is {steps}, expected {}", self.recorded));
        }
        let elements = SAMPLE_ELEMENTS.min(len);
        let starts = sample_starts(first, len);
        let state = if len <= MOST_STATE_ELEMENTS && self.mode.is_exact() {
            self.optimizer.read_state(id).wait().map_err(|error| error.to_string())?.tensors
        } else {
            Vec::new()
        };
        let tolerance = Tolerance::after(steps);
        // The gradients never change, so nothing cancels in a state, and its errors are relative to it.
        let state_tolerance = Tolerance { absolute: 1e-12, ..tolerance };
        for &start in &starts {
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
            if let Some((buffer, offset)) = shadow {
                let bytes = DType::Bf16.bytes();
                let range =
                    (&self.shadows[buffer], offset + bytes * start, (bytes * elements).next_multiple_of(4));
                let words = machine.read(&[range]).map_err(|error| error.to_string())?;
                let halves: &[u16] = bytemuck::cast_slice(&words);
                let expected = rounded(DType::Bf16, &got);
                if !expected.iter().zip(halves).all(|(value, &half)| value.to_bits() >> 16 == u32::from(half))
                {
                    return Err(format!("tensor {index}: its shadow copy differs from its values in bf16"));
                }
            }
            let expected = self.expected(index as u32, start..start + elements, steps);
            let context =
                |what: &str, difference| format!("tensor {index}, step {steps}, {what}: {difference}");
            if self.mode.is_exact() {
                tolerance
                    .check(start, &got, expected.values(0))
                    .map_err(|difference| context("values", difference))?;
            } else {
                self.check_movement(index as u32, start, &got, expected.values(0))
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

    /// For modes that round at random: checks how far values have moved, within what the rounding may do.
    fn check_movement(&self, tensor: u32, start: u64, got: &[f32], expected: &[f64]) -> Result<(), String> {
        const OF_MOVEMENT: f64 = 0.35;
        // Without master weights every step rounds again, and the error grows with the root of the steps.
        let roundings = match (self.mode.values, self.mode.master_weights) {
            (DType::F32, _) => 0.0,
            (_, MasterWeights::None) => 2.0 + 3.0 * (self.recorded as f64).sqrt(),
            _ => 1.0,
        };
        let last_place = roundings * 2_f64.powi(-7);
        for ((element, &got), &expected) in (start..).zip(got).zip(expected) {
            let before = number(key_of_values(tensor), element as u32);
            let moved = expected - f64::from(stored(self.mode.values, before));
            let allowed = OF_MOVEMENT * moved.abs() + last_place * expected.abs() + 1e-6;
            let tolerance = Tolerance { absolute: allowed, relative: 0.0 };
            tolerance.check(element, &[got], &[expected])?;
        }
        Ok(())
    }

    /// The f64 reference of a part of a tensor.
    fn expected(&self, tensor: u32, elements: std::ops::Range<u64>, steps: u64) -> Reference<f64> {
        let mut reference = Reference::new();
        let group = reference.add_group(self.mode.form.with_defaults());
        let numbers = |key| -> Vec<f64> {
            let number = |element| stored(self.mode.values, number(key, element as u32));
            elements.clone().map(|element| number(element).into()).collect()
        };
        let (values, gradients) = (numbers(key_of_values(tensor)), numbers(key_of_gradients(tensor)));
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
        let Self { optimizer, placement, buffers, tensors, recorded, .. } = self;
        let mut pass = begin_pass(encoder, span.map(Span::around));
        if *placement == Placement::Moving {
            let turn = *recorded % 2;
            let update = |of: &Tensor| Update::new(of.id, views(buffers, of.values, of.gradients[turn]));
            let updates: Vec<_> = tensors.iter().map(update).collect();
            optimizer.encode_in_pass(&mut pass, &Step::at(&updates))?;
        } else {
            optimizer.encode_in_pass(&mut pass, &Step::all())?;
        }
        *recorded += 1;
        Ok(())
    }
}

/// Views of values and a gradient at their places.
fn views(buffers: &[wgpu::Buffer], values: Place, gradients: Place) -> Views<'_> {
    let view = |(buffer, offset): Place| View::new(&buffers[buffer], offset);
    Views::new(view(values), view(gradients))
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
        // The second places are in reverse order, so that every tensor moves by a different distance.
        for ((_, gradients), &len) in places.iter_mut().zip(lengths).rev() {
            gradients[1] = take(1, len);
        }
    }
    for size in &mut sizes {
        *size = size.next_multiple_of(ALIGNMENT_BYTES);
    }
    (places, sizes)
}

/// Where shadow copies lie, and the sizes of their buffers: one for each tensor that has buffers of its own, otherwise one for all.
fn place_shadows(placement: Placement, lengths: &[u64]) -> (Vec<Place>, Vec<u64>) {
    let mut sizes: Vec<u64> = Vec::new();
    let places = lengths.iter().map(|&len| {
        if sizes.is_empty() || placement == Placement::OwnBuffers {
            sizes.push(0);
        }
        let place = (sizes.len() - 1, sizes[sizes.len() - 1]);
        sizes[place.0] += (DType::Bf16.bytes() * len).next_multiple_of(ALIGNMENT_BYTES);
        place
    });
    (places.collect(), sizes)
}

/// The powers of two from 2^12 among these elements of a run of tensors, counted from the first tensor.
fn powers_in(first: u64, len: u64) -> impl Iterator<Item = u64> {
    (12..u64::BITS).map(|power| 1 << power).filter(move |power| (first..first + len).contains(power))
}

/// Where the samples of a tensor start that has `first` elements before it: at its start, middle and end, and around the powers of two at
/// which a number of elements or bytes might not fit into an integer. A read starts at a whole word, so all are even.
fn sample_starts(first: u64, len: u64) -> Vec<u64> {
    let elements = SAMPLE_ELEMENTS.min(len);
    let last = len - elements;
    let around = |power: u64| (power - first).saturating_sub(elements / 2).min(last);
    let starts = [0, last / 2, last].into_iter().chain(powers_in(first, len).map(around));
    let starts: BTreeSet<u64> = starts.map(|start| start - start % 2).collect();
    starts.into_iter().collect()
}

/// Writes values and gradients.
fn fill(
    machine: &Machine,
    dtype: DType,
    buffers: &[wgpu::Buffer],
    places: &[(Place, [Place; 2])],
    lengths: &[u64],
) {
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); buffers.len()];
    for ((tensor, &(values, gradients)), &len) in (0..).zip(places).zip(lengths) {
        let bytes = (dtype.bytes() * len).next_multiple_of(4);
        let mut add = |(buffer, offset): Place, key| runs[buffer].push(Run { offset, bytes, key });
        add(values, key_of_values(tensor));
        for gradients in gradients {
            add(gradients, key_of_gradients(tensor));
        }
    }
    for (buffer, runs) in buffers.iter().zip(runs) {
        machine.filler.fill(buffer, Content::of(dtype), &runs);
    }
}

/// The initial values of a tensor.
fn key_of_values(tensor: u32) -> u32 {
    2 * tensor
}

/// The gradients of a tensor in every step.
fn key_of_gradients(tensor: u32) -> u32 {
    2 * tensor + 1
}

/// The largest allowed difference: `absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    absolute: f64,
    relative: f64,
}

impl Tolerance {
    /// Rounding errors of f32 grow with the number of steps.
    fn after(steps: u64) -> Self {
        let steps = steps as f64;
        Self { absolute: 1e-9 + 1e-7 * steps.sqrt(), relative: 1e-5 + 1e-7 * steps }
    }

    /// Describes the first element that is not within the tolerance. NaN never is.
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
    fn shadow_copies_of_tensors_with_their_own_buffers_have_their_own_too() {
        let lengths = [5, 1_024, 3];
        assert_eq!(
            place_shadows(Placement::OwnBuffers, &lengths),
            (vec![(0, 0), (1, 0), (2, 0)], vec![16, 2_048, 16])
        );
        assert_eq!(
            place_shadows(Placement::TwoPools, &lengths),
            (vec![(0, 0), (0, 16), (0, 2_064)], vec![2_080])
        );
    }

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
            // Only moving gradients have two different places.
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
    fn samples_cover_the_ends_and_the_powers_of_two_of_a_run_of_tensors() {
        let covers = |first, len, element: u64| {
            sample_starts(first, len)
                .iter()
                .any(|start| (*start..start + SAMPLE_ELEMENTS).contains(&(element - first)))
        };
        // One tensor of more than 2^32 elements, and the second of two.
        let len = (1 << 32) + 1_001;
        for (first, elements) in [
            (0, [0, 1 << 30, (1 << 31) - 1, 1 << 31, 1 << 32, len - 2]),
            (1_000_000, [1_000_000, 1 << 30, (1 << 31) - 1, 1 << 31, 1 << 32, len - 2]),
        ] {
            for element in elements {
                assert!(covers(first, len - first, element), "{first}, {element}");
            }
            assert!(!covers(first, len - first, 3 << 29));
        }
        assert_eq!(sample_starts(0, 7), [0]);
        for start in sample_starts(4_095, 300) {
            assert!(start % 2 == 0 && start + SAMPLE_ELEMENTS <= 300, "{start}");
        }
    }

    #[test]
    fn a_wrong_element_and_nan_are_found() {
        let tolerance = Tolerance::after(10);
        assert_eq!(tolerance.check(0, &[1.0, 2.0], &[1.0, 2.0]), Ok(()));
        assert!(tolerance.check(0, &[1.0, 2.0], &[1.0, 2.001]).is_err());
        assert!(tolerance.check(0, &[f32::NAN], &[0.0]).is_err());
    }
}

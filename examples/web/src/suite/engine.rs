//! An engine with tensors of many kinds, and the CPU reference beside it.

use std::error::Error;
use std::hash::Hasher;

use adamod::reference::{Reference, Storage, rounded};
use adamod::{
    Control, DType, Group, Hyperparameters, MasterWeights, Optimizer, Options, Parameter, ParameterId,
    Precision, RuleForm, StateFormat, Step, View, Views, WeightDecay, Workgroups, wgpu,
};
use half::{bf16, f16};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::gpu::Gpu;

const SEED: u64 = 3;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub values: DType,
    pub gradients: DType,
    pub master_weights: MasterWeights,
    pub state: StateFormat,
}

impl Kind {
    /// Every kind that tensors of a rule can have.
    pub fn of(form: RuleForm) -> Vec<Self> {
        let mut all = Vec::new();
        for values in DType::ALL {
            for gradients in DType::ALL {
                for master_weights in MasterWeights::ALL.into_iter().filter(|master| master.fit(values)) {
                    for state in StateFormat::ALL.into_iter().filter(|state| form.refusal(*state).is_none()) {
                        all.push(Self { values, gradients, master_weights, state });
                    }
                }
            }
        }
        all
    }

    pub fn name(&self) -> String {
        let Self { values, gradients, master_weights, state } = self;
        let (master, state) = (master_weights.name(), state.name());
        format!("values {values}, gradients {gradients}, master weights {master}, state {state}")
    }

    fn precision(&self) -> Precision {
        Precision::new(self.state).with_master_weights(self.master_weights).with_f32_state_below(0)
    }
}

struct Tensor {
    kind: Kind,
    len: usize,
    values_offset: u64,
    gradients_offset: u64,
    id: ParameterId,
}

/// Tensors in two pools, their optimizer, and the reference.
pub struct Engine {
    gpu: Gpu,
    form: RuleForm,
    pub optimizer: Optimizer,
    pub values: wgpu::Buffer,
    gradients: wgpu::Buffer,
    tensors: Vec<Tensor>,
    reference: Reference<f32>,
}

impl Engine {
    pub fn new(
        gpu: &Gpu,
        form: RuleForm,
        control: Control,
        tensors: &[(Kind, usize)],
        alignment: u64,
        workgroups: Workgroups,
    ) -> Result<Self, Box<dyn Error>> {
        let options = Options::new().with_control(control).with_seed(SEED).with_workgroups(workgroups);
        let mut optimizer = Optimizer::with_kernels(&gpu.device, &gpu.queue, options, &gpu.kernels)?;
        let mut reference = Reference::new();
        let mut sizes = [0_u64; 2];
        let mut place = |pool: usize, dtype: DType, len: usize| {
            let offset = sizes[pool].next_multiple_of(alignment);
            sizes[pool] = offset + (dtype.bytes() * len as u64).next_multiple_of(16);
            offset
        };
        let places: Vec<_> = tensors
            .iter()
            .map(|&(kind, len)| [place(0, kind.values, len), place(1, kind.gradients, len)])
            .collect();
        let pool = |label, size: u64| gpu.buffer(label, size as usize / 4);
        let (values, gradients) = (pool("suite.values", sizes[0]), pool("suite.gradients", sizes[1]));

        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut engine_tensors = Vec::new();
        let mut groups: Vec<(Precision, _)> = Vec::new();
        // Decay multiplies the values by what is not a power of two.
        let hyperparameters =
            Hyperparameters::from(form.with_defaults()).with_weight_decay(WeightDecay::Decoupled(0.01));
        let of_reference = reference.add_group(hyperparameters);
        for (&(kind, len), [values_offset, gradients_offset]) in tensors.iter().zip(places) {
            let label = format!("tensor.{}", engine_tensors.len());
            let exact: Vec<f32> = (0..len).map(|_| rng.random_range(-2.0..2.0)).collect();
            let start = rounded(kind.values, &exact);
            gpu.queue.write_buffer(&values, values_offset, &bytes_of(kind.values, &start));
            let group = match groups.iter().find(|(precision, _)| *precision == kind.precision()) {
                Some(&(_, group)) => group,
                None => {
                    let group = Group::new(hyperparameters).with_precision(kind.precision());
                    groups.push((kind.precision(), optimizer.add_group(group)?));
                    groups[groups.len() - 1].1
                }
            };
            let view = View::new(&gradients, gradients_offset);
            let view = if kind.gradients == kind.values { view } else { view.with_dtype(kind.gradients) };
            let views = Views::new(View::new(&values, values_offset), view);
            let parameter = Parameter::new(&label, len as u64).with_dtype(kind.values).with_views(views);
            let id = optimizer.add_parameter(group, parameter)?;
            let storage = Storage::new()
                .with_dtype(kind.values)
                .with_state(kind.state)
                .with_master_weights(kind.master_weights)
                .with_label(&label)
                .with_seed(SEED);
            reference.add_stored_parameter(of_reference, start, storage);
            engine_tensors.push(Tensor { kind, len, values_offset, gradients_offset, id });
        }
        Ok(Self { gpu: gpu.clone(), form, optimizer, values, gradients, tensors: engine_tensors, reference })
    }

    /// Heavy-tailed gradients of a step: quotients of uniform numbers, which all devices round alike.
    fn gradients_of(&self, step: u32) -> Vec<Vec<f32>> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(100 + u64::from(step));
        let mut of = |tensor: &Tensor| {
            let mut number = || rng.random_range(-1.0_f32..1.0) / rng.random_range(0.01_f32..1.0);
            rounded(tensor.kind.gradients, &(0..tensor.len).map(|_| number()).collect::<Vec<_>>())
        };
        self.tensors.iter().map(&mut of).collect()
    }

    /// Writes the gradients of a step, and gives them to the reference `times` times.
    fn write_gradients(&mut self, step: u32, times: usize) {
        let gradients = self.gradients_of(step);
        for (tensor, gradient) in self.tensors.iter().zip(&gradients) {
            let bytes = bytes_of(tensor.kind.gradients, gradient);
            self.gpu.queue.write_buffer(&self.gradients, tensor.gradients_offset, &bytes);
        }
        let given: Vec<_> = gradients.iter().map(|gradient| Some(gradient.as_slice())).collect();
        for _ in 0..times {
            self.reference.step(&given);
        }
    }

    /// Takes a step.
    pub fn step(&mut self, step: u32) -> Result<(), Box<dyn Error>> {
        self.steps_at_once(step, 1)
    }

    /// Records several steps with the same gradients into one encoder and submits it.
    pub fn steps_at_once(&mut self, step: u32, times: usize) -> Result<(), Box<dyn Error>> {
        self.write_gradients(step, times);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for _ in 0..times {
            self.optimizer.encode(&mut encoder, &Step::all())?;
        }
        self.gpu.queue.submit([encoder.finish()]);
        Ok(())
    }

    /// Copies the values of another engine with the same tensors.
    pub fn take_values(&self, bytes: &[u8]) {
        self.gpu.queue.write_buffer(&self.values, 0, bytes);
    }

    /// A parameter.
    pub fn parameter(&self, index: usize) -> ParameterId {
        self.tensors[index].id
    }

    /// Reads everything, compares it with the reference if asked, and returns a digest of all bits: values, master weights, states.
    pub async fn check(&self, with_reference: bool) -> Result<String, Box<dyn Error>> {
        let values: Vec<_> =
            self.tensors.iter().map(|tensor| self.optimizer.read_parameter(tensor.id)).collect();
        let states: Vec<_> = self.tensors.iter().map(|tensor| self.optimizer.read_state(tensor.id)).collect();
        let pool: Vec<u8> = self.gpu.read(&self.values).await?;
        let mut digest = Fnv::default();
        for (index, (read, state)) in values.into_iter().zip(states).enumerate() {
            let tensor = &self.tensors[index];
            let (read, state) = (read.await?, state.await?);
            let start = tensor.values_offset as usize;
            let bytes = &pool[start..start + tensor.len * tensor.kind.values.bytes() as usize];
            digest.write(bytes);
            let states = state.tensors.iter().map(|(_, state)| state.as_slice());
            for numbers in states.clone().chain([read.as_slice()]) {
                digest.write(bytemuck::cast_slice(numbers));
            }
            if with_reference {
                let what = |name: &str| format!("{name} of {} elements, {}", tensor.len, tensor.kind.name());
                if bits_of(tensor.kind.values, bytes) != self.reference.narrowed(index) {
                    return Err(what("values").into());
                }
                same_bits(&what("master values"), &read, self.reference.values(index))?;
                let declared = self.form.states();
                for (number, state) in states.enumerate() {
                    // The reference has debiased ones as they are stored.
                    if !(tensor.kind.state.is_debiased() && declared[number].debiased_by.is_some()) {
                        same_bits(&what(declared[number].name), state, &self.reference.state(index)[number])?;
                    }
                }
            }
        }
        Ok(format!("{:016x}", digest.finish()))
    }
}

fn same_bits(what: &str, found: &[f32], expected: &[f32]) -> Result<(), String> {
    let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
    match found.iter().zip(expected).position(differs) {
        None if found.len() == expected.len() => Ok(()),
        None => Err(format!("{what}: {} elements, expected {}", found.len(), expected.len())),
        Some(i) => Err(format!("{what}: element {i} is {:e}, expected {:e}", found[i], expected[i])),
    }
}

/// Bytes of numbers in a data type, filled up to words.
fn bytes_of(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = match dtype {
        DType::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(numbers).to_vec(),
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The bits of each element.
fn bits_of(dtype: DType, bytes: &[u8]) -> Vec<u32> {
    match dtype.bytes() {
        4 => bytemuck::pod_collect_to_vec(bytes),
        _ => bytes.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]]).into()).collect(),
    }
}

/// FNV-1a in 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

//! Tests of update rules, for the tests of those who write one.
//!
//! [`check_rule`] is what the library's own rules pass, too.

use crate::custom::CustomRule;
use crate::error::Error;
use crate::hyperparameters::{Group, Hyperparameters, Objective, WeightDecay};
use crate::kernels::pipeline::Kernels;
use crate::optimizer::{Optimizer, Parameter, ParameterId, State, Step};
use crate::options::{Control, DeviceControl, NonFinite, Options, Workgroups};
use crate::plan::views::{View, Views};
use crate::reference::{Reference, Storage, rounded};
use crate::rules::{Rule, RuleKind};
use crate::storage::dtype::{DType, narrow};
use crate::storage::master::MasterWeights;
use crate::storage::state::{Precision, Sign, StateFormat};

/// A rule did not pass [`check_rule`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleCheckError {
    /// The rule has no step on the CPU to be compared with.
    #[error("the rule {rule} has no step on the CPU, expected one: RuleDefinition::with_cpu_step")]
    NoCpuStep {
        /// The rule.
        rule: RuleKind,
    },
    /// The kernel and the reference differ.
    #[error(transparent)]
    Difference(Box<RuleDifference>),
    /// Numbers that are within rounding are too few.
    #[error(
        "with {control}, {options} only {near} of {all} numbers are within rounding of what is expected, expected 99 of 100"
    )]
    Far {
        /// Who computes coefficients.
        control: &'static str,
        /// The options of the group.
        options: String,
        /// How many are.
        near: usize,
        /// How many there are.
        all: usize,
    },
    /// The optimizer failed.
    #[error(transparent)]
    Optimizer(#[from] Error),
}

/// The first number that is not what it should be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "step {step}, {what} of values in {values}, gradients in {gradients}, state in {}, master weights {}, with {control}, {options}: \
     element {element} is {found:e}, expected {expected}",
    state.name(), master_weights.name()
)]
#[non_exhaustive]
pub struct RuleDifference {
    /// `values`, or the name of a state.
    pub what: String,
    /// The step, from 1.
    pub step: u64,
    /// Data type of the parameter.
    pub values: DType,
    /// Data type of its gradient.
    pub gradients: DType,
    /// Format of its state.
    pub state: StateFormat,
    /// Its master weights.
    pub master_weights: MasterWeights,
    /// Who computes coefficients: `Control::Host` or `Control::Device`.
    pub control: &'static str,
    /// Weight decay, objective and caution.
    pub options: String,
    /// The element.
    pub element: usize,
    /// What the kernel gives.
    pub found: f32,
    /// What the reference gives, or what the contract asks for.
    pub expected: String,
}

/// Checks that a rule's kernels do what its step on the CPU does, and that it keeps the [contract](crate::custom#what-has-to-hold).
///
/// The kernels step tensors of all lengths around the ends of words, quant blocks and chunks, in every data type of values and gradients, every
/// master weights and every state format that the rule offers, with both controls, all kinds of weight decay, both directions and caution.
/// What they leave is compared with the [reference](crate::reference) in f32 after each step: within 1e-5 of a number and 1e-6 of the largest
/// one. In formats of fewer bits one number in 100 may be a neighbour, where rounding was close. Coefficients that the device computes are
/// compared with those of the host up to step 10,000,000. The device is used for some seconds.
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # let (device, queue) = doc::gpu();
/// adamod::testing::check_rule(&device, &queue, adamod::Lion::new())?;
/// # Ok::<(), adamod::testing::RuleCheckError>(())
/// ```
///
/// # Errors
/// The first difference. Also if the rule has no step on the CPU, or the device fails.
pub fn check_rule(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    rule: impl Into<Rule>,
) -> Result<(), RuleCheckError> {
    let rule = rule.into();
    if let Rule::Custom(custom) = rule
        && !CustomRule::has_cpu_step(&custom)
    {
        return Err(RuleCheckError::NoCpuStep { rule: rule.kind() });
    }
    let plain = Hyperparameters::from(rule);
    let fully = WeightDecay::FullyDecoupled { lambda: 0.01, max_learning_rate: 2.0 * plain.learning_rate };
    // Options are numbers of two kernels, with caution and without, so not every one needs both controls and both sizes of workgroups.
    let (cpu, gpu) = (Workgroups::Cpu, Workgroups::Gpu);
    let cases = [
        (plain, false, cpu),
        (plain, true, gpu),
        (
            plain.with_weight_decay(WeightDecay::Decoupled(0.1)).with_objective(Objective::Maximize),
            false,
            cpu,
        ),
        (plain.with_weight_decay(WeightDecay::Coupled(0.1)).with_cautious(true), true, gpu),
        (plain.with_weight_decay(fully).with_cautious_weight_decay(true), false, gpu),
    ];
    let kinds = Kind::all(rule);
    let kernels = &Kernels::new();
    for (hyperparameters, is_on_device, workgroups) in cases {
        Run { device, queue, kernels, hyperparameters, is_on_device, workgroups }.check_formats(&kinds)?;
    }
    let run = Run {
        device,
        queue,
        kernels,
        hyperparameters: plain,
        is_on_device: false,
        workgroups: Workgroups::Auto,
    };
    run.check_zeros()?;
    run.check_nan()?;
    run.check_later_steps()
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug)]
struct Kind {
    values: DType,
    gradients: DType,
    state: StateFormat,
    master_weights: MasterWeights,
}

impl Kind {
    const F32: Self = Self {
        values: DType::F32,
        gradients: DType::F32,
        state: StateFormat::F32,
        master_weights: MasterWeights::None,
    };

    /// Every kind that the rule offers.
    fn all(rule: Rule) -> Vec<Self> {
        let mut all = Vec::new();
        for values in DType::ALL {
            for gradients in DType::ALL {
                for master_weights in MasterWeights::ALL.into_iter().filter(|master| master.fit(values)) {
                    let offered =
                        StateFormat::ALL.into_iter().filter(|&state| rule.form().refusal(state).is_none());
                    all.extend(offered.map(|state| Self { values, gradients, state, master_weights }));
                }
            }
        }
        all
    }

    /// The distance of neighbours in values, as a part of them, where they are rounded stochastically or to few bits.
    fn step_of_values(&self) -> f64 {
        match (self.values, self.master_weights) {
            (DType::Bf16, MasterWeights::None) => 2_f64.powi(-6),
            (DType::Bf16, MasterWeights::Split24) => 2_f64.powi(-14),
            (DType::F16, MasterWeights::Split24) => 2_f64.powi(-17),
            _ => 0.0,
        }
    }
}

/// Numbers that look random, from an index: SplitMix64.
fn uniform(index: u64) -> f32 {
    let mut bits = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ bits >> 31) >> 40) as f32 / (1 << 24) as f32
}

/// A gradient: most are small, few are large, some are zero.
fn gradient(step: u64, tensor: usize, i: usize) -> f32 {
    let index = 3 * ((step << 32) + ((tensor as u64) << 20) + i as u64);
    if uniform(index) < 0.05 {
        return 0.0;
    }
    let size = (12.0 * uniform(index + 1) - 10.0).exp2();
    if uniform(index + 2) < 0.5 { size } else { -size }
}

/// An initial value. Values are not much larger than what a few steps move them by.
fn value(tensor: usize, i: usize) -> f32 {
    0.1 * uniform((1 << 60) + ((tensor as u64) << 20) + i as u64) - 0.05
}

/// A rule in one setting.
#[derive(Clone, Copy)]
struct Run<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    kernels: &'a Kernels,
    hyperparameters: Hyperparameters,
    is_on_device: bool,
    workgroups: Workgroups,
}

/// Tensors with an optimizer and the reference.
struct Engine<'a> {
    run: Run<'a>,
    optimizer: Optimizer,
    ids: Vec<ParameterId>,
    tensors: Vec<(Kind, Vec<f32>)>,
    gradients: wgpu::Buffer,
    offsets: Vec<u64>,
    twin: Reference<f32>,
    steps: u64,
    near: usize,
    all: usize,
}

impl<'a> Run<'a> {
    fn control(&self) -> &'static str {
        if self.is_on_device { "Control::Device" } else { "Control::Host" }
    }

    fn options(&self) -> String {
        let h = &self.hyperparameters;
        let mut text = format!("weight decay {} {}", h.weight_decay.name(), h.weight_decay.lambda());
        for (name, has) in [
            ("maximize", h.objective == Objective::Maximize),
            ("cautious", h.cautious),
            ("cautious_weight_decay", h.cautious_weight_decay),
        ] {
            if has {
                text.push_str(", ");
                text.push_str(name);
            }
        }
        text
    }

    fn engine(self, tensors: Vec<(Kind, Vec<f32>)>) -> Result<Engine<'a>, RuleCheckError> {
        const SEED: u64 = 5;
        let control = match self.is_on_device {
            true => Control::Device(DeviceControl::new().with_non_finite(NonFinite::Propagate)),
            false => Control::Host,
        };
        let options = Options::new()
            .with_label("check_rule")
            .with_seed(SEED)
            .with_control(control)
            .with_workgroups(self.workgroups);
        let mut optimizer = Optimizer::with_kernels(self.device, self.queue, options, self.kernels)?;
        let mut twin = Reference::new();
        // Whole words of 16 bytes, with a gap behind each tensor.
        let mut end = 0;
        let places = tensors.iter().map(|(_, values)| {
            let place = end;
            end += (4 * values.len() as u64).next_multiple_of(16) + 16;
            place
        });
        let offsets: Vec<u64> = places.collect();
        let buffer = |label| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: end,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (values, gradients) = (buffer("check_rule.values"), buffer("check_rule.gradients"));
        let mut ids = Vec::new();
        let mut groups: Vec<(Precision, crate::optimizer::GroupId, usize)> = Vec::new();
        for (index, ((kind, initial), &offset)) in tensors.iter().zip(&offsets).enumerate() {
            let precision =
                Precision::new(kind.state).with_master_weights(kind.master_weights).with_f32_state_below(0);
            let known = groups.iter().find(|(of, ..)| *of == precision).copied();
            let (_, group, of_twin) = match known {
                Some(known) => known,
                None => {
                    let group = Group::new(self.hyperparameters).with_precision(precision);
                    let added =
                        (precision, optimizer.add_group(group)?, twin.add_group(self.hyperparameters));
                    groups.push(added);
                    added
                }
            };
            self.queue.write_buffer(&values, offset, &bytes_of(kind.values, initial));
            let views = Views::new(
                View::new(&values, offset),
                View::new(&gradients, offset).with_dtype(kind.gradients),
            );
            let label = format!("tensor.{index}");
            let parameter =
                Parameter::new(&label, initial.len() as u64).with_dtype(kind.values).with_views(views);
            ids.push(optimizer.add_parameter(group, parameter)?);
            let storage = Storage::new()
                .with_dtype(kind.values)
                .with_state(kind.state)
                .with_master_weights(kind.master_weights)
                .with_label(&label)
                .with_seed(SEED);
            twin.add_stored_parameter(of_twin, initial.clone(), storage);
        }
        Ok(Engine { run: self, optimizer, ids, tensors, gradients, offsets, twin, steps: 0, near: 0, all: 0 })
    }

    /// All formats in one step, a few times.
    fn check_formats(self, kinds: &[Kind]) -> Result<(), RuleCheckError> {
        const LENGTHS: [usize; 10] = [1, 2, 3, 5, 31, 33, 255, 1024, 1025, 2051];
        let tensors = kinds.iter().enumerate().map(|(index, &kind)| {
            // Formats take turns with lengths.
            let len = LENGTHS[(index + index / LENGTHS.len()) % LENGTHS.len()];
            let exact: Vec<f32> = (0..len).map(|i| value(index, i)).collect();
            (kind, rounded(kind.values, &exact))
        });
        let mut engine = self.engine(tensors.collect())?;
        for _ in 0..4 {
            let step = engine.steps + 1;
            engine.step(|tensor, i| gradient(step, tensor, i))?;
            engine.check()?;
        }
        let Engine { near, all, .. } = engine;
        if 100 * near < 99 * all {
            let (control, options) = (self.control(), self.options());
            return Err(RuleCheckError::Far { control, options, near, all });
        }
        Ok(())
    }

    /// Without gradients, state and decay nothing moves.
    fn check_zeros(self) -> Result<(), RuleCheckError> {
        let mut engine = self.engine(vec![(Kind::F32, vec![0.5; 5]), (Kind::F32, vec![0.0; 5])])?;
        for _ in 0..2 {
            engine.step(|_, _| 0.0)?;
            for (index, id) in engine.ids.iter().enumerate() {
                let initial = engine.tensors[index].1[0];
                let values = engine.optimizer.read_parameter(*id).wait()?;
                if let Some(element) = values.iter().position(|found| *found != initial) {
                    let expected = format!("{initial:e}, as its gradients and states are zero");
                    return Err(engine.difference("values", index, element, values[element], expected));
                }
                let state = engine.optimizer.read_state(*id).wait()?;
                for (declared, (name, numbers)) in
                    self.hyperparameters.rule.states().iter().zip(&state.tensors)
                {
                    let moved = numbers.iter().position(|found| *found != 0.0);
                    if let Some(element) = moved.filter(|_| declared.sign != Sign::Positive) {
                        let expected = "0, as its gradients and states are zero".to_owned();
                        return Err(engine.difference(name, index, element, numbers[element], expected));
                    }
                }
            }
        }
        Ok(())
    }

    /// A NaN shows in its own parameter.
    fn check_nan(self) -> Result<(), RuleCheckError> {
        const POISONED: usize = 517;
        let exact: Vec<f32> = (0..1030).map(|i| value(0, i)).collect();
        let mut engine = self.engine(vec![(Kind::F32, exact)])?;
        for step in 1..=4 {
            let is_poisoned = |i| step == 3 && i == POISONED;
            engine.step(|tensor, i| if is_poisoned(i) { f32::NAN } else { gradient(step, tensor, i) })?;
            if step < 3 {
                continue;
            }
            let values = engine.optimizer.read_parameter(engine.ids[0]).wait()?;
            let lost = step == 4 && values[POISONED].is_finite();
            let spread = (0..values.len()).find(|&i| i != POISONED && !values[i].is_finite());
            let wrong =
                if lost { Some((POISONED, "NaN or infinity, as its gradient was NaN")) } else { None };
            let wrong =
                wrong.or(spread.map(|i| (i, "a finite number, as only another element's gradient was NaN")));
            if let Some((element, expected)) = wrong {
                return Err(engine.difference("values", 0, element, values[element], expected.to_owned()));
            }
        }
        Ok(())
    }

    /// Coefficients of the device and of the host at later steps.
    fn check_later_steps(self) -> Result<(), RuleCheckError> {
        let exact: Vec<f32> = (0..300).map(|i| value(0, i)).collect();
        let engine = |is_on_device| Self { is_on_device, ..self }.engine(vec![(Kind::F32, exact.clone())]);
        let (mut host, mut device) = (engine(false)?, engine(true)?);
        for t in [1, 2, 3, 10, 100, 1000, 65_536, 1_000_000, 10_000_000] {
            // Both from the same values and states.
            let values = host.optimizer.read_parameter(host.ids[0]).wait()?;
            let State { tensors, .. } = host.optimizer.read_state(host.ids[0]).wait()?;
            for engine in [&mut host, &mut device] {
                engine.optimizer.write_parameter(engine.ids[0], &values)?;
                engine.optimizer.write_state(engine.ids[0], &State::new(t - 1, tensors.clone()))?;
                engine.steps = t - 1;
                engine.step(|tensor, i| gradient(t, tensor, i))?;
            }
            let read = |engine: &Engine<'_>| -> Result<_, Error> {
                let values = engine.optimizer.read_parameter(engine.ids[0]).wait()?;
                let mut all = vec![("values", values)];
                all.extend(engine.optimizer.read_state(engine.ids[0]).wait()?.tensors);
                Ok(all)
            };
            for ((what, expected), (_, found)) in read(&host)?.into_iter().zip(read(&device)?) {
                device.compare(0, what, &found, &expected, |_, _| 0.0)?;
            }
        }
        Ok(())
    }
}

impl Engine<'_> {
    /// Takes a step with these gradients, here and in the reference.
    fn step(&mut self, gradient: impl Fn(usize, usize) -> f32) -> Result<(), RuleCheckError> {
        let gradients: Vec<_> = self
            .tensors
            .iter()
            .enumerate()
            .map(|(tensor, (kind, values))| {
                let exact: Vec<f32> = (0..values.len()).map(|i| gradient(tensor, i)).collect();
                rounded(kind.gradients, &exact)
            })
            .collect();
        for ((gradients, (kind, _)), &offset) in gradients.iter().zip(&self.tensors).zip(&self.offsets) {
            self.run.queue.write_buffer(&self.gradients, offset, &bytes_of(kind.gradients, gradients));
        }
        self.optimizer.submit(&Step::all())?;
        let given: Vec<_> = gradients.iter().map(|of| Some(of.as_slice())).collect();
        self.twin.step(&given);
        self.steps += 1;
        Ok(())
    }

    /// Compares values and states with the reference.
    fn check(&mut self) -> Result<(), RuleCheckError> {
        let Hyperparameters { rule, learning_rate, .. } = self.run.hyperparameters;
        let movement = self.steps as f64 * learning_rate;
        for index in 0..self.tensors.len() {
            let (kind, initial) = self.tensors[index].clone();
            // Rounded otherwise at one step, a state of few bits moves its value otherwise at the next.
            let moved_otherwise = if kind.state == StateFormat::F32 { 0.0 } else { 1.0 };
            let found = self.optimizer.read_parameter(self.ids[index]).wait()?;
            let expected = self.twin.values(index).to_vec();
            self.compare(index, "values", &found, &expected, |i, expected| {
                let moved = (expected - f64::from(initial[i])).abs();
                moved_otherwise * (movement + 0.3 * moved) + kind.step_of_values() * expected.abs()
            })?;
            let state = self.optimizer.read_state(self.ids[index]).wait()?;
            let scales = match kind.state.is_debiased() {
                true => rule.debiased_scales(self.steps),
                false => [1.0; _],
            };
            for (number, (name, found)) in state.tensors.iter().enumerate() {
                let scale = scales[number];
                let expected: Vec<f32> =
                    self.twin.state(index)[number].iter().map(|x| (f64::from(*x) * scale) as f32).collect();
                let largest = largest(&expected);
                self.compare(index, name, found, &expected, |_, expected| match kind.state {
                    StateFormat::F32 => 0.0,
                    StateFormat::Bf16 => 2_f64.powi(-6) * expected.abs(),
                    StateFormat::Q8 => 0.3 * expected.abs() + 2_f64.powi(-10) * largest,
                })?;
                let (has_sign, sign): (fn(f32) -> bool, _) = match rule.states()[number].sign {
                    Sign::Signed => continue,
                    Sign::NonNegative => {
                        (|x| x >= 0.0, "at least 0, as the state is declared Sign::NonNegative")
                    }
                    Sign::Positive => (|x| x > 0.0, "above 0, as the state is declared Sign::Positive"),
                };
                if let Some(element) = found.iter().position(|&x| !has_sign(x)) {
                    return Err(self.difference(name, index, element, found[element], sign.to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Compares numbers; `farthest` is how far one may be away that is not near, by its index and what is expected.
    fn compare(
        &mut self,
        tensor: usize,
        what: &str,
        found: &[f32],
        expected: &[f32],
        farthest: impl Fn(usize, f64) -> f64,
    ) -> Result<(), RuleCheckError> {
        let largest = largest(expected);
        // Subnormal numbers that a device flushes to zero on the way.
        let flushed = 4.0 * self.steps.min(4) as f64 * f64::from(f32::MIN_POSITIVE);
        for (i, (&found, &exact)) in found.iter().zip(expected).enumerate() {
            let expected = f64::from(exact);
            let error = (f64::from(found) - expected).abs();
            let is_near = error <= 1e-6 * largest + 1e-5 * expected.abs() + flushed;
            self.near += usize::from(is_near);
            self.all += 1;
            if !(is_near || error <= farthest(i, expected)) {
                return Err(self.difference(what, tensor, i, found, format!("{exact:e}")));
            }
        }
        Ok(())
    }

    fn difference(
        &self,
        what: &str,
        tensor: usize,
        element: usize,
        found: f32,
        expected: String,
    ) -> RuleCheckError {
        let Kind { values, gradients, state, master_weights } = self.tensors[tensor].0;
        RuleCheckError::Difference(Box::new(RuleDifference {
            what: what.to_owned(),
            step: self.steps,
            values,
            gradients,
            state,
            master_weights,
            control: self.run.control(),
            options: self.run.options(),
            element,
            found,
            expected,
        }))
    }
}

fn largest(numbers: &[f32]) -> f64 {
    numbers.iter().fold(0.0, |largest, x| f64::max(largest, f64::from(x.abs())))
}

/// Numbers in a data type, in whole words.
fn bytes_of(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    let bits = numbers.iter().map(|x| narrow(dtype, x.to_bits()));
    let mut bytes: Vec<u8> = match dtype.bytes() {
        4 => bits.flat_map(u32::to_le_bytes).collect(),
        _ => bits.flat_map(|bits| (bits as u16).to_le_bytes()).collect(),
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

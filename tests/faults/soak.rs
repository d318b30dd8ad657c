//! Long runs in which everything changes all the time: memory stays flat, and every bit is the reference's.

use adamod::reference::Reference;
use adamod::{
    Control, DeviceControl, Formula, GroupId, Hyperparameters, Optimizer, Options, Parameter, ParameterId,
    Precision, Rule, Update, View, Views, WeightDecay,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{Gpu, Tolerance};
use crate::injection::alone;

/// Steps of a run; set `ADAMOD_SOAK_STEPS=20000` for a long one.
fn steps() -> u64 {
    std::env::var("ADAMOD_SOAK_STEPS").map_or(400, |steps| steps.parse().expect("a number of steps"))
}

const PLACES: u64 = 24;
const PLACE_BYTES: u64 = 32 * 1024;
const MOST_ELEMENTS: usize = 6000;

struct Tensor {
    id: ParameterId,
    group: usize,
    /// Where its values lie.
    place: u64,
    len: usize,
    twin: Reference<f32>,
}

struct Group {
    id: GroupId,
    hyperparameters: Hyperparameters,
}

/// An engine that registers, removes, moves and changes at random.
struct Engine<'g> {
    gpu: &'g Gpu,
    rng: StdRng,
    optimizer: Optimizer,
    groups: Vec<Group>,
    tensors: Vec<Tensor>,
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
    registered: u64,
    is_host: bool,
}

impl<'g> Engine<'g> {
    fn new(gpu: &'g Gpu, control: Control) -> Self {
        let options = Options { control, ..Options::default() };
        let mut engine = Self {
            gpu,
            rng: StdRng::seed_from_u64(5),
            optimizer: Optimizer::new(&gpu.device, &gpu.queue, options).unwrap(),
            groups: Vec::new(),
            tensors: Vec::new(),
            values: gpu.buffer(PLACES * PLACE_BYTES),
            gradients: gpu.buffer(PLACES * PLACE_BYTES),
            registered: 0,
            is_host: control == Control::Host,
        };
        engine.add_group();
        engine.add_tensor();
        engine
    }

    fn hyperparameters(&mut self) -> Hyperparameters {
        Hyperparameters {
            learning_rate: self.rng.random_range(1e-4..1e-2),
            betas: [0.9, 0.99, self.rng.random_range(0.9..0.9999)],
            weight_decay: WeightDecay::Decoupled(self.rng.random_range(0.0..0.1)),
            ..Hyperparameters::default()
        }
    }

    fn add_group(&mut self) {
        let hyperparameters = self.hyperparameters();
        let id = self.optimizer.add_group_with(hyperparameters, Precision::default()).unwrap();
        self.groups.push(Group { id, hyperparameters });
    }

    fn add_tensor(&mut self) {
        let free: Vec<u64> =
            (0..PLACES).filter(|place| self.tensors.iter().all(|tensor| tensor.place != *place)).collect();
        if free.is_empty() {
            return;
        }
        let place = free[self.rng.random_range(0..free.len())];
        let group = self.rng.random_range(0..self.groups.len());
        let len = self.rng.random_range(1..MOST_ELEMENTS);
        let values: Vec<f32> = (0..len).map(|_| self.rng.random_range(-1.0..1.0)).collect();
        self.gpu.queue.write_buffer(&self.values, place * PLACE_BYTES, bytemuck::cast_slice(&values));
        let mut twin = Reference::new(Rule::AdaMod, Formula::Paper);
        let twin_group = twin.add_group(self.groups[group].hyperparameters);
        twin.add_parameter(twin_group, values);
        self.registered += 1;
        let label = format!("tensor.{}", self.registered);
        let id =
            self.optimizer.add_parameter(self.groups[group].id, Parameter::new(&label, len as u64)).unwrap();
        self.tensors.push(Tensor { id, group, place, len, twin });
    }

    fn remove_tensor(&mut self) {
        if self.tensors.len() > 1 {
            let index = self.rng.random_range(0..self.tensors.len());
            let tensor = self.tensors.swap_remove(index);
            self.check(&tensor);
            self.optimizer.remove_parameter(tensor.id).unwrap();
            assert_eq!(self.optimizer.step_count(tensor.id), None);
        }
    }

    fn remove_group(&mut self) {
        let index = self.rng.random_range(0..self.groups.len());
        let is_used = self.tensors.iter().any(|tensor| tensor.group == index);
        if self.groups.len() > 1 && !is_used {
            self.optimizer.remove_group(self.groups[index].id).unwrap();
            self.groups.swap_remove(index);
            let moved = self.groups.len();
            for tensor in self.tensors.iter_mut().filter(|tensor| tensor.group == moved) {
                tensor.group = index;
            }
        } else {
            assert!(!is_used || self.optimizer.remove_group(self.groups[index].id).is_err());
        }
    }

    fn change_group(&mut self) {
        let index = self.rng.random_range(0..self.groups.len());
        let hyperparameters = self.hyperparameters();
        self.optimizer.set_hyperparameters(self.groups[index].id, hyperparameters).unwrap();
        self.groups[index].hyperparameters = hyperparameters;
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.group == index) {
            tensor.twin.set_hyperparameters(0, hyperparameters);
        }
    }

    /// Gradients lie somewhere else at every step, and some are missing.
    fn step(&mut self) {
        let mut places: Vec<u64> = (0..PLACES).collect();
        for index in 1..places.len() {
            places.swap(index, self.rng.random_range(0..=index));
        }
        let mut updates = Vec::new();
        for (tensor, place) in self.tensors.iter_mut().zip(places) {
            if self.rng.random_range(0..8) == 0 {
                continue;
            }
            let gradient: Vec<f32> = (0..tensor.len).map(|_| self.rng.random_range(-1.0..1.0)).collect();
            self.gpu.queue.write_buffer(
                &self.gradients,
                place * PLACE_BYTES,
                bytemuck::cast_slice(&gradient),
            );
            tensor.twin.step(&[Some(&gradient)]);
            let view = |buffer, place| View::new(buffer, place * PLACE_BYTES);
            let views = Views::new(view(&self.values, tensor.place), view(&self.gradients, place));
            updates.push(Update { parameter: tensor.id, views });
        }
        let mut encoder = self.gpu.encoder();
        self.optimizer.encode_views(&mut encoder, &updates).unwrap();
        self.gpu.submit(encoder);
    }

    /// Values and state are the twin's.
    fn check(&self, tensor: &Tensor) {
        let state = self.optimizer.read_state_blocking(tensor.id).unwrap();
        assert_eq!(state.step, tensor.twin.step_count(0));
        let words = self.gpu.read(&self.values);
        let start = (tensor.place * PLACE_BYTES / 4) as usize;
        let values: &[f32] = bytemuck::cast_slice(&words[start..start + tensor.len]);
        let pairs = state.tensors.iter().map(|(name, elements)| (*name, elements.as_slice()));
        let found = std::iter::once(("values", values)).chain(pairs);
        let expected =
            std::iter::once(tensor.twin.values(0)).chain(tensor.twin.state(0).iter().map(Vec::as_slice));
        for ((name, found), expected) in found.zip(expected) {
            if self.gpu.is_exact() && self.is_host {
                assert!(found == expected, "{name} of {tensor:?}", tensor = tensor.id);
            } else {
                let expected: Vec<f64> = expected.iter().map(|&x| x.into()).collect();
                Tolerance { absolute: 1e-5, relative: 1e-4 }.check(found, &expected).unwrap();
            }
        }
    }
}

/// Resident bytes of this process.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

fn run(control: Control, steps: u64) {
    let gpu = Gpu::with_limits(|limits| limits);
    let mut engine = Engine::new(&gpu, control);
    // A tensor for every place, as long as they come, takes no more than this; the rest is what freed blocks leave between them.
    let most_state = 3 * PLACES * 12 * MOST_ELEMENTS as u64;
    let mut after_warm_up = None;
    let mut pending = Vec::new();
    for step in 0..steps {
        match engine.rng.random_range(0..12) {
            0 | 1 => engine.add_tensor(),
            2 => engine.remove_tensor(),
            3 => engine.add_group(),
            4 | 5 => engine.remove_group(),
            6 => engine.change_group(),
            _ => {}
        }
        if engine.tensors.len() as u64 == PLACES {
            (0..10).for_each(|_| engine.remove_tensor());
        }
        engine.step();
        assert!(engine.optimizer.state_bytes() <= most_state, "{} bytes", engine.optimizer.state_bytes());
        if step % 50 == 49 {
            pending.push(engine.optimizer.checkpoint());
            engine.tensors.iter().for_each(|tensor| engine.check(tensor));
        }
        if pending.len() == 3 {
            // They arrived while others were read.
            for checkpoint in pending.drain(..) {
                let bytes = pollster::block_on(checkpoint).unwrap().to_bytes().unwrap();
                adamod::Checkpoint::from_bytes(&bytes).unwrap();
            }
        }
        if step == steps / 4 {
            let report = gpu.device.generate_allocator_report();
            after_warm_up = resident_bytes().zip(report.map(|report| report.total_allocated_bytes));
        }
    }
    engine.tensors.iter().for_each(|tensor| engine.check(tensor));
    let report = gpu.device.generate_allocator_report().map(|report| report.total_allocated_bytes);
    if let (Some((resident, allocated)), Some(now), Some(allocated_now)) =
        (after_warm_up, resident_bytes(), report)
    {
        println!(
            "{steps} steps, {} tensors in all: process {resident} to {now} bytes, device {allocated} to {allocated_now}",
            engine.registered
        );
        assert!(now < resident + (24 << 20), "the process grew from {resident} to {now} bytes");
        assert!(allocated_now < allocated + (8 << 20), "the device's memory grew");
    }
}

#[test]
fn registrations_removals_and_changes_leave_memory_flat_and_every_bit_right() {
    alone("soak::registrations_removals_and_changes_leave_memory_flat_and_every_bit_right", || {
        run(Control::Host, steps());
    });
}

#[test]
fn the_same_with_steps_that_the_device_prepares() {
    alone("soak::the_same_with_steps_that_the_device_prepares", || {
        run(Control::Device(DeviceControl::default()), steps() / 2);
    });
}

//! Long runs in which parameters, groups and views keep changing. Memory stays flat, and every bit is that of the reference.

use adamod::reference::Reference;
use adamod::{
    Control, DType, DeviceControl, ErrorKind, Group, Hyperparameters, Options, Parameter, Rule, RuleKind,
    StateFormat, Step, Update, View, Views, WeightDecay,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{Engine, Gpu, Kind, Location, Tensor, Tolerance, bytes_of, precision};
use crate::errors::Refused as _;
use crate::injection::alone;

/// Steps of a run; `ADAMOD_SOAK_STEPS=20000` makes it a long one.
fn steps() -> u64 {
    std::env::var("ADAMOD_SOAK_STEPS").map_or(400, |steps| steps.parse().expect("a number of steps"))
}

/// The rules of a run, few enough that all their pipelines are compiled before memory is measured.
const RULES: [RuleKind; 3] = [RuleKind::AdaMod, RuleKind::Adam, RuleKind::Sgd];
const PLACES: u64 = 24;
const PLACE_BYTES: u64 = 32 * 1024;
const MOST_ELEMENTS: usize = 6000;

/// What the test knows about a tensor besides what the engine knows.
struct Known {
    /// The place of its values, and of its gradient if views are registered.
    place: u64,
    /// Whether its views are registered. Otherwise they come with each step.
    has_views: bool,
    /// A reference with this tensor only.
    twin: Reference<f32>,
}

/// An engine whose parameters and groups come, go, move and change at random.
struct Soak<'g> {
    engine: Engine<'g>,
    rng: StdRng,
    /// In the order of the engine's tensors.
    known: Vec<Known>,
    registered: u64,
    /// Whether every bit has to be that of the twin.
    is_exact: bool,
}

impl<'g> Soak<'g> {
    fn new(gpu: &'g Gpu, control: Control) -> Self {
        let options = Options::new().with_seed(11).with_control(control);
        let mut soak = Self {
            engine: Engine::empty(gpu, options, &[PLACES * PLACE_BYTES; 2]),
            rng: StdRng::seed_from_u64(5),
            known: Vec::new(),
            registered: 0,
            is_exact: gpu.is_exact() && control == Control::Host,
        };
        soak.compile_all();
        soak.add_group();
        soak.add_tensor();
        soak
    }

    /// Compiles every pipeline that a run may use, for each rule with each set of state formats. An optimizer keeps its pipelines, so
    /// the process would grow whenever the run needed a new one.
    fn compile_all(&mut self) {
        let formats = self.formats();
        // With and without a tensor that ends within a lane's elements, and 8-bit state in words of 8 and of 4 bytes.
        let lengths = [1024, 101, 96, 100];
        for (kind, len) in RULES.into_iter().flat_map(|kind| lengths.map(|len| (kind, len))) {
            for set in 1..1 << formats.len() {
                let Engine { optimizer, buffers, .. } = &mut self.engine;
                let (mut groups, mut updates) = (Vec::new(), Vec::new());
                for (&state, place) in formats.iter().zip(0..).filter(|(_, place)| set >> place & 1 == 1) {
                    let group = Group::new(kind.with_defaults()).with_precision(precision(state));
                    let group = optimizer.add_group(group).unwrap();
                    let id = optimizer.add_parameter(group, Parameter::new(state.name(), len)).unwrap();
                    let view = |buffer| View::new(buffer, place * PLACE_BYTES);
                    groups.push(group);
                    updates.push(Update::new(id, Views::new(view(&buffers[0]), view(&buffers[1]))));
                }
                optimizer.warm_up(&Step::at(&updates)).unwrap();
                updates.iter().for_each(|update| optimizer.remove_parameter(update.parameter).unwrap());
                groups.into_iter().for_each(|group| optimizer.remove_group(group).unwrap());
            }
        }
        assert_eq!(self.engine.optimizer.state_bytes(), 0);
    }

    /// The state formats of a run. Stochastic rounding turns small differences into steps of a low-bit format, so a comparison with a
    /// tolerance needs f32.
    fn formats(&self) -> Vec<StateFormat> {
        if self.is_exact { StateFormat::ALL.to_vec() } else { vec![StateFormat::F32] }
    }

    fn any<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    fn any_hyperparameters(&mut self, kind: RuleKind) -> Hyperparameters {
        let rule: Rule = match kind.with_defaults() {
            Rule::AdaMod(rule) => rule.with_betas([0.9, 0.99, self.rng.random_range(0.9..0.9999)]).into(),
            Rule::Adam(rule) => rule.with_betas([0.9, self.rng.random_range(0.9..0.99)]).into(),
            Rule::Sgd(rule) => rule.with_momentum(self.rng.random_range(0.5..0.9)).into(),
            rule => rule,
        };
        Hyperparameters::from(rule)
            .with_learning_rate(self.rng.random_range(1e-4..1e-2))
            .with_weight_decay(WeightDecay::Decoupled(self.rng.random_range(0.0..0.1)))
    }

    fn group(&self, index: usize) -> Group {
        *self.engine.optimizer.group(self.engine.groups[index]).unwrap()
    }

    fn add_group(&mut self) {
        let kind = self.any(&RULES);
        let hyperparameters = self.any_hyperparameters(kind);
        let state = self.any(&self.formats());
        self.engine.add_group(Group::new(hyperparameters).with_precision(precision(state)));
    }

    fn add_tensor(&mut self) {
        let free: Vec<u64> =
            (0..PLACES).filter(|place| self.known.iter().all(|known| known.place != *place)).collect();
        if free.is_empty() {
            return;
        }
        let place = self.any(&free);
        let group = self.rng.random_range(0..self.engine.groups.len());
        let Group { hyperparameters, precision, .. } = self.group(group);
        let len = self.rng.random_range(1..MOST_ELEMENTS);
        let values: Vec<f32> = (0..len).map(|_| self.rng.random_range(-1.0..1.0)).collect();
        self.registered += 1;
        let label = format!("tensor.{}", self.registered);
        let tensor = Tensor { label, group, values, kind: Kind { state: precision.state, ..Kind::f32() } };
        let mut twin = Reference::new();
        twin.add_group(hyperparameters);
        let seed = self.engine.optimizer.options().seed;
        twin.add_stored_parameter(0, tensor.values.clone(), tensor.storage(seed));
        let location = Location::new((0, place * PLACE_BYTES), (1, place * PLACE_BYTES));
        let has_views = self.rng.random_range(0..4) > 0;
        if has_views {
            self.engine.add_tensor(tensor, location);
        } else {
            self.add_tensor_without_views(tensor, location);
        }
        self.known.push(Known { place, has_views, twin });
    }

    fn add_tensor_without_views(&mut self, tensor: Tensor, location: Location) {
        let Engine { gpu, optimizer, groups, ids, tensors, locations, buffers } = &mut self.engine;
        let (buffer, offset) = location.values;
        gpu.queue.write_buffer(&buffers[buffer], offset, &bytes_of(DType::F32, &tensor.values));
        ids.push(optimizer.add_parameter(groups[tensor.group], tensor.parameter()).unwrap());
        tensors.push(tensor);
        locations.push(location);
    }

    fn remove_tensor(&mut self) {
        if self.known.len() > 1 {
            let index = self.rng.random_range(0..self.known.len());
            self.check(index);
            let id = self.engine.ids[index];
            self.engine.remove_tensor(index);
            self.known.swap_remove(index);
            assert_eq!(self.engine.optimizer.step_count(id), None);
        }
    }

    fn remove_group(&mut self) {
        let index = self.rng.random_range(0..self.engine.groups.len());
        let Engine { optimizer, groups, tensors, .. } = &mut self.engine;
        if tensors.iter().any(|tensor| tensor.group == index) {
            let error = optimizer.remove_group(groups[index]).refused();
            assert!(matches!(error.kind(), ErrorKind::GroupInUse { .. }), "{error}");
        } else if groups.len() > 1 {
            optimizer.remove_group(groups[index]).unwrap();
            groups.swap_remove(index);
            let moved = groups.len();
            for tensor in tensors.iter_mut().filter(|tensor| tensor.group == moved) {
                tensor.group = index;
            }
        }
    }

    fn change_group(&mut self) {
        let index = self.rng.random_range(0..self.engine.groups.len());
        let hyperparameters = self.any_hyperparameters(self.group(index).hyperparameters.rule.kind());
        self.engine.optimizer.set_hyperparameters(self.engine.groups[index], hyperparameters).unwrap();
        for (tensor, known) in self.engine.tensors.iter().zip(&mut self.known) {
            if tensor.group == index {
                known.twin.set_hyperparameters(0, hyperparameters);
            }
        }
    }

    /// Moves a tensor to any group. A group of another rule refuses it.
    fn change_tensor(&mut self) {
        let index = self.rng.random_range(0..self.known.len());
        let to = self.rng.random_range(0..self.engine.groups.len());
        let (old, new) = (self.group(self.engine.tensors[index].group), self.group(to));
        let Engine { optimizer, groups, ids, tensors, .. } = &mut self.engine;
        let result = optimizer.set_group(ids[index], groups[to]);
        if old.hyperparameters.rule.kind() == new.hyperparameters.rule.kind() {
            result.unwrap();
            tensors[index].group = to;
            self.known[index].twin.set_hyperparameters(0, new.hyperparameters);
        } else {
            let error = result.refused();
            assert!(matches!(error.kind(), ErrorKind::Rule { .. }), "{error}");
        }
    }

    /// Takes a step. Most steps have gradients at places of their own, and in every step some gradients are missing.
    fn step(&mut self) {
        let moves = self.rng.random_range(0..4) > 0;
        let mut places: Vec<u64> = (0..PLACES).collect();
        for index in 1..places.len() {
            places.swap(index, self.rng.random_range(0..=index));
        }
        let buffers = self.engine.buffers.clone();
        let mut updates = Vec::new();
        for (index, known) in self.known.iter_mut().enumerate() {
            if self.rng.random_range(0..8) == 0 || !(moves || known.has_views) {
                continue;
            }
            let place = if moves { places[index] } else { known.place };
            let gradient: Vec<f32> =
                (0..self.engine.tensors[index].len()).map(|_| self.rng.random_range(-1.0..1.0)).collect();
            let bytes = bytes_of(DType::F32, &gradient);
            self.engine.gpu.queue.write_buffer(&buffers[1], place * PLACE_BYTES, &bytes);
            known.twin.step(&[Some(&gradient)]);
            let values = View::new(&buffers[0], known.place * PLACE_BYTES);
            let views = Views::new(values, View::new(&buffers[1], place * PLACE_BYTES));
            updates.push(Update::new(self.engine.ids[index], views));
        }
        if moves {
            self.engine.record(&Step::at(&updates));
        } else {
            let present: Vec<_> = updates.iter().map(|update| update.parameter).collect();
            self.engine.record(&Step::of(&present));
        }
    }

    /// Checks that values and state are those of the twin.
    fn check(&self, index: usize) {
        let (tensor, twin) = (&self.engine.tensors[index], &self.known[index].twin);
        let rule = self.group(tensor.group).hyperparameters.rule;
        let state = self.engine.state(index);
        assert_eq!(state.step, twin.step_count(0));
        let (values, declared) = (self.engine.values(index), rule.states());
        assert_eq!(state.tensors.len(), declared.len());
        let mut pairs = vec![("values", values, twin.values(0).to_vec())];
        for (number, (name, found)) in state.tensors.into_iter().enumerate() {
            let mut expected = twin.state(0)[number].clone();
            if let (Rule::AdaMod(rule), Some(rate)) = (rule, declared[number].debiased_by)
                && tensor.kind.state.is_debiased()
            {
                let scale = -(rule.betas[rate].ln() * state.step as f64).exp_m1();
                expected.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            }
            pairs.push((name, found, expected));
        }
        for (name, found, expected) in pairs {
            if self.is_exact {
                assert!(found == expected, "{name} of {} with {rule:?} in {:?}", tensor.label, tensor.kind);
            } else {
                let expected: Vec<f64> = expected.iter().map(|&x| x.into()).collect();
                Tolerance { absolute: 1e-5, relative: 1e-4 }.check(&found, &expected).unwrap();
            }
        }
    }

    fn check_all(&self) {
        (0..self.known.len()).for_each(|index| self.check(index));
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
    let mut soak = Soak::new(&gpu, control);
    // Three times the state of the longest tensors in all places. Free runs between blocks take space, too.
    let most_state = 3 * PLACES * 12 * MOST_ELEMENTS as u64;
    let mut after_warm_up = None;
    let mut pending = Vec::new();
    for step in 0..steps {
        match soak.rng.random_range(0..14) {
            0 | 1 => soak.add_tensor(),
            2 => soak.remove_tensor(),
            3 => soak.add_group(),
            4 | 5 => soak.remove_group(),
            6 => soak.change_group(),
            7 => soak.change_tensor(),
            _ => {}
        }
        if soak.known.len() as u64 == PLACES {
            (0..10).for_each(|_| soak.remove_tensor());
        }
        soak.step();
        let bytes = soak.engine.optimizer.state_bytes();
        assert!(bytes <= most_state, "{bytes} bytes");
        if step % 50 == 49 {
            pending.push(soak.engine.optimizer.checkpoint());
            soak.check_all();
        }
        if pending.len() == 3 {
            // These arrived during the checks above.
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
    soak.check_all();
    let report = gpu.device.generate_allocator_report().map(|report| report.total_allocated_bytes);
    if let (Some((resident, allocated)), Some(now), Some(allocated_now)) =
        (after_warm_up, resident_bytes(), report)
    {
        println!(
            "{steps} steps, {} tensors in all: process {resident} to {now} bytes, device {allocated} to {allocated_now}",
            soak.registered
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
        run(Control::Device(DeviceControl::new()), steps() / 2);
    });
}

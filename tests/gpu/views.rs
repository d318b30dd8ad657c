//! Engines with memory pools: values and gradients lie elsewhere at every step.

use adamod::{AdaMod, Error, ErrorKind, Optimizer, Role, Step, Update, View, ViewError, Views};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{Engine, Gpu, Layout, Model, all, gpu};

/// A pool that hands tensors other places at every step: in one of several buffers, in any order.
struct Pool {
    buffers: Vec<wgpu::Buffer>,
    rng: StdRng,
}

/// Where a pool put a tensor: buffer and byte offset.
type Place = (usize, u64);

impl Pool {
    fn new(gpu: &Gpu, buffers: usize, bytes: u64, seed: u64) -> Self {
        Self { buffers: (0..buffers).map(|_| gpu.buffer(bytes)).collect(), rng: StdRng::seed_from_u64(seed) }
    }

    /// Places for tensors of these lengths, none overlapping.
    fn places(&mut self, lengths: &[usize], alignment: u64) -> Vec<Place> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.shuffle(&mut self.rng);
        let mut used = vec![0; self.buffers.len()];
        let mut places = vec![(0, 0); lengths.len()];
        for index in order {
            let buffer = self.rng.random_range(0..self.buffers.len());
            let gap = self.rng.random_range(0..5) * alignment;
            let offset: u64 = used[buffer] + gap;
            used[buffer] = (offset + 4 * lengths[index] as u64).next_multiple_of(alignment);
            places[index] = (buffer, offset);
        }
        places
    }

    fn view(&self, (buffer, offset): Place) -> View<'_> {
        View::new(&self.buffers[buffer], offset)
    }
}

#[test]
fn tensors_that_move_at_every_step_equal_tensors_that_stay() {
    let lengths = [1757, 3, 1024, 40, 5000, 257];
    let model = Model::new(AdaMod::new(), &lengths);
    for (buffers, alignment) in [(1, 256), (2, 32), (3, 4)] {
        let mut fixed = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut moving = Engine::new(gpu(), &model, Layout::TwoPools(256));
        let mut pool = Pool::new(gpu(), buffers, 256 * 1024, 5);
        let mut values: Vec<Vec<f32>> = model.tensors.iter().map(|tensor| tensor.values.clone()).collect();
        for step in 0..8 {
            let gradients = model.gradients(step);
            let present: Vec<_> = all(&gradients)
                .into_iter()
                .enumerate()
                .map(|(index, g)| g.filter(|_| step != 4 || index % 2 == 0))
                .collect();
            fixed.step(&present);

            let both: Vec<usize> = lengths.iter().chain(&lengths).copied().collect();
            let places = pool.places(&both, alignment);
            let (of_values, of_gradients) = places.split_at(lengths.len());
            let mut updates = Vec::new();
            for index in 0..lengths.len() {
                let Some(gradient) = present[index] else {
                    continue;
                };
                let views = Views::new(pool.view(of_values[index]), pool.view(of_gradients[index]));
                let queue = &gpu().queue;
                queue.write_buffer(
                    views.values.buffer,
                    views.values.offset,
                    bytemuck::cast_slice(&values[index]),
                );
                queue.write_buffer(
                    views.gradients.buffer,
                    views.gradients.offset,
                    bytemuck::cast_slice(gradient),
                );
                updates.push(Update::new(moving.ids[index], views));
            }
            moving.record(&Step::at(&updates));
            for index in 0..lengths.len() {
                if present[index].is_some() {
                    let (buffer, offset) = of_values[index];
                    let words = gpu().read(&pool.buffers[buffer]);
                    let start = offset as usize / 4;
                    values[index] = bytemuck::cast_slice(&words[start..start + lengths[index]]).to_vec();
                }
            }
        }
        for (index, values) in values.iter().enumerate() {
            assert_eq!(values, &fixed.values(index), "tensor {index}");
            assert_eq!(moving.state(index), fixed.state(index), "tensor {index}");
        }
    }
}

/// Steps with other views may wait for one submit too.
#[test]
fn moved_views_recorded_before_one_submit_keep_their_places() {
    let model = Model::new(AdaMod::new(), &[1500, 7]);
    let (first, second) = (model.gradients(1), model.gradients(2));
    let mut expected = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.write_gradients(&all(&first));
    let buffers = engine.buffers.clone();
    let elsewhere: Vec<_> = second
        .iter()
        .map(|gradient| {
            let buffer = gpu().buffer(6016);
            gpu().queue.write_buffer(&buffer, 16, bytemuck::cast_slice(gradient));
            buffer
        })
        .collect();
    let mut encoder = gpu().encoder();
    for step in 0..12 {
        let is_first = step % 2 == 0;
        expected.step(&all(if is_first { &first } else { &second }));
        let updates: Vec<_> = (0..2)
            .map(|index| {
                let mut views = engine.views(index, &buffers);
                if !is_first {
                    views.gradients = View::new(&elsewhere[index], 16);
                }
                Update::new(engine.ids[index], views)
            })
            .collect();
        engine.optimizer.encode(&mut encoder, &Step::at(&updates)).unwrap();
    }
    gpu().submit(encoder);
    assert_eq!(engine.bits(), expected.bits());
}

fn view_error(error: &Error) -> (Role, &ViewError) {
    match error.kind() {
        ErrorKind::View { role, error } => (*role, error),
        _ => panic!("{error}"),
    }
}

#[test]
fn views_that_overlap_in_a_step_are_refused_by_name() {
    let model = Model::new(AdaMod::new(), &[64, 64]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let pool = gpu().buffer(4096);
    let views = |values, gradients| Views::new(View::new(&pool, values), View::new(&pool, gradients));
    let [a, b] = [engine.ids[0], engine.ids[1]];
    let step = |engine: &mut Engine<'_>, first, second| {
        let updates = [Update::new(a, first), Update::new(b, second)];
        engine.optimizer.encode(&mut gpu().encoder(), &Step::at(&updates))
    };
    // Second's values over the first's gradients, by one element.
    let error = step(&mut engine, views(0, 256), views(508, 1024)).unwrap_err();
    let (role, found) = view_error(&error);
    assert_eq!((error.label(), role), (Some("tensor.1"), Role::Values));
    let expected =
        ViewError::Overlap { other_role: Role::Gradients, other_label: "tensor.0".to_owned(), byte: 508 };
    assert_eq!(*found, expected);
    // A gradient that is its own parameter.
    let error = step(&mut engine, views(0, 0), views(512, 1024)).unwrap_err();
    assert!(matches!(view_error(&error), (_, ViewError::Overlap { .. })), "{error}");
    // Past the end, and between elements.
    let error = step(&mut engine, views(0, 256), views(3844, 1024)).unwrap_err();
    assert!(matches!(view_error(&error), (_, ViewError::OutOfBounds { .. })), "{error}");
    let error = step(&mut engine, views(0, 256), views(512, 1026)).unwrap_err();
    assert_eq!(*view_error(&error).1, ViewError::Alignment { found: 1026 });
    assert_eq!(engine.optimizer.step_count(a), Some(0));
    step(&mut engine, views(0, 256), views(512, 1024)).unwrap();
    assert_eq!(engine.optimizer.step_count(a), Some(1));
}

#[test]
fn buffers_of_moved_views_are_not_kept() {
    let model = Model::new(AdaMod::new(), &[64]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    const LABEL: &str = "a pool of the engine's";
    let labelled = || {
        gpu().device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(LABEL),
            size: 1024,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    for _ in 0..3 {
        let pool = labelled();
        let views = Views::new(View::new(&pool, 0), View::new(&pool, 512));
        let updates = [Update::new(engine.ids[0], views)];
        engine.record(&Step::at(&updates));
        // It is freed with the engine's last handle.
        assert_ne!(gpu().allocated(LABEL), Some(0));
        drop(pool);
        assert!(gpu().allocated(LABEL).is_none_or(|bytes| bytes == 0));
    }
    // Destroying one while the optimizer lives does not matter to the next step either.
    labelled().destroy();
    engine.step(&all(&model.gradients(1)));
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(4));
}

/// As for the two summands of a sum.
#[test]
fn parameters_may_have_one_gradient_between_them() {
    let model = Model::new(AdaMod::new(), &[64, 48]);
    let mut gradients = model.gradients(1);
    gradients[1] = gradients[0][16..].to_vec();
    let mut expected = Engine::new(gpu(), &model, Layout::TwoPools(256));
    expected.step(&all(&gradients));

    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let shared = gpu().buffer(1024);
    gpu().queue.write_buffer(&shared, 256, bytemuck::cast_slice(&gradients[0]));
    let buffers = engine.buffers.clone();
    let updates: Vec<_> = [256, 256 + 4 * 16]
        .into_iter()
        .enumerate()
        .map(|(index, offset)| {
            let mut views = engine.views(index, &buffers);
            views.gradients = View::new(&shared, offset);
            Update::new(engine.ids[index], views)
        })
        .collect();
    engine.record(&Step::at(&updates));
    assert_eq!(engine.bits(), expected.bits());
    // Values over the second gradient, whose start the first one's end lies beyond, are refused all the same.
    let values = View::new(&shared, 256 + 4 * 63);
    let mut overlapping = updates;
    overlapping[1].views.values = values;
    let error = engine.optimizer.encode(&mut gpu().encoder(), &Step::at(&overlapping)).unwrap_err();
    assert!(matches!(view_error(&error), (_, ViewError::Overlap { .. })), "{error}");
}

#[test]
fn a_step_of_given_views_can_be_submitted_at_once() {
    let model = Model::new(AdaMod::new(), &[700, 33]);
    let run = |step: fn(&mut Optimizer, &[Update<'_>])| {
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        for number in 0..3 {
            engine.write_gradients(&all(&model.gradients(number)));
            let buffers = engine.buffers.clone();
            let updates = engine.updates(&buffers);
            step(&mut engine.optimizer, &updates);
        }
        // A step that is refused is not counted.
        let buffers = engine.buffers.clone();
        let update = Update::new(engine.ids[0], engine.views(0, &buffers));
        let error = engine.optimizer.submit(&Step::at(&[update, update])).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Repeated), "{error}");
        assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(3));
        engine.bits()
    };
    let recorded = run(|optimizer, updates| {
        let mut encoder = gpu().encoder();
        optimizer.encode(&mut encoder, &Step::at(updates)).unwrap();
        gpu().submit(encoder);
    });
    let submitted = run(|optimizer, updates| {
        optimizer.submit(&Step::at(updates)).unwrap();
    });
    assert!(recorded == submitted);
}

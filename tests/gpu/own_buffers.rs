//! Tensors with buffers of their own: where the device has binding arrays, those with the same kernel share a dispatch.

use std::collections::BTreeSet;

use adamod::low_level::Tuning;
use adamod::{
    AdaMod, Control, DType, DeviceControl, Diagnostics, Hyperparameters, MasterWeights, Optimizer, Options,
    Parameter, Sgd, StateFormat, Step, Update, View, Views, Workgroups,
};

use crate::common::{Engine, Kind, Layout, Model, all, gpu};
use crate::precision::Pair;

/// Whole chunks and ends, with three tensors for each kernel at the least.
const LENGTHS: [usize; 5] = [1024, 1030, 7, 1400, 64];

/// What the features of the device allow, and the tuning.
fn has_arrays(tuning: &Tuning) -> bool {
    gpu().device.features().contains(Optimizer::BINDING_ARRAYS) && tuning.binding_arrays
}

fn kinds() -> [Kind; 4] {
    let f32 = Kind::f32();
    let bf16 = Kind { values: DType::Bf16, gradients: DType::Bf16, ..f32 };
    [
        f32,
        Kind { shadow: Some(DType::F16), state: StateFormat::Bf16, ..f32 },
        Kind { state: StateFormat::Q8, master_weights: MasterWeights::Split24, ..bf16 },
        Kind { state: StateFormat::Bf16, gradients: DType::F32, ..bf16 },
    ]
}

/// A dispatch for each format and width of access, or one for each of the tensors that step.
#[track_caller]
fn assert_shared(engine: &Engine<'_>, tuning: &Tuning, tensors: usize) {
    let launches: Vec<_> = engine.optimizer.launches().collect();
    let segments: u32 = launches.iter().map(|launch| launch.segments).sum();
    assert_eq!(segments as usize, tensors);
    if has_arrays(tuning) {
        let formats: BTreeSet<_> = engine.tensors.iter().map(|tensor| format!("{:?}", tensor.kind)).collect();
        // Tensors of one format may have two widths of access.
        assert!((formats.len()..=2 * formats.len()).contains(&launches.len()), "{}", launches.len());
    } else {
        assert_eq!(launches.len(), tensors);
    }
}

#[test]
fn tensors_with_buffers_of_their_own_agree_with_the_twin() {
    let tensors: Vec<_> = kinds().into_iter().flat_map(|kind| LENGTHS.map(|len| (kind, len))).collect();
    for (layout, workgroups, zero_gradients) in
        [(Layout::AlignedOwnBuffers, Workgroups::Gpu, false), (Layout::OwnBuffers, Workgroups::Cpu, true)]
    {
        let options =
            Options::new().with_seed(3).with_workgroups(workgroups).with_zero_gradients(zero_gradients);
        let mut pair = Pair::new(gpu(), options, AdaMod::new(), &tensors, layout);
        for step in 0..3 {
            pair.step(step, 0.1);
            assert_shared(&pair.engine, &Tuning::default(), tensors.len());
        }
        pair.check();
    }
}

/// Through single bindings and through arrays the bits are the same: of values, of state and of the norm.
#[test]
fn binding_arrays_change_no_bit() {
    let model = Model::new(AdaMod::new(), &LENGTHS);
    let step = |control: Control, tuning: Tuning| {
        let options = Options::new().with_control(control).with_tuning(tuning);
        let options = options.with_diagnostics(Diagnostics::RateHistograms);
        let mut engine = Engine::new(gpu(), &model.clone().with_options(options), Layout::AlignedOwnBuffers);
        for step in 0..3 {
            let gradients = model.gradients(step);
            let mut gradients = all(&gradients);
            // One tensor rests.
            gradients[step as usize] = None;
            engine.step(&gradients);
            assert_shared(&engine, &tuning, LENGTHS.len());
        }
        let histograms = engine.optimizer.take_rate_histograms().wait().unwrap();
        (engine.bits(), format!("{histograms:?}"))
    };
    let alone = Tuning::SINGLE_BINDINGS;
    for control in [Control::Host, Control::Device(DeviceControl::new().with_max_norm(0.5))] {
        assert!(step(control, Tuning::default()) == step(control, alone), "{control:?}");
    }
}

/// Tensors come and go, and arrays grow past a power of two and shrink below it.
#[test]
fn arrays_follow_the_tensors() {
    let options = Options::new();
    let model = Model::new(Sgd::new().with_momentum(0.9), &[64; 3]).with_options(options);
    let mut engine = Engine::new(gpu(), &model, Layout::AlignedOwnBuffers);
    let mut twin = model.twin::<f32>();
    for count in [3, 2, 1, 3] {
        let gradients = model.gradients(count as u64);
        let gradients: Vec<_> =
            gradients.iter().enumerate().map(|(i, of)| (i < count).then_some(of.as_slice())).collect();
        engine.step(&gradients);
        twin.step(&gradients);
        for index in 0..3 {
            let (found, expected) = (engine.values(index), twin.values(index));
            let is_near =
                |(found, expected): (&f32, &f32)| (found - expected).abs() <= 1e-6 * (1.0 + expected.abs());
            assert!(found.iter().zip(expected).all(is_near), "{count}, tensor {index}");
        }
    }
}

/// A gradient that lies where another tensor has its values: wgpu allows no buffer to be read and written by one dispatch.
#[test]
fn a_buffer_with_values_of_one_tensor_and_the_gradient_of_another_is_bound_once() {
    let buffers: Vec<_> = (0..3).map(|_| gpu().buffer(1024)).collect();
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let rule = Hyperparameters::from(Sgd::new().with_momentum(0.0)).with_learning_rate(1.0);
    let group = optimizer.add_group(rule).unwrap();
    for (buffer, number) in buffers.iter().zip([1.0_f32, 10.0, 100.0]) {
        gpu().queue.write_buffer(buffer, 0, bytemuck::cast_slice(&[number; 256]));
    }
    let places = [((0, 0), (1, 0)), ((1, 512), (2, 0)), ((2, 512), (0, 512))];
    let ids = places.map(|(values, _)| {
        optimizer.add_parameter(group, Parameter::new(&format!("of.{}", values.0), 128)).unwrap()
    });
    let view = |(buffer, offset): (usize, u64)| View::new(&buffers[buffer], offset);
    let updates: Vec<_> = ids
        .into_iter()
        .zip(places)
        .map(|(id, (values, gradients))| Update::new(id, Views::new(view(values), view(gradients))))
        .collect();
    optimizer.submit(&Step::at(&updates)).unwrap();
    let halves = |buffer: &wgpu::Buffer| {
        let words = gpu().read(buffer);
        [words[0], words[128]].map(f32::from_bits)
    };
    assert_eq!(buffers.iter().map(halves).collect::<Vec<_>>(), [[-9.0, 1.0], [10.0, -90.0], [100.0, 99.0]]);
}

/// Steps at views of their own, and after a tensor has gone, have the bits of tensors in pools.
#[test]
fn steps_at_views_and_removals_change_no_bit() {
    let control = Control::Device(DeviceControl::new().with_max_norm(0.5));
    let model = Model::new(AdaMod::new(), &LENGTHS).with_options(Options::new().with_control(control));
    let run = |layout| {
        let mut engine = Engine::new(gpu(), &model, layout);
        let mut rest = model.clone();
        for step in 0..4 {
            if step == 2 {
                engine.remove_tensor(1);
                rest.tensors.swap_remove(1);
            }
            engine.write_gradients(&all(&rest.gradients(step)));
            let buffers = engine.buffers.clone();
            let updates = engine.updates(&buffers);
            engine.record(&if step % 2 == 0 { Step::at(&updates) } else { Step::all() });
            if layout == Layout::AlignedOwnBuffers {
                assert_shared(&engine, &Tuning::default(), rest.tensors.len());
            }
        }
        engine.bits()
    };
    assert!(run(Layout::AlignedOwnBuffers) == run(Layout::TwoPools(16)));
}

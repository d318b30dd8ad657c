//! Recording steps: one dispatch, several steps before one submit, missing gradients.

use adamod::{
    Access, AdaMod, Adam, Control, DeviceControl, ErrorKind, GradientBinding, LaunchInfo, LossScale,
    NonFinite, Optimizer, Options, Parameter, RuleKind, Sgd, Step, Update, View, Views,
};

use crate::common::{Engine, Gpu, Layout, Model, Tolerance, all, gpu};

/// Shapes of GPT-2 small: 148 tensors, 124 M elements; here with a vocabulary and width scaled down by 64.
fn gpt2_lengths() -> Vec<usize> {
    let (vocabulary, context, width) = (50257 / 64 + 1, 1024 / 64, 768 / 64);
    let mut lengths = vec![vocabulary * width, context * width];
    for _ in 0..12 {
        lengths.extend([width, width]);
        lengths.extend([width * 3 * width, 3 * width, width * width, width]);
        lengths.extend([width, width]);
        lengths.extend([width * 4 * width, 4 * width, 4 * width * width, width]);
    }
    lengths.extend([width, width]);
    lengths
}

/// The dispatches of a step of every parameter.
fn launches(engine: &mut Engine<'_>) -> Vec<LaunchInfo> {
    engine.optimizer.warm_up(&Step::all()).unwrap();
    engine.optimizer.launches().collect()
}

#[test]
fn a_step_over_148_pooled_tensors_is_one_dispatch() {
    let lengths = gpt2_lengths();
    assert_eq!(lengths.len(), 148);
    let model = Model::new(AdaMod::new(), &lengths);
    for (layout, access, gradients) in [
        (Layout::TwoPools(256), Access::Vec4, GradientBinding::Read),
        (Layout::OnePool(256), Access::Vec4, GradientBinding::Shared),
        // Gaps of 8 bytes between tensors of whole words.
        (Layout::TwoPools(4), Access::Vec2, GradientBinding::Read),
    ] {
        let mut engine = Engine::new(gpu(), &model, layout);
        let launches = launches(&mut engine);
        assert_eq!(launches.len(), 1, "{layout:?}");
        assert_eq!(launches[0].form, RuleKind::AdaMod.default_form());
        assert_eq!(launches[0].segments, 148);
        assert_eq!(
            launches[0].workgroups as usize,
            lengths.iter().map(|len| len.div_ceil(1024)).sum::<usize>()
        );
        assert_eq!(launches[0].gradients, gradients);
        assert_eq!(launches[0].access, access, "{layout:?}");
    }
}

#[test]
fn words_are_used_where_views_and_buffers_allow_them() {
    let model = Model::new(AdaMod::new(), &[1024, 100]);
    let mut aligned = Engine::new(gpu(), &model, Layout::TwoPools(16));
    assert_eq!(launches(&mut aligned)[0].access, Access::Vec4);
    let odd = Model::new(AdaMod::new(), &[1023, 100]);
    let mut aligned = Engine::new(gpu(), &odd, Layout::TwoPools(16));
    assert_eq!(launches(&mut aligned)[0].access, Access::Vec4);
    let mut dense = Engine::new(gpu(), &odd, Layout::TwoPools(4));
    assert_eq!(launches(&mut dense)[0].access, Access::Scalar);
}

/// More steps than the ring has slots, one submit; hyperparameters change between them, and gradients stay.
#[test]
fn steps_recorded_before_one_submit_equal_one_submit_each() {
    let steps = 37;
    let model = Model::new(AdaMod::new(), &[1757, 3, 1024]);
    let gradients = model.gradients(1);
    let rate = |step: u64| 1e-3 * (1 + step % 5) as f64;

    let mut each = Engine::new(gpu(), &model, Layout::TwoPools(256));
    for step in 0..steps {
        let group = each.groups[0];
        each.optimizer.set_learning_rate(group, rate(step)).unwrap();
        each.step(&all(&gradients));
    }

    let mut together = Engine::new(gpu(), &model, Layout::TwoPools(256));
    together.write_gradients(&all(&gradients));
    let mut encoder = gpu().encoder();
    for step in 0..steps {
        let group = together.groups[0];
        together.optimizer.set_learning_rate(group, rate(step)).unwrap();
        together.optimizer.encode(&mut encoder, &Step::all()).unwrap();
    }
    gpu().submit(encoder);
    assert_eq!(each.bits(), together.bits());

    let mut in_encoders = Engine::new(gpu(), &model, Layout::TwoPools(256));
    in_encoders.write_gradients(&all(&gradients));
    let commands: Vec<_> = (0..steps)
        .map(|step| {
            let group = in_encoders.groups[0];
            in_encoders.optimizer.set_learning_rate(group, rate(step)).unwrap();
            let mut encoder = gpu().encoder();
            in_encoders.optimizer.encode(&mut encoder, &Step::all()).unwrap();
            encoder.finish()
        })
        .collect();
    gpu().queue.submit(commands);
    assert_eq!(each.bits(), in_encoders.bits());
}

/// Missing gradients rewrite the segments; that too must be right for steps that wait for one submit.
#[test]
fn missing_gradients_recorded_before_one_submit_equal_one_submit_each() {
    let model = Model::new(AdaMod::new(), &[1757, 3, 1024, 40]);
    let gradients = model.gradients(1);
    // The second misses every second step, the third every third one, and so on.
    let is_present = |step: usize, index: usize| index == 0 || !step.is_multiple_of(index + 1);

    let mut each = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut together = Engine::new(gpu(), &model, Layout::TwoPools(256));
    together.write_gradients(&all(&gradients));
    let mut encoder = gpu().encoder();
    for step in 0..20 {
        let present: Vec<_> = all(&gradients)
            .into_iter()
            .enumerate()
            .map(|(index, g)| g.filter(|_| is_present(step, index)))
            .collect();
        each.step(&present);
        let ids: Vec<_> =
            (0..4).filter(|&index| is_present(step, index)).map(|index| together.ids[index]).collect();
        together.optimizer.encode(&mut encoder, &Step::of(&ids)).unwrap();
    }
    gpu().submit(encoder);
    assert_eq!(each.bits(), together.bits());
    let counts = |engine: &Engine<'_>| {
        engine.ids.iter().map(|&id| engine.optimizer.step_count(id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(counts(&each), counts(&together));
    assert!(counts(&each).iter().any(|&count| count != counts(&each)[0]));
}

#[test]
fn a_step_without_any_gradient_changes_nothing() {
    let model = Model::new(AdaMod::new(), &[100]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    let before = engine.bits();
    engine.step(&[None]);
    assert_eq!(engine.bits(), before);
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
}

#[test]
fn an_encoder_that_is_dropped_gives_its_slots_back() {
    let model = Model::new(AdaMod::new(), &[100]);
    // A device of its own: tests beside this one have buffers of the same label.
    let gpu = &Gpu::with_limits(|limits| limits);
    let mut engine = Engine::new(gpu, &model, Layout::TwoPools(256));
    let before = gpu.allocated("adamod.coefficients");
    assert_ne!(before, Some(0));
    for _ in 0..100 {
        let mut encoder = gpu.encoder();
        engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
    }
    assert_eq!(gpu.allocated("adamod.coefficients"), before);
    // Held, they make the ring grow.
    let encoders: Vec<_> = (0..100)
        .map(|_| {
            let mut encoder = gpu.encoder();
            engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
            encoder
        })
        .collect();
    assert!(before.is_none() || gpu.allocated("adamod.coefficients") > before);
    drop(encoders);
    // Nothing ran, and the optimizer goes on working.
    assert_eq!(engine.values(0), model.tensors[0].values);
    engine.step(&all(&model.gradients(1)));
    assert_ne!(engine.values(0), model.tensors[0].values);
}

/// Steps whose encoder is dropped are taken back: the next ones have the same bits as if those had never been recorded.
#[test]
fn steps_that_never_ran_can_be_taken_back() {
    let model = Model::new(AdaMod::new(), &[100, 2000, 7]);
    let gradients = model.gradients(1);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut other = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&gradients));
    other.step(&all(&gradients));
    let counts = engine.optimizer.step_counts();
    let mut encoder = gpu().encoder();
    engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
    let some = [engine.ids[0], engine.ids[2]];
    engine.optimizer.encode(&mut encoder, &Step::of(&some)).unwrap();
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(3));
    drop(encoder);
    engine.optimizer.rewind(&counts).unwrap();
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
    engine.step(&all(&gradients));
    other.step(&all(&gradients));
    assert_eq!(engine.bits(), other.bits());

    // Counts of another optimizer, or from before a change, are refused.
    let error = other.optimizer.rewind(&counts).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StaleCounts), "{error}");
    engine.optimizer.remove_parameter(engine.ids[1]).unwrap();
    let error = engine.optimizer.rewind(&counts).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StaleCounts), "{error}");
}

#[test]
fn step_submits_and_passes_can_be_shared() {
    let model = Model::new(Adam::new(), &[1500]);
    let gradients = model.gradients(1);
    let mut through_step = Engine::new(gpu(), &model, Layout::TwoPools(256));
    through_step.write_gradients(&all(&gradients));
    let submission = through_step.optimizer.submit(&Step::all()).unwrap();
    let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
    gpu().device.poll(wait).unwrap();

    let mut in_pass = Engine::new(gpu(), &model, Layout::TwoPools(256));
    in_pass.write_gradients(&all(&gradients));
    let mut encoder = gpu().encoder();
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        in_pass.optimizer.encode_in_pass(&mut pass, &Step::all()).unwrap();
    }
    gpu().submit(encoder);
    assert_eq!(through_step.bits(), in_pass.bits());
    let read = in_pass.read_values(0);
    assert_eq!(read, in_pass.values(0));
}

/// How a step can be recorded.
type Record = dyn Fn(&mut Engine<'_>, &Step<'_>);

/// Runs steps of all parameters, of some, and of some at views of the step, and gives what is left and what was counted.
fn run_steps(options: &Options, layout: Layout, record: &Record) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut model = Model::new(AdaMod::new(), &[1757, 3, 1024]).with_options(options.clone());
    model.add_group(Adam::new(), &[33, 700]);
    model.add_group(Sgd::new(), &[257, 40]);
    let mut engine = Engine::new(gpu(), &model, layout);
    let buffers = engine.buffers.clone();
    let elsewhere: Vec<_> = model.lengths().iter().map(|&len| gpu().buffer(4 * len as u64 + 16)).collect();
    for number in 0..9 {
        let mut gradients = model.gradients(number);
        if number >= 6 {
            gradients[4][699] = f32::INFINITY;
        }
        engine.write_gradients(&all(&gradients));
        let ids: Vec<_> = engine.ids.iter().copied().skip(number as usize % 2).step_by(2).collect();
        let mut updates = engine.updates(&buffers);
        for (index, update) in updates.iter_mut().enumerate().skip(1) {
            let gradient = bytemuck::cast_slice(&gradients[index]);
            gpu().queue.write_buffer(&elsewhere[index], 16, gradient);
            update.views.gradients = View::new(&elsewhere[index], 16);
        }
        match number % 3 {
            0 => record(&mut engine, &Step::all()),
            1 => record(&mut engine, &Step::of(&ids)),
            _ => record(&mut engine, &Step::at(&updates)),
        }
    }
    let counts: Vec<_> = engine.ids.iter().map(|&id| engine.optimizer.step_count(id)).collect();
    let taken: Vec<_> = (0..engine.ids.len()).map(|index| engine.state(index).step).collect();
    let progress = engine.optimizer.read_progress().wait().ok();
    (engine.bits(), counts, taken, progress)
}

fn submitted(engine: &mut Engine<'_>, step: &Step<'_>) {
    engine.optimizer.submit(step).unwrap();
}

fn in_pass(engine: &mut Engine<'_>, steps: &[Step<'_>]) {
    let mut encoder = gpu().encoder();
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for step in steps {
            engine.optimizer.encode_in_pass(&mut pass, step).unwrap();
        }
    }
    gpu().submit(encoder);
}

/// What an engine does between the halves of a step: it reads the norm and writes back that of all devices, here of one.
fn exchange_norm(engine: &Engine<'_>) {
    let control = engine.optimizer.control_buffer().unwrap();
    let norm = engine.optimizer.read_progress().wait().unwrap().norm;
    gpu().queue.write_buffer(control, Optimizer::NORM_OFFSET, &norm.to_le_bytes());
}

/// Calls `record` with the first half and with the second half. Steps are counted with the second.
fn halves(engine: &mut Engine<'_>, step: &Step<'_>, record: fn(&mut Engine<'_>, &Step<'_>)) {
    let counts = |engine: &Engine<'_>| -> Vec<_> {
        engine.ids.iter().map(|&id| engine.optimizer.step_count(id)).collect()
    };
    let before = counts(engine);
    let taken = engine.optimizer.read_progress().wait().unwrap().taken;
    record(engine, &step.norm());
    assert_eq!(counts(engine), before);
    assert_eq!(engine.optimizer.read_progress().wait().unwrap().taken, taken);
    exchange_norm(engine);
    record(engine, &step.after_norm());
    assert_ne!(counts(engine), before);
}

/// Whatever a step covers, and whatever it is recorded into.
#[test]
fn every_way_to_record_a_step_gives_the_same_bits() {
    let ways: [&Record; 3] =
        [&|engine, step| engine.record(step), &|engine, step| in_pass(engine, &[*step]), &submitted];
    let clipped = DeviceControl::new().with_max_norm(1.0);
    let scaled = clipped.with_loss_scale(LossScale::Dynamic {
        initial: 4.0,
        growth_factor: 2.0,
        backoff_factor: 0.5,
        growth_interval: 2,
    });
    let propagating = DeviceControl::new().with_non_finite(NonFinite::Propagate);
    for control in [Control::Host, Control::Device(propagating), Control::Device(clipped)] {
        let options = Options::new().with_control(control);
        for layout in [Layout::TwoPools(256), Layout::OwnBuffers] {
            let [first, others @ ..] = ways.map(|way| run_steps(&options, layout, way));
            assert!(others.iter().all(|other| *other == first), "{control:?}, {layout:?}");
        }
    }
    // Steps in two halves.
    let ways: [&Record; 6] = [
        &|engine, step| engine.record(step),
        &|engine, step| halves(engine, step, |engine, half| engine.record(half)),
        &|engine, step| halves(engine, step, |engine, half| in_pass(engine, &[*half])),
        &|engine, step| halves(engine, step, submitted),
        &|engine, step| in_pass(engine, &[step.norm(), step.after_norm()]),
        &|engine, step| {
            let mut encoder = gpu().encoder();
            engine.optimizer.encode(&mut encoder, &step.norm()).unwrap();
            engine.optimizer.encode(&mut encoder, &step.after_norm()).unwrap();
            gpu().submit(encoder);
        },
    ];
    for settings in [DeviceControl::new(), clipped, scaled] {
        let options = Options::new().with_control(Control::Device(settings));
        for layout in [Layout::TwoPools(256), Layout::OwnBuffers] {
            let [first, others @ ..] = ways.map(|way| run_steps(&options, layout, way));
            for (way, other) in others.iter().enumerate() {
                assert!(*other == first, "way {way}, {settings:?}, {layout:?}");
            }
        }
    }
}

#[test]
fn parameters_added_after_steps_start_at_their_own_first_step() {
    let model = Model::new(AdaMod::new(), &[700, 1300]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    let late = vec![0.25_f32; 513];
    let (values, gradients) = (gpu().buffer(2064), gpu().buffer(2064));
    gpu().queue.write_buffer(&values, 0, bytemuck::cast_slice(&late));
    gpu().queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&late));
    let id = engine
        .optimizer
        .add_parameter(
            engine.groups[0],
            Parameter::new("late", 513)
                .with_views(Views::new(View::new(&values, 0), View::new(&gradients, 0))),
        )
        .unwrap();
    let gradients = model.gradients(2);
    engine.step(&all(&gradients));
    // The engine steps every parameter, the late one too.
    assert_eq!(engine.optimizer.step_count(id), Some(1));
    let mut twin = model.twin::<f32>();
    twin.step(&all(&model.gradients(1)));
    twin.step(&all(&gradients));
    let mut late_twin = Model::new(AdaMod::new(), &[513]);
    late_twin.tensors[0].values = late.clone();
    let mut late_twin = late_twin.twin::<f32>();
    late_twin.step(&[Some(&late)]);
    let read = engine.optimizer.read_parameter(id).wait().unwrap();
    for (read, expected) in
        [(engine.values(0), twin.values(0)), (engine.values(1), twin.values(1)), (read, late_twin.values(0))]
    {
        let wide: Vec<_> = expected.iter().copied().map(f64::from).collect();
        Tolerance { absolute: 1e-6, relative: 1e-5 }.check(&read, &wide).unwrap();
        assert!(read == expected || !gpu().is_exact());
    }
}

#[test]
fn handles_of_another_optimizer_are_refused() {
    let model = Model::new(AdaMod::new(), &[8]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let other = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let mut encoder = gpu().encoder();
    let error = engine.optimizer.encode(&mut encoder, &Step::of(&other.ids)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownParameter), "{error}");
    let twice = [engine.ids[0], engine.ids[0]];
    let error = engine.optimizer.encode(&mut encoder, &Step::of(&twice)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Repeated), "{error}");
    assert_eq!(error.label(), Some("tensor.0"));
    assert!(engine.optimizer.set_learning_rate(other.groups[0], 1.0).is_err());
    assert!(engine.optimizer.read_state(other.ids[0]).wait().is_err());
    assert_eq!(engine.optimizer.step_count(other.ids[0]), None);
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(0));
    engine.step(&all(&model.gradients(1)));
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
}

/// Buffers of another device are seen by wgpu only: its error comes back as ours, and no step is counted.
#[test]
fn a_buffer_of_another_device_is_an_error_and_not_a_panic() {
    let other = gpu().sibling();
    let foreign = other.buffer(64);
    let own = gpu().buffer(64);
    let model = Model::new(AdaMod::new(), &[8]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
    let views = Views::new(View::new(&foreign, 0), View::new(&own, 32));
    let updates = [Update::new(engine.ids[0], views)];
    let error = engine.optimizer.encode(&mut gpu().encoder(), &Step::at(&updates)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Device(_)), "{error}");
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(0));
    engine.step(&all(&model.gradients(1)));
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
}

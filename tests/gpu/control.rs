//! Steps that the device prepares: step counts, clip, loss scale and skipping, without a word from the host.

use adamod::low_level::abi::{ACTIVE, Coefficients, Control as ControlWords, ControlHead, Row};
use adamod::low_level::{GroupTable, coefficient_row, prepare_source};
use adamod::{
    AdaMod, Control, DeviceControl, ErrorKind, Formula, Group, Hyperparameters, LossScale, NonFinite,
    Optimizer, Options, Progress, Rule, RuleKind, Sgd, StateFormat, Step, WeightDecay, Workgroups,
};

use bytemuck::Zeroable;

use crate::common::{Engine, Gpu, Layout, Model, Tolerance, all, gpu, precision, rules, to_f64};

const VALUES: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };

fn options(settings: DeviceControl) -> Options {
    Options::new().with_control(Control::Device(settings))
}

fn model(rule: impl Into<Rule>, settings: DeviceControl, lengths: &[usize]) -> Model {
    let hyperparameters = Hyperparameters::from(rule).with_weight_decay(WeightDecay::Decoupled(0.01));
    Model::new(hyperparameters, lengths).with_options(options(settings))
}

/// A model whose steps subtract just the gradient, from zero.
fn subtracting(settings: DeviceControl, lengths: &[usize]) -> Model {
    let hyperparameters = Hyperparameters::from(Sgd::new().with_momentum(0.0)).with_learning_rate(1.0);
    let mut model = Model::new(hyperparameters, lengths).with_options(options(settings));
    model.tensors.iter_mut().for_each(|tensor| tensor.values.fill(0.0));
    model
}

fn propagating() -> DeviceControl {
    DeviceControl::new().with_non_finite(NonFinite::Propagate)
}

fn dynamic(initial: f64, growth_factor: f64, backoff_factor: f64, growth_interval: u32) -> DeviceControl {
    let scale = LossScale::Dynamic { initial, growth_factor, backoff_factor, growth_interval };
    DeviceControl::new().with_loss_scale(scale)
}

fn progress(optimizer: &Optimizer) -> Progress {
    optimizer.read_progress().wait().unwrap()
}

/// The same form of the rule with other decay rates or another momentum.
fn varied(rule: Rule) -> Rule {
    let mut varied = rule;
    for (name, value) in rule.hyperparameters() {
        let other = match name {
            "betas[0]" | "rho" => 0.8,
            "betas[1]" => 0.98,
            "betas[2]" => 0.0,
            "alpha" => 0.95,
            "momentum" if value > 0.0 => 0.8,
            "lr_decay" | "gamma" => value + 0.125,
            _ => continue,
        };
        assert!(varied.set_hyperparameter(name, other));
    }
    assert_eq!(varied.form(), rule.form());
    varied
}

#[test]
fn steps_agree_with_the_f64_reference_with_missing_gradients_and_schedules() {
    let runs = [(propagating(), Workgroups::Cpu), (DeviceControl::new(), Workgroups::Gpu)];
    for (index, rule) in rules().into_iter().enumerate() {
        // The paper's rules have both.
        let is_first = index < 4;
        for (settings, workgroups) in
            runs.into_iter().skip(if is_first { 0 } else { index % 2 }).take(if is_first { 2 } else { 1 })
        {
            let mut model = model(rule, settings, &[300, 5, 1025, 40]);
            model.options.workgroups = workgroups;
            let hyperparameters = model.groups[0].hyperparameters;
            model.groups.push(hyperparameters.with_rule(varied(rule)).into());
            model.tensors[1].group = 1;
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(4));
            let mut twin = model.twin::<f64>();
            for step in 0..30_u32 {
                let learning_rate = 1e-3 * f64::from(step + 1);
                engine.optimizer.set_learning_rate(engine.groups[0], learning_rate).unwrap();
                twin.set_hyperparameters(0, hyperparameters.with_learning_rate(learning_rate));
                let gradients = model.gradients(step.into());
                let mut given = all(&gradients);
                if step % 3 == 1 {
                    given[2] = None;
                }
                if step % 5 == 2 {
                    given[1] = None;
                }
                engine.step(&given);
                let wide = to_f64(&given);
                let wide: Vec<_> = wide.iter().map(Option::as_deref).collect();
                twin.step(&wide);
            }
            for index in 0..4 {
                VALUES.check(&engine.values(index), twin.values(index)).unwrap();
                assert_eq!(engine.state(index).step, twin.step_count(index));
            }
        }
    }
}

/// Recorded into one encoder, or ahead of time into many: the same bits.
#[test]
fn steps_recorded_ahead_give_the_same_bits() {
    let model = model(AdaMod::new(), DeviceControl::new().with_max_norm(0.5), &[700, 33]);
    let gradients = model.gradients(1);
    let run = |record: &dyn Fn(&mut Engine<'_>)| {
        let mut engine = Engine::new(gpu(), &model, Layout::OnePool(16));
        engine.write_gradients(&all(&gradients));
        record(&mut engine);
        assert_eq!(progress(&engine.optimizer).taken, 40);
        engine.bits()
    };
    let one_by_one = run(&|engine| {
        for _ in 0..40 {
            engine.optimizer.submit(&Step::all()).unwrap();
        }
    });
    let in_one = run(&|engine| {
        let mut encoder = gpu().encoder();
        for _ in 0..40 {
            engine.optimizer.encode(&mut encoder, &Step::all()).unwrap();
        }
        gpu().submit(encoder);
    });
    let in_many = run(&|engine| {
        let mut encoders: Vec<_> = (0..40).map(|_| gpu().encoder()).collect();
        for encoder in &mut encoders {
            engine.optimizer.encode(encoder, &Step::all()).unwrap();
        }
        gpu().queue.submit(encoders.into_iter().map(wgpu::CommandEncoder::finish));
    });
    assert!(one_by_one == in_one && one_by_one == in_many);
}

/// A norm over many launches finds what is not finite in any of them.
#[test]
fn tensors_in_buffers_of_their_own_step_as_pooled_ones_do() {
    let model = model(AdaMod::new(), DeviceControl::new(), &[700, 33, 1025, 4]);
    let run = |layout| {
        let mut engine = Engine::new(gpu(), &model, layout);
        for step in 0..4 {
            let mut gradients = model.gradients(step);
            if step == 2 {
                gradients[3][1] = f32::NAN;
            }
            engine.step(&all(&gradients));
        }
        assert_eq!(progress(&engine.optimizer).skipped, 1);
        engine.bits()
    };
    let pooled = run(Layout::TwoPools(16));
    for layout in [Layout::OwnBuffers, Layout::Mixed, Layout::OnePool(4)] {
        assert!(run(layout) == pooled, "{layout:?}");
    }
}

#[test]
fn devices_whose_bindings_are_too_small_are_refused() {
    let small =
        Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffer_binding_size: 64 * 1024, ..limits });
    let error = small.optimizer(options(DeviceControl::new())).unwrap_err();
    let ErrorKind::Limit { limit, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(*limit, "max_storage_buffer_binding_size");
}

/// A run with infinite and NaN gradients in some steps ends as the run without those steps, bit for bit; in formats that draw
/// random numbers, too.
#[test]
fn steps_with_non_finite_gradients_might_never_have_been() {
    for state in StateFormat::ALL {
        let hyperparameters = Hyperparameters::new().with_weight_decay(WeightDecay::Decoupled(0.01));
        let group = Group::new(hyperparameters).with_precision(precision(state));
        let model = Model::new(group, &[100, 2000, 3]).with_options(options(DeviceControl::new()));
        let run = |bad_steps: &[u64]| {
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
            let mut taken = 0;
            for step in 0..12_u64 {
                let is_bad = bad_steps.contains(&step);
                let mut gradients = model.gradients(if is_bad { 1000 } else { taken });
                if is_bad {
                    gradients[step as usize % 3][0] =
                        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][step as usize % 3];
                } else {
                    taken += 1;
                }
                engine.step(&all(&gradients));
                if taken == 8 {
                    break;
                }
            }
            let progress = progress(&engine.optimizer);
            (engine.bits(), progress.taken, progress.skipped)
        };
        let (clean, taken, skipped) = run(&[]);
        assert_eq!((taken, skipped), (8, 0));
        let (interrupted, taken, skipped) = run(&[0, 3, 4, 8]);
        assert_eq!((taken, skipped), (8, 4));
        assert!(clean == interrupted);
    }
}

/// SGD without momentum at a learning rate of 1 subtracts just the clipped gradient.
#[test]
fn the_clip_agrees_with_f64_for_any_norm() {
    for exponent in (-30..=30).step_by(5) {
        for (lengths, max_norm_of_norm) in [(vec![3000, 17], 0.25), (vec![1], 0.5), (vec![1500], 2.0)] {
            let scale = 10_f64.powi(exponent);
            let mut model = subtracting(DeviceControl::new(), &lengths);
            let mut gradients = model.gradients(9);
            gradients.iter_mut().flatten().for_each(|g| *g = (f64::from(*g) * scale) as f32);
            let squares = gradients.iter().flatten().map(|&g| f64::from(g).powi(2));
            let norm = squares.sum::<f64>().sqrt();
            let max_norm = (max_norm_of_norm * norm) as f32;
            model.options = options(DeviceControl::new().with_max_norm(max_norm.into()));
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
            engine.step(&all(&gradients));
            let progress = progress(&engine.optimizer);
            let error = f64::from(progress.norm) / norm - 1.0;
            assert!(error.abs() < 1e-6, "norm {norm:e}: {:e}", progress.norm);
            let clip = (f64::from(max_norm) / norm).min(1.0);
            for (index, gradient) in gradients.iter().enumerate() {
                for (value, g) in engine.values(index).iter().zip(gradient) {
                    let expected = -clip * f64::from(*g);
                    if expected.abs() > 1e-37 {
                        let error = f64::from(*value) / expected - 1.0;
                        assert!(error.abs() < 1e-6, "{value:e} instead of {expected:e}, norm {norm:e}");
                    }
                }
            }
        }
    }
}

/// Of more chunks than there are partial sums, so that workgroups add up several: no element is left out, and sums of many numbers
/// keep their digits.
#[test]
fn norms_of_many_elements_keep_their_digits() {
    for (layout, workgroups) in
        [(Layout::TwoPools(16), Workgroups::Gpu), (Layout::OwnBuffers, Workgroups::Cpu)]
    {
        let lengths = [1 << 20, 12_345, 3 << 20, 7];
        let mut model = model(Sgd::new(), DeviceControl::new(), &lengths);
        model.options.workgroups = workgroups;
        let mut engine = Engine::new(gpu(), &model, layout);
        let mut gradients = model.gradients(4);
        for gradient in &mut gradients {
            gradient.fill(0.125);
        }
        gradients[2][0] = -300.0;
        engine.step(&all(&gradients));
        let norm = gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let found = f64::from(progress(&engine.optimizer).norm);
        // Without one chunk it would be 6e-5 less.
        assert!((found / norm - 1.0).abs() < 1e-6, "{found:e} instead of {norm:e}");

        for (tensor, element) in [(2, (3 << 20) - 1), (3, 6), (1, 12_344), (0, 0)] {
            let mut gradients = model.gradients(4);
            gradients[tensor][element] = f32::INFINITY;
            engine.step(&all(&gradients));
        }
        assert_eq!(progress(&engine.optimizer).skipped, 4, "{layout:?}");
    }
}

/// Workgroups are done in another order each time; what the last one adds up is the same.
#[test]
fn a_norm_is_the_same_bits_every_time() {
    for (layout, workgroups) in
        [(Layout::TwoPools(16), Workgroups::Cpu), (Layout::OwnBuffers, Workgroups::Gpu)]
    {
        let lengths = [300_000, 5000, 90_001];
        let mut model = model(AdaMod::new(), DeviceControl::new(), &lengths);
        model.options.workgroups = workgroups;
        let mut engine = Engine::new(gpu(), &model, layout);
        engine.write_gradients(&all(&model.gradients(1)));
        let mut norm = || {
            engine.record(&Step::all().norm());
            progress(&engine.optimizer).norm.to_bits()
        };
        let first = norm();
        assert!((0..100).all(|_| norm() == first), "{layout:?}");
    }
}

#[test]
fn a_dynamic_loss_scale_grows_and_backs_off_as_grad_scaler_does() {
    let mut model = model(AdaMod::new(), dynamic(1024.0, 2.0, 0.5, 3), &[64]);
    let mut scaled = Engine::new(gpu(), &model, Layout::TwoPools(16));
    model.options = options(DeviceControl::new());
    let mut plain = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let (mut scale, mut tracker) = (1024.0_f32, 0);
    for step in 0..20 {
        let progress = progress(&scaled.optimizer);
        assert_eq!(progress.loss_scale, scale, "step {step}");
        let is_bad = [2, 7, 8, 15].contains(&step);
        let gradients = model.gradients(step);
        let mut large = gradients.clone();
        large[0].iter_mut().for_each(|g| *g *= scale);
        if is_bad {
            large[0][5] = f32::INFINITY;
        }
        scaled.step(&all(&large));
        // torch.amp.GradScaler.update
        if is_bad {
            (scale, tracker) = (scale * 0.5, 0);
        } else {
            plain.step(&all(&gradients));
            tracker += 1;
            if tracker == 3 {
                (scale, tracker) = (scale * 2.0, 0);
            }
        }
    }
    // Powers of two divide out without a trace.
    assert_eq!(scaled.bits(), plain.bits());
    assert_eq!(progress(&scaled.optimizer).skipped, 4);
}

#[test]
fn an_engines_own_multiplier_and_norm_are_used() {
    let model = subtracting(DeviceControl::new().with_max_norm(1.0), &[4]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let control = engine.optimizer.control_buffer().unwrap().clone();
    gpu().queue.write_buffer(&control, Optimizer::MULTIPLIER_OFFSET, &0.5_f32.to_le_bytes());
    engine.write_gradients(&[Some(&[3.0, 0.0, 4.0, 0.0])]);
    engine.record(&Step::all().norm());
    let half = progress(&engine.optimizer);
    assert_eq!((half.norm, half.taken), (5.0, 0));
    // Another device has a norm of 12: together they have 13.
    gpu().queue.write_buffer(&control, Optimizer::NORM_OFFSET, &13.0_f32.to_le_bytes());
    engine.record(&Step::all().after_norm());
    // The clip is of the norm that the multiplier leaves, 6.5.
    let expected = [-3.0 / 13.0, 0.0, -4.0 / 13.0, 0.0];
    Tolerance { absolute: 0.0, relative: 1e-6 }.check(&engine.values(0), &expected).unwrap();
    // Another device's gradients are not finite: nothing moves.
    gpu().queue.write_buffer(&control, Optimizer::NORM_OFFSET, &f32::NAN.to_le_bytes());
    engine.record(&Step::all().after_norm());
    Tolerance { absolute: 0.0, relative: 1e-6 }.check(&engine.values(0), &expected).unwrap();
    assert_eq!(progress(&engine.optimizer).skipped, 1);
}

/// As `clip_grad_norm_` on the mean of the batches whose gradients were added up.
#[test]
fn gradients_that_the_multiplier_makes_small_enough_are_not_clipped() {
    let model = subtracting(DeviceControl::new().with_max_norm(1.0), &[2]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let control = engine.optimizer.control_buffer().unwrap().clone();
    let mut values = [0.0; 2];
    for (multiplier, factor) in [(0.125_f32, 0.125), (-0.125, -0.125), (1.0, 0.25), (-0.5, -0.25)] {
        gpu().queue.write_buffer(&control, Optimizer::MULTIPLIER_OFFSET, &multiplier.to_le_bytes());
        engine.step(&[Some(&[4.0, 0.0])]);
        values[0] -= 4.0 * factor;
        assert_eq!(engine.values(0), values, "multiplier {multiplier}");
        assert_eq!(progress(&engine.optimizer).norm, 4.0);
    }
}

/// A rank may have no parameters, or none with a gradient: it counts, clips and skips as the others do.
#[test]
fn a_step_without_gradients_counts_and_has_norm_zero() {
    for (settings, has_norm) in [(DeviceControl::new().with_max_norm(1.0), true), (propagating(), false)] {
        let mut optimizer = gpu().optimizer(options(settings)).unwrap();
        let mut check = |step: &Step<'_>, taken, skipped| {
            let control = optimizer.control_buffer().unwrap().clone();
            let mut encoder = gpu().encoder();
            optimizer.encode(&mut encoder, step).unwrap();
            gpu().submit(encoder);
            let progress = progress(&optimizer);
            assert_eq!((progress.taken, progress.skipped), (taken, skipped));
            if has_norm {
                // What the engine would write for all ranks.
                gpu().queue.write_buffer(&control, Optimizer::NORM_OFFSET, &f32::INFINITY.to_le_bytes());
            }
            progress.norm
        };
        let mut taken = 0;
        let mut skipped = 0;
        for step in [Step::all(), Step::at(&[]), Step::of(&[])] {
            taken += 1;
            assert_eq!(check(&step, taken, skipped), 0.0, "{step:?}");
            if has_norm {
                assert_eq!(check(&step.norm(), taken, skipped), 0.0, "{step:?}");
                skipped += 1;
                check(&step.after_norm(), taken, skipped);
                taken += 1;
                assert_eq!(check(&step, taken, skipped), 0.0, "{step:?}");
            }
        }
    }
}

#[test]
fn a_loss_scale_never_becomes_zero() {
    let least = f32::MIN_POSITIVE;
    let model = model(AdaMod::new(), dynamic(f64::from(4.0 * least), 2.0, 0.25, 1), &[4]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    for _ in 0..3 {
        engine.step(&[Some(&[f32::NAN; 4])]);
    }
    assert_eq!(progress(&engine.optimizer).loss_scale, least);
    engine.step(&[Some(&[0.0; 4])]);
    let progress = progress(&engine.optimizer);
    assert_eq!((progress.loss_scale, progress.taken, progress.skipped), (2.0 * least, 1, 3));
}

/// A checkpoint's loss scale is for optimizers that have one of the same kind.
#[test]
fn a_constant_loss_scale_is_not_replaced_by_a_checkpoint() {
    let interval = |growth_interval| dynamic(1024.0, 2.0, 0.5, growth_interval);
    let constant = DeviceControl::new().with_loss_scale(LossScale::Constant(8.0));
    let model = |settings| model(Sgd::new(), settings, &[4]);
    let mut saved = Engine::new(gpu(), &model(interval(100)), Layout::TwoPools(16));
    for _ in 0..5 {
        saved.step(&[Some(&[1.0; 4])]);
    }
    let checkpoint = saved.optimizer.checkpoint().wait().unwrap();
    // The shorter interval is over at once.
    for (settings, restored, next) in
        [(constant, 8.0, 8.0), (interval(100), 1024.0, 1024.0), (interval(3), 1024.0, 2048.0)]
    {
        let mut engine = Engine::new(gpu(), &model(settings), Layout::TwoPools(16));
        engine.optimizer.restore(&checkpoint).unwrap();
        let scale = |engine: &Engine<'_>| progress(&engine.optimizer).loss_scale;
        assert_eq!(scale(&engine), restored);
        engine.step(&[Some(&[1.0; 4])]);
        assert_eq!(scale(&engine), next);
        assert_eq!(engine.state(0).step, 6);
    }
}

#[test]
fn settings_out_of_range_and_calls_without_a_norm_are_refused_by_name() {
    let refused = |settings| {
        let error = gpu().optimizer(options(settings)).unwrap_err();
        match error.kind() {
            ErrorKind::OutOfRange(error) => error.name,
            _ => panic!("{error}"),
        }
    };
    assert_eq!(refused(dynamic(0.0, 2.0, 0.5, 1)), "loss_scale");
    assert_eq!(refused(dynamic(1.0, 0.5, 0.5, 1)), "growth_factor");
    assert_eq!(refused(dynamic(1.0, 1e39, 0.5, 1)), "growth_factor");
    assert_eq!(refused(dynamic(1.0, 2.0, 1.0, 1)), "backoff_factor");
    assert_eq!(refused(dynamic(1.0, 2.0, 1e-46, 1)), "backoff_factor");
    assert_eq!(refused(dynamic(1.0, 2.0, 0.99999999999, 1)), "backoff_factor");
    assert_eq!(refused(dynamic(1.0, 2.0, 0.5, 0)), "growth_interval");
    for max_norm in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39] {
        assert_eq!(refused(DeviceControl::new().with_max_norm(max_norm)), "max_norm");
    }
    let model = model(AdaMod::new(), propagating(), &[4]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let ids = engine.ids.clone();
    let buffers = engine.buffers.clone();
    let updates = engine.updates(&buffers);
    for step in [Step::all(), Step::of(&ids), Step::at(&updates)] {
        for half in [step.norm(), step.after_norm()] {
            let error = engine.optimizer.encode(&mut gpu().encoder(), &half).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NoNorm), "{error}");
            let error = engine.optimizer.submit(&half).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NoNorm), "{error}");
        }
    }
    assert_eq!(engine.optimizer.step_count(ids[0]), Some(0));
    let model = Model::new(AdaMod::new(), &[4]);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let error = engine.optimizer.encode(&mut gpu().encoder(), &Step::all().norm()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoNorm), "{error}");
    let error = engine.optimizer.read_progress().wait().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoControl), "{error}");
}

/// Runs the kernel that prepares steps by itself, and gives the coefficients of each t, group by group.
fn prepared(gpu: &Gpu, groups: &[Hyperparameters], steps: &[u32]) -> Vec<Coefficients> {
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(prepare_source().into()),
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("prepare"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[("LANES", 64.0)],
            ..Default::default()
        },
        cache: None,
    });
    let row = |group: usize| vec![Row { group: group as u32, activity: ACTIVE }; steps.len()];
    let rows: Vec<_> = (0..groups.len()).flat_map(row).collect();
    let before: Vec<u32> = groups.iter().flat_map(|_| steps.iter().map(|t| t - 1)).collect();
    let control = ControlWords { loss_scale: 1.0, multiplier: 1.0, ..Zeroable::zeroed() };
    let head = ControlHead { control, rate_factor: 1.0, ..Zeroable::zeroed() };
    let kept = [bytemuck::bytes_of(&head), bytemuck::cast_slice(&before)].concat();
    let mut table = GroupTable::default();
    table.update(groups.iter().map(Some));
    let groups = table.bytes(0.0);
    let contents: [&[u8]; 3] = [bytemuck::cast_slice(&rows), &groups, &kept];
    let mut buffers: Vec<_> = contents
        .iter()
        .map(|bytes| {
            let buffer = gpu.buffer(bytes.len() as u64);
            gpu.queue.write_buffer(&buffer, 0, bytes);
            buffer
        })
        .collect();
    buffers.push(gpu.buffer((rows.len() * size_of::<Coefficients>()) as u64));
    let entries: Vec<_> = buffers
        .iter()
        .zip(8..)
        .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = gpu.encoder();
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    gpu.submit(encoder);
    bytemuck::pod_collect_to_vec(&gpu.read(&buffers[3]))
}

/// The names of a rule's coefficients, in the order of its WGSL structure.
fn coefficient_names(rule: RuleKind) -> Vec<String> {
    let source = prepare_source();
    let prefix = match rule {
        RuleKind::AdaMod => "AdaMod",
        RuleKind::Adam => "Adam",
        rule => panic!("the test does not know {rule}"),
    };
    let start = source.find(&format!("struct {prefix}Coefficients {{")).unwrap();
    let (_, members) = source[start..].split_once('{').unwrap();
    let (members, _) = members.split_once('}').unwrap();
    members.lines().filter_map(|line| line.trim().strip_suffix(": f32,")).map(str::to_owned).collect()
}

/// AdaMod in both variants of its formula and Adam, with decay rates of the paper and beyond.
fn rules_with_decay_rates() -> Vec<(Rule, [f64; 3])> {
    let mut all = Vec::new();
    for betas in [
        [0.9, 0.999, 0.9999],
        [0.9, 0.98, 0.999],
        [0.9, 0.999, 0.99],
        [0.9, 0.999, 0.9],
        [0.0, 0.5, 0.99999],
        [0.9, 0.999, 0.3],
        [0.99, 0.9999, 0.0],
    ] {
        let [beta1, beta2, _] = betas;
        for rule in rules() {
            all.push(match rule {
                Rule::AdaMod(rule) => (rule.with_betas(betas).into(), betas),
                Rule::Adam(rule) => (rule.with_betas([beta1, beta2]).into(), [beta1, beta2, 0.0]),
                _ => continue,
            });
        }
    }
    all
}

/// For all betas of the paper and t up to 10^7, against f64.
#[test]
fn coefficients_of_the_device_agree_with_f64() {
    let mut steps: Vec<u32> = (1..=300).collect();
    steps.extend([
        511, 512, 513, 1023, 4095, 65_535, 65_536, 99_999, 1_000_000, 8_388_607, 9_999_999, 10_000_000,
    ]);
    let one_minus_power =
        |beta: f64, t: u64| if beta == 0.0 { 1.0 } else { -(beta.ln() * t as f64).exp_m1() };
    for (rule, betas) in rules_with_decay_rates() {
        let names = coefficient_names(rule.kind());
        let hyperparameters = Hyperparameters::from(rule)
            .with_learning_rate(f64::from(1e-3_f32))
            .with_weight_decay(WeightDecay::Coupled(0.25))
            .with_cautious(true);
        let base = coefficient_row(&hyperparameters, u64::MAX);
        // One that is not above zero is what is left to 1, negated.
        let from_old = |weight: f64| if weight > 0.0 { weight } else { 1.0 + weight };
        let found = prepared(gpu(), &[hyperparameters], &steps);
        for (&t, found) in steps.iter().zip(found) {
            let corrections = betas.map(|beta| one_minus_power(beta, t.into()));
            let alpha = f64::from(1e-3_f32);
            let (step_size, first, second) = match rule {
                Rule::AdaMod(AdaMod { formula: Formula::AuthorsCode, .. }) => {
                    (alpha * corrections[1].sqrt() / corrections[0], 1.0, 1.0)
                }
                _ => (alpha, 1.0 / corrections[0], 1.0 / corrections[1]),
            };
            let computed = [
                ("step_size", step_size),
                ("exp_avg_correction", first),
                ("exp_avg_sq_correction", second),
                ("debiased_lr_scale", corrections[2]),
                ("debiased_lr_weight", (1.0 - betas[2]) / corrections[2]),
            ];
            for (index, name) in names.iter().enumerate() {
                let mut value = f64::from(found.of_rule[index]);
                let Some((_, expected)) = computed.iter().find(|(of, _)| of == name) else {
                    assert_eq!(found.of_rule[index], base.of_rule[index], "{name} of {rule:?}");
                    continue;
                };
                if name == "debiased_lr_weight" {
                    // Nothing of the old average is left.
                    assert!(value == 0.0 || t > 1 && betas[2] > 0.0, "t = {t}, {rule:?}");
                    value = from_old(value);
                }
                let error = value / expected - 1.0;
                assert!(error.abs() < 1e-6, "{name} of t = {t}, {rule:?}: off by {error:e}");
            }
            assert_eq!((found.step, found.activity), (t, ACTIVE));
            assert_eq!((found.gradient_scale, found.coupled_decay), (1.0, 0.25));
            assert_eq!((found.decoupled_decay, found.options), (0.0, base.options));
        }
    }
}

/// For all rules and t up to 10^7, against those that the host computes in f64. Measured on lavapipe: at most 6e-7.
#[test]
fn coefficients_of_the_device_agree_with_those_of_the_host() {
    let mut steps: Vec<u32> = (1..=300).collect();
    steps.extend([511, 512, 513, 1023, 4095, 65_535, 65_536, 1_000_000, 8_388_607, 10_000_000]);
    let numbers = [
        ("betas[0]", [0.0, 0.9, 0.99]),
        ("betas[1]", [0.5, 0.98, 0.9999]),
        ("betas[2]", [0.0, 0.3, 0.9999]),
        ("momentum_decay", [0.0, 1e-3, 1.0]),
        ("gamma", [1e-4, 0.5, 1.0]),
    ];
    let with = |rule: Rule, case: usize| {
        let mut rule = rule;
        numbers.iter().for_each(|(name, values)| _ = rule.set_hyperparameter(name, values[case]));
        Hyperparameters::from(rule).with_cautious(case == 1)
    };
    let all: Vec<_> = rules().into_iter().flat_map(|rule| (0..3).map(move |case| with(rule, case))).collect();
    let found = prepared(gpu(), &all, &steps);
    for (hyperparameters, found) in all.iter().zip(found.chunks(steps.len())) {
        for (&t, found) in steps.iter().zip(found) {
            let expected = coefficient_row(hyperparameters, t.into());
            assert_eq!((found.step, found.options), (expected.step, expected.options));
            for (index, (found, expected)) in found.of_rule.iter().zip(expected.of_rule).enumerate() {
                // What is left of an old average may be zero.
                let error = f64::from(found - expected).abs() / f64::from(expected.abs()).max(1e-9);
                let what = format!("coefficient {index} of t = {t}, {:?}", hyperparameters.rule);
                assert!(error < 1e-6, "{what}: {found:e}, expected {expected:e}");
            }
        }
    }
}

//! The norm of the gradients of a step.

mod common;

use std::sync::OnceLock;

use adamod::{
    AdaMod, Control, DType, DeviceControl, Hyperparameters, LossScale, NormDispatch, Options, Sgd,
    StateFormat, Step, Workgroups,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use common::{Engine, Gpu, Kind, Layout, Model, all, gpu, lay_out_kinds};

const LAYOUTS: [Layout; 6] = [
    Layout::TwoPools(16),
    Layout::TwoPools(4),
    Layout::OnePool(256),
    Layout::OnePool(4),
    Layout::OwnBuffers,
    Layout::Mixed,
];
const WORKGROUPS: [Workgroups; 2] = [Workgroups::Gpu, Workgroups::Cpu];

/// A device whose bindings are too small for some tensors, which are cut.
fn small_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        Gpu::with_limits(|limits| wgpu::Limits { max_storage_buffer_binding_size: 5 << 18, ..limits })
    })
}

fn model(tensors: &[(Kind, usize)], workgroups: Workgroups) -> Model {
    let control = Control::Device(DeviceControl::new());
    let options = Options::new().with_control(control).with_workgroups(workgroups);
    Model::of_kinds(AdaMod::new(), tensors).with_options(options)
}

/// The norm of these gradients, and the number of launches, with tensors in this layout and registered in this order.
fn norm_of(
    gpu: &'static Gpu,
    model: &Model,
    gradients: &[Vec<f32>],
    layout: Layout,
    order: &[usize],
) -> (f32, usize) {
    let (locations, sizes) = lay_out_kinds(&model.kinds(), layout);
    let mut engine = Engine::with_order(gpu, model, locations, &sizes, order);
    engine.write_gradients(&all(gradients));
    engine.record(&Step::all().norm());
    let norm = engine.optimizer.read_progress().wait().unwrap().norm;
    (norm, engine.optimizer.launches().len())
}

fn norm_in_f64(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_norm_has_the_same_bits_wherever_tensors_lie_and_however_they_are_cut() {
    let lengths = [1500, 3, 700, 33, 5000, 4, 1025, 20_000, 257, 1, 2048, 500_000, 7, 400_000];
    let tensors: Vec<_> = lengths
        .into_iter()
        .enumerate()
        .map(|(index, len)| (Kind { gradients: DType::ALL[index % 3], ..Kind::f32() }, len))
        .collect();
    let in_order: Vec<_> = (0..tensors.len()).collect();
    let mut orders = [in_order.clone(), in_order.clone().into_iter().rev().collect(), in_order];
    orders[2].shuffle(&mut StdRng::seed_from_u64(1));
    for workgroups in WORKGROUPS {
        let model = model(&tensors, workgroups);
        for seed in 0..2 {
            let gradients = model.gradients(seed);
            let mut all_launches = Vec::new();
            let mut norms = Vec::new();
            for (layout, order) in LAYOUTS.iter().zip(orders.iter().cycle()) {
                for gpu in [gpu(), small_gpu()] {
                    let (norm, launches) = norm_of(gpu, &model, &gradients, *layout, order);
                    norms.push(norm);
                    all_launches.push(launches);
                }
            }
            assert!(all_launches.contains(&1) && all_launches.iter().any(|&of| of > tensors.len()));
            assert!(norms.iter().all(|norm| norm.to_bits() == norms[0].to_bits()), "{norms:?}");
            let error = f64::from(norms[0]) / norm_in_f64(&gradients) - 1.0;
            assert!(error.abs() < 2_f64.powi(-22), "{error:e}");
        }
    }
}

/// Numbers of a sign each, with exponents in this range.
fn numbers(rng: &mut StdRng, len: usize, exponents: [i32; 2]) -> Vec<f32> {
    let number = |_| {
        let exponent = rng.random_range(exponents[0]..=exponents[1]);
        let number = (rng.random_range(1.0..2.0) * f64::from(exponent).exp2()) as f32;
        if rng.random() { number } else { -number }
    };
    (0..len).map(number).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Of all magnitudes that f32 has, alike or not.
    #[test]
    fn a_norm_is_exact_and_has_the_same_bits_in_any_order(
        lengths in prop::collection::vec(prop_oneof![1_usize..3000, 3000_usize..50_000], 1..8),
        exponents in prop::sample::select(vec![
            [-149, -127], [-110, -90], [-60, 0], [-3, 3], [0, 63], [-40, 120], [-149, 120], [100, 118],
        ]),
        has_outlier in any::<bool>(),
        layouts in prop::sample::subsequence(LAYOUTS.to_vec(), 3),
        workgroups in prop::sample::select(WORKGROUPS.to_vec()),
        seed in any::<u64>(),
    ) {
        // Other devices may flush subnormal numbers to zero.
        let exponents = exponents.map(|exponent| if gpu().is_exact() { exponent } else { exponent.max(-126) });
        let rng = &mut StdRng::seed_from_u64(seed);
        let tensors: Vec<_> = lengths.iter().map(|&len| (Kind::f32(), len)).collect();
        let model = model(&tensors, workgroups);
        let mut gradients: Vec<_> = lengths.iter().map(|&len| numbers(rng, len, exponents)).collect();
        if has_outlier {
            // Far above all others, but not so far that they do not matter.
            let last = gradients.last_mut().unwrap();
            let outlier = 20 + exponents[1];
            last[0] = f64::from(outlier.min(118)).exp2() as f32;
        }
        let mut order: Vec<_> = (0..lengths.len()).collect();
        let norms: Vec<_> = layouts
            .into_iter()
            .map(|layout| {
                order.shuffle(rng);
                norm_of(gpu(), &model, &gradients, layout, &order).0
            })
            .collect();
        prop_assert!(norms.iter().all(|norm| norm.to_bits() == norms[0].to_bits()), "{norms:?}");
        let expected = norm_in_f64(&gradients);
        let error = (f64::from(norms[0]) - expected).abs();
        let allowed = 2_f64.powi(-22) * expected + 2_f64.powi(-149);
        prop_assert!(error <= allowed, "{:e} instead of {expected:e}", norms[0]);
    }
}

/// One element that is not finite, in whichever lane, chunk and launch.
#[test]
fn every_element_that_is_not_finite_is_found() {
    let tensors = [(Kind::f32(), 3000), (Kind::f32(), 1), (Kind::f32(), 33)];
    for workgroups in WORKGROUPS {
        let model = model(&tensors, workgroups);
        for (layout, exponent) in [(Layout::TwoPools(16), 0), (Layout::OwnBuffers, 118)] {
            let (locations, sizes) = lay_out_kinds(&tensors, layout);
            let mut engine = Engine::with_order(gpu(), &model, locations, &sizes, &[0, 1, 2]);
            let mut norm = |gradients: &[Vec<f32>]| {
                engine.write_gradients(&all(gradients));
                engine.record(&Step::all().norm());
                engine.optimizer.read_progress().wait().unwrap().norm
            };
            let rng = &mut StdRng::seed_from_u64(2);
            let gradients: Vec<_> =
                tensors.iter().map(|&(_, len)| numbers(rng, len, [exponent; 2])).collect();
            let finite = norm(&gradients);
            assert!(finite.is_finite());
            for (tensor, element) in [(0, 0), (0, 1023), (0, 1024), (0, 2999), (1, 0), (2, 32), (2, 17)] {
                let mut gradients = gradients.clone();
                gradients[tensor][element] = if element % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
                assert_eq!(norm(&gradients), f32::INFINITY);
            }
            assert_eq!(norm(&gradients), finite);
            assert_eq!(norm(&gradients.iter().map(|of| vec![0.0; of.len()]).collect::<Vec<_>>()), 0.0);
        }
    }
}

/// The norm is 2^130, past f32, though all gradients are small: steps are clipped to a norm of 2^120 all the same.
#[test]
fn a_norm_past_f32_of_many_small_gradients_clips_as_others_do() {
    const LEN: usize = 1 << 20;
    let loss_scale = LossScale::Constant(f32::MIN_POSITIVE.into());
    let control = DeviceControl::new().with_loss_scale(loss_scale).with_max_norm(2_f64.powi(120));
    for workgroups in WORKGROUPS {
        let hyperparameters = Hyperparameters::from(Sgd::new().with_momentum(0.0)).with_learning_rate(1.0);
        let options = Options::new().with_control(Control::Device(control)).with_workgroups(workgroups);
        let mut model = Model::new(hyperparameters, &[LEN]).with_options(options);
        model.tensors[0].values.fill(0.0);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        engine.step(&[Some(&vec![2_f32.powi(-6); LEN])]);
        assert_eq!(engine.optimizer.read_progress().wait().unwrap().norm, f32::MAX);
        // 2^120 over the root of the number of elements, which is 2^10.
        let expected = -(2_f32.powi(110));
        for value in engine.values(0) {
            assert!((value / expected - 1.0).abs() < 1e-6, "{value:e} instead of {expected:e}");
        }
    }
}

/// Values, states and progress after six steps with a clip and a loss scale, one of them with an infinite gradient. In one recording, or in
/// halves around the norm.
fn after_steps(layout: Layout, options: &Options, in_halves: bool) -> (Vec<Vec<u32>>, String) {
    let kinds = [Kind::f32(), Kind { state: StateFormat::Bf16, ..Kind::f32() }];
    let tensors: Vec<_> =
        [1500, 7, 1024, 33].into_iter().enumerate().map(|(i, len)| (kinds[i % 2], len)).collect();
    let mut model = model(&tensors, Workgroups::Auto);
    model.options = options.clone();
    let mut engine = Engine::new(small_gpu(), &model, layout);
    let mut rng = StdRng::seed_from_u64(3);
    for step in 0..6 {
        let mut gradients: Vec<_> =
            tensors.iter().map(|(_, len)| numbers(&mut rng, *len, [-20, 20])).collect();
        if step == 3 {
            gradients[1][6] = f32::INFINITY;
        }
        engine.write_gradients(&all(&gradients));
        if in_halves {
            engine.record(&Step::all().norm());
            engine.record(&Step::all().after_norm());
        } else {
            engine.record(&Step::all());
        }
    }
    let values =
        (0..tensors.len()).map(|i| engine.values(i).into_iter().map(f32::to_bits).collect()).collect();
    (values, format!("{:?}", engine.optimizer.read_progress().wait().unwrap()))
}

#[test]
fn a_norm_from_a_dispatch_of_its_own_has_the_same_bits() {
    let control = DeviceControl::new().with_max_norm(1e3).with_loss_scale(LossScale::DYNAMIC);
    let options = |dispatch, workgroups| {
        Options::new()
            .with_control(Control::Device(control))
            .with_norm_dispatch(dispatch)
            .with_workgroups(workgroups)
    };
    for layout in [Layout::TwoPools(16), Layout::OwnBuffers] {
        for workgroups in WORKGROUPS {
            for in_halves in [false, true] {
                let [fused, separate] = [NormDispatch::Fused, NormDispatch::Separate]
                    .map(|dispatch| after_steps(layout, &options(dispatch, workgroups), in_halves));
                assert!(fused.1.contains("skipped: 1"), "{}", fused.1);
                assert_eq!(fused, separate, "{layout:?}, {workgroups:?}, in halves: {in_halves}");
            }
        }
    }
}

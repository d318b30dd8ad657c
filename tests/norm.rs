//! The norm of the gradients of a step.

mod common;

use adamod::{AdaMod, Control, DeviceControl, Hyperparameters, LossScale, Options, Sgd, Step, Workgroups};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use common::{Engine, Kind, Layout, Model, all, gpu, lay_out_kinds};

const WORKGROUPS: [Workgroups; 2] = [Workgroups::Gpu, Workgroups::Cpu];

fn model(tensors: &[(Kind, usize)], workgroups: Workgroups) -> Model {
    let control = Control::Device(DeviceControl::new());
    let options = Options::new().with_control(control).with_workgroups(workgroups);
    Model::of_kinds(AdaMod::new(), tensors).with_options(options)
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

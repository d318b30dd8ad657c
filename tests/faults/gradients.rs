//! Non-finite gradients: they propagate only to their own elements, or the step is skipped.

use adamod::{
    AdaMod, Control, DType, DeviceControl, LossScale, MasterWeights, NonFinite, Options, Rule, StateFormat,
};

use crate::common::{Engine, Kind, Layout, Model, gpu, offers, rules_by_states};

const LEN: usize = 200;
/// Elements with a NaN, an infinity, and a negative infinity.
const BAD: [usize; 3] = [3, 70, 199];

/// An engine with one tensor of zeros.
fn engine(rule: Rule, control: Control, kind: Kind) -> Engine<'static> {
    let mut model = Model::of_kinds(rule, &[(kind, LEN)]).with_options(Options::new().with_control(control));
    model.tensors[0].values.fill(0.0);
    Engine::new(gpu(), &model, Layout::OwnBuffers)
}

fn step(engine: &mut Engine<'_>, bad: bool) {
    let mut numbers: Vec<f32> = (0..LEN).map(|i| 1.0 + (i as f32 * 0.37).sin()).collect();
    if bad {
        for (index, number) in BAD.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            numbers[index] = number;
        }
    }
    engine.step(&[Some(&numbers)]);
}

/// Every data type, with its most precise master weights, and every state format.
fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for dtype in DType::ALL {
        let master_weights = match dtype {
            DType::F32 => MasterWeights::None,
            DType::F16 => MasterWeights::F32,
            DType::Bf16 => MasterWeights::Split32,
            dtype => panic!("the master weights of {dtype} are unknown"),
        };
        for state in StateFormat::ALL {
            kinds.push(Kind { values: dtype, gradients: dtype, shadow: None, state, master_weights });
        }
    }
    kinds
}

fn propagating() -> [Control; 2] {
    let settings = DeviceControl::new().with_non_finite(NonFinite::Propagate);
    [Control::Host, Control::Device(settings)]
}

fn skipping() -> [Control; 3] {
    let dynamic = DeviceControl::new().with_loss_scale(LossScale::DYNAMIC);
    let clipping = DeviceControl::new().with_max_norm(1.0);
    [DeviceControl::new(), dynamic, clipping].map(Control::Device)
}

#[test]
fn non_finite_gradients_stay_with_their_elements_in_every_format() {
    for (index, rule) in rules_by_states().into_iter().enumerate() {
        // The first four have each control, and the others take turns.
        let controls = propagating().into_iter().enumerate();
        for (_, control) in controls.filter(|(number, _)| index < 4 || index % 2 == number % 2) {
            for kind in kinds().into_iter().filter(|kind| offers(&rule, kind)) {
                let (mut run, mut sound) = (engine(rule, control, kind), engine(rule, control, kind));
                for number in 0..12 {
                    step(&mut run, number == 1);
                    step(&mut sound, false);
                }
                let (values, expected) = (run.read_values(0), sound.read_values(0));
                for (index, (value, expected)) in values.iter().zip(expected).enumerate() {
                    let what = format!("{rule:?} {control:?} {kind:?}: element {index} is {value}");
                    if BAD.contains(&index) {
                        assert!(!value.is_finite(), "{what}");
                        continue;
                    }
                    // Values started at 0. An element that is not finite has no part in the scale of its quant block, so the others of the
                    // block are rounded differently. They differ by up to 2.3%.
                    let tolerance = if kind.state == StateFormat::Q8 { 0.1 * expected.abs() } else { 0.0 };
                    assert!((value - expected).abs() <= tolerance, "{what}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn a_step_with_non_finite_gradients_is_called_off_whole_where_that_was_asked() {
    for control in skipping() {
        for kind in kinds() {
            let mut run = engine(AdaMod::new().into(), control, kind);
            step(&mut run, false);
            let (values, before) = (run.read_values(0), run.state(0));
            step(&mut run, true);
            assert_eq!(run.read_values(0), values, "{control:?} {kind:?}");
            assert_eq!(run.state(0), before);
            let progress = run.optimizer.read_progress().wait().unwrap();
            assert_eq!((progress.taken, progress.skipped), (1, 1));
            step(&mut run, false);
            assert_eq!(run.state(0).step, 2);
            assert!(run.read_values(0).iter().all(|value| value.is_finite()));
        }
    }
}

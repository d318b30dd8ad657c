//! Gradients that are not finite, in every mode: they propagate into their own elements, or the step is called off.

use adamod::{
    Control, DType, DeviceControl, Hyperparameters, LossScale, MasterWeights, NonFinite, Optimizer, Options,
    Parameter, Precision, Rule, StateFormat, View, Views,
};

use crate::common::gpu;

const LEN: usize = 200;
/// Elements with a NaN, an infinity, and a negative infinity.
const BAD: [usize; 3] = [3, 70, 199];

struct Run {
    optimizer: Optimizer,
    id: adamod::ParameterId,
    gradients: wgpu::Buffer,
    dtype: DType,
}

impl Run {
    fn new(rule: Rule, control: Control, state: StateFormat, dtype: DType) -> Self {
        let (values, gradients) = (gpu().buffer(1024), gpu().buffer(1024));
        let options = Options { rule, control, ..Options::default() };
        let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, options).unwrap();
        let master_weights = match dtype {
            DType::F32 => MasterWeights::None,
            DType::F16 => MasterWeights::F32,
            DType::Bf16 => MasterWeights::Split32,
        };
        let precision = Precision { state, master_weights, f32_state_below: 0 };
        let group = optimizer.add_group_with(Hyperparameters::default(), precision).unwrap();
        let view = |buffer| View::new(buffer, 0).with_dtype(dtype);
        let views = Some(Views::new(view(&values), view(&gradients)));
        let parameter = Parameter { dtype, views, ..Parameter::new("p", LEN as u64) };
        let id = optimizer.add_parameter(group, parameter).unwrap();
        Self { optimizer, id, gradients, dtype }
    }

    fn step(&mut self, bad: bool) {
        let mut numbers: Vec<f32> = (0..LEN).map(|i| 1.0 + (i as f32 * 0.37).sin()).collect();
        if bad {
            for (index, number) in BAD.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
                numbers[index] = number;
            }
        }
        let bytes: Vec<u8> = match self.dtype {
            DType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::F16 => numbers.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bf16 => numbers.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        };
        gpu().queue.write_buffer(&self.gradients, 0, &bytes);
        self.optimizer.step().unwrap();
    }

    fn values(&self) -> Vec<f32> {
        self.optimizer.read_parameter_blocking(self.id).unwrap()
    }
}

fn propagating() -> [Control; 2] {
    let settings = DeviceControl { non_finite: NonFinite::Propagate, ..DeviceControl::default() };
    [Control::Host, Control::Device(settings)]
}

fn skipping() -> [Control; 3] {
    let dynamic = DeviceControl { loss_scale: LossScale::DYNAMIC, ..DeviceControl::default() };
    let clipping = DeviceControl { max_norm: Some(1.0), ..DeviceControl::default() };
    [Control::Device(DeviceControl::default()), Control::Device(dynamic), Control::Device(clipping)]
}

const FORMATS: [StateFormat; 3] = [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8];
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

#[test]
fn non_finite_gradients_stay_with_their_elements_in_every_format() {
    for rule in [Rule::AdaMod, Rule::Adam, Rule::Sgd] {
        for control in propagating() {
            for state in FORMATS {
                for dtype in DTYPES {
                    let mut run = Run::new(rule, control, state, dtype);
                    let mut sound = Run::new(rule, control, state, dtype);
                    for step in 0..12 {
                        run.step(step == 1);
                        sound.step(false);
                    }
                    let (values, expected) = (run.values(), sound.values());
                    for (index, (value, expected)) in values.iter().zip(expected).enumerate() {
                        let what =
                            format!("{rule:?} {control:?} {state:?} {dtype:?}: element {index} is {value}");
                        if BAD.contains(&index) {
                            assert!(!value.is_finite(), "{what}");
                            continue;
                        }
                        // All started at 0. In 8 bits the others' scale no longer counts the element that is lost: measured, by 2.3%.
                        let tolerance = if state == StateFormat::Q8 { 0.1 * expected.abs() } else { 0.0 };
                        assert!((value - expected).abs() <= tolerance, "{what}, expected {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_step_with_non_finite_gradients_is_called_off_whole_where_that_was_asked() {
    for control in skipping() {
        for state in FORMATS {
            for dtype in DTYPES {
                let mut run = Run::new(Rule::AdaMod, control, state, dtype);
                run.step(false);
                let (values, before) = (run.values(), run.optimizer.read_state_blocking(run.id).unwrap());
                run.step(true);
                assert_eq!(run.values(), values, "{control:?} {state:?} {dtype:?}");
                assert_eq!(run.optimizer.read_state_blocking(run.id).unwrap(), before);
                let progress = run.optimizer.read_progress_blocking().unwrap();
                assert_eq!((progress.taken, progress.skipped), (1, 1));
                run.step(false);
                assert_eq!(run.optimizer.read_state_blocking(run.id).unwrap().step, 2);
                assert!(run.values().iter().all(|value| value.is_finite()));
            }
        }
    }
}

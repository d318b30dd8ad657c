//! Messages of errors: they name the cause once, and the parameter where one is involved. Calls that are refused change nothing.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adamod::{
    AdaMod, CheckpointError, Control, DeviceControl, ErrorKind, Group, Optimizer, Options, OutOfRange,
    Parameter, Precision, RuleForm, RuleKind, Sgd, State, StateFormat, Step,
};

use crate::common::{Engine, Gpu, Layout, Model, all, gpu};
use crate::injection::{Fault, in_child};

/// Results of calls that have to fail.
pub trait Refused<E> {
    /// The error, whose message is checked.
    fn refused(self) -> E;
}

impl<T, E: Error + 'static> Refused<E> for Result<T, E> {
    #[track_caller]
    fn refused(self) -> E {
        match self {
            Ok(_) => panic!("the call succeeded"),
            Err(error) => checked(error),
        }
    }
}

/// Checks every message in the chain of an error: it is not empty, it does not say the same twice, and it does not contain the message
/// of its source.
#[track_caller]
pub fn checked<E: Error + 'static>(error: E) -> E {
    if let Err(fault) = check(&error) {
        panic!("{fault}");
    }
    error
}

/// Checks that a message is not empty and has no clause twice.
pub fn check_text(text: &str) -> Result<(), String> {
    let mut clauses: Vec<_> =
        text.split([':', '\n']).map(str::trim).filter(|clause| !clause.is_empty()).collect();
    clauses.sort_unstable();
    if clauses.is_empty() {
        return Err("the message is empty".to_owned());
    }
    match clauses.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => Err(format!("{text:?} says {:?} twice", twice[0])),
        None => Ok(()),
    }
}

fn check(error: &(dyn Error + 'static)) -> Result<(), String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        check_text(&text)?;
        next = error.source();
        if let Some(source) = next.map(ToString::to_string)
            && text.contains(&source)
        {
            return Err(format!("{text:?} contains its source {source:?}"));
        }
    }
    Ok(())
}

#[test]
fn messages_that_repeat_their_cause_are_noticed() {
    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Fault {
        text: &'static str,
        source: Option<Box<Fault>>,
    }
    let fault = |text, source: Option<Fault>| Fault { text, source: source.map(Box::new) };
    let check = |error: &Fault| check(error).is_ok();
    assert!(check(&fault("read: no memory", None)));
    assert!(check(&fault("read", Some(fault("no memory", None)))));
    assert!(!check(&fault("", None)));
    assert!(!check(&fault("read: no memory: no memory", None)));
    assert!(!check(&fault("read: no memory", Some(fault("no memory", None)))));
    assert!(!check(&fault("read", Some(fault("copy: no memory", Some(fault("no memory", None)))))));
}

fn model() -> Model {
    Model::new(AdaMod::new(), &[100, 2000])
}

fn controls() -> [Control; 2] {
    [Control::Host, Control::Device(DeviceControl::new())]
}

/// Calls for one parameter that fail if the device fails. They do not use its values.
type Call = fn(&mut Engine<'_>, &State) -> Result<(), adamod::Error>;
const CALLS: [Call; 3] = [
    |engine, _| engine.optimizer.read_state(engine.ids[1]).wait().map(drop),
    |engine, state| engine.optimizer.write_state(engine.ids[1], state),
    |engine, _| engine.optimizer.remove_parameter(engine.ids[1]),
];

/// Calls that read or write the values of a parameter.
const CALLS_ON_VALUES: [Call; 2] = [
    |engine, _| engine.optimizer.read_parameter(engine.ids[1]).wait().map(drop),
    |engine, _| engine.optimizer.write_parameter(engine.ids[1], &[0.0; 2000]),
];

/// An engine after a step, and the state of its second tensor.
fn stepped<'g>(gpu: &'g Gpu, model: &Model) -> (Engine<'g>, State) {
    let mut engine = Engine::new(gpu, model, Layout::TwoPools(256));
    engine.step(&all(&model.gradients(1)));
    let state = engine.state(1);
    (engine, state)
}

/// The device is out of memory or lost, or a buffer is destroyed. The error of a call for one parameter names the parameter and what
/// wgpu said.
#[test]
fn errors_of_the_device_name_the_cause_and_the_parameter() {
    in_child("errors::errors_of_the_device_name_the_cause_and_the_parameter", |layer| {
        let gpu = Gpu::with_limits(|limits| limits);
        for control in controls() {
            let model = model().with_options(Options::new().with_control(control));
            for call in CALLS.iter().chain(&CALLS_ON_VALUES) {
                let doomed = gpu.sibling();
                let (mut engine, state) = stepped(&doomed, &model);
                layer.arm(Fault::OutOfMemoryFrom(1));
                let error = call(&mut engine, &state).refused();
                layer.arm(Fault::None);
                assert_eq!(error.label(), Some("tensor.1"), "{error}");
                // wgpu may lose the device when memory runs out.
                let is_told = matches!(error.kind(), ErrorKind::Device(wgpu::Error::OutOfMemory { .. }));
                assert!(is_told || error.is_lost(), "{error}");
                let cause = if is_told { "Out of Memory" } else { "the device is lost" };
                assert!(error.to_string().starts_with("parameter \"tensor.1\": "), "{error}");
                assert!(error.to_string().contains(cause), "{error}");

                doomed.device.destroy();
                let error = call(&mut engine, &state).refused();
                assert_eq!(error.label(), Some("tensor.1"), "{error}");
                assert!(error.is_lost() || matches!(error.kind(), ErrorKind::Map(_)), "{error}");
            }
            for call in &CALLS_ON_VALUES {
                let (mut engine, state) = stepped(&gpu, &model);
                engine.buffers[0].destroy();
                let error = call(&mut engine, &state).refused();
                assert_eq!(error.label(), Some("tensor.1"), "{error}");
                assert!(matches!(error.kind(), ErrorKind::Device(_)), "{error}");
                assert!(error.to_string().starts_with("parameter \"tensor.1\": "), "{error}");
                // The message names the buffer, and says what is wrong with it.
                assert!(error.to_string().contains("'test'"), "{error}");
                assert!(error.to_string().contains("destroyed"), "{error}");
                // The error of a step of all parameters names none of them.
                let error = engine.optimizer.submit(&Step::all()).refused();
                assert_eq!(error.label(), None, "{error}");
                assert!(error.to_string().contains("destroyed"), "{error}");
            }
            // Neither does the error of a restore.
            let doomed = gpu.sibling();
            let (mut engine, _) = stepped(&doomed, &model);
            let checkpoint = engine.optimizer.checkpoint().wait().unwrap();
            doomed.device.destroy();
            let error = engine.optimizer.restore(&checkpoint).refused();
            assert!(matches!(&error, CheckpointError::Optimizer(error) if error.is_lost()), "{error}");
            assert_eq!(error.to_string(), "the device is lost");
        }
    });
}

#[test]
fn parameters_without_a_label_are_refused_and_change_nothing() {
    let mut engine = Engine::new(gpu(), &model(), Layout::TwoPools(256));
    engine.step(&all(&model().gradients(1)));
    let before = engine.optimizer.checkpoint().wait().unwrap();
    let group = engine.groups[0];
    let buffers = engine.buffers.clone();
    for parameter in [Parameter::new("", 100), Parameter::new("", 100).with_views(engine.views(0, &buffers))]
    {
        let error = engine.optimizer.add_parameter(group, parameter).refused();
        assert!(matches!(error.kind(), ErrorKind::EmptyLabel), "{error}");
        assert_eq!(error.label(), None);
    }
    assert_eq!(engine.optimizer.parameters().count(), 2);
    assert_eq!(engine.optimizer.parameter(""), None);
    assert_eq!(engine.optimizer.checkpoint().wait().unwrap(), before);
    // A space is a label.
    engine.optimizer.add_parameter(group, Parameter::new(" ", 100)).unwrap();
}

/// Parameters of a group have the states of its rule.
#[test]
fn hyperparameters_of_another_rule_are_refused_and_change_nothing() {
    for control in controls() {
        for &ours in RuleKind::ALL {
            let mut model = Model::new(ours.with_defaults(), &[100, 2000]);
            model.add_group(Sgd::new(), &[33]);
            model.options.control = control;
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
            let mut other = Engine::new(gpu(), &model, Layout::TwoPools(256));
            let group = engine.groups[0];
            for step in 1..4 {
                for &theirs in RuleKind::ALL.iter().filter(|&&theirs| theirs != ours) {
                    let error = engine.optimizer.set_hyperparameters(group, theirs.with_defaults()).refused();
                    let ErrorKind::Rule { found, expected } = *error.kind() else { panic!("{error}") };
                    assert_eq!((found, expected), (theirs, ours));
                    for name in [theirs.name(), ours.name()] {
                        assert!(error.to_string().contains(name), "{error}");
                    }
                }
                // A hyperparameter that is out of range changes nothing, either.
                let error = engine.optimizer.set_learning_rate(group, f64::NAN).refused();
                assert!(
                    matches!(error.kind(), ErrorKind::OutOfRange(OutOfRange { name: "learning_rate", .. })),
                    "{error}"
                );
                assert_eq!(engine.optimizer.group(group), Some(&model.groups[0]));
                let gradients = model.gradients(step);
                engine.step(&all(&gradients));
                other.step(&all(&gradients));
            }
            assert!(engine.bits() == other.bits(), "{ours} {control:?}");
            let checkpoints = [engine, other].map(|engine| engine.optimizer.checkpoint().wait().unwrap());
            assert_eq!(checkpoints[0], checkpoints[1]);
        }
    }
}

/// Options that choose other states are refused as another rule is.
#[test]
fn options_that_change_the_states_of_a_group_are_refused() {
    for control in controls() {
        for ours in RuleForm::all() {
            let mut model = Model::new(ours.with_defaults(), &[100]);
            model.options.control = control;
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(256));
            let others: Vec<_> = ours.rule().forms().filter(|&theirs| theirs != ours).collect();
            for theirs in others {
                let error =
                    engine.optimizer.set_hyperparameters(engine.groups[0], theirs.with_defaults()).refused();
                let ErrorKind::Form { found, expected } = *error.kind() else { panic!("{error}") };
                assert_eq!((found, expected), (theirs, ours));
                assert!(error.to_string().contains(&theirs.to_string()), "{error}");
                let other = engine.optimizer.add_group(theirs.with_defaults()).unwrap();
                let error = engine.optimizer.set_group(engine.ids[0], other).refused();
                assert!(matches!(error.kind(), ErrorKind::Form { .. }), "{error}");
            }
            engine.step(&all(&model.gradients(1)));
            assert_eq!(engine.state(0).tensors.len(), ours.states().len());
        }
    }
}

/// A rule that cannot do with few bits says so, for its group and for a single parameter.
#[test]
fn formats_of_state_that_a_rule_does_not_have_are_refused_with_the_reason() {
    let mut refused = 0;
    for form in RuleForm::all() {
        for state in StateFormat::ALL {
            let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, Options::new()).unwrap();
            let group = Group::new(form.with_defaults()).with_precision(Precision::new(state));
            let Some(reason) = form.refusal(state) else {
                optimizer.add_group(group).unwrap();
                continue;
            };
            refused += 1;
            let of_group = optimizer.add_group(group).refused();
            let group = optimizer.add_group(form.with_defaults()).unwrap();
            let of_parameter =
                optimizer.add_parameter(group, Parameter::new("weight", 8).with_state(state)).refused();
            for error in [&of_group, &of_parameter] {
                let text = error.to_string();
                assert!(matches!(error.kind(), ErrorKind::StateFormat { .. }), "{text}");
                assert!(
                    text.contains(reason) && text.contains(&form.to_string()) && text.contains(state.name()),
                    "{text}"
                );
            }
            assert_eq!(of_parameter.label(), Some("weight"));
            optimizer.add_parameter(group, Parameter::new("weight", 8)).unwrap();
        }
    }
    // Centered RMSprop with and without momentum, in two formats.
    assert_eq!(refused, 4);
}

/// The error of wgpu goes to the other device. Its default handler panics; a handler of the caller's may do anything.
#[test]
fn a_queue_of_another_device_is_refused() {
    let (panicking, handled) = (gpu().sibling(), gpu().sibling());
    let errors = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&errors);
    handled.device.on_uncaptured_error(Arc::new(move |_| _ = counted.fetch_add(1, Ordering::Relaxed)));
    for other in [&panicking, &handled] {
        for options in controls().map(|control| Options::new().with_control(control)) {
            let error = Optimizer::new(&gpu().device, &other.queue, options).refused();
            assert!(matches!(error.kind(), ErrorKind::Queue), "{error}");
        }
        // Both devices still work.
        for gpu in [gpu(), other] {
            let mut engine = Engine::new(gpu, &model(), Layout::TwoPools(256));
            engine.step(&all(&model().gradients(1)));
            assert_eq!(engine.state(0).step, 1);
        }
    }
    assert_eq!(errors.load(Ordering::Relaxed), 2);
}

#[test]
fn an_optimizer_on_a_lost_device_is_refused_and_the_error_says_so() {
    let gpu = Gpu::with_limits(|limits| limits);
    gpu.device.destroy();
    let error = Optimizer::new(&gpu.device, &gpu.queue, Options::new()).refused();
    assert!(error.is_lost(), "{error}");
    assert_eq!(error.to_string(), "the device is lost");
}

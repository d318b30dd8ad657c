//! States of optimizers in Burn's records: the core's own, and those of Burn's optimizers that the core has a rule for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use adamod::{ErrorKind, GroupId, Optimizer, ParameterId, RuleForm, State};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{DynOptimizer, DynState, LearningRate, OptimizerRecord, SgdConfig, StateSink, StateSource};
use burn::tensor::kind::BridgeTensor;
use burn::tensor::{Device, Tensor, TensorData};

use crate::error::Error;
use crate::parameters::{Known, Registry};

/// Name of the step count in a record of the core's.
const STEP: &str = "step";

/// Writes the core's state of a parameter into a record.
pub(crate) fn write(state: State, prefix: &str, out: &mut StateSink) {
    out.push_scalar(prefix, STEP, state.step.into());
    for (name, elements) in state.tensors {
        let shape = [elements.len()];
        out.push_tensor(prefix, name, TensorData::new(elements, shape));
    }
}

/// Reads the state of a parameter from a record.
///
/// # Errors
/// Why it cannot be continued.
pub(crate) fn read(prefix: &str, source: &mut StateSource) -> Result<State, String> {
    if let Some(step) = source.take_scalar(prefix, STEP) {
        let step = u64::try_from(step).map_err(|_| format!("{STEP} is {step:?}, expected a count"))?;
        let mut tensors = Vec::new();
        // Rules share names. Whichever rule comes first takes the tensor out of the source.
        for name in RuleForm::all().flat_map(RuleForm::state_names) {
            if let Some(data) = source.take_tensor(prefix, name) {
                tensors.push((name, elements(data)?));
            }
        }
        return Ok(State::new(step, tensors));
    }
    for OfBurn { step_count, always, optional } in OF_BURN {
        let Some(data) = source.take_tensor(prefix, always.0) else { continue };
        let step = match step_count {
            None => 1,
            Some(count) => {
                let found = source.take_scalar(prefix, count);
                let step = found.and_then(|found| u64::try_from(found).ok());
                step.ok_or_else(|| format!("{count} is {found:?}, expected a count"))?
            }
        };
        let mut tensors = vec![(always.1, elements(data)?)];
        for (of_burn, of_core) in optional {
            if let Some(data) = source.take_tensor(prefix, of_burn) {
                tensors.push((*of_core, elements(data)?));
            }
        }
        return Ok(State::new(step, tensors));
    }
    Err("it has no state of adamod or of Burn's Adam, AdamW, SGD with momentum, RMSprop, AdaGrad or Lion"
        .to_owned())
}

/// Names of an optimizer's states, in Burn and in the core.
struct OfBurn {
    /// The step count, if Burn counts. Where it does not, only the first step differs from the others, and a record is of a later one.
    step_count: Option<&'static str>,
    /// The state that each record has.
    always: (&'static str, &'static str),
    /// The states that only some configurations have.
    optional: &'static [(&'static str, &'static str)],
}

/// The states of Burn's optimizers. Averages are those before bias correction, in Burn as in the core.
const OF_BURN: [OfBurn; 5] = [
    // Adam and AdamW.
    OfBurn {
        step_count: Some("momentum.time"),
        always: ("momentum.moment_1", "exp_avg"),
        optional: &[("momentum.moment_2", "exp_avg_sq"), ("momentum.max_moment_2", "max_exp_avg_sq")],
    },
    // SGD.
    OfBurn { step_count: None, always: ("momentum.velocity", "momentum_buffer"), optional: &[] },
    // RMSprop.
    OfBurn {
        step_count: None,
        always: ("square_avg.square_avg", "square_avg"),
        optional: &[("momentum.buf", "momentum_buffer"), ("centered.grad_avg", "grad_avg")],
    },
    // AdaGrad.
    OfBurn { step_count: Some("lr_decay.time"), always: ("lr_decay.sum", "sum"), optional: &[] },
    // Lion.
    OfBurn { step_count: None, always: ("momentum", "exp_avg"), optional: &[] },
];

fn elements(data: TensorData) -> Result<Vec<f32>, String> {
    data.convert::<f32>().try_into_vec().map_err(|error| format!("{error:?}"))
}

/// States, or why they cannot be continued, by Burn's ids of parameters.
pub(crate) type States = HashMap<ParamId, Result<State, String>>;

/// Reads all states of a record. Its fields are private to Burn, which hands the states to an optimizer when it loads the record.
pub(crate) fn states_of(record: OptimizerRecord) -> Result<States, Error> {
    let reader = Reader::default();
    let states = reader.states.clone();
    drop(SgdConfig::new().init().with_group(ParamGroup::all(), reader, None).load_record(record));
    let read = std::mem::take(&mut *states.lock().unwrap_or_else(PoisonError::into_inner));
    read.into_iter()
        .map(|(id, state)| match id.parse::<u64>() {
            Ok(number) => Ok((ParamId::from(number), state)),
            Err(_) => Err(Error::Record { label: id, what: "expected a number as its id".to_owned() }),
        })
        .collect()
}

/// An optimizer that only notes the states that it is to load.
#[derive(Default)]
struct Reader {
    states: Arc<Mutex<Read>>,
}

/// States by prefix.
type Read = Vec<(String, Result<State, String>)>;

impl DynOptimizer for Reader {
    fn step_dyn(
        &self,
        _rank: usize,
        _lr: LearningRate,
        tensor: BridgeTensor,
        _grad: BridgeTensor,
        state: Option<DynState>,
    ) -> (BridgeTensor, Option<DynState>) {
        (tensor, state)
    }

    fn to_device_dyn(&self, state: DynState, _device: &Device) -> DynState {
        state
    }

    fn state_flatten(&self, _prefix: &str, _state: &DynState, _out: &mut StateSink) {}

    fn state_unflatten(
        &self,
        _rank: usize,
        prefix: &str,
        source: &mut StateSource,
        _device: &Device,
    ) -> Option<DynState> {
        let state = read(prefix, source);
        self.states.lock().unwrap_or_else(PoisonError::into_inner).push((prefix.to_owned(), state));
        None
    }
}

/// A state and the parameter that it belongs to.
pub(crate) struct Restored {
    pub label: String,
    pub parameter: ParameterId,
    pub group: GroupId,
    pub elements: usize,
    pub state: State,
}

impl Restored {
    /// Checks what the core would refuse, before any state changes.
    pub fn check(&self, core: &Optimizer) -> Result<(), Error> {
        let unknown = || adamod::Error::from(ErrorKind::UnknownGroup);
        let rule = core.group(self.group).ok_or_else(unknown)?.hyperparameters.rule;
        let refused = |what| Err(Error::Record { label: self.label.clone(), what });
        let expected: Vec<_> = rule.state_names().collect();
        let found: Vec<_> = self.state.tensors.iter().map(|&(name, _)| name).collect();
        if found.len() != expected.len() || !expected.iter().all(|name| found.contains(name)) {
            return refused(format!("it has the states {found:?}, expected {expected:?} of {}", rule.kind()));
        }
        for (name, tensor) in &self.state.tensors {
            if tensor.len() != self.elements {
                return refused(format!("{name} has {} elements, expected {}", tensor.len(), self.elements));
            }
        }
        Ok(())
    }
}

/// Finds the parameters of states in a module, and registers them.
///
/// # Errors
/// If a state cannot be continued, or the module has no parameter for it.
pub(crate) fn match_parameters<M: Module>(
    registry: Registry<'_>,
    states: States,
    module: &M,
) -> Result<Vec<Restored>, Error> {
    let mut visitor = Match { registry, states, path: Vec::new(), outcome: Ok(Vec::new()) };
    module.visit(&mut visitor);
    let restored = visitor.outcome?;
    match visitor.states.into_keys().next() {
        None => Ok(restored),
        Some(id) => {
            let what =
                "the module has no parameter with this id; load the module from its record first".to_owned();
            Err(Error::Record { label: id.val().to_string(), what })
        }
    }
}

struct Match<'a> {
    registry: Registry<'a>,
    states: States,
    path: Vec<String>,
    outcome: Result<Vec<Restored>, Error>,
}

impl ModuleVisitor for Match<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Ok(restored) = &mut self.outcome else { return };
        let Some(state) = self.states.remove(&param.id) else { return };
        let label = self.path.join(".");
        let value = param.base();
        let elements = value.shape().num_elements();
        let known = match state {
            Ok(state) => self
                .registry
                .parameter(param.id, &label, &value.shape(), value.dtype())
                .map(|known| (known, state)),
            Err(what) => Err(Error::Record { label: label.clone(), what }),
        };
        match known {
            Ok((Known { parameter, group, .. }, state)) => {
                restored.push(Restored { label, parameter, group, elements, state });
            }
            Err(error) => self.outcome = Err(error),
        }
    }
}

//! A step walks through a module twice: once to take the values out, and once to put the new ones in.

use std::collections::HashMap;

use adamod::{GroupId, Parameter, ParameterId};
use burn::backend::wgpu::Wgpu;
use burn::grad_clipping::GradientClipping;
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradAdaptor;
use burn::tensor::{DType, Device, Shape, Tensor};

use crate::backend::Primitive;
use crate::error::Error;
use crate::optimizer::ModuleGroup;
use crate::shared::{Job, Shared, core_dtype};

/// A parameter that has been registered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub parameter: ParameterId,
    pub group: GroupId,
    /// Burn's id of the module's parameter.
    pub id: ParamId,
    /// Length of the first axis.
    pub rows: usize,
    pub elements: usize,
    dtype: DType,
}

/// Parameters that have been registered, by path.
pub(crate) type KnownParameters = HashMap<String, Known>;

/// Factors of the learning rates of columns, by path.
pub(crate) type ColumnFactors = HashMap<String, Vec<f32>>;

/// Registers parameters in the first group that takes them.
pub(crate) struct Registry<'a> {
    pub shared: &'a Shared,
    pub groups: &'a [ModuleGroup],
    pub known: &'a mut KnownParameters,
    pub factors: &'a ColumnFactors,
}

impl Registry<'_> {
    pub fn parameter(
        &mut self,
        id: ParamId,
        label: &str,
        shape: &Shape,
        dtype: DType,
    ) -> Result<Known, Error> {
        let (rows, elements) = (shape.first().copied().unwrap_or(1), shape.num_elements());
        if let Some(known) = self.known.get_mut(label) {
            // A module that was made or loaded anew has other ids.
            known.id = id;
            return if (known.elements, known.dtype) == (elements, dtype) {
                known.rows = rows;
                Ok(*known)
            } else {
                let describe = |elements, dtype| format!("{elements} elements of type {dtype:?}");
                Err(Error::Changed {
                    label: label.to_owned(),
                    found: describe(elements, dtype),
                    expected: describe(known.elements, known.dtype),
                })
            };
        }
        let group = self.groups.iter().find(|group| group.members.has(id, label));
        let group = group.ok_or_else(|| Error::NoGroup { label: label.to_owned() })?.id;
        let dtype_of_core = supported(label, "value", dtype)?;
        let parameter = Parameter::new(label, elements as u64).with_dtype(dtype_of_core);
        let mut core = self.shared.core();
        let parameter = core.add_parameter(group, parameter)?;
        if let Some(factors) = self.factors.get(label)
            && let Err(error) = core.set_column_factors(parameter, factors)
        {
            core.remove_parameter(parameter)?;
            return Err(error.into());
        }
        let known = Known { parameter, group, id, rows, elements, dtype };
        self.known.insert(label.to_owned(), known);
        Ok(known)
    }
}

fn supported(label: &str, role: &'static str, found: DType) -> Result<adamod::DType, Error> {
    core_dtype(found).ok_or_else(|| Error::DType { label: label.to_owned(), role, found })
}

/// The autodiff settings of a parameter. A step works on tensors without autodiff and restores them afterwards.
pub(crate) struct Autodiff {
    strategy: Option<burn::backend::GradientCheckpointingStrategy>,
    requires_grad: bool,
    is_distributed: bool,
}

impl Autodiff {
    pub fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        Self {
            strategy: tensor.gradient_checkpointing_strategy(),
            requires_grad: tensor.is_require_grad(),
            is_distributed: tensor.is_distributed(),
        }
    }

    pub fn restore<const D: usize>(self, tensor: Tensor<D>, id: ParamId) -> Tensor<D> {
        let Some(strategy) = self.strategy else { return tensor };
        let tensor = tensor.autodiff().with_gradient_checkpointing_strategy(strategy);
        let tensor = tensor.set_require_grad(self.requires_grad);
        if self.is_distributed { tensor.set_distributed(id) } else { tensor }
    }
}

/// A parameter whose value was taken out.
pub(crate) struct Taken {
    id: ParamId,
    autodiff: Autodiff,
}

/// Takes the values of parameters with gradients out of a module. Stops at the first error.
pub(crate) struct Take<'a> {
    registry: Registry<'a>,
    device: Device,
    /// `None` for the groups' own rates.
    learning_rates: Option<ModuleLearningRate>,
    gradients: GradAdaptor,
    path: Vec<String>,
    taken: Vec<Taken>,
    jobs: Vec<Job<Primitive>>,
    error: Option<Error>,
}

impl<'a> Take<'a> {
    pub fn new(
        registry: Registry<'a>,
        learning_rates: Option<ModuleLearningRate>,
        gradients: GradAdaptor,
    ) -> Self {
        let device = registry.shared.gpu.device();
        Self {
            registry,
            device,
            learning_rates,
            gradients,
            path: Vec::new(),
            taken: Vec::new(),
            jobs: Vec::new(),
            error: None,
        }
    }

    pub fn finish(self) -> (Vec<Taken>, Vec<Job<Primitive>>, Option<Error>) {
        (self.taken, self.jobs, self.error)
    }

    /// Checks a parameter and its gradient. `None` for a parameter without elements, which has nothing to step.
    fn check<const D: usize>(
        &mut self,
        id: ParamId,
        value: &Tensor<D>,
        gradient: Tensor<D>,
    ) -> Result<Option<Checked<D>>, Error> {
        let label = self.path.join(".");
        if value.device() != self.device {
            let name = |device: &Device| format!("{device:?}");
            return Err(Error::Device { label, found: name(&value.device()), expected: name(&self.device) });
        }
        supported(&label, "value", value.dtype())?;
        supported(&label, "gradient", gradient.dtype())?;
        let (found, expected) = (gradient.shape(), value.shape());
        if found != expected {
            return Err(Error::Shape { label, found, expected });
        }
        if expected.num_elements() == 0 {
            return Ok(None);
        }
        let Known { parameter, group, .. } = self.registry.parameter(id, &label, &expected, value.dtype())?;
        let of = self.registry.groups.iter().find(|of| of.id == group);
        let of = of.ok_or_else(|| Error::NoGroup { label: label.clone() })?;
        let hyperparameters = of.group.hyperparameters;
        let learning_rate = match &self.learning_rates {
            None => hyperparameters.learning_rate,
            Some(rates) => rates.lr_from_param(id, Some(&label)),
        };
        hyperparameters.with_learning_rate(learning_rate).validate().map_err(adamod::Error::from)?;
        let gradient = gradient.inner();
        let gradient =
            if gradient.device() == self.device { gradient } else { gradient.to_device(&self.device) };
        let gradient = clipped(of.clipping.as_ref(), gradient);
        Ok(Some(Checked { parameter, group, learning_rate, gradient }))
    }
}

/// A parameter that can be stepped.
struct Checked<const D: usize> {
    parameter: ParameterId,
    group: GroupId,
    learning_rate: f64,
    gradient: Tensor<D>,
}

/// The gradient after Burn's own clipping, which is tensor operations on the device.
fn clipped<const D: usize>(clipping: Option<&GradientClipping>, gradient: Tensor<D>) -> Tensor<D> {
    match clipping {
        None => gradient,
        Some(clipping) => clipping.clip_gradient(gradient),
    }
}

impl ModuleMapper for Take<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let Some((gradient, _)) = self.gradients.remove::<D>(param.id) else { return param };
        let (id, value, mapper) = param.consume();
        let checked = match self.check(id, &value, gradient) {
            Ok(Some(checked)) => checked,
            Ok(None) => return Param::from_mapped_value(id, value, mapper),
            Err(error) => {
                self.error = Some(error);
                return Param::from_mapped_value(id, value, mapper);
            }
        };
        let Checked { parameter, group, learning_rate, gradient } = checked;
        let autodiff = Autodiff::of(&value);
        match (primitive(&value), primitive(&gradient)) {
            (Ok(of_value), Ok(of_gradient)) => {
                // Dropped before the step, so that a value to which nothing else refers is updated in place.
                drop(value);
                self.taken.push(Taken { id, autodiff });
                self.jobs.push(Job {
                    parameter,
                    group,
                    learning_rate,
                    value: of_value,
                    gradient: of_gradient,
                });
                // A placeholder of the right rank, until the new value is put in.
                Param::from_mapped_value(id, gradient, mapper)
            }
            (Err(error), _) | (_, Err(error)) => {
                self.error = Some(error);
                Param::from_mapped_value(id, value, mapper)
            }
        }
    }
}

/// The backend's tensor of a tensor.
pub(crate) fn primitive<const D: usize>(tensor: &Tensor<D>) -> Result<Primitive, Error> {
    tensor.clone().inner().try_into_primitive::<Wgpu>().map_err(Error::burn)
}

/// Puts values into the parameters that were taken out.
pub(crate) struct Return {
    values: HashMap<ParamId, (Taken, Primitive)>,
}

impl Return {
    pub fn new(taken: Vec<Taken>, values: Vec<Primitive>) -> Self {
        let values = taken.into_iter().zip(values).map(|(taken, value)| (taken.id, (taken, value))).collect();
        Self { values }
    }
}

impl ModuleMapper for Return {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((taken, value)) = self.values.remove(&param.id) else { return param };
        let (id, _, mapper) = param.consume();
        let value = taken.autodiff.restore(Tensor::from_primitive::<Wgpu>(value), id);
        Param::from_mapped_value(id, value, mapper)
    }
}

/// Registers the parameters of a module that a checkpoint names.
pub(crate) struct Register<'a> {
    registry: Registry<'a>,
    labels: Vec<&'a str>,
    path: Vec<String>,
    error: Option<Error>,
}

impl<'a> Register<'a> {
    /// # Errors
    /// As registering in a step.
    pub fn all<M: Module>(registry: Registry<'a>, labels: Vec<&'a str>, module: &M) -> Result<(), Error> {
        let mut visitor = Register { registry, labels, path: Vec::new(), error: None };
        module.visit(&mut visitor);
        visitor.error.map_or(Ok(()), Err)
    }
}

impl ModuleVisitor for Register<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let label = self.path.join(".");
        if self.error.is_some() || !self.labels.contains(&label.as_str()) {
            return;
        }
        let value = param.base();
        let registered = self.registry.parameter(param.id, &label, &value.shape(), value.dtype());
        self.error = registered.err();
    }
}

/// Bytes of the values of a module's parameters, by path.
pub(crate) fn values_of<M: Module>(module: &M, takes: impl Fn(&str) -> bool) -> HashMap<String, Vec<u8>> {
    let mut visitor = Values { takes, path: Vec::new(), values: HashMap::new() };
    module.visit(&mut visitor);
    visitor.values
}

struct Values<F> {
    takes: F,
    path: Vec<String>,
    values: HashMap<String, Vec<u8>>,
}

impl<F: Fn(&str) -> bool> ModuleVisitor for Values<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let label = self.path.join(".");
        if (self.takes)(&label) {
            self.values.insert(label, param.val().into_data().as_bytes().to_vec());
        }
    }
}

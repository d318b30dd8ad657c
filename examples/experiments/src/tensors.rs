//! The tensors of a module, by path: `encoder.layers.0.weight`.

use std::collections::BTreeMap;

use adamod::{DType, reference};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

/// All float tensors of a module: its parameters, and the running statistics of batch norms.
pub fn collect<M: Module>(module: &M, takes: impl Fn(&str) -> bool) -> BTreeMap<String, Vec<f32>> {
    let mut collect = Collect { takes, path: Vec::new(), found: BTreeMap::new() };
    module.visit(&mut collect);
    collect.found
}

/// Replaces the tensors for which there are new values.
pub fn replace<M: Module>(module: M, values: impl FnMut(&str) -> Option<Vec<f32>>) -> M {
    module.map(&mut Replace { values, path: Vec::new() })
}

/// Rounds all parameters of a module to numbers of a data type.
pub fn rounded<M: Module>(module: M, dtype: DType) -> M {
    let mut values = collect(&module, |_| true);
    replace(module, |path| values.remove(path).map(|values| reference::rounded(dtype, &values)))
}

/// The gradient of a parameter.
pub struct Gradient {
    /// Path of the parameter.
    pub label: String,
    pub gradient: Vec<f32>,
    /// Elements of the parameter, if they were wanted.
    pub values: Option<Vec<f32>>,
}

/// Takes the gradients of all parameters of a module that have one, and the values of those that are wanted.
pub fn gradients<M: Module>(
    module: &M,
    gradients: GradientsParams,
    wants_values: impl Fn(&str) -> bool,
) -> Vec<Gradient> {
    let mut take = Take { gradients, wants_values, path: Vec::new(), taken: Vec::new() };
    module.visit(&mut take);
    take.taken
}

struct Collect<F> {
    takes: F,
    path: Vec<String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl<F: Fn(&str) -> bool> ModuleVisitor for Collect<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        if (self.takes)(&path) {
            self.found.insert(path, numbers(param.val()));
        }
    }
}

struct Take<F> {
    gradients: GradientsParams,
    wants_values: F,
    path: Vec<String>,
    taken: Vec<Gradient>,
}

impl<F: Fn(&str) -> bool> ModuleVisitor for Take<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
        let label = self.path.join(".");
        let values = (self.wants_values)(&label).then(|| numbers(param.val()));
        self.taken.push(Gradient { label, gradient: numbers(gradient), values });
    }
}

/// The elements of a tensor.
pub fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("all tensors of the experiments are f32")
}

struct Replace<F> {
    values: F,
    path: Vec<String>,
}

impl<F: FnMut(&str) -> Option<Vec<f32>>> ModuleMapper for Replace<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = (self.values)(&self.path.join(".")) else { return param };
        param.map(|old| {
            let new = Tensor::from_data(TensorData::new(values, old.dims()), &old.device());
            new.set_require_grad(old.is_require_grad())
        })
    }
}

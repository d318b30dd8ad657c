//! Initial weights, drawn on the host, so that a seed gives the same weights on every device, whatever else draws numbers there.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Draws new weights for a module.
///
/// - Embeddings: variance 1 / width, as in fairseq.
/// - Matrices: Glorot and Bengio 2010, variance 2 / (rows + columns).
/// - Convolutions: He et al. 2015, variance 2 / inputs of a unit.
/// - Biases: 0. Norms keep their ones and zeros.
///
/// All are uniform.
pub fn draw<M: Module>(module: M, seed: u64) -> M {
    module.map(&mut Draw { rng: Xoshiro256PlusPlus::seed_from_u64(seed), path: Vec::new() })
}

struct Draw {
    rng: Xoshiro256PlusPlus,
    /// Name of each module around the parameter, and the type that holds it.
    path: Vec<(String, String)>,
}

impl Draw {
    /// The range of the parameter's values, or `None` if they stay.
    fn bound(&self, shape: &[usize]) -> Option<f64> {
        let (name, container) =
            self.path.last().map(|(name, container)| (name.as_str(), container.as_str()))?;
        let variance = match *shape {
            [_, width] if container.ends_with("Embedding") => 1.0 / width as f64,
            [rows, columns] => 2.0 / (rows + columns) as f64,
            [_, channels, height, width] => 2.0 / (channels * height * width) as f64,
            _ if name == "bias" => 0.0,
            _ => return None,
        };
        // A uniform distribution over [-a, a] has variance a^2 / 3.
        Some((3.0 * variance).sqrt())
    }
}

impl ModuleMapper for Draw {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push((name.into(), container_type.into()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let Some(bound) = self.bound(&shape) else { return param };
        let values: Vec<f32> = (0..shape.num_elements())
            .map(|_| (bound * (2.0 * self.rng.random::<f64>() - 1.0)) as f32)
            .collect();
        param.map(|old| {
            let drawn = Tensor::from_data(TensorData::new(values, shape), &old.device());
            drawn.set_require_grad(old.is_require_grad())
        })
    }
}

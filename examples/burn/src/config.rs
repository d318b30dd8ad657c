//! Burn's configurations of optimizers as groups of the core.

use adamod::{AdaMod, Adam, Group, Hyperparameters, Options, Sgd, WeightDecay};
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, SgdConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::gpu::Gpu;
use crate::optimizer::FusedOptimizer;

/// What the parameters of a group have in common.
#[derive(Clone)]
#[non_exhaustive]
pub struct FusedGroup {
    /// Rule, hyperparameters and precision.
    pub group: Group,
    /// Clipping of the gradient of each tensor by itself. [`adamod::DeviceControl::max_norm`] clips all gradients of a step together.
    pub clipping: Option<GradientClipping>,
}

/// A configuration of an optimizer that the core has a kernel for: Burn's `AdamConfig`, `AdamWConfig` and `SgdConfig`, or the core's own.
///
/// Burn's have the same numbers here as in Burn, defaults included. What the core has no kernel for (AMSGrad, cautious weight decay,
/// dampening, Nesterov momentum) is an error that names the field.
pub trait FusedConfig {
    /// The configuration as a group.
    ///
    /// # Errors
    /// If the core has no kernel for it.
    fn fused_group(&self) -> Result<FusedGroup, Error>;

    /// An optimizer with one group for all parameters: [`FusedConfig::init_fused_with`] with the default options.
    ///
    /// # Errors
    /// As [`FusedConfig::init_fused_with`].
    fn init_fused(&self, gpu: &Gpu) -> Result<FusedOptimizer, Error> {
        self.init_fused_with(gpu, Options::new())
    }

    /// An optimizer with one group for all parameters, in place of Burn's `init`.
    ///
    /// # Errors
    /// As [`FusedConfig::fused_group`], [`FusedOptimizer::new`] and [`FusedOptimizer::with_group`].
    fn init_fused_with(&self, gpu: &Gpu, options: Options) -> Result<FusedOptimizer, Error> {
        FusedOptimizer::new(gpu, options)?.with_group(burn::module::ParamGroup::all(), self)
    }
}

macro_rules! of_the_core {
    ($($kind:ty),+) => {
        $(impl FusedConfig for $kind {
            fn fused_group(&self) -> Result<FusedGroup, Error> {
                Ok(FusedGroup { group: (*self).into(), clipping: None })
            }
        })+
    };
}

of_the_core!(AdaMod, Adam, Sgd, Hyperparameters, Group);

// Fields of Burn's configurations are private, so they are read as Burn itself saves them. An unknown field is an error.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdamFields {
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    amsgrad: bool,
    weight_decay: Option<WeightDecayConfig>,
    grad_clipping: Option<GradientClippingConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdamWFields {
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    weight_decay: f32,
    cautious_weight_decay: bool,
    amsgrad: bool,
    grad_clipping: Option<GradientClippingConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SgdFields {
    weight_decay: Option<WeightDecayConfig>,
    momentum: Option<MomentumConfig>,
    gradient_clipping: Option<GradientClippingConfig>,
}

/// The fields of a configuration.
fn fields<T: DeserializeOwned>(config: &'static str, of: &impl Serialize) -> Result<T, Error> {
    let read = serde_json::to_value(of).and_then(serde_json::from_value);
    read.map_err(|error| Error::UnknownConfig { config, what: error.to_string() })
}

/// Refuses a field unless it has the value that the core has a kernel for.
fn require<T: PartialEq + ToString>(
    config: &'static str,
    field: &'static str,
    found: T,
    expected: T,
) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Config { config, field, found: found.to_string(), expected: expected.to_string() })
}

/// Burn's betas and epsilon are f32. The core gets the same numbers, because 1 - 0.999 is another one in f64.
fn adam(beta_1: f32, beta_2: f32, epsilon: f32) -> Hyperparameters {
    Adam::new().with_betas([beta_1, beta_2].map(f64::from)).with_epsilon(epsilon.into()).into()
}

/// Decay that Burn adds to the gradient.
fn coupled(decay: Option<WeightDecayConfig>) -> WeightDecay {
    decay.map_or(WeightDecay::None, |decay| WeightDecay::Coupled(decay.penalty.into()))
}

fn momentum(of: Option<MomentumConfig>) -> Result<Sgd, Error> {
    let Some(of) = of else { return Ok(Sgd::new().with_momentum(0.0)) };
    require("SgdConfig", "momentum.dampening", of.dampening, 0.0)?;
    require("SgdConfig", "momentum.nesterov", of.nesterov, false)?;
    Ok(Sgd::new().with_momentum(of.momentum))
}

fn group(hyperparameters: Hyperparameters, clipping: Option<GradientClippingConfig>) -> FusedGroup {
    FusedGroup { group: hyperparameters.into(), clipping: clipping.map(|clipping| clipping.init()) }
}

impl FusedConfig for AdamConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: AdamFields = fields("AdamConfig", self)?;
        require("AdamConfig", "amsgrad", fields.amsgrad, false)?;
        let hyperparameters = adam(fields.beta_1, fields.beta_2, fields.epsilon);
        Ok(group(hyperparameters.with_weight_decay(coupled(fields.weight_decay)), fields.grad_clipping))
    }
}

impl FusedConfig for AdamWConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: AdamWFields = fields("AdamWConfig", self)?;
        require("AdamWConfig", "amsgrad", fields.amsgrad, false)?;
        require("AdamWConfig", "cautious_weight_decay", fields.cautious_weight_decay, false)?;
        let decay = WeightDecay::Decoupled(fields.weight_decay.into());
        let hyperparameters = adam(fields.beta_1, fields.beta_2, fields.epsilon);
        Ok(group(hyperparameters.with_weight_decay(decay), fields.grad_clipping))
    }
}

impl FusedConfig for SgdConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: SgdFields = fields("SgdConfig", self)?;
        let hyperparameters = Hyperparameters::from(momentum(fields.momentum)?);
        Ok(group(hyperparameters.with_weight_decay(coupled(fields.weight_decay)), fields.gradient_clipping))
    }
}

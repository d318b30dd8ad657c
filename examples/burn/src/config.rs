//! Burn's configurations of optimizers as groups of the core.

use adamod::{
    AdaBound, AdaDelta, AdaGrad, AdaMod, Adam, Group, Hyperparameters, Lion, NAdam, NosAdam, Options, RAdam,
    RmsProp, Rule, Sgd, WeightDecay,
};
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdaGradConfig, AdamConfig, AdamWConfig, LionConfig, RmsPropConfig, SgdConfig};
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
    /// Rounds `1 - learning_rate * lambda` of decoupled weight decay to f32 at each step, as Burn's AdamW and Lion do.
    ///
    /// At the rate 1e-3 and AdamW's default decay of 1e-4 the rounded decay is 19 % stronger than the product says.
    pub rounds_decay: bool,
}

/// A configuration of an optimizer that the core has a kernel for: Burn's `AdamConfig`, `AdamWConfig`, `SgdConfig`, `RmsPropConfig`,
/// `AdaGradConfig` and `LionConfig`, or the core's own.
///
/// Burn's have the same numbers here as in Burn, defaults included, up to rounding and two cases:
///
/// * Cautious weight decay of an element whose first moment is exactly 0. Burn decays it if it is positive, the core always.
/// * Centered RMSprop of an element whose variance is negative by rounding. Burn's value becomes NaN, the core takes the variance as 0.
///
/// Dampening without momentum or with Nesterov momentum has no kernel, and is an error that names the field.
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
                Ok(FusedGroup { group: (*self).into(), clipping: None, rounds_decay: false })
            }
        })+
    };
}

of_the_core!(
    AdaBound,
    AdaDelta,
    AdaGrad,
    AdaMod,
    Adam,
    Lion,
    NAdam,
    NosAdam,
    RAdam,
    RmsProp,
    Sgd,
    Rule,
    Hyperparameters,
    Group
);

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RmsPropFields {
    alpha: f32,
    momentum: f32,
    epsilon: f32,
    centered: bool,
    weight_decay: Option<WeightDecayConfig>,
    grad_clipping: Option<GradientClippingConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdaGradFields {
    lr_decay: f64,
    epsilon: f32,
    weight_decay: Option<WeightDecayConfig>,
    grad_clipping: Option<GradientClippingConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LionFields {
    beta_1: f32,
    beta_2: f32,
    weight_decay: f32,
    grad_clipping: Option<GradientClippingConfig>,
}

/// The fields of a configuration.
fn fields<T: DeserializeOwned>(config: &'static str, of: &impl Serialize) -> Result<T, Error> {
    let read = serde_json::to_value(of).and_then(serde_json::from_value);
    read.map_err(|error| Error::UnknownConfig { config, what: error.to_string() })
}

/// Burn's betas and epsilon are f32. The core gets the same numbers, because 1 - 0.999 is another one in f64.
fn adam(beta_1: f32, beta_2: f32, epsilon: f32) -> Adam {
    Adam::new().with_betas([beta_1, beta_2].map(f64::from)).with_epsilon(epsilon.into())
}

/// Decay that Burn adds to the gradient.
fn coupled(decay: Option<WeightDecayConfig>) -> WeightDecay {
    decay.map_or(WeightDecay::None, |decay| WeightDecay::Coupled(decay.penalty.into()))
}

fn momentum(of: Option<MomentumConfig>) -> Result<Sgd, Error> {
    let plain = Sgd::new().with_momentum(0.0);
    let Some(MomentumConfig { momentum, dampening, nesterov }) = of else { return Ok(plain) };
    let undamped = |expected: &str| match dampening {
        0.0 => Ok(()),
        _ => Err(Error::Config {
            config: "SgdConfig",
            field: "momentum.dampening",
            found: dampening.to_string(),
            expected: expected.to_owned(),
        }),
    };
    if momentum == 0.0 {
        // Burn still dampens every gradient but the first. Nesterov momentum of 0 is none.
        undamped("0 without momentum")?;
        return Ok(plain);
    }
    if nesterov {
        undamped("0 with nesterov")?;
    }
    Ok(Sgd::new().with_momentum(momentum).with_dampening(dampening).with_nesterov(nesterov))
}

fn group(rule: impl Into<Rule>, decay: WeightDecay, clipping: Option<GradientClippingConfig>) -> FusedGroup {
    let hyperparameters = Hyperparameters::from(rule).with_weight_decay(decay);
    FusedGroup {
        group: hyperparameters.into(),
        clipping: clipping.map(|clipping| clipping.init()),
        rounds_decay: false,
    }
}

impl FusedConfig for AdamConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: AdamFields = fields("AdamConfig", self)?;
        let rule = adam(fields.beta_1, fields.beta_2, fields.epsilon).with_amsgrad(fields.amsgrad);
        Ok(group(rule, coupled(fields.weight_decay), fields.grad_clipping))
    }
}

impl FusedConfig for AdamWConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: AdamWFields = fields("AdamWConfig", self)?;
        let rule = adam(fields.beta_1, fields.beta_2, fields.epsilon).with_amsgrad(fields.amsgrad);
        let mut group = group(rule, WeightDecay::Decoupled(fields.weight_decay.into()), fields.grad_clipping);
        group.group.hyperparameters.cautious_weight_decay = fields.cautious_weight_decay;
        // Burn subtracts cautious decay, which does not round it.
        group.rounds_decay = !fields.cautious_weight_decay;
        Ok(group)
    }
}

impl FusedConfig for SgdConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: SgdFields = fields("SgdConfig", self)?;
        Ok(group(momentum(fields.momentum)?, coupled(fields.weight_decay), fields.gradient_clipping))
    }
}

impl FusedConfig for RmsPropConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: RmsPropFields = fields("RmsPropConfig", self)?;
        let rule = RmsProp::new()
            .with_alpha(fields.alpha.into())
            .with_epsilon(fields.epsilon.into())
            .with_momentum(fields.momentum.into())
            .with_centered(fields.centered);
        Ok(group(rule, coupled(fields.weight_decay), fields.grad_clipping))
    }
}

impl FusedConfig for AdaGradConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: AdaGradFields = fields("AdaGradConfig", self)?;
        let rule = AdaGrad::new().with_lr_decay(fields.lr_decay).with_epsilon(fields.epsilon.into());
        Ok(group(rule, coupled(fields.weight_decay), fields.grad_clipping))
    }
}

impl FusedConfig for LionConfig {
    fn fused_group(&self) -> Result<FusedGroup, Error> {
        let fields: LionFields = fields("LionConfig", self)?;
        let rule = Lion::new().with_betas([fields.beta_1, fields.beta_2].map(f64::from));
        let group = group(rule, WeightDecay::Decoupled(fields.weight_decay.into()), fields.grad_clipping);
        Ok(FusedGroup { rounds_decay: true, ..group })
    }
}

//! Design choices of the kernels, which the suite `variants` measures beside the default.

use adamod::custom::{CpuStep, Element, General, Real, RuleDefinition, Sign, Stepped};
use adamod::low_level::Tuning;
use adamod::{DType, NormDispatch, Rule, RuleForm, StateFormat};

use super::mode::{Gradients, Mode};

/// The default, or a choice in its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Design {
    pub name: &'static str,
    pub tuning: Tuning,
    pub norm_dispatch: NormDispatch,
}

/// The name of the default in the report.
const DEFAULT: &str = "default";
/// A dispatch of its own for the norm.
const SEPARATE_NORM: &str = "separate-norm";
/// The kernel with all its tables, loads and stores, and next to no arithmetic.
const TRAFFIC: &str = "traffic";

/// The names of all choices.
pub fn names() -> impl Iterator<Item = &'static str> {
    Tuning::CHOICES.into_iter().map(|(name, _)| name).chain([SEPARATE_NORM, TRAFFIC])
}

/// A dispatch for each tensor with buffers of its own. The suite `host` measures it.
pub const SINGLE_BINDINGS: Design =
    Design { name: "single bindings", tuning: Tuning::SINGLE_BINDINGS, norm_dispatch: NormDispatch::Fused };

impl Design {
    /// What users get.
    pub fn default_design() -> Self {
        Self { name: DEFAULT, tuning: Tuning::default(), norm_dispatch: NormDispatch::Fused }
    }

    pub fn is_default(&self) -> bool {
        self.name == DEFAULT
    }
}

/// The choices that make another kernel of this mode, with the mode that they measure: the same one, but for [`TRAFFIC`].
pub fn designs(mode: Mode) -> Vec<(Design, Mode)> {
    let default = Design::default_design();
    let mut designs = vec![(default, mode)];
    let tuned = Tuning::CHOICES.into_iter().filter(|(_, tuning)| matters(mode, tuning));
    designs.extend(tuned.map(|(name, tuning)| (Design { name, tuning, ..default }, mode)));
    if mode.gradients == Gradients::Clipped {
        designs
            .push((Design { name: SEPARATE_NORM, norm_dispatch: NormDispatch::Separate, ..default }, mode));
    }
    if mode == Mode::ADAMOD
        && let Some(form) = traffic()
    {
        designs.push((Design { name: TRAFFIC, ..default }, Mode { form, ..mode }));
    }
    designs
}

fn matters(mode: Mode, tuning: &Tuning) -> bool {
    // Clips are there for what happens before the step.
    let is_clipped = mode.gradients == Gradients::Clipped;
    if is_clipped || tuning.most_partials.is_some() {
        return is_clipped && tuning.most_partials.is_some();
    }
    // 16-bit values and 8-bit state never have wider words.
    if tuning.most_word_bytes == 8 && mode.values != DType::F32 {
        return false;
    }
    match (mode.state, tuning.lanes) {
        // A thread has two quads of a chunk, or a quant block.
        (StateFormat::Q8, lanes) => !tuning.two_quads && lanes.is_none_or(|lanes| lanes == 32),
        (_, lanes) => lanes != Some(32),
    }
}

/// A rule with the states of AdaMod that adds the gradient to each, and moves parameters by the gradient times the learning rate.
fn traffic() -> Option<RuleForm> {
    const WGSL: &str = "
struct TrafficCoefficients { step_size: f32 }

fn traffic_coefficients(base: TrafficCoefficients, variant: u32, decay: Decay) -> TrafficCoefficients {
    return base;
}

fn traffic_step(general: General, c: TrafficCoefficients, e: Elements) -> Stepped {
    let g = bitcast<vec4<f32>>(e.gradient);
    let rate = vec4(c.step_size);
    return Stepped(e.theta - rate * g, State(e.state[0] + g, e.state[1] + g, e.state[2] + g), rate, rate);
}
";
    let definition = RuleDefinition::new(TRAFFIC, WGSL)
        .with_states(["first", "second", "third"].map(|name| (name, Sign::Signed)))
        .with_coefficients(["step_size"], |_: &[f64; 0], learning_rate, _| [learning_rate])
        .with_cpu_step::<Traffic>();
    Rule::custom(definition).ok().map(|rule| rule.form())
}

struct Traffic;

impl CpuStep for Traffic {
    fn step<T: Real>(_: &General<T>, &[step_size, ..]: &[T; 9], element: Element<T>) -> Stepped<T> {
        let Element { theta, gradient, state } = element;
        Stepped { theta: theta - step_size * gradient, state: state.map(|state| state + gradient) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_measured_in_some_mode() {
        let modes = [
            Mode::ADAMOD,
            Mode { state: StateFormat::Q8, values: DType::Bf16, ..Mode::ADAMOD },
            Mode { gradients: Gradients::Clipped, ..Mode::ADAMOD },
        ];
        let measured: Vec<_> = modes.into_iter().flat_map(designs).map(|(design, _)| design.name).collect();
        for name in names() {
            assert!(measured.contains(&name), "{name}");
        }
        assert!(measured.iter().all(|name| *name == DEFAULT || names().any(|known| known == *name)));
    }

    #[test]
    fn traffic_moves_the_bytes_of_adamod() {
        let form = traffic().expect("the rule is valid");
        assert_eq!(Mode { form, ..Mode::ADAMOD }.bytes_per_parameter(), Mode::ADAMOD.bytes_per_parameter());
    }
}

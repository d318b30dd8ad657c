//! A rule of one's own: ADOPT (Taniguchi et al. 2024, arXiv:2411.02853, Algorithm 2), Adam whose gradient is divided by the root of the second
//! moment of the steps before, and clipped. `cargo run --example custom_rule` minimizes a parabola with it.
//!
//! The first step only sets the second moment, as in the authors' code (PyPI torch-adopt 0.1.0): the clip is 0 there. Unlike that code it decays
//! weights in the first step, too, if asked to.

use adamod::custom::error::CustomRuleError;
use adamod::custom::{
    CpuStep, Element, General, Real, RuleDefinition, Sign, Stepped, apply_step, check_normal, ema,
    ema_weight, larger, limited_gradient,
};
use adamod::{Optimizer, Options, Parameter, Rule, Step, View, Views, wgpu};

const WGSL: &str = "
struct AdoptCoefficients { exp_avg_weight: f32, exp_avg_sq_weight: f32, clip: f32, epsilon: f32, step_size: f32 }

fn adopt_coefficients(base: AdoptCoefficients, variant: u32, decay: Decay) -> AdoptCoefficients {
    var c = base;
    c.exp_avg_sq_weight = select(base.exp_avg_sq_weight, 0.0, decay.t == 1u);
    c.clip = sqrt(sqrt(f32(decay.t - 1u)));
    return c;
}

fn adopt_step(general: General, c: AdoptCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let normed = g / larger(vec4(c.epsilon), sqrt(e.state[1]));
    let clipped = select(normed, sign(normed) * c.clip, abs(normed) > vec4(c.clip));
    let m = ema(e.state[0], clipped, c.exp_avg_weight);
    let v = ema(e.state[1], g * g, c.exp_avg_sq_weight);
    let rate = vec4(c.step_size);
    return Stepped(apply_step(general, e.theta, g, rate, m), State(m, v, e.state[2]), rate, rate);
}
";

/// The same step for one element of the reference.
struct Adopt;

impl CpuStep for Adopt {
    fn step<T: Real>(
        general: &General<T>,
        &[b1, b2, clip, epsilon, rate, ..]: &[T; 9],
        e: Element<T>,
    ) -> Stepped<T> {
        let ([m, v, unused], zero) = (e.state, T::from_f64(0.0));
        let g = limited_gradient(general, &e);
        let normed = g / larger(epsilon, v.sqrt());
        let clipped = if normed > clip {
            clip
        } else if normed < zero - clip {
            zero - clip
        } else {
            normed
        };
        let (m, v) = (ema(m, clipped, b1), ema(v, g * g, b2));
        Stepped { theta: apply_step(general, e.theta, g, rate, m), state: [m, v, unused] }
    }
}

fn adopt() -> Result<Rule, CustomRuleError> {
    let names = ["exp_avg_weight", "exp_avg_sq_weight", "clip", "epsilon", "step_size"];
    let definition = RuleDefinition::new("adopt", WGSL)
        .with_states([("exp_avg", Sign::Signed), ("exp_avg_sq", Sign::NonNegative)])
        .with_hyperparameters([("betas[0]", 0.9), ("betas[1]", 0.9999), ("epsilon", 1e-6)])
        .with_decay_rates(["betas[0]", "betas[1]"])
        .with_coefficients(names, |&[beta1, beta2, epsilon], learning_rate, t| {
            let second = if t == 1 { 0.0 } else { ema_weight(beta2) };
            [ema_weight(beta1), second, ((t - 1) as f64).powf(0.25), epsilon, learning_rate]
        })
        .with_check(|&[_, _, epsilon], _| check_normal("epsilon", epsilon))
        .with_cpu_step::<Adopt>();
    Rule::custom(definition)
}

/// Steps values on a device, with gradients that depend on the step and the values.
fn steps(
    (device, queue): &(wgpu::Device, wgpu::Queue),
    rule: Rule,
    mut values: Vec<f32>,
    count: u32,
    gradients: impl Fn(u32, &[f32]) -> Vec<f32>,
) -> Result<Vec<f32>, adamod::Error> {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let size = (4 * values.len() as u64).next_multiple_of(16);
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = |label| {
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        device.create_buffer(&descriptor)
    };
    let (weights, gradient) = (buffer("weights"), buffer("gradients"));
    let mut optimizer = Optimizer::new(device, queue, Options::new())?;
    let group = optimizer.add_group(rule)?;
    let views = Views::new(View::new(&weights, 0), View::new(&gradient, 0));
    let parameter = Parameter::new("layer.weight", values.len() as u64).with_views(views);
    let weight = optimizer.add_parameter(group, parameter)?;
    optimizer.write_parameter(weight, &values)?;
    for step in 1..=count {
        queue.write_buffer(&gradient, 0, &bytes(&gradients(step, &values)));
        optimizer.submit(&Step::all())?;
        values = optimizer.read_parameter(weight).wait()?;
    }
    Ok(values)
}

fn gpu() -> Result<(wgpu::Device, wgpu::Queue), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    Ok(pollster::block_on(adapter.request_device(&Default::default()))?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The gradient of (x - 0.1)^2 / 2.
    let values =
        steps(&gpu()?, adopt()?, vec![0.0; 8], 300, |_, values| values.iter().map(|x| x - 0.1).collect())?;
    println!("{values:?}, expected about 0.1");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adopt_is_a_rule_like_those_of_the_library() {
        let (device, queue) = gpu().unwrap();
        adamod::testing::check_rule(&device, &queue, adopt().unwrap()).unwrap();
    }

    /// Algorithm 2, line by line.
    #[test]
    fn adopt_agrees_with_its_formula_in_f64() {
        const COUNT: u32 = 60;
        let (beta1, beta2, epsilon, alpha) = (0.9, 0.9999, 1e-6, 1e-3);
        let initial: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let gradient = |step: u32, i: usize| {
            ((step as f32 * 1.3 + i as f32 * 0.37).sin() + 0.2) * 0.1 * (i as f32 + 0.1)
        };
        let found = steps(&gpu().unwrap(), adopt().unwrap(), initial.clone(), COUNT, |step, values| {
            (0..values.len()).map(|i| gradient(step, i)).collect()
        })
        .unwrap();
        let mut largest: f64 = 0.0;
        for (i, found) in found.into_iter().enumerate() {
            let (mut theta, mut m, mut v) = (f64::from(initial[i]), 0.0, 0.0_f64);
            for t in 0..COUNT {
                let g = f64::from(gradient(t + 1, i));
                if t == 0 {
                    v = g * g;
                    continue;
                }
                let clip = f64::from(t).powf(0.25);
                m = beta1 * m + (1.0 - beta1) * (g / v.sqrt().max(epsilon)).clamp(-clip, clip);
                theta -= alpha * m;
                v = beta2 * v + (1.0 - beta2) * g * g;
            }
            assert!((theta - f64::from(initial[i])).abs() > 1e-3, "element {i} moves");
            largest = largest.max((f64::from(found) - theta).abs());
        }
        println!("off by {largest:e}");
        assert!(largest < 1e-6);
    }
}

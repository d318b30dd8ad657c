//! Rules of one's own: the harness that checks them, and what is particular to them in an optimizer.

use std::sync::atomic::{AtomicU64, Ordering};

use adamod::custom::{
    CpuStep, CustomRule, Element, General, Real, RuleDefinition, Sign, Stepped, apply_step, debiased_weight,
    ema, ema_weight, eta_of, limited_gradient, one_minus_power,
};
use adamod::testing::{RuleCheckError, RuleDifference, check_rule};
use adamod::{
    AdaMod, Adam, Control, DeviceControl, Diagnostics, ErrorKind, Hyperparameters, Options, Rule, RuleForm,
    RuleKind, StateFormat, Step, WeightDecay,
};

use crate::common::{Engine, Kind, Layout, Model, all, gpu, precision};

fn check(rule: impl Into<Rule>) -> Result<(), RuleCheckError> {
    check_rule(&gpu().device, &gpu().queue, rule)
}

fn difference(result: Result<(), RuleCheckError>) -> RuleDifference {
    match result {
        Err(RuleCheckError::Difference(difference)) => *difference,
        other => panic!("expected a difference, got {other:?}"),
    }
}

/// RMSProp with bias correction under a name of its own.
const WGSL: &str = "
struct ScaledCoefficients {
    exp_avg_sq_weight: f32,
    correction: f32,
    epsilon: f32,
    step_size: f32,
}

fn scaled_coefficients(base: ScaledCoefficients, variant: u32, decay: Decay) -> ScaledCoefficients {
    var c = base;
    c.correction = 1.0 / decay.one_minus_power[0];
    return c;
}

fn scaled_step(general: General, c: ScaledCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let v = ema(e.state[0], g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c.step_size, v, c.correction, c.epsilon);
    let theta = apply_step(general, e.theta, g, eta, g);
    return Stepped(theta, State(v, e.state[1], e.state[2]), eta, eta);
}
";

struct Scaled;

impl CpuStep for Scaled {
    fn step<T: Real>(
        general: &General<T>,
        &[weight, correction, epsilon, step_size, ..]: &[T; 9],
        e: Element<T>,
    ) -> Stepped<T> {
        let g = limited_gradient(general, &e);
        let v = ema(e.state[0], g * g, weight);
        let eta = step_size / ((v * correction).sqrt() + epsilon);
        Stepped { theta: apply_step(general, e.theta, g, eta, g), state: [v, e.state[1], e.state[2]] }
    }
}

fn definition(wgsl: &str) -> RuleDefinition {
    RuleDefinition::new("scaled", wgsl)
        .with_states([("exp_avg_sq", Sign::NonNegative)])
        .with_hyperparameters([("beta", 0.99), ("epsilon", 1e-8)])
        .with_decay_rates(["beta"])
        .with_coefficients(
            ["exp_avg_sq_weight", "correction", "epsilon", "step_size"],
            |&[beta, epsilon], learning_rate, t| {
                [ema_weight(beta), 1.0 / one_minus_power(beta, t), epsilon, learning_rate]
            },
        )
        .with_element_rates()
        .with_cpu_step::<Scaled>()
}

fn scaled() -> Rule {
    Rule::custom(definition(WGSL)).unwrap()
}

/// The rule with a text changed.
fn changed(from: &str, to: &str) -> Rule {
    assert!(WGSL.contains(from), "{from}");
    Rule::custom(definition(&WGSL.replace(from, to))).unwrap()
}

#[test]
fn a_custom_rule_passes_the_harness() {
    check(scaled()).unwrap();
}

/// A third of them, because tests of precision step all of them in the same formats.
#[test]
fn rules_of_the_library_pass_the_harness() {
    RuleForm::all().step_by(3).for_each(|form| check(form.with_defaults()).unwrap());
}

#[test]
fn the_harness_names_the_first_difference() {
    // Off by 0.1%.
    let found = difference(check(changed("eta, g);", "eta, g * 1.001);")));
    assert_eq!((found.what.as_str(), found.step, found.state), ("values", 1, StateFormat::F32));
    let text = found.to_string();
    assert!(text.contains("step 1, values of values in f32") && text.contains("Control::Host"), "{text}");
    let found = difference(check(changed("State(v,", "State(v * 1.00005,")));
    assert_eq!(found.what, "exp_avg_sq");
    // Where the device computes coefficients, only.
    let found = difference(check(changed("1.0 / decay.one_minus_power[0]", "1.0")));
    assert_eq!((found.control, found.step), ("Control::Device", 1));
    // From the second step on.
    let found =
        difference(check(changed("decay.one_minus_power[0];", "min(decay.one_minus_power[0], 0.9995);")));
    assert!(found.control == "Control::Device" && found.step > 100, "{found}");
}

#[test]
fn the_harness_finds_broken_contracts() {
    struct Drifting;
    impl CpuStep for Drifting {
        fn step<T: Real>(general: &General<T>, c: &[T; 9], e: Element<T>) -> Stepped<T> {
            let stepped = Scaled::step(general, c, e);
            Stepped { theta: stepped.theta - c[3], ..stepped }
        }
    }
    let drifting = WGSL.replace("return Stepped(theta,", "return Stepped(theta - vec4(c.step_size),");
    let drifting = definition(&drifting).with_cpu_step::<Drifting>();
    let found = difference(check(Rule::custom(drifting).unwrap()));
    assert!(found.expected.contains("gradients and states are zero"), "{found}");

    // Signed numbers in a state that is declared non-negative.
    struct Signed;
    impl CpuStep for Signed {
        fn step<T: Real>(general: &General<T>, c: &[T; 9], e: Element<T>) -> Stepped<T> {
            let g = limited_gradient(general, &e);
            Stepped { theta: apply_step(general, e.theta, g, c[3], g), state: [g, e.state[1], e.state[2]] }
        }
    }
    let signed = WGSL
        .replace("let eta = eta_of(c.step_size, v, c.correction, c.epsilon);", "let eta = vec4(c.step_size);")
        .replace("State(v,", "State(g,");
    let found = difference(check(Rule::custom(definition(&signed).with_cpu_step::<Signed>()).unwrap()));
    assert!(found.expected.contains("declared Sign::NonNegative"), "{found}");

    // A NaN that is lost.
    let lossy = "let g = select(vec4(0.0), limited_gradient(general, e), (e.gradient & vec4(MAGNITUDE)) <= vec4(INFINITY));";
    let found = difference(check(changed("let g = limited_gradient(general, e);", lossy)));
    assert!(found.expected.contains("its gradient was NaN"), "{found}");

    let without = RuleDefinition::new("plain", WGSL.replace("scaled", "plain").replace("Scaled", "Plain"))
        .with_states([("exp_avg_sq", Sign::NonNegative)])
        .with_hyperparameters([("beta", 0.99)])
        .with_decay_rates(["beta"])
        .with_coefficients(
            ["exp_avg_sq_weight", "correction", "epsilon", "step_size"],
            |&[beta], learning_rate, t| {
                [ema_weight(beta), 1.0 / one_minus_power(beta, t), 1e-8, learning_rate]
            },
        );
    let without = Rule::custom(without).unwrap();
    assert!(matches!(check(without), Err(RuleCheckError::NoCpuStep { rule }) if rule == without.kind()));
}

/// Beside rules of the library, with hyperparameters and learning rates that change.
#[test]
fn custom_rules_share_an_optimizer_with_others() {
    for options in [
        Options::new(),
        Options::new().with_control(Control::Device(DeviceControl::new().with_max_norm(10.0))),
    ] {
        let mut model = Model::new(Hyperparameters::from(scaled()), &[300, 5]).with_options(options);
        model.add_group(Adam::new(), &[1025, 7]);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        let mut twin = model.twin::<f32>();
        for step in 0..6 {
            let mut rule = scaled();
            assert!(rule.set_hyperparameter("beta", if step < 3 { 0.9 } else { 0.95 }));
            let hyperparameters = Hyperparameters::from(rule).with_learning_rate(1e-3 * f64::from(step + 1));
            engine.optimizer.set_hyperparameters(engine.groups[0], hyperparameters).unwrap();
            twin.set_hyperparameters(0, hyperparameters);
            let gradients = model.scaled_gradients(step as u64, 0.001);
            engine.step(&all(&gradients));
            twin.step(&all(&gradients));
        }
        for index in 0..4 {
            for (got, expected) in engine.values(index).into_iter().zip(twin.values(index)) {
                assert!((got - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "{got} {expected}");
            }
        }
        let launches: Vec<_> = engine.optimizer.launches().map(|launch| launch.form.rule().name()).collect();
        assert_eq!(launches, ["scaled", "adam"]);
    }
}

/// Kernels that prepare steps are made anew when an optimizer gets another custom rule.
#[test]
fn custom_rules_come_and_go() {
    let options = Options::new().with_control(Control::Device(DeviceControl::new()));
    let model = Model::new(Adam::new(), &[40]).with_options(options);
    let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
    let gradients = model.gradients(1);
    engine.step(&all(&gradients));
    let before = engine.values(0);
    let late = engine.optimizer.add_group(Hyperparameters::from(scaled())).unwrap();
    let id = engine.ids[0];
    assert!(engine.optimizer.set_group(id, late).is_err(), "another rule");
    engine.step(&all(&gradients));
    assert_ne!(engine.values(0), before);
    // Another version declares the same names.
    let other = changed("eta, g);", "eta, g * 2.0);");
    let error = engine.optimizer.add_group(other).unwrap_err();
    let ErrorKind::CommonDeclaration { name: "ScaledCoefficients", found, other: of_group } = error.kind()
    else {
        panic!("{error}");
    };
    assert_eq!((*found, *of_group), (other.kind(), scaled().kind()));
    let error = engine.optimizer.set_hyperparameters(late, other).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Rule { .. }), "{error}");
    // Once the first is gone it has room.
    engine.optimizer.remove_group(late).unwrap();
    engine.optimizer.add_group(other).unwrap();
    engine.step(&all(&gradients));
    engine.optimizer.submit(&Step::all()).unwrap();
}

/// AdaMod's own file under another name.
fn own_adamod() -> Rule {
    struct Own;
    impl CpuStep for Own {
        fn step<T: Real>(general: &General<T>, c: &[T; 9], e: Element<T>) -> Stepped<T> {
            let &[w1, w2, w3, step_size, correction1, correction2, epsilon, debiased, scale] = c;
            let (w3, scale) = if general.is_debiased { (debiased, scale) } else { (w3, T::from_f64(1.0)) };
            let g = limited_gradient(general, &e);
            let [m, v, s] = e.state;
            let (m, v) = (ema(m, g, w1), ema(v, g * g, w2));
            let eta = eta_of(step_size, v, correction2, epsilon);
            let s = ema(s, eta, w3);
            let bounded = if s * scale < eta { s * scale } else { eta };
            Stepped { theta: apply_step(general, e.theta, g, bounded, m * correction1), state: [m, v, s] }
        }
    }
    let wgsl = include_str!("../../shaders/rules/adamod.wgsl");
    let wgsl = wgsl.replace("adamod_", "own_").replace("ADAMOD_", "OWN_").replace("AdaMod", "Own");
    let names = [
        "exp_avg_weight",
        "exp_avg_sq_weight",
        "exp_avg_lr_weight",
        "step_size",
        "exp_avg_correction",
        "exp_avg_sq_correction",
        "epsilon",
        "debiased_lr_weight",
        "debiased_lr_scale",
    ];
    let betas = ["betas[0]", "betas[1]", "betas[2]"];
    let definition = RuleDefinition::new("own", wgsl)
        .with_states([
            ("exp_avg", Sign::Signed),
            ("exp_avg_sq", Sign::NonNegative),
            ("exp_avg_lr", Sign::Positive),
        ])
        .with_hyperparameters([(betas[0], 0.9), (betas[1], 0.999), (betas[2], 0.999), ("epsilon", 1e-8)])
        .with_decay_rates(betas)
        .with_debiased_states([("exp_avg_lr", "betas[2]")])
        .with_coefficients(names, |&[beta1, beta2, beta3, epsilon], learning_rate, t| {
            let [correction1, correction2, correction3] =
                [beta1, beta2, beta3].map(|beta| one_minus_power(beta, t));
            [
                ema_weight(beta1),
                ema_weight(beta2),
                ema_weight(beta3),
                learning_rate,
                1.0 / correction1,
                1.0 / correction2,
                epsilon,
                debiased_weight(beta3, t),
                correction3,
            ]
        })
        .with_element_rates()
        .with_cpu_step::<Own>();
    Rule::custom(definition).unwrap()
}

/// A custom rule with a rule's file is that rule to the bit, in every format and with both controls.
#[test]
fn a_custom_rule_with_the_file_of_adamod_is_adamod() {
    assert_eq!(own_adamod().states(), RuleKind::AdaMod.states());
    let kinds: Vec<_> = Kind::all().into_iter().map(|kind| (kind, 1030)).collect();
    for control in [Control::Host, Control::Device(DeviceControl::new().with_max_norm(10.0))] {
        let bits = |rule: Rule| {
            let hyperparameters = Hyperparameters::from(rule)
                .with_weight_decay(WeightDecay::Decoupled(0.01))
                .with_cautious(true);
            let options = Options::new().with_seed(3).with_control(control);
            let model = Model::of_kinds(hyperparameters, &kinds).with_options(options);
            let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
            (0..4).for_each(|step| engine.step(&all(&model.gradients(step))));
            engine.bits()
        };
        assert!(bits(own_adamod()) == bits(AdaMod::new().into()), "{control:?}");
    }
    check(own_adamod()).unwrap();
}

/// What multiplies or counts learning rates finds those of a custom rule: factors of columns, a schedule, histograms.
#[test]
fn features_of_learning_rates_reach_custom_rules() {
    let factors = [1.0, 0.5, 0.0, 2.0];
    for is_on_device in [false, true] {
        let mut options = Options::new().with_diagnostics(Diagnostics::RateHistograms);
        if is_on_device {
            options = options.with_control(Control::Device(DeviceControl::new()));
        }
        let model = Model::new(Hyperparameters::from(scaled()), &[1028]).with_options(options);
        let mut engine = Engine::new(gpu(), &model, Layout::TwoPools(16));
        let mut twin = model.twin::<f32>();
        engine.optimizer.set_column_factors(engine.ids[0], &factors).unwrap();
        twin.set_column_factors(0, &factors);
        let scale = if is_on_device { 0.25 } else { 1.0 };
        if is_on_device {
            engine.optimizer.set_schedule(&[0.25]).unwrap();
        }
        let hyperparameters = Hyperparameters::from(scaled()).with_learning_rate(scale * 1e-3);
        twin.set_hyperparameters(0, hyperparameters);
        for step in 0..3 {
            let gradients = model.gradients(step);
            engine.step(&all(&gradients));
            twin.step(&all(&gradients));
        }
        let initial = &model.tensors[0].values;
        for (i, (got, expected)) in engine.values(0).into_iter().zip(twin.values(0)).enumerate() {
            assert!((got - expected).abs() <= 1e-6 + 1e-6 * expected.abs(), "element {i}: {got} {expected}");
            assert_eq!(got == initial[i], i % 4 == 2, "element {i}");
        }
        let counted = engine.optimizer.take_rate_histograms().wait().unwrap();
        assert_eq!(counted.eta.iter().sum::<u64>(), 3 * 1028);
    }
}

/// Captured values make a definition that no other is equal to; its kernels are the same.
#[test]
fn equal_definitions_are_one_rule() {
    assert_eq!(scaled(), scaled());
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let factor = CALLS.fetch_add(1, Ordering::Relaxed) as f64 + 2.0;
    let scaling = || {
        definition(WGSL).with_coefficients(
            ["exp_avg_sq_weight", "correction", "epsilon", "step_size"],
            move |&[beta, epsilon], learning_rate, t| {
                [ema_weight(beta), 1.0 / one_minus_power(beta, t), epsilon, factor * learning_rate]
            },
        )
    };
    let (one, other) = (Rule::custom(scaling()).unwrap(), Rule::custom(scaling()).unwrap());
    assert_ne!(one, other);
    assert_eq!([one.kind(), one.kind()], [other.kind(), scaled().kind()]);
    let RuleKind::Custom(kind) = one.kind() else { panic!("a custom rule") };
    assert_eq!(one.kind().to_string(), format!("scaled@{:016x}", kind.fingerprint()));
    assert!(matches!(one, Rule::Custom(rule) if CustomRule::has_cpu_step(&rule)));
}

#[test]
fn f32_state_only_is_kept_to() {
    let definition = definition(WGSL).with_f32_state_only("it is a test");
    let rule = Rule::custom(definition).unwrap();
    let mut model = Model::new(rule, &[8]);
    model.groups[0].precision = precision(StateFormat::Q8);
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let error = optimizer.add_group(model.groups[0]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StateFormat { reason: "it is a test", .. }), "{error}");
    optimizer.add_group(rule).unwrap();
}

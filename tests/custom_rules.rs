//! Definitions of rules of one's own that are refused, with the line of their WGSL. Needs no GPU.

use adamod::custom::error::CustomRuleError;
use adamod::custom::{MAX_HYPERPARAMETERS, OutOfRange, RuleDefinition, Sign, check_normal, ema_weight};
use adamod::{Hyperparameters, Rule, RuleKind};

const WGSL: &str = "// A signed average.
struct SignumCoefficients {
    exp_avg_weight: f32,
    step_size: f32,
}

fn signum_coefficients(base: SignumCoefficients, variant: u32, decay: Decay) -> SignumCoefficients {
    return base;
}

fn signum_step(general: General, c: SignumCoefficients, e: Elements) -> Stepped {
    let g = limited_gradient(general, e);
    let m = ema(e.state[0], g, c.exp_avg_weight);
    let rate = vec4(c.step_size);
    let theta = apply_step(general, e.theta, g, rate, signum(m));
    return Stepped(theta, State(m, e.state[1], e.state[2]), rate, rate);
}
";

fn named(name: &str, wgsl: &str) -> RuleDefinition {
    RuleDefinition::new(name, wgsl)
        .with_states([("exp_avg", Sign::Signed)])
        .with_hyperparameters([("beta", 0.9)])
        .with_coefficients(["exp_avg_weight", "step_size"], |&[beta], learning_rate, _t| {
            [ema_weight(beta), learning_rate]
        })
}

fn definition() -> RuleDefinition {
    named("signum", WGSL)
}

fn refused(definition: RuleDefinition) -> CustomRuleError {
    match Rule::custom(definition) {
        Err(error) => error,
        Ok(rule) => panic!("expected an error, got {rule:?}"),
    }
}

/// The error of the WGSL with a text changed.
fn changed(from: &str, to: &str) -> CustomRuleError {
    assert!(WGSL.contains(from), "{from}");
    refused(named("signum", &WGSL.replacen(from, to, 1)))
}

#[test]
fn a_definition_becomes_a_rule_with_its_hyperparameters() {
    let mut rule = Rule::custom(definition().with_learning_rate(1e-4)).unwrap();
    assert_eq!((rule.kind().name(), rule.kind().bytes_per_parameter()), ("signum", 20));
    assert_eq!(rule.hyperparameters(), [("beta", 0.9)]);
    assert!(rule.set_hyperparameter("beta", 0.5) && !rule.set_hyperparameter("gamma", 0.5));
    assert_eq!(rule.hyperparameters(), [("beta", 0.5)]);
    assert_eq!(Hyperparameters::from(rule).learning_rate, 1e-4);
    assert_eq!(rule.kind().with_defaults().hyperparameters(), [("beta", 0.9)]);
    assert_eq!(rule.state_names().collect::<Vec<_>>(), ["exp_avg"]);
    assert!(!RuleKind::ALL.contains(&rule.kind()));
}

#[test]
fn threads_that_make_the_same_rule_get_the_same() {
    let wgsl = WGSL.replace("signum_", "thread_").replace("Signum", "Thread");
    let make = || Rule::custom(named("thread", &wgsl)).unwrap();
    let rules: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(rules.iter().all(|rule| *rule == rules[0]), "{rules:?}");
}

#[test]
fn names_are_checked() {
    for name in ["", "Signum", "1st", "my rule", "straße"] {
        let error = refused(named(name, WGSL));
        assert!(
            matches!(&error, CustomRuleError::Name { what: "the rule", found, .. } if found == name),
            "{error}"
        );
    }
    let error = refused(named("adam", WGSL));
    assert_eq!(
        error.to_string(),
        "the rule is named \"adam\", expected a name that no rule of the library has"
    );
    for state in ["", "master", "param", "scales", "exp.avg"] {
        let error = refused(definition().with_states([(state, Sign::Signed)]));
        assert!(
            matches!(&error, CustomRuleError::Name { what: "a state", found, .. } if found == state),
            "{error}"
        );
    }
    let error = refused(definition().with_states([("m", Sign::Signed), ("m", Sign::Positive)]));
    assert_eq!(error.to_string(), "state \"m\" is declared twice, expected names that differ");
    let error = refused(definition().with_hyperparameters([("", 1.0)]));
    assert!(matches!(error, CustomRuleError::Name { what: "a hyperparameter", .. }), "{error}");
    let error = refused(definition().with_hyperparameters([("beta", 0.9), ("beta", 0.9)]));
    assert!(matches!(error, CustomRuleError::Duplicate { what: "hyperparameter", .. }), "{error}");
    let error = refused(definition().with_coefficients(["step_size", "step_size"], |&[_], a, _| [a, a]));
    assert!(matches!(error, CustomRuleError::Duplicate { what: "coefficient", .. }), "{error}");
    let error = refused(definition().with_coefficients(["step size"], |&[_], a, _| [a]));
    assert!(matches!(error, CustomRuleError::Name { what: "a coefficient", .. }), "{error}");
    let error = refused(definition().with_decay_rates(["beta2"]));
    assert_eq!(error.to_string(), "a decay rate is \"beta2\", expected one of beta");
    let error = refused(definition().with_debiased_states([("m", "beta")]));
    assert_eq!(error.to_string(), "a state that is stored debiased is \"m\", expected one of exp_avg");
    let error = refused(definition().with_debiased_states([("exp_avg", "beta")]));
    assert!(matches!(&error, CustomRuleError::Unknown { found, .. } if found == "beta"), "{error}");
    let error = refused(definition().with_rate_coefficients(["rate"]));
    assert!(matches!(error, CustomRuleError::Unknown { .. }), "{error}");
}

#[test]
fn counts_are_checked() {
    let states = ["a", "b", "c", "d"].map(|name| (name, Sign::Signed));
    let error = refused(definition().with_states(states));
    assert_eq!(error.to_string(), "the definition has 4 states, expected at most 3");
    let names: [String; MAX_HYPERPARAMETERS + 1] = std::array::from_fn(|index| format!("h{index}"));
    let error = refused(definition().with_hyperparameters(names.map(|name| (name, 0.0))));
    assert!(matches!(error, CustomRuleError::Count { what: "hyperparameters", found: 9, .. }), "{error}");
    let error = refused(RuleDefinition::new("signum", WGSL));
    assert_eq!(error.to_string(), "the definition has 0 coefficients, expected 1 to 9");
    let names: [String; 10] = std::array::from_fn(|index| format!("c{index}"));
    let error = refused(definition().with_coefficients(names, |&[_], _, _| [0.0; 10]));
    assert!(matches!(error, CustomRuleError::Count { what: "coefficients", found: 10, .. }), "{error}");
    let error = refused(definition().with_coefficients(["step_size"], |&[_, _], a, _| [a]));
    let text = "the definition has 2 hyperparameters in the function of coefficients, expected 1";
    assert_eq!(error.to_string(), text);
    let error = refused(definition().with_check(|&[_, _, _], _| Ok(())));
    assert!(
        matches!(error, CustomRuleError::Count { what: "hyperparameters in the check", found: 3, .. }),
        "{error}"
    );
}

#[test]
fn errors_of_the_wgsl_name_its_line() {
    let line_of = |error: CustomRuleError| match error {
        CustomRuleError::Source { line, text, message } => (line, text, message),
        error => panic!("{error}"),
    };
    // What the parser finds.
    let (line, text, message) = line_of(changed("ema(e.state[0]", "emma(e.state[0]"));
    assert_eq!((line, text.as_str()), (13, "let m = emma(e.state[0], g, c.exp_avg_weight);"));
    assert!(message.contains("emma"), "{message}");
    let (line, text, _) = line_of(changed("return base;", "return base"));
    assert_eq!((line, text.as_str()), (9, "}"));
    let (line, ..) = line_of(changed("rate, rate);\n}", "rate, rate);\n"));
    assert_eq!(line, 16);
    // What the validator finds.
    let (line, text, message) =
        line_of(changed("let rate = vec4(c.step_size);", "let rate = g;\n    return g;"));
    // Where the expression is that is returned.
    assert_eq!((line, text.as_str()), (12, "let g = limited_gradient(general, e);"), "{message}");
    // A name of the library, in a declaration of the right prefix, and one of the rule's own twice.
    let twice = "const SIGNUM_ONE = 1.0;\nconst SIGNUM_ONE = 2.0;\n\nfn signum_step";
    let (line, _, message) = line_of(changed("fn signum_step", twice));
    assert!([11, 12].contains(&line) && message.contains("SIGNUM_ONE"), "{line}: {message}");
    let error = refused(named("signum", &format!("{WGSL}\nfn signum_helper() {{ workgroup }}")));
    assert_eq!(line_of(error).0, 19);
}

#[test]
fn declarations_are_checked() {
    let line_of = |error: &CustomRuleError| match error {
        CustomRuleError::Declaration { line, .. } => *line,
        error => panic!("{error}"),
    };
    let error = changed("fn signum_step", "const ONE = 1.0;\nfn signum_step");
    let text =
        "line 11 of the WGSL declares const ONE, expected a name that starts with signum_, SIGNUM_ or Signum";
    assert_eq!(error.to_string(), text);
    let error = changed("fn signum_step", "var<private> signum_x: f32;\nfn signum_step");
    assert!(error.to_string().contains("declares var signum_x, expected only fn"), "{error}");
    let error =
        changed("fn signum_step", "@compute @workgroup_size(1)\nfn signum_main() {}\n\nfn signum_step");
    assert!(line_of(&error) == 12 && error.to_string().contains("entry point"), "{error}");
    let error = changed("let g = limited_gradient(general, e);", "let g = vec4(f32(segments[0].format));");
    assert!(line_of(&error) == 11 && error.to_string().contains("uses segments"), "{error}");
    let error = changed("fn signum_coefficients", "fn signum_other");
    let text = "fn signum_coefficients(SignumCoefficients, u32, Decay) -> SignumCoefficients";
    assert_eq!(error.to_string(), format!("the WGSL does not declare {text}"));
    let error = changed("variant: u32", "variant: i32");
    let found = text.replace("u32", "i32");
    assert_eq!(error.to_string(), format!("line 7 of the WGSL declares {found}, expected {text}"));
    let error = changed("    step_size: f32,\n", "    step_size: f32,\n    extra: f32,\n");
    assert!(line_of(&error) == 2 && error.to_string().contains("extra: f32"), "{error}");
    let swapped =
        named("signum", WGSL).with_coefficients(["step_size", "exp_avg_weight"], |&[beta], a, _t| [a, beta]);
    assert_eq!(line_of(&refused(swapped)), 2);
}

#[test]
fn numbers_are_checked() {
    let error = refused(definition().with_decay_rates(["beta"]).with_hyperparameters([("beta", 1.0)]));
    assert_eq!(error.to_string(), "beta is 1, expected a number in [0, 1)");
    let error = refused(definition().with_hyperparameters([("beta", f64::NAN)]));
    assert!(matches!(&error, CustomRuleError::OutOfRange(OutOfRange { name: "beta", .. })), "{error}");
    let error = refused(definition().with_check(|&[beta], _| check_normal("beta", -beta)));
    assert!(matches!(&error, CustomRuleError::OutOfRange(OutOfRange { found: -0.9, .. })), "{error}");
    let names = ["exp_avg_weight", "step_size"];
    let error =
        refused(definition().with_coefficients(names, |&[beta], rate, _t| [beta, rate / 1e-300 / 1e-300]));
    assert!(matches!(&error, CustomRuleError::OutOfRange(OutOfRange { name: "step_size", .. })), "{error}");
    // The rate and its square root.
    let error = refused(definition().with_coefficients(names, |&[beta], rate, _t| [beta, rate.sqrt()]));
    assert!(
        matches!(&error, CustomRuleError::Proportion { name, t: 1, .. } if name == "step_size"),
        "{error}"
    );
    let error = refused(definition().with_coefficients(names, |&[_], rate, _t| [rate, rate]));
    assert!(
        matches!(&error, CustomRuleError::Proportion { name, .. } if name == "exp_avg_weight"),
        "{error}"
    );
    let both = definition().with_coefficients(names, |&[_], rate, _t| [rate, rate]);
    assert!(Rule::custom(both.with_rate_coefficients(names)).is_ok());
}

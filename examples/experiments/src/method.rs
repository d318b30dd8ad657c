//! The methods that are compared: an update rule, its hyperparameters and its learning rate over the steps.

use adamod::{AdaMod, Group, Hyperparameters, Rule, RuleKind, schedule};

use clap::Args;

use crate::formats::Formats;
use crate::packages::Package;
use crate::rates::rate_name;

/// How the learning rate changes over the steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// Rises from 0 in a straight line over this many steps.
    Warmup(u64),
    /// Is divided by 10 after each of these steps.
    StepDecay(Vec<u64>),
}

/// AdaMod's beta3 as it grows over the steps: [`schedule::growing_decay_rate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Memory at the start, in steps.
    pub start: f64,
    /// Steps that the memory gains in a step: the fraction of the run so far that it covers in the end.
    pub fraction: f64,
}

/// A way to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Its name in tables and pictures.
    pub name: &'static str,
    pub hyperparameters: Hyperparameters,
    pub schedule: Schedule,
    /// How beta3 grows up to that of the hyperparameters; `None` if it is constant.
    pub growth: Option<Growth>,
    /// How parameters and state are stored.
    pub formats: Formats,
    /// What takes the steps instead of the library. Its formats are its own.
    pub package: Option<Package>,
}

impl Method {
    /// A method in f32, with a constant beta3.
    pub fn new(name: &'static str, hyperparameters: Hyperparameters, schedule: Schedule) -> Self {
        Self { name, hyperparameters, schedule, growth: None, formats: Formats::default(), package: None }
    }

    /// The group of all parameters.
    pub fn group(&self) -> Group {
        Group::new(self.hyperparameters).with_precision(self.formats.precision())
    }

    /// Hyperparameters of a step, counted from 1.
    pub fn hyperparameters_at(&self, step: u64) -> Hyperparameters {
        let mut hyperparameters = self.hyperparameters.with_learning_rate(self.learning_rate(step));
        if let (Some(Growth { start, fraction }), Some(rule)) = (self.growth, self.adamod()) {
            let [beta1, beta2, beta3] = rule.betas;
            let beta3 = schedule::growing_decay_rate(beta3, start, fraction, step);
            hyperparameters.rule = rule.with_betas([beta1, beta2, beta3]).into();
        }
        hyperparameters
    }

    /// The rate of a step, counted from 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let rate = self.hyperparameters.learning_rate;
        match &self.schedule {
            Schedule::Constant => schedule::constant(rate, step),
            Schedule::Warmup(steps) => schedule::linear_warmup(rate, 0.0, *steps, step),
            Schedule::StepDecay(milestones) => schedule::step_decay(rate, milestones, 0.1, step),
        }
    }

    /// Its name, and what distinguishes it from others with this name.
    pub fn description(&self) -> String {
        let mut text = format!("{}, alpha {}", self.name, rate_name(self.hyperparameters.learning_rate));
        if let Some(beta3) = self.beta3() {
            text += &format!(", beta3 {beta3}");
        }
        if let Some(Growth { start, fraction }) = self.growth {
            text += &format!(" from {start} + {fraction} t");
        }
        if self.formats != Formats::default() || self.package.is_some() {
            text += &format!(", {}", self.storage_name());
        }
        text
    }

    /// What distinguishes it in a comparison of formats: `q8/f32`, or the name of a package.
    pub fn storage_name(&self) -> String {
        self.package.as_ref().map_or_else(|| self.formats.to_string(), |package| package.name.name().into())
    }

    /// What distinguishes it in a comparison of beta3: `beta3 = 0.99`.
    pub fn beta3_name(&self) -> String {
        match (self.growth, self.beta3()) {
            (Some(_), _) => "growing beta3".to_owned(),
            (None, beta3) => format!("beta3 = {}", beta3.unwrap_or(f64::NAN)),
        }
    }

    pub fn rule(&self) -> RuleKind {
        self.hyperparameters.rule.kind()
    }

    /// AdaMod's beta3; `None` for other rules.
    pub fn beta3(&self) -> Option<f64> {
        self.adamod().map(|rule| rule.betas[2])
    }

    /// The same method with another beta3. Other rules than AdaMod stay as they are.
    pub fn with_beta3(&self, beta3: f64) -> Self {
        let mut method = self.clone();
        if let Some(rule) = self.adamod() {
            let [beta1, beta2, _] = rule.betas;
            method.hyperparameters.rule = rule.with_betas([beta1, beta2, beta3]).into();
        }
        method
    }

    fn adamod(&self) -> Option<AdaMod> {
        match self.hyperparameters.rule {
            Rule::AdaMod(rule) => Some(rule),
            _ => None,
        }
    }
}

/// How beta3 grows, for the method "AdaMod, growing beta3".
#[derive(Args, Clone, Debug)]
pub struct GrowthArguments {
    /// AdaMod with a growing beta3: memory of the bound at the start, in steps
    #[arg(long, default_value_t = 100.0, value_parser = parse_start)]
    growing_start: f64,

    /// Steps that this memory gains in a step: the fraction of the run that it covers
    #[arg(long, default_value_t = 1.0, value_parser = parse_fraction)]
    growing_fraction: f64,

    /// The beta3 up to which it grows
    #[arg(long, default_value_t = 0.9999, value_parser = parse_beta)]
    growing_beta3: f64,
}

impl GrowthArguments {
    /// The same method with a beta3 that grows.
    pub fn method(&self, method: &Method, name: &'static str) -> Method {
        let growth = Growth { start: self.growing_start, fraction: self.growing_fraction };
        Method { name, growth: Some(growth), ..method.with_beta3(self.growing_beta3) }
    }
}

fn parse_start(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(start) if (1.0..=1e12).contains(&start) => Ok(start),
        _ => Err("expected a number of steps from 1 to 1e12".into()),
    }
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(fraction) if (0.0..=1e6).contains(&fraction) => Ok(fraction),
        _ => Err("expected a number from 0 to 1e6".into()),
    }
}

/// Parses a beta, for the command line.
pub fn parse_beta(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(beta) if (0.0..1.0).contains(&beta) => Ok(beta),
        _ => Err("expected a number in [0, 1)".into()),
    }
}

#[cfg(test)]
mod tests {
    use adamod::Adam;

    use super::*;

    #[test]
    fn schedules_start_and_end_where_they_should() {
        let rates = |schedule, steps: [u64; 3]| {
            let hyperparameters = Hyperparameters::from(Adam::new()).with_learning_rate(0.5);
            let method = Method::new("", hyperparameters, schedule);
            steps.map(|step| method.learning_rate(step))
        };
        assert_eq!(rates(Schedule::Constant, [1, 2, 9]), [0.5; 3]);
        assert_eq!(rates(Schedule::Warmup(10), [1, 5, 10]), [0.05, 0.25, 0.5]);
        assert_eq!(rates(Schedule::StepDecay(vec![4]), [1, 4, 5]), [0.5, 0.5, 0.05]);
    }

    #[test]
    fn a_growing_beta3_ends_at_its_largest() {
        let adamod = Method::new("AdaMod", AdaMod::new().into(), Schedule::Warmup(2)).with_beta3(0.9);
        let arguments = GrowthArguments { growing_start: 10.0, growing_fraction: 1.0, growing_beta3: 0.95 };
        let growing = arguments.method(&adamod, "growing");
        let beta3 = |step| match growing.hyperparameters_at(step).rule {
            Rule::AdaMod(rule) => rule.betas[2],
            _ => f64::NAN,
        };
        assert_eq!([1, 5, 10, 11].map(beta3), [1.0 - 1.0 / 11.0, 1.0 - 1.0 / 15.0, 0.95, 0.95]);
        assert_eq!(growing.hyperparameters_at(1).learning_rate, 0.5e-3);
        assert_eq!(growing.description(), "growing, alpha 0.001, beta3 0.95 from 10 + 1 t");
        assert_eq!(
            (growing.beta3_name(), adamod.beta3_name()),
            ("growing beta3".into(), "beta3 = 0.9".into())
        );
        assert_eq!(adamod.hyperparameters_at(9), adamod.hyperparameters);
        assert!(
            parse_start("0.5").is_err() && parse_fraction("-1").is_err() && parse_fraction("nan").is_err()
        );
    }

    #[test]
    fn only_adamod_has_a_beta3() {
        let method = |rule: RuleKind| Method::new("method", rule.with_defaults().into(), Schedule::Constant);
        for &rule in RuleKind::ALL {
            let (method, changed) = (method(rule), method(rule).with_beta3(0.5));
            assert_eq!(changed.rule(), rule);
            let has_one = rule == RuleKind::AdaMod;
            assert_eq!(changed.beta3(), has_one.then_some(0.5));
            assert_eq!(changed.description().ends_with(", beta3 0.5"), has_one);
            assert_eq!(method == changed, !has_one);
        }
    }

    #[test]
    fn only_betas_are_taken() {
        assert_eq!(parse_beta("0"), Ok(0.0));
        assert!(["", "1", "-0.1", "nan", "x"].iter().all(|text| parse_beta(text).is_err()));
    }
}

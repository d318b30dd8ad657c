//! What is compared: an update rule, its hyperparameters and its learning rate over the steps.

use adamod::{Hyperparameters, Rule, schedule};

use crate::rates::rate_name;

/// How the learning rate changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Schedule {
    /// Not at all.
    #[default]
    Constant,
    /// From 0 in a straight line over so many steps.
    Warmup(u64),
    /// To a tenth after each of these steps.
    StepDecay(Vec<u64>),
}

/// A way to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Its name in tables and pictures.
    pub name: &'static str,
    pub rule: Rule,
    pub hyperparameters: Hyperparameters,
    pub schedule: Schedule,
}

impl Method {
    /// The rate of a step, counted from 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let rate = self.hyperparameters.learning_rate;
        match &self.schedule {
            Schedule::Constant => schedule::constant(rate, step),
            Schedule::Warmup(steps) => schedule::linear_warmup(rate, 0.0, *steps, step),
            Schedule::StepDecay(milestones) => schedule::step_decay(rate, milestones, 0.1, step),
        }
    }

    /// Its name and what distinguishes it from others of the name.
    pub fn description(&self) -> String {
        let Hyperparameters { learning_rate, betas: [.., beta3], .. } = self.hyperparameters;
        let alpha = rate_name(learning_rate);
        match self.rule {
            Rule::AdaMod => format!("{}, alpha {alpha}, beta3 {beta3}", self.name),
            _ => format!("{}, alpha {alpha}", self.name),
        }
    }

    /// The same with other hyperparameters.
    pub fn with(&self, change: impl FnOnce(&mut Hyperparameters)) -> Self {
        let mut method = self.clone();
        change(&mut method.hyperparameters);
        method
    }
}

/// A beta, for the command line.
pub fn parse_beta(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(beta) if (0.0..1.0).contains(&beta) => Ok(beta),
        _ => Err("needed is a number in [0, 1)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_and_end_where_they_should() {
        let rates = |schedule, steps: [u64; 3]| {
            let hyperparameters = Hyperparameters { learning_rate: 0.5, ..Default::default() };
            let method = Method { name: "", rule: Rule::Adam, hyperparameters, schedule };
            steps.map(|step| method.learning_rate(step))
        };
        assert_eq!(rates(Schedule::Constant, [1, 2, 9]), [0.5; 3]);
        assert_eq!(rates(Schedule::Warmup(10), [1, 5, 10]), [0.05, 0.25, 0.5]);
        assert_eq!(rates(Schedule::StepDecay(vec![4]), [1, 4, 5]), [0.5, 0.5, 0.05]);
    }

    #[test]
    fn only_betas_are_taken() {
        assert_eq!(parse_beta("0"), Ok(0.0));
        assert!(["", "1", "-0.1", "nan", "x"].iter().all(|text| parse_beta(text).is_err()));
    }
}

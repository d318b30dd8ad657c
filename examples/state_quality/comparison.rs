//! Optimizers against the truth in f64, step by step.

use adamod::reference::Reference;
use adamod::{Formula, Hyperparameters, Rule};

use crate::optimizers::Optimizer;
use crate::statistics::{Band, errors, median, ratios};
use crate::streams::Stream;

/// Index of `exp_avg_sq` among the states.
pub const EXP_AVG_SQ: usize = 1;
/// Index of `exp_avg_lr` among the states.
pub const EXP_AVG_LR: usize = 2;

/// How one optimizer stands to the truth after some steps.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub step: u64,
    /// `exp_avg_sq` in units of the truth's.
    pub squares: Band,
    /// `exp_avg_lr` in units of the truth's.
    pub rates: Band,
    /// Median of the relative errors of `exp_avg_lr`.
    pub rates_error: f64,
    /// Median of the relative errors of the way from where the parameter started, `|moved / moved_ref - 1|`.
    pub moved_error: f64,
    /// The same of the way that was gone: the sum of the steps' magnitudes.
    pub path_error: f64,
}

/// The snapshots of one optimizer.
pub struct Course {
    pub name: &'static str,
    pub snapshots: Vec<Snapshot>,
}

impl Course {
    /// The last snapshot at or before a step.
    pub fn at(&self, step: u64) -> &Snapshot {
        let before = self.snapshots.iter().take_while(|snapshot| snapshot.step <= step);
        before.last().unwrap_or(&self.snapshots[0])
    }
}

/// Values and the way that they have gone.
struct Way {
    last: Vec<f64>,
    path: Vec<f64>,
}

impl Way {
    fn new(elements: usize) -> Self {
        Self { last: vec![0.0; elements], path: vec![0.0; elements] }
    }

    fn go(&mut self, values: impl Iterator<Item = f64>) {
        for ((last, path), value) in self.last.iter_mut().zip(&mut self.path).zip(values) {
            *path += (value - *last).abs();
            *last = value;
        }
    }
}

/// Steps all optimizers with the same gradients and compares them after every `every` steps.
pub fn compare(
    mut optimizers: Vec<Box<dyn Optimizer>>,
    mut stream: Stream,
    hyperparameters: Hyperparameters,
    elements: usize,
    (steps, every): (u64, u64),
    mut progress: impl FnMut(u64),
) -> Vec<Course> {
    let mut truth = Reference::<f64>::new(Rule::AdaMod, Formula::Paper);
    let group = truth.add_group(hyperparameters);
    truth.add_parameter(group, vec![0.0; elements]);
    let mut true_way = Way::new(elements);
    let mut ways: Vec<Way> = optimizers.iter().map(|_| Way::new(elements)).collect();
    let mut courses: Vec<Course> =
        optimizers.iter().map(|o| Course { name: o.name(), snapshots: Vec::new() }).collect();
    let mut gradient = vec![0.0_f32; elements];
    for step in 1..=steps {
        stream.next(&mut gradient);
        let exact: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
        truth.step(&[Some(&exact)]);
        true_way.go(truth.values(0).iter().copied());
        for (optimizer, way) in optimizers.iter_mut().zip(&mut ways) {
            optimizer.step(&gradient);
            way.go(optimizer.values().iter().map(|&x| x.into()));
        }
        if step % every == 0 {
            let expected = truth.state(0);
            for ((optimizer, way), course) in optimizers.iter().zip(&ways).zip(&mut courses) {
                let states = optimizer.states();
                let rates = ratios(&states[EXP_AVG_LR], &expected[EXP_AVG_LR]);
                course.snapshots.push(Snapshot {
                    step,
                    squares: Band::of(ratios(&states[EXP_AVG_SQ], &expected[EXP_AVG_SQ])),
                    rates_error: median(errors(&rates)),
                    rates: Band::of(rates),
                    moved_error: median(errors(&ratios(&way.last, &true_way.last))),
                    path_error: median(errors(&ratios(&way.path, &true_way.path))),
                });
            }
            progress(every);
        }
    }
    courses
}

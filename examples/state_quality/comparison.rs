//! Compares optimizers with the f64 reference, step by step.

use adamod::reference::Reference;

use crate::optimizers::{Name, Optimizer, Settings};
use crate::statistics::{Band, errors, median, ratios};
use crate::streams::Stream;

/// Index of `exp_avg_sq` among the states.
pub const EXP_AVG_SQ: usize = 1;
/// Index of `exp_avg_lr` among the states.
pub const EXP_AVG_LR: usize = 2;

/// How far one optimizer is from the reference after some steps.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub step: u64,
    /// `exp_avg_sq` in units of the reference's.
    pub squares: Band,
    /// `exp_avg_lr` in units of the reference's.
    pub rates: Band,
    /// Median of the relative errors of `exp_avg_lr`.
    pub rates_error: f64,
    /// Median of the relative errors of the parameter's movement from its start, `|moved / moved_ref - 1|`.
    pub moved_error: f64,
    /// The same of the length of its path, the sum of the magnitudes of its steps.
    pub path_error: f64,
}

/// The snapshots of one optimizer.
pub struct Course {
    pub name: Name,
    pub snapshots: Vec<Snapshot>,
}

impl Course {
    /// The last snapshot at or before a step.
    pub fn at(&self, step: u64) -> &Snapshot {
        let before = self.snapshots.iter().take_while(|snapshot| snapshot.step <= step);
        before.last().unwrap_or(&self.snapshots[0])
    }
}

/// Values, and the lengths of their paths.
pub struct Distances {
    pub last: Vec<f64>,
    pub lengths: Vec<f64>,
}

impl Distances {
    pub fn new(elements: usize) -> Self {
        Self { last: vec![0.0; elements], lengths: vec![0.0; elements] }
    }

    pub fn go(&mut self, values: impl Iterator<Item = f64>) {
        for ((last, length), value) in self.last.iter_mut().zip(&mut self.lengths).zip(values) {
            *length += (value - *last).abs();
            *last = value;
        }
    }
}

/// Steps all optimizers with the same gradients and compares them after every `every` steps.
pub fn compare(
    mut optimizers: Vec<Box<dyn Optimizer>>,
    mut stream: Stream,
    settings: Settings,
    elements: usize,
    (steps, every): (u64, u64),
    mut progress: impl FnMut(u64),
) -> Vec<Course> {
    let mut reference = Reference::<f64>::new();
    let group = reference.add_group(settings);
    reference.add_parameter(group, vec![0.0; elements]);
    let mut exact_path = Distances::new(elements);
    let mut paths: Vec<Distances> = optimizers.iter().map(|_| Distances::new(elements)).collect();
    let mut courses: Vec<Course> =
        optimizers.iter().map(|o| Course { name: o.name(), snapshots: Vec::new() }).collect();
    let mut gradient = vec![0.0_f32; elements];
    for step in 1..=steps {
        stream.next(&mut gradient);
        let exact: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
        reference.step(&[Some(&exact)]);
        exact_path.go(reference.values(0).iter().copied());
        for (optimizer, path) in optimizers.iter_mut().zip(&mut paths) {
            optimizer.step(&gradient);
            path.go(optimizer.values().iter().map(|&x| x.into()));
        }
        if step % every == 0 {
            let expected = reference.state(0);
            for ((optimizer, path), course) in optimizers.iter().zip(&paths).zip(&mut courses) {
                let states = optimizer.states();
                let rates = ratios(&states[EXP_AVG_LR], &expected[EXP_AVG_LR]);
                course.snapshots.push(Snapshot {
                    step,
                    squares: Band::of(ratios(&states[EXP_AVG_SQ], &expected[EXP_AVG_SQ])),
                    rates_error: median(errors(&rates)),
                    rates: Band::of(rates),
                    moved_error: median(errors(&ratios(&path.last, &exact_path.last))),
                    path_error: median(errors(&ratios(&path.lengths, &exact_path.lengths))),
                });
            }
            progress(every);
        }
    }
    courses
}

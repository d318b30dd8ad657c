//! How rows that are appended to a trained tensor start: with zero state, with the mean rate of their columns, or with a step count of
//! their own. The CPU twin in f64 trains rows towards targets with noisy gradients, whose columns differ in scale by a factor of 100.
//!
//! ```sh
//! cargo run --release --example fresh_rows
//! ```

use adamod::reference::Reference;
use adamod::{AdaMod, Adam, FreshRows, Hyperparameters, Rule};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StandardNormal};

const ROW_LEN: usize = 16;
const OLD_ROWS: usize = 64;
const FRESH_ROWS: usize = 64;
const STEPS_BEFORE: usize = 2000;
/// Steps after which the fresh rows are measured.
const MEASURED: [usize; 4] = [10, 100, 500, 2000];
const SEEDS: u64 = 8;

/// How fresh rows start.
#[derive(Clone, Copy)]
enum Start {
    Of(FreshRows),
    /// A parameter of their own, which counts its steps from 1.
    OwnCount,
}

/// Rows with targets, whose gradients are the distance to the target plus noise, times the scale of the column.
struct Problem {
    rng: StdRng,
    targets: Vec<f64>,
}

impl Problem {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let targets = (0..(OLD_ROWS + FRESH_ROWS) * ROW_LEN).map(|_| rng.random_range(-1.0..1.0)).collect();
        Self { rng, targets }
    }

    fn gradients(&mut self, values: &[f64], first_row: usize) -> Vec<f64> {
        let targets = &self.targets[first_row * ROW_LEN..];
        let rng = &mut self.rng;
        let gradient = |(i, (value, target)): (usize, (&f64, &f64))| {
            let noise: f64 = StandardNormal.sample(rng);
            let scale = 10_f64.powf((i % ROW_LEN) as f64 / ROW_LEN as f64 * 2.0 - 1.0);
            scale * (value - target + 0.5 * noise)
        };
        values.iter().zip(targets).enumerate().map(gradient).collect()
    }

    /// Mean squared distance of the fresh rows.
    fn loss(&self, values: &[f64]) -> f64 {
        let targets = &self.targets[OLD_ROWS * ROW_LEN..];
        let squares = values.iter().zip(targets).map(|(value, target)| (value - target).powi(2));
        squares.sum::<f64>() / values.len() as f64
    }
}

/// The loss of the fresh rows after each number of steps.
fn losses(rule: Rule, start: Start, seed: u64) -> Vec<f64> {
    let mut problem = Problem::new(seed);
    let mut twin = Reference::<f64>::new();
    let group = twin.add_group(Hyperparameters::from(rule).with_learning_rate(0.01));
    let rows = twin.add_parameter(group, vec![0.0; OLD_ROWS * ROW_LEN]);
    for _ in 0..STEPS_BEFORE {
        let gradients = problem.gradients(twin.values(rows), 0);
        twin.step(&[Some(&gradients)]);
    }
    let mut own = None;
    match start {
        Start::Of(fresh) => {
            let mut values = twin.values(rows).to_vec();
            values.resize((OLD_ROWS + FRESH_ROWS) * ROW_LEN, 0.0);
            let sources: Vec<u32> = (0..(OLD_ROWS + FRESH_ROWS) as u32).collect();
            twin.remap(rows, ROW_LEN, &sources, fresh, values);
        }
        Start::OwnCount => own = Some(twin.add_parameter(group, vec![0.0; FRESH_ROWS * ROW_LEN])),
    }
    let mut losses = Vec::new();
    for step in 1..=MEASURED[MEASURED.len() - 1] {
        match own {
            None => {
                let gradients = problem.gradients(twin.values(rows), 0);
                twin.step(&[Some(&gradients)]);
            }
            Some(own) => {
                let old = problem.gradients(twin.values(rows), 0);
                let fresh = problem.gradients(twin.values(own), OLD_ROWS);
                twin.step(&[Some(&old), Some(&fresh)]);
            }
        }
        if MEASURED.contains(&step) {
            let fresh = match own {
                None => &twin.values(rows)[OLD_ROWS * ROW_LEN..],
                Some(own) => twin.values(own),
            };
            losses.push(problem.loss(fresh));
        }
    }
    losses
}

fn main() {
    println!(
        "Mean squared distance of fresh rows to their targets, which is 0.333 at first, mean of {SEEDS} seeds"
    );
    println!("{:24}{:16}{}", "rule", "start", MEASURED.map(|steps| format!("{steps:>8}")).concat());
    let adamod = |beta3: f64| Rule::from(AdaMod::new().with_betas([0.9, 0.999, beta3]));
    let rules = [
        ("AdaMod, beta3 0.99", adamod(0.99)),
        ("AdaMod, beta3 0.999", adamod(0.999)),
        ("AdaMod, beta3 0.9999", adamod(0.9999)),
        ("Adam", Adam::new().into()),
    ];
    let starts = [
        ("zero", Start::Of(FreshRows::Zero)),
        ("mean", Start::Of(FreshRows::Mean)),
        ("own step count", Start::OwnCount),
    ];
    for (rule_name, rule) in rules {
        for (name, start) in starts {
            let mut means = [0.0; MEASURED.len()];
            for seed in 0..SEEDS {
                for (mean, loss) in means.iter_mut().zip(losses(rule, start, seed)) {
                    *mean += loss / SEEDS as f64;
                }
            }
            println!("{rule_name:24}{name:16}{}", means.map(|loss| format!("{loss:8.4}")).concat());
        }
    }
}

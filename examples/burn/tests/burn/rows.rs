//! State that follows its rows, and rates by column.

use adamod_burn::adamod::{AdaMod, FreshRows, Options, Rule, Sgd};
use adamod_burn::{Error, FusedOptimizer};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor, TensorData};

use crate::common::{device, elements, gpu, wave};

const PATH: &str = "rows";
const ROWS: usize = 40;
const COLUMNS: usize = 3;

#[derive(Module, Debug)]
struct Splats {
    rows: Param<Tensor<2>>,
}

impl Splats {
    fn new(values: Tensor<2>) -> Self {
        Self { rows: Param::from_tensor(values) }
    }

    fn values(&self) -> Tensor<2> {
        self.rows.val().inner()
    }

    /// The new rows, as a module of its own.
    fn selected(self, sources: &[i32]) -> Self {
        let of_value: Vec<_> = sources.iter().map(|&row| row.max(0)).collect();
        let values = self.values().select(0, indices(&of_value));
        Self::new(Tensor::from_inner(values))
    }

    fn step(self, optimizer: &mut FusedOptimizer, gradient: Tensor<2>) -> Self {
        let mut gradients = GradientsParams::new();
        gradients.register(self.rows.id, gradient);
        optimizer.step(0.01, self, gradients).expect("a step")
    }
}

fn fused(rule: impl Into<Rule>) -> FusedOptimizer {
    let mut optimizer = FusedOptimizer::new(gpu(), Options::new()).expect("an optimizer");
    optimizer.add_group(rule.into(), |_| true).expect("a group");
    optimizer
}

fn indices(rows: &[i32]) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &gpu().device())
}

fn gradient(step: usize, rows: usize) -> Tensor<2> {
    wave(&[rows, COLUMNS], 0.3 + 0.9 * step as f32, &gpu().device())
}

fn splats() -> Splats {
    Splats::new(wave(&[ROWS, COLUMNS], 0.0, &device()))
}

/// The numbers of a state.
fn state(optimizer: &mut FusedOptimizer, name: &str) -> Vec<f32> {
    let state = optimizer.with_core(|core| {
        let parameter = core.parameter(PATH).expect("a parameter that has stepped");
        core.read_state(parameter).wait().expect("state")
    });
    state.expect("the core").tensor(name).expect("a state").to_vec()
}

fn step_count(optimizer: &mut FusedOptimizer) -> Option<u64> {
    optimizer.with_core(|core| core.step_count(core.parameter(PATH)?)).expect("the core")
}

#[test]
fn a_run_whose_rows_change_places_has_the_bits_of_one_whose_rows_stay() {
    let order: Vec<i32> = (0..ROWS as i32).map(|row| (7 * row + 3) % ROWS as i32).collect();
    let (mut staying, mut moving) = (fused(AdaMod::new()), fused(AdaMod::new()));
    let (mut stayed, mut moved) = (splats(), splats());
    for step in 0..3 {
        stayed = stayed.step(&mut staying, gradient(step, ROWS));
        moved = moved.step(&mut moving, gradient(step, ROWS));
    }
    moved = moved.selected(&order);
    // Computed on the device, where it is still queued.
    let sources = indices(&order).add_scalar(1).sub_scalar(1);
    assert!(moving.remap(PATH, sources, FreshRows::Zero).expect("a remap"));
    for step in 3..6 {
        stayed = stayed.step(&mut staying, gradient(step, ROWS));
        moved = moved.step(&mut moving, gradient(step, ROWS).select(0, indices(&order)));
    }
    assert_eq!(elements(moved.values()), elements(stayed.values().select(0, indices(&order))));
    let not_moved = elements(splats().values());
    assert_ne!(elements(stayed.values()), not_moved);
}

#[test]
fn rows_are_dropped_split_and_added() {
    for (fresh, sources) in [
        (FreshRows::Zero, (0..50).map(|row| if row % 5 == 0 { -1 } else { row % 17 }).collect::<Vec<i32>>()),
        (FreshRows::Mean, vec![7, -1, 39, 40]),
    ] {
        let mut optimizer = fused(AdaMod::new());
        let mut module = splats();
        for step in 0..3 {
            module = module.step(&mut optimizer, gradient(step, ROWS));
        }
        let names = ["exp_avg", "exp_avg_sq", "exp_avg_lr"];
        let old = names.map(|name| state(&mut optimizer, name));
        module = module.selected(&sources.iter().map(|row| row % ROWS as i32).collect::<Vec<_>>());
        assert!(optimizer.remap(PATH, indices(&sources), fresh).expect("a remap"));
        for (name, old) in names.iter().zip(&old) {
            let new = state(&mut optimizer, name);
            assert_eq!(new.len(), sources.len() * COLUMNS);
            for (row, &source) in new.chunks(COLUMNS).zip(&sources) {
                match old.chunks(COLUMNS).nth(usize::try_from(source).unwrap_or(usize::MAX)) {
                    Some(old) => assert_eq!(row, old, "{name} of row {source}"),
                    None => {
                        let has_mean = fresh == FreshRows::Mean && *name == "exp_avg_lr";
                        assert!(
                            row.iter().all(|of| (*of > 0.0) == has_mean),
                            "{name} of a fresh row: {row:?}"
                        );
                    }
                }
            }
        }
        assert_eq!(step_count(&mut optimizer), Some(3));
        let before = elements(module.values());
        let module = module.step(&mut optimizer, gradient(3, sources.len()));
        assert_eq!(step_count(&mut optimizer), Some(4));
        assert!(elements(module.values()).iter().zip(&before).any(|(new, old)| new != old));

        // The old length is refused.
        let module = splats();
        let mut gradients = GradientsParams::new();
        gradients.register(module.rows.id, gradient(4, ROWS));
        let error = optimizer.step(0.01, module, gradients).expect_err("another length");
        assert!(matches!(error.error(), Error::Changed { .. }), "{error}");
    }
}

#[test]
fn columns_have_rates_of_their_own() {
    let rate = 0.01;
    let moves = |optimizer: &mut FusedOptimizer, factors: [f32; COLUMNS]| {
        let module = splats();
        let before = elements(module.values());
        let after = elements(module.step(optimizer, gradient(0, ROWS)).values());
        let gradient = elements(gradient(0, ROWS));
        for (i, ((after, before), gradient)) in after.iter().zip(&before).zip(&gradient).enumerate() {
            let expected = before - rate * factors[i % COLUMNS] * gradient;
            assert!((after - expected).abs() <= 1e-6, "element {i}: {after}, expected {expected}");
        }
    };
    let mut optimizer = fused(Sgd::new().with_momentum(0.0));
    optimizer.set_column_factors(PATH, &[1.0, 0.5, 0.0]).expect("factors before the first step");
    moves(&mut optimizer, [1.0, 0.5, 0.0]);
    assert!(optimizer.forget(PATH).expect("to forget"));
    moves(&mut optimizer, [1.0, 0.5, 0.0]);
    optimizer.set_column_factors(PATH, &[2.0]).expect("other factors");
    moves(&mut optimizer, [2.0; COLUMNS]);
    optimizer.set_column_factors(PATH, &[]).expect("no factors");
    moves(&mut optimizer, [1.0; COLUMNS]);
}

#[test]
fn rows_and_factors_that_are_refused_change_nothing() {
    let mut optimizer = fused(AdaMod::new());
    assert!(!optimizer.remap(PATH, indices(&[0]), FreshRows::Zero).expect("no state yet"));
    optimizer.set_column_factors(PATH, &[f32::NAN]).expect("factors that the first step refuses");
    let module = splats();
    let mut gradients = GradientsParams::new();
    gradients.register(module.rows.id, gradient(0, ROWS));
    let (module, error) = optimizer.step(0.01, module, gradients).expect_err("a factor").into_parts();
    assert!(error.to_string().contains("column_factors"), "{error}");

    optimizer.set_column_factors(PATH, &[]).expect("no factors");
    let module = module.step(&mut optimizer, gradient(0, ROWS));
    let before = state(&mut optimizer, "exp_avg");
    let error = optimizer.set_column_factors(PATH, &[-1.0]).expect_err("a negative factor");
    assert!(error.to_string().contains("column_factors"), "{error}");
    let error = optimizer.remap(PATH, indices(&[]), FreshRows::Zero).expect_err("no rows");
    assert!(error.to_string().contains("0 elements of type"), "{error}");
    assert_eq!(state(&mut optimizer, "exp_avg"), before);
    module.step(&mut optimizer, gradient(1, ROWS));
    assert_eq!(step_count(&mut optimizer), Some(2));
}

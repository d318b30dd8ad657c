//! Tolerances, and how far results are from what a trace expects.
//!
//! An element passes if `|got - expected| <= absolute + relative * |expected|`; NaN never passes.
//!
//! | kind | up to 100 steps | beyond |
//! |---|---|---|
//! | `param` | 1e-6 + 1e-5 \|p\| | 1e-5 + 1e-4 \|p\| |
//! | signed states: `exp_avg`, `momentum_buffer` | 1e-5 (max + \|m\|) | 1e-4 (max + \|m\|) |
//! | other states: `exp_avg_sq`, `exp_avg_lr` | 1e-5 \|x\| | 1e-4 \|x\| |
//!
//! `max` is the largest magnitude in the tensor. A signed state is a sum of terms that cancel, so its rounding errors are relative to the
//! terms. The terms of the others have one sign. `tests/traces/README.md` has the measurements against PyTorch.
//!
//! Values that are expected in 16 bits may be off by half a unit in the last place besides: 2^-8 |p| in bf16, 2^-11 |p| + 2^-25 in
//! f16. State in formats below 32 bits is rounded at random, so an element may be off by several roundings. Its tolerances are:
//!
//! | kind | bf16 | q8 |
//! |---|---|---|
//! | `param` | 5% of the largest movement in the tensor | 100% |
//! | signed states | 5% (max + \|m\|) | 60% |
//! | `exp_avg_sq` | 15% | 100% + 2^-30 max |
//! | `exp_avg_lr` | 15% | 100% |
//!
//! In q8 an `exp_avg_sq` that is more than 32 octaves below its neighbours is stored too large, which makes its learning rate smaller.

use adamod::{DType, Sign, StateFormat};
use serde::Serialize;

use crate::trace::{Numbers, Trace, VALUES};

/// The longest run with the tighter tolerances.
const SHORT_STEPS: u64 = 100;

/// The values of one parameter, then its states in the order of its rule.
pub type Outcome = Vec<Vec<f64>>;

/// The largest differences of a kind; `null` in JSON if one is not finite.
#[derive(Debug, Serialize)]
pub struct KindReport {
    pub kind: &'static str,
    pub compared: usize,
    pub largest_absolute: f64,
    pub largest_relative: f64,
    /// The element with the largest share of its tolerance.
    pub worst: Worst,
    pub passed: bool,
}

#[derive(Debug, Default, Serialize)]
pub struct Worst {
    pub tensor: String,
    pub index: usize,
    pub got: f64,
    pub expected: f64,
    /// The difference as a share of the tolerance.
    pub of_tolerance: f64,
}

/// Compares a kind, `param` or the name of a state; `None` if the trace expects nothing of it.
pub fn compare(
    trace: &Trace,
    state: StateFormat,
    outcomes: &[Outcome],
    kind: &'static str,
) -> Option<KindReport> {
    let mut report = KindReport {
        kind,
        compared: 0,
        largest_absolute: 0.0,
        largest_relative: 0.0,
        worst: Worst::default(),
        passed: true,
    };
    for (index, (parameter, outcome)) in trace.parameters.iter().zip(outcomes).enumerate() {
        let Some(expected) = trace.expected(kind, index) else { continue };
        let found = trace.states(parameter).iter().zip(&outcome[1..]).find(|(state, _)| state.name == kind);
        let (got, sign) = match found {
            Some((state, got)) if kind != VALUES => (got, Some(state.sign)),
            _ => (&outcome[0], None),
        };
        let (absolute, relative) = tolerance(sign, state, trace.steps, expected, &parameter.values.elements);
        for (element, (&got, &expected)) in got.iter().zip(&expected.elements).enumerate() {
            let expected = f64::from(expected);
            // Equal infinities do not differ. Anything else that is not finite differs without bound.
            let difference = if got == expected { 0.0 } else { (got - expected).abs() };
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            let allowed = absolute + relative * expected.abs();
            let of_tolerance = if difference == 0.0 { 0.0 } else { difference / allowed };
            let passes = difference <= allowed && expected.is_finite() || difference == 0.0;
            report.passed &= passes;
            report.compared += 1;
            report.largest_absolute = report.largest_absolute.max(difference);
            if difference > 0.0 {
                report.largest_relative = report.largest_relative.max(difference / expected.abs());
            }
            let of_tolerance = if of_tolerance.is_nan() { f64::INFINITY } else { of_tolerance };
            if report.worst.tensor.is_empty() || of_tolerance > report.worst.of_tolerance {
                report.worst = Worst {
                    tensor: format!("expected.{kind}.{}", parameter.name),
                    index: element,
                    got,
                    expected,
                    of_tolerance,
                };
            }
        }
    }
    (report.compared > 0).then_some(report)
}

/// Absolute and relative tolerance of the values (`sign` is `None`) or of a state. `initial` has the values before the first step.
fn tolerance(
    sign: Option<Sign>,
    state: StateFormat,
    steps: u64,
    Numbers { dtype, elements: expected }: &Numbers,
    initial: &[f32],
) -> (f64, f64) {
    let largest = || expected.iter().fold(0.0, |largest: f64, &x| largest.max(f64::from(x).abs()));
    let rounding = match dtype {
        DType::F16 => (2_f64.powi(-25), 2_f64.powi(-11)),
        DType::Bf16 => (0.0, 2_f64.powi(-8)),
        _ => (0.0, 0.0),
    };
    // Below the smallest normal number nothing is promised.
    let smallest = f64::from(f32::MIN_POSITIVE);
    let (of_movement, of_signed, of_one_sign, of_largest) = match state {
        StateFormat::F32 => {
            let scale = if steps <= SHORT_STEPS { 1.0 } else { 10.0 };
            return match sign {
                None => (1e-6 * scale + rounding.0, 1e-5 * scale + rounding.1),
                Some(Sign::Signed) => (1e-5 * scale * largest(), 1e-5 * scale),
                Some(Sign::NonNegative | Sign::Positive) => (smallest, 1e-5 * scale),
            };
        }
        StateFormat::Bf16 => (0.05, 0.05, 0.15, 0.0),
        // Q8. Rounding is random. Where the rates of 32 neighbours span 27 octaves (`paper-tiny-and-zero`), the element that moves
        // most moves 1.00 times as far as it should on average over 6,000 seeds, and 0.31 to 1.97 times with single seeds.
        _ => (1.0, 0.6, 1.0, 2_f64.powi(-30)),
    };
    match sign {
        None => {
            let moved = expected.iter().zip(initial).map(|(&x, &initial)| f64::from(x) - f64::from(initial));
            let largest = moved.fold(0.0, |largest: f64, x| largest.max(x.abs()));
            (1e-6 + of_movement * largest + rounding.0, 1e-5 + rounding.1)
        }
        Some(Sign::Signed) => (of_signed * largest(), of_signed),
        Some(Sign::NonNegative) => (smallest + of_largest * largest(), of_one_sign),
        Some(Sign::Positive) => (smallest, of_one_sign),
    }
}

//! The page's pictures, as SVG.

use std::error::Error;

use adamod::RuleKind;

use crate::picture::{Entry, INK, Mark, legend, rule_color, svg};
use crate::plots::{draw_curve, log_range, loss_chart};
use crate::report::{Envelope, rule_name};
use crate::ridges::{Window, histogram};

/// Losses of single runs that are under way: a line for each rule, from epoch 1 to `epochs`.
pub fn race(
    size: (u32, u32),
    epochs: usize,
    runs: &[(RuleKind, Vec<f64>)],
) -> Result<String, Box<dyn Error>> {
    svg(size, "", |root| {
        let shown = |losses: &[f64]| losses.iter().copied().take_while(|loss| loss.is_finite()).collect();
        let curves: Vec<Vec<f64>> = runs.iter().map(|(_, losses)| shown(losses)).collect();
        let y_range = log_range(curves.iter().flatten().copied().filter(|loss| *loss > 0.0), 1.5);
        let entries =
            runs.iter().map(|(rule, _)| Entry::new(rule_name(*rule), rule_color(*rule), Mark::Line));
        let area = legend(root, &entries.collect::<Vec<_>>())?;
        let mut chart = loss_chart(&area, "", epochs as f64, y_range)?;
        for ((rule, losses), curve) in runs.iter().zip(curves) {
            let is_whole = curve.len() == losses.len();
            let envelope = |loss| Envelope { least: loss, mean: loss, greatest: loss };
            let curve: Vec<_> = curve.into_iter().map(envelope).collect();
            draw_curve(&mut chart, &curve, !is_whole, rule_color(*rule))?;
        }
        Ok(())
    })
}

/// The learning rates of single weights in one window of steps, and those that were used.
pub fn rates(size: (u32, u32), rule: RuleKind, window: &Window) -> Result<String, Box<dyn Error>> {
    svg(size, "", |root| {
        let is_bounded = window.clipped > 0 || rule == RuleKind::AdaMod;
        let entries = match is_bounded {
            true => vec![
                Entry::new("used: min(η, s)", rule_color(rule), Mark::Filled),
                Entry::new("unbounded: η", INK, Mark::Line),
            ],
            false => vec![Entry::new(format!("{}: η", rule_name(rule)), rule_color(rule), Mark::Filled)],
        };
        histogram(&legend(root, &entries)?, rule_color(rule), window)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use adamod::BINS;

    #[test]
    fn a_race_is_drawn_from_its_first_epoch_on() {
        let runs =
            |losses: &[f64]| vec![(RuleKind::AdaMod, losses.to_vec()), (RuleKind::Adam, vec![f64::NAN])];
        for losses in [&[][..], &[2.0], &[2.0, 1.0]] {
            assert!(race((400, 300), 60, &runs(losses)).unwrap().contains("AdaMod"));
        }
    }

    #[test]
    fn only_a_bound_has_two_histograms() {
        let mut counts = [0; BINS];
        counts[20] = 3;
        let window = |clipped| Window { steps: (1, 11), eta: counts, bounded: counts, clipped };
        let svg = |rule, clipped| rates((400, 300), rule, &window(clipped)).unwrap();
        assert!(svg(RuleKind::AdaMod, 1).contains("unbounded"));
        assert!(!svg(RuleKind::Adam, 0).contains("unbounded"));
    }
}

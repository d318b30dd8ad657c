//! PSNR over the steps, as SVG.

use std::error::Error;

use plotters::prelude::*;

use crate::fit::{Refined, Rule};
use crate::picture::{Area, Drawn, Entry, Mark, PANEL_TITLE_PIXELS, font, legend, styled, svg};
use crate::report::{Cell, Grid};
use crate::statistics::{extent, mean};

/// Steps of a line that are drawn.
const POINTS: usize = 200;

fn color_of(refined: Refined) -> RGBColor {
    match refined {
        Refined::Follows => RGBColor(0, 158, 115),
        Refined::FreshHalves => RGBColor(0, 114, 178),
        Refined::Reset => RGBColor(213, 94, 0),
    }
}

/// A panel for each rule, a line for each way to refine, a band from the least to the greatest seed.
pub fn psnr(grid: &Grid) -> Result<String, Box<dyn Error>> {
    let mut rules: Vec<Rule> = grid.cells.iter().map(|cell| cell.rule).collect();
    rules.dedup();
    let cells_of = |rule| grid.cells.iter().filter(move |cell| cell.rule == rule).collect::<Vec<_>>();
    svg(
        (if rules.len() == 1 { 820 } else { 460 * rules.len() as u32 }, 460),
        "PSNR over the steps of a run",
        |root| {
            let first = cells_of(rules[0]);
            let entry = |cell: &&Cell| Entry::new(cell.refined.title(), color_of(cell.refined), Mark::Line);
            let panels =
                legend(root, &first.iter().map(entry).collect::<Vec<_>>())?.split_evenly((1, rules.len()));
            let drawn = grid.cells.iter().flat_map(|cell| drawn_steps(cell).flat_map(|step| cell.psnr(step)));
            let drawn: Vec<f64> = drawn.filter(|psnr| psnr.is_finite()).collect();
            let (low, high) = if drawn.is_empty() { (0.0, 1.0) } else { extent(drawn) };
            let low = low.max(0.0);
            let y_range = (low, high.max(low + 1.0));
            panels
                .iter()
                .zip(&rules)
                .try_for_each(|(area, rule)| draw(area, *rule, &cells_of(*rule), y_range))
        },
    )
}

/// Some of a run's steps, the last among them.
fn drawn_steps(cell: &Cell) -> impl Iterator<Item = usize> {
    let steps = cell.steps();
    (1..=steps).rev().step_by(steps.div_ceil(POINTS)).collect::<Vec<_>>().into_iter().rev()
}

fn draw(area: &Area<'_>, rule: Rule, cells: &[&Cell], (low, high): (f64, f64)) -> Drawn {
    let steps = cells[0].steps();
    let mut chart = ChartBuilder::on(area)
        .caption(rule.title(), font(PANEL_TITLE_PIXELS))
        .margin(6)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..steps.max(2) as f64, low..high)?;
    styled(&mut chart.configure_mesh())
        .x_labels(6)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|psnr| format!("{psnr:.0}"))
        .x_desc("step")
        .y_desc("PSNR in dB")
        .draw()?;
    for cell in cells {
        let color = color_of(cell.refined);
        let points: Vec<_> = drawn_steps(cell)
            .map(|step| (step as f64, cell.psnr(step)))
            .filter(|(_, psnr)| psnr.iter().all(|psnr| psnr.is_finite()))
            .collect();
        let ends = |(step, psnr): &(f64, Vec<f64>)| (*step, extent(psnr.iter().copied()));
        let upper = points.iter().map(ends).map(|(step, (_, most))| (step, most));
        let lower = points.iter().rev().map(ends).map(|(step, (least, _))| (step, least));
        chart.draw_series([Polygon::new(upper.chain(lower).collect::<Vec<_>>(), color.mix(0.18))])?;
        let line = points.iter().map(|(step, psnr)| (*step, mean(psnr)));
        chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Outcome;

    #[test]
    fn runs_that_diverge_or_have_one_step_are_drawn() {
        for psnr in [vec![f64::NAN; 3], vec![12.0], vec![f64::INFINITY, 3.0], vec![-70.0, -80.0]] {
            let outcomes = vec![Outcome { psnr, frames: Vec::new(), count: 1 }];
            let cell = Cell { rule: Rule::Adam, refined: Refined::Reset, outcomes };
            let drawn = super::psnr(&Grid { cells: vec![cell], refinements: 0 }).unwrap();
            assert!(drawn.contains("state is reset"));
        }
    }

    #[test]
    fn the_last_step_is_drawn() {
        let outcomes = vec![Outcome { psnr: vec![1.0; 1001], frames: Vec::new(), count: 1 }];
        let cell = Cell { rule: Rule::Adam, refined: Refined::Reset, outcomes };
        let steps: Vec<_> = drawn_steps(&cell).collect();
        assert_eq!((steps.len(), steps[steps.len() - 1]), (167, 1001));
    }
}

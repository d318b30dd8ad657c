//! The pictures, as SVG.

use std::error::Error;
use std::ops::Range;

use adamod::RuleKind;
use plotters::coord::combinators::LogCoord;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::axis_labels::log_label;
use crate::picture::{
    Area, Drawn, Entry, INK, Mark, PANEL_TITLE_PIXELS, font, legend, rule_color, styled, svg,
};
use crate::rates::rate_name;
use crate::report::{Envelope, Grid, Row, rule_name};
use crate::ridges::{Ridges, Window, ridges};
use crate::statistics::{deviation, extent, mean};

pub type LossChart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, LogCoord<f64>>>;

/// Panels side by side.
const COLUMNS: usize = 3;
/// Dark to light for small to large learning rates (the "plasma" map without its lightest part).
const RATE_COLORS: [RGBColor; 5] = [
    RGBColor(35, 20, 135),
    RGBColor(126, 3, 168),
    RGBColor(204, 71, 120),
    RGBColor(240, 140, 60),
    RGBColor(222, 190, 30),
];

/// The color of one of `count` learning rates, over which the map is spread.
fn rate_color(index: usize, count: usize) -> RGBColor {
    RATE_COLORS[index * (RATE_COLORS.len() - 1) / count.saturating_sub(1).max(1)]
}

/// A range for a log axis, a little wider than the values.
pub fn log_range(values: impl IntoIterator<Item = f64>, margin_factor: f64) -> Range<f64> {
    let (low, high) = extent(values);
    if low > high {
        return 0.1..10.0;
    }
    low / margin_factor..high * margin_factor
}

/// Mean training loss of the epochs: a panel for each rule, a line for each learning rate, a band from the least to the greatest seed.
pub fn loss(grid: &Grid) -> Result<String, Box<dyn Error>> {
    let columns = grid.rows.len().clamp(1, COLUMNS);
    let rows = grid.rows.len().div_ceil(columns);
    svg((400 * columns as u32, 80 + 390 * rows as u32), "Training loss", |root| {
        let cells = || grid.rows.iter().flat_map(|row| &row.cells);
        let all = cells().flat_map(|cell| cell.epoch_losses(grid.steps_per_epoch));
        let y_range = log_range(all.flatten().filter(|loss| *loss > 0.0), 1.5);
        let mut entries: Vec<_> = (grid.learning_rates.iter().enumerate())
            .map(|(index, rate)| {
                let color = rate_color(index, grid.learning_rates.len());
                Entry::new(format!("α = {}", rate_name(*rate)), color, Mark::Line)
            })
            .collect();
        if cells().any(|cell| cell.diverged() > 0) {
            entries.push(Entry::new("a run diverged", INK, Mark::Cross));
        }
        let panels = legend(root, &entries)?.split_evenly((rows, columns));
        panels
            .iter()
            .zip(&grid.rows)
            .try_for_each(|(area, row)| draw_losses(area, grid, row, y_range.clone()))
    })
}

fn draw_losses(area: &Area<'_>, grid: &Grid, row: &Row, y_range: Range<f64>) -> Drawn {
    let epochs = row.cells[0].outcomes[0].losses.len() / grid.steps_per_epoch;
    let mut chart = loss_chart(area, rule_name(row.rule), epochs as f64, y_range)?;
    for (index, cell) in row.cells.iter().enumerate() {
        let color = rate_color(index, row.cells.len());
        draw_curve(&mut chart, &cell.loss_curve(grid.steps_per_epoch), cell.diverged() > 0, color)?;
    }
    Ok(())
}

/// An empty chart of losses by epoch.
pub fn loss_chart<'a, 'b>(
    area: &Area<'b>,
    caption: &str,
    epochs: f64,
    y_range: Range<f64>,
) -> Result<LossChart<'a, 'b>, Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, font(PANEL_TITLE_PIXELS))
        .margin(6)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(1.0..epochs.max(2.0), y_range.clone().log_scale())?;
    styled(&mut chart.configure_mesh())
        .x_labels((epochs as usize).clamp(2, 7))
        .y_labels(7)
        .x_label_formatter(&|epoch| format!("{epoch:.0}"))
        .y_label_formatter(&log_label(&y_range))
        .x_desc("epoch")
        .y_desc("mean cross-entropy of the epoch")
        .draw()?;
    Ok(chart)
}

/// Draws the losses of one cell; where a run diverged, a cross ends the line.
pub fn draw_curve(
    chart: &mut LossChart<'_, '_>,
    curve: &[Envelope],
    diverged: bool,
    color: RGBColor,
) -> Drawn {
    // A log axis cannot show a loss of exactly 0.
    let floor = chart.y_range().start;
    let points = |loss: fn(&Envelope) -> f64| {
        let losses = curve.iter().map(loss).enumerate();
        losses.map(|(index, loss)| ((index + 1) as f64, loss.max(floor))).collect::<Vec<_>>()
    };
    let mut band = points(|runs| runs.greatest);
    band.extend(points(|runs| runs.least).into_iter().rev());
    chart.draw_series([Polygon::new(band, color.mix(0.18))])?;

    let line = points(|runs| runs.mean);
    // A run that diverged in its first epoch has no line, so its cross is in the upper left corner.
    let end = line.last().copied().unwrap_or((1.0, chart.y_range().end));
    chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
    chart.draw_series(diverged.then(|| Cross::new(end, 6, color.stroke_width(3))))?;
    Ok(())
}

/// Test accuracy against learning rate: a line for each rule, bars of one standard deviation over the seeds.
pub fn accuracy(grid: &Grid) -> Result<String, Box<dyn Error>> {
    svg((900, 520), "Test accuracy against learning rate", |root| {
        let x_range = log_range(grid.learning_rates.iter().copied(), 1.6);
        let entries =
            grid.rows.iter().map(|row| Entry::new(rule_name(row.rule), rule_color(row.rule), Mark::Line));
        let area = legend(root, &entries.collect::<Vec<_>>())?;
        let accuracies = grid.rows.iter().flat_map(|row| &row.cells);
        let (worst, _) = extent(accuracies.flat_map(|cell| cell.accuracies()));
        let lowest = (20.0 * worst - 0.5).floor().max(0.0) * 5.0;
        let mut chart = ChartBuilder::on(&area)
            .margin(6)
            .x_label_area_size(46)
            .y_label_area_size(60)
            .build_cartesian_2d(x_range.clone().log_scale(), lowest..100.5)?;
        styled(&mut chart.configure_mesh())
            .x_label_formatter(&log_label(&x_range))
            .y_label_formatter(&|accuracy| format!("{accuracy:.0} %"))
            .x_desc("learning rate α")
            .y_desc("test accuracy, mean and standard deviation over seeds")
            .draw()?;
        for row in &grid.rows {
            let color = rule_color(row.rule);
            let points: Vec<_> = (grid.learning_rates.iter().zip(&row.cells))
                .map(|(rate, cell)| {
                    let percent: Vec<f64> = cell.accuracies().iter().map(|a| 100.0 * a).collect();
                    (*rate, mean(&percent), deviation(&percent))
                })
                .collect();
            let line = points.iter().map(|(rate, center, _)| (*rate, *center));
            chart.draw_series(LineSeries::new(line.clone(), color.stroke_width(3)))?;
            chart.draw_series(line.map(|point| Circle::new(point, 5, color.filled())))?;
            // No accuracy is above 100 % or below the axis, and no bar is.
            chart.draw_series(points.iter().map(|&(rate, center, deviation)| {
                let ends =
                    [(rate, (center - deviation).max(lowest)), (rate, (center + deviation).min(100.0))];
                PathElement::new(ends, color.stroke_width(2))
            }))?;
        }
        Ok(())
    })
}

/// Distribution of the learning rates over time, Adam's beside AdaMod's: a ridge for each window of steps, the first at the top.
pub fn learning_rates(adam: &[Window], adamod: &[Window], alpha: f64) -> Result<String, Box<dyn Error>> {
    let title = format!("Learning rates of the single weights over time, α = {}", rate_name(alpha));
    let panel = |title: &str, rule, windows| Ridges { title: title.into(), color: rule_color(rule), windows };
    let panels = [
        panel("Adam: η", RuleKind::Adam, adam),
        panel("AdaMod: filled min(η, s), line η", RuleKind::AdaMod, adamod),
    ];
    ridges((900, 560), &title, &panels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Cell;
    use crate::train::Outcome;

    #[test]
    fn a_grid_in_which_all_runs_diverge_at_once_is_drawn() {
        let outcome = Outcome { losses: vec![f32::NAN; 4], accuracy: None };
        let grid = Grid {
            learning_rates: vec![1.0],
            rows: vec![Row { rule: RuleKind::Sgd, cells: vec![Cell { outcomes: vec![outcome] }] }],
            steps_per_epoch: 2,
        };
        assert!(loss(&grid).unwrap().contains("diverged"));
        accuracy(&grid).unwrap();
    }
}

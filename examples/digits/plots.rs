//! The pictures, as SVG.

use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};

use adamod::RuleKind;
use plotters::coord::combinators::LogCoord;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::axis_labels::plain;
use crate::picture::{Area, LABEL_PIXELS, PANEL_TITLE_PIXELS, draw_legend, draw_line, font, picture, styled};
use crate::rates::rate_name;
use crate::report::{Envelope, Grid, Row, rule_name};
use crate::ridges::{self, Ridges, Window};
use crate::statistics::{deviation, extent, mean};

type LossChart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, LogCoord<f64>>>;
type Drawn = Result<(), Box<dyn Error>>;

/// Width left for a legend beside a chart.
const LEGEND_PIXELS: i32 = 170;
/// Dark to light for small to large learning rates (the "plasma" map without its lightest part).
const RATE_COLORS: [RGBColor; 5] = [
    RGBColor(35, 20, 135),
    RGBColor(126, 3, 168),
    RGBColor(204, 71, 120),
    RGBColor(240, 140, 60),
    RGBColor(222, 190, 30),
];

fn rule_color(rule: RuleKind) -> RGBColor {
    match rule {
        RuleKind::AdaMod => RGBColor(0, 114, 178),
        RuleKind::Adam => RGBColor(213, 94, 0),
        RuleKind::Sgd => RGBColor(110, 110, 120),
        _ => RGBColor(0, 158, 115),
    }
}

/// The color of one of `count` learning rates, over which the map is spread.
fn rate_color(index: usize, count: usize) -> RGBColor {
    RATE_COLORS[index * (RATE_COLORS.len() - 1) / count.saturating_sub(1).max(1)]
}

/// A range for a log axis, a little wider than the values.
fn log_range(values: impl IntoIterator<Item = f64>, margin_factor: f64) -> Range<f64> {
    let (low, high) = extent(values);
    if low > high {
        return 0.1..10.0;
    }
    low / margin_factor..high * margin_factor
}

/// Mean training loss of the epochs: a panel for each rule, a line for each learning rate, a band from the least to the greatest seed.
pub fn loss(grid: &Grid, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("loss.svg");
    {
        let root = picture(&path, (1200, 470), "Training loss")?;
        let cells = grid.rows.iter().flat_map(|row| &row.cells);
        let all = cells.flat_map(|cell| cell.epoch_losses(grid.steps_per_epoch));
        let mut y_range = log_range(all.flatten().filter(|loss| *loss > 0.0), 1.5);
        // Room for the legends above the lines.
        y_range.end *= (y_range.end / y_range.start).powf(0.3);
        for (area, row) in root.split_evenly((1, grid.rows.len())).iter().zip(&grid.rows) {
            draw_losses(area, grid, row, y_range.clone())?;
        }
        root.present()?;
    }
    Ok(path)
}

fn draw_losses(area: &Area<'_>, grid: &Grid, row: &Row, y_range: Range<f64>) -> Drawn {
    let epochs = row.cells[0].outcomes[0].losses.len() / grid.steps_per_epoch;
    let mut chart = ChartBuilder::on(area)
        .caption(rule_name(row.rule), font(PANEL_TITLE_PIXELS))
        .margin(6)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(1.0..(epochs as f64).max(2.0), y_range.log_scale())?;
    styled(&mut chart.configure_mesh())
        .x_labels(epochs.min(7))
        .y_labels(7)
        .x_label_formatter(&|epoch| format!("{epoch:.0}"))
        .y_label_formatter(&|loss| plain(*loss))
        .x_desc("epoch")
        .y_desc("mean cross-entropy of the epoch")
        .draw()?;

    for (index, (rate, cell)) in grid.learning_rates.iter().zip(&row.cells).enumerate() {
        let color = rate_color(index, row.cells.len());
        let name = format!("α = {}", rate_name(*rate));
        draw_curve(&mut chart, &cell.loss_curve(grid.steps_per_epoch), cell.diverged() > 0, name, color)?;
    }
    draw_legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// Draws the losses of one cell; where a run diverged, a cross ends the line.
fn draw_curve(
    chart: &mut LossChart<'_, '_>,
    curve: &[Envelope],
    diverged: bool,
    name: String,
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
    let name = if diverged { format!("{name}, diverged") } else { name };
    draw_line(chart, line, &name, color)?;
    chart.draw_series(diverged.then(|| Cross::new(end, 6, color.stroke_width(3))))?;
    Ok(())
}

/// Test accuracy against learning rate: a line for each rule, bars of one standard deviation over the seeds.
pub fn accuracy(grid: &Grid, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("accuracy.svg");
    {
        let root = picture(&path, (900, 500), "Test accuracy against learning rate")?;
        let x_range = log_range(grid.learning_rates.iter().copied(), 1.6);
        let accuracies = grid.rows.iter().flat_map(|row| &row.cells);
        let (worst, _) = extent(accuracies.flat_map(|cell| cell.accuracies()));
        let lowest = (20.0 * worst - 0.5).floor().max(0.0) * 5.0;
        let mut chart = ChartBuilder::on(&root)
            .margin(6)
            .margin_right(LEGEND_PIXELS)
            .x_label_area_size(46)
            .y_label_area_size(60)
            .build_cartesian_2d(x_range.log_scale(), lowest..100.5)?;
        styled(&mut chart.configure_mesh())
            .x_label_formatter(&|rate| plain(*rate))
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
            chart.draw_series(points.iter().map(|&(rate, center, deviation)| {
                let ends = [(rate, center - deviation), (rate, center + deviation)];
                PathElement::new(ends, color.stroke_width(2))
            }))?;
        }
        draw_legend_beside(&root, grid.rows.iter().map(|row| row.rule))?;
        root.present()?;
    }
    Ok(path)
}

/// Names and colors of the rules to the right of a chart, because lines may cross every corner of it.
fn draw_legend_beside(root: &Area<'_>, rules: impl Iterator<Item = RuleKind>) -> Drawn {
    const LINE_PIXELS: i32 = 22;
    let x = root.dim_in_pixel().0 as i32 - LEGEND_PIXELS + 12;
    for (y, rule) in (LINE_PIXELS..).step_by(LINE_PIXELS as usize).zip(rules) {
        let stroke = rule_color(rule).stroke_width(3);
        let style = font(LABEL_PIXELS).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&PathElement::new([(x, y), (x + 18, y)], stroke))?;
        root.draw(&Text::new(rule_name(rule), (x + 26, y), style))?;
    }
    Ok(())
}

/// Distribution of the learning rates over time, Adam's beside AdaMod's: a ridge for each window of steps, the first at the top.
pub fn learning_rates(
    adam: &[Window],
    adamod: &[Window],
    alpha: f64,
    folder: &Path,
) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("learning_rates.svg");
    let title = format!("Learning rates of the single weights over time, α = {}", rate_name(alpha));
    let panel = |title: &str, rule, windows| Ridges { title: title.into(), color: rule_color(rule), windows };
    let panels = [
        panel("Adam: η", RuleKind::Adam, adam),
        panel("AdaMod: filled min(η, s), line η", RuleKind::AdaMod, adamod),
    ];
    ridges::draw(&path, &title, &panels)?;
    Ok(path)
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
        let folder = tempfile::tempdir().unwrap();
        let picture = loss(&grid, folder.path()).unwrap();
        assert!(std::fs::read_to_string(picture).unwrap().contains("diverged"));
        accuracy(&grid, folder.path()).unwrap();
    }
}

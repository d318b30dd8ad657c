//! The pictures, as SVG.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use anyhow::anyhow;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::axis_labels::plain;
use crate::picture::{
    Area, Entry, Mark, PANEL_TITLE_PIXELS, band_within, font, legend, picture, styled, within,
};
use crate::ridges::{self, Ridges};
use crate::statistics::{extent, mean};

type Drawn = Result<(), Box<dyn Error>>;

pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const ORANGE: RGBColor = RGBColor(213, 94, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub const GREY: RGBColor = RGBColor(110, 110, 120);
/// Dark to light, for values in ascending order.
pub const SCALE: [RGBColor; 4] =
    [RGBColor(35, 20, 135), RGBColor(156, 23, 158), RGBColor(225, 100, 98), RGBColor(222, 180, 40)];

/// A line, and the band of several runs.
pub struct Series {
    pub name: String,
    pub color: RGBColor,
    /// Values at equal distances, one list for each run. A run may end early.
    pub runs: Vec<Vec<f64>>,
}

/// One of several charts.
pub struct Panel {
    pub title: String,
    pub series: Vec<Series>,
}

/// What the axes of all panels of a picture share.
pub struct Axes {
    pub x: &'static str,
    pub y: &'static str,
    /// Distance on the x axis between two values of a series, and the place of the first value.
    pub x_step: f64,
    /// The place of the last value of a whole series, if a further distance would lead beyond it.
    pub x_end: f64,
    /// Whether the y axis is logarithmic if values span a decade.
    pub logarithmic: bool,
    /// The range of y, outside of which nothing is drawn; `None` for that of the values.
    pub y_range: Option<Range<f64>>,
}

fn drawing(error: Box<dyn Error>) -> anyhow::Error {
    anyhow!("could not draw the picture: {error}")
}

impl Axes {
    /// The place of a value of a series.
    fn x(&self, index: usize) -> f64 {
        (self.x_step * (index + 1) as f64).min(self.x_end)
    }
}

/// Draws curves, with the panels side by side.
pub fn curves(path: &Path, title: &str, axes: &Axes, panels: &[Panel]) -> anyhow::Result<()> {
    draw_curves(path, title, axes, panels).map_err(drawing)
}

/// Draws the distribution of learning rates over time, with a panel for each run.
pub fn learning_rates(path: &Path, title: &str, panels: &[Ridges<'_>]) -> anyhow::Result<()> {
    ridges::draw(path, title, panels).map_err(drawing)
}

fn draw_curves(path: &Path, title: &str, axes: &Axes, panels: &[Panel]) -> Drawn {
    let root = picture(path, (420 * panels.len().max(1) as u32 + 40, 460), title)?;
    let runs = || panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.runs);
    let longest = runs().map(Vec::len).max().unwrap_or(0);
    let x_range = axes.x(0)..axes.x(longest.saturating_sub(1)).max(axes.x(0) + 1.0);
    let finite = runs().flatten().copied().filter(|value| value.is_finite());
    for (area, panel) in root.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
        let (low, high) = extent(finite.clone().filter(|value| *value > 0.0));
        if axes.logarithmic && high >= 10.0 * low {
            let y_range = axes.y_range.clone().unwrap_or(low / 1.3..high * 1.3);
            let y_coordinates = y_range.clone().log_scale().with_key_points(ticks(&y_range));
            draw_panel(area, axes, panel, x_range.clone(), y_coordinates, y_range)?;
        } else {
            let (low, high) = extent(finite.clone());
            let margin = if low < high { 0.05 * (high - low) } else { 0.5 };
            let y_range = if low <= high { low - margin..high + margin } else { 0.0..1.0 };
            let y_range = axes.y_range.clone().unwrap_or(y_range);
            draw_panel(area, axes, panel, x_range.clone(), y_range.clone(), y_range)?;
        }
    }
    Ok(root.present()?)
}

/// 1, 2 and 5 times the powers of ten in a range of positive numbers.
fn ticks(range: &Range<f64>) -> Vec<f64> {
    let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|tick| tick * 10_f64.powi(decade)));
    all.filter(|tick| range.contains(tick)).collect()
}

fn draw_panel<Y>(
    area: &Area<'_>,
    axes: &Axes,
    panel: &Panel,
    x_range: Range<f64>,
    y_coordinates: Y,
    y_range: Range<f64>,
) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let area = area.titled(&panel.title, font(PANEL_TITLE_PIXELS))?;
    let entries = panel.series.iter().map(|series| Entry::new(&series.name, series.color, Mark::Line));
    let area = legend(&area, &entries.collect::<Vec<_>>())?;
    let mut chart = ChartBuilder::on(&area)
        .margin(6)
        .x_label_area_size(42)
        .y_label_area_size(62)
        .build_cartesian_2d(x_range, y_coordinates)?;
    styled(&mut chart.configure_mesh())
        .x_labels(6)
        .y_labels(7)
        .x_label_formatter(&|x| plain(*x))
        .y_label_formatter(&|y| plain(*y))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .draw()?;
    let range = (y_range.start, y_range.end);
    for Series { color, runs, .. } in &panel.series {
        let common = runs.iter().map(Vec::len).min().unwrap_or(0);
        let common = (0..common).take_while(|&i| runs.iter().all(|run| run[i].is_finite()));
        let (band, line): (Vec<_>, Vec<_>) = common
            .map(|i| {
                let values: Vec<f64> = runs.iter().map(|run| run[i]).collect();
                let (least, greatest) = extent(values.iter().copied());
                ((axes.x(i), least, greatest), (axes.x(i), mean(&values)))
            })
            .unzip();
        if runs.len() > 1 {
            let parts = band_within(&band, range).into_iter();
            chart.draw_series(parts.map(|part| Polygon::new(part, color.mix(0.18))))?;
        }
        // A line of one point has no length.
        if let [(x, y)] = line[..] {
            let point = Some((x, y)).filter(|_| y_range.contains(&y));
            chart.draw_series(point.map(|point| Circle::new(point, 3, color.filled())))?;
        }
        for part in within(&line, range) {
            chart.draw_series(LineSeries::new(part, color.stroke_width(2)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_axes_have_labels_within_a_decade() {
        assert_eq!(ticks(&(0.9..21.0)), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(&(0.03..0.3)), [0.05, 0.1, 0.2]);
    }

    #[test]
    fn all_pictures_can_be_drawn_of_runs_that_ended_early() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.svg");
        for logarithmic in [false, true] {
            let axes = Axes { x: "step", y: "loss", x_step: 10.0, x_end: 25.0, logarithmic, y_range: None };
            assert_eq!([0, 1, 2].map(|index| axes.x(index)), [10.0, 20.0, 25.0]);
            let series = |runs: &[&[f64]]| Series {
                name: "Adam".into(),
                color: BLUE,
                runs: runs.iter().map(|run| run.to_vec()).collect(),
            };
            let runs: [&[&[f64]]; 4] = [&[&[30.0, 2.0, 1.0], &[3.0, f64::NAN]], &[&[1.0]], &[&[]], &[]];
            let panels = runs.map(|runs| Panel { title: "α".into(), series: vec![series(runs)] });
            curves(&path, "Loss", &axes, &panels).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().contains("Adam"));
        }
    }
}

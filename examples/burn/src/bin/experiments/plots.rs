//! The pictures, as SVG.

use std::ops::Range;
use std::path::Path;

use adamod::{BINS, LearningRates};
use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::learner::Window;
use crate::statistics::{extent, mean};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const FONT: &str = "sans-serif";
const TITLE_PIXELS: i32 = 22;
const PANEL_TITLE_PIXELS: i32 = 18;
const LABEL_PIXELS: i32 = 14;
const INK: RGBColor = RGBColor(45, 45, 55);
const FAINT: RGBColor = RGBColor(225, 225, 230);

pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const ORANGE: RGBColor = RGBColor(213, 94, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const GREY: RGBColor = RGBColor(110, 110, 120);
/// Dark to light, for values in ascending order.
pub const SCALE: [RGBColor; 4] =
    [RGBColor(35, 20, 135), RGBColor(156, 23, 158), RGBColor(225, 100, 98), RGBColor(222, 180, 40)];

/// A line, and the band that several runs fill.
pub struct Series {
    pub name: String,
    pub color: RGBColor,
    /// Values at equal distances, one list a run. A run may end early.
    pub runs: Vec<Vec<f64>>,
}

/// A chart beside others.
pub struct Panel {
    pub title: String,
    pub series: Vec<Series>,
}

/// What the axes of all panels of a picture share.
pub struct Axes {
    pub x: &'static str,
    pub y: &'static str,
    /// Distance on the x axis between two values of a series; the first lies there too.
    pub x_step: f64,
    pub logarithmic: bool,
    /// Least and greatest y that are drawn; otherwise what the values need.
    pub y_range: Option<Range<f64>>,
}

fn font(pixels: i32) -> TextStyle<'static> {
    (FONT, pixels).into_font().color(&INK)
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the picture cannot be drawn: {error}")
}

/// Opens a white picture with a title; returns the area below the title.
fn picture<'a>(path: &'a Path, size: (u32, u32), title: &str) -> anyhow::Result<Area<'a>> {
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(drawing)?;
    root.margin(12, 8, 12, 16).titled(title, font(TITLE_PIXELS)).map_err(drawing)
}

/// Curves, a panel beside the other.
pub fn curves(path: &Path, title: &str, axes: &Axes, panels: &[Panel]) -> anyhow::Result<()> {
    let root = picture(path, (420 * panels.len().max(1) as u32 + 40, 430), title)?;
    let runs = || panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.runs);
    let longest = runs().map(Vec::len).max().unwrap_or(0);
    let x_range = axes.x_step..(axes.x_step * longest.max(2) as f64);
    let finite = runs().flatten().copied().filter(|value| value.is_finite());
    for (area, panel) in root.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
        if axes.logarithmic {
            let (low, high) = extent(finite.clone().filter(|value| *value > 0.0));
            let y_range = if low <= high { low / 1.3..high * 1.3 } else { 0.1..1.0 };
            let y_range = axes.y_range.clone().unwrap_or(y_range);
            draw_panel(area, axes, panel, x_range.clone(), y_range.clone().log_scale(), y_range)?;
        } else {
            let (low, high) = extent(finite.clone());
            let margin = if low < high { 0.05 * (high - low) } else { 0.5 };
            let y_range = if low <= high { low - margin..high + margin } else { 0.0..1.0 };
            let y_range = axes.y_range.clone().unwrap_or(y_range);
            draw_panel(area, axes, panel, x_range.clone(), y_range.clone(), y_range)?;
        }
    }
    root.present().map_err(drawing)
}

fn draw_panel<Y>(
    area: &Area<'_>,
    axes: &Axes,
    panel: &Panel,
    x_range: Range<f64>,
    y_coordinates: Y,
    y_range: Range<f64>,
) -> anyhow::Result<()>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, font(PANEL_TITLE_PIXELS))
        .margin(6)
        .x_label_area_size(42)
        .y_label_area_size(62)
        .build_cartesian_2d(x_range, y_coordinates)
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(font(LABEL_PIXELS))
        .x_labels(6)
        .y_labels(7)
        .x_label_formatter(&|x| plain(*x))
        .y_label_formatter(&|y| plain(*y))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .draw()
        .map_err(drawing)?;
    for Series { name, color, runs } in &panel.series {
        let color = *color;
        let common = runs.iter().map(Vec::len).min().unwrap_or(0);
        let common = (0..common).take_while(|&i| runs.iter().all(|run| run[i].is_finite()));
        let points: Vec<_> = common
            .map(|i| {
                let values: Vec<f64> =
                    runs.iter().map(|run| run[i].clamp(y_range.start, y_range.end)).collect();
                let (least, greatest) = extent(values.iter().copied());
                (axes.x_step * (i + 1) as f64, least, mean(&values), greatest)
            })
            .collect();
        if runs.len() > 1 {
            let mut band: Vec<_> = points.iter().map(|&(x, _, _, greatest)| (x, greatest)).collect();
            band.extend(points.iter().rev().map(|&(x, least, _, _)| (x, least)));
            chart.draw_series([Polygon::new(band, color.mix(0.18))]).map_err(drawing)?;
        }
        chart
            .draw_series(LineSeries::new(
                points.iter().map(|&(x, _, center, _)| (x, center)),
                color.stroke_width(2),
            ))
            .map_err(drawing)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(font(LABEL_PIXELS))
        .background_style(WHITE.mix(0.8))
        .border_style(FAINT)
        .draw()
        .map_err(drawing)
}

/// Learning rates of one run over time.
pub struct Ridges<'a> {
    pub title: String,
    pub color: RGBColor,
    pub windows: &'a [Window],
}

/// Distribution of the learning rates over time, a panel a run, a ridge a window of steps, the first at the top.
pub fn learning_rates(path: &Path, title: &str, panels: &[Ridges<'_>]) -> anyhow::Result<()> {
    let root = picture(path, (430 * panels.len().max(1) as u32, 560), title)?;
    let windows = || panels.iter().flat_map(|panel| panel.windows);
    let bins = occupied_bins(windows());
    let histograms = windows().flat_map(|window| [&window.rates.eta, &window.rates.bounded]);
    let tallest = extent(histograms.flat_map(frequencies)).1;
    for (area, panel) in root.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
        draw_ridges(area, panel, bins.clone(), tallest).map_err(drawing)?;
    }
    root.present().map_err(drawing)
}

/// Bins with more than a trace of the rates of some window, and one empty bin at either side.
fn occupied_bins<'a>(windows: impl Iterator<Item = &'a Window>) -> Range<usize> {
    const TRACE: f64 = 1e-4;
    let histograms = windows.flat_map(|window| [&window.rates.eta, &window.rates.bounded]);
    let occupied = histograms.flat_map(|counts| {
        let bins = frequencies(counts).into_iter().enumerate();
        bins.filter(|(_, frequency)| *frequency > TRACE).map(|(bin, _)| bin as f64)
    });
    match extent(occupied) {
        (low, high) if low <= high => (low as usize).saturating_sub(1)..(high as usize + 2).min(BINS),
        _ => 0..BINS,
    }
}

/// Counts as parts of their sum.
fn frequencies(counts: &[u64; BINS]) -> [f64; BINS] {
    let sum = counts.iter().sum::<u64>().max(1) as f64;
    counts.map(|count| count as f64 / sum)
}

fn draw_ridges(
    area: &Area<'_>,
    panel: &Ridges<'_>,
    bins: Range<usize>,
    tallest: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    /// Height of the tallest ridge of the picture, in distances between ridges.
    const TALLEST_HEIGHT: f64 = 1.6;
    let Ridges { title, color, windows } = panel;
    let center = |bin: usize| LearningRates::lower_edge(bin) * std::f64::consts::SQRT_2;
    let x_range = LearningRates::lower_edge(bins.start)..LearningRates::lower_edge(bins.end);
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(PANEL_TITLE_PIXELS))
        .margin(6)
        .x_label_area_size(46)
        .y_label_area_size(86)
        .right_y_label_area_size(16)
        .build_cartesian_2d(x_range.clone().log_scale(), -0.3..windows.len() as f64 - 0.9 + TALLEST_HEIGHT)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(font(LABEL_PIXELS))
        .x_labels(6)
        .x_label_formatter(&|rate| format!("1e{}", rate.log10().round()))
        .x_desc("learning rate of a weight")
        .draw()?;

    // From the back, the first steps at the top, to the front.
    for (index, window) in windows.iter().enumerate() {
        let base = (windows.len() - 1 - index) as f64;
        let ridge = |counts: &[u64; BINS]| -> Vec<_> {
            let frequency = frequencies(counts);
            bins.clone().map(|bin| (center(bin), base + TALLEST_HEIGHT * frequency[bin] / tallest)).collect()
        };
        let used = ridge(&window.rates.bounded);
        let mut filled = used.clone();
        filled.extend([(x_range.end, base), (x_range.start, base)]);
        // A veil of white lets the ridge behind be seen, but fainter.
        for fill in [WHITE.mix(0.5), color.mix(0.45)] {
            chart.draw_series([Polygon::new(filled.clone(), fill)])?;
        }
        chart.draw_series([PathElement::new(used, color.stroke_width(2))])?;
        if window.rates.clipped > 0 {
            let unbounded = ridge(&window.rates.eta);
            chart.draw_series([PathElement::new(unbounded, INK.mix(0.55).stroke_width(1))])?;
        }
        let style = font(LABEL_PIXELS).pos(Pos::new(HPos::Right, VPos::Center));
        chart
            .draw_series([EmptyElement::at((x_range.start, base))
                + Text::new(steps_label(window.steps), (-8, 0), style)])?;
    }
    Ok(())
}

fn steps_label((first, last): (u64, u64)) -> String {
    if first == last { format!("step {first}") } else { format!("{first} – {last}") }
}

/// A number as people write it, without trailing zeros.
fn plain(value: f64) -> String {
    if value == 0.0 || (1e-3..1e5).contains(&value.abs()) {
        // Axis values carry rounding errors.
        format!("{}", (value * 1e6).round() / 1e6)
    } else {
        format!("{value:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(steps: (u64, u64), bin: usize, clipped: u64) -> Window {
        let mut eta = [0; BINS];
        eta[bin] = 10;
        let mut bounded = [0; BINS];
        bounded[bin - 3] = 10;
        Window { steps, rates: LearningRates { eta, bounded, clipped, update_norm: 1.0 } }
    }

    #[test]
    fn all_pictures_can_be_drawn_of_runs_that_ended_early() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.svg");
        for logarithmic in [false, true] {
            let axes = Axes { x: "step", y: "loss", x_step: 10.0, logarithmic, y_range: None };
            let series = |runs: &[&[f64]]| Series {
                name: "Adam".into(),
                color: BLUE,
                runs: runs.iter().map(|run| run.to_vec()).collect(),
            };
            let runs: [&[&[f64]]; 4] = [&[&[3.0, 2.0, 1.0], &[3.0, f64::NAN]], &[&[1.0]], &[&[]], &[]];
            let panels = runs.map(|runs| Panel { title: "α".into(), series: vec![series(runs)] });
            curves(&path, "Loss", &axes, &panels).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().contains("Adam"));
        }
    }

    #[test]
    fn ridges_are_labelled_with_their_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.svg");
        let windows = [window((1, 1), 40, 0), window((2, 3), 30, 5)];
        let panels = [
            Ridges { title: "AdaMod".into(), color: BLUE, windows: &windows },
            Ridges { title: "nothing".into(), color: BLUE, windows: &[] },
        ];
        learning_rates(&path, "Rates", &panels).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("step 1") && svg.contains("2 – 3"));
        assert_eq!(occupied_bins(windows.iter()), 26..42);
    }
}

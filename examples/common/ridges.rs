//! Learning rates over time: a ridge for each window of steps, one behind the other.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use adamod::{BINS, RateHistograms};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::axis_labels::power_of_ten;
use crate::picture::{Area, INK, LABEL_PIXELS, PANEL_TITLE_PIXELS, font, styled, svg};
use crate::statistics::extent;

/// Histograms of the learning rates of some steps: [`RateHistograms`].
#[derive(Clone, Debug)]
pub struct Window {
    /// First and last step, from 1.
    pub steps: (u64, u64),
    pub eta: [u64; BINS],
    pub bounded: [u64; BINS],
    pub clipped: u64,
}

impl Window {
    #[allow(dead_code, reason = "some examples count on the CPU, too")]
    pub fn new(steps: (u64, u64), rates: &RateHistograms) -> Self {
        Self { steps, eta: rates.eta, bounded: rates.bounded, clipped: rates.clipped }
    }
}

/// Learning rates of one run over time.
pub struct Ridges<'a> {
    pub title: String,
    pub color: RGBColor,
    pub windows: &'a [Window],
}

/// Distribution of the learning rates over time: a panel for each run, a ridge for each window of steps, the first at the top.
#[allow(dead_code, reason = "some examples take the SVG")]
pub fn draw(path: &Path, title: &str, panels: &[Ridges<'_>]) -> Result<(), Box<dyn Error>> {
    let size = (450 * panels.len().max(1) as u32, 560);
    Ok(std::fs::write(path, ridges(size, title, panels)?)?)
}

/// The same as SVG.
pub fn ridges(size: (u32, u32), title: &str, panels: &[Ridges<'_>]) -> Result<String, Box<dyn Error>> {
    svg(size, title, |root| {
        let windows = || panels.iter().flat_map(|panel| panel.windows);
        let bins = occupied_bins(windows());
        let histograms = windows().flat_map(|window| [&window.eta, &window.bounded]);
        let tallest = extent(histograms.flat_map(frequencies)).1;
        for (area, panel) in root.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
            draw_ridges(area, panel, bins.clone(), tallest)?;
        }
        Ok(())
    })
}

/// The bins with more than a trace of some window's rates, and one empty bin at either side.
fn occupied_bins<'a>(windows: impl Iterator<Item = &'a Window>) -> Range<usize> {
    const TRACE: f64 = 1e-4;
    let histograms = windows.flat_map(|window| [&window.eta, &window.bounded]);
    let occupied = histograms.flat_map(|counts| {
        let bins = frequencies(counts).into_iter().enumerate();
        bins.filter(|(_, frequency)| *frequency > TRACE).map(|(bin, _)| bin as f64)
    });
    match extent(occupied) {
        (low, high) if low <= high => (low as usize).saturating_sub(1)..(high as usize + 2).min(BINS),
        _ => 0..BINS,
    }
}

/// Counts divided by their sum.
fn frequencies(counts: &[u64; BINS]) -> [f64; BINS] {
    let sum = counts.iter().sum::<u64>().max(1) as f64;
    counts.map(|count| count as f64 / sum)
}

/// One window's rates as a histogram with fractions of all weights: those that were used filled, unbounded ones as a line.
#[allow(dead_code, reason = "for pages that show one window")]
pub fn histogram(area: &Area<'_>, color: RGBColor, window: &Window) -> Result<(), Box<dyn Error>> {
    let bins = occupied_bins(std::iter::once(window));
    let (eta, bounded) = (frequencies(&window.eta), frequencies(&window.bounded));
    let tallest = extent(eta.into_iter().chain(bounded)).1.max(0.01);
    let x_range = RateHistograms::lower_edge(bins.start)..RateHistograms::lower_edge(bins.end);
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_right(20)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(x_range.clone().log_scale(), 0.0..110.0 * tallest)?;
    styled(&mut chart.configure_mesh())
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|rate| power_of_ten(*rate))
        .y_label_formatter(&|percent| format!("{percent:.0} %"))
        .x_desc("learning rate of a weight")
        .y_desc("share of the weights")
        .draw()?;
    let outline = |frequency: &[f64; BINS]| steps(bins.clone(), |bin| 100.0 * frequency[bin]);
    let used = outline(&bounded);
    let mut filled = used.clone();
    filled.extend([(x_range.end, 0.0), (x_range.start, 0.0)]);
    chart.draw_series([Polygon::new(filled, color.mix(0.45))])?;
    chart.draw_series([PathElement::new(used, color.stroke_width(2))])?;
    if window.clipped > 0 {
        chart.draw_series([PathElement::new(outline(&eta), INK.stroke_width(2))])?;
    }
    Ok(())
}

/// The outline of a histogram.
fn steps(bins: Range<usize>, height: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
    let top = |bin: usize| [bin, bin + 1].map(|edge| (RateHistograms::lower_edge(edge), height(bin)));
    bins.flat_map(top).collect()
}

fn draw_ridges(
    area: &Area<'_>,
    panel: &Ridges<'_>,
    bins: Range<usize>,
    tallest: f64,
) -> Result<(), Box<dyn Error>> {
    /// Height of the tallest ridge of the picture, in distances between ridges.
    const TALLEST_HEIGHT: f64 = 1.6;
    let Ridges { title, color, windows } = panel;
    let x_range = RateHistograms::lower_edge(bins.start)..RateHistograms::lower_edge(bins.end);
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(PANEL_TITLE_PIXELS))
        .margin(6)
        .x_label_area_size(46)
        .y_label_area_size(86)
        .right_y_label_area_size(16)
        .build_cartesian_2d(x_range.clone().log_scale(), -0.3..windows.len() as f64 - 0.9 + TALLEST_HEIGHT)?;
    styled(&mut chart.configure_mesh())
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(6)
        .x_label_formatter(&|rate| power_of_ten(*rate))
        .x_desc("learning rate of a weight")
        .draw()?;

    // From the back, the first steps at the top, to the front.
    for (index, window) in windows.iter().enumerate() {
        let base = (windows.len() - 1 - index) as f64;
        let ridge = |counts: &[u64; BINS]| -> Vec<_> {
            let frequency = frequencies(counts);
            steps(bins.clone(), |bin| base + TALLEST_HEIGHT * frequency[bin] / tallest)
        };
        let used = ridge(&window.bounded);
        let mut filled = used.clone();
        filled.extend([(x_range.end, base), (x_range.start, base)]);
        // White below the color makes the ridge behind fainter.
        for fill in [WHITE.mix(0.5), color.mix(0.45)] {
            chart.draw_series([Polygon::new(filled.clone(), fill)])?;
        }
        chart.draw_series([PathElement::new(used, color.stroke_width(2))])?;
        if window.clipped > 0 {
            let unbounded = ridge(&window.eta);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn window(steps: (u64, u64), bin: usize, clipped: u64) -> Window {
        let mut eta = [0; BINS];
        eta[bin] = 10;
        let mut bounded = [0; BINS];
        bounded[bin - 3] = 10;
        Window { steps, eta, bounded, clipped }
    }

    #[test]
    fn ridges_are_labelled_with_their_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.svg");
        let windows = [window((1, 1), 40, 0), window((2, 3), 30, 5)];
        let color = RGBColor(0, 114, 178);
        let panels = [
            Ridges { title: "AdaMod".into(), color, windows: &windows },
            Ridges { title: "nothing".into(), color, windows: &[] },
        ];
        draw(&path, "Rates", &panels).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("step 1") && svg.contains("2 – 3") && svg.contains("10⁻⁴"), "{svg}");
        assert_eq!(occupied_bins(windows.iter()), 26..42);
    }
}

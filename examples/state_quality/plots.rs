//! The pictures, as SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::axis_labels::plain;
use crate::comparison::{Course, Snapshot};
use crate::picture::{PANEL_TITLE_PIXELS, draw_legend, draw_line, font, picture, styled};
use crate::statistics::Band;

/// Ratios further from 1 are drawn at the edge.
const FARTHEST: f64 = 2.0;

fn color(index: usize) -> RGBColor {
    [RGBColor(110, 110, 120), RGBColor(0, 114, 178), RGBColor(213, 94, 0)][index % 3]
}

/// A panel: its title, and the course of each optimizer.
pub struct Panel<'a> {
    pub title: String,
    pub courses: &'a [Course],
}

/// Ratios to the reference over the steps: the median with the band from 5 to 95%, and a panel for each stream.
pub fn bands(
    path: &Path,
    title: &str,
    panels: &[Panel<'_>],
    band: fn(&Snapshot) -> Band,
) -> Result<(), Box<dyn Error>> {
    let columns = panels.len().min(3);
    let rows = panels.len().div_ceil(columns);
    let size = (420 * columns as u32, 40 + 300 * rows as u32);
    let root = picture(path, size, title)?;
    for (area, panel) in root.split_evenly((rows, columns)).iter().zip(panels) {
        let snapshots = || panel.courses.iter().flat_map(|course| &course.snapshots);
        let limited = |ratio: f64| if ratio.is_nan() { FARTHEST } else { ratio.clamp(0.0, FARTHEST) };
        // Each panel has its own range, at least 2% on either side.
        let farthest = snapshots().flat_map(|s| [band(s).low, band(s).high]);
        let margin = farthest.map(|ratio| (limited(ratio) - 1.0).abs()).fold(0.02, f64::max) * 1.1;
        let end = snapshots().map(|s| s.step).max().unwrap_or(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(&panel.title, font(PANEL_TITLE_PIXELS))
            .margin(6)
            .margin_right(16)
            .x_label_area_size(36)
            .y_label_area_size(54)
            .build_cartesian_2d(0.0..end, 1.0 - margin..1.0 + margin)?;
        styled(&mut chart.configure_mesh())
            .x_labels(5)
            .y_labels(7)
            .x_label_formatter(&|x| plain(*x))
            .y_label_formatter(&|y| plain(*y))
            .x_desc("step")
            .y_desc("ratio to f64")
            .draw()?;
        for (index, course) in panel.courses.iter().enumerate() {
            let color = color(index);
            let points = |of: fn(Band) -> f64| {
                let place =
                    |s: &Snapshot| (s.step as f64, limited(of(band(s))).clamp(1.0 - margin, 1.0 + margin));
                course.snapshots.iter().map(place).collect::<Vec<_>>()
            };
            let mut outline = points(|band| band.high);
            outline.extend(points(|band| band.low).into_iter().rev());
            chart.draw_series([Polygon::new(outline, color.mix(0.2))])?;
            draw_line(&mut chart, points(|band| band.median), &course.name.to_string(), color)?;
        }
        draw_legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizers::{Name, Rejected};

    #[test]
    fn what_is_not_a_number_is_drawn_at_the_edge() {
        let lost = Band { low: f64::NAN, median: f64::INFINITY, high: f64::NAN };
        let snapshot = |step| Snapshot {
            step,
            squares: lost,
            rates: lost,
            rates_error: f64::INFINITY,
            moved_error: f64::INFINITY,
            path_error: f64::INFINITY,
        };
        let name = Name::Rejected(Rejected::HalfScales);
        let courses = [Course { name, snapshots: vec![snapshot(1), snapshot(2)] }];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lost.svg");
        let panels = [Panel { title: "noise".into(), courses: &courses }];
        bands(&path, "Ratios", &panels, |snapshot| snapshot.rates).unwrap();
        assert!(std::fs::read_to_string(path).unwrap().contains(&name.to_string()));
    }
}

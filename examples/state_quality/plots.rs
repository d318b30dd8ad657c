//! The pictures, as SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::axis_labels::plain;
use crate::comparison::{Course, Snapshot};
use crate::picture::{
    Area, Drawn, Entry, INK, Mark, PANEL_TITLE_PIXELS, band_within, font, legend, styled, svg, within,
};
use crate::statistics::Band;

/// Ratios further from 1 are beyond the axis.
const FARTHEST: f64 = 2.0;

/// The first is drawn in dashes on top, because what is like the reference has its line where the reference's is.
fn style(index: usize) -> (RGBColor, Mark) {
    match index % 3 {
        0 => (INK, Mark::Dashes),
        1 => (RGBColor(126, 3, 168), Mark::Line),
        _ => (RGBColor(214, 140, 20), Mark::Line),
    }
}

/// The color of the band of a line, whatever lies behind it.
fn tint(color: RGBColor) -> RGBColor {
    let part = |part: u8| (0.25 * f64::from(part) + 0.75 * 255.0) as u8;
    RGBColor(part(color.0), part(color.1), part(color.2))
}

/// A panel: its title, and the course of each optimizer.
pub struct Panel<'a> {
    pub title: String,
    pub courses: &'a [Course],
}

/// Ratios to the reference over the steps: the median with the band from 5 to 95%, and a panel for each stream. Lines and bands end where
/// they leave the axis.
pub fn bands(
    path: &Path,
    title: &str,
    panels: &[Panel<'_>],
    band: fn(&Snapshot) -> Band,
) -> Result<(), Box<dyn Error>> {
    let columns = panels.len().clamp(1, 3);
    let rows = panels.len().div_ceil(columns);
    let size = (420 * columns as u32, 80 + 300 * rows as u32);
    let svg = svg(size, title, |root| {
        let courses = panels.first().map_or(&[][..], |panel| panel.courses);
        let entries = courses.iter().enumerate().map(|(index, course)| {
            let (color, mark) = style(index);
            Entry::new(course.name.to_string(), color, mark)
        });
        let areas = legend(root, &entries.collect::<Vec<_>>())?.split_evenly((rows, columns));
        areas.iter().zip(panels).try_for_each(|(area, panel)| draw_panel(area, panel, band))
    })?;
    Ok(std::fs::write(path, svg)?)
}

fn draw_panel(area: &Area<'_>, panel: &Panel<'_>, band: fn(&Snapshot) -> Band) -> Drawn {
    let snapshots = || panel.courses.iter().flat_map(|course| &course.snapshots);
    // Each panel has its own range, at least 2% on either side.
    let shown = snapshots().flat_map(|s| [band(s).low, band(s).high]).filter(|ratio| ratio.is_finite());
    let margin = shown.map(|ratio| (ratio - 1.0).abs()).fold(0.02, f64::max).min(FARTHEST - 1.0) * 1.1;
    let range = (1.0 - margin, 1.0 + margin);
    let end = snapshots().map(|s| s.step).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, font(PANEL_TITLE_PIXELS))
        .margin(6)
        .margin_right(16)
        .x_label_area_size(36)
        .y_label_area_size(54)
        .build_cartesian_2d(0.0..end, range.0..range.1)?;
    styled(&mut chart.configure_mesh())
        .x_labels(5)
        .y_labels(7)
        .x_label_formatter(&|x| plain(*x))
        .y_label_formatter(&|y| plain(*y))
        .x_desc("step")
        .y_desc("ratio to f64")
        .draw()?;
    // The widest band is at the back, so that none hides another one.
    let width = |course: &Course| -> f64 {
        let widths = course.snapshots.iter().map(|s| band(s).high - band(s).low);
        widths.filter(|width| width.is_finite()).sum()
    };
    let mut order: Vec<_> = panel.courses.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| width(b).total_cmp(&width(a)));
    for (index, course) in &order {
        let (color, _) = style(*index);
        let points: Vec<_> =
            course.snapshots.iter().map(|s| (s.step as f64, band(s).low, band(s).high)).collect();
        for polygon in band_within(&points, range) {
            chart.draw_series([Polygon::new(polygon, tint(color))])?;
        }
    }
    // The dashes come last.
    for (index, course) in panel.courses.iter().enumerate().rev() {
        let (color, mark) = style(index);
        let points: Vec<_> = course.snapshots.iter().map(|s| (s.step as f64, band(s).median)).collect();
        for part in within(&points, range) {
            let stroke = color.stroke_width(2);
            if mark == Mark::Dashes {
                chart.draw_series(DashedLineSeries::new(part, 6, 6, stroke))?;
            } else {
                chart.draw_series(LineSeries::new(part, stroke))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizers::{Name, Rejected};

    #[test]
    fn what_is_not_a_number_is_not_drawn() {
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
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.contains(&name.to_string()));
        assert!(!svg.contains("<polygon"), "{svg}");
    }
}

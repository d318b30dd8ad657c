//! What all pictures share: fonts, colors, a title, a grid and a legend beside the data.
#![allow(dead_code, unused_imports, reason = "each example uses a part of it")]

use std::error::Error;
use std::path::Path;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

#[path = "../../src/bin/adamod/bench/colors.rs"]
mod colors;
pub use colors::rule_color;

/// Part of a picture.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub type Drawn = Result<(), Box<dyn Error>>;

pub const PANEL_TITLE_PIXELS: i32 = 18;
pub const LABEL_PIXELS: i32 = 14;
pub const INK: RGBColor = RGBColor(45, 45, 55);
pub const FAINT: RGBColor = RGBColor(225, 225, 230);

pub fn font(pixels: i32) -> TextStyle<'static> {
    ("sans-serif", pixels).into_font().color(&INK)
}

const TITLE_PIXELS: i32 = 22;

/// Opens a white picture with a title; returns the area below the title.
pub fn picture<'a>(path: &'a Path, size: (u32, u32), title: &str) -> Result<Area<'a>, Box<dyn Error>> {
    titled(SVGBackend::new(path, size).into_drawing_area(), title)
}

fn titled<'a>(root: Area<'a>, title: &str) -> Result<Area<'a>, Box<dyn Error>> {
    root.fill(&WHITE)?;
    let area = root.margin(12, 8, 12, 16);
    if title.is_empty() { Ok(area) } else { Ok(area.titled(title, font(TITLE_PIXELS))?) }
}

/// Draws a white picture with a title, or without one if it is empty, and returns it as SVG.
pub fn svg(
    size: (u32, u32),
    title: &str,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let area = titled(SVGBackend::with_string(&mut svg, size).into_drawing_area(), title)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// What a legend explains.
pub struct Entry {
    pub name: String,
    pub color: RGBColor,
    pub mark: Mark,
}

/// How it is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Line,
    Dashes,
    /// An area below a line.
    Filled,
    Cross,
}

impl Entry {
    pub fn new(name: impl Into<String>, color: RGBColor, mark: Mark) -> Self {
        Self { name: name.into(), color, mark }
    }
}

/// Draws a legend at the top of an area, outside of the data, and returns the area below it.
pub fn legend<'a>(area: &Area<'a>, entries: &[Entry]) -> Result<Area<'a>, Box<dyn Error>> {
    const LINE_PIXELS: i32 = 22;
    const MARK_PIXELS: i32 = 22;
    const GAP_PIXELS: i32 = 24;
    const LEFT_PIXELS: i32 = 12;
    let width = area.dim_in_pixel().0 as i32;
    // What draws the SVG has the font. Its letters are about as wide as this on average.
    let text_pixels = |text: &str| text.chars().count() as i32 * LABEL_PIXELS * 11 / 20;
    let (mut x, mut row) = (LEFT_PIXELS, 0);
    let mut places = Vec::new();
    for entry in entries {
        let entry_pixels = MARK_PIXELS + 6 + text_pixels(&entry.name);
        if x > LEFT_PIXELS && x + entry_pixels > width {
            (x, row) = (LEFT_PIXELS, row + 1);
        }
        places.push((x, row * LINE_PIXELS + LINE_PIXELS / 2));
        x += entry_pixels + GAP_PIXELS;
    }
    let (strip, rest) = area.split_vertically((row + 1) * LINE_PIXELS + 4);
    for (entry, (x, y)) in entries.iter().zip(places) {
        let (stroke, end) = (entry.color.stroke_width(3), x + MARK_PIXELS);
        match entry.mark {
            Mark::Line => strip.draw(&PathElement::new([(x, y), (end, y)], stroke))?,
            Mark::Dashes => {
                for from in (x..end).step_by(8) {
                    strip.draw(&PathElement::new([(from, y), ((from + 5).min(end), y)], stroke))?;
                }
            }
            Mark::Filled => {
                strip.draw(&Rectangle::new([(x, y - 6), (end, y + 6)], entry.color.mix(0.45).filled()))?;
                strip.draw(&PathElement::new([(x, y - 6), (end, y - 6)], entry.color.stroke_width(2)))?;
            }
            Mark::Cross => strip.draw(&Cross::new((x + MARK_PIXELS / 2, y), 6, stroke))?,
        }
        let style = font(LABEL_PIXELS).pos(Pos::new(HPos::Left, VPos::Center));
        strip.draw(&Text::new(entry.name.clone(), (end + 6, y), style))?;
    }
    Ok(rest)
}

/// Styles a chart's mesh, with lines only where labels are.
pub fn styled<'s, 'a, 'b, 'p, X: Ranged, Y: Ranged>(
    mesh: &'s mut MeshStyle<'a, 'b, X, Y, SVGBackend<'p>>,
) -> &'s mut MeshStyle<'a, 'b, X, Y, SVGBackend<'p>> {
    mesh.light_line_style(TRANSPARENT).bold_line_style(FAINT).axis_style(INK).label_style(font(LABEL_PIXELS))
}

/// The parts of a line within a range of y, cut where it crosses the ends of the range or is not a number.
pub fn within(points: &[(f64, f64)], (low, high): (f64, f64)) -> Vec<Vec<(f64, f64)>> {
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut end = None;
    for pair in points.windows(2) {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        // Where the segment enters and leaves the range, as fractions of its length.
        let crossings = [low, high].map(|edge| (edge - y0) / (y1 - y0));
        let (enter, leave) = match () {
            () if !(y0.is_finite() && y1.is_finite()) => (1.0, 0.0),
            () if y0 == y1 => {
                if (low..=high).contains(&y0) {
                    (0.0, 1.0)
                } else {
                    (1.0, 0.0)
                }
            }
            () => (crossings[0].min(crossings[1]).max(0.0), crossings[0].max(crossings[1]).min(1.0)),
        };
        if enter >= leave {
            end = None;
            continue;
        }
        let at = |t: f64| match t {
            0.0 => (x0, y0),
            1.0 => (x1, y1),
            _ => (x0 + t * (x1 - x0), y0 + t * (y1 - y0)),
        };
        match parts.last_mut() {
            Some(part) if end == Some(at(enter)) => part.push(at(leave)),
            _ => parts.push(vec![at(enter), at(leave)]),
        }
        end = Some(at(leave));
    }
    parts
}

/// The parts of a band (x, low, high) within a range of y, as polygons.
pub fn band_within(points: &[(f64, f64, f64)], (least, most): (f64, f64)) -> Vec<Vec<(f64, f64)>> {
    let runs = points.split(|(_, low, high)| !(low.is_finite() && high.is_finite()));
    runs.filter(|run| run.len() > 1)
        .map(|run| {
            let high = run.iter().map(|&(x, _, high)| (x, high));
            let outline: Vec<_> = high.chain(run.iter().rev().map(|&(x, low, _)| (x, low))).collect();
            let above = half_plane(&outline, least, |y| y >= least);
            half_plane(&above, most, |y| y <= most)
        })
        .filter(|polygon| polygon.len() > 2)
        .collect()
}

/// The part of a polygon on one side of a horizontal line (Sutherland and Hodgman 1974).
fn half_plane(polygon: &[(f64, f64)], edge: f64, is_inside: impl Fn(f64) -> bool) -> Vec<(f64, f64)> {
    let mut clipped = Vec::new();
    for (index, &(x1, y1)) in polygon.iter().enumerate() {
        let (x0, y0) = polygon[(index + polygon.len() - 1) % polygon.len()];
        if is_inside(y0) != is_inside(y1) {
            clipped.push((x0 + (edge - y0) / (y1 - y0) * (x1 - x0), edge));
        }
        if is_inside(y1) {
            clipped.push((x1, y1));
        }
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_the_edges() {
        let range = (0.0, 2.0);
        assert_eq!(
            within(&[(0.0, 1.0), (1.0, 2.0), (2.0, 0.0)], range),
            [[(0.0, 1.0), (1.0, 2.0), (2.0, 0.0)]]
        );
        let left = within(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 1.0)], range);
        assert_eq!(left, [vec![(0.0, 1.0), (0.5, 2.0)], vec![(2.75, 2.0), (3.0, 1.0)]]);
        assert_eq!(within(&[(0.0, -2.0), (2.0, 6.0)], range), [[(0.5, 0.0), (1.0, 2.0)]]);
        assert_eq!(
            within(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 1.0)], range),
            [[(2.0, 1.0), (3.0, 1.0)]]
        );
        assert!(within(&[(0.0, 3.0), (1.0, 3.0)], range).is_empty());
    }

    #[test]
    fn bands_are_cut_at_the_edges() {
        let band = band_within(&[(0.0, 1.0, 1.5), (1.0, 1.0, 2.5)], (0.0, 2.0));
        assert_eq!(band, [[(0.0, 1.5), (0.5, 2.0), (1.0, 2.0), (1.0, 1.0), (0.0, 1.0)]]);
        assert!(band_within(&[(0.0, 3.0, 4.0), (1.0, 3.0, 4.0)], (0.0, 2.0)).is_empty());
        let gap = [(0.0, 1.0, 1.5), (1.0, 1.0, 1.5), (2.0, f64::NAN, 1.0), (3.0, 1.0, 1.5)];
        assert_eq!(band_within(&gap, (0.0, 2.0)).len(), 1);
    }

    #[test]
    fn a_legend_wraps_where_the_area_ends() {
        let entries: Vec<_> = ["AdaMod", "Adam", "SGD"].map(|name| Entry::new(name, INK, Mark::Line)).into();
        let height = |width: u32| {
            let mut height = 0;
            svg((width, 300), "Loss", |area| {
                height = legend(area, &entries)?.dim_in_pixel().1;
                Ok(())
            })
            .unwrap();
            height
        };
        assert!(height(600) > height(200));
    }
}

//! What all pictures share: fonts, colors, a title, a grid and a legend.

use std::error::Error;
use std::path::Path;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;

/// Part of a picture.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub const PANEL_TITLE_PIXELS: i32 = 18;
pub const LABEL_PIXELS: i32 = 14;
pub const INK: RGBColor = RGBColor(45, 45, 55);
pub const FAINT: RGBColor = RGBColor(225, 225, 230);

pub fn font(pixels: i32) -> TextStyle<'static> {
    ("sans-serif", pixels).into_font().color(&INK)
}

/// Opens a white picture with a title; returns the area below the title.
pub fn picture<'a>(path: &'a Path, size: (u32, u32), title: &str) -> Result<Area<'a>, Box<dyn Error>> {
    const TITLE_PIXELS: i32 = 22;
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    Ok(root.margin(12, 8, 12, 16).titled(title, font(TITLE_PIXELS))?)
}

/// Styles a chart's mesh, with lines only where labels are.
pub fn styled<'s, 'a, 'b, 'p, X: Ranged, Y: Ranged>(
    mesh: &'s mut MeshStyle<'a, 'b, X, Y, SVGBackend<'p>>,
) -> &'s mut MeshStyle<'a, 'b, X, Y, SVGBackend<'p>> {
    mesh.light_line_style(TRANSPARENT).bold_line_style(FAINT).axis_style(INK).label_style(font(LABEL_PIXELS))
}

/// Draws a line and gives it a name in the legend.
pub fn draw_line<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    points: impl IntoIterator<Item = (f64, f64)>,
    name: &str,
    color: RGBColor,
) -> Result<(), Box<dyn Error>>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .draw_series(LineSeries::new(points, color.stroke_width(2)))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
    Ok(())
}

/// Draws the legend of a chart's lines.
pub fn draw_legend<'a, 'b: 'a, X: Ranged, Y: Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Result<(), Box<dyn Error>> {
    chart
        .configure_series_labels()
        .position(position)
        .label_font(font(LABEL_PIXELS))
        .background_style(WHITE.mix(0.8))
        .border_style(FAINT)
        .draw()?;
    Ok(())
}

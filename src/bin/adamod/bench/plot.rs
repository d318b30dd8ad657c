//! A picture of the suite `roofline` in SVG: bytes per second by number of parameters.

use std::collections::BTreeMap;

use adamod::RuleKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::colors::rule_color;
use super::error::DrawError;
use super::report::{Measurement, Report};
use super::suites::Suite;

const SIZE_PIXELS: (u32, u32) = (900, 520);
const FONT: &str = "sans-serif";
const TITLE_PIXELS: i32 = 20;
const LABEL_PIXELS: i32 = 14;
/// Width left for the legend beside the chart.
const LEGEND_PIXELS: i32 = 190;
/// More labels than this would touch each other.
const MOST_SIZE_LABELS: usize = 14;
const FAINT: RGBColor = RGBColor(225, 225, 230);
const COPY_COLOR: RGBColor = RGBColor(90, 90, 100);
const STREAM_COLOR: RGBColor = RGBColor(165, 165, 175);
/// How far the color of a rule is mixed with white for its second, third ... mode.
const TINTS: [f64; 4] = [0.0, 0.35, 0.55, 0.7];

/// The color of a mode: that of its rule, lighter for each of the `before` modes of the rule that have one already.
fn mode_color(mode: &str, before: usize) -> RGBColor {
    let color = rule_of(mode).map_or(COPY_COLOR, rule_color);
    let tint = TINTS[before.min(TINTS.len() - 1)];
    let mixed = |part: u8| (f64::from(part) + tint * (255.0 - f64::from(part))) as u8;
    RGBColor(mixed(color.0), mixed(color.1), mixed(color.2))
}

/// The rule of a mode, such as `adamod` of `adamod-f32`.
fn rule_of(mode: &str) -> Option<RuleKind> {
    let is_of = |rule: &RuleKind| mode.strip_prefix(rule.name()).is_some_and(|rest| rest.starts_with('-'));
    RuleKind::ALL.iter().copied().find(is_of)
}

/// A number of parameters: 2²⁰, or the number if it is not a power of two.
fn size_label(parameters: u64) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    match parameters.is_power_of_two() {
        true => {
            let exponent = parameters.ilog2().to_string();
            let exponent = exponent.chars().filter_map(|digit| DIGITS.get(digit.to_digit(10)? as usize));
            format!("2{}", exponent.collect::<String>())
        }
        false => parameters.to_string(),
    }
}

/// The line of a mode, or of a kernel that only moves bytes.
#[derive(Debug)]
struct Line<'a> {
    name: &'a str,
    color: RGBColor,
    width_pixels: u32,
    /// GB/s by number of parameters. If a size was measured in several groups, the fastest one counts.
    points: BTreeMap<u64, f64>,
}

impl<'a> Line<'a> {
    fn new(name: &'a str, color: RGBColor, width_pixels: u32) -> Self {
        Self { name, color, width_pixels, points: BTreeMap::new() }
    }

    fn add(&mut self, result: &Measurement, gb_per_s: f64) {
        let fastest = self.points.entry(result.parameters).or_insert(gb_per_s);
        *fastest = fastest.max(gb_per_s);
    }
}

/// The two ceilings, then one line per mode in the order of measurement.
fn lines<'a>(results: &[&'a Measurement]) -> Vec<Line<'a>> {
    let mut copy = Line::new("copy kernel", COPY_COLOR, 1);
    let mut stream = Line::new("stream kernel", STREAM_COLOR, 1);
    let mut modes: Vec<Line<'a>> = Vec::new();
    for result in results {
        copy.add(result, result.copy_gb_per_s);
        stream.add(result, result.stream_gb_per_s);
        let index = modes.iter().position(|line| line.name == result.mode).unwrap_or_else(|| {
            let before = modes.iter().filter(|line| rule_of(line.name) == rule_of(&result.mode)).count();
            modes.push(Line::new(&result.mode, mode_color(&result.mode, before), 3));
            modes.len() - 1
        });
        modes[index].add(result, result.gb_per_s);
    }
    [copy, stream].into_iter().chain(modes).collect()
}

/// Draws a report that has the suite.
pub fn draw(report: &Report) -> Result<String, DrawError> {
    let suite = Suite::Roofline.name();
    let results: Vec<_> = report.results.iter().filter(|result| result.suite == suite).collect();
    let lines = lines(&results);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE_PIXELS).into_drawing_area();
        root.fill(&WHITE)?;
        let machine = format!("{}, {}, {}", report.adapter, report.driver, report.backend);
        let area = root
            .margin(10, 10, 10, 24)
            .titled("Achieved bytes per second of an optimizer step", (FONT, TITLE_PIXELS))?
            .titled(&machine, (FONT, LABEL_PIXELS))?;
        let (area, beside) = area.split_horizontally(SIZE_PIXELS.0 as i32 - LEGEND_PIXELS);
        draw_chart(&area, &lines)?;
        draw_legend(&beside, &lines)?;
        root.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_chart(area: &Area<'_>, lines: &[Line<'_>]) -> Result<(), DrawError> {
    let sizes = || lines.iter().flat_map(|line| line.points.keys());
    let least = sizes().min().map_or(1.0, |&parameters| parameters as f64);
    let most = sizes().max().map_or(1.0, |&parameters| parameters as f64);
    let highest = lines.iter().flat_map(|line| line.points.values()).fold(0.0, |a: f64, &b| a.max(b));
    // Half a power of two on both sides, so that no point lies on the frame.
    let x_range = least / 2_f64.sqrt()..most * 2_f64.sqrt();
    let octaves = (x_range.end / x_range.start).log2().ceil() as usize;
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(x_range.log_scale().base(2.0), 0.0..1.1 * highest)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .label_style((FONT, LABEL_PIXELS))
        .x_labels(octaves.min(MOST_SIZE_LABELS))
        .x_label_formatter(&|parameters| size_label(*parameters as u64))
        .x_desc("parameters")
        .y_label_formatter(&|gb_per_s| format!("{gb_per_s}"))
        .y_desc("GB/s")
        .draw()?;
    for line in lines {
        let color = line.color;
        let style = color.stroke_width(line.width_pixels).filled();
        let points = line.points.iter().map(|(&parameters, &gb_per_s)| (parameters as f64, gb_per_s));
        chart.draw_series(LineSeries::new(points, style).point_size(line.width_pixels + 1))?;
    }
    Ok(())
}

/// Draws the names of the lines beside the chart, where no line is.
fn draw_legend(area: &Area<'_>, lines: &[Line<'_>]) -> Result<(), DrawError> {
    const LINE_PIXELS: i32 = 22;
    for (line, y) in lines.iter().zip((LINE_PIXELS..).step_by(LINE_PIXELS as usize)) {
        let stroke = line.color.stroke_width(line.width_pixels);
        area.draw(&PathElement::new([(0, y), (20, y)], stroke))?;
        let style = TextStyle::from((FONT, LABEL_PIXELS)).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(line.name, (26, y), style))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::suites::size_name;
    use super::*;

    #[test]
    fn a_mode_has_the_color_of_its_rule() {
        assert_eq!(mode_color("adam-f32", 0), rule_color(RuleKind::Adam));
        assert_eq!(rule_of("adamod-f32-q8"), Some(RuleKind::AdaMod));
        assert_ne!(mode_color("adam-f32", 1), mode_color("adam-f32", 0));
    }

    #[test]
    fn sizes_have_exponents() {
        assert_eq!([1_048_576, 5_000].map(size_label), ["2²⁰", "5000"]);
    }

    fn measurement(mode: &str, parameters: u64, gb_per_s: f64) -> Measurement {
        Measurement {
            suite: Suite::Roofline.name(),
            case: size_name(parameters),
            mode: mode.into(),
            tensors: 1,
            parameters,
            bytes_per_parameter: 36.0,
            rounds: 1,
            ms_median: 1.0,
            ms_min: 1.0,
            ms_lower_quartile: 1.0,
            ms_upper_quartile: 1.0,
            gb_per_s,
            copy_gb_per_s: 2.0 * gb_per_s,
            stream_gb_per_s: 1.5 * gb_per_s,
            fraction_of_copy: 0.5,
            fraction_of_stream: 0.6,
            host_us_median: 1.0,
            host_record_us_median: 1.0,
            host_allocations: None,
            time_of_default: None,
            verified_elements: 1,
        }
    }

    #[test]
    fn a_mode_is_a_line_and_a_ceiling_is_the_fastest_of_its_size() {
        let results = [
            measurement("adamod-f32", 2_048, 3.0),
            measurement("adam-f32", 2_048, 5.0),
            measurement("adamod-f32", 1_024, 2.0),
            Measurement { suite: Suite::Modes.name(), ..measurement("sgd-f32", 1_024, 9.0) },
        ];
        let lines = lines(&results[..3].iter().collect::<Vec<_>>());
        let drawn: Vec<_> = lines
            .iter()
            .map(|line| (line.name, line.points.clone().into_iter().collect::<Vec<_>>()))
            .collect();
        assert_eq!(
            drawn,
            [
                ("copy kernel", vec![(1_024, 4.0), (2_048, 10.0)]),
                ("stream kernel", vec![(1_024, 3.0), (2_048, 7.5)]),
                ("adamod-f32", vec![(1_024, 2.0), (2_048, 3.0)]),
                ("adam-f32", vec![(2_048, 5.0)]),
            ]
        );
        let report = Report {
            adapter: "A & <B>".into(),
            driver: "driver 1".into(),
            backend: "vulkan".into(),
            device_type: "Cpu".into(),
            timing: "wall",
            cache: "warm",
            results: results.to_vec(),
            left_out: Vec::new(),
        };
        let svg = draw(&report).unwrap();
        assert!(svg.contains("A &amp; &lt;B&gt;, driver 1, vulkan"), "{svg}");
        assert!(!svg.contains("sgd-f32"), "of another suite");
        assert_eq!(svg.matches("<circle").count(), 2 + 2 + 2 + 1);
    }
}

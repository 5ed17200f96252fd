//! A run over time, as SVG: what came and what went, steps, latency.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, LabelAreaPosition, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::PathElement;
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, RGBColor, WHITE};

use super::report::quantile;
use super::row::{Fate, Row};

/// Points along the time axis at most: longer runs are drawn in longer bins.
const MAX_BINS: f64 = 600.0;
const SIZE: (u32, u32) = (960, 780);
/// Told apart by the colour-blind (Okabe and Ito, 2008).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const RED: RGBColor = RGBColor(213, 94, 0);

type Error = DrawingAreaErrorKind<std::io::Error>;

struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

/// The rows' events, gathered in bins of `width` seconds.
struct Bins<'a> {
    rows: &'a [Row],
    width: f64,
    count: usize,
}

impl<'a> Bins<'a> {
    fn new(rows: &'a [Row]) -> Self {
        let end = rows.iter().map(|row| row.ended.max(row.at)).fold(1.0, f64::max);
        let width = (end / MAX_BINS).ceil();
        Self { rows, width, count: (end / width).ceil() as usize }
    }

    /// The middle of each bin, and what `of` makes of the values that fall into it; bins it makes nothing of are left out.
    fn line(
        &self,
        value: impl Fn(&Row) -> Option<(f64, f64)>,
        of: impl Fn(&mut [f64]) -> Option<f64>,
    ) -> Vec<(f64, f64)> {
        let mut bins = vec![Vec::new(); self.count];
        for (at, value) in self.rows.iter().filter_map(value) {
            let bin = (at / self.width) as usize;
            bins[bin.min(self.count - 1)].push(value);
        }
        let point = |(i, bin): (usize, &mut Vec<f64>)| Some(((i as f64 + 0.5) * self.width, of(bin)?));
        bins.iter_mut().enumerate().filter_map(point).collect()
    }

    fn per_second(&self, at: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, f64)> {
        self.line(|row| Some((at(row)?, 0.0)), |bin| Some(bin.len() as f64 / self.width))
    }

    fn answers(
        &self,
        what: impl Fn(&Row) -> Option<f64>,
        of: impl Fn(&mut [f64]) -> Option<f64>,
    ) -> Vec<(f64, f64)> {
        self.line(|row| Some((row.ended, what(row)?)), of)
    }
}

/// Draws a run. An answer is drawn at the second in which it came, an arrival at the second in which it was due.
///
/// # Errors
/// plotters'.
pub fn svg(rows: &[Row]) -> Result<String, Error> {
    let bins = Bins::new(rows);
    let of_fate = |fate| bins.per_second(move |row| (row.fate == fate).then_some(row.ended));
    let mean = |bin: &mut [f64]| (!bin.is_empty()).then(|| bin.iter().sum::<f64>() / bin.len() as f64);
    let steps = bins.answers(|row| row.pentimento.as_ref()?.steps, mean);
    let latency = bins.answers(|row| row.latency_ms, |bin| quantile(bin, 0.95));
    let panels: [(&str, Vec<Line>); 3] = [
        (
            "requests per second",
            vec![
                Line { name: "arrivals", colour: BLUE, points: bins.per_second(|row| Some(row.at)) },
                Line { name: "within the objective", colour: GREEN, points: of_fate(Fate::Good) },
                Line { name: "429", colour: RED, points: of_fate(Fate::Refused) },
            ],
        ),
        ("steps", vec![Line { name: "mean steps of the answers", colour: BLUE, points: steps }]),
        ("milliseconds", vec![Line { name: "latency p95", colour: RED, points: latency }]),
    ];
    let mut text = String::new();
    {
        let whole = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        whole.fill(&WHITE)?;
        let end = bins.count as f64 * bins.width;
        for (area, (unit, lines)) in whole.split_evenly((panels.len(), 1)).iter().zip(&panels) {
            panel(area, end, unit, lines)?;
        }
        whole.present()?;
    }
    Ok(text)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    end: f64,
    unit: &str,
    lines: &[Line],
) -> Result<(), Error> {
    let most = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).fold(0.0, f64::max);
    let most = if most > 0.0 { most * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .set_label_area_size(LabelAreaPosition::Left, 64)
        .set_label_area_size(LabelAreaPosition::Bottom, 40)
        .build_cartesian_2d(0.0..end, 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc("seconds since the start")
        .y_desc(unit)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| if most < 5.0 { format!("{y:.1}") } else { format!("{y:.0}") })
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .draw()?;
    for line in lines {
        let style = line.colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()
}

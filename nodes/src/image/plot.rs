//! `plot`: a table as a picture.

use std::sync::{Arc, Once};

use plotters::prelude::*;
use plotters::style::register_font;
use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::fields::Template;
use crate::payload::Table;
use crate::payload::image::{Image, ImageFacts};

/// The family of the letters: Hack, which is in the program, so that a plot is the same on every machine.
const FAMILY: &str = "hack";

/// The colours of the curves, in turn: those of Okabe and Ito, which colour-blind people tell apart.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Draws columns of a table as curves, such as the losses of a training.
///
/// Each column of `y` is a curve over the column `x`. With `average` the curve is pale, and the mean of each row and the
/// rows before it, `average` of them, is drawn over it. Cells without a number leave a gap.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plot {
    /// The column along the horizontal axis. Default: the first.
    #[serde(default)]
    pub x: Option<String>,
    /// The columns that are drawn. Default: all others that have numbers.
    #[serde(default)]
    pub y: Vec<String>,
    /// The rows of the moving average; 1 is none.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub average: usize,
    /// Whether the vertical axis is logarithmic; what is not above 0 is a gap then.
    #[serde(default)]
    pub log: bool,
    /// The text above the plot.
    #[serde(default)]
    pub title: Template,
    /// The width of the picture in pixels.
    #[serde(default = "width")]
    #[schemars(range(min = 160, max = 8192))]
    pub width: usize,
    /// The height of the picture in pixels.
    #[serde(default = "height")]
    #[schemars(range(min = 120, max = 7000))]
    pub height: usize,
}

fn one() -> usize {
    1
}

fn width() -> usize {
    800
}

fn height() -> usize {
    480
}

ports! {
    /// What `plot` takes.
    pub struct Inputs {
        /// The table.
        pub table: Arc<Table>,
    }
}

ports! {
    /// What `plot` gives.
    pub struct Outputs {
        /// The plot, a batch of one.
        pub image: Arc<Image>,
    }
}

impl Node for Plot {
    const OP: &'static str = "plot";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, _: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let facts = ImageFacts {
            batch: 1,
            width: self.width,
            height: self.height,
        };
        Ok(Types::unknown().with("image", &facts))
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let curves = self.curves(&inputs.table)?;
        context.check_cancelled()?;
        let mut pixels = vec![u8::MAX; 3 * self.width * self.height];
        self.draw(&curves, &mut pixels)
            .map_err(|error| NodeError::failed(format!("the table cannot be drawn: {error}")))?;
        let image = Image::from_rgb8(self.width, self.height, &pixels)?;
        Ok(Outputs {
            image: Arc::new(image),
        })
    }
}

/// The points of a curve, x and y; `None` is a gap.
type Points = Vec<Option<(f64, f64)>>;

/// A column, drawn.
#[derive(Debug, PartialEq)]
struct Curve {
    name: String,
    points: Points,
    /// Their moving average, where one is asked for.
    average: Option<Points>,
}

/// What is drawn, and what stands at the horizontal axis.
struct Curves {
    along: String,
    curves: Vec<Curve>,
    /// The least and the greatest x and y.
    bounds: ((f64, f64), (f64, f64)),
}

impl Plot {
    fn curves(&self, table: &Table) -> Result<Curves, NodeError> {
        let along = match &self.x {
            Some(name) => column(table, name)?,
            None if table.columns.is_empty() => {
                return Err(NodeError::failed("the table has no columns to draw"));
            }
            None => 0,
        };
        let numeric = |column: &usize| {
            *column != along && table.rows.iter().any(|row| number(&row[*column]).is_some())
        };
        let columns: Vec<usize> = if self.y.is_empty() {
            (0..table.columns.len()).filter(numeric).collect()
        } else {
            let named = self.y.iter().map(|name| column(table, name));
            named.collect::<Result<_, _>>()?
        };
        let value = |cell: &Json| match (self.log, number(cell)?) {
            (true, value) if value > 0.0 => Some(libm::log10(value)),
            (true, _) => None,
            (false, value) => Some(value),
        };
        let mut curves = Vec::with_capacity(columns.len());
        for column in columns {
            let points: Points = (table.rows.iter())
                .map(|row| Some((number(&row[along])?, value(&row[column])?)))
                .collect();
            let means = |points: &Points| averaged(points, self.average);
            curves.push(Curve {
                name: table.columns[column].clone(),
                average: (self.average > 1).then(|| means(&points)),
                points,
            });
        }
        let points = || {
            curves
                .iter()
                .flat_map(|curve| curve.points.iter().flatten())
        };
        if points().next().is_none() {
            return Err(NodeError::failed(format!(
                "there is nothing to draw: no row of the table has numbers in `{}` and in {}",
                table.columns[along],
                if self.y.is_empty() {
                    "another column".to_owned()
                } else {
                    listed(&self.y)
                },
            ))
            .help(format!("its columns are {}", listed(&table.columns))));
        }
        Ok(Curves {
            along: table.columns[along].clone(),
            bounds: (
                bounds(points().map(|point| point.0)),
                bounds(points().map(|point| point.1)),
            ),
            curves,
        })
    }

    fn draw(&self, what: &Curves, pixels: &mut [u8]) -> Result<(), Box<dyn std::error::Error>> {
        register();
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let size = (side(self.width), side(self.height));
        let area = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
        area.fill(&WHITE)?;
        let ((left, right), (low, high)) = what.bounds;
        let mut chart = ChartBuilder::on(&area);
        chart.margin(12).x_label_area_size(44).y_label_area_size(64);
        if !self.title.is_empty() {
            chart.caption(self.title.as_str(), (FAMILY, 18));
        }
        let mut chart = chart.build_cartesian_2d(left..right, low..high)?;
        let shown = |value: &f64| match self.log {
            true => written(libm::pow(10.0, *value)),
            false => written(*value),
        };
        chart
            .configure_mesh()
            .x_desc(what.along.as_str())
            .x_label_formatter(&|value| written(*value))
            .y_label_formatter(&shown)
            .label_style((FAMILY, 13))
            .axis_desc_style((FAMILY, 14))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .draw()?;
        for (index, curve) in what.curves.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let (strong, pale) = (colour.stroke_width(2), colour.mix(0.3).stroke_width(1));
            let own = if curve.average.is_some() {
                pale
            } else {
                strong
            };
            for run in runs(&curve.points) {
                chart.draw_series(LineSeries::new(run.iter().copied(), own))?;
                if let [only] = *run {
                    chart.draw_series([Circle::new(only, 2, colour.filled())])?;
                }
            }
            for run in curve.average.iter().flat_map(runs) {
                chart.draw_series(LineSeries::new(run, strong))?;
            }
            let series: [PathElement<(f64, f64)>; 0] = [];
            chart
                .draw_series(series)?
                .label(curve.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], strong));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font((FAMILY, 13))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// Makes the font known to the library, once in a process.
fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // What it refuses is a font that cannot be read; the one in the program can.
        let _ = register_font(
            FAMILY,
            FontStyle::Normal,
            epaint_default_fonts::HACK_REGULAR,
        );
    });
}

fn column(table: &Table, name: &str) -> Result<usize, NodeError> {
    let found = table.columns.iter().position(|column| column == name);
    found.ok_or_else(|| {
        NodeError::failed(format!("the table has no column `{name}`"))
            .help(format!("its columns are {}", listed(&table.columns)))
    })
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// The number in a cell: what is finite.
fn number(cell: &Json) -> Option<f64> {
    let value = match cell {
        Json::Number(number) => number.as_f64()?,
        Json::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    value.is_finite().then_some(value)
}

/// The mean of each point and those before it, `number` of them; gaps stay gaps and count for nothing.
fn averaged(points: &Points, number: usize) -> Points {
    (0..points.len())
        .map(|end| {
            let (x, _) = points[end]?;
            let window = points[(end + 1).saturating_sub(number)..=end]
                .iter()
                .flatten();
            let (sum, count) =
                window.fold((0.0, 0usize), |(sum, count), (_, y)| (sum + y, count + 1));
            Some((x, sum / count as f64))
        })
        .collect()
}

/// The stretches of a curve without a gap.
fn runs(points: &Points) -> Vec<Vec<(f64, f64)>> {
    points
        .split(Option::is_none)
        .map(|run| run.iter().flatten().copied().collect())
        .filter(|run: &Vec<_>| !run.is_empty())
        .collect()
}

/// The least and the greatest, apart where they are one.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values.fold((f64::MAX, f64::MIN), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    let apart = if most > least {
        0.0
    } else {
        0.5_f64.max(libm::fabs(least) * 0.1)
    };
    (least - apart, most + apart)
}

/// A number at an axis: three digits that count, no zeros at the end.
fn written(value: f64) -> String {
    let size = libm::fabs(value);
    if size >= 1e6 || (size > 0.0 && size < 1e-3) {
        return format!("{value:.1e}");
    }
    let digits = if size >= 100.0 || size == 0.0 {
        0
    } else {
        (2.0 - libm::floor(libm::log10(size))) as usize
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plot(params: Json) -> Plot {
        serde_json::from_value(params).unwrap()
    }

    fn table() -> Table {
        let mut table = Table::new(["step", "loss", "what", "rate"]);
        for (step, loss) in [json!(1.0), json!(0.5), Json::Null, json!(0.75)]
            .into_iter()
            .enumerate()
        {
            table
                .push(vec![json!(step), loss, json!("x"), json!(1e-4)])
                .unwrap();
        }
        table
    }

    #[test]
    fn columns_of_numbers_are_drawn_over_the_first_with_gaps_and_averages() {
        let made = plot(json!({"average": 2})).curves(&table()).unwrap();
        assert_eq!(made.along, "step");
        let names: Vec<&str> = made.curves.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["loss", "rate"]);
        let loss = &made.curves[0];
        assert_eq!(
            loss.points,
            [Some((0.0, 1.0)), Some((1.0, 0.5)), None, Some((3.0, 0.75))]
        );
        // The last has a gap before it: there it counts alone.
        let average = [Some((0.0, 1.0)), Some((1.0, 0.75)), None, Some((3.0, 0.75))];
        assert_eq!(loss.average.as_deref(), Some(&average[..]));
        assert_eq!(made.bounds, ((0.0, 3.0), (1e-4, 1.0)));
        let log = plot(json!({"y": ["rate"], "log": true}))
            .curves(&table())
            .unwrap();
        assert!((log.curves[0].points[0].unwrap().1 + 4.0).abs() < 1e-12);
    }

    #[test]
    fn what_cannot_be_drawn_is_said_with_the_columns_that_there_are() {
        let said = |params| match plot(params).curves(&table()).map(|_| ()).unwrap_err() {
            NodeError::Failed { message, help } => (message, help.unwrap()),
            NodeError::Cancelled => unreachable!(),
        };
        let columns = "its columns are `step`, `loss`, `what`, `rate`";
        let (message, help) = said(json!({"y": ["losses"]}));
        assert_eq!(
            (message.as_str(), help.as_str()),
            ("the table has no column `losses`", columns)
        );
        let (message, help) = said(json!({"y": ["what"]}));
        assert!(
            message.ends_with("has numbers in `step` and in `what`"),
            "{message}"
        );
        assert_eq!(help, columns);
        assert!(plot(json!({})).curves(&Table::default()).is_err());
    }

    #[test]
    fn numbers_at_an_axis_have_three_digits_that_count() {
        let expected = [
            (0.0, "0"),
            (0.0625, "0.0625"),
            (0.1 + 0.2, "0.3"),
            (1.5, "1.5"),
            (12.34, "12.3"),
            (250.0, "250"),
            (-0.5, "-0.5"),
            (0.0001, "1.0e-4"),
            (2_500_000.0, "2.5e6"),
        ];
        for (value, text) in expected {
            assert_eq!(written(value), text);
        }
    }

    #[test]
    fn a_plot_has_a_curve_of_its_colour_and_letters() {
        let plot = plot(json!({"y": ["loss"], "title": "losses", "width": 320, "height": 200}));
        let curves = plot.curves(&table()).unwrap();
        let mut pixels = vec![0; 3 * 320 * 200];
        plot.draw(&curves, &mut pixels).unwrap();
        let count = |wanted: [u8; 3]| {
            pixels
                .as_chunks::<3>()
                .0
                .iter()
                .filter(|p| **p == wanted)
                .count()
        };
        assert!(count([0, 114, 178]) > 100, "the curve");
        // The title is the only thing so far up, right of the axis.
        let dark = |y: usize| (100..220).any(|x| pixels[3 * (y * 320 + x)] < 100);
        assert!((14..30).any(dark), "the title");
        // The same table is the same picture.
        let mut again = vec![0; 3 * 320 * 200];
        plot.draw(&curves, &mut again).unwrap();
        assert_eq!(pixels, again);
    }
}

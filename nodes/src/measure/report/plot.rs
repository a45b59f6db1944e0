//! The plot of a report: a panel a column, in it a line a method, with its mean and its interval.

use std::convert::Infallible;

use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_7X13_BOLD};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor, WebColors};
use embedded_graphics::primitives::{Circle, Line, Primitive, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};
use embedded_graphics::{Drawable, Pixel};
use retouch_graph::NodeError;

use super::stats::{Estimate, Measured};
use crate::payload::Image;

/// Panels beside each other.
const ACROSS: usize = 3;
/// A panel, and its parts, in pixels: the names at its left, the numbers at its right, the title above, the axis below, a line.
const PANEL: i32 = 400;
const NAMES: i32 = 110;
const NUMBERS: i32 = 60;
const TITLE: i32 = 30;
const AXIS: i32 = 30;
const LINE: i32 = 20;
/// Letters of a name.
const LETTERS: usize = 14;

/// A picture that embedded-graphics draws on.
struct Canvas {
    width: i32,
    height: i32,
    pixels: Vec<u8>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width.unsigned_abs(), self.height.unsigned_abs())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
                let at = 3 * (y * self.width + x) as usize;
                self.pixels[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// Draws the means of all methods.
///
/// # Errors
/// When there are so many that the picture would be too large.
pub(super) fn plot(measured: &Measured) -> Result<Image, NodeError> {
    let panels = measured.columns.len();
    let rows = panels.div_ceil(ACROSS);
    let lines = i32::try_from(measured.methods.len()).unwrap_or(i32::MAX);
    let panel = lines
        .checked_mul(LINE)
        .and_then(|height| height.checked_add(TITLE + AXIS));
    let height = panel.and_then(|panel| panel.checked_mul(i32::try_from(rows).ok()?));
    let (Some(panel), Some(height)) = (panel, height.filter(|height| *height <= 8192)) else {
        return Err(NodeError::failed(format!(
            "{} methods in {panels} columns are too many for a plot",
            measured.methods.len()
        ))
        .help("name fewer `columns`"));
    };
    let width = PANEL * panels.min(ACROSS) as i32;
    let mut canvas = Canvas {
        width,
        height,
        pixels: vec![u8::MAX; 3 * (width * height) as usize],
    };
    for column in 0..panels {
        let corner = Point::new(
            (column % ACROSS) as i32 * PANEL,
            (column / ACROSS) as i32 * panel,
        );
        // Drawing cannot fail: the canvas takes every pixel.
        let Ok(()) = draw(&mut canvas, measured, column, corner);
    }
    Image::from_rgb8(width as usize, height as usize, &canvas.pixels)
}

fn draw(
    canvas: &mut Canvas,
    measured: &Measured,
    column: usize,
    corner: Point,
) -> Result<(), Infallible> {
    let bold = MonoTextStyle::new(&FONT_7X13_BOLD, Rgb888::BLACK);
    let plain = MonoTextStyle::new(&FONT_7X13, Rgb888::BLACK);
    let title = corner + Point::new(NAMES, 8);
    Text::with_baseline(&measured.columns[column], title, bold, Baseline::Top).draw(canvas)?;
    let found: Vec<Option<Estimate>> = (measured.methods.iter())
        .map(|method| measured.estimate(method, None, column))
        .collect();
    let (low, high) = range(&found);
    let (left, right) = (corner.x + NAMES, corner.x + PANEL - NUMBERS);
    let place = |value: f64| left + ((value - low) / (high - low) * f64::from(right - left)) as i32;
    let grey = PrimitiveStyle::with_stroke(Rgb888::CSS_LIGHT_GRAY, 1);
    let mut y = corner.y + TITLE + LINE / 2;
    for (method, estimate) in measured.methods.iter().zip(&found) {
        let name: String = method.chars().take(LETTERS).collect();
        let middle = |x| Point::new(x, y);
        Text::with_baseline(&name, middle(corner.x + 6), plain, Baseline::Middle).draw(canvas)?;
        Line::new(middle(left), middle(right))
            .into_styled(grey)
            .draw(canvas)?;
        if let Some(Estimate { mean, low, high }) = estimate {
            let (start, end) = (place(*low), place(*high));
            let span = Rectangle::new(
                Point::new(start, y - 1),
                Size::new((end - start).max(1).unsigned_abs(), 3),
            );
            span.into_styled(PrimitiveStyle::with_fill(Rgb888::CSS_STEEL_BLUE))
                .draw(canvas)?;
            Circle::with_center(middle(place(*mean)), 9)
                .into_styled(PrimitiveStyle::with_fill(Rgb888::CSS_DARK_ORANGE))
                .draw(canvas)?;
            let text = format!("{mean:.3}");
            Text::with_baseline(&text, middle(right + 12), plain, Baseline::Middle).draw(canvas)?;
        }
        y += LINE;
    }
    let ends = [
        (low, left, Alignment::Left),
        (high, right, Alignment::Right),
    ];
    for (value, x, alignment) in ends {
        let style = TextStyleBuilder::new()
            .alignment(alignment)
            .baseline(Baseline::Middle)
            .build();
        Text::with_text_style(&format!("{value:.2}"), Point::new(x, y), plain, style)
            .draw(canvas)?;
    }
    Ok(())
}

/// From where to where a panel's axis goes: all intervals, and a little room.
fn range(found: &[Option<Estimate>]) -> (f64, f64) {
    let all = found.iter().flatten();
    let low = all.clone().map(|e| e.low).fold(f64::INFINITY, f64::min);
    let high = all.map(|e| e.high).fold(f64::NEG_INFINITY, f64::max);
    match (low.is_finite(), high - low > 1e-9) {
        (false, _) => (0.0, 1.0),
        (true, false) => (low - 0.5, low + 0.5),
        (true, true) => (low - 0.05 * (high - low), high + 0.05 * (high - low)),
    }
}

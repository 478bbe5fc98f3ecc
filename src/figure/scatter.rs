//! Points in a plane.

use super::canvas::{Anchor, Figure, text_width};
use super::heatmap::{clip, number};
use super::palette::{GREY, INK, PALE, Rgb, Scale};

/// A chart of points.
#[derive(Clone, Debug)]
pub struct Scatter {
    /// Written at the top.
    pub title: String,
    /// Written under the title, smaller.
    pub note: String,
    /// What x is.
    pub x_name: String,
    /// What y is.
    pub y_name: String,
    /// Points with the colour of each.
    pub points: Vec<(f64, f64, Rgb)>,
    /// What colours mean.
    pub legend: Vec<(String, Rgb)>,
}

const FONT: u32 = 11;
/// Half the side of a point.
const DOT: i32 = 2;
/// Room around the points, as a share of how far they reach.
const MARGIN: f64 = 0.04;

impl Scatter {
    /// Draws the points in their order.
    pub fn draw(&self) -> Figure {
        let (left, top, side) = (78, 66, 360);
        let named = |(name, _): &(String, Rgb)| text_width(&clip(name, 24), FONT) as i32;
        let legend_w = self.legend.iter().map(named).max().unwrap_or(0) + 50;
        let head = text_width(&self.title, 16).max(text_width(&self.note, FONT)) as i32 + 48;
        let width = (left + side + legend_w).max(head);
        let height = (top + side + 56).max(top + 18 * self.legend.len() as i32 + 20);
        let mut figure = Figure::new(width as u32, height as u32);
        figure.text((24, 24), &self.title, 16, INK, Anchor::Start);
        figure.text((24, 44), &self.note, FONT, GREY, Anchor::Start);
        let finite = || self.points.iter().filter(|(x, y, _)| x.is_finite() && y.is_finite());
        let ends = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = Scale::over(values).ends();
            (low - MARGIN * (high - low), high + MARGIN * (high - low))
        };
        let (x, y) = (ends(&mut finite().map(|p| p.0)), ends(&mut finite().map(|p| p.1)));
        let place =
            |value: f64, (low, high): (f64, f64)| ((value - low) / (high - low) * f64::from(side)).round() as i32;
        for (at, value) in [(0, 0.0), (side / 2, 0.5), (side, 1.0)] {
            let of = |(low, high): (f64, f64)| number(low + value * (high - low), high - low);
            figure.path(vec![(left, top + side - at), (left + side, top + side - at)], PALE, 1);
            figure.path(vec![(left + at, top), (left + at, top + side)], PALE, 1);
            figure.text((left - 8, top + side - at), &of(y), FONT, INK, Anchor::End);
            figure.text((left + at, top + side + 14), &of(x), FONT, INK, Anchor::Middle);
        }
        for (px, py, color) in finite() {
            let (px, py) = (left + place(*px, x), top + side - place(*py, y));
            figure.rect((px - DOT, py - DOT), (2 * DOT, 2 * DOT), *color);
        }
        figure.frame((left, top), (side, side), GREY);
        for (i, (name, color)) in self.legend.iter().enumerate() {
            let y = top + 8 + 18 * i as i32;
            figure.rect((left + side + 14, y - 4), (8, 8), *color);
            figure.text((left + side + 28, y), &clip(name, 24), FONT, INK, Anchor::Start);
        }
        figure.text((left + side / 2, top + side + 36), &self.x_name, FONT, GREY, Anchor::Middle);
        figure.upright_text((16, top + side / 2), &self.y_name, FONT, GREY, Anchor::Middle);
        figure
    }
}

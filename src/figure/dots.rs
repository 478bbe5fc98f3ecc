//! Values with bounds, a row for each thing and a colour for each series.

use super::canvas::{Anchor, Figure, text_width};
use super::heatmap::{clip, number};
use super::palette::{GREY, INK, LINES, PALE};

/// A value with its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Dot {
    /// Whose it is, an index into [`Dots::series`].
    pub series: usize,
    /// The value.
    pub value: f64,
    /// Its lower bound; not finite for none.
    pub low: f64,
    /// Its upper bound.
    pub high: f64,
    /// What it is held against, as a grey tick.
    pub mark: Option<f64>,
}

/// A dot plot (Cleveland 1984).
#[derive(Clone, Debug)]
pub struct Dots {
    /// Written at the top.
    pub title: String,
    /// Written under the title, smaller.
    pub note: String,
    /// What a value is.
    pub value_name: String,
    /// Whether values are shares, whose axis is all of 0 to 1; otherwise it holds 0 and the values.
    pub shares: bool,
    /// Names in the legend; one alone is not named.
    pub series: Vec<String>,
    /// Name and dots of each row.
    pub rows: Vec<(String, Vec<Dot>)>,
}

const FONT: u32 = 11;
/// Characters of a row's name.
const NAME: usize = 56;

impl Dots {
    /// Draws the rows from top to bottom.
    pub fn draw(&self) -> Figure {
        let name_w = self.rows.iter().map(|row| text_width(&clip(&row.0, NAME), FONT)).max().unwrap_or(0) as i32;
        let several = self.series.len() > 1;
        let legend_w = if several {
            self.series.iter().map(|s| text_width(&clip(s, 32), FONT)).max().unwrap_or(0) as i32 + 40
        } else {
            60
        };
        let (left, top, w, line) = (24 + name_w + 12, 66, 360, 12);
        let heights: Vec<i32> = self.rows.iter().map(|(_, dots)| line * (dots.len().max(1) as i32) + 10).collect();
        let h: i32 = heights.iter().sum();
        let head = text_width(&self.title, 16).max(text_width(&self.note, FONT)) as i32 + 48;
        let legend_h = 18 * self.series.len() as i32;
        let mut figure = Figure::new((left + w + legend_w + 20).max(head) as u32, (top + h.max(legend_h) + 56) as u32);
        figure.text((24, 24), &self.title, 16, INK, Anchor::Start);
        figure.text((24, 44), &self.note, FONT, GREY, Anchor::Start);
        let all = || self.rows.iter().flat_map(|(_, dots)| dots).flat_map(|dot| [dot.value, dot.low, dot.high]);
        let ticks = match self.shares {
            true => vec![0.0, 0.25, 0.5, 0.75, 1.0],
            false => super::charts::ticks(all().filter(|x| x.is_finite()).chain([0.0])),
        };
        let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
        let to_x = |value: f64| left + ((value.clamp(low, high) - low) / (high - low) * f64::from(w)).round() as i32;
        for value in ticks {
            figure.path(vec![(to_x(value), top), (to_x(value), top + h)], PALE, 1);
            figure.text((to_x(value), top + h + 14), &number(value, high - low), FONT, INK, Anchor::Middle);
        }
        figure.frame((left, top), (w, h), GREY);
        let mut y = top;
        for ((name, dots), height) in self.rows.iter().zip(heights) {
            figure.text((left - 10, y + height / 2), &clip(name, NAME), FONT, INK, Anchor::End);
            for (i, dot) in dots.iter().filter(|dot| dot.value.is_finite()).enumerate() {
                let at = y + 5 + line * i as i32 + line / 2;
                let color = LINES[dot.series % LINES.len()];
                if let Some(mark) = dot.mark {
                    figure.rect((to_x(mark) - 1, at - 5), (2, 10), GREY);
                }
                if dot.low.is_finite() && dot.high.is_finite() {
                    figure.path(vec![(to_x(dot.low), at), (to_x(dot.high), at)], color, 2);
                }
                figure.rect((to_x(dot.value) - 3, at - 3), (7, 7), color);
            }
            y += height;
        }
        for (i, name) in self.series.iter().enumerate().filter(|_| several) {
            let at = top + 8 + 18 * i as i32;
            figure.rect((left + w + 14, at - 3), (7, 7), LINES[i % LINES.len()]);
            figure.text((left + w + 28, at), &clip(name, 32), FONT, INK, Anchor::Start);
        }
        figure.text((left + w / 2, top + h + 36), &self.value_name, FONT, GREY, Anchor::Middle);
        figure
    }
}

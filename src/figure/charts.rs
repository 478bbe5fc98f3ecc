//! Lines, bars and token strips.

use super::canvas::{Anchor, Figure, text_width};
use super::heatmap::{HeatMaps, clip, number};
use super::palette::{GREY, INK, LINES, PALE, Rgb, Scale, ink_on};

/// One line of a [`Lines`] chart.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Its points; those that are not finite break the line.
    pub points: Vec<(f64, f64)>,
    /// Intervals, as x, low and high.
    pub spread: Vec<(f64, f64, f64)>,
}

/// A chart of lines.
#[derive(Clone, Debug)]
pub struct Lines {
    /// Written at the top.
    pub title: String,
    /// What x is.
    pub x_name: String,
    /// What y is.
    pub y_name: String,
    /// The lines.
    pub lines: Vec<Line>,
    /// Names of the x values 0, 1, 2 …, where they are not numbers.
    pub x_labels: Vec<String>,
}

const FONT: u32 = 11;

/// A picture that is one or the other, as its frame asks for.
#[derive(Clone, Debug)]
pub enum Chart {
    /// Heat maps.
    Maps(HeatMaps),
    /// Bars.
    Bars(Bars),
}

impl Chart {
    /// The same picture under another title.
    pub fn titled(mut self, title: &str) -> Self {
        match &mut self {
            Chart::Maps(maps) => maps.title = title.into(),
            Chart::Bars(bars) => bars.title = title.into(),
        }
        self
    }

    /// Draws it.
    pub fn draw(&self) -> Figure {
        match self {
            Chart::Maps(maps) => maps.draw(),
            Chart::Bars(bars) => bars.draw(),
        }
    }
}

impl Lines {
    /// Draws the chart, a colour per line.
    pub fn draw(&self) -> Figure {
        self.draw_with(|i| (LINES[i % LINES.len()], 2))
    }

    /// Draws the chart with a colour and a width for each line by its index. Lines without a name are not in the legend.
    pub fn draw_with(&self, style: impl Fn(usize) -> (Rgb, u32)) -> Figure {
        let labels_w = self.x_labels.iter().map(|l| text_width(l, FONT)).max().unwrap_or(0) as i32;
        let bottom = if self.x_labels.is_empty() { 52 } else { labels_w + 40 };
        let legend_w = self.lines.iter().map(|l| text_width(&l.name, FONT)).max().unwrap_or(0) as i32 + 50;
        let (left, top, w, h) = (78, 48, 560, 300);
        let width = (left + w + legend_w + 20).max(text_width(&self.title, 16) as i32 + 48);
        let mut figure = Figure::new(width as u32, (top + h + bottom) as u32);
        figure.text((24, 24), &self.title, 16, INK, Anchor::Start);
        let points = || self.lines.iter().flat_map(|l| &l.points).filter(|(x, y)| x.is_finite() && y.is_finite());
        let (x_low, x_high) = Scale::over(points().map(|p| p.0)).ends();
        let spreads = || self.lines.iter().flat_map(|l| &l.spread).flat_map(|(_, low, high)| [*low, *high]);
        let ticks = ticks(points().map(|p| p.1).chain(spreads().filter(|y| y.is_finite())));
        let (y_low, y_high) = (ticks[0], ticks[ticks.len() - 1]);
        let to_x = |x: f64| left + ((x - x_low) / (x_high - x_low) * f64::from(w)).round() as i32;
        let to_y = |y: f64| top + h - ((y - y_low) / (y_high - y_low) * f64::from(h)).round() as i32;
        for &tick in &ticks {
            figure.path(vec![(left, to_y(tick)), (left + w, to_y(tick))], PALE, 1);
            figure.text((left - 8, to_y(tick)), &number(tick, y_high - y_low), FONT, INK, Anchor::End);
        }
        if self.x_labels.is_empty() {
            for tick in self::ticks(points().map(|p| p.0)).into_iter().filter(|t| (x_low..=x_high).contains(t)) {
                figure.path(vec![(to_x(tick), top + h), (to_x(tick), top + h + 4)], GREY, 1);
                let whole = points().all(|p| p.0.fract() == 0.0) && tick.fract() == 0.0;
                let label = if whole { format!("{tick:.0}") } else { number(tick, x_high - x_low) };
                figure.text((to_x(tick), top + h + 14), &label, FONT, INK, Anchor::Middle);
            }
        } else {
            let step = (self.x_labels.len() * 13).div_ceil(w as usize).max(1);
            for (i, label) in self.x_labels.iter().enumerate().step_by(step) {
                figure.upright_text((to_x(i as f64), top + h + 6), label, FONT, INK, Anchor::End);
            }
        }
        figure.frame((left, top), (w, h), GREY);
        let mut named = 0;
        for (i, line) in self.lines.iter().enumerate() {
            let (color, thickness) = style(i);
            for run in line.points.split(|(x, y)| !x.is_finite() || !y.is_finite()).filter(|run| !run.is_empty()) {
                figure.path(run.iter().map(|(x, y)| (to_x(*x), to_y(*y))).collect(), color, thickness);
            }
            for (x, low, high) in line.spread.iter().filter(|(_, low, high)| low.is_finite() && high.is_finite()) {
                figure.path(vec![(to_x(*x), to_y(*low)), (to_x(*x), to_y(*high))], color, 1);
                for end in [low, high] {
                    figure.path(vec![(to_x(*x) - 3, to_y(*end)), (to_x(*x) + 3, to_y(*end))], color, 1);
                }
            }
            if line.name.is_empty() {
                continue;
            }
            let y = top + 8 + 18 * named;
            named += 1;
            figure.path(vec![(left + w + 14, y), (left + w + 36, y)], color, thickness);
            figure.text((left + w + 42, y), &line.name, FONT, INK, Anchor::Start);
        }
        figure.text((left + w / 2, top + h + bottom - 14), &self.x_name, FONT, GREY, Anchor::Middle);
        figure.upright_text((16, top + h / 2), &self.y_name, FONT, GREY, Anchor::Middle);
        figure
    }
}

/// Round numbers that enclose the values: at least two, at most eight.
pub(super) fn ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let (low, high) = Scale::over(values).ends();
    let rough = (high - low) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

/// Horizontal bars with a name and a value each.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Written at the top.
    pub title: String,
    /// Written under the title, smaller.
    pub note: String,
    /// What a value is.
    pub value_name: String,
    /// Name, length and the text beside the bar.
    pub bars: Vec<(String, f64, String)>,
}

impl Bars {
    /// Draws the bars from a common zero: positive ones to the right, negative ones to the left and red.
    pub fn draw(&self) -> Figure {
        let name_w = self.bars.iter().map(|b| text_width(&clip(&b.0, 40), FONT)).max().unwrap_or(0) as i32;
        let text_w = self.bars.iter().map(|b| text_width(&b.2, FONT)).max().unwrap_or(0) as i32;
        let finite = || self.bars.iter().map(|b| b.1).filter(|x| x.is_finite());
        let (low, high) = (finite().fold(0.0, f64::min), finite().fold(0.0, f64::max));
        let (left, top, w, row) = (24 + name_w + 10, 66, 360, 20);
        // Texts stand outside of their bars, on both sides where there are bars on both.
        let zero = left + if low < 0.0 { text_w + 8 } else { 0 };
        let to_length = |value: f64| (value.abs() / (high - low).max(1e-300) * f64::from(w)).round() as i32;
        let zero = zero + to_length(low);
        let head = text_width(&self.title, 16).max(text_width(&self.note, FONT)) as i32 + 48;
        let width = (zero + to_length(high) + text_w + 40).max(head);
        let mut figure = Figure::new(width as u32, (top + row * self.bars.len() as i32 + 40) as u32);
        figure.text((24, 24), &self.title, 16, INK, Anchor::Start);
        figure.text((24, 44), &self.note, FONT, GREY, Anchor::Start);
        for (i, (name, value, text)) in self.bars.iter().enumerate() {
            let y = top + row * i as i32;
            figure.text((left - 8, y + row / 2), &clip(name, 40), FONT, INK, Anchor::End);
            let length = if value.is_finite() { to_length(*value) } else { 0 };
            let (start, color, at, anchor): (_, Rgb, _, _) = match *value < 0.0 {
                true => (zero - length, LINES[1], zero - length - 6, Anchor::End),
                false => (zero, LINES[0], zero + length + 6, Anchor::Start),
            };
            if length > 0 {
                figure.rect((start, y + 3), (length, row - 6), color);
            }
            figure.text((at, y + row / 2), text, FONT, INK, anchor);
        }
        let bottom = top + row * self.bars.len() as i32;
        figure.path(vec![(zero, top), (zero, bottom)], GREY, 1);
        figure.text((zero - to_length(low) + w / 2, bottom + 18), &self.value_name, FONT, GREY, Anchor::Middle);
        figure
    }
}

/// Tokens as boxes in reading order, each with a number under it and a colour behind it.
#[derive(Clone, Debug)]
pub struct Strip {
    /// Written at the top.
    pub title: String,
    /// Text, the number under it and the colour of each token.
    pub tokens: Vec<(String, String, Rgb)>,
}

impl Strip {
    /// Draws the strip, broken into lines.
    pub fn draw(&self) -> Figure {
        const WIDTH: i32 = 860;
        let mut places = Vec::new();
        let (mut x, mut y) = (24, 52);
        for (text, below, _) in &self.tokens {
            let w = (text_width(&clip(text, 40), 13).max(text_width(below, 9)) + 12) as i32;
            if x + w > WIDTH - 24 && x > 24 {
                (x, y) = (24, y + 50);
            }
            places.push((x, y, w));
            x += w + 4;
        }
        let width = WIDTH.max(text_width(&self.title, 16) as i32 + 48);
        let mut figure = Figure::new(width as u32, (y + 60) as u32);
        figure.text((24, 24), &self.title, 16, INK, Anchor::Start);
        for ((text, below, color), (x, y, w)) in self.tokens.iter().zip(places) {
            figure.rect((x, y), (w, 26), *color);
            figure.frame((x, y), (w, 26), PALE);
            figure.text((x + w / 2, y + 13), &clip(text, 40), 13, ink_on(*color), Anchor::Middle);
            figure.text((x + w / 2, y + 34), below, 9, GREY, Anchor::Middle);
        }
        figure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(ticks([0.0, 4.2].into_iter()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(ticks([-0.13, 0.22].into_iter()).len(), 6);
        assert!(ticks([7.0].into_iter()).len() >= 2);
        assert!(ticks(std::iter::empty()).len() >= 2);
    }
}

//! Heat maps in a grid, with labels on both axes and one colour bar.

use super::canvas::{Anchor, Figure, text_width};
use super::palette::{GREY, INK, Rgb, Scale, ink_on};

/// One heat map.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// Written above it.
    pub title: String,
    /// Values by row, from the top; NaN where there is nothing.
    pub rows: Vec<Vec<f64>>,
    /// Text inside the cells, in the shape of `rows`, or empty.
    pub cells: Vec<Vec<String>>,
    /// Intervals of the values, in the shape of `rows`, or empty; only pages show them.
    pub spans: Vec<Vec<(f64, f64)>>,
}

/// Heat maps that share labels and colours.
#[derive(Clone, Debug)]
pub struct HeatMaps {
    /// Written at the top.
    pub title: String,
    /// Written under the title, smaller.
    pub note: String,
    /// What the columns are.
    pub x_name: String,
    /// What the rows are.
    pub y_name: String,
    /// One label per column.
    pub x: Vec<String>,
    /// One label per row.
    pub y: Vec<String>,
    /// The maps.
    pub panels: Vec<Panel>,
    /// Maps to a row of the page.
    pub columns: usize,
    /// The colours.
    pub scale: Scale,
    /// What a value is, with its unit, beside the colour bar.
    pub value_name: String,
}

const FONT: u32 = 11;
const MARGIN: i32 = 24;
const TITLE: i32 = 58;
const PANEL_TITLE: i32 = 22;
const GAP: i32 = 26;
const BAR: i32 = 110;
/// Longest label, in characters.
const LABEL: usize = 16;
/// Shortest distance between two labels.
const STEP: u32 = 13;

impl HeatMaps {
    /// Draws the maps. Cells shrink and labels thin out as there are more of them.
    pub fn draw(&self) -> Figure {
        let (nx, ny) = (self.x.len().max(1), self.y.len().max(1));
        let cell = self.cell(nx, ny);
        let x: Vec<String> = self.x.iter().map(|label| clip(label, LABEL)).collect();
        let y: Vec<String> = self.y.iter().map(|label| clip(label, LABEL)).collect();
        let longest = |labels: &[String]| labels.iter().map(|l| text_width(l, FONT)).max().unwrap_or(0) as i32;
        let (left, bottom) = (longest(&y) + 34, longest(&x) + 34);
        let (map_w, map_h) = (cell.0 as i32 * nx as i32, cell.1 as i32 * ny as i32);
        let columns = self.columns.clamp(1, self.panels.len().max(1));
        let rows = self.panels.len().max(1).div_ceil(columns);
        // A title must fit its panel.
        let title_w = self.panels.iter().map(|p| text_width(&p.title, FONT + 1)).max().unwrap_or(0) as i32;
        let panel_w = left + map_w.max(title_w - left) + GAP;
        let panel_h = PANEL_TITLE + map_h + bottom + GAP;
        let head = (text_width(&self.title, 16).max(text_width(&self.note, FONT)) as i32) + 2 * MARGIN;
        let width = (2 * MARGIN + columns as i32 * panel_w + BAR).max(head);
        let height = (TITLE + rows as i32 * panel_h + MARGIN).max(TITLE + 240);
        let mut figure = Figure::new(width as u32, height as u32);
        figure.text((MARGIN, 24), &self.title, 16, INK, Anchor::Start);
        figure.text((MARGIN, 44), &self.note, FONT, GREY, Anchor::Start);
        for (i, panel) in self.panels.iter().enumerate() {
            let origin =
                (MARGIN + (i % columns) as i32 * panel_w + left, TITLE + (i / columns) as i32 * panel_h + PANEL_TITLE);
            self.panel(&mut figure, panel, origin, cell, &x, &y);
            let center = origin.0 + map_w / 2;
            figure.text((center, origin.1 + map_h + bottom - 14), &self.x_name, FONT, GREY, Anchor::Middle);
            figure.upright_text((origin.0 - left + 8, origin.1 + map_h / 2), &self.y_name, FONT, GREY, Anchor::Middle);
        }
        let bar_x = MARGIN + columns as i32 * panel_w;
        self.bar(&mut figure, (bar_x, TITLE + PANEL_TITLE), panel_h.clamp(160, 320) - 40);
        figure
    }

    /// Cell size: wide enough for text where there is text, else square and smaller the more there are.
    fn cell(&self, nx: usize, ny: usize) -> (u32, u32) {
        let texts = self.panels.iter().flat_map(|p| p.cells.iter().flatten());
        if let Some(widest) = texts.map(|t| text_width(&clip(t, LABEL), FONT)).max() {
            return (widest.clamp(30, 110) + 10, 22);
        }
        let side = |n: usize| (560 / n.max(1) as u32).clamp(2, 26);
        let square = side(nx).min(side(ny));
        // A few rows over many columns need not be thin.
        (side(nx).max(square), side(ny).max(square).min(4 * side(nx)))
    }

    fn panel(
        &self,
        figure: &mut Figure,
        panel: &Panel,
        (x0, y0): (i32, i32),
        (w, h): (u32, u32),
        x: &[String],
        y: &[String],
    ) {
        let columns = x.len();
        figure.text((x0, y0 - 11), &panel.title, FONT + 1, INK, Anchor::Start);
        let color = |value: Option<&f64>| -> Rgb {
            value.filter(|v| !v.is_nan()).map_or(super::palette::PAPER, |v| self.scale.color(*v))
        };
        let colors = (0..y.len()).flat_map(|r| (0..columns).map(move |c| (r, c)));
        let colors: Vec<Rgb> = colors.map(|(r, c)| color(panel.rows.get(r).and_then(|row| row.get(c)))).collect();
        for (i, text) in panel.cells.iter().flatten().enumerate() {
            debug_assert!(i < colors.len(), "text `{text}` outside the map");
        }
        figure.cells((x0, y0), (w, h), columns, colors.clone());
        let (map_w, map_h) = (w as i32 * columns as i32, h as i32 * y.len() as i32);
        figure.frame((x0, y0), (map_w, map_h), GREY);
        for (r, row) in panel.cells.iter().enumerate() {
            for (c, text) in row.iter().enumerate() {
                let at = (x0 + (c as i32 * 2 + 1) * w as i32 / 2, y0 + (r as i32 * 2 + 1) * h as i32 / 2);
                let ink = ink_on(colors[r * columns + c]);
                figure.text(at, &clip_to(text, w - 6), FONT, ink, Anchor::Middle);
            }
        }
        for (c, label) in thinned(x, w) {
            let center = x0 + (c as i32 * 2 + 1) * w as i32 / 2;
            figure.upright_text((center, y0 + map_h + 5), label, FONT, INK, Anchor::End);
        }
        for (r, label) in thinned(y, h) {
            let center = y0 + (r as i32 * 2 + 1) * h as i32 / 2;
            figure.text((x0 - 5, center), label, FONT, INK, Anchor::End);
        }
    }

    fn bar(&self, figure: &mut Figure, (x, y): (i32, i32), height: i32) {
        const STEPS: usize = 64;
        let (low, high) = self.scale.ends();
        let colors: Vec<Rgb> =
            (0..STEPS).map(|i| self.scale.color(high + (low - high) * i as f64 / (STEPS - 1) as f64)).collect();
        let step = (height / STEPS as i32).max(2);
        figure.cells((x, y), (14, step as u32), 1, colors);
        let height = step * STEPS as i32;
        figure.frame((x, y), (14, height), GREY);
        for i in 0..=4 {
            let value = high + (low - high) * f64::from(i) / 4.0;
            let at = y + height * i / 4;
            figure.path(vec![(x + 14, at), (x + 18, at)], GREY, 1);
            figure.text((x + 22, at), &number(value, high - low), FONT, INK, Anchor::Start);
        }
        figure.upright_text((x + 78, y + height / 2), &self.value_name, FONT, GREY, Anchor::Middle);
    }
}

/// A number with as many digits as its range makes meaningful.
pub fn number(value: f64, range: f64) -> String {
    let range = range.abs().max(1e-300);
    if !(1e-3..1e5).contains(&range) {
        return format!("{value:.1e}");
    }
    let digits = (2.0 - range.log10().floor()).clamp(0.0, 5.0) as usize;
    let text = format!("{value:.digits$}");
    if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
        text.trim_start_matches('-').into()
    } else {
        text
    }
}

/// Every label, or every second, third … where they would touch. Empty ones take no room.
fn thinned(labels: &[String], cell: u32) -> impl Iterator<Item = (usize, &String)> {
    let step = STEP.div_ceil(cell.max(1)).max(1) as usize;
    let mut next = 0;
    labels.iter().enumerate().filter(move |(i, label)| {
        let drawn = *i >= next && !label.is_empty();
        if drawn {
            next = i + step;
        }
        drawn
    })
}

/// At most `limit` characters.
pub fn clip(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_string();
    }
    text.chars().take(limit - 1).chain(['…']).collect()
}

/// As many characters as fit into `width`.
fn clip_to(text: &str, width: u32) -> String {
    let mut limit = text.chars().count().min(LABEL);
    let mut clipped = clip(text, limit.max(1));
    while limit > 1 && text_width(&clipped, FONT) > width {
        limit -= 1;
        clipped = clip(text, limit);
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_of_their_range() {
        assert_eq!(number(0.25, 1.0), "0.25");
        assert_eq!(number(-0.0001, 1.0), "0.00");
        assert_eq!(number(1234.5, 3000.0), "1234");
        assert_eq!(number(1e-7, 1e-6), "1.0e-7");
    }

    #[test]
    fn labels_thin_out() {
        let labels: Vec<String> = (0..10).map(|i| i.to_string()).collect();
        let shown = |cell| thinned(&labels, cell).map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(shown(26).len(), 10);
        assert_eq!(shown(5), [0, 3, 6, 9]);
        let sparse: Vec<String> = (0..10).map(|i| if i % 4 == 1 { i.to_string() } else { String::new() }).collect();
        assert_eq!(thinned(&sparse, 5).map(|(i, _)| i).collect::<Vec<_>>(), [1, 5, 9]);
    }
}

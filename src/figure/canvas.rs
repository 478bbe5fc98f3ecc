//! A drawing as a list of shapes, written as SVG or PNG by plotters.

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{BitMapElement, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle, register_font};

use super::glyphs::{FONT_BYTES, drawable};
use super::palette::{PAPER, Rgb};
use crate::error::{Error, Result, printable};
use crate::memory;

/// The name under which the embedded font is known; a browser that lacks it takes its own sans-serif.
const FONT: &str = "DejaVu Sans, Verdana, sans-serif";

/// Pixels of a PNG per unit of the drawing, where there is memory for them.
pub const PNG_SCALE: u32 = 2;

/// Largest side of a drawing: beyond it viewers and memory give up.
pub const MAX_SIDE: u32 = 12_000;

/// Where text sits relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The point is at the left end.
    Start,
    /// The point is in the middle.
    Middle,
    /// The point is at the right end.
    End,
}

#[derive(Clone, Debug)]
enum Shape {
    Rect {
        at: (i32, i32),
        size: (i32, i32),
        color: Rgb,
    },
    Frame {
        at: (i32, i32),
        size: (i32, i32),
        color: Rgb,
    },
    Path {
        points: Vec<(i32, i32)>,
        color: Rgb,
        width: u32,
    },
    Text {
        at: (i32, i32),
        text: String,
        size: u32,
        color: Rgb,
        anchor: Anchor,
        upright: bool,
    },
    /// Equal cells of colour, rows from the top.
    Cells {
        at: (i32, i32),
        cell: (u32, u32),
        columns: usize,
        colors: Vec<Rgb>,
    },
}

/// A picture.
#[derive(Clone, Debug)]
pub struct Figure {
    width: u32,
    height: u32,
    /// How large it would be without [`MAX_SIDE`].
    whole: (u32, u32),
    shapes: Vec<Shape>,
}

impl Figure {
    /// An empty page of at least one unit.
    pub fn new(width: u32, height: u32) -> Self {
        let [shown_width, shown_height] = [width, height].map(|side| side.clamp(1, MAX_SIDE));
        Self { width: shown_width, height: shown_height, whole: (width, height), shapes: Vec::new() }
    }

    /// Width and height in units (pixels of the SVG).
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// How large the picture would be, where that is more than is shown of it.
    pub fn cut(&self) -> Option<(u32, u32)> {
        (self.whole.0 > MAX_SIDE || self.whole.1 > MAX_SIDE).then_some(self.whole)
    }

    /// A filled rectangle.
    pub fn rect(&mut self, at: (i32, i32), size: (i32, i32), color: Rgb) {
        self.shapes.push(Shape::Rect { at, size, color });
    }

    /// The outline of a rectangle.
    pub fn frame(&mut self, at: (i32, i32), size: (i32, i32), color: Rgb) {
        self.shapes.push(Shape::Frame { at, size, color });
    }

    /// A line through points.
    pub fn path(&mut self, points: Vec<(i32, i32)>, color: Rgb, width: u32) {
        self.shapes.push(Shape::Path { points, color, width });
    }

    /// Horizontal text, vertically centred on its point. Control characters are shown escaped.
    pub fn text(&mut self, at: (i32, i32), text: &str, size: u32, color: Rgb, anchor: Anchor) {
        let text = printable(text);
        self.shapes.push(Shape::Text { at, text, size, color, anchor, upright: false });
    }

    /// Text that reads from bottom to top, horizontally centred on its point.
    pub fn upright_text(&mut self, at: (i32, i32), text: &str, size: u32, color: Rgb, anchor: Anchor) {
        let text = printable(text);
        self.shapes.push(Shape::Text { at, text, size, color, anchor, upright: true });
    }

    /// A grid of cells, `columns` to a row.
    pub fn cells(&mut self, at: (i32, i32), cell: (u32, u32), columns: usize, colors: Vec<Rgb>) {
        self.shapes.push(Shape::Cells { at, cell, columns, colors });
    }

    /// This picture with another to its right.
    pub fn beside(mut self, other: Figure) -> Figure {
        let at = (self.width as i32, 0);
        self.place(at, other);
        self
    }

    /// Puts another picture on this one, its upper left corner at `at`; the page grows to hold it.
    pub fn place(&mut self, at: (i32, i32), other: Figure) {
        let shift = |(x, y): (i32, i32)| (x + at.0, y + at.1);
        self.shapes.extend(other.shapes.into_iter().map(|shape| match shape {
            Shape::Rect { at, size, color } => Shape::Rect { at: shift(at), size, color },
            Shape::Frame { at, size, color } => Shape::Frame { at: shift(at), size, color },
            Shape::Path { points, color, width } => {
                Shape::Path { points: points.into_iter().map(shift).collect(), color, width }
            }
            Shape::Text { at, text, size, color, anchor, upright } => {
                Shape::Text { at: shift(at), text, size, color, anchor, upright }
            }
            Shape::Cells { at, cell, columns, colors } => Shape::Cells { at: shift(at), cell, columns, colors },
        }));
        let (right, bottom) = shift((other.whole.0 as i32, other.whole.1 as i32));
        self.whole = (self.whole.0.max(right.max(0) as u32), self.whole.1.max(bottom.max(0) as u32));
        self.width = self.width.max(right.max(0) as u32).min(MAX_SIDE);
        self.height = self.height.max(bottom.max(0) as u32).min(MAX_SIDE);
    }

    /// Every text in the picture.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.shapes.iter().filter_map(|shape| match shape {
            Shape::Text { text, .. } => Some(text.as_str()),
            _ => None,
        })
    }

    /// Bytes that drawing takes at most, about: of a PNG at so many pixels to a unit the pixels, those of its largest grid of cells, and the
    /// file; without pixels, of an SVG.
    pub fn memory(&self, scale: Option<u32>) -> u64 {
        let grid = |shape: &Shape| match shape {
            Shape::Cells { cell, colors, .. } => 3 * colors.len() as u64 * u64::from(cell.0) * u64::from(cell.1),
            _ => 0,
        };
        let largest = self.shapes.iter().map(grid).max().unwrap_or(0);
        match scale.map(u64::from) {
            Some(scale) => {
                let pixels = memory::product(&[3, scale * u64::from(self.width), scale * u64::from(self.height)]);
                pixels.saturating_add(pixels / 2).saturating_add(memory::product(&[scale, scale, largest]))
            }
            None => {
                let written = |shape: &Shape| match shape {
                    Shape::Path { points, .. } => 200 + 12 * points.len(),
                    Shape::Text { text, .. } => 300 + 2 * text.len(),
                    Shape::Cells { colors, .. } => 300 + 4 * colors.len(),
                    _ => 200,
                };
                2 * self.shapes.iter().map(|shape| written(shape) as u64).sum::<u64>() + 2 * largest
            }
        }
    }

    /// The picture as SVG.
    ///
    /// # Errors
    /// [`Error::Bug`] if plotters fails.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (self.width, self.height)).into_drawing_area();
            self.draw(&area, 1)?;
        }
        Ok(svg)
    }

    /// The picture as PNG, two pixels to a unit. Characters that the embedded font lacks are escaped, `\u{306E}`.
    ///
    /// # Errors
    /// [`Error::TryAgain`] where there is no memory for the pixels, [`Error::Bug`] if plotters fails.
    pub fn png(&self) -> Result<Vec<u8>> {
        self.png_at(PNG_SCALE, None)
    }

    /// The picture as PNG, at so many pixels to a unit.
    ///
    /// # Errors
    /// [`Error::TryAgain`] where the pixels take more than `room` bytes, or than there are; [`Error::Bug`] if plotters fails.
    pub fn png_at(&self, scale: u32, room: Option<u64>) -> Result<Vec<u8>> {
        let what = format!("a picture of {} × {} at {scale} pixels to a unit", self.width, self.height);
        memory::check_left(&what, self.memory(Some(scale)), room)?;
        memory::check(&what, self.memory(Some(scale)), None)?;
        let (width, height) = (self.width * scale, self.height * scale);
        let mut pixels = vec![255; 3 * width as usize * height as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
            self.with_drawable_text()?.draw(&area, scale as i32)?;
        }
        encode_png(&pixels, width, height)
    }

    /// The picture with every text as [`drawable`] has it.
    fn with_drawable_text(&self) -> Result<Figure> {
        let mut drawn = self.clone();
        for shape in &mut drawn.shapes {
            if let Shape::Text { text, .. } = shape {
                *text = drawable(text)?;
            }
        }
        Ok(drawn)
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, scale: i32) -> Result<()> {
        load_font()?;
        let fail = |e: &dyn std::fmt::Display| Error::Bug(format!("drawing: {e}"));
        area.fill(&rgb(PAPER)).map_err(|e| fail(&e))?;
        for shape in &self.shapes {
            self.draw_shape(area, shape, scale).map_err(|e| fail(&e))?;
        }
        area.present().map_err(|e| fail(&e))
    }

    fn draw_shape<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        shape: &Shape,
        scale: i32,
    ) -> std::result::Result<(), plotters::drawing::DrawingAreaErrorKind<B::ErrorType>> {
        let to = |(x, y): (i32, i32)| (x * scale, y * scale);
        match shape {
            // plotters' rectangles include their far edge.
            Shape::Rect { at, size, color } => {
                let (x, y) = to((at.0 + size.0, at.1 + size.1));
                area.draw(&Rectangle::new([to(*at), (x - 1, y - 1)], rgb(*color).filled()))
            }
            Shape::Frame { at, size, color } => {
                let style = ShapeStyle { color: rgb(*color).to_rgba(), filled: false, stroke_width: scale as u32 };
                area.draw(&Rectangle::new([to(*at), to((at.0 + size.0, at.1 + size.1))], style))
            }
            Shape::Path { points, color, width } => {
                let style =
                    ShapeStyle { color: rgb(*color).to_rgba(), filled: false, stroke_width: width * scale as u32 };
                area.draw(&PathElement::new(points.iter().map(|p| to(*p)).collect::<Vec<_>>(), style))
            }
            Shape::Text { at, text, size, color, anchor, upright } => {
                let pos = Pos::new(
                    match anchor {
                        Anchor::Start => HPos::Left,
                        Anchor::Middle => HPos::Center,
                        Anchor::End => HPos::Right,
                    },
                    VPos::Center,
                );
                let font = font(*size * scale as u32);
                let font = if *upright { font.transform(FontTransform::Rotate270) } else { font };
                let color = rgb(*color);
                let style = TextStyle::from(font).color(&color).pos(pos);
                area.draw(&Text::new(text.as_str(), to(*at), style))
            }
            Shape::Cells { at, cell, columns, colors } => {
                let (w, h) = (cell.0 * scale as u32, cell.1 * scale as u32);
                let width = w * *columns as u32;
                let mut pixels = Vec::with_capacity(colors.len() * (w * h * 3) as usize);
                for row in colors.chunks(*columns) {
                    let line: Vec<u8> = row.iter().flat_map(|color| color.repeat(w as usize)).collect();
                    for _ in 0..h {
                        pixels.extend_from_slice(&line);
                    }
                }
                let height = h * (colors.len() / (*columns).max(1)) as u32;
                match BitMapElement::with_owned_buffer(to(*at), (width, height), pixels) {
                    Some(image) => area.draw(&image),
                    None => Ok(()),
                }
            }
        }
    }

    /// What a notebook shows for this figure: evcxr calls it on the last expression of a cell.
    pub fn evcxr_display(&self) {
        match self.svg().and_then(|svg| Ok((svg, self.png()?))) {
            Ok((svg, png)) => {
                crate::notebook::display(&[("image/svg+xml", svg), ("image/png", crate::notebook::base64(&png))]);
            }
            Err(e) => crate::notebook::display(&[("text/plain", e.to_string())]),
        }
    }
}

fn font(size: u32) -> plotters::style::FontDesc<'static> {
    // plotters writes SVG sizes divided by 1.24 and gives the font its size from ascent to descent.
    (FONT, f64::from(size) * 1.24).into_font()
}

/// Width of a text in units, as a PNG has it.
pub fn text_width(text: &str, size: u32) -> u32 {
    let drawn = load_font().and_then(|()| drawable(&printable(text)));
    let measured = drawn.ok().and_then(|text| font(size).box_size(&text).ok());
    measured.map_or(size * text.chars().count() as u32 * 6 / 10, |(width, _)| width)
}

fn load_font() -> Result<()> {
    register_font(FONT, FontStyle::Normal, FONT_BYTES).map_err(|_| Error::Bug("the embedded font is broken".into()))
}

fn rgb([r, g, b]: Rgb) -> RGBColor {
    RGBColor(r, g, b)
}

fn encode_png(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    use image::ImageEncoder;
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(pixels, width, height, image::ColorType::Rgb8)
        .map_err(|e| Error::Bug(format!("PNG: {e}")))?;
    Ok(png)
}

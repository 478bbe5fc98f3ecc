//! Pictures of all heads of a model.

use polars::prelude::*;

use super::canvas::{Anchor, Figure};
use super::heatmap::{HeatMaps, Panel};
use super::palette::{GREY, INK, Scale};
use crate::error::{Error, Result};

/// A score of [`crate::heads::atlas`]: its column, what it says, what it is counted in, and its colours.
type Shown = (&'static str, &'static str, &'static str, Colours);

#[derive(Clone, Copy)]
enum Colours {
    /// From 0 to 1.
    Share,
    /// From 0 to the largest value.
    FromZero,
    /// From −1 to 1.
    Signed,
}

const SHOWN: [Shown; 9] = [
    ("previous", "looks at the token before", "mean attention", Colours::Share),
    ("duplicate", "looks at the same token", "mean attention", Colours::Share),
    ("induction", "looks at what came next", "mean attention", Colours::Share),
    ("current", "looks at itself", "mean attention", Colours::Share),
    ("bos_share", "looks at position 0", "mean attention", Colours::Share),
    ("entropy", "how spread its attention is", "nats", Colours::FromZero),
    ("distance", "how far back it looks", "tokens", Colours::FromZero),
    ("copying", "W_V·W_O: copies or negates", "Re Σλ / Σ|λ|", Colours::Signed),
    ("copying_full", "the same, token to logit", "Re Σλ / Σ|λ|", Colours::Signed),
];

/// An atlas ([`crate::heads::atlas`]): a heat map of layers by heads for each score, each with colours of its own.
///
/// # Errors
/// A frame without the columns of an atlas.
pub fn heads(frame: &DataFrame) -> Result<Figure> {
    const TOP: i32 = 40;
    let maps: Vec<Figure> = head_maps(frame)?.iter().map(HeatMaps::draw).collect();
    let width = maps.iter().map(|map| map.size().0).max().unwrap_or(0) as i32;
    let height = maps.iter().map(|map| map.size().1).max().unwrap_or(0) as i32;
    let mut figure = Figure::new(3 * width as u32, TOP as u32);
    figure.text((24, 26), "Atlas of heads", 20, INK, Anchor::Start);
    figure.text((210, 27), "white is 0; dark blue is the top of each scale", 11, GREY, Anchor::Start);
    for (i, map) in maps.into_iter().enumerate() {
        figure.place((i as i32 % 3 * width, TOP + i as i32 / 3 * height), map);
    }
    Ok(figure)
}

/// The maps of [`heads`].
///
/// # Errors
/// As [`heads`].
pub fn head_maps(frame: &DataFrame) -> Result<Vec<HeatMaps>> {
    let (layer, head) = (ints(frame, "layer")?, ints(frame, "head")?);
    let mut maps = Vec::new();
    for (name, note, unit, colours) in SHOWN {
        let values = floats(frame, name)?;
        let scale = match colours {
            Colours::Share => Scale::Sequential { low: 0.0, high: 1.0 },
            Colours::FromZero => Scale::over(values.iter().copied().chain([0.0])),
            Colours::Signed => Scale::Diverging { reach: 1.0 },
        };
        let panels = vec![Panel { rows: grid(&layer, &head, &values), ..Panel::default() }];
        maps.push(layers_by_heads(name, note, unit, &layer, &head, scale, panels));
    }
    Ok(maps)
}

/// Detectors ([`crate::detector::detect`]): a heat map of layers by heads for each.
///
/// # Errors
/// A frame without the columns of a detection.
pub fn detection(frame: &DataFrame, measure: &str) -> Result<Figure> {
    Ok(detection_maps(frame, measure)?.draw())
}

/// The maps of [`detection`].
///
/// # Errors
/// As [`detection`].
pub fn detection_maps(frame: &DataFrame, measure: &str) -> Result<HeatMaps> {
    let (layer, head, score) = (ints(frame, "layer")?, ints(frame, "head")?, floats(frame, "score")?);
    let detector = frame.column("detector")?.str()?;
    let mut panels: Vec<Panel> = Vec::new();
    let mut first = 0;
    for i in 0..frame.height() {
        // Rows of a detector follow each other.
        if i + 1 == frame.height() || detector.get(i) != detector.get(i + 1) {
            let rows = grid(&layer[first..=i], &head[first..=i], &score[first..=i]);
            let title = detector.get(i).unwrap_or_default().to_string();
            panels.push(Panel { title, rows, ..Panel::default() });
            first = i + 1;
        }
    }
    let scale = match score.iter().any(|x| *x < 0.0) {
        true => Scale::around_zero(score.iter().copied()),
        false => Scale::Sequential { low: 0.0, high: score.iter().copied().fold(1.0, f64::max) },
    };
    let note = if measure == "mul" { "share of attention that matches" } else { "1 less the mean difference" };
    let mut maps = layers_by_heads("Detected heads", note, &format!("score, {measure}"), &layer, &head, scale, panels);
    maps.columns = 3;
    Ok(maps)
}

/// Composition ([`crate::composition::scores`]): earlier heads by later heads, of the kind with the largest score.
///
/// # Errors
/// A frame without the columns of composition, or without rows.
pub fn composition(frame: &DataFrame) -> Result<Figure> {
    let kind = strongest_kind(frame)?;
    let (layer, head) = (ints(frame, "layer")?, ints(frame, "head")?);
    let (to_layer, to_head) = (ints(frame, "to_layer")?, ints(frame, "to_head")?);
    let scores = floats(frame, kind)?;
    let baseline = floats(frame, "baseline")?.first().copied().unwrap_or(0.0);
    let heads = head.iter().max().map_or(0, |max| *max as usize + 1);
    let layers = to_layer.iter().max().map_or(0, |max| *max as usize + 1);
    // Layer 0 reads from no head and the last layer writes to none.
    let side = layers.saturating_sub(1) * heads;
    let mut map = vec![vec![f64::NAN; side]; side];
    for i in 0..frame.height() {
        let (row, column) =
            (layer[i] as usize * heads + head[i] as usize, (to_layer[i] as usize - 1) * heads + to_head[i] as usize);
        map[row][column] = scores[i];
    }
    let labels = |first: usize| -> Vec<String> {
        let label = |i: usize| (i / heads + first, i % heads);
        let named = |(layer, head): (usize, usize)| match side <= 40 {
            true => format!("{layer}.{head}"),
            false if head == 0 => format!("layer {layer}"),
            false => String::new(),
        };
        (0..side).map(label).map(named).collect()
    };
    // Up to twice the baseline at least, so that the noise of random matrices does not look like structure.
    let high = scores.iter().copied().filter(|x| x.is_finite()).fold(2.0 * baseline, f64::max);
    Ok(HeatMaps {
        title: format!("{}-composition of heads", kind.to_uppercase()),
        note: format!("white: at most {baseline:.3}, the score of random matrices"),
        x_name: "later head, reads".into(),
        y_name: "earlier head, writes".into(),
        x: labels(1),
        y: labels(0),
        columns: 1,
        scale: Scale::Sequential { low: baseline, high },
        value_name: "composition score".into(),
        panels: vec![Panel { rows: map, ..Panel::default() }],
    }
    .draw())
}

/// The kind of composition (`q`, `k` or `v`) with the largest score.
///
/// # Errors
/// As [`composition`].
pub fn strongest_kind(frame: &DataFrame) -> Result<&'static str> {
    if frame.height() == 0 {
        return Err(Error::request("heads of one layer do not compose; this needs a model of at least 2"));
    }
    let mut best = ("q", f64::NEG_INFINITY);
    for kind in ["q", "k", "v"] {
        let largest = floats(frame, kind)?.into_iter().filter(|x| x.is_finite()).fold(f64::NEG_INFINITY, f64::max);
        if largest > best.1 {
            best = (kind, largest);
        }
    }
    Ok(best.0)
}

fn layers_by_heads(
    title: &str,
    note: &str,
    value_name: &str,
    layer: &[u32],
    head: &[u32],
    scale: Scale,
    panels: Vec<Panel>,
) -> HeatMaps {
    let names = |values: &[u32]| (0..=values.iter().copied().max().unwrap_or(0)).map(|i| i.to_string()).collect();
    HeatMaps {
        title: title.into(),
        note: note.into(),
        x_name: "head".into(),
        y_name: "layer".into(),
        x: names(head),
        y: names(layer),
        columns: 1,
        scale,
        value_name: value_name.into(),
        panels,
    }
}

/// Values by layer and head; NaN where there is none.
fn grid(layer: &[u32], head: &[u32], values: &[f64]) -> Vec<Vec<f64>> {
    let size = |values: &[u32]| values.iter().max().map_or(0, |max| *max as usize + 1);
    let mut rows = vec![vec![f64::NAN; size(head)]; size(layer)];
    for ((layer, head), value) in layer.iter().zip(head).zip(values) {
        rows[*layer as usize][*head as usize] = *value;
    }
    rows
}

fn ints(frame: &DataFrame, name: &str) -> Result<Vec<u32>> {
    Ok(frame.column(name)?.u32()?.into_no_null_iter().collect())
}

/// Null becomes NaN.
fn floats(frame: &DataFrame, name: &str) -> Result<Vec<f64>> {
    Ok(frame.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
}

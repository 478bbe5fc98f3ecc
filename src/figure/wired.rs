//! Circuits as graphs, and what they carry by size.

use std::collections::BTreeMap;

use polars::prelude::DataFrame;

use super::canvas::{Anchor, Figure, text_width};
use super::charts::{Line, Lines};
use super::heatmap::{HeatMaps, Panel};
use super::palette::{GREY, INK, LINES, PALE, PAPER, Rgb, Scale};
use super::scatter::Scatter;
use crate::effect::are_shares;
use crate::error::Result;
use crate::faithful::Judged;
use crate::graph::{Circuit, Receiver, Source};

/// Between two heads of a layer.
const COLUMN: i32 = 62;
/// Between two layers.
const ROW: i32 = 92;
/// Half a node.
const NODE: (i32, i32) = (22, 11);
/// Points of a curve.
const POINTS: i32 = 24;
/// What a reading of a head is drawn at, left of its middle.
const READS: i32 = 13;

/// A circuit: what writes below, what reads above, one line per edge. Width and strength of a line go by the absolute value
/// of its score, from `scores` by the number of the edge; blue helps, red holds back. Without scores all lines are alike.
///
/// Queries enter a head on the left, keys in the middle, values on the right.
pub fn circuit(circuit: &Circuit, scores: Option<&[f64]>, title: &str) -> Figure {
    let nodes = circuit.nodes();
    let mut layers: BTreeMap<usize, Vec<Source>> = BTreeMap::new();
    for node in &nodes {
        layers.entry(node.layer().unwrap_or(0)).or_default().push(*node);
    }
    let heads = |nodes: &[Source]| nodes.iter().filter(|node| matches!(node, Source::Head { .. })).count() as i32;
    let widest = layers.values().map(|nodes| heads(nodes)).max().unwrap_or(0);
    let left = 70;
    let mlps = left + widest.max(2) * COLUMN + 40;
    let width = (mlps + 90).max(text_width(title, 16) as i32 + 48);
    let top = 88;
    let height = top + (layers.len() as i32 + 1) * ROW + 40;
    let middle = left + widest.max(2) * COLUMN / 2;
    // Where each node is, and the layer's name.
    let mut places: BTreeMap<Source, (i32, i32)> = BTreeMap::from([(Source::Input, (middle, height - 40))]);
    let mut figure = Figure::new(width as u32, height as u32);
    figure.text((24, 24), title, 16, INK, Anchor::Start);
    figure.text(
        (24, 46),
        &format!("{} edges, {} heads and MLPs; q left, k middle, v right", circuit.len(), nodes.len()),
        11,
        GREY,
        Anchor::Start,
    );
    for (row, (layer, nodes)) in layers.iter().rev().enumerate() {
        let y = top + (row as i32 + 1) * ROW - 14;
        figure.text((24, y), &format!("layer {layer}"), 10, GREY, Anchor::Start);
        let first = middle - (heads(nodes) - 1) * COLUMN / 2;
        for (i, node) in nodes.iter().enumerate() {
            let at = if matches!(node, Source::Mlp(_)) { (mlps, y - 34) } else { (first + i as i32 * COLUMN, y) };
            places.insert(*node, at);
        }
    }
    let logits = (middle, top - 14);
    let score = |i: usize| scores.map_or(f64::NAN, |scores| scores[i]);
    let reach = circuit.numbers().map(|i| score(i).abs()).fold(0.0, f64::max);
    let mut edges: Vec<usize> = circuit.numbers().collect();
    // The strongest are drawn last, over the others.
    edges.sort_by(|a, b| score(*a).abs().total_cmp(&score(*b).abs()));
    for i in edges {
        let edge = circuit.graph().edge(i);
        let Some(&from) = places.get(&edge.from) else { continue };
        let to = match edge.to {
            Receiver::Logits => logits,
            receiver => match receiver.source().and_then(|node| places.get(&node)) {
                Some(&(x, y)) => (x + offset(receiver), y),
                None => continue,
            },
        };
        let strength = if reach > 0.0 { score(i).abs() / reach } else { f64::NAN };
        let (color, thickness) = match strength.is_nan() {
            true => (LINES[0], 1),
            false => (shade(score(i), strength), 1 + (3.0 * strength).round() as u32),
        };
        figure.path(curve((from.0, from.1 - NODE.1), (to.0, to.1 + NODE.1)), color, thickness);
    }
    let mut node = |at: (i32, i32), name: &str| {
        let half = NODE.0.max(text_width(name, 11) as i32 / 2 + 6);
        figure.rect((at.0 - half, at.1 - NODE.1), (2 * half, 2 * NODE.1), PAPER);
        figure.frame((at.0 - half, at.1 - NODE.1), (2 * half, 2 * NODE.1), INK);
        figure.text(at, name, 11, INK, Anchor::Middle);
    };
    for (source, at) in &places {
        let name = match source {
            Source::Head { layer, head } => format!("{layer}.{head}"),
            Source::Mlp(layer) => format!("MLP {layer}"),
            Source::Input => "input".to_string(),
        };
        node(*at, &name);
    }
    node(logits, "logits");
    figure
}

/// Where a receiver is, beside the middle of its node.
fn offset(receiver: Receiver) -> i32 {
    match receiver {
        Receiver::Head { reads, .. } => (reads as i32 - 1) * READS,
        _ => 0,
    }
}

/// Blue for what helps, red for what holds back; pale for little.
fn shade(score: f64, strength: f64) -> Rgb {
    let end = if score >= 0.0 { LINES[0] } else { LINES[1] };
    let share = 0.25 + 0.75 * strength;
    let mix = |i: usize| (f64::from(PALE[i]) * (1.0 - share) + f64::from(end[i]) * share).round() as u8;
    [mix(0), mix(1), mix(2)]
}

/// A line that leaves upwards and arrives from below; it bends aside where it would pass through what is in between.
fn curve(from: (i32, i32), to: (i32, i32)) -> Vec<(i32, i32)> {
    let rise = f64::from(from.1 - to.1);
    let bend = if (from.0 - to.0).abs() < 20 && rise > f64::from(ROW) { 0.35 * rise.min(240.0) } else { 0.0 };
    let at = |t: f64, a: f64, b: f64, c: f64, d: f64| {
        let s = 1.0 - t;
        s * s * s * a + 3.0 * s * s * t * b + 3.0 * s * t * t * c + t * t * t * d
    };
    (0..=POINTS)
        .map(|i| {
            let t = f64::from(i) / f64::from(POINTS);
            let (x0, x1, y0, y1) = (f64::from(from.0), f64::from(to.0), f64::from(from.1), f64::from(to.1));
            let x = at(t, x0, x0 + bend, x1 + bend, x1);
            let y = at(t, y0, y0 - 0.4 * rise, y1 + 0.4 * rise, y1);
            (x.round() as i32, y.round() as i32)
        })
        .collect()
}

/// Faithfulness by number of edges, in powers of ten; a line for every way in which circuits were found.
pub fn faithfulness(found: &[(&str, &[Judged])], title: &str) -> Figure {
    let line = |(name, points): &(&str, &[Judged])| {
        let x = |edges: usize| (edges as f64).log10();
        let points = points.iter().filter(|point| !point.circuit.is_empty());
        Line {
            name: name.to_string(),
            points: points.clone().map(|point| (x(point.circuit.len()), point.faithfulness.mean)).collect(),
            spread: points
                .filter_map(|point| point.faithfulness.bounds.map(|(low, high)| (x(point.circuit.len()), low, high)))
                .collect(),
        }
    };
    Lines {
        title: title.to_string(),
        x_name: "edges, as a power of ten".into(),
        y_name: "faithfulness".into(),
        lines: found.iter().map(line).collect(),
        x_labels: Vec::new(),
    }
    .draw()
}

/// What happens in truth, against what was estimated: the two kinds that the third entry tells apart in two colours.
pub fn calibration(points: &[(f64, f64, bool)], note: &str, kinds: (&str, &str)) -> Figure {
    let color = |kind: bool| if kind { LINES[0] } else { LINES[1] };
    let line = points.iter().flat_map(|(a, b, _)| [*a, *b]);
    let (low, high) = Scale::over(line).ends();
    let mut all: Vec<(f64, f64, Rgb)> =
        (0..=60).map(|i| low + (high - low) * f64::from(i) / 60.0).map(|x| (x, x, PALE)).collect();
    all.extend(points.iter().map(|(estimated, exact, kind)| (*estimated, *exact, color(*kind))));
    Scatter {
        title: "Estimates and the truth".into(),
        note: note.to_string(),
        x_name: "estimated".into(),
        y_name: "in truth".into(),
        points: all,
        legend: vec![(kinds.0.into(), color(true)), (kinds.1.into(), color(false))],
    }
    .draw()
}

/// Paths ([`crate::paths::frame`]): the effect of every sender under one metric, of the only pair or of all together; a map
/// of heads by layer, MLPs in a column of their own. Raw changes where effects mean nothing.
///
/// # Errors
/// A frame without those columns or that metric.
pub fn paths(frame: &DataFrame, metric: &str) -> Result<Figure> {
    let pair: Vec<Option<u32>> = frame.column("pair")?.u32()?.iter().collect();
    let wanted = if pair.contains(&None) { None } else { Some(0) };
    let (layer, head) = (frame.column("layer")?.u32()?, frame.column("head")?.u32()?);
    let (metrics, effect) = (frame.column("metric")?.str()?, frame.column("effect")?.f64()?);
    let shown: Vec<usize> =
        (0..frame.height()).filter(|&i| pair[i] == wanted && metrics.get(i) == Some(metric)).collect();
    let raw = !are_shares(shown.iter().filter_map(|&i| effect.get(i)));
    let value = if raw { frame.column("change")?.f64()? } else { effect };
    let layers = layer.iter().flatten().max().unwrap_or(0) as usize + 1;
    let heads = head.iter().flatten().max().unwrap_or(0) as usize + 1;
    let mut rows = vec![vec![f64::NAN; heads + 1]; layers];
    for i in shown {
        let column = head.get(i).map_or(heads, |head| head as usize);
        rows[layer.get(i).unwrap_or(0) as usize][column] = value.get(i).unwrap_or(f64::NAN);
    }
    let receivers = frame.column("receivers")?.str()?.get(0).unwrap_or_default().to_string();
    Ok(HeatMaps {
        title: format!("Paths to {receivers}"),
        note: match raw {
            false => "0: nothing changed; 1: as in the run that the senders' values came from".into(),
            true => super::causal::RAW.into(),
        },
        x_name: "head".into(),
        y_name: "layer".into(),
        x: (0..heads).map(|head| head.to_string()).chain(["MLP".to_string()]).collect(),
        y: (0..layers).map(|layer| layer.to_string()).collect(),
        scale: Scale::around_zero(rows.iter().flatten().copied()),
        panels: vec![Panel { rows, ..Panel::default() }],
        columns: 1,
        value_name: if raw { format!("change of {metric}") } else { format!("effect on {metric}") },
    }
    .draw())
}

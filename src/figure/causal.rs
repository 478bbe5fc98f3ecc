//! Pictures of causal experiments.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::canvas::Figure;
use super::charts::{Bars, Chart};
use super::heatmap::{HeatMaps, Panel};
use super::palette::Scale;
use super::rows::shown;
use crate::effect::are_shares;
use crate::error::{Error, Result};

/// Maps of single heads that are drawn, the strongest.
const MAX_MAPS: usize = 12;
/// Neurons and sets that are drawn, the strongest.
const MAX_BARS: usize = 30;
/// Beside raw changes that take the place of effects.
pub(super) const RAW: &str =
    "raw changes: the clean and the corrupted run answer alike, so that shares of their difference mean nothing";

/// Patching ([`crate::patch::frame`]): the effect of every cell under one metric, of the first pair or of all together where
/// there are several; a map per sweep, of those sweeps that have the axes of the first. Raw changes where effects mean nothing.
///
/// # Errors
/// A frame without those columns, sweeps or metric.
pub fn patch(frame: &DataFrame, sweeps: &[&str], metric: &str) -> Result<Figure> {
    Ok(patch_chart(frame, sweeps, metric)?.draw())
}

/// What [`patch`] draws.
///
/// # Errors
/// As [`patch`].
pub fn patch_chart(frame: &DataFrame, sweeps: &[&str], metric: &str) -> Result<Chart> {
    let groups = |value: &'static str| {
        let select = Selection { group: "sweep", index: "pair", value };
        sweeps.iter().map(|sweep| Ok((*sweep, select.rows(frame, sweep, metric)?))).collect::<Result<Vec<_>>>()
    };
    let mut found = groups("effect")?;
    let rows = || found.iter().flat_map(|(_, rows)| rows);
    let raw = !are_shares(rows().map(|row| row.value));
    if raw {
        found = groups("change")?;
        // Bounds are of effects.
        found.iter_mut().flat_map(|(_, rows)| rows).for_each(|row| row.span = None);
    }
    let caption = Caption {
        title: match sweeps {
            [sweep] => format!("Patching {sweep}"),
            _ => format!("Patching: {} sweeps", sweeps.len()),
        },
        note: match raw {
            false => "0: nothing changed; 1: as in the run that the activation came from",
            true => RAW,
        },
        value_name: if raw { format!("change of {metric}") } else { format!("effect on {metric}") },
    };
    Ok(chart(found, caption))
}

/// Ablation ([`crate::ablate::frame`]): the change of one metric by every cell, of the first prompt or of all together.
///
/// # Errors
/// A frame without those columns or that metric.
pub fn ablate(frame: &DataFrame, metric: &str) -> Result<Figure> {
    Ok(ablate_chart(frame, metric)?.draw())
}

/// What [`ablate`] draws.
///
/// # Errors
/// As [`ablate`].
pub fn ablate_chart(frame: &DataFrame, metric: &str) -> Result<Chart> {
    let method = frame.column("method")?.str()?.get(0).unwrap_or_default().to_string();
    let caption = Caption {
        title: format!("Ablation ({method})"),
        note: "what changes when a part is put out of action",
        value_name: format!("change of {metric}"),
    };
    // A set has no one site; there may be no random ones beside it.
    if frame.column("control")?.bool()?.any() || frame.column("site")?.is_null().all() {
        return sets(frame, metric, caption);
    }
    let mut sites: Vec<&str> = frame.column("site")?.str()?.iter().flatten().collect();
    sites.sort_unstable();
    sites.dedup();
    let select = Selection { group: "site", index: "prompt", value: "change" };
    let groups = sites.iter().map(|site| Ok((*site, select.rows(frame, site, metric)?))).collect::<Result<Vec<_>>>()?;
    Ok(chart(groups, caption))
}

/// Ablated sets as bars: those that were chosen, then the random ones.
fn sets(frame: &DataFrame, metric: &str, caption: Caption) -> Result<Chart> {
    let prompt: Vec<Option<u32>> = frame.column("prompt")?.u32()?.iter().collect();
    let wanted = if prompt.contains(&None) { None } else { Some(0) };
    let (what, control) = (frame.column("what")?.str()?, frame.column("control")?.bool()?);
    let (metrics, change) = (frame.column("metric")?.str()?, frame.column("change")?.f64()?);
    let bars = (0..frame.height())
        .filter(|&i| prompt[i] == wanted && metrics.get(i) == Some(metric))
        .map(|i| {
            let random = control.get(i) == Some(true);
            let name = format!("{}{}", if random { "random: " } else { "" }, what.get(i).unwrap_or_default());
            let change = change.get(i).unwrap_or(f64::NAN);
            (name, change, format!("{change:+.3}"))
        })
        .collect();
    Ok(Chart::Bars(Bars { title: caption.title, note: caption.note.into(), value_name: caption.value_name, bars }))
}

/// Words around a picture.
struct Caption {
    title: String,
    note: &'static str,
    value_name: String,
}

/// What the axes of a group's map are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axes {
    /// destination × source, a map per head
    Edges,
    /// layer.head × position
    HeadPos,
    /// layer × position
    Pos,
    /// layer × head
    Head,
    /// a bar per neuron
    Neurons,
    /// a column per group: layer × group
    Layers,
}

impl Axes {
    fn of(rows: &[Row]) -> Self {
        let any = |f: fn(&Row) -> bool| rows.iter().any(f);
        match () {
            () if any(|r| r.src.is_some()) => Axes::Edges,
            () if any(|r| r.neuron.is_some()) => Axes::Neurons,
            () if any(|r| r.pos.is_some() && r.head.is_some()) => Axes::HeadPos,
            () if any(|r| r.pos.is_some()) => Axes::Pos,
            () if any(|r| r.head.is_some()) => Axes::Head,
            () => Axes::Layers,
        }
    }
}

/// A picture of groups of cells that have the axes of the first one.
fn chart(groups: Vec<(&str, Vec<Row>)>, caption: Caption) -> Chart {
    let axes = groups.first().map_or(Axes::Layers, |(_, rows)| Axes::of(rows));
    let all = groups.len();
    let groups: Vec<(&str, Vec<Row>)> = groups.into_iter().filter(|(_, rows)| Axes::of(rows) == axes).collect();
    let mut note = caption.note.to_string();
    if groups.len() < all {
        note += &format!("; {} of {all} sweeps, the others have other axes and are in the frame", groups.len());
    }
    if groups.iter().flat_map(|(_, rows)| rows).any(|row| row.mean && row.token.is_some()) {
        note += "; means over all prompts, tokens of the first";
    }
    if axes == Axes::Neurons {
        let rows = groups.iter().flat_map(|(_, rows)| rows);
        let mut bars: Vec<(String, f64, String)> = rows
            .map(|r| (format!("{}.{}", r.layer, r.neuron.unwrap_or(0)), r.value, format!("{:+.3}", r.value)))
            .collect();
        bars.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        bars.truncate(MAX_BARS);
        let note = format!("{note}; the strongest neurons");
        return Chart::Bars(Bars { title: caption.title, note, value_name: caption.value_name, bars });
    }
    let rows = || groups.iter().flat_map(|(_, rows)| rows);
    let over = |f: fn(&Row) -> Option<u32>| rows().filter_map(f).max().map_or(0, |max| max as usize + 1);
    let (layers, heads) = (over(|r| Some(r.layer)), over(|r| r.head));
    let positions = over(|r| r.pos).max(over(|r| r.src));
    let mut tokens: Vec<String> = (0..positions).map(|pos| pos.to_string()).collect();
    for row in rows() {
        if let (Some(pos), Some(token)) = (row.pos, &row.token) {
            tokens[pos as usize] = format!("{} {pos}", shown(token));
        }
    }
    let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
    let head_names = || (0..layers * heads).map(|i| format!("{}.{}", i / heads, i % heads)).collect::<Vec<_>>();
    let group_names: Vec<String> = groups.iter().map(|(name, _)| name.to_string()).collect();
    let (x, y, x_name, y_name) = match axes {
        Axes::Edges => (tokens.clone(), tokens, "source", "destination"),
        Axes::HeadPos => (tokens, head_names(), "position", "layer.head"),
        Axes::Pos => (tokens, names(layers), "position", "layer"),
        Axes::Layers => (group_names, names(layers), "", "layer"),
        _ => (names(heads), names(layers), "head", "layer"),
    };
    let mut panels = Vec::new();
    for (at, (name, rows)) in groups.iter().enumerate() {
        if axes == Axes::Edges {
            panels.extend(edges(rows, positions));
            continue;
        }
        if panels.is_empty() || axes != Axes::Layers {
            let title = if axes == Axes::Layers { String::new() } else { name.to_string() };
            panels.push(Panel {
                title,
                rows: vec![vec![f64::NAN; x.len()]; y.len()],
                spans: spans(rows, y.len(), x.len()),
                ..Panel::default()
            });
        }
        let Some(panel) = panels.last_mut() else { continue };
        for row in rows {
            let (layer, head, pos) =
                (row.layer as usize, row.head.unwrap_or(0) as usize, row.pos.unwrap_or(0) as usize);
            let (line, column) = match axes {
                Axes::HeadPos => (layer * heads + head, pos),
                Axes::Pos => (layer, pos),
                Axes::Layers => (layer, at),
                _ => (layer, head),
            };
            panel.rows[line][column] = row.value;
            if let (Some(span), Some(cells)) = (row.span, panel.spans.get_mut(line)) {
                cells[column] = span;
            }
        }
    }
    let reach = rows().map(|row| row.value.abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    Chart::Maps(HeatMaps {
        title: caption.title,
        note,
        x_name: x_name.into(),
        y_name: y_name.into(),
        x,
        y,
        columns: match axes {
            Axes::Edges => (panels.len() as f64).sqrt().ceil() as usize,
            _ => panels.len().min(3),
        },
        scale: Scale::Diverging { reach: if reach > 0.0 { reach } else { 1.0 } },
        value_name: caption.value_name,
        panels,
    })
}

/// Room for intervals, where there are any.
fn spans(rows: &[Row], height: usize, width: usize) -> Vec<Vec<(f64, f64)>> {
    match rows.iter().any(|row| row.span.is_some()) {
        true => vec![vec![(f64::NAN, f64::NAN); width]; height],
        false => Vec::new(),
    }
}

/// A map per head, the strongest first.
fn edges(rows: &[Row], positions: usize) -> Vec<Panel> {
    let mut maps: BTreeMap<(u32, u32), Panel> = BTreeMap::new();
    for row in rows {
        let (Some(head), Some(pos), Some(src)) = (row.head, row.pos, row.src) else { continue };
        let panel = maps.entry((row.layer, head)).or_insert_with(|| Panel {
            title: format!("head {}.{head}", row.layer),
            rows: vec![vec![f64::NAN; positions]; positions],
            spans: spans(rows, positions, positions),
            ..Panel::default()
        });
        let (pos, src) = (pos as usize, src as usize);
        if src <= pos {
            panel.rows[pos][src] = row.value;
            if let (Some(span), Some(cells)) = (row.span, panel.spans.get_mut(pos)) {
                cells[src] = span;
            }
        }
    }
    let strength =
        |map: &[Vec<f64>]| map.iter().flatten().filter(|x| x.is_finite()).fold(0.0_f64, |m, x| m.max(x.abs()));
    let mut panels: Vec<Panel> = maps.into_values().collect();
    panels.sort_by(|a, b| strength(&b.rows).total_cmp(&strength(&a.rows)));
    panels.truncate(MAX_MAPS);
    panels
}

/// How a model answers pairs: the mean logit difference of each template, clean and corrupted.
///
/// # Errors
/// A frame without the columns of pairs.
pub fn pairs(frame: &DataFrame) -> Result<Figure> {
    let templates = frame.column("template")?.str()?;
    let (clean, corrupt) = (frame.column("logit_diff")?.f64()?, frame.column("corrupt_logit_diff")?.f64()?);
    let mut rows: Vec<(String, f64, f64, f64)> = Vec::new();
    for ((template, clean), corrupt) in templates.iter().zip(clean.iter()).zip(corrupt.iter()) {
        let name = template.filter(|template| !template.is_empty()).unwrap_or("pairs of the file");
        let at = rows.iter().position(|row| row.0 == name).unwrap_or_else(|| {
            rows.push((name.to_string(), 0.0, 0.0, 0.0));
            rows.len() - 1
        });
        rows[at].1 += clean.unwrap_or(f64::NAN);
        rows[at].2 += corrupt.unwrap_or(f64::NAN);
        rows[at].3 += 1.0;
    }
    rows.sort_by(|a, b| (b.1 / b.3).total_cmp(&(a.1 / a.3)));
    let bar = |(name, clean, corrupt, n): (String, f64, f64, f64)| {
        (name, clean / n, format!("{:+.2}, corrupted {:+.2}   ({n} pairs)", clean / n, corrupt / n))
    };
    Ok(Bars {
        title: "How the model answers pairs".into(),
        note: "above 0: the right answer is likelier than the wrong one".into(),
        value_name: "mean logit difference".into(),
        bars: rows.into_iter().map(bar).collect(),
    }
    .draw())
}

struct Row {
    layer: u32,
    head: Option<u32>,
    neuron: Option<u32>,
    pos: Option<u32>,
    src: Option<u32>,
    token: Option<String>,
    /// Whether it sums up several prompts.
    mean: bool,
    value: f64,
    span: Option<(f64, f64)>,
}

/// Which columns say what a cell belongs to, and what is drawn of it.
struct Selection {
    group: &'static str,
    index: &'static str,
    value: &'static str,
}

impl Selection {
    /// The cells of a group: over all prompts, or of the first one where there is only one.
    fn rows(&self, frame: &DataFrame, group: &str, metric: &str) -> Result<Vec<Row>> {
        let int = |name: &str| -> Result<Vec<Option<u32>>> { Ok(frame.column(name)?.u32()?.iter().collect()) };
        let text = |name: &str| -> Result<Vec<Option<&str>>> { Ok(frame.column(name)?.str()?.iter().collect()) };
        let (index, layer, head, neuron) = (int(self.index)?, int("layer")?, int("head")?, int("neuron")?);
        let (pos, src) = (int("pos")?, int("src")?);
        let token = text("token").unwrap_or_else(|_| vec![None; frame.height()]);
        let (groups, metrics) = (text(self.group)?, text("metric")?);
        let value: Vec<Option<f64>> = frame.column(self.value)?.f64()?.iter().collect();
        let (low, high) = (frame.column("low")?.f64()?, frame.column("high")?.f64()?);
        let wanted = if index.contains(&None) { None } else { Some(0) };
        let rows: Vec<Row> = (0..frame.height())
            .filter(|&i| index[i] == wanted && groups[i] == Some(group) && metrics[i] == Some(metric))
            .map(|i| Row {
                layer: layer[i].unwrap_or(0),
                head: head[i],
                neuron: neuron[i],
                pos: pos[i],
                src: src[i],
                token: token[i].map(str::to_string),
                mean: wanted.is_none(),
                value: value[i].unwrap_or(f64::NAN),
                span: low.get(i).zip(high.get(i)),
            })
            .collect();
        if rows.is_empty() {
            return Err(Error::request(format!("the frame has no cells of {group} under {metric}")));
        }
        Ok(rows)
    }
}

//! Heat maps and bars on a page, with what a picture has no room for.

use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, number, numbers, scale};
use crate::error::{Result, printable};
use crate::figure::{self, Bars, Chart, HeatMaps, Panel};

/// Patching ([`crate::patch::frame`]), as [`figure::patch`] draws it, with intervals.
///
/// # Errors
/// As [`figure::patch`].
pub fn patch(frame: &DataFrame, sweeps: &[&str], metric: &str) -> Result<Block> {
    Ok(chart(&figure::patch_chart(frame, sweeps, metric)?))
}

/// Ablation ([`crate::ablate::frame`]), as [`figure::ablate`] draws it, with intervals.
///
/// # Errors
/// As [`figure::ablate`].
pub fn ablate(frame: &DataFrame, metric: &str) -> Result<Block> {
    Ok(chart(&figure::ablate_chart(frame, metric)?))
}

/// An atlas of heads ([`crate::heads::atlas`]): a map for each score.
///
/// # Errors
/// As [`figure::heads`].
pub fn heads(frame: &DataFrame) -> Result<Block> {
    let maps = figure::head_maps(frame)?;
    let all: Vec<Value> = maps
        .iter()
        .flat_map(|maps| {
            maps.panels.iter().map(move |panel| map(maps, panel, format!("{}: {}", maps.title, maps.note)))
        })
        .collect();
    Ok(block("Atlas of heads", "Each score has colours of its own.", &all))
}

/// Detectors of heads ([`crate::detector::detect`]): a map for each.
///
/// # Errors
/// As [`figure::detection`].
pub fn detection(frame: &DataFrame, measure: &str) -> Result<Block> {
    Ok(heat(&figure::detection_maps(frame, measure)?))
}

fn chart(chart: &Chart) -> Block {
    match chart {
        Chart::Maps(maps) => heat(maps),
        Chart::Bars(bars) => of_bars(bars),
    }
}

fn heat(maps: &HeatMaps) -> Block {
    let all: Vec<Value> = maps.panels.iter().map(|panel| map(maps, panel, panel.title.clone())).collect();
    block(&maps.title, &maps.note, &all)
}

fn block(title: &str, note: &str, maps: &[Value]) -> Block {
    Block(json!({ "kind": "maps", "title": title, "note": note, "maps": maps }))
}

fn map(maps: &HeatMaps, panel: &Panel, title: String) -> Value {
    let labels = |labels: &[String]| labels.iter().map(|label| printable(label)).collect::<Vec<_>>();
    let end = |of: fn(&(f64, f64)) -> f64| -> Value {
        panel.spans.iter().map(|row| Value::from_iter(row.iter().map(|span| number(of(span))))).collect()
    };
    json!({
        "title": title,
        "value": maps.value_name,
        "x_name": maps.x_name,
        "y_name": maps.y_name,
        "x": labels(&maps.x),
        "y": labels(&maps.y),
        "scale": scale(maps.scale),
        "rows": panel.rows.iter().map(|row| numbers(row)).collect::<Vec<_>>(),
        "low": end(|span| span.0),
        "high": end(|span| span.1),
    })
}

fn of_bars(bars: &Bars) -> Block {
    let row = |(name, value, said): &(String, f64, String)| json!({ "name": printable(name), "value": number(*value), "said": said });
    Block(json!({
        "kind": "bars",
        "title": bars.title,
        "note": bars.note,
        "value": bars.value_name,
        "rows": bars.bars.iter().map(row).collect::<Vec<_>>(),
    }))
}

//! Pictures of causal experiments.

use polars::prelude::*;

use super::canvas::Figure;
use super::heatmap::{HeatMaps, Panel};
use super::palette::Scale;
use super::views::shown;
use crate::error::{Error, Result};

/// Maps of single heads that are drawn, the strongest.
const MAX_MAPS: usize = 12;

/// Patching ([`crate::patch::frame`]): the effect of every cell of one sweep under one metric, of the first pair or of all
/// together where there are several.
///
/// # Errors
/// A frame without those columns, sweep or metric.
pub fn patch(frame: &DataFrame, sweep: &str, metric: &str) -> Result<Figure> {
    let rows = cells(frame, sweep, metric)?;
    let over = |f: fn(&Row) -> Option<u32>| rows.iter().filter_map(f).max().map_or(0, |max| max as usize + 1);
    let (layers, heads) = (over(|r| Some(r.layer)), over(|r| r.head));
    let positions = over(|r| r.pos).max(over(|r| r.src));
    let mut tokens = vec![String::new(); positions];
    for row in &rows {
        if let (Some(pos), Some(token)) = (row.pos, &row.token) {
            tokens[pos as usize] = format!("{} {pos}", shown(token));
        }
    }
    let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
    let blank = |height: usize, width: usize| vec![vec![f64::NAN; width]; height];
    let (x, y, x_name, y_name, panels);
    if rows.iter().any(|row| row.src.is_some()) {
        let mut maps: Vec<(f64, Panel)> = Vec::new();
        for head in 0..layers * heads {
            let mut map = blank(positions, positions);
            let of_head = |row: &&Row| row.layer as usize * heads + row.head.unwrap_or(0) as usize == head;
            for row in rows.iter().filter(of_head) {
                let (Some(pos), Some(src)) = (row.pos, row.src) else { continue };
                map[pos as usize][src as usize] = if src <= pos { row.effect } else { f64::NAN };
            }
            let strength = map.iter().flatten().filter(|x| x.is_finite()).fold(0.0_f64, |m, x| m.max(x.abs()));
            let title = format!("head {}.{}", head / heads, head % heads);
            maps.push((strength, Panel { title, rows: map, cells: Vec::new() }));
        }
        maps.sort_by(|a, b| b.0.total_cmp(&a.0));
        (x, y, x_name, y_name) = (tokens.clone(), tokens, "source", "destination");
        panels = maps.into_iter().take(MAX_MAPS).map(|(_, panel)| panel).collect::<Vec<_>>();
    } else {
        let by_head = heads > 0 && positions > 0;
        let height = if by_head { layers * heads } else { layers };
        let mut map = blank(height, if positions > 0 { positions } else { heads });
        for row in &rows {
            let (layer, head) = (row.layer as usize, row.head.unwrap_or(0) as usize);
            let (line, column) = match row.pos {
                Some(pos) if by_head => (layer * heads + head, pos as usize),
                Some(pos) => (layer, pos as usize),
                None => (layer, head),
            };
            map[line][column] = row.effect;
        }
        y = match by_head {
            true => (0..height).map(|i| format!("{}.{}", i / heads, i % heads)).collect(),
            false => names(layers),
        };
        (x, x_name) = if positions > 0 { (tokens, "position") } else { (names(heads), "head") };
        y_name = if by_head { "layer.head" } else { "layer" };
        panels = vec![Panel { title: sweep.to_string(), rows: map, cells: Vec::new() }];
    }
    let reach = rows.iter().map(|row| row.effect.abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    Ok(HeatMaps {
        title: format!("Patching {sweep}"),
        note: "0: nothing changed; 1: as in the run that the activation came from".into(),
        x_name: x_name.into(),
        y_name: y_name.into(),
        x,
        y,
        columns: (panels.len() as f64).sqrt().ceil() as usize,
        scale: Scale::Diverging { reach: if reach > 0.0 { reach } else { 1.0 } },
        value_name: format!("effect on {metric}"),
        panels,
    }
    .draw())
}

struct Row {
    layer: u32,
    head: Option<u32>,
    pos: Option<u32>,
    src: Option<u32>,
    token: Option<String>,
    effect: f64,
}

/// The cells of a sweep: over all pairs, or of the first one where there is only one.
fn cells(frame: &DataFrame, sweep: &str, metric: &str) -> Result<Vec<Row>> {
    let int = |name: &str| -> Result<Vec<Option<u32>>> { Ok(frame.column(name)?.u32()?.iter().collect()) };
    let text = |name: &str| -> Result<Vec<Option<&str>>> { Ok(frame.column(name)?.str()?.iter().collect()) };
    let (pair, layer, head) = (int("pair")?, int("layer")?, int("head")?);
    let (pos, src, token) = (int("pos")?, int("src")?, text("token")?);
    let (sweeps, metrics) = (text("sweep")?, text("metric")?);
    let effect: Vec<Option<f64>> = frame.column("effect")?.f64()?.iter().collect();
    let wanted = if pair.contains(&None) { None } else { Some(0) };
    let rows: Vec<Row> = (0..frame.height())
        .filter(|&i| pair[i] == wanted && sweeps[i] == Some(sweep) && metrics[i] == Some(metric))
        .map(|i| Row {
            layer: layer[i].unwrap_or(0),
            head: head[i],
            pos: pos[i],
            src: src[i],
            token: token[i].map(str::to_string),
            effect: effect[i].unwrap_or(f64::NAN),
        })
        .collect();
    if rows.is_empty() {
        return Err(Error::request(format!("the frame has no cells of {sweep} under {metric}")));
    }
    Ok(rows)
}

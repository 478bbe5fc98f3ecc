//! One picture per kind of frame. A picture computes nothing: every number in it is in the frame.

use polars::prelude::*;

use super::canvas::Figure;
use super::charts::{Bars, Line, Lines, Strip};
use super::heatmap::{HeatMaps, Panel};
use super::palette::{PAPER, Scale};
use super::rows::{Rows, labels, shown};
use crate::error::{Error, Result};

/// Positions that a picture shows at most; of longer prompts it shows the last ones and says so.
const MAX_POSITIONS: usize = 256;
/// The same for pictures with text in their cells.
const MAX_TEXT_POSITIONS: usize = 48;

/// Attention patterns ([`crate::attention::patterns`]): one heat map per head.
///
/// # Errors
/// A frame without the columns of attention, or without rows of `prompt`.
pub fn attention(frame: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(frame, prompt)?;
    let (layer, head) = (rows.ints("layer")?, rows.ints("head")?);
    let (query, key) = (rows.ints("query")?, rows.ints("key")?);
    let (query_token, weight) = (rows.texts("query_token")?, rows.floats("weight")?);
    let positions = query.iter().max().map_or(0, |max| *max as usize + 1);
    let labels = labels(&query, &query_token, positions);
    let first = positions.saturating_sub(MAX_POSITIONS);
    let shown = positions - first;
    let mut panels: Vec<((u32, u32), Panel)> = Vec::new();
    for i in 0..rows.len() {
        let panel = match panels.iter().position(|(of, _)| *of == (layer[i], head[i])) {
            Some(at) => &mut panels[at].1,
            None => {
                let title = format!("head {}.{}", layer[i], head[i]);
                let rows = vec![vec![f64::NAN; shown]; shown];
                panels.push(((layer[i], head[i]), Panel { title, rows, ..Panel::default() }));
                let last = panels.len() - 1;
                &mut panels[last].1
            }
        };
        let (query, key) = (query[i] as usize, key[i] as usize);
        if query >= first && key >= first {
            panel.rows[query - first][key - first] = weight[i];
        }
    }
    let panels: Vec<Panel> = panels.into_iter().map(|(_, panel)| panel).collect();
    // The first position can only look at itself; its 1 would hide how the others differ in a diffuse layer.
    let others = panels.iter().flat_map(|panel| panel.rows.iter().skip(usize::from(first == 0))).flatten();
    let largest = others.copied().filter(|x| x.is_finite()).fold(0.0, f64::max);
    let (first_layer, last_layer) =
        (layer.iter().min().copied().unwrap_or(0), layer.iter().max().copied().unwrap_or(0));
    let columns = match last_layer - first_layer {
        0 => (panels.len() as f64).sqrt().ceil() as usize,
        more => panels.len().div_ceil(more as usize + 1),
    };
    Ok(HeatMaps {
        title: match last_layer - first_layer {
            0 => format!("Attention of layer {first_layer}"),
            _ => format!("Attention of layers {first_layer} to {last_layer}"),
        },
        note: window_note(first, positions, "rows look at columns; each row adds up to 1"),
        x_name: "key: is looked at".into(),
        y_name: "query: looks".into(),
        x: labels[first..].to_vec(),
        y: labels[first..].to_vec(),
        columns,
        scale: Scale::Sequential { low: 0.0, high: round_up(largest) },
        value_name: "attention weight".into(),
        panels,
    }
    .draw())
}

/// Neurons ([`crate::neurons::top`]): tokens × neurons.
///
/// # Errors
/// As [`attention`].
pub fn neurons(frame: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(frame, prompt)?;
    let (pos, token) = (rows.ints("pos")?, rows.texts("token")?);
    let (neuron, activation) = (rows.ints("neuron")?, rows.floats("activation")?);
    let positions = pos.iter().max().map_or(0, |max| *max as usize + 1);
    let labels = labels(&pos, &token, positions);
    let first = positions.saturating_sub(MAX_POSITIONS);
    let mut order: Vec<u32> = Vec::new();
    neuron.iter().for_each(|n| {
        if !order.contains(n) {
            order.push(*n);
        }
    });
    let mut map = vec![vec![f64::NAN; order.len()]; positions - first];
    for i in 0..rows.len() {
        if let (Some(row), Some(column)) =
            ((pos[i] as usize).checked_sub(first), order.iter().position(|n| *n == neuron[i]))
        {
            map[row][column] = activation[i];
        }
    }
    let layer = rows.ints("layer")?.first().copied().unwrap_or(0);
    // The first position's activations dwarf the rest; they may saturate.
    let scaled = map.iter().skip(usize::from(first == 0 && positions > 1)).flatten().copied();
    Ok(HeatMaps {
        title: format!("Strongest neurons of layer {layer}"),
        note: window_note(first, positions, "by largest absolute activation after position 0"),
        x_name: "neuron".into(),
        y_name: "token".into(),
        x: order.iter().map(u32::to_string).collect(),
        y: labels[first..].to_vec(),
        columns: 1,
        scale: Scale::around_zero(scaled),
        value_name: "activation".into(),
        panels: vec![Panel { rows: map, ..Panel::default() }],
    }
    .draw())
}

/// The residual stream ([`crate::residual::norms`]): norm and cosine by site and position.
///
/// # Errors
/// As [`attention`].
pub fn residual(frame: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(frame, prompt)?;
    let (pos, token) = (rows.ints("pos")?, rows.texts("token")?);
    let (layer, site) = (rows.ints("layer")?, rows.texts("site")?);
    let (norm, cosine) = (rows.floats("norm")?, rows.floats("cosine")?);
    let positions = pos.iter().max().map_or(0, |max| *max as usize + 1);
    let labels = labels(&pos, &token, positions);
    let first = positions.saturating_sub(MAX_POSITIONS);
    let mut order: Vec<String> = Vec::new();
    let mut maps = [Vec::new(), Vec::new()];
    for i in 0..rows.len() {
        let name = format!("{}.{}", site[i], layer[i]);
        if order.last() != Some(&name) {
            order.push(name);
            maps.iter_mut().for_each(|map| map.push(vec![f64::NAN; positions - first]));
        }
        let Some(column) = (pos[i] as usize).checked_sub(first) else { continue };
        let last = order.len() - 1;
        maps[0][last][column] = norm[i].log10();
        maps[1][last][column] = cosine[i];
    }
    let [norms, cosines] = maps;
    let x = labels[first..].to_vec();
    let draw = |title: &str, rows: Vec<Vec<f64>>, value_name: &str| {
        let scale = Scale::over(rows.iter().flatten().copied());
        HeatMaps {
            title: title.into(),
            note: window_note(first, positions, "forward order from the top"),
            x_name: "token".into(),
            y_name: "site".into(),
            x: x.clone(),
            y: order.clone(),
            columns: 1,
            scale,
            value_name: value_name.into(),
            panels: vec![Panel { rows, ..Panel::default() }],
        }
        .draw()
    };
    Ok(draw("Residual stream: length", norms, "log10 of the norm").beside(draw(
        "Residual stream: turn",
        cosines,
        "cosine to the site before",
    )))
}

/// The logit lens ([`crate::lens::logit_lens`]): the likeliest token of every layer and position.
///
/// # Errors
/// As [`attention`].
pub fn lens(frame: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(frame, prompt)?;
    let (pos, token, rank) = (rows.ints("pos")?, rows.texts("token")?, rows.ints("rank")?);
    let (layer, next, logprob) = (rows.ints("layer")?, rows.texts("next")?, rows.floats("logprob")?);
    let positions = pos.iter().max().map_or(0, |max| *max as usize + 1);
    let layers = layer.iter().max().map_or(0, |max| *max as usize + 1);
    let labels = labels(&pos, &token, positions);
    let first = positions.saturating_sub(MAX_TEXT_POSITIONS);
    let mut map = vec![vec![f64::NAN; positions - first]; layers];
    let mut cells = vec![vec![String::new(); positions - first]; layers];
    for i in (0..rows.len()).filter(|i| rank[*i] == 0) {
        let Some(column) = (pos[i] as usize).checked_sub(first) else { continue };
        let row = layers - 1 - layer[i] as usize;
        map[row][column] = logprob[i].exp();
        cells[row][column] = shown(&next[i]);
    }
    let convention = rows.texts("convention")?.first().cloned().unwrap_or_default();
    Ok(HeatMaps {
        title: "Logit lens: likeliest next token".into(),
        note: window_note(
            first,
            positions,
            &format!("LayerNorm: {convention}; layer 0 is the embedding, the top row the output"),
        ),
        x_name: "token read".into(),
        y_name: "before layer".into(),
        x: labels[first..].to_vec(),
        y: (0..layers).rev().map(|l| l.to_string()).collect(),
        columns: 1,
        scale: Scale::Sequential { low: 0.0, high: 1.0 },
        value_name: "probability".into(),
        panels: vec![Panel { rows: map, cells, ..Panel::default() }],
    }
    .draw())
}

/// Predictions ([`crate::predict::top`]) after the last token, as bars.
///
/// # Errors
/// As [`attention`].
pub fn predict(frame: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(frame, prompt)?;
    let (pos, token) = (rows.ints("pos")?, rows.texts("token")?);
    let (next, logprob) = (rows.texts("next")?, rows.floats("logprob")?);
    let last = pos.iter().max().copied().unwrap_or(0);
    let after = (0..rows.len()).find(|i| pos[*i] == last).map(|i| shown(&token[i])).unwrap_or_default();
    let bars = (0..rows.len())
        .filter(|i| pos[*i] == last)
        .map(|i| (shown(&next[i]), logprob[i].exp(), format!("{:.4}", logprob[i].exp())))
        .collect();
    Ok(Bars {
        title: "Likeliest next tokens".into(),
        note: format!("after position {last}, `{after}`"),
        value_name: "probability".into(),
        bars,
    }
    .draw())
}

/// Tokens with their ids.
///
/// # Errors
/// As [`attention`].
pub fn tokens(frame: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(frame, prompt)?;
    let (id, token) = (rows.ints("token_id")?, rows.texts("token")?);
    let tokens = id.iter().zip(&token).map(|(id, token)| (shown(token), id.to_string(), PAPER));
    Ok(Strip { title: format!("{} tokens", rows.len()), tokens: tokens.take(2000).collect() }.draw())
}

/// Input attribution ([`crate::saliency::frame`]) of the first prompt: its tokens, coloured by one of the columns.
///
/// # Errors
/// A frame without that column.
pub fn saliency(frame: &DataFrame, column: &str) -> Result<Figure> {
    let rows = Rows::of(frame, 0)?;
    let (token, value) = (rows.texts("token")?, rows.floats(column)?);
    let scale = Scale::around_zero(value.iter().copied());
    let tokens = token.iter().zip(&value).map(|(token, x)| (shown(token), format!("{x:+.2}"), scale.color(*x)));
    let title = format!("Input attribution, {}: blue helps the answer, red hinders it", column.replace('_', " "));
    Ok(Strip { title, tokens: tokens.take(2000).collect() }.draw())
}

/// The first text of a generation ([`crate::generate::generate`]): every written token, coloured by how likely it was.
///
/// # Errors
/// A frame without the columns of a generation.
pub fn generate(frame: &DataFrame) -> Result<Figure> {
    let (pieces, logprobs) = (frame.column("tokens")?.list()?.get_as_series(0), frame.column("logprobs")?.list()?);
    let (Some(pieces), Some(logprobs)) = (pieces, logprobs.get_as_series(0)) else {
        return Err(Error::request("the frame holds no text"));
    };
    let scale = Scale::Sequential { low: 0.0, high: 1.0 };
    let tokens = pieces.str()?.iter().zip(logprobs.f32()?.iter()).map(|(piece, logprob)| {
        let probability = f64::from(logprob.unwrap_or(f32::NAN)).exp();
        (shown(piece.unwrap_or_default()), format!("{probability:.2}"), scale.color(probability))
    });
    let title = "Written tokens and their probabilities (first text)".into();
    Ok(Strip { title, tokens: tokens.take(2000).collect() }.draw())
}

/// Sites with the bytes that one token takes at each.
///
/// # Errors
/// A frame without the columns of the list of sites.
pub fn sites(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::all(frame);
    let (site, bytes) = (rows.texts("site")?, rows.floats("bytes_per_token")?);
    let axes = rows.texts("axes")?;
    // One layer stands for all: they are alike.
    let kept = |name: &str| name.split_once('.').is_none_or(|(_, layer)| layer == "0");
    let bars = (0..rows.len())
        .filter(|i| kept(&site[*i]))
        .map(|i| (site[i].clone(), bytes[i], format!("{:.0} B   [{}]", bytes[i], axes[i])))
        .collect();
    Ok(Bars {
        title: "Sites of the model and of its first layer".into(),
        note: "in the order of the forward pass; every layer has the same".into(),
        value_name: "bytes per token in f32".into(),
        bars,
    }
    .draw())
}

/// Root mean square of captured values by site and position.
///
/// # Errors
/// A frame without the columns of a capture's summary.
pub fn capture(summary: &DataFrame, prompt: u32) -> Result<Figure> {
    let rows = Rows::of(summary, prompt)?;
    let (site, pos, token) = (rows.texts("site")?, rows.ints("pos")?, rows.texts("token")?);
    let rms = rows.floats("rms")?;
    let positions = pos.iter().max().map_or(0, |max| *max as usize + 1);
    let labels = labels(&pos, &token, positions);
    let first = positions.saturating_sub(MAX_POSITIONS);
    let mut order: Vec<String> = Vec::new();
    let mut map: Vec<Vec<f64>> = Vec::new();
    for i in 0..rows.len() {
        if order.last() != Some(&site[i]) {
            order.push(site[i].clone());
            map.push(vec![f64::NAN; positions - first]);
        }
        if let (Some(row), Some(column)) = (map.last_mut(), (pos[i] as usize).checked_sub(first)) {
            row[column] = rms[i].log10();
        }
    }
    let scale = Scale::over(map.iter().flatten().copied());
    Ok(HeatMaps {
        title: "Captured values: root mean square".into(),
        note: window_note(first, positions, "forward order from the top"),
        x_name: "token".into(),
        y_name: "site".into(),
        x: labels[first..].to_vec(),
        y: order,
        columns: 1,
        scale,
        value_name: "log10 of the root mean square".into(),
        panels: vec![Panel { rows: map, ..Panel::default() }],
    }
    .draw())
}

/// A dataset's sites ([`crate::export`]): how long their vectors are.
///
/// # Errors
/// A frame without their statistics.
pub fn export(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::all(frame);
    let (site, norm, most) = (rows.texts("site")?, rows.floats("mean_norm")?, rows.floats("max_norm")?);
    let bar = |i: usize| (site[i].clone(), norm[i], format!("{:.2}, at most {:.2}", norm[i], most[i]));
    Ok(Bars {
        title: "Sites of the dataset".into(),
        note: "over all of its rows".into(),
        value_name: "mean length of the vectors".into(),
        bars: (0..rows.len()).map(bar).collect(),
    }
    .draw())
}

/// Losses of a training run.
///
/// # Errors
/// A frame without the columns of training.
pub fn training(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::all(frame);
    let (step, split, loss) = (rows.ints("step")?, rows.texts("split")?, rows.floats("loss")?);
    let line = |name: &str| Line {
        name: name.into(),
        points: (0..rows.len()).filter(|i| split[*i] == name).map(|i| (f64::from(step[i]), loss[i])).collect(),
        ..Line::default()
    };
    Ok(Lines {
        title: "Training".into(),
        x_name: "step".into(),
        y_name: "loss, nats per token".into(),
        lines: vec![line("train"), line("validation")],
        x_labels: Vec::new(),
    }
    .draw())
}

/// A comparison of models and texts ([`crate::perplexity::comparison`]).
///
/// # Errors
/// A frame without its columns.
pub fn perplexity(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::all(frame);
    let (model, text) = (rows.texts("model")?, rows.texts("text")?);
    let (bits, perplexity) = (rows.floats("bits_per_byte")?, rows.floats("perplexity")?);
    let bar = |i: usize| {
        (format!("{}: {}", model[i], text[i]), bits[i], format!("{:.3}, perplexity {:.2}", bits[i], perplexity[i]))
    };
    Ok(Bars {
        title: "How well models predict texts".into(),
        note: format!("shorter is better; {}", rows.texts("protocol")?.first().map_or("", String::as_str)),
        value_name: "bits per byte".into(),
        bars: (0..rows.len()).map(bar).collect(),
    }
    .draw())
}

/// The next of 1, 0.5, 0.2, 0.1, 0.05 … above a share.
fn round_up(share: f64) -> f64 {
    if share <= 0.0 {
        return 1.0; // nothing but the first position
    }
    let steps = (0..6).flat_map(|power| [1.0, 0.5, 0.2].map(|step| step / 10_f64.powi(power)));
    steps.take_while(|&step| step >= share).last().unwrap_or(1.0)
}

/// Says which positions a picture leaves out.
fn window_note(first: usize, positions: usize, note: &str) -> String {
    match first {
        0 => note.to_string(),
        _ => format!("{note}; the last {} of {positions} positions", positions - first),
    }
}

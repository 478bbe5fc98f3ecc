//! Token-coloured text on a page.

use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, number, scale, token};
use crate::error::{Error, Result, printable};
use crate::figure::Scale;
use crate::figure::rows::Rows;

/// Values on a page; further series are left out, and the page says so.
const VALUES: usize = 200_000;

/// Neurons ([`crate::neurons`]): the text, coloured by what one of them does.
///
/// # Errors
/// A frame without the columns of neurons.
pub fn neurons(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::all(frame);
    let (prompt, layer, neuron) = (rows.ints("prompt")?, rows.ints("layer")?, rows.ints("neuron")?);
    let (pos, text, activation) = (rows.ints("pos")?, rows.texts("token")?, rows.floats("activation")?);
    let index: Vec<usize> = (0..rows.len()).collect();
    let series =
        index.chunk_by(|a, b| (prompt[*a], layer[*a], neuron[*a]) == (prompt[*b], layer[*b], neuron[*b])).map(|own| {
            // The first position's activations dwarf the rest; they may saturate.
            let scaled = own.iter().filter(|i| pos[**i] > 0 || own.len() == 1).map(|i| activation[*i]);
            let tokens = own
                .iter()
                .map(|i| Place { pos: pos[*i], text: token(&text[*i]), value: activation[*i], logit: None })
                .collect();
            Series {
                text: format!("prompt {}", prompt[own[0]]),
                name: format!("{}.{}", layer[own[0]], neuron[own[0]]),
                scale: Scale::around_zero(scaled),
                tokens,
            }
        });
    block(
        "Neurons",
        "Activation of a neuron on every token; layer.neuron, the strongest of a layer first.",
        "activation",
        series.collect(),
    )
}

/// Input attribution ([`crate::saliency::frame`]): the text, coloured by what each token does for the answer.
///
/// # Errors
/// A frame without those columns.
pub fn saliency(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::all(frame);
    let (prompt, pos, text) = (rows.ints("prompt")?, rows.ints("pos")?, rows.texts("token")?);
    let index: Vec<usize> = (0..rows.len()).collect();
    let mut series = Vec::new();
    for (name, column) in [
        ("integrated gradients", "integrated"),
        ("gradient × input", "gradient_input"),
        ("norm of the gradient", "gradient_norm"),
    ] {
        let values = rows.floats(column)?;
        for own in index.chunk_by(|a, b| prompt[*a] == prompt[*b]) {
            let place = |i: &usize| Place { pos: pos[*i], text: token(&text[*i]), value: values[*i], logit: None };
            series.push(Series {
                text: format!("prompt {}", prompt[own[0]]),
                name: name.into(),
                scale: Scale::around_zero(own.iter().map(|i| values[*i])),
                tokens: own.iter().map(place).collect(),
            });
        }
    }
    series.sort_by(|a, b| a.text.cmp(&b.text));
    block("Input attribution", "What each token does for the answer: blue helps, red hinders.", "attribution", series)
}

/// A probe on every token of a text ([`crate::probe::applied`]).
///
/// # Errors
/// A frame without the columns of an applied probe.
pub fn applied(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::all(frame);
    let (probe, site, class) = (rows.texts("probe")?, rows.texts("site")?, rows.texts("class")?);
    let (prompt, pos, text) = (rows.ints("prompt")?, rows.ints("pos")?, rows.texts("token")?);
    let (p, value) = (rows.floats("probability")?, rows.floats("value")?);
    let mut index: Vec<usize> = (0..rows.len()).collect();
    let of = |i: &usize| (&probe[*i], &site[*i], prompt[*i], &class[*i]);
    // A series per class: its probability on every token. What has no class has a value.
    index.sort_by(|a, b| of(a).cmp(&of(b)));
    let series = index.chunk_by(|a, b| of(a) == of(b)).map(|own| {
        let number = own.iter().all(|i| class[*i].is_empty());
        let at = |i: usize| if number { value[i] } else { p[i] };
        Series {
            text: format!("prompt {}, {} at {}", prompt[own[0]], probe[own[0]], site[own[0]]),
            name: if number { "what it predicts".into() } else { class[own[0]].clone() },
            scale: match number {
                true => Scale::around_zero(own.iter().skip(1).map(|i| value[*i])),
                false => Scale::Sequential { low: 0.0, high: 1.0 },
            },
            tokens: own
                .iter()
                .map(|i| {
                    let logit = (!number).then(|| value[*i]).filter(|x| x.is_finite());
                    Place { pos: pos[*i], text: token(&text[*i]), value: at(*i), logit }
                })
                .collect(),
        }
    });
    block(
        "Probe on every token",
        "The probability of a class, or the value that is predicted.",
        "probability or value",
        series.collect(),
    )
}

struct Series {
    /// What it is a series of.
    text: String,
    /// Which of them.
    name: String,
    scale: Scale,
    tokens: Vec<Place>,
}

/// A token of a series.
struct Place {
    pos: u32,
    text: String,
    value: f64,
    /// The probe's, if there is one.
    logit: Option<f64>,
}

fn block(title: &str, note: &str, value: &str, series: Vec<Series>) -> Result<Block> {
    if series.is_empty() {
        return Err(Error::request("the frame holds no token"));
    }
    let mut values = 0;
    let kept: Vec<Value> = series
        .iter()
        .take_while(|own| {
            values += own.tokens.len();
            values <= VALUES || values == own.tokens.len()
        })
        .map(|own| {
            json!({
                "text": printable(&own.text),
                "name": printable(&own.name),
                "scale": scale(own.scale),
                "pos": own.tokens.iter().map(|at| at.pos).collect::<Vec<_>>(),
                "tokens": own.tokens.iter().map(|at| &at.text).collect::<Vec<_>>(),
                "values": own.tokens.iter().map(|at| number(at.value)).collect::<Vec<_>>(),
                "logits": own.tokens.iter().map(|at| at.logit.map_or(Value::Null, number)).collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(Block(json!({
        "kind": "strips",
        "title": title,
        "note": note,
        "value": value,
        "left_out": series.len() - kept.len(),
        "series": kept,
    })))
}

//! Direct logit attribution on a page: bars that add up, and open into what they are made of.

use std::collections::BTreeMap;

use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, number, token};
use crate::error::{Error, Result};
use crate::figure::rows::Rows;

/// Attribution ([`crate::attribution::frame`], not accumulated) of the mean over prompts, or of the only prompt: components,
/// which open into heads and, where the frame has them, neurons.
///
/// # Errors
/// A frame without the columns of attribution, or of an accumulated one.
pub fn attribution(frame: &DataFrame) -> Result<Block> {
    let prompt: Vec<Option<u32>> = frame.column("prompt")?.u32()?.iter().collect();
    let wanted = if prompt.contains(&None) { None } else { prompt.iter().flatten().min().copied() };
    let rows = Rows::all(frame);
    let (component, contribution) = (rows.texts("component")?, rows.floats("contribution")?);
    let layer: Vec<Option<u32>> = frame.column("layer")?.u32()?.iter().collect();
    let (low, high) = (rows.floats("low")?, rows.floats("high")?);
    let own: Vec<usize> = (0..rows.len()).filter(|i| prompt[*i] == wanted).collect();
    if own.is_empty() {
        return Err(Error::request("the frame holds no share"));
    }
    if !own.iter().any(|i| component[*i] == "remainder") {
        return Err(Error::request("these rows do not add up: they are accumulated, and open into nothing"));
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut places: BTreeMap<(u32, bool), usize> = BTreeMap::new();
    for &i in &own {
        let kind = component[i].split('.').next().unwrap_or_default();
        let attention = match kind {
            "head" | "b_O" | "attn_out" => Some(true),
            "neuron" | "other_neurons" | "b_out" | "mlp_out" => Some(false),
            _ => None,
        };
        let row = json!({
            "name": component[i], "value": number(contribution[i]), "low": number(low[i]), "high": number(high[i]),
            "head": (kind == "head").then(|| component[i].trim_start_matches("head.")),
        });
        match (attention, layer[i]) {
            (Some(attention), Some(layer)) => {
                let at = *places.entry((layer, attention)).or_insert_with(|| {
                    let name = if attention { "attention" } else { "MLP" };
                    groups.push(Group { name: format!("{name} {layer}"), sum: 0.0, rows: Vec::new() });
                    groups.len() - 1
                });
                groups[at].sum += contribution[i];
                groups[at].rows.push(row);
            }
            _ => groups.push(Group { name: component[i].clone(), sum: contribution[i], rows: vec![row] }),
        }
    }
    let total: f64 = own.iter().map(|i| contribution[*i]).sum();
    let texts =
        |name: &str| -> Result<String> { Ok(token(frame.column(name)?.str()?.get(own[0]).unwrap_or_default())) };
    let note = match (wanted, frame.column("wrong")?.str()?.get(own[0])) {
        (None, _) => "Mean over all prompts.".to_string(),
        (_, Some(_)) => {
            format!("Logit of {} less that of {}, after {}.", texts("answer")?, texts("wrong")?, texts("token")?)
        }
        (_, None) => format!("Logit of {} after {}.", texts("answer")?, texts("token")?),
    };
    Ok(Block(json!({
        "kind": "bars",
        "title": "Direct logit attribution",
        "note": format!("{note} The bars add up to it."),
        "value": "contribution",
        "total": number(total),
        "rows": groups.into_iter().map(Group::json).collect::<Vec<_>>(),
    })))
}

/// A component with its parts.
struct Group {
    name: String,
    sum: f64,
    rows: Vec<Value>,
}

impl Group {
    fn json(mut self) -> Value {
        if self.rows.len() == 1 {
            let mut only = self.rows.remove(0);
            only["name"] = json!(self.name);
            return only;
        }
        // The strongest first: what a reader looks for.
        let size = |row: &Value| row["value"].as_f64().map_or(0.0, f64::abs);
        self.rows.sort_by(|a, b| size(b).total_cmp(&size(a)));
        json!({ "name": self.name, "value": number(self.sum), "rows": self.rows })
    }
}

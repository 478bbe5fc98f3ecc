//! MLP neurons: which fire, where.

use polars::prelude::*;

use crate::error::Result;
use crate::frame;
use crate::gpt2::Gpt2;
use crate::plan::{Plan, Trace};
use crate::site::Site;
use crate::tokens::Tokens;

/// The activations of a layer's `top` neurons, after GELU.
///
/// Neurons are ranked by their largest absolute activation in the prompt; the token at position 0 does not count,
/// since it carries huge activations whatever the text, unless it is the only one.
///
/// | column | |
/// |---|---|
/// | `prompt`, `layer`, `pos`, `token` | |
/// | `neuron` | its index in the layer |
/// | `activation` | |
///
/// # Errors
/// As [`Plan::run`].
pub fn top(model: &Gpt2, tokens: &Tokens, layer: usize, top: usize) -> Result<DataFrame> {
    from_trace(&Plan::new().read(Site::MlpPost(layer)).run(model, tokens)?, Site::MlpPost(layer), top)
}

/// [`top`] of a run that read `site`: `mlp_post` or `mlp_pre` of a layer.
///
/// # Errors
/// [`crate::Error::NotRead`] for a run that did not.
pub fn from_trace(trace: &Trace, site: Site, top: usize) -> Result<DataFrame> {
    let tokens = trace.tokens();
    let value = trace.get(site)?;
    let width = value.dim(2)?;
    let (mut prompts, mut positions, mut text) = (Vec::new(), Vec::new(), Vec::new());
    let (mut neurons, mut activations) = (Vec::new(), Vec::new());
    for prompt in 0..tokens.len() {
        let length = tokens.row(prompt).len();
        let rows = frame::to_f32(&value.narrow(0, prompt, 1)?.narrow(1, 0, length)?)?;
        for neuron in strongest(&rows, width, top) {
            for pos in 0..length {
                prompts.push(prompt as u32);
                positions.push(pos as u32);
                text.push(tokens.text(prompt, pos).into_owned());
                neurons.push(neuron as u32);
                activations.push(rows[pos * width + neuron]);
            }
        }
    }
    let layer = vec![site.layer().unwrap_or(0) as u32; neurons.len()];
    Ok(df!(
        "prompt" => prompts, "layer" => layer, "pos" => positions, "token" => text,
        "neuron" => neurons, "activation" => activations,
    )?)
}

/// The neurons with the largest absolute activations, strongest first, ties by index.
fn strongest(rows: &[f32], width: usize, top: usize) -> Vec<usize> {
    let counted = if rows.len() > width { &rows[width..] } else { rows };
    let strength: Vec<f32> =
        (0..width).map(|n| counted.iter().skip(n).step_by(width).fold(0.0, |m: f32, x| m.max(x.abs()))).collect();
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| strength[b].total_cmp(&strength[a]).then(a.cmp(&b)));
    order.truncate(top);
    order
}

#[cfg(test)]
mod tests {
    use super::strongest;

    #[test]
    fn the_first_position_does_not_count() {
        let rows = [100.0, 0.0, 0.0, /* pos 1 */ 0.1, -3.0, 2.0];
        assert_eq!(strongest(&rows, 3, 2), [1, 2]);
        assert_eq!(strongest(&rows[..3], 3, 1), [0]);
    }
}

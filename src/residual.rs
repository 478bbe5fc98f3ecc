//! The residual stream: how long it is, and how far it turns.

use polars::prelude::*;

use crate::error::Result;
use crate::frame;
use crate::gpt2::Gpt2;
use crate::plan::{Plan, Trace};
use crate::site::Site;
use crate::tokens::Tokens;

/// Norm of the residual stream at every layer and position, and its cosine to the residual stream just before.
///
/// | column | |
/// |---|---|
/// | `prompt`, `layer`, `site` | `resid_pre`, `resid_mid`, `resid_post` of each layer, in forward order |
/// | `pos`, `token` | |
/// | `norm` | Euclidean length |
/// | `cosine` | to the previous site of the stream; null at the first |
///
/// # Errors
/// As [`Plan::run`].
pub fn norms(model: &Gpt2, tokens: &Tokens) -> Result<DataFrame> {
    let layers = model.config().n_layer;
    from_trace(&Plan::new().reads(sites(layers)).run(model, tokens)?, layers)
}

/// The sites of the residual stream in forward order. `resid_post` of a layer is `resid_pre` of the next, and is
/// listed where it is made.
pub fn sites(layers: usize) -> impl Iterator<Item = Site> {
    std::iter::once(Site::ResidPre(0)).chain((0..layers).flat_map(|l| [Site::ResidMid(l), Site::ResidPost(l)]))
}

/// [`norms`] of a run that read [`sites`].
///
/// # Errors
/// [`crate::Error::NotRead`] for a run that did not.
pub fn from_trace(trace: &Trace, layers: usize) -> Result<DataFrame> {
    let tokens = trace.tokens();
    let (mut prompts, mut layer, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let (mut positions, mut text) = (Vec::new(), Vec::new());
    let (mut norms, mut cosines) = (Vec::new(), Vec::new());
    let mut before: Option<Vec<f32>> = None;
    for site in sites(layers) {
        let value = trace.get(site)?;
        let (_, padded, width) = value.dims3()?;
        let rows = frame::to_f32(value)?;
        for prompt in 0..tokens.len() {
            for pos in 0..tokens.row(prompt).len() {
                let range = (prompt * padded + pos) * width..(prompt * padded + pos + 1) * width;
                let row = &rows[range.clone()];
                let norm = dot(row, row).sqrt();
                prompts.push(prompt as u32);
                layer.push(site.layer().unwrap_or(0) as u32);
                kinds.push(site.kind());
                positions.push(pos as u32);
                text.push(tokens.text(prompt, pos).into_owned());
                norms.push(norm as f32);
                cosines.push(before.as_ref().map(|before| {
                    let other = &before[range];
                    (dot(row, other) / (norm * dot(other, other).sqrt())) as f32
                }));
            }
        }
        before = Some(rows);
    }
    Ok(df!(
        "prompt" => prompts, "layer" => layer, "site" => kinds, "pos" => positions, "token" => text,
        "norm" => norms, "cosine" => cosines,
    )?)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

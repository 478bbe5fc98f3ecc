//! Activations as the tables that probes read.

use ndarray::Array2;

use crate::error::{Error, Result};
use crate::gather::Gather;
use crate::gpt2::Gpt2;
use crate::labelled::{Row, positions};
use crate::site::Site;
use crate::tokens::{Tokens, batches};

/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 8192;

/// The activations at the positions of rows, `[row, d]` per site; rows come by prompt and position.
///
/// # Errors
/// Sites without a vector per position, faults of the tokens, and values that are not finite.
pub fn features(model: &Gpt2, sites: &[Site], tokens: &Tokens, rows: &[Row]) -> Result<Vec<Array2<f32>>> {
    let chosen = positions(rows, tokens.len());
    let (mut gather, mut all) = (Gather::new(model, sites)?, vec![Vec::new(); sites.len()]);
    for batch in batches((0..tokens.len()).map(|prompt| tokens.row(prompt).len()), BATCH_TOKENS) {
        gather.read(&tokens.slice(batch.clone()), &chosen[batch], &mut all)?;
    }
    let table = |values: Vec<f32>| Array2::from_shape_vec((rows.len(), values.len() / rows.len().max(1)), values);
    all.into_iter().map(|values| table(values).map_err(|e| Error::Bug(e.to_string()))).collect()
}

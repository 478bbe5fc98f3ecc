//! Probes that are there, on texts that are new.

use ndarray::Array2;
use polars::prelude::*;

use super::fitted::{Probe, Reads};
use super::judge::{Predicted, judge};
use super::layers::Kept;
use super::table::Table;
use crate::error::{Error, Result};
use crate::frame::token_columns;
use crate::labelled::Labels;
use crate::scores::{Bin, Confusion, calibration};
use crate::tokens::Tokens;

/// Bins of a reliability diagram.
const BINS: usize = 10;

/// How a probe does on rows that are given.
pub struct Evaluated {
    /// What was predicted for what, of classes.
    pub confusion: Option<Confusion>,
    /// How often it was right by how sure it was, of classes.
    pub calibration: Vec<Bin>,
}

/// Judges probes on rows, `[row, d]` per probe: a frame as that of [`super::layers()`] with the split `eval`, and what was
/// predicted for what.
///
/// # Errors
/// [`Error::Request`] for rows of another width.
pub fn evaluated(
    name: &str,
    kept: &[&Kept],
    features: &[Array2<f32>],
    labels: &Labels,
    seed: u64,
) -> Result<(DataFrame, Vec<Evaluated>)> {
    let (mut table, mut all) = (Table::default(), Vec::new());
    let rows: Vec<usize> = (0..labels.len()).collect();
    for (kept, x) in kept.iter().zip(features) {
        table.push((name, kept.site), ("eval", seed), judge(&kept.probe, x.view(), labels, &rows)?);
        let mut own = Evaluated { confusion: None, calibration: Vec::new() };
        if let Labels::Classes { names, of } = labels {
            let Predicted { best, sure, right, .. } = Predicted::of(&kept.probe, x.view(), &rows, of)?;
            own.confusion = Some(Confusion::of(of, &best, names.len())?);
            own.calibration = calibration(&sure, &right, BINS).unwrap_or_default();
        }
        all.push(own);
    }
    Ok((table.frame()?, all))
}

/// What a probe says of every token: columns `probe`, `site`, `layer`, `prompt`, `pos`, `token_id`, `token`, `class`,
/// `probability` and `value`, a row per token and class. `value` is the score of the class: for two classes the log-odds of it;
/// for numbers, which have no class, what is predicted.
///
/// `x` has the activations of all tokens in their order.
///
/// # Errors
/// [`Error::Bug`] for another number of activations than tokens.
pub fn applied(
    name: &str,
    kept: &Kept,
    classes: Option<&[String]>,
    tokens: &Tokens,
    x: &Array2<f32>,
) -> Result<DataFrame> {
    let identity = token_columns(tokens);
    let identity = DataFrame::new(tokens.count(), identity)?;
    if identity.height() != x.nrows() {
        return Err(Error::Bug(format!("{} activations of {} tokens", x.nrows(), identity.height())));
    }
    let rows: Vec<usize> = (0..x.nrows()).collect();
    let (p, values) = (kept.probe.probabilities(x.view(), &rows)?, of_classes(&kept.probe, x, &rows)?);
    let each = classes.map_or(1, <[String]>::len);
    let all = 0..rows.len() * each;
    let mut frame = df!(
        "probe" => vec![name; all.len()],
        "site" => vec![kept.site.to_string(); all.len()],
        "layer" => vec![kept.site.layer().map(|layer| layer as u32); all.len()],
    )?;
    let token = IdxCa::from_vec("token".into(), all.clone().map(|i| (i / each) as IdxSize).collect());
    frame.hstack_mut(identity.take(&token)?.columns())?;
    let scores = df!(
        "class" => all.clone().map(|i| classes.map(|classes| classes[i % each].as_str())).collect::<Vec<_>>(),
        "probability" => all.clone().map(|i| p.get([i / each, i % each]).copied()).collect::<Vec<_>>(),
        "value" => all.map(|i| values[i / each][i % each]).collect::<Vec<_>>(),
    )?;
    frame.hstack_mut(scores.columns())?;
    Ok(frame)
}

/// A value per class and row: none where the class was not seen.
fn of_classes(probe: &Probe, x: &Array2<f32>, rows: &[usize]) -> Result<Vec<Vec<Option<f64>>>> {
    let scores = probe.scores(x.view(), rows)?;
    let row = |scores: ndarray::ArrayView1<'_, f64>| match &probe.reads {
        Reads::Value => vec![Some(scores[0])],
        Reads::Classes { present, classes } => {
            let mut all = vec![None; *classes];
            for (i, class) in present.iter().enumerate() {
                all[*class] = match (present.len(), scores.len()) {
                    (1, _) => None,
                    (2, 1) => Some(if i == 1 { scores[0] } else { -scores[0] }),
                    _ => Some(scores[i]),
                };
            }
            all
        }
    };
    Ok(scores.outer_iter().map(row).collect())
}

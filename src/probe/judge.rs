//! How well a probe does on rows that it was not fitted on.

use ndarray::ArrayView2;

use super::fitted::Probe;
use crate::error::Result;
use crate::labelled::Labels;
use crate::scores::{
    Confusion, calibration, calibration_error, log_loss, mean_absolute_error, mean_squared_error, pearson, r2, roc_auc,
    roc_auc_ovr, spearman,
};

/// Bins of the calibration error.
const BINS: usize = 15;

/// A score, by name.
pub type Score = (&'static str, f64);

/// The scores of a probe on some rows: of classes accuracy (first), balanced accuracy, macro F1, Matthews's correlation, AUC
/// (one against the rest, averaged), log-loss in nats and expected calibration error; of numbers R² (first), root mean squared
/// error, mean absolute error and the correlations of Pearson and Spearman. Scores that are not defined are left out.
///
/// # Errors
/// [`crate::Error::Bug`].
pub fn judge(probe: &Probe, x: ArrayView2<'_, f32>, labels: &Labels, rows: &[usize]) -> Result<Vec<Score>> {
    let scores: Vec<(&'static str, Option<f64>)> = match labels.picked(rows) {
        Labels::Values(truth) => {
            let found = probe.values(x, rows)?;
            vec![
                ("r2", r2(&truth, &found)),
                ("rmse", mean_squared_error(&truth, &found).map(f64::sqrt)),
                ("mae", mean_absolute_error(&truth, &found)),
                ("pearson", pearson(&truth, &found)),
                ("spearman", spearman(&truth, &found)),
            ]
        }
        Labels::Classes { names, of } => {
            let Predicted { p, best, sure, right } = Predicted::of(probe, x, rows, &of)?;
            let confusion = Confusion::of(&of, &best, names.len())?;
            let auc = match names.len() {
                2 => {
                    let (scores, positive): (Vec<f64>, Vec<bool>) =
                        p.iter().zip(&of).map(|(row, class)| (row[1], *class == 1)).unzip();
                    roc_auc(&scores, &positive)
                }
                _ => roc_auc_ovr(&p, &of, names.len()),
            };
            let bins = calibration(&sure, &right, BINS);
            vec![
                ("accuracy", confusion.accuracy()),
                ("balanced_accuracy", confusion.balanced_accuracy()),
                ("macro_f1", confusion.macro_f1()),
                ("mcc", Some(confusion.mcc())),
                ("auc", auc),
                ("log_loss", log_loss(&p, &of)),
                ("calibration_error", bins.and_then(|bins| calibration_error(&bins))),
            ]
        }
    };
    Ok(scores.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// What a probe of classes predicts for rows whose classes are known.
pub(super) struct Predicted {
    /// Probabilities of all classes.
    p: Vec<Vec<f64>>,
    /// The likeliest class.
    pub(super) best: Vec<usize>,
    /// Its probability.
    pub(super) sure: Vec<f64>,
    /// Whether it is the right one.
    pub(super) right: Vec<bool>,
}

impl Predicted {
    pub(super) fn of(probe: &Probe, x: ArrayView2<'_, f32>, rows: &[usize], truth: &[usize]) -> Result<Self> {
        let p: Vec<Vec<f64>> = probe.probabilities(x, rows)?.outer_iter().map(|row| row.to_vec()).collect();
        let best: Vec<usize> = p.iter().map(|row| likeliest(row)).collect();
        let sure = p.iter().zip(&best).map(|(row, best)| row[*best]).collect();
        let right = truth.iter().zip(&best).map(|(truth, best)| truth == best).collect();
        Ok(Self { p, best, sure, right })
    }
}

/// The first of the likeliest classes.
fn likeliest(p: &[f64]) -> usize {
    let mut best = 0;
    for (class, value) in p.iter().enumerate() {
        if *value > p[best] {
            best = class;
        }
    }
    best
}

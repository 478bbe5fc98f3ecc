//! What linear scores mean: a score of class 1 for two classes, else one per class.

use ndarray::{Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use super::block::{blocks, dot};
use super::loss;

/// Products of rows with the weights of every score, plus its intercept; `theta` has for every score its weights, then its
/// intercept. A column per score.
///
/// # Panics
/// If the rows have another number of features than the weights.
pub fn scores(x: ArrayView2<'_, f32>, theta: &[f64]) -> Array2<f64> {
    let (n, d) = x.dim();
    assert_eq!(theta.len() % (d + 1), 0, "rows of {d} features do not fit the weights");
    let k = theta.len() / (d + 1);
    let parts: Vec<Vec<f64>> = blocks(n)
        .into_par_iter()
        .map(|rows| {
            let mut wide = vec![0.0; d];
            let mut out = Vec::with_capacity(rows.len() * k);
            for i in rows {
                wide.iter_mut().zip(x.row(i)).for_each(|(wide, &x)| *wide = f64::from(x));
                out.extend(theta.chunks_exact(d + 1).map(|theta| dot(&wide, &theta[..d]) + theta[d]));
            }
            out
        })
        .collect();
    Array2::from_shape_vec((n, k), parts.concat()).expect("a score per row and weight vector")
}

/// The probability of every class from scores that are log-odds or their equals: a column per class.
pub fn probabilities(scores: Array2<f64>) -> Array2<f64> {
    loss::all_probabilities(scores)
}

/// The class that wins: by its sign for one score, by the largest of several (the first of equals).
pub fn winner(scores: ArrayView1<'_, f64>) -> usize {
    if scores.len() == 1 {
        return usize::from(scores[0] > 0.0);
    }
    scores.iter().enumerate().fold(0, |best, (class, &score)| if score > scores[best] { class } else { best })
}

//! A layer as a whole: the plane in which its activations differ most, and the clusters that they fall into.

use linfa::DatasetBase;
use linfa::traits::{Fit, Predict};
use linfa_clustering::KMeans;
use nalgebra::DMatrix;
use ndarray::Array2;
use polars::prelude::*;

use crate::error::{Error, Result};
use crate::labelled::{Labelled, Labels};
use crate::scores::adjusted_rand;
use crate::site::Site;
use crate::subspace::components;
use crate::tokens::Tokens;

/// Starts of k-means, of which the best end is kept.
const STARTS: usize = 10;

/// A view of a site.
pub struct View {
    /// Columns `probe`, `site`, `layer`, `prompt`, `pos`, `token`, `label`, `pc1`, `pc2`, `cluster`: a row per row.
    pub frame: DataFrame,
    /// The shares of the variance along both components.
    pub explained: [f64; 2],
    /// How far clusters and classes are the same (adjusted Rand index, 1 for the same, 0 for what chance gives); none for
    /// numbers.
    pub agreement: Option<f64>,
}

/// Projects rows, `[row, d]`, to their first two principal components, and clusters them in all dimensions by k-means, as many
/// clusters as there are classes (4 for numbers). Neither sees the labels.
///
/// `tokens` names the tokens, where the text is at hand. A component's sign is such that its largest loading is positive.
///
/// # Errors
/// [`Error::Request`] for fewer than three rows, or values that are not finite.
pub fn view(name: &str, site: Site, x: &Array2<f32>, rows: &Labelled, tokens: Option<&Tokens>) -> Result<View> {
    let (n, d) = x.dim();
    if n < 3 || d < 2 {
        return Err(Error::request(format!("{n} rows of {d} numbers have no plane to be drawn in")));
    }
    if x.iter().any(|x| !x.is_finite()) {
        return Err(Error::request(format!("rows of {site} are not finite")));
    }
    let (points, explained) = plane(x);
    let (label, classes, of) = match &rows.labels {
        Labels::Classes { names, of } => {
            (of.iter().map(|class| names[*class].clone()).collect::<Vec<_>>(), names.len(), Some(of))
        }
        Labels::Values(values) => (values.iter().map(f64::to_string).collect(), 4, None),
    };
    let data = DatasetBase::from(x.mapv(f64::from));
    let fitted = KMeans::params(classes.min(n)).n_runs(STARTS).fit(&data).map_err(|e| Error::Bug(e.to_string()))?;
    let cluster: Vec<usize> = fitted.predict(&data.records).to_vec();
    let token = |i: usize| tokens.map(|tokens| tokens.text(rows.prompt[i] as usize, rows.pos[i] as usize));
    let frame = df!(
        "probe" => vec![name; n],
        "site" => vec![site.to_string(); n],
        "layer" => vec![site.layer().map(|layer| layer as u32); n],
        "prompt" => &rows.prompt,
        "pos" => &rows.pos,
        "token" => (0..n).map(token).collect::<Vec<_>>(),
        "label" => label,
        "pc1" => points.iter().map(|point| point[0]).collect::<Vec<_>>(),
        "pc2" => points.iter().map(|point| point[1]).collect::<Vec<_>>(),
        "cluster" => cluster.iter().map(|cluster| *cluster as u32).collect::<Vec<_>>(),
    )?;
    Ok(View { frame, explained, agreement: of.and_then(|of| adjusted_rand(of, &cluster)) })
}

/// Rows along their two first principal components, and the shares of the variance along these.
fn plane(x: &Array2<f32>) -> (Vec<[f64; 2]>, [f64; 2]) {
    let (n, d) = x.dim();
    let mean: Vec<f64> =
        x.columns().into_iter().map(|c| c.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64).collect();
    let centred = DMatrix::from_fn(n, d, |row, dim| f64::from(x[[row, dim]]) - mean[dim]);
    let (axes, total) = components(&centred, 2);
    let mut points = vec![[0.0; 2]; n];
    let mut explained = [0.0; 2];
    for (at, (value, mut loading)) in axes.into_iter().enumerate() {
        let length = loading.norm();
        if length > 0.0 {
            let sign = if loading[loading.iamax()] < 0.0 { -1.0 } else { 1.0 };
            loading *= sign / length;
        }
        let along = &centred * loading;
        points.iter_mut().zip(along.iter()).for_each(|(point, along)| point[at] = *along);
        explained[at] = if total > 0.0 { value / total } else { 0.0 };
    }
    (points, explained)
}

//! Directions in activation space, found from two sets of prompts: what sets the positive ones apart from the negative.
//!
//! Added to an activation while the model writes, a direction steers (Turner et al. 2023; Rimsky et al. 2024; Zou et al.
//! 2023).

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use crate::edit::Edit;
use crate::error::{Error, Result, said_by_candle, shorten};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::plan::Plan;
use crate::random::{normal, stream};
use crate::site::{Axis, Site};
use crate::subspace::components;
use crate::tokens::Tokens;
use crate::weights;

/// How a direction is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// From the mean of the negative activations to the mean of the positive ones.
    #[default]
    Mean,
    /// The first principal component of pairs, each centred on its own mean: the axis along which pairs differ most. The
    /// prompts of both sets belong together in their order.
    Pca,
    /// The first principal component of all activations, centred on their common mean.
    PcaPooled,
}

impl Method {
    const ALL: [Method; 3] = [Method::Mean, Method::Pca, Method::PcaPooled];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Mean => "mean",
            Method::Pca => "pca",
            Method::PcaPooled => "pca-pooled",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|method| method.to_string() == name);
        found.ok_or_else(|| Error::no_such("method", name, ["mean", "pca", "pca-pooled"]))
    }
}

/// Which positions of a prompt stand for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// Its last token.
    #[default]
    Last,
    /// The mean over its tokens, without the one at position 0, whose activations are huge whatever the text, unless it is
    /// the only one.
    Mean,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Pool::Last { "last" } else { "mean" })
    }
}

impl FromStr for Pool {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "last" => Ok(Pool::Last),
            "mean" => Ok(Pool::Mean),
            other => Err(Error::no_such("pooling", other, ["last", "mean"])),
        }
    }
}

/// What sets two sets of activations apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Contrast {
    /// Of length 1; the positive set projects higher on it than the negative.
    pub unit: Vec<f64>,
    /// The distance between the means of both sets along it.
    pub length: f64,
    /// The share of the (centred) activations' variance along it; none for [`Method::Mean`].
    pub explained: Option<f64>,
}

/// A direction at a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Direction {
    /// Where it was found, and where it is added.
    pub site: Site,
    /// How it was found.
    pub method: Method,
    /// Where prompts were read.
    pub pool: Pool,
    /// Of length 1, the axes after the position flattened.
    pub unit: Vec<f32>,
    /// Its natural length: how far the two sets are apart along it.
    pub length: f64,
    /// Mean length of the activations that it was found from.
    pub norm: f64,
    /// See [`Contrast::explained`].
    pub explained: Option<f64>,
    /// The axes after the position: `[dim]`, `[neuron]` or `[head, dim]`.
    pub shape: Vec<usize>,
}

/// Compares two sets of activations; none where they do not differ.
///
/// # Errors
/// [`Error::Request`] for an empty set, or for pairs with sets of different size.
pub fn contrast(positive: &[Vec<f32>], negative: &[Vec<f32>], method: Method) -> Result<Option<Contrast>> {
    let (n, m) = (positive.len(), negative.len());
    if n == 0 || m == 0 {
        return Err(Error::request(format!("a direction needs prompts of both kinds, not {n} positive, {m} negative")));
    }
    if method == Method::Pca && n != m {
        return Err(Error::request(format!(
            "pca takes pairs, but there are {n} positive and {m} negative prompts; use pca-pooled or mean"
        )));
    }
    let (up, down) = (mean(positive), mean(negative));
    let difference: Vec<f64> = up.iter().zip(&down).map(|(a, b)| a - b).collect();
    let size = norm(&up).max(norm(&down));
    let (mut unit, explained) = match method {
        Method::Mean => (difference.clone(), None),
        Method::Pca => {
            // Centred pairs are ± half their difference: the rows' scatter is that of the differences.
            let rows = positive.iter().zip(negative);
            first_component(rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()))
        }
        Method::PcaPooled => {
            let all: Vec<Vec<f32>> = positive.iter().chain(negative).cloned().collect();
            let center = mean(&all);
            first_component(all.iter().map(|x| x.iter().zip(&center).map(|(x, c)| f64::from(*x) - c).collect()))
        }
    };
    let scale = norm(&unit);
    if scale <= 1e-6 * size {
        return Ok(None); // what is left is rounding
    }
    unit.iter_mut().for_each(|x| *x /= scale);
    let length = dot(&difference, &unit);
    if length < 0.0 {
        unit.iter_mut().for_each(|x| *x = -*x);
    }
    Ok(Some(Contrast { unit, length: length.abs(), explained }))
}

/// The first right singular vector of rows, as long as the rows are along it, and its share of their squared length.
fn first_component(rows: impl Iterator<Item = Vec<f64>>) -> (Vec<f64>, Option<f64>) {
    let rows: Vec<Vec<f64>> = rows.collect();
    let (n, d) = (rows.len(), rows.first().map_or(0, Vec::len));
    let (axes, total) = components(&DMatrix::from_fn(n, d, |row, dim| rows[row][dim]), 1);
    let share = |value: f64| if total > 0.0 { value / total } else { 0.0 };
    axes.into_iter()
        .next()
        .map_or((vec![0.0; d], Some(0.0)), |(value, axis)| (axis.iter().copied().collect(), Some(share(value))))
}

/// Directions at several sites, from one run of each set; with them the sites where the sets do not differ.
///
/// # Errors
/// [`Error::Request`] for a site that directions cannot be added to, and as [`contrast`] and [`Plan::run`].
pub fn from_prompts(
    model: &Gpt2,
    positive: &Tokens,
    negative: &Tokens,
    sites: &[Site],
    method: Method,
    pool: Pool,
) -> Result<(Vec<Direction>, Vec<Site>)> {
    if let Some(site) = sites.iter().find(|site| !takes_directions(**site)) {
        return Err(Error::request(format!(
            "a direction cannot be added to `{site}`: it has no vector per position; use resid_pre, mlp_post, z …"
        )));
    }
    let (up, down) = (pooled(model, positive, sites, pool)?, pooled(model, negative, sites, pool)?);
    let (mut found, mut equal) = (Vec::new(), Vec::new());
    for ((site, up), down) in sites.iter().zip(up).zip(down) {
        let Some(contrast) = contrast(&up, &down, method)? else {
            equal.push(*site);
            continue;
        };
        let lengths = up.iter().chain(&down).map(|x| norm(&x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()));
        found.push(Direction {
            site: *site,
            method,
            pool,
            unit: contrast.unit.iter().map(|x| *x as f32).collect(),
            length: contrast.length,
            norm: lengths.sum::<f64>() / (up.len() + down.len()) as f64,
            explained: contrast.explained,
            shape: site.shape(&model.config().extents(1, 1, 0))[2..].to_vec(),
        });
    }
    Ok((found, equal))
}

/// Whether each position has a vector there that later sites depend on.
pub(crate) fn takes_directions(site: Site) -> bool {
    let axes = site.axes();
    axes.get(1) == Some(&Axis::Pos) && !axes.contains(&Axis::One) && !axes.contains(&Axis::Vocab)
}

/// One activation per site and prompt.
fn pooled(model: &Gpt2, tokens: &Tokens, sites: &[Site], pool: Pool) -> Result<Vec<Vec<Vec<f32>>>> {
    /// Prompts that pass through the model at once.
    const BATCH: usize = 32;
    let all = memory::in_batches(tokens.len(), BATCH, &mut |part| {
        let batch = tokens.slice(part);
        let trace = Plan::new().reads(sites.iter().copied()).logits(LogitsAt::None).run(model, &batch)?;
        let of = |prompt: usize, site: &Site| -> Result<Vec<f32>> {
            let length = batch.row(prompt).len();
            let (first, n) = match pool {
                Pool::Last => (length - 1, 1),
                Pool::Mean if length > 1 => (1, length - 1),
                Pool::Mean => (0, 1),
            };
            let rows = to_f32(&trace.get(*site)?.get(prompt)?.narrow(0, first, n)?)?;
            let rows: Vec<Vec<f32>> = rows.chunks(rows.len() / n).map(<[f32]>::to_vec).collect();
            Ok(mean(&rows).into_iter().map(|x| x as f32).collect())
        };
        (0..batch.len()).map(|prompt| sites.iter().map(|site| of(prompt, site)).collect::<Result<Vec<_>>>()).collect()
    })?;
    Ok((0..sites.len()).map(|i| all.iter().map(|own| own[i].clone()).collect()).collect())
}

impl Direction {
    /// The edit that adds `amount` times the direction at every position; none for 0, which changes nothing.
    ///
    /// # Errors
    /// [`Error::Request`] for an amount that is not finite.
    pub fn edit(&self, amount: f64) -> Result<Option<Edit>> {
        if !amount.is_finite() {
            return Err(Error::request(format!("a direction cannot be added {amount} times")));
        }
        if amount == 0.0 {
            return Ok(None);
        }
        let value: Vec<f32> = self.unit.iter().map(|x| (f64::from(*x) * amount) as f32).collect();
        Ok(Some(Edit::add(self.site, &Tensor::from_vec(value, self.shape.as_slice(), &Device::Cpu)?)))
    }

    /// A direction of the same site and lengths that points anywhere: what any push of this size would do.
    pub fn random(&self, seed: u64, draw: u64) -> Self {
        let mut rng = stream(seed, &format!("direction at {}", self.site), draw);
        let values: Vec<f64> = self.unit.iter().map(|_| normal(&mut rng)).collect();
        let size = norm(&values);
        Self { unit: values.into_iter().map(|x| (x / size) as f32).collect(), explained: None, ..self.clone() }
    }
}

/// What a file of directions says of each, beside its numbers. Lengths are texts: not every reader of JSON returns the
/// number that was written, to the last bit.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    site: String,
    method: String,
    pool: String,
    length: String,
    norm: String,
    explained: Option<String>,
}

/// The key under which a safetensors file keeps its entries.
const ENTRIES: &str = "interp.directions";
/// The key of the model's fingerprint.
const MODEL: &str = "interp.model";

/// Writes directions as safetensors, a unit vector per site, with the rest as JSON in its metadata.
///
/// `fingerprint` says which model they belong to: the sha256 of its weights.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`].
pub fn save(path: &Path, directions: &[Direction], fingerprint: &str) -> Result<()> {
    let entry = |d: &Direction| Entry {
        site: d.site.to_string(),
        method: d.method.to_string(),
        pool: d.pool.to_string(),
        length: d.length.to_string(),
        norm: d.norm.to_string(),
        explained: d.explained.map(|share| share.to_string()),
    };
    let entries: Vec<Entry> = directions.iter().map(entry).collect();
    let entries = serde_json::to_string(&entries).map_err(|e| Error::Bug(e.to_string()))?;
    let tensors = directions
        .iter()
        .map(|d| Ok((d.site.to_string(), Tensor::from_slice(&d.unit, d.shape.as_slice(), &Device::Cpu)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = [(ENTRIES.to_string(), entries), (MODEL.to_string(), fingerprint.to_string())];
    weights::write_tensors(path, &tensors, metadata.into())
}

/// Reads directions for a model of this fingerprint.
///
/// # Errors
/// [`Error::Data`] for a file that holds no directions or those of another model, and as [`weights::read_tensors`].
pub fn load(path: &Path, model: &Gpt2, fingerprint: &str) -> Result<Vec<Direction>> {
    let bytes = weights::read_tensors(path, 1 << 30)?;
    let fault = |what: String| Error::data(path, what);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| fault(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let (Some(entries), Some(of)) = (metadata.get(ENTRIES), metadata.get(MODEL)) else {
        return Err(fault("holds no directions; steer writes such files".into()));
    };
    if of != fingerprint {
        return Err(fault(format!(
            "its directions are of a model with sha256 {}, this one has {}: name that model, or find them anew",
            brief(of),
            brief(fingerprint)
        )));
    }
    let entries: Vec<Entry> = serde_json::from_str(entries).map_err(|e| fault(format!("its directions: {e}")))?;
    let tensors =
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| fault(shorten(&said_by_candle(&e))))?;
    if entries.len() > tensors.len() {
        return Err(fault(format!("tells of {} directions and holds {}", entries.len(), tensors.len())));
    }
    let one = |entry: Entry| -> Result<Direction> {
        let site: Site = entry.site.parse().map_err(|e| fault(format!("{e}")))?;
        let layers = model.config().n_layer;
        if site.layer() >= Some(layers) || !takes_directions(site) {
            return Err(fault(format!("`{site}` is no site of this model that takes a direction")));
        }
        let unit = tensors.get(&entry.site).ok_or_else(|| fault(format!("has no tensor `{site}`")))?;
        let shape = site.shape(&model.config().extents(1, 1, 0))[2..].to_vec();
        let values = to_f32(unit)?;
        if unit.dims() != shape || values.iter().any(|x| !x.is_finite()) {
            return Err(fault(format!("`{site}` has shape {:?} or is not finite, wanted {shape:?}", unit.dims())));
        }
        let number = |text: &str| match text.parse::<f64>() {
            Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
            _ => Err(fault(format!("`{site}` has the length `{}`", shorten(text)))),
        };
        Ok(Direction {
            site,
            method: entry.method.parse().map_err(|e| fault(format!("{e}")))?,
            pool: entry.pool.parse().map_err(|e| fault(format!("{e}")))?,
            unit: values,
            length: number(&entry.length)?,
            norm: number(&entry.norm)?,
            explained: entry.explained.as_deref().map(number).transpose()?,
            shape,
        })
    };
    entries.into_iter().map(one).collect()
}

/// The beginning of a hash.
fn brief(hash: &str) -> String {
    hash.chars().take(12).collect::<String>() + "…"
}

fn mean(rows: &[Vec<f32>]) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
    rows.iter().for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
    sum.iter_mut().for_each(|x| *x /= rows.len() as f64);
    sum
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

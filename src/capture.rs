//! Capturing many sites: how much it would be, and one site at a time.

use polars::prelude::*;

use crate::config::Config;
use crate::error::Result;
use crate::frame;
use crate::gpt2::Gpt2;
use crate::plan::{Plan, Trace};
use crate::site::{Axis, Site};
use crate::tokens::Tokens;

/// What a capture amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Sites.
    pub sites: usize,
    /// Bytes of all activations in f32, padding included.
    pub bytes: u64,
    /// Rows of the tidy frame.
    pub rows: u64,
    /// Bytes of memory for the values and the frame, at the most at once.
    pub memory: u64,
}

/// How the values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One row per element; sites are handled one at a time.
    Tidy,
    /// One row per token with an array column per site; all sites are held at once.
    Wide,
}

/// What capturing `sites` on `tokens` amounts to, before anything runs.
pub fn estimate(config: &Config, tokens: &Tokens, sites: &[Site], layout: Layout) -> Estimate {
    let extents = config.extents(tokens.len(), tokens.longest(), 0);
    let mut estimate = Estimate { sites: sites.len(), bytes: 0, rows: 0, memory: 0 };
    let columns = 3 + frame::axes_of(sites).len() as u64;
    let mut largest = 0;
    for site in sites {
        let elements: u64 = site.shape(&extents).iter().map(|&n| n as u64).product();
        let rows: u64 = (0..tokens.len()).map(|prompt| real_elements(*site, config, tokens.row(prompt).len())).sum();
        estimate.bytes += 4 * elements;
        estimate.rows += rows;
        // The value as tensor and as list, then index columns, kept values and the columns of the frame.
        largest = largest.max(8 * elements + 8 * rows * (columns + 1));
    }
    estimate.memory = match layout {
        Layout::Tidy => largest,
        Layout::Wide => 3 * estimate.bytes,
    };
    estimate
}

/// Elements of a site that belong to one prompt of `length` tokens.
fn real_elements(site: Site, config: &Config, length: usize) -> u64 {
    let one = config.extents(1, 1, 0);
    let per_place: u64 = site.shape(&one).iter().map(|&n| n as u64).product();
    let length = length as u64;
    per_place * if site.is_attention_map() { length * (length + 1) / 2 } else { length }
}

/// Captures sites as tidy frames, one after the other in forward order, each handed to `receive`.
///
/// The columns are `site`, `prompt`, `layer`, the axes of all `sites` together, `value`.
///
/// # Errors
/// As [`Plan::run`], and whatever `receive` returns.
pub fn tidy(
    model: &Gpt2,
    tokens: &Tokens,
    plan: &Plan,
    sites: &[Site],
    receive: &mut dyn FnMut(Site, DataFrame) -> Result<()>,
) -> Result<Trace> {
    let axes = frame::axes_of(sites);
    plan.run_each(model, tokens, &mut |site, value| receive(site, frame::tidy(site, value, tokens, &axes)?))
}

/// The schema of [`tidy`]'s frames.
pub fn tidy_schema(sites: &[Site]) -> Schema {
    let names = ["site", "prompt", "layer"].into_iter().chain(frame::axes_of(sites).into_iter().map(Axis::name));
    let mut schema: Schema = names
        .map(|name| Field::new(name.into(), if name == "site" { DataType::String } else { DataType::UInt32 }))
        .collect();
    schema.with_column("value".into(), DataType::Float32);
    schema
}

/// Root mean square of every site, prompt and position: what a picture of a capture shows.
///
/// Attention maps are summed up by query.
///
/// # Errors
/// A frame that is not one of [`tidy`]'s.
pub fn summary(frame: &DataFrame, tokens: &Tokens) -> Result<DataFrame> {
    let site = frame.column("site")?.str()?.get(0).unwrap_or_default().to_string();
    let prompts: Vec<u32> = frame.column("prompt")?.u32()?.into_no_null_iter().collect();
    let place = if frame.column("pos").is_ok_and(|c| c.null_count() == 0) { "pos" } else { "query" };
    let places: Vec<u32> = frame.column(place)?.u32()?.into_no_null_iter().collect();
    let values: Vec<f32> = frame.column("value")?.f32()?.into_no_null_iter().collect();
    let mut sums: Vec<Vec<(f64, u64)>> = (0..tokens.len()).map(|p| vec![(0.0, 0); tokens.row(p).len()]).collect();
    for ((&prompt, &pos), &value) in prompts.iter().zip(&places).zip(&values) {
        if value.is_finite() {
            let sum = &mut sums[prompt as usize][pos as usize];
            *sum = (sum.0 + f64::from(value) * f64::from(value), sum.1 + 1);
        }
    }
    let flat = || sums.iter().enumerate().flat_map(|(p, row)| row.iter().enumerate().map(move |(i, s)| (p, i, s)));
    Ok(df!(
        "site" => flat().map(|_| site.clone()).collect::<Vec<_>>(),
        "prompt" => flat().map(|(p, _, _)| p as u32).collect::<Vec<_>>(),
        "pos" => flat().map(|(_, i, _)| i as u32).collect::<Vec<_>>(),
        "token" => flat().map(|(p, i, _)| tokens.text(p, i).into_owned()).collect::<Vec<_>>(),
        "rms" => flat().map(|(_, _, (sum, n))| (sum / (*n).max(1) as f64).sqrt()).collect::<Vec<_>>(),
    )?)
}

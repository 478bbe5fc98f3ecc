//! Lists: the sites of a model, the models that there are.

use polars::prelude::*;

use crate::config::{Config, PUBLISHED};
use crate::embedded;
use crate::error::Result;
use crate::site::{Axis, Extents, Site};
use crate::weights::{Places, Repository, cached};

/// Every site of a model in forward order.
///
/// | column | |
/// |---|---|
/// | `site`, `name` | short name, TransformerLens's name |
/// | `axes`, `shape` | for a batch of B prompts of P tokens |
/// | `bytes_per_token` | in f32; attention maps: of one token among P = 1 |
///
/// # Errors
/// None in practice.
pub fn sites(config: &Config) -> Result<DataFrame> {
    let one = config.extents(1, 1, 0);
    let all: Vec<Site> = Site::all(config.n_layer).collect();
    let axes = |site: &Site| -> String {
        let names: Vec<&str> = site.axes().iter().filter(|a| **a != Axis::One).map(|a| a.name()).collect();
        names.join(" ")
    };
    Ok(df!(
        "site" => all.iter().map(Site::to_string).collect::<Vec<_>>(),
        "name" => all.iter().map(|s| s.long()).collect::<Vec<_>>(),
        "axes" => all.iter().map(axes).collect::<Vec<_>>(),
        "shape" => all.iter().map(|s| shape(*s, &one)).collect::<Vec<_>>(),
        "bytes_per_token" => all.iter().map(|s| 4 * s.shape(&one).iter().product::<usize>() as u64).collect::<Vec<_>>(),
    )?)
}

/// A shape with letters where it depends on the batch.
fn shape(site: Site, one: &Extents) -> String {
    let dims = site.axes().iter().zip(site.shape(one)).map(|(axis, len)| match axis {
        Axis::Prompt => "B".to_string(),
        Axis::Pos | Axis::Query | Axis::Key => "P".to_string(),
        _ => len.to_string(),
    });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}

/// The embedded model and the published sizes.
///
/// | column | |
/// |---|---|
/// | `name`, `repository` | what `--model` takes, and where it comes from |
/// | `layers`, `heads`, `width`, `context`, `vocabulary`, `parameters` | |
/// | `bytes` | of the weights in f32 |
/// | `run_bytes` | to read a full context in f32, weights included, about |
/// | `finetune_bytes` | to fine-tune all parameters in f32 on rows of a full context, one at a time, at most |
/// | `cached` | whether it is on this machine |
///
/// # Errors
/// [`crate::Error::Data`] if the embedded model is broken.
pub fn models(places: &Places) -> Result<DataFrame> {
    let tiny = embedded::config()?;
    let mut rows = vec![(embedded::NAME.to_string(), "built in".to_string(), tiny, true)];
    for (name, repository, ..) in PUBLISHED {
        let Some(config) = Config::published(name) else { continue };
        let cached = cached(&Repository::parse(name)?, places).is_some();
        rows.push((name.to_string(), repository.to_string(), config, cached));
    }
    let column = |f: fn(&Config) -> u64| rows.iter().map(|row| f(&row.2)).collect::<Vec<u64>>();
    Ok(df!(
        "name" => rows.iter().map(|r| r.0.clone()).collect::<Vec<_>>(),
        "repository" => rows.iter().map(|r| r.1.clone()).collect::<Vec<_>>(),
        "layers" => column(|c| c.n_layer as u64),
        "heads" => column(|c| c.n_head as u64),
        "width" => column(|c| c.n_embd as u64),
        "context" => column(|c| c.n_positions as u64),
        "vocabulary" => column(|c| c.vocab_size as u64),
        "parameters" => column(Config::parameters),
        "bytes" => column(|c| 4 * c.parameters()),
        "run_bytes" => column(Config::run_memory),
        "finetune_bytes" => column(Config::tune_memory),
        "cached" => rows.iter().map(|r| r.3).collect::<Vec<_>>(),
    )?)
}

//! Scores as they come.

use polars::prelude::*;

use super::judge::Score;
use crate::error::Result;
use crate::site::Site;

/// What came out: a row per score.
#[derive(Default)]
pub(super) struct Table {
    probe: Vec<String>,
    site: Vec<String>,
    layer: Vec<Option<u32>>,
    split: Vec<&'static str>,
    seed: Vec<u64>,
    metric: Vec<&'static str>,
    value: Vec<f64>,
}

impl Table {
    pub(super) fn push(
        &mut self,
        (probe, site): (&str, Site),
        (split, seed): (&'static str, u64),
        scores: impl IntoIterator<Item = Score>,
    ) {
        for (metric, value) in scores {
            self.probe.push(probe.to_string());
            self.site.push(site.to_string());
            self.layer.push(site.layer().map(|layer| layer as u32));
            self.split.push(split);
            self.seed.push(seed);
            self.metric.push(metric);
            self.value.push(value);
        }
    }

    /// Columns `probe`, `site`, `layer`, `split`, `seed`, `metric`, `value`.
    pub(super) fn frame(self) -> Result<DataFrame> {
        let Self { probe, site, layer, split, seed, metric, value } = self;
        Ok(df!("probe" => probe, "site" => site, "layer" => layer, "split" => split, "seed" => seed,
            "metric" => metric, "value" => value)?)
    }
}

//! Scores over splits.

use std::collections::BTreeMap;

use polars::prelude::DataFrame;

use crate::error::Result;
use crate::stats::{Interval, bootstrap};

/// Means and 95 % intervals over splits, of a frame of [`super::layers()`].
pub struct Summary {
    /// The sites of each probe, in their order.
    sites: Vec<(String, Vec<String>)>,
    /// By probe, split and metric, then by site.
    scores: BTreeMap<(String, String, String), BTreeMap<usize, Interval>>,
}

impl Summary {
    /// Sums up a frame.
    ///
    /// # Errors
    /// A frame without those columns.
    pub fn of(frame: &DataFrame) -> Result<Self> {
        let text = |name: &str| -> Result<Vec<&str>> {
            Ok(frame.column(name)?.str()?.iter().map(Option::unwrap_or_default).collect())
        };
        let (probe, site, split, metric) = (text("probe")?, text("site")?, text("split")?, text("metric")?);
        let value = frame.column("value")?.f64()?;
        let mut sites: Vec<(String, Vec<String>)> = Vec::new();
        let mut values: BTreeMap<(String, String, String), BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
        for i in 0..frame.height() {
            let at = sites.iter().position(|(name, _)| name == probe[i]).unwrap_or_else(|| {
                sites.push((probe[i].to_string(), Vec::new()));
                sites.len() - 1
            });
            let own = &mut sites[at].1;
            let place = own.iter().position(|name| name == site[i]).unwrap_or_else(|| {
                own.push(site[i].to_string());
                own.len() - 1
            });
            let key = (probe[i].to_string(), split[i].to_string(), metric[i].to_string());
            let value = value.get(i).unwrap_or(f64::NAN);
            values.entry(key).or_default().entry(place).or_default().push(value);
        }
        let interval = |(site, values): (usize, Vec<f64>)| (site, bootstrap(&values, 0));
        let scores = values.into_iter().map(|(key, own)| (key, own.into_iter().map(interval).collect())).collect();
        Ok(Self { sites, scores })
    }

    /// The names of the probes.
    pub fn probes(&self) -> Vec<String> {
        self.sites.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The sites of a probe.
    pub fn sites(&self, probe: &str) -> Vec<String> {
        self.sites.iter().find(|(name, _)| name == probe).map(|(_, sites)| sites.clone()).unwrap_or_default()
    }

    /// A score by place among the sites.
    pub fn get(&self, probe: &str, split: &str, metric: &str) -> Option<BTreeMap<usize, Interval>> {
        self.scores.get(&(probe.to_string(), split.to_string(), metric.to_string())).cloned()
    }

    /// The score that a probe goes by: accuracy, or R².
    pub fn score(&self, probe: &str) -> &'static str {
        if self.get(probe, "test", "r2").is_some() { "r2" } else { "accuracy" }
    }
}

//! Estimated effects held against true ones.

use interp::effect::Scale;
use interp::figure::{self, Figure};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::patch::{self, Options};
use interp::scores::pearson;
use interp::sweep::{Cell, Sweep};
use interp::{Gpt2, Result};
use polars::prelude::{DataFrame, df};
use serde_json::{Value, json};

/// Where estimates are known to fail: the stream itself, and MLPs.
const FAILING: [&str; 2] = ["resid_pre", "mlp_out"];
/// Pairs whose cells are patched in truth.
const PAIRS: usize = 10;

/// Cells with the change of the metric that was estimated and the true one. They are compared as changes: as shares of what tells
/// the two runs of their pair apart, the pairs whose runs answer nearly alike would decide.
pub struct Calibration {
    points: Vec<Point>,
}

struct Point {
    pair: usize,
    sweep: &'static str,
    cell: Cell,
    estimated: f64,
    exact: f64,
    scale: Scale,
}

/// Pearson's correlation of estimates and the truth; none for fewer than three.
pub fn correlation(points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (estimated, exact): (Vec<f64>, Vec<f64>) = points.unzip();
    if estimated.len() < 3 { None } else { pearson(&estimated, &exact) }
}

impl Calibration {
    /// Patches, in truth, the strongest `k` cells of some sweeps, and all of the sweeps where estimates are known to fail.
    pub fn of(
        model: &Gpt2,
        pairs: &[Pair],
        sweeps: &[Sweep],
        metric: Metric,
        (k, options): (usize, Options),
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let m = metric as usize;
        let mut failing = Vec::new();
        for name in FAILING {
            failing.extend(Sweep::named(name)?);
        }
        let others: Vec<Sweep> = sweeps.iter().filter(|sweep| !FAILING.contains(&sweep.name)).copied().collect();
        let pairs = &pairs[..pairs.len().min(PAIRS)];
        let mut points = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            let estimate = |sweeps: &[Sweep]| patch::attribute(model, pair, sweeps, &[metric], options);
            let all = estimate(&failing)?;
            let mut chosen: Vec<(Sweep, Cell, f64)> =
                all.cells.iter().map(|(sweep, cell, values)| (*sweep, *cell, values[m])).collect();
            if !others.is_empty() {
                let found = estimate(&others)?;
                let mut strongest: Vec<(Sweep, Cell, f64)> =
                    found.cells.iter().map(|(sweep, cell, values)| (*sweep, *cell, values[m])).collect();
                let size = |value: f64| (value - found.base[m]).abs();
                strongest.sort_by(|a, b| size(b.2).total_cmp(&size(a.2)));
                chosen.extend(strongest.into_iter().take(k));
            }
            let cells = chosen.iter().map(|(sweep, cell, _)| (*sweep, *cell)).collect();
            let truth = patch::patch_cells(model, pair, cells, options, &mut |_, _| Ok(()))?;
            let scale = truth.scale(metric);
            for ((sweep, cell, estimated), (_, _, values)) in chosen.into_iter().zip(&truth.cells) {
                let (estimated, exact) = (estimated - scale.base, values[m] - scale.base);
                points.push(Point { pair: index, sweep: sweep.name, cell, estimated, exact, scale });
            }
            progress(index + 1, pairs.len())?;
        }
        Ok(Self { points })
    }

    fn of_sweep(&self, name: &str) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.sweep == name)
    }

    fn sweeps(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = self.points.iter().map(|point| point.sweep).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// By sweep: how many cells, their correlation, and the worst.
    fn rows(&self) -> Vec<(&'static str, usize, Option<f64>, Option<&Point>)> {
        let row = |name: &'static str| {
            let error = |point: &Point| (point.estimated - point.exact).abs();
            let worst = self.of_sweep(name).max_by(|a, b| error(a).total_cmp(&error(b)));
            let r = correlation(self.of_sweep(name).map(|point| (point.estimated, point.exact)));
            (name, self.of_sweep(name).count(), r, worst)
        };
        self.sweeps().into_iter().map(row).collect()
    }

    /// For people.
    pub fn words(&self) -> String {
        let pairs = self.points.iter().map(|point| point.pair + 1).max().unwrap_or(0);
        let mut lines = vec![format!("estimated changes against true ones, pairs 0 to {}:", pairs.saturating_sub(1))];
        for (name, n, r, worst) in self.rows() {
            let r = r.map_or("none".into(), |r| format!("{r:.3}"));
            let worst = worst.map_or(String::new(), |point| {
                format!("; the worst, {}: {:.3} instead of {:.3}", point.cell, point.estimated, point.exact)
            });
            lines.push(format!("  {name:<30} {n} cells, correlation {r}{worst}"));
        }
        lines.join("\n")
    }

    /// For run.json.
    pub fn record(&self) -> Value {
        let row = |(name, n, r, worst): (&str, usize, Option<f64>, Option<&Point>)| {
            let worst = worst.map(|point| {
                json!({ "cell": point.cell.to_string(), "pair": point.pair, "estimated": point.estimated, "exact": point.exact })
            });
            json!({ "sweep": name, "cells": n, "correlation": r, "worst": worst })
        };
        self.rows().into_iter().map(row).collect()
    }

    /// Every cell.
    ///
    /// | column | |
    /// |---|---|
    /// | `pair`, `sweep`, `site`, `layer`, `head`, `pos`, `src` | which |
    /// | `change`, `exact_change` | of the metric, as estimated, and as patched |
    /// | `effect`, `exact` | these as shares of the difference of both runs; null where that is within rounding |
    pub fn frame(&self) -> Result<DataFrame> {
        let column = |of: &dyn Fn(&Cell) -> Option<usize>| {
            self.points.iter().map(|point| of(&point.cell).map(|x| x as u32)).collect::<Vec<_>>()
        };
        let share = |of: &dyn Fn(&Point) -> f64| {
            self.points.iter().map(|point| point.scale.effect(point.scale.base + of(point))).collect::<Vec<_>>()
        };
        Ok(df!(
            "pair" => self.points.iter().map(|point| point.pair as u32).collect::<Vec<_>>(),
            "sweep" => self.points.iter().map(|point| point.sweep).collect::<Vec<_>>(),
            "site" => self.points.iter().map(|point| point.cell.site.kind()).collect::<Vec<_>>(),
            "layer" => self.points.iter().map(|point| point.cell.layer as u32).collect::<Vec<_>>(),
            "head" => column(&|cell| cell.head),
            "pos" => column(&|cell| cell.pos),
            "src" => column(&|cell| cell.key),
            "change" => self.points.iter().map(|point| point.estimated).collect::<Vec<_>>(),
            "exact_change" => self.points.iter().map(|point| point.exact).collect::<Vec<_>>(),
            "effect" => share(&|point| point.estimated),
            "exact" => share(&|point| point.exact),
        )?)
    }

    /// True effects against estimates.
    pub fn figure(&self) -> Figure {
        let points: Vec<(f64, f64, bool)> =
            self.points.iter().map(|point| (point.estimated, point.exact, !FAILING.contains(&point.sweep))).collect();
        let r = |(name, _, r, _): (&str, usize, Option<f64>, Option<&Point>)| r.map(|r| format!("{name} r = {r:.3}"));
        let note = self.rows().into_iter().filter_map(r).collect::<Vec<_>>().join(", ");
        figure::calibration(&points, &note, ("what was asked for", "resid_pre, mlp_out"))
    }
}

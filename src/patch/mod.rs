//! Activation patching: one activation of one run is put into another, and the answer is measured again.
//!
//! Every cell of a sweep is an experiment of its own, and a branch of one [`Trunk`].

mod attributed;

use std::collections::BTreeMap;

use candle_core::Tensor;
use polars::prelude::{DataFrame, df};

use crate::config::Config;
use crate::edit::Edit;
use crate::effect::{Effect, Scale, over_pairs};
use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::memory;
use crate::metric::{Measures, Metric};
use crate::pair::{Noise, Pair};
use crate::plan::Plan;
use crate::random::{normal, stream};
use crate::site::Site;
use crate::sweep::{self, Cell, Sweep};
use crate::trunk::{End, Trunk, Wanted};

pub use attributed::attribute;

/// Into which run activations are put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Clean activations into the corrupted run, as TransformerLens does: what brings the answer back?
    #[default]
    Denoise,
    /// Corrupted activations into the clean run: what destroys the answer?
    Noise,
}

impl Direction {
    /// `denoise` or `noise`.
    pub fn name(self) -> &'static str {
        if self == Direction::Denoise { "denoise" } else { "noise" }
    }
}

/// How sweeps are carried out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Into which run activations are put.
    pub direction: Direction,
    /// Only cells of these layers, both ends included; all without it.
    pub layers: Option<(usize, usize)>,
    /// Bytes that the experiments of one pair may take at once; none for what is usual.
    pub memory: Option<u64>,
}

/// The sweeps of one pair.
#[derive(Clone, Debug)]
pub struct Patched {
    /// Every cell with the metrics of its experiment, in the order of [`Metric::ALL`].
    pub cells: Vec<(Sweep, Cell, Vec<f64>)>,
    /// Metrics of the run that was patched.
    pub base: Vec<f64>,
    /// Metrics of the run that activations came from.
    pub source: Vec<f64>,
    /// What rounding may make of the difference of these two, by metric.
    pub rounding: Vec<f64>,
    /// Cells that were not run because they cannot change the end: their activation is the same in both runs, or what it
    /// feeds is not read any more.
    pub equal: usize,
    /// The largest change of the logit difference by a cell that is replaced by itself, one cell per sweep and layer,
    /// computed like any other; 0 but for rounding.
    pub identity: f64,
    /// How much of the logit difference comes back when the first residual stream is replaced whole: 1 but for rounding; no number
    /// where both runs answer alike.
    pub restored: f64,
}

impl Patched {
    /// What effects on a metric are measured by: 0 where the patched run is, 1 where the run that activations came from is.
    pub fn scale(&self, metric: Metric) -> Scale {
        Scale::of(metric, &self.base, &self.source, &self.rounding)
    }
}

/// Carries out sweeps on one pair; `progress(done, all)` counts cells.
///
/// Metrics are of the clean prompt's answer in either direction.
///
/// # Errors
/// [`Error::TooLong`] and other faults of the prompts, [`Error::TryAgain`] for too little memory, and what `progress`
/// returns.
pub fn patch(
    model: &Gpt2,
    pair: &Pair,
    sweeps: &[Sweep],
    options: Options,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Patched> {
    patch_cells(model, pair, cells(model.config(), pair, sweeps, options.layers), options, progress)
}

/// The cells of some sweeps that lie in these layers.
fn cells(config: &Config, pair: &Pair, sweeps: &[Sweep], layers: Option<(usize, usize)>) -> Vec<(Sweep, Cell)> {
    let inside = |cell: &Cell| layers.is_none_or(|(first, last)| (first..=last).contains(&cell.layer));
    sweeps
        .iter()
        .flat_map(|sweep| sweep.cells(config, pair.len()).into_iter().map(|cell| (*sweep, cell)))
        .filter(|(_, cell)| inside(cell))
        .collect()
}

/// As [`patch`], for some cells; the layers of `options` do not matter.
///
/// # Errors
/// As [`patch`].
pub fn patch_cells(
    model: &Gpt2,
    pair: &Pair,
    cells: Vec<(Sweep, Cell)>,
    options: Options,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Patched> {
    let Options { direction, layers: _, memory } = options;
    let sites = sweep::sites(cells.iter().map(|(_, cell)| cell));
    let wanted = Wanted { loss_from: None, memory: memory.map(|bytes| bytes / 2) };
    let grow = |tokens, plan| Trunk::grow(model, plan, tokens, sites.iter().copied(), wanted);
    let clean = grow(pair.clean(), Plan::new())?;
    let corrupt = grow(pair.corrupt(), corruption(model, pair, None)?)?;
    let (trunk, other) = match direction {
        Direction::Denoise => (&corrupt, &clean),
        Direction::Noise => (&clean, &corrupt),
    };
    let measures = Measures::new(&clean.end().logits);
    let measure = |end: &End| measures.of(&end.logits, pair.target());
    let (base, source) = (measure(trunk.end()), measure(other.end()));
    let rounding = measures.rounding(pair.target(), model.dtype());

    let experiments: Vec<Vec<Cell>> = cells.iter().map(|(_, cell)| vec![*cell]).collect();
    let mut found: Vec<Vec<f64>> = vec![base.clone(); cells.len()];
    let (mut done, mut equal) = (0, 0);
    trunk.run(&experiments, other.values(), &mut |i, end| {
        match end {
            Some(end) => found[i] = measure(&end),
            None => equal += 1,
        }
        done += 1;
        progress(done, experiments.len())
    })?;

    let mut probes: BTreeMap<(&str, usize), Cell> = BTreeMap::new();
    for (sweep, cell) in &cells {
        probes.insert((sweep.name, cell.layer), *cell);
    }
    let probes: Vec<Cell> = probes.into_values().collect();
    let mut identity: f64 = 0.0;
    trunk.run_unchanged(&probes, &mut |_, end| {
        identity = identity.max((measure(&end)[0] - base[0]).abs());
        Ok(())
    })?;
    let mut restored = base.clone();
    trunk.run(&[vec![Cell::whole(Site::ResidPre(0))]], other.values(), &mut |_, end| {
        restored = end.as_ref().map_or(base.clone(), measure);
        Ok(())
    })?;
    let scale = Scale::of(Metric::LogitDiff, &base, &source, &rounding);
    let restored = scale.effect(restored[0]).unwrap_or(f64::NAN);
    let cells = cells.into_iter().zip(found).map(|((sweep, cell), values)| (sweep, cell, values)).collect();
    Ok(Patched { cells, base, source, rounding, equal, identity, restored })
}

/// What makes the corrupted run beside its tokens: noise on the embeddings, where the pair has some; of one row of a batch, if
/// it is not alone.
fn corruption(model: &Gpt2, pair: &Pair, row: Option<usize>) -> Result<Plan> {
    let Some(Noise { positions, scale, seed, sample }) = pair.noise() else { return Ok(Plan::new()) };
    let tensors = model.tensors();
    let embedding = tensors.iter().find(|(name, _)| name == "wte.weight").map(|(_, tensor)| *tensor);
    let embedding = embedding.ok_or_else(|| Error::Bug("a model without an embedding".into()))?;
    let values = embedding.flatten_all()?.to_dtype(candle_core::DType::F32)?;
    let mean = f64::from(values.mean_all()?.to_scalar::<f32>()?);
    let spread = f64::from(values.affine(1.0, -mean)?.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt();
    let width = model.config().n_embd;
    let mut rng = stream(*seed, "noise on embeddings", *sample);
    let noise: Vec<f32> = (0..positions.len() * width).map(|_| (scale * spread * normal(&mut rng)) as f32).collect();
    let noise = Tensor::from_vec(noise, (positions.len(), width), model.device())?;
    let (first, last) = (positions.start as i64, positions.end as i64 - 1);
    let edit = Edit::add(Site::Embed, &noise).pos(first..=last);
    Ok(Plan::new().edit(if let Some(row) = row { edit.row(row) } else { edit }))
}

/// Bytes that the cells of some sweeps take at most, about, for so many pairs, metrics and the frame of all.
pub fn memory(config: &Config, pairs: &[Pair], sweeps: &[Sweep], options: Options, metrics: usize) -> u64 {
    /// A cell while it is an experiment, what is kept of it for every pair, and a row of the frame with the picture's and page's share.
    const EXPERIMENT: u64 = 512;
    const KEPT: u64 = 256;
    const ROW: u64 = 400;
    let of = |pair: &Pair| sweeps.iter().fold(0, |sum: u64, sweep| sum.saturating_add(sweep.count(config, pair.len())));
    let share = |cells: u64| match options.layers {
        Some((first, last)) => cells / config.n_layer as u64 * (last - first + 1) as u64,
        None => cells,
    };
    let (most, all) =
        pairs.iter().map(of).fold((0, 0_u64), |(most, all), own| (own.max(most), all.saturating_add(share(own))));
    // Rows that sum up all pairs are as many as those of one.
    let rows = all.saturating_add(if pairs.len() > 1 { share(most) } else { 0 });
    let kept = all.saturating_mul(KEPT).saturating_add(memory::product(&[rows, metrics as u64, ROW]));
    kept.saturating_add(share(most).saturating_mul(EXPERIMENT))
}

/// Checks that pairs can be summed up cell by cell.
///
/// # Errors
/// [`Error::Request`] for sweeps by position over prompts that differ in length.
pub fn check<'a>(pairs: &[Pair], sweeps: impl Iterator<Item = &'a Sweep>) -> Result<()> {
    match sweep::misaligned(sweeps, pairs.iter().map(Pair::len)) {
        Some((name, lengths)) => Err(Error::request(format!(
            "sweep {name} goes by position, but the pairs have {lengths:?} tokens: give pairs of one length (--template N \
             draws such pairs from a set), or a sweep over all positions"
        ))),
        None => Ok(()),
    }
}

/// The sweeps of several pairs as a frame.
///
/// | column | |
/// |---|---|
/// | `pair` | which; null in the rows that sum up several pairs |
/// | `sweep`, `site`, `layer` | |
/// | `head`, `neuron`, `pos`, `src` | what the cell covers, null for all; `pos` is the destination in an attention map, `src` what it looks at |
/// | `token` | at `pos` of the clean prompt |
/// | `metric`, `value`, `change` | after patching, and how much that is more than in the patched run; in rows without a pair the means |
/// | `effect` | 0 where the patched run was, 1 where the other run was; in rows without a pair the ratio of means, mean(`change`) / mean(other run − patched run); null where the two runs differ by no more than rounding ([`Measures::rounding`]) |
/// | `low`, `high`, `p` | in rows without a pair, of that ratio: its 95 % bootstrap interval over pairs, and how likely one as far from 0 is by chance ([`Effect`]) |
///
/// # Errors
/// [`Error::Request`] for no pair, and as [`check`].
pub fn frame(pairs: &[Pair], patched: &[Patched], metrics: &[Metric], seed: u64) -> Result<DataFrame> {
    let Some(first) = patched.first() else { return Err(Error::request("there is no pair")) };
    check(pairs, first.cells.iter().map(|(sweep, ..)| sweep))?;
    let mut rows = Rows::default();
    for (index, (pair, one)) in pairs.iter().zip(patched).enumerate() {
        for (sweep, cell, values) in &one.cells {
            for metric in metrics {
                let value = values[*metric as usize];
                rows.push(
                    Some(index as u32),
                    sweep,
                    cell,
                    pair,
                    *metric,
                    (one.base[*metric as usize], value),
                    one.scale(*metric).effect(value),
                    None,
                );
            }
        }
    }
    if patched.len() > 1 {
        for (i, (sweep, cell, _)) in first.cells.iter().enumerate() {
            for metric in metrics {
                let scales: Vec<Scale> = patched.iter().map(|one| one.scale(*metric)).collect();
                let values: Vec<f64> = patched.iter().map(|one| one.cells[i].2[*metric as usize]).collect();
                let ends = (Scale::mean(&scales).base, values.iter().sum::<f64>() / values.len() as f64);
                let sure = over_pairs(&scales, &values, seed);
                rows.push(None, sweep, cell, &pairs[0], *metric, ends, sure.map(|e| e.interval.mean), sure);
            }
        }
    }
    rows.finish()
}

/// Columns on their way.
#[derive(Default)]
struct Rows {
    pair: Vec<Option<u32>>,
    sweep: Vec<&'static str>,
    site: Vec<&'static str>,
    layer: Vec<u32>,
    head: Vec<Option<u32>>,
    neuron: Vec<Option<u32>>,
    pos: Vec<Option<u32>>,
    src: Vec<Option<u32>>,
    token: Vec<Option<String>>,
    metric: Vec<&'static str>,
    value: Vec<f64>,
    change: Vec<f64>,
    effect: Vec<Option<f64>>,
    low: Vec<Option<f64>>,
    high: Vec<Option<f64>>,
    p: Vec<Option<f64>>,
}

impl Rows {
    #[allow(clippy::too_many_arguments)] // one per column
    fn push(
        &mut self,
        index: Option<u32>,
        sweep: &Sweep,
        cell: &Cell,
        pair: &Pair,
        metric: Metric,
        (base, value): (f64, f64),
        effect: Option<f64>,
        sure: Option<Effect>,
    ) {
        self.pair.push(index);
        self.sweep.push(sweep.name);
        self.site.push(cell.site.kind());
        self.layer.push(cell.layer as u32);
        self.head.push(cell.head.map(|head| head as u32));
        self.neuron.push(cell.neuron.map(|neuron| neuron as u32));
        self.pos.push(cell.pos.map(|pos| pos as u32));
        self.src.push(cell.key.map(|key| key as u32));
        self.token.push(cell.pos.map(|pos| pair.clean().text(0, pos).into_owned()));
        self.metric.push(metric.name());
        self.value.push(value);
        self.change.push(value - base);
        self.effect.push(effect);
        self.low.push(sure.and_then(|effect| effect.interval.low()));
        self.high.push(sure.and_then(|effect| effect.interval.high()));
        self.p.push(sure.map(|effect| effect.p));
    }

    fn finish(self) -> Result<DataFrame> {
        Ok(df!(
            "pair" => self.pair,
            "sweep" => self.sweep,
            "site" => self.site,
            "layer" => self.layer,
            "head" => self.head,
            "neuron" => self.neuron,
            "pos" => self.pos,
            "src" => self.src,
            "token" => self.token,
            "metric" => self.metric,
            "value" => self.value,
            "change" => self.change,
            "effect" => self.effect,
            "low" => self.low,
            "high" => self.high,
            "p" => self.p,
        )?)
    }
}

//! Path patching: what a sender does for the answer through some receivers alone (Wang et al. 2022; Goldowsky-Dill et al.
//! 2023).
//!
//! First the sender writes what it wrote in the other run, while all other heads write what they wrote in this one; MLPs and
//! LayerNorm follow along or are frozen too. What the receivers then read is recorded. Second, the receivers get that in a run
//! that is otherwise plain, and everything after them is computed anew.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use candle_core::Tensor;
use polars::prelude::{DataFrame, df};

use crate::config::Config;
use crate::effect::{Effect, Scale, over_pairs};
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::graph::{Graph, Outputs, Receiver, Source};
use crate::memory;
use crate::metric::{Measures, Metric};
use crate::pair::Pair;
use crate::plan::{Plan, Trace};
use crate::site::Site;
use crate::sweep::Cell;
use crate::trunk::{Trunk, Values, Wanted};

/// What stays as it was on the way from sender to receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freeze {
    /// MLPs between the two: what goes through them is not counted. Frozen, the path is one edge.
    pub mlps: bool,
    /// The standard deviations that LayerNorm divides by, in those MLPs and in the receivers.
    pub layer_norm: bool,
}

/// Where a path ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Queries, keys or values of a head, an MLP, or the logits.
    Reads(Receiver),
    /// The residual stream itself, at `resid_pre`, `resid_mid` or `resid_post`.
    Stream(Site),
}

/// `a9.h9<q>`, `m3`, `logits`, `resid_pre.5`.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Reads(receiver) => write!(f, "{receiver}"),
            End::Stream(site) => write!(f, "{site}"),
        }
    }
}

impl FromStr for End {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name.parse::<Site>() {
            Ok(site @ (Site::ResidPre(_) | Site::ResidMid(_) | Site::ResidPost(_))) => Ok(End::Stream(site)),
            _ => name.parse().map(End::Reads).map_err(|e| Error::request(format!("{e}, resid_pre.5"))),
        }
    }
}

impl End {
    /// Checks that a model has it.
    fn check(self, config: &Config) -> Result<()> {
        let (layer, head) = match self {
            End::Stream(site) => (site.layer(), 0),
            End::Reads(Receiver::Head { layer, head, .. }) => (Some(layer), head),
            End::Reads(receiver) => (receiver.layer(), 0),
        };
        if layer.is_some_and(|layer| layer >= config.n_layer) || head >= config.n_head {
            let (layers, heads) = (config.n_layer - 1, config.n_head - 1);
            return Err(Error::request(format!(
                "there is no {self}: this model has layers 0..={layers} and heads 0..={heads}"
            )));
        }
        Ok(())
    }
}

/// The paths of one pair.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Every head and MLP with the metrics of its experiment, in the order of [`Metric::ALL`]; of senders that do not come before
    /// any receiver those of the plain run.
    pub senders: Vec<(Source, Vec<f64>)>,
    /// Metrics of the plain run.
    pub base: Vec<f64>,
    /// Metrics of the run that senders take their values from.
    pub other: Vec<f64>,
    /// What rounding may make of the difference of these two, by metric.
    pub rounding: Vec<f64>,
}

impl Paths {
    /// What effects on a metric are measured by: 0 where the plain run is, 1 where the other run is.
    pub fn scale(&self, metric: Metric) -> Scale {
        Scale::of(metric, &self.base, &self.other, &self.rounding)
    }
}

/// Patches the paths from every head and every MLP to `receivers`, all of them at once: the clean run, with senders as in the
/// corrupted one; the other way round where `denoise` is set.
///
/// # Errors
/// [`Error::Request`] for no receivers, logits beside others, receivers that the model does not have, or noise instead of a
/// corrupted prompt; [`Error::TryAgain`] where they take more than `room` bytes, and faults of the prompts.
pub fn paths(
    model: &Gpt2,
    pair: &Pair,
    receivers: &[End],
    freeze: Freeze,
    denoise: bool,
    room: Option<u64>,
) -> Result<Paths> {
    let config = model.config();
    if receivers.is_empty() {
        return Err(Error::request("paths need a receiver"));
    }
    pair.check_prompts()?;
    receivers.iter().try_for_each(|end| end.check(config))?;
    let logits = End::Reads(Receiver::Logits);
    if receivers.len() > 1 && receivers.contains(&logits) {
        return Err(Error::request(
            "paths end at the logits or at other receivers, not at both: patch them one by one",
        ));
    }
    let (base, other) = match denoise {
        false => (pair.clean(), pair.corrupt()),
        true => (pair.corrupt(), pair.clean()),
    };
    let graph = Graph::of(config);
    let held = 3 * Outputs::bytes(graph, base.longest(), config);
    memory::check_left("what every node writes", held, room)?;
    let left = room.map(|room| (room - held) / 2);
    let layers = 0..config.n_layer;
    let sites = layers.flat_map(|l| {
        let scales = [Site::Ln1Scale(l), Site::Ln2Scale(l)];
        let values = [Site::Q(l), Site::K(l), Site::V(l), Site::MlpOut(l)];
        [Site::ResidPre(l), Site::ResidMid(l), Site::ResidPost(l)].into_iter().chain(scales).chain(values)
    });
    let plan = Outputs::read(Plan::new(), config).reads(sites.clone().chain([Site::LnFinalScale]));
    let trace = plan.logits(LogitsAt::None).run(model, base)?;
    let trunk = Trunk::grow(model, Plan::new(), base, sites, Wanted { loss_from: None, memory: left })?;
    let (written, ends) = Outputs::run(model, other)?;
    let clean = if denoise { to_f32(&ends)? } else { trunk.end().logits.clone() };
    let measures = Measures::new(&clean);
    let measure = |logits: &[f32]| measures.of(logits, pair.target());

    let differences = (written.tensor() - Outputs::of(&trace, config)?.tensor())?;
    let plain = measure(&trunk.end().logits);
    let length = base.longest();
    let per_token = 8 * config.n_embd + 2 * config.n_inner + receivers.len() * config.n_embd;
    let per_sender = length * per_token + if receivers.contains(&logits) { 3 * config.vocab_size } else { 0 };
    let all = graph.sources() - 1;
    let at_once = memory::at_once("the paths of one sender", (4 * per_sender) as u64, all, left)?;
    let values = memory::in_batches(all, at_once, &mut |part| {
        let wave = Wave { model, trace: &trace, freeze, length, senders: part.clone() };
        let mut found = vec![plain.clone(); part.len()];
        match wave.reach(&differences, receivers)? {
            Reached::Logits(rows) => {
                found.iter_mut().zip(rows).for_each(|(found, logits)| *found = measure(&logits));
            }
            Reached::Values { cells, values } => {
                trunk.run(&vec![cells; values.len()], &values, &mut |i, end| {
                    if let Some(end) = end {
                        found[i] = measure(&end.logits);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(found)
    })?;
    let senders = values.into_iter().enumerate().map(|(i, values)| (graph.source(i + 1), values)).collect();
    let rounding = measures.rounding(pair.target(), model.dtype());
    Ok(Paths { senders, base: plain, other: measure(&to_f32(&ends)?), rounding })
}

/// What receivers read of each sender.
enum Reached {
    /// Logits of the last token.
    Logits(Vec<Vec<f32>>),
    /// Values of their sites.
    Values { cells: Vec<Cell>, values: Vec<Values> },
}

/// How some senders spread through the model: one row per sender, each with its own change of the stream.
struct Wave<'a> {
    model: &'a Gpt2,
    trace: &'a Trace,
    freeze: Freeze,
    length: usize,
    /// Which, counted from the first head.
    senders: Range<usize>,
}

impl Wave<'_> {
    fn reach(&self, differences: &Tensor, receivers: &[End]) -> Result<Reached> {
        let config = self.model.config();
        let graph = Graph::of(config);
        let (senders, width) = (self.senders.len(), config.n_embd);
        let written = differences.reshape((graph.sources(), self.length, width))?;
        // Sources count from the input, senders from the first head.
        let written = written.narrow(0, 1 + self.senders.start, senders)?;
        let written = written.to_dtype(self.model.dtype())?;
        // What of the change is there at each place: a sender's own part from where it writes on.
        let mut change = written.zeros_like()?;
        let mut cells: Vec<Cell> = Vec::new();
        let mut values: Vec<Values> = vec![Values::new(); senders];
        let mut write = |site: Site, head: Option<usize>, own: &Tensor, change: &Tensor| -> Result<()> {
            cells.push(Cell { head, ..Cell::whole(site) });
            self.record(site, head, own, change, &mut values)
        };
        for layer in 0..config.n_layer {
            for (at, head, reads) in receivers.iter().filter_map(|end| match end {
                End::Reads(Receiver::Head { layer, head, reads }) => Some((*layer, *head, *reads)),
                _ => None,
            }) {
                if at == layer {
                    let scale = self.scale(Site::Ln1Scale(layer))?;
                    let of = |x: &Tensor| self.model.read_head(layer, head, reads, x, scale.as_ref());
                    let made = self.made(Site::ResidPre(layer), &change, of)?;
                    write(reads.site(layer), Some(head), &made, &change)?;
                }
            }
            for site in [Site::ResidPre(layer), Site::ResidMid(layer), Site::ResidPost(layer)] {
                if site == Site::ResidMid(layer) {
                    change = self.add(&change, &written, layer * (config.n_head + 1), config.n_head)?;
                }
                if site == Site::ResidPost(layer) {
                    let scale = self.scale(Site::Ln2Scale(layer))?;
                    let of = |x: &Tensor| self.model.mlp(layer, x, scale.as_ref());
                    if receivers.contains(&End::Reads(Receiver::Mlp(layer))) {
                        let made = self.made(Site::ResidMid(layer), &change, of)?;
                        write(Site::MlpOut(layer), None, &made, &change)?;
                    }
                    if !self.freeze.mlps {
                        let made = self.made(Site::ResidMid(layer), &change, of)?;
                        // An MLP that is the sender writes what it wrote in the other run, whatever reaches it: nothing does.
                        change = (change + made)?;
                    }
                    change = self.add(&change, &written, layer * (config.n_head + 1) + config.n_head, 1)?;
                }
                if receivers.contains(&End::Stream(site)) {
                    write(site, None, &change, &change)?;
                }
            }
        }
        if receivers.contains(&End::Reads(Receiver::Logits)) {
            let stream = self.trace.get(Site::ResidPost(config.n_layer - 1))?;
            let last = |x: &Tensor| x.narrow(1, self.length - 1, 1)?.contiguous();
            let stream = last(&change.broadcast_add(stream)?)?;
            let logits = match self.scale(Site::LnFinalScale)? {
                None => self.model.unembed(&stream)?,
                Some(scale) => {
                    let scale = last(&scale)?.broadcast_as((senders, 1, 1))?;
                    self.model.unembed_with_scale(&stream, &scale)?
                }
            };
            let vocab = logits.dim(2)?;
            return Ok(Reached::Logits(to_f32(&logits)?.chunks_exact(vocab).map(<[f32]>::to_vec).collect()));
        }
        Ok(Reached::Values { cells, values })
    }

    /// What LayerNorm divides by, where it is frozen.
    fn scale(&self, site: Site) -> Result<Option<Tensor>> {
        Ok(if self.freeze.layer_norm { Some(self.trace.get(site)?.clone()) } else { None })
    }

    /// How far what is made of the stream at a site changes, for every sender; exactly 0 where the stream does not change.
    fn made(&self, site: Site, change: &Tensor, of: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let stream = self.trace.get(site)?;
        let senders = change.dim(0)?;
        // The plain stream goes along as one more row, so that both are computed alike.
        let rows = Tensor::cat(&[stream.clone(), change.broadcast_add(stream)?], 0)?;
        let made = match self.freeze.layer_norm {
            false => of(&rows)?,
            // A given scale has as many rows as what it divides.
            true => {
                let each = (0..=senders).map(|row| of(&rows.narrow(0, row, 1)?));
                Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        let moved = made.narrow(0, 1, senders)?.broadcast_sub(&made.narrow(0, 0, 1)?)?;
        let same = change.abs()?.sum_keepdim(2)?.eq(0.0)?.broadcast_as(moved.shape())?;
        Ok(same.where_cond(&moved.zeros_like()?, &moved)?)
    }

    /// Adds what the senders of one place write themselves: n of them, from `first` on.
    fn add(&self, change: &Tensor, written: &Tensor, first: usize, n: usize) -> Result<Tensor> {
        let here = first..first + n;
        let rows: Vec<f32> = self.senders.clone().map(|i| if here.contains(&i) { 1.0 } else { 0.0 }).collect();
        let mask = Tensor::from_vec(rows, (change.dim(0)?, 1, 1), change.device())?.to_dtype(change.dtype())?;
        Ok((change + written.broadcast_mul(&mask)?)?)
    }

    /// Notes the value of a site for every sender: the plain one, changed.
    fn record(
        &self,
        site: Site,
        head: Option<usize>,
        made: &Tensor,
        change: &Tensor,
        values: &mut [Values],
    ) -> Result<()> {
        let plain = to_f32(self.trace.get(site)?)?;
        let per = made.dim(2)?;
        let (made, change) = (to_f32(made)?, to_f32(change)?);
        let width = plain.len() / self.length;
        let first = head.map_or(0, |head| head * per);
        let moves = change.len() / values.len();
        for (i, values) in values.iter_mut().enumerate() {
            if change[i * moves..][..moves].iter().all(|x| *x == 0.0) && !values.contains_key(&site) {
                values.insert(site, plain.clone());
                continue;
            }
            let value = values.entry(site).or_insert_with(|| plain.clone());
            for pos in 0..self.length {
                for d in 0..per {
                    value[pos * width + first + d] += made[(i * self.length + pos) * per + d];
                }
            }
        }
        Ok(())
    }
}

/// The paths of several pairs as a frame.
///
/// | column | |
/// |---|---|
/// | `pair` | which; null in the rows that sum up several pairs |
/// | `sender`, `layer`, `head` | `a5.h1` or `m3`; the head is null for an MLP |
/// | `receivers` | where the paths end |
/// | `metric`, `value`, `change` | after patching, and how much that is more than in the plain run; in rows without a pair the means |
/// | `effect` | 0 where the plain run is, 1 where the other run is; in rows without a pair the ratio of means, mean(`change`) / mean(other run − plain run); null where the two runs differ by no more than rounding ([`Measures::rounding`]) |
/// | `low`, `high`, `p` | in rows without a pair, of that ratio: its 95 % bootstrap interval over pairs, and how likely one as far from 0 is by chance ([`Effect`]) |
///
/// # Errors
/// [`Error::Request`] for no pair.
pub fn frame(all: &[Paths], receivers: &[End], metrics: &[Metric], seed: u64) -> Result<DataFrame> {
    let Some(first) = all.first() else { return Err(Error::request("there is no pair")) };
    let name = receivers.iter().map(End::to_string).collect::<Vec<_>>().join(" ");
    type Row = (Option<u32>, usize, Metric, (f64, f64), Option<f64>, Option<Effect>);
    let mut rows: Vec<Row> = Vec::new();
    for (i, one) in all.iter().enumerate() {
        for (s, (_, values)) in one.senders.iter().enumerate() {
            for metric in metrics {
                let (base, value) = (one.base[*metric as usize], values[*metric as usize]);
                rows.push((Some(i as u32), s, *metric, (base, value), one.scale(*metric).effect(value), None));
            }
        }
    }
    if all.len() > 1 {
        for s in 0..first.senders.len() {
            for metric in metrics {
                let scales: Vec<Scale> = all.iter().map(|one| one.scale(*metric)).collect();
                let values: Vec<f64> = all.iter().map(|one| one.senders[s].1[*metric as usize]).collect();
                let ends = (Scale::mean(&scales).base, values.iter().sum::<f64>() / values.len() as f64);
                let sure = over_pairs(&scales, &values, seed);
                rows.push((None, s, *metric, ends, sure.map(|effect| effect.interval.mean), sure));
            }
        }
    }
    let sender = |row: &Row| first.senders[row.1].0;
    let head = |source: Source| if let Source::Head { head, .. } = source { Some(head as u32) } else { None };
    Ok(df!(
        "pair" => rows.iter().map(|row| row.0).collect::<Vec<_>>(),
        "sender" => rows.iter().map(|row| sender(row).to_string()).collect::<Vec<_>>(),
        "layer" => rows.iter().map(|row| sender(row).layer().unwrap_or(0) as u32).collect::<Vec<_>>(),
        "head" => rows.iter().map(|row| head(sender(row))).collect::<Vec<_>>(),
        "receivers" => vec![name; rows.len()],
        "metric" => rows.iter().map(|row| row.2.name()).collect::<Vec<_>>(),
        "value" => rows.iter().map(|row| row.3.1).collect::<Vec<_>>(),
        "change" => rows.iter().map(|row| row.3.1 - row.3.0).collect::<Vec<_>>(),
        "effect" => rows.iter().map(|row| row.4).collect::<Vec<_>>(),
        "low" => rows.iter().map(|row| row.5.and_then(|effect| effect.interval.low())).collect::<Vec<_>>(),
        "high" => rows.iter().map(|row| row.5.and_then(|effect| effect.interval.high())).collect::<Vec<_>>(),
        "p" => rows.iter().map(|row| row.5.map(|effect| effect.p)).collect::<Vec<_>>(),
    )?)
}

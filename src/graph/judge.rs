//! How much of a behaviour circuits carry.

use candle_core::IndexOp;

use super::circuit::Circuit;
use super::layout::Graph;
use super::outputs::Outputs;
use super::rewired::Rewired;
use crate::config::Config;
use crate::effect::{Scale, ratio_of_means, why_meaningless};
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::metric::{Measures, Metric};
use crate::pair::Pair;
use crate::plan::Plan;
use crate::stats::Interval;
use crate::tokens::Tokens;

/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 2048;
/// Bytes of what nodes write that a batch may hold.
const BATCH_BYTES: u64 = 512 << 20;

/// What edges outside of a circuit carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Instead {
    /// What their source writes in the pair's corrupted run.
    #[default]
    Corrupt,
    /// The mean of that over all pairs of the same length, at each position: of a single one, itself.
    Mean,
    /// Zero: a token's embedding, a head and an MLP write nothing. Embeddings of positions stay, and so do the output biases of
    /// attentions, which belong to no node. This is `intervention="zero"` of EAP-IG's `evaluate_graph`, whose input node is the
    /// token embedding.
    Zero,
}

impl Instead {
    /// All of them.
    pub const ALL: [Instead; 3] = [Instead::Corrupt, Instead::Mean, Instead::Zero];

    /// `corrupt`, `mean` or `zero`.
    pub fn name(self) -> &'static str {
        match self {
            Instead::Corrupt => "corrupt",
            Instead::Mean => "mean",
            Instead::Zero => "zero",
        }
    }

    /// What that is called in EAP-IG's `evaluate_graph`, for the record.
    pub fn convention(self) -> &'static str {
        match self {
            Instead::Corrupt => "EAP-IG `patching`: what sources write for the corrupted prompt",
            Instead::Mean => "EAP-IG `mean-positional`, over the corrupted prompts of one length",
            Instead::Zero => {
                "EAP-IG `zero`: token embeddings, heads and MLPs write zero; position embeddings and attention output biases stay"
            }
        }
    }
}

/// Some pairs, with all that is needed to run circuits on them.
pub struct Judge<'a> {
    model: &'a Gpt2,
    metric: Metric,
    pairs: &'a [Pair],
    groups: Vec<Group>,
    full: Vec<f64>,
    empty: Vec<f64>,
    /// What rounding may make of the difference of these two, by pair.
    rounding: Vec<f64>,
    instead: Instead,
}

/// Pairs of one length.
struct Group {
    /// Which pairs.
    pairs: Vec<usize>,
    tokens: Tokens,
    other: Outputs,
    /// Logits of the clean run, by pair.
    clean: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// Runs every pair, clean and corrupted.
    ///
    /// # Errors
    /// [`Error::Request`] for no pair, noise instead of a corrupted prompt, or a metric that is the same with all edges and with
    /// none; [`Error::TryAgain`] where what nodes write takes more than `room` bytes, and faults of the prompts.
    pub fn new(
        model: &'a Gpt2,
        pairs: &'a [Pair],
        metric: Metric,
        instead: Instead,
        room: Option<u64>,
    ) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::request("there is no pair to judge circuits by"));
        }
        pairs.iter().try_for_each(Pair::check_prompts)?;
        let config = model.config();
        let graph = Graph::of(config);
        let bytes: u64 = pairs.iter().map(|pair| Outputs::bytes(graph, pair.len(), config)).sum();
        memory::check_left("what every node writes for every pair", 2 * bytes + 3 * BATCH_BYTES.min(bytes), room)?;
        let mut lengths: Vec<usize> = pairs.iter().map(Pair::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut groups = Vec::new();
        let (mut full, mut rounding) = (vec![0.0; pairs.len()], vec![0.0; pairs.len()]);
        for length in lengths {
            let members: Vec<usize> = (0..pairs.len()).filter(|&i| pairs[i].len() == length).collect();
            let rows = |of: fn(&Pair) -> &Tokens| -> Vec<Vec<u32>> {
                members.iter().map(|&i| of(&pairs[i]).row(0).to_vec()).collect()
            };
            let tokens = Tokens::from_ids(rows(Pair::clean))?;
            let most = rows_at_once(graph, length, config);
            let corrupt: Vec<Vec<u32>> = rows(Pair::corrupt);
            let other = memory::in_batches(corrupt.len(), most, &mut |part| {
                let tokens = Tokens::from_ids(corrupt[part].to_vec())?;
                Ok(vec![match instead {
                    Instead::Zero => Outputs::zero(model, &tokens)?,
                    _ => Outputs::run(model, &tokens)?.0,
                }])
            })?;
            let other = Outputs::stack(&other)?;
            let other = if instead == Instead::Mean { other.mean()? } else { other };
            let clean = memory::in_batches(members.len(), most, &mut |part| {
                let trace = Plan::new().logits(LogitsAt::Last).run(model, &tokens.slice(part))?;
                Ok(to_f32(trace.logits()?)?.chunks_exact(config.vocab_size).map(<[f32]>::to_vec).collect())
            })?;
            // With all edges the model is itself.
            for (&i, clean) in members.iter().zip(&clean) {
                full[i] = metric.of(clean, clean, pairs[i].target());
                rounding[i] = Measures::new(clean).rounding(pairs[i].target(), model.dtype())[metric as usize];
            }
            groups.push(Group { pairs: members, tokens, other, clean });
        }
        let mut judge = Self { model, metric, pairs, groups, full, empty: Vec::new(), rounding, instead };
        judge.empty = judge.values(&Circuit::empty(graph))?;
        if let Some(why) = why_meaningless(&judge.scales(), []) {
            return Err(Error::request(format!(
                "there is nothing that a circuit could carry: by {}, with no edge and with all, {why}",
                metric.name()
            )));
        }
        Ok(judge)
    }

    /// The metric of each pair with one circuit at work.
    ///
    /// # Errors
    /// As [`Rewired::run`].
    pub fn values(&self, circuit: &Circuit) -> Result<Vec<f64>> {
        Ok(self.values_of(&[circuit])?.remove(0))
    }

    /// The metric of each pair, for each circuit. As in EAP-IG, a node that the input does not reach writes what stands outside of a
    /// circuit, not what it would make of that.
    ///
    /// # Errors
    /// As [`Rewired::run`].
    pub fn values_of(&self, circuits: &[&Circuit]) -> Result<Vec<Vec<f64>>> {
        let config = self.model.config();
        let graph = Graph::of(config);
        let mut found = vec![vec![0.0; self.pairs.len()]; circuits.len()];
        // What a node makes of a corrupted run's values alone is what it wrote in that run.
        let whole: Vec<Circuit> = match self.instead {
            Instead::Corrupt => Vec::new(),
            _ => circuits.iter().map(|circuit| circuit.connected()).collect(),
        };
        let fed: Vec<&Circuit> = if whole.is_empty() { circuits.to_vec() } else { whole.iter().collect() };
        let circuits = fed.as_slice();
        for group in &self.groups {
            let length = group.tokens.longest();
            let most = rows_at_once(graph, length, config);
            // Every circuit on every pair of the group, in batches.
            let all: Vec<(usize, usize)> =
                (0..circuits.len()).flat_map(|c| (0..group.pairs.len()).map(move |row| (c, row))).collect();
            let values = memory::in_batches(all.len(), most, &mut |part| {
                let batch = &all[part];
                let one = batch.iter().all(|(c, _)| *c == batch[0].0);
                let own: Vec<&Circuit> = match one {
                    true => vec![circuits[batch[0].0]],
                    false => batch.iter().map(|(c, _)| circuits[*c]).collect(),
                };
                let tokens = Tokens::from_ids(batch.iter().map(|(_, row)| group.tokens.row(*row).to_vec()).collect())?;
                let rows: Vec<u32> = batch.iter().map(|(_, row)| *row as u32).collect();
                let logits = Rewired::run(self.model, &tokens, &own, &group.other.rows(&rows)?)?;
                let value = |(i, (_, row)): (usize, &(usize, usize))| {
                    let target = self.pairs[group.pairs[*row]].target();
                    Ok(self.metric.of(&to_f32(&logits.i(i)?)?, &group.clean[*row], target))
                };
                batch.iter().enumerate().map(value).collect()
            })?;
            for ((c, row), value) in all.into_iter().zip(values) {
                found[c][group.pairs[row]] = value;
            }
        }
        Ok(found)
    }

    /// The share of the behaviour that a circuit carries: (its metric − that of no edge) / (that of all edges − that of no
    /// edge), of the means over all pairs, with a bootstrap interval over pairs; a single pair has none.
    pub fn faithfulness(&self, values: &[f64], seed: u64) -> Interval {
        ratio_of_means(&self.scales(), values, seed).unwrap_or(Interval::bare(f64::NAN))
    }

    /// What the share of the behaviour is measured by, for each pair: 0 is no edge, 1 all of them.
    fn scales(&self) -> Vec<Scale> {
        let ends = self.empty.iter().zip(&self.full).zip(&self.rounding);
        ends.map(|((&base, &source), &rounding)| Scale { base, source, rounding }).collect()
    }

    /// How much worse some values are than others, in the mean: a lower metric, or a higher divergence.
    pub fn harm(&self, before: &[f64], after: &[f64]) -> f64 {
        let fall = mean(before) - mean(after);
        if self.metric.falls_with_skill() { -fall } else { fall }
    }

    /// The metric of each pair with all edges.
    pub fn full(&self) -> &[f64] {
        &self.full
    }

    /// The metric of each pair with no edge.
    pub fn empty(&self) -> &[f64] {
        &self.empty
    }

    /// What is measured.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The graph of the model.
    pub fn graph(&self) -> Graph {
        Graph::of(self.model.config())
    }
}

/// Prompts of a length that may pass at once: each with what its nodes write in this run and in the other, and how they differ.
fn rows_at_once(graph: Graph, length: usize, config: &Config) -> usize {
    let each = 4 * Outputs::bytes(graph, length, config);
    ((BATCH_BYTES / each) as usize).clamp(1, (BATCH_TOKENS / length).max(1))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

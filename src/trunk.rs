//! A finished run from which experiments branch off, each with some of the activations replaced.
//!
//! An experiment is a row of a batch. Rows join the batch at the layer where their change begins and read again only the
//! positions that come after it: what is before cannot change. Experiments that replace values by the same bits, or
//! values that nothing reads any more, are not run at all.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::hooks::Hooks;
use crate::kv::Branch;
use crate::memory;
use crate::ops;
use crate::plan::Plan;
use crate::site::Site;
use crate::sweep::Cell;
use crate::tokens::Tokens;

/// Padded tokens that pass through the model at once: enough to keep the cores busy.
const BATCH_TOKENS: usize = 2048;
/// So few tokens are not worth a batch of their own, however little padding that would save.
const SMALL_BATCH: usize = 192;
/// Positions that get logits at once.
const LOGIT_ROWS: usize = 128;

/// Whole values of a run at some sites, without the axis of the prompt.
pub type Values = BTreeMap<Site, Vec<f32>>;

/// What experiments put in the place of a run's own values.
pub trait Replacements {
    /// The whole value at a site for an experiment, by its index.
    fn value(&self, experiment: usize, site: Site) -> Option<&[f32]>;
}

/// The same values for all experiments: those of another run.
impl Replacements for Values {
    fn value(&self, _experiment: usize, site: Site) -> Option<&[f32]> {
        self.get(&site).map(Vec::as_slice)
    }
}

/// Values of its own for each experiment.
impl Replacements for Vec<Values> {
    fn value(&self, experiment: usize, site: Site) -> Option<&[f32]> {
        self.get(experiment)?.get(&site).map(Vec::as_slice)
    }
}

/// What a run leaves to be measured.
#[derive(Clone, Debug)]
pub struct End {
    /// Logits after the last token.
    pub logits: Vec<f32>,
    /// Mean cross-entropy of the prompt's own next tokens in nats, where it was wanted; NaN for no such token.
    pub loss: Option<f64>,
}

/// What experiments need of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Also the loss, of what is predicted from this position on; it needs logits at every position.
    pub loss_from: Option<usize>,
    /// Bytes that experiments may take at once; none for what is usual.
    pub memory: Option<u64>,
}

/// One run of one prompt, with all that it takes to go on from any of its layers and positions.
pub struct Trunk<'a> {
    model: &'a Gpt2,
    tokens: Tokens,
    values: Values,
    resid: Vec<Vec<f32>>,
    keys: Vec<(Tensor, Tensor)>,
    end: End,
    /// Cross-entropy of each prediction.
    losses: Vec<f64>,
    wanted: Wanted,
}

/// An experiment on its way through the model.
struct Row<'c> {
    index: usize,
    cells: &'c [Cell],
    /// The position from which it is read again.
    start: usize,
    /// The layer at which it joins.
    first: usize,
}

impl<'a> Trunk<'a> {
    /// Runs a prompt, with the edits of `plan` if it has some, and keeps the values at `sites`.
    ///
    /// # Errors
    /// As [`Plan::run`]; [`Error::TryAgain`] where the run alone would take more memory than is `wanted`.
    pub fn grow(
        model: &'a Gpt2,
        plan: Plan,
        tokens: &Tokens,
        sites: impl IntoIterator<Item = Site>,
        wanted: Wanted,
    ) -> Result<Self> {
        let layers = 0..model.config().n_layer;
        let sites: Vec<Site> = sites.into_iter().chain([Site::ResidPre(0)]).collect();
        let always = layers.clone().flat_map(|l| [Site::ResidPre(l), Site::K(l), Site::V(l)]);
        let reads: Vec<Site> = sites.iter().copied().chain(always).collect();
        if wanted.memory.is_some() {
            // Each value as a tensor and as a list.
            let extents = model.config().extents(1, tokens.longest(), 0);
            let logits = if wanted.loss_from.is_some() { tokens.longest() } else { 1 } * model.config().vocab_size;
            let elements: usize = reads.iter().map(|site| site.shape(&extents).iter().product::<usize>()).sum();
            let elements = elements + logits;
            memory::check_left("the run that experiments start from", 8 * elements as u64, wanted.memory)?;
        }
        let at = if wanted.loss_from.is_some() { LogitsAt::All } else { LogitsAt::Last };
        let trace = plan.reads(reads).logits(at).run(model, tokens)?;
        let values = sites.iter().map(|&site| Ok((site, to_f32(trace.get(site)?)?))).collect::<Result<_>>()?;
        let resid = layers.clone().map(|l| to_f32(trace.get(Site::ResidPre(l))?)).collect::<Result<_>>()?;
        let keys = layers
            .map(|l| Ok((trace.get(Site::K(l))?.contiguous()?, trace.get(Site::V(l))?.contiguous()?)))
            .collect::<Result<_>>()?;
        let logits = trace.logits()?;
        let losses = match wanted.loss_from {
            Some(_) => nats(logits, &tokens.row(0)[1..])?,
            None => Vec::new(),
        };
        let last = to_f32(&logits.narrow(1, logits.dim(1)? - 1, 1)?)?;
        let end = End { logits: last, loss: wanted.loss_from.map(|from| mean(losses.get(from..).unwrap_or(&[]))) };
        Ok(Self { model, tokens: tokens.clone(), values, resid, keys, end, losses, wanted })
    }

    /// The prompt.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The values at the sites that were asked for, and at the first residual stream.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// How the run itself ended.
    pub fn end(&self) -> &End {
        &self.end
    }

    fn len(&self) -> usize {
        self.tokens.longest()
    }

    /// Runs every experiment: the values of its cells are replaced by those of `source`, all others are as they come.
    ///
    /// `receive` gets each one's index and end, in no particular order; none for an experiment that was not run because it
    /// cannot change anything.
    ///
    /// # Errors
    /// [`Error::TryAgain`] where one row alone is more than the memory that is wanted, [`Error::Request`] where values stop
    /// being finite, and what `receive` returns.
    pub fn run(
        &self,
        experiments: &[Vec<Cell>],
        source: &dyn Replacements,
        receive: &mut dyn FnMut(usize, Option<End>) -> Result<()>,
    ) -> Result<()> {
        let mut rows = Vec::new();
        for (index, cells) in experiments.iter().enumerate() {
            match self.change(index, cells, source)? {
                Some((first, start)) => rows.push(Row { index, cells, start, first }),
                None => receive(index, None)?,
            }
        }
        self.run_rows(rows, source, receive)
    }

    /// Replaces each cell by its own values, computed like any other experiment.
    ///
    /// # Errors
    /// As [`Trunk::run`].
    pub fn run_unchanged(&self, cells: &[Cell], receive: &mut dyn FnMut(usize, End) -> Result<()>) -> Result<()> {
        let row = |(index, cell): (usize, &'_ Cell)| {
            let (first, start) = (cell.window.0, cell.pos.unwrap_or(0));
            Row { index, cells: &cells[index..=index], start, first }
        };
        let rows = cells.iter().enumerate().map(row).collect();
        self.run_rows(rows, &self.values, &mut |index, end| end.map_or(Ok(()), |end| receive(index, end)))
    }

    /// The layer and the position from which replacing `cells` can change the end; none if it cannot.
    fn change(&self, index: usize, cells: &[Cell], source: &dyn Replacements) -> Result<Option<(usize, usize)>> {
        let mut found: Option<(usize, usize)> = None;
        for (cell, site) in cells.iter().flat_map(|cell| cell.sites().map(move |site| (cell, site))) {
            let (ours, theirs) = (self.at(&self.values, index, site)?, self.at(source, index, site)?);
            let places =
                cell.places(site, self.model.config(), self.len()).into_iter().flat_map(|(first, n)| first..first + n);
            let different = places.filter(|&at| ours[at].to_bits() != theirs[at].to_bits());
            let start = different.map(|at| self.position(site, at)).filter(|&pos| self.is_read(site, pos)).min();
            if let Some(start) = start {
                let layer = site.layer().unwrap_or(0);
                let (first, before) = found.unwrap_or((layer, start));
                found = Some((first.min(layer), before.min(start)));
            }
        }
        Ok(found)
    }

    fn at<'v>(&self, values: &'v dyn Replacements, index: usize, site: Site) -> Result<&'v [f32]> {
        values.value(index, site).ok_or(Error::NotRead(site))
    }

    /// Whether the end depends on a position of a site: behind the last layer's keys and values only the last one does.
    fn is_read(&self, site: Site, pos: usize) -> bool {
        let feeds_keys = matches!(site, Site::ResidPre(_) | Site::Ln1Scale(_) | Site::Ln1Normalized(_));
        let feeds_keys = feeds_keys || matches!(site, Site::K(_) | Site::V(_));
        let last_layer = site.layer() == Some(self.model.config().n_layer - 1);
        self.wanted.loss_from.is_some() || feeds_keys || !last_layer || pos + 1 == self.len()
    }

    /// Values per position of a site that is no attention map.
    fn per_pos(&self, site: Site) -> usize {
        site.shape(&self.model.config().extents(1, 1, 0)).iter().product()
    }

    /// The position that an element belongs to: the query in an attention map.
    fn position(&self, site: Site, at: usize) -> usize {
        if site.is_attention_map() { at / self.len() % self.len() } else { at / self.per_pos(site) }
    }

    fn run_rows(
        &self,
        mut rows: Vec<Row<'_>>,
        source: &dyn Replacements,
        receive: &mut dyn FnMut(usize, Option<End>) -> Result<()>,
    ) -> Result<()> {
        rows.sort_by_key(|row| (row.start, row.first));
        while let Some(first) = rows.first() {
            let longest = self.len() - first.start;
            let most = self.most_rows(longest)?;
            // Rows as long as the longest, or so few that padding does not matter.
            let alike =
                |n: usize, row: &Row<'_>| 4 * (self.len() - row.start) >= 3 * longest || n * longest < SMALL_BATCH;
            let n = rows.iter().enumerate().take(most).take_while(|(n, row)| alike(*n, row)).count().max(1);
            let mut batch: Vec<Row<'_>> = rows.drain(..n).collect();
            batch.sort_by_key(|row| row.first);
            let ends = memory::in_batches(n, n, &mut |part| self.run_batch(&batch[part], source))?;
            for (row, end) in batch.iter().zip(ends) {
                receive(row.index, Some(end))?;
            }
        }
        Ok(())
    }

    /// Rows of this many tokens that may pass at once.
    fn most_rows(&self, longest: usize) -> Result<usize> {
        let usual = (BATCH_TOKENS / longest).max(1);
        let Some(room) = self.wanted.memory else { return Ok(usual) };
        let config = self.model.config();
        let (width, inner, heads) = (config.n_embd, config.n_inner, config.n_head * config.head_dim);
        let keys = self.len() + longest;
        let stream = longest * (6 * width + 5 * heads + 2 * inner);
        let attention = 2 * keys * heads + 3 * config.n_head * longest * keys;
        let bytes = 4 * (stream + attention + 2 * config.vocab_size) as u64;
        let logits = 8 * (LOGIT_ROWS * config.vocab_size) as u64;
        memory::check_left(&format!("one experiment on {longest} tokens"), bytes + logits, Some(room))?;
        Ok(usual.min(((room - logits) / bytes) as usize).max(1))
    }

    /// The ends of one batch; rows come in the order of their first layers.
    fn run_batch(&self, rows: &[Row<'_>], source: &dyn Replacements) -> Result<Vec<End>> {
        let whole = rows.iter().all(|row| row.start == 0);
        let layers = self.model.config().n_layer;
        let width = self.model.config().n_embd;
        let mut x: Option<Tensor> = None;
        let (mut joined, mut longest) = (0, 0);
        for layer in rows[0].first..layers {
            let new: Vec<&Row<'_>> = rows[joined..].iter().take_while(|row| row.first == layer).collect();
            joined += new.len();
            let now = &rows[..joined];
            longest = now.iter().map(|row| self.len() - row.start).fold(0, usize::max);
            let stream = match x.take() {
                Some(x) => {
                    let x = x.pad_with_zeros(1, 0, longest - x.dim(1)?)?;
                    if new.is_empty() { x } else { Tensor::cat(&[x, self.stream(&new, layer, longest)?], 0)? }
                }
                None => self.stream(&new, layer, longest)?,
            };
            // Only how many tokens a row has matters: a run that resumes does not look them up.
            let tokens = Tokens::from_ids(now.iter().map(|row| vec![0; self.len() - row.start]).collect())?;
            let starts = || now.iter().map(|row| row.start).collect();
            let branch = match whole {
                true => None,
                false => Some(Branch::new(vec![self.keys[layer].clone()], layer, starts())?),
            };
            let mut pass = Pass::new(&tokens).from(layer, stream).until(layer + 1).logits(LogitsAt::None);
            if let Some(branch) = &branch {
                pass = pass.branch(branch);
            }
            let mut writer = Writer::new(self, now, layer, source, longest, whole);
            x = Some(self.model.run(pass, &mut writer)?.resid);
        }
        let x = x.ok_or_else(|| Error::Bug("a batch without rows".into()))?;
        let x = to_f32(&x)?;
        let streams: Vec<&[f32]> = x.chunks_exact(longest * width).collect();
        self.ends(rows, &streams)
    }

    /// `resid_pre` of a layer for rows that join there, each from its position on: `[row, longest, dim]`.
    fn stream(&self, rows: &[&Row<'_>], layer: usize, longest: usize) -> Result<Tensor> {
        let width = self.model.config().n_embd;
        let mut stream = vec![0.0; rows.len() * longest * width];
        for (to, row) in stream.chunks_exact_mut(longest * width).zip(rows) {
            let rest = &self.resid[layer][row.start * width..];
            to[..rest.len()].copy_from_slice(rest);
        }
        let stream = Tensor::from_vec(stream, (rows.len(), longest, width), self.model.device())?;
        Ok(stream.to_dtype(self.model.dtype())?)
    }

    /// Logits, and losses where they are wanted, from each row's final residual stream.
    fn ends(&self, rows: &[Row<'_>], streams: &[&[f32]]) -> Result<Vec<End>> {
        let (width, length) = (self.model.config().n_embd, self.len());
        let ids = self.tokens.row(0);
        // (row, position in the prompt) of every position that gets logits.
        let first = |row: &Row<'_>| if self.wanted.loss_from.is_some() { row.start } else { length - 1 };
        let asked: Vec<(usize, usize)> =
            rows.iter().enumerate().flat_map(|(i, row)| (first(row)..length).map(move |pos| (i, pos))).collect();
        let mut ends = vec![End { logits: Vec::new(), loss: None }; rows.len()];
        let mut losses: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
        for asked in asked.chunks(LOGIT_ROWS) {
            let mut hidden = Vec::with_capacity(asked.len() * width);
            for &(i, pos) in asked {
                hidden.extend_from_slice(&streams[i][(pos - rows[i].start) * width..][..width]);
            }
            let hidden = Tensor::from_vec(hidden, (1, asked.len(), width), self.model.device())?;
            let logits = self.model.unembed(&hidden.to_dtype(self.model.dtype())?)?;
            if self.wanted.loss_from.is_some() {
                let targets: Vec<u32> =
                    asked.iter().map(|&(_, pos)| ids.get(pos + 1).copied().unwrap_or(ops::IGNORE)).collect();
                for (&(i, pos), nats) in asked.iter().zip(nats(&logits, &targets)?) {
                    if pos + 1 < length {
                        losses[i].push(nats);
                    }
                }
            }
            for (at, &(i, _)) in asked.iter().enumerate().filter(|(_, (_, pos))| pos + 1 == length) {
                ends[i].logits = to_f32(&logits.narrow(1, at, 1)?)?;
            }
        }
        for ((end, losses), row) in ends.iter_mut().zip(losses).zip(rows) {
            if let Some(from) = self.wanted.loss_from {
                // What comes before the change is predicted as it was.
                let losses = [&self.losses[..row.start.min(self.losses.len())], &losses].concat();
                end.loss = Some(mean(losses.get(from..).unwrap_or(&[])));
            }
            if !end.logits.iter().all(|x| x.is_finite()) || end.loss.is_some_and(|loss| !loss.is_finite()) {
                let more =
                    if row.cells.len() > 8 { format!(" and {} more", row.cells.len() - 8) } else { String::new() };
                let cells = row.cells.iter().take(8).map(Cell::to_string).collect::<Vec<_>>().join(", ") + &more;
                return Err(Error::request(format!("replacing {cells} gives logits that are not finite")));
            }
        }
        Ok(ends)
    }
}

/// `−log p(target)` in nats of each row of logits `[1, pos, vocab]`.
fn nats(logits: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let rows = logits.squeeze(0)?.narrow(0, 0, targets.len())?;
    Ok(to_f32(&ops::cross_entropy(&rows, targets.to_vec())?)?.into_iter().map(f64::from).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Writes each row's cells of one layer while the model runs.
struct Writer<'a> {
    trunk: &'a Trunk<'a>,
    source: &'a dyn Replacements,
    /// What is written at each site: row, its experiment, the position where it begins, and its cell.
    cells: BTreeMap<Site, Vec<(usize, usize, usize, &'a Cell)>>,
    /// Positions of a row, padding included.
    longest: usize,
    /// Whether every row begins at its first token, without a branch.
    whole: bool,
}

impl<'a> Writer<'a> {
    fn new(
        trunk: &'a Trunk<'a>,
        rows: &'a [Row<'a>],
        layer: usize,
        source: &'a dyn Replacements,
        longest: usize,
        whole: bool,
    ) -> Self {
        let mut cells: BTreeMap<Site, Vec<(usize, usize, usize, &Cell)>> = BTreeMap::new();
        for (i, row) in rows.iter().enumerate() {
            for cell in row.cells.iter().filter(|cell| (cell.window.0..=cell.window.1).contains(&layer)) {
                cells.entry(cell.site.in_layer(layer)).or_default().push((i, row.index, row.start, cell));
            }
        }
        Self { trunk, source, cells, longest, whole }
    }

    /// Copies values, in a whole run from `first` on, to where they are in a row that begins at `start`.
    fn write(&self, site: Site, from: &[f32], data: &mut [f32], (row, start): (usize, usize), first: usize) {
        let n = from.len();
        let length = self.trunk.len();
        if !site.is_attention_map() {
            let per_pos = self.trunk.per_pos(site);
            let (pos, rest) = (first / per_pos, first % per_pos);
            if pos < start {
                return; // the same in both runs
            }
            let to = (row * self.longest + pos - start) * per_pos + rest;
            data[to..to + n].copy_from_slice(from);
            return;
        }
        // [row, head, query, key]; with a branch the keys of the whole prompt come first, those read again after them.
        let again = if self.whole { 0 } else { length };
        let keys = again + self.longest;
        let heads = self.trunk.model.config().n_head;
        for (i, value) in from.iter().enumerate() {
            let at = first + i;
            let (head, query, key) = (at / (length * length), at / length % length, at % length);
            if query < start {
                continue; // the same in both runs
            }
            let key = if key < start || self.whole { key } else { again + key - start };
            data[((row * heads + head) * self.longest + query - start) * keys + key] = *value;
        }
    }
}

impl Hooks for Writer<'_> {
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        let Some(cells) = self.cells.get(&site) else { return Ok(value) };
        let mut data = to_f32(&value)?;
        for &(row, experiment, start, cell) in cells {
            let from = self.trunk.at(self.source, experiment, site)?;
            for (first, n) in cell.places(site, self.trunk.model.config(), self.trunk.len()) {
                self.write(site, &from[first..first + n], &mut data, (row, start), first);
            }
        }
        Ok(Tensor::from_vec(data, value.dims(), value.device())?.to_dtype(value.dtype())?)
    }

    fn wants(&self, site: Site) -> bool {
        self.cells.contains_key(&site)
    }
}

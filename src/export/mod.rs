//! Activation datasets: what a model computes on a text, written part by part ([`crate::dataset`]).

#[cfg(test)]
mod faults;
mod reader;
mod rows;
mod text;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use polars::prelude::*;

use crate::config::Config;
use crate::dataset::documents::Documents;
use crate::dataset::lock::Lock;
use crate::dataset::manifest::{Manifest, Record};
use crate::dataset::plan::{Dtype, Plan, Request};
use crate::dataset::sequences::{Cut, RECORD, Sequence, Sequences};
use crate::dataset::{files, read_for_pieces};
use crate::error::{Error, Result};
use crate::frame::load_parquet;
use crate::gather::{Gather, check_sites, width};
use crate::gpt2::Gpt2;
use crate::process;
use crate::shard::Layout;
use crate::site::Site;
use crate::text::Tokenizer;
use crate::tokens::batches;
use crate::{disk, memory};
use reader::Reader;
use rows::Rows;
use text::FILES;
use writer::{Share, Writer};

/// Bytes of a row group, about.
const GROUP_BYTES: usize = 32 << 20;
/// How long to wait for another process that is making the plan.
const PATIENCE: Duration = Duration::from_secs(600);

/// A dataset on its way.
pub struct Export<'a> {
    reader: Reader<'a>,
    tokenizer: &'a Tokenizer,
    dir: PathBuf,
    plan: Plan,
    id: String,
    widths: Vec<usize>,
    labels: Option<DataFrame>,
    /// Parts that this process has hashed.
    known: BTreeSet<usize>,
}

/// A share of the parts: those whose number leaves `index` when divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which, from 0.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

/// How far an export is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows that are computed and at most a batch away from being written, those of earlier runs included.
    pub rows: u64,
    /// Rows of all parts of the piece.
    pub all: u64,
    /// Rows that were there already.
    pub before: u64,
}

/// Bytes that a row takes in a dataset, its identity included.
pub fn row_bytes(config: &Config, sites: &[Site], dtype: Dtype) -> u64 {
    let size = if dtype == Dtype::F16 { 2 } else { 4 };
    // prompt, document, pos, token_id, and a token of some letters
    sites.iter().map(|site| (width(config, *site) * size + 5) as u64).sum::<u64>() + 26
}

/// Bytes of a part, about.
const PART_BYTES: u64 = 256 << 20;
/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 4096;

/// The usual request for these sites of a model: f32 in Parquet, windows as long as the model reads that start with the end
/// of text, no labels. Hashes of weights, tokenizer and text are the caller's to fill in, so that another model's dataset is
/// told from this one.
pub fn request(model: &Gpt2, tokenizer: &Tokenizer, sites: &[Site]) -> Request {
    let config = model.config();
    Request {
        weights: Vec::new(),
        tokenizer: None,
        text: Vec::new(),
        field: "text".into(),
        sites: sites.iter().map(Site::to_string).collect(),
        layout: Layout::Parquet,
        dtype: Dtype::F32,
        computed: format!("{:?} on {}", model.dtype(), crate::device::name(model.device())).to_lowercase(),
        cut: Cut::windows(config.n_positions).starting(tokenizer.bos()),
        labels: Vec::new(),
        covariance: false,
        part_rows: part_rows(config, sites, Dtype::F32),
        batch_tokens: BATCH_TOKENS,
        threads: rayon::current_num_threads(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// Rows of a part, about: as many as are quickly read and written again.
pub fn part_rows(config: &Config, sites: &[Site], dtype: Dtype) -> u64 {
    (PART_BYTES / row_bytes(config, sites, dtype)).max(1)
}

impl<'a> Export<'a> {
    /// Plans a dataset in `dir`, or takes up the one that was planned there.
    ///
    /// `documents` is asked for the text only where there is no plan yet, and twice where there are labels. Where the text, or a
    /// label of it, is refused, the directory is as it was.
    ///
    /// # Errors
    /// [`Error::Data`] where another request was planned in that directory, and for labels that cannot be kept exactly,
    /// [`Error::CannotWrite`] for a directory that holds links or other things, [`Error::TryAgain`] where another process keeps planning, [`Error::Request`] for options that exclude each
    /// other, and faults of the text.
    pub fn open(
        model: &'a Gpt2,
        tokenizer: &'a Tokenizer,
        dir: &Path,
        request: &Request,
        documents: impl Fn() -> Result<Documents>,
    ) -> Result<Self> {
        request.check(model.config().n_positions)?;
        let is_new = open_dir(dir)?;
        let plan = match Plan::open(dir)? {
            Some(plan) => plan,
            None => {
                let _lock = wait(&dir.join("plan.lock"))?;
                match Plan::open(dir)? {
                    Some(plan) => plan, // made by another process meanwhile
                    None => {
                        files::remove_unfinished(dir, files::is_own)?;
                        text::write_plan(tokenizer, dir, request, documents)
                            .inspect_err(|_| remove_unplanned(dir, is_new))?
                    }
                }
            }
        };
        let _ = std::fs::remove_file(dir.join(BEGUN)); // the plan says it from here on
        plan.check_same(request, dir)?;
        // Their sizes first: what is too long is not read.
        let (places, count) = (dir.join(FILES[1]), plan.parts.iter().map(|part| part.sequences as u64).sum::<u64>());
        let size = files::size(&places)?.unwrap_or(0);
        if size != count * RECORD {
            return Err(Error::data(places, format!("has {size} bytes, and the plan {count} sequences")));
        }
        let sequences = Sequences::open(&dir.join(FILES[0]), &dir.join(FILES[1]), &plan.request.cut, plan.documents)?;
        plan.check_sequences(&sequences, dir)?;
        let labels = dir.join(FILES[2]);
        if plan.digests.len() == FILES.len() {
            memory::check("the table of labels", files::size(&labels)?.unwrap_or(0), None)?;
        }
        for (name, digest) in FILES.iter().zip(&plan.digests) {
            let found = files::sha256(&dir.join(name))?;
            if found != *digest {
                return Err(Error::data(dir.join(name), format!("sha256 is {found} instead of {digest}")));
            }
        }
        let labels = match plan.digests.len() == FILES.len() {
            true => Some(load_parquet(&labels)?),
            false => None,
        };
        if let Some(labels) = labels.as_ref().filter(|labels| labels.height() != plan.documents as usize) {
            let what = format!("has {} rows of {} documents", labels.height(), plan.documents);
            return Err(Error::data(dir.join(FILES[2]), what));
        }
        let sites = plan.sites()?;
        check_sites(&sites)?;
        let widths = sites.iter().map(|site| width(model.config(), *site)).collect();
        let id = plan.id()?;
        let gather = Gather::new(model, &sites)?;
        let reader = Reader { model, sites, sequences, gather };
        Ok(Self { reader, tokenizer, dir: dir.to_path_buf(), plan, id, widths, labels, known: BTreeSet::new() })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes the parts of a piece that are not there yet; `progress` is called after every batch, and `go_on` between parts.
    /// Returns whether all are there.
    ///
    /// While a batch is computed the one before it is written, by a thread of its own.
    ///
    /// # Errors
    /// [`Error::TryAgain`] where another process writes the same piece; what the model, the disk and `progress` return.
    pub fn run(
        &mut self,
        piece: Piece,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let path = self.dir.join("lock");
        // One process has all parts for itself, or several share them, each with a piece of its own.
        let locks = match piece.of {
            1 => vec![Lock::open(&path)?],
            of => {
                let own = format!("piece-{}-of-{of}.lock", piece.index);
                vec![Lock::share(&path)?, Lock::open(&self.dir.join(own))?]
            }
        };
        read_for_pieces(&self.dir, Some(piece.of).filter(|of| *of > 1))?;
        let own: Vec<usize> = (0..self.plan.parts.len()).filter(|i| i % piece.of == piece.index).collect();
        files::remove_unfinished(&self.dir, |name| match piece.of {
            1 => files::is_own(name),
            of => files::part(name).is_some_and(|index| index % of == piece.index),
        })?;
        let mut state = Progress { all: own.iter().map(|i| self.plan.parts[*i].rows).sum(), ..Progress::default() };
        let mut written = Vec::new();
        for &index in &own {
            written.push(self.read_written(index)?);
        }
        let (mut left, mut times) = (Vec::new(), BTreeMap::new());
        written.iter().flatten().for_each(|sha256| *times.entry(sha256).or_insert(0) += 1);
        for (&index, sha256) in own.iter().zip(&written) {
            // One of two parts with the same bytes is a copy of the other, and nothing says which; but whole sequences may come twice.
            let times = sha256.as_ref().and_then(|sha256| times.get(sha256));
            match times.is_some_and(|times| *times == 1 || self.plan.request.layout == Layout::Saelens) {
                true => state.rows += self.plan.parts[index].rows,
                false => left.push(index),
            }
        }
        state.before = state.rows;
        progress(state)?;
        let Self { reader, tokenizer, dir, plan, id, widths, labels, known } = self;
        let sites = reader.sites.clone();
        let pool = process::pool(rayon::current_num_threads())?;
        let labels = labels.as_ref();
        let writer = Writer { dir, plan, id, tokenizer, labels, sites: &sites, widths, pool: &pool, locks: &locks };
        let done = std::thread::scope(|scope| {
            let (shares, to_write) = sync_channel(0);
            let (back, used) = channel();
            let writing = scope.spawn(move || writer.write_all(&to_write, &back));
            let done = Computing { reader, plan, widths, shares, used, state, progress }.parts(&left, go_on);
            match writing.join() {
                // Where the writer broke off, that is why nobody took the rows.
                Ok(written) => written.and(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        if done {
            known.extend(own);
        }
        Ok(done)
    }

    /// Seals the dataset, if every part is there; those that other processes wrote are read once more.
    ///
    /// # Errors
    /// As [`Manifest::seal`].
    pub fn seal(&self) -> Result<Manifest> {
        Manifest::seal(&self.dir, &self.plan, &self.known)
    }

    /// Rows per second, from the first batch, computed but not written.
    ///
    /// # Errors
    /// As [`Export::run`].
    pub fn measure(&mut self) -> Result<f64> {
        let request = &self.plan.request;
        let all = self.reader.sequences.all().to_vec();
        let batch = cuts(&all, request.batch_tokens).swap_remove(0);
        let mut rows = Rows::new(self.widths.len());
        self.reader.read(&all[batch.clone()], &request.cut, &mut rows)?; // the first time pays for pages and caches
        rows.clear();
        let start = Instant::now();
        self.reader.read(&all[batch], &request.cut, &mut rows)?;
        Ok(rows.len() as f64 / start.elapsed().as_secs_f64())
    }

    /// The sha256 of a part that is there, to the bit.
    fn read_written(&self, index: usize) -> Result<Option<String>> {
        // A record that is not of this part is none: the part is written again.
        let Some(Ok(record)) = Record::open(&self.dir, &self.plan, &self.id, index)? else { return Ok(None) };
        let path = self.dir.join(&record.file);
        let mut widths = self.plan.request.sites.iter().zip(&self.widths);
        let fits =
            |(site, width): (&String, &usize)| record.statistics.get(site).is_some_and(|own| own.mean.len() == *width);
        if !widths.all(fits) {
            return Ok(None);
        }
        let is_whole = files::size(&path)? == Some(record.bytes) && files::sha256(&path)? == record.sha256;
        Ok(is_whole.then_some(record.sha256))
    }
}

/// The half of the work that needs the model.
struct Computing<'a, 'm> {
    reader: &'a mut Reader<'m>,
    plan: &'a Plan,
    widths: &'a [usize],
    shares: SyncSender<Share>,
    used: Receiver<Rows>,
    state: Progress,
    progress: &'a mut dyn FnMut(Progress) -> Result<()>,
}

impl Computing<'_, '_> {
    /// Computes parts one after the other; returns whether it came to their end.
    fn parts(mut self, indices: &[usize], go_on: &dyn Fn() -> bool) -> Result<bool> {
        for &index in indices {
            if !go_on() || !self.part(index)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Computes a part and hands its rows to the writer; returns whether that took them.
    fn part(&mut self, index: usize) -> Result<bool> {
        let (part, request) = (self.plan.parts[index], &self.plan.request);
        let per_row = row_bytes(self.reader.model.config(), &self.reader.sites, request.dtype);
        let group = (GROUP_BYTES as u64 / per_row).max(1) as usize;
        let own = self.reader.sequences.all()[part.first..part.first + part.sequences].to_vec();
        let mut rows = self.fresh();
        let mut batches = cuts(&own, request.batch_tokens);
        if index + 1 == self.plan.parts.len() {
            taper(&mut batches, &own);
        }
        for batch in batches {
            self.reader.read(&own[batch.clone()], &request.cut, &mut rows)?;
            self.state.rows += own[batch].iter().map(|sequence| u64::from(sequence.rows)).sum::<u64>();
            if rows.len() >= group && !request.gathers() {
                let full = std::mem::replace(&mut rows, self.fresh());
                if self.shares.send((index, full)).is_err() {
                    return Ok(false);
                }
            }
            (self.progress)(self.state)?;
        }
        if request.mixes_rows() {
            let most = if request.layout.streams() { group } else { rows.len() };
            let mut shuffled = rows.shuffled(self.widths, most, request.cut.seed, part.first as u64);
            return Ok(shuffled.all(|rows| self.shares.send((index, rows)).is_ok()));
        }
        Ok(rows.len() == 0 || self.shares.send((index, rows)).is_ok())
    }

    /// No rows, in memory that was used before if there is some.
    fn fresh(&self) -> Rows {
        self.used.try_recv().unwrap_or_else(|_| Rows::new(self.widths.len()))
    }
}

/// Sequences that pass through the model together, in their order.
fn cuts(sequences: &[Sequence], most: usize) -> Vec<Range<usize>> {
    batches(sequences.iter().map(|sequence| sequence.length as usize), most)
}

/// Divides the last batch into smaller and smaller ones: what comes last is written while nothing is left to compute.
///
/// Only where that changes no bit: products of a few rows are added up in another order, and so is what a query gathers
/// where a batch's longest sequence is shorter.
fn taper(batches: &mut Vec<Range<usize>>, sequences: &[Sequence]) {
    const TIMES: usize = 3;
    /// Tokens of a batch at least.
    const LEAST: u64 = 512;
    let tokens = |batch: &Range<usize>| sequences[batch.clone()].iter().map(|own| u64::from(own.length)).sum::<u64>();
    let longest = |batch: &Range<usize>| sequences[batch.clone()].iter().map(|own| own.length).max();
    for _ in 0..TIMES {
        let Some(last) = batches.pop() else { return };
        let middle = last.start + last.len().div_ceil(2);
        let halves = [last.start..middle, middle..last.end];
        match halves.iter().all(|half| tokens(half) >= LEAST && longest(half) == longest(&last)) {
            true => batches.extend(halves),
            false => return batches.push(last),
        }
    }
}

/// The file that says, until there is a plan, that what is in the directory is the beginning of a dataset.
const BEGUN: &str = ".interp-export";

/// Takes a directory: a new one, an empty one, or one with a dataset or the beginning of one; returns whether it is new.
fn open_dir(dir: &Path) -> Result<bool> {
    let cannot = |what: String| Error::CannotWrite { path: dir.to_path_buf(), what };
    if dir.is_symlink() {
        return Err(cannot("it is a link; name the directory itself".into()));
    }
    let is_new = !dir.exists();
    disk::write_dir(dir)?;
    files::read_for_links(dir)?;
    let is_ours = || ["plan.json", BEGUN].iter().any(|name| dir.join(name).exists());
    if is_ours() {
        return Ok(false);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::reading(dir, e))?;
    let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    match names.find(|name| !name.starts_with('.')) {
        // Another process may have begun it meanwhile.
        Some(name) if !is_ours() => {
            Err(cannot(format!("it holds other files ({}); name a new directory", name.escape_debug())))
        }
        Some(_) => Ok(false),
        None => disk::write_mark(&dir.join(BEGUN)).map(|()| is_new),
    }
}

/// Removes what is left of a plan that was not made, and the directory where it was made for it.
fn remove_unplanned(dir: &Path, is_new: bool) {
    for name in FILES.into_iter().chain([BEGUN]) {
        let _ = std::fs::remove_file(dir.join(name));
    }
    if is_new {
        let _ = std::fs::remove_file(dir.join("plan.lock"));
        let _ = std::fs::remove_dir(dir); // unless somebody put something into it
    }
}

/// Takes a lock, waiting for a process that holds it.
fn wait(path: &Path) -> Result<Lock> {
    let start = Instant::now();
    loop {
        match Lock::open(path) {
            Err(Error::TryAgain(_)) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(100)),
            other => return other,
        }
    }
}

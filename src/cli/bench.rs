//! The workbench: a model with its tokenizer, the prompts, and how results were made.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device};
use interp::page::{self, Block};
use interp::plan::Applied;
use interp::text::Bos;
use interp::{Config, Edit, Error, Gpt2, Plan, Result, Tokenizer, Tokens, Trace, attention, memory};
use polars::prelude::DataFrame;

use super::args::{Edits, Global, Text};
use super::prompts::{read_prompts, truncated};
use super::source::{Source, open_files};

/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 8192;
/// What the frame and the picture of a result take, about: measured, the largest was 45 MB.
const REPORT_BYTES: u64 = 48_000_000;

/// What a prompt takes as tokens, and each byte of it, about.
const PROMPT_BYTES: u64 = 256;
const TEXT_BYTES: u64 = 24;
/// What a row of a frame of tokens takes: its columns, the vectors that they are made from, and those that pictures and pages are.
const ROW_BYTES: u64 = 320;

/// A model, ready to run.
pub struct Bench {
    pub model: Gpt2,
    pub tokenizer: Option<Tokenizer>,
    pub source: Source,
    pub dtype: DType,
    pub device: String,
    pub load_seconds: f64,
    quiet: bool,
}

impl Bench {
    /// Finds, checks and loads the model that the options name.
    pub fn open(global: &Global) -> Result<Self> {
        let start = Instant::now();
        let device = device(global)?;
        let dtype = global.dtype().into();
        let (checkpoint, tokenizer, source) = open_files(global)?;
        if global.memory.is_some() {
            memory::check("loading the weights", checkpoint.memory(dtype), global.memory)?;
        }
        interp::weights::check_vocabulary(tokenizer.as_ref(), checkpoint.config())?;
        for text in checkpoint.notes() {
            super::note(global.quiet, &format!("note: {text}"));
        }
        if let Some(tokenizer) = &tokenizer {
            remarks(tokenizer, global);
            if tokenizer.bos().is_none() && !tokenizer.is_of_characters() && global.encoding().bos == Bos::Auto {
                let why = "note: this tokenizer has no token that starts a text, and --bos auto adds none";
                super::note(global.quiet, why);
            }
        }
        let loaded = checkpoint.load(dtype, &device)?;
        if let Some(first) = loaded.not_finite.first() {
            let message =
                format!("{} tensors hold values that are not finite, the first is {first}", loaded.not_finite.len());
            if global.strict {
                return Err(Error::Data { path: PathBuf::from(&source.name), what: message });
            }
            super::note(global.quiet, &format!("warning: {message}"));
        }
        Ok(Self {
            model: loaded.model,
            tokenizer,
            source,
            dtype,
            device: interp::device::name(&device),
            load_seconds: start.elapsed().as_secs_f64(),
            quiet: global.quiet,
        })
    }

    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The tokenizer, or what to do about its absence.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Missing(format!("{}: no tokenizer beside the model; name one with --tokenizer", self.source.name))
        })
    }

    /// The prompts as tokens that fit the model.
    pub fn tokens(&self, global: &Global, text: &Text) -> Result<Tokens> {
        let tokenizer = self.tokenizer()?;
        let prompts = read_prompts(text, global)?;
        let limit = self.config().n_positions;
        let encoding = global.encoding();
        // Mostly a token has several bytes, and takes its id and its text.
        let bytes: u64 = prompts.iter().map(|prompt| PROMPT_BYTES + TEXT_BYTES * prompt.len() as u64).sum();
        memory::check(&format!("{} prompts as tokens", prompts.len()), bytes, global.memory)?;
        let tokens = tokenizer.tokens(&prompts, encoding)?;
        let Some(side) = text.truncate else {
            tokens.check(self.config(), 0)?;
            return Ok(tokens);
        };
        truncated(&tokens, limit, side, tokenizer, encoding)
    }

    /// Bytes that are left of --memory once the model is loaded; none without that option.
    pub fn room(&self, global: &Global) -> Result<Option<u64>> {
        let Some(limit) = global.memory else { return Ok(None) };
        let held = memory::held().unwrap_or(0) + REPORT_BYTES;
        memory::check("the loaded model, with frame and picture,", held, Some(limit))?;
        Ok(Some(limit - held))
    }

    /// Refuses a frame for which there is no room, before it is made.
    pub fn check_rows(&self, rows: u64, global: &Global) -> Result<()> {
        let room = self.room(global)?;
        memory::check(
            &format!("a frame of {rows} rows, with its picture and page,"),
            memory::product(&[rows, ROW_BYTES]),
            room,
        )
    }

    /// A name for the prompts: the first one, without the token that starts every text.
    pub fn name(&self, tokens: &Tokens) -> String {
        let row = tokens.row(0);
        let bos = self.tokenizer.as_ref().and_then(Tokenizer::bos) == row.first().copied();
        let text: String = (usize::from(bos)..row.len()).map(|pos| tokens.text(0, pos)).collect();
        if tokens.len() > 1 { format!("{text} and {} more", tokens.len() - 1) } else { text }
    }

    /// A plan with the edits of `--edit`.
    pub fn plan(&self, edits: &Edits) -> Result<Plan> {
        let Some(path) = &edits.edit else { return Ok(Plan::new()) };
        let text = interp::weights::read_text(path, 16 << 20)?;
        let edits: Vec<Edit> = interp::edit::parse_edits(&text, self.config().n_layer)
            .map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
        if edits.is_empty() {
            return Err(Error::Data { path: path.clone(), what: "holds no edit".into() });
        }
        Ok(Plan::new().edits(edits))
    }

    /// Checks a plan against all prompts, before anything runs: what it asks for can be done, and its edits can change what is read.
    pub fn check(&self, plan: &Plan, tokens: &Tokens) -> Result<()> {
        plan.check(self.config(), tokens)?;
        plan.check_effects(self.config())?;
        let narrowed = plan.edit_list().iter().find(|edit| edit.is_narrowed_by_prompt());
        match (narrowed, batches(tokens).len()) {
            (Some(edit), 2..) => Err(Error::Request(format!(
                "edit `{edit}`: edits of single prompts need all prompts in one batch of {BATCH_TOKENS} tokens; give fewer prompts"
            ))),
            _ => Ok(()),
        }
    }

    /// Runs a plan that was [checked](Bench::check) over all prompts, a batch at a time, and stacks the frames; says which edits changed
    /// nothing.
    pub fn run(
        &self,
        plan: &Plan,
        tokens: &Tokens,
        frame: impl Fn(&Trace) -> Result<DataFrame>,
    ) -> Result<(DataFrame, Vec<Applied>)> {
        let mut stacked: Option<DataFrame> = None;
        let mut applied = Vec::new();
        // Edits of single prompts count them in the batch as it is.
        let narrowed = plan.edit_list().iter().any(Edit::is_narrowed_by_prompt);
        for (first, batch) in batches(tokens) {
            let mut run = |part: std::ops::Range<usize>| {
                let trace = plan.run(&self.model, &batch.slice(part.clone()))?;
                applied = Applied::larger(std::mem::take(&mut applied), trace.edits());
                let part = interp::frame::shift_prompts(frame(&trace)?, (first + part.start) as u32)?;
                interp::frame::append(&mut stacked, part)
            };
            match narrowed {
                true => run(0..batch.len())?,
                false => memory::halving(0..batch.len(), &mut run)?,
            }
        }
        let frame = stacked.ok_or_else(|| Error::Bug("no batch".into()))?;
        self.report_edits(&applied)?;
        Ok((frame, applied))
    }

    /// Attention of all heads in one prompt, for a page whose cells stand for heads; says so where it would be too much.
    pub fn linked(&self, tokens: &Tokens) -> Result<Option<Block>> {
        let heads = self.config().n_layer * self.config().n_head;
        if !page::patterns_fit(tokens.longest(), heads) {
            let why = format!(
                "note: no attention on the page: {heads} heads on {} tokens would be too much",
                tokens.longest()
            );
            super::note(self.quiet, &why);
            return Ok(None);
        }
        let mut tokens = tokens.clone();
        if let Some(tokenizer) = &self.tokenizer {
            let text = tokens.row(0).iter().map(|&id| tokenizer.text(id)).collect();
            tokens = tokens.with_text(vec![text])?;
        }
        Ok(page::patterns(&tokens, &attention::of_prompt(&self.model, &tokens)?))
    }

    /// Says which edits changed nothing, or not every text; one that was never applied is an error.
    pub fn report_edits(&self, applied: &[Applied]) -> Result<()> {
        Applied::check(applied)?;
        for edit in applied {
            if edit.relative_change == Some(0.0) {
                super::note(
                    self.quiet,
                    &format!("note: edit `{}` changed nothing: the values were so already", edit.edit),
                );
            }
            if edit.missed > 0 {
                let texts = if edit.missed == 1 { "1 text, which" } else { &format!("{} texts, which", edit.missed) };
                super::note(
                    self.quiet,
                    &format!("note: edit `{}` did not reach {texts} ended before its position", edit.edit),
                );
            }
        }
        Ok(())
    }
}

/// Says what is worth knowing about a tokenizer.
pub fn remarks(tokenizer: &Tokenizer, global: &Global) {
    for remark in tokenizer.notes() {
        super::note(global.quiet, &format!("note: {remark}"));
    }
}

/// Cuts a batch into batches of a bounded number of padded tokens, with the index of each first prompt.
pub fn batches(tokens: &Tokens) -> Vec<(usize, Tokens)> {
    let lengths = (0..tokens.len()).map(|prompt| tokens.row(prompt).len());
    let all = interp::tokens::batches(lengths, BATCH_TOKENS).into_iter();
    all.map(|batch| (batch.start, tokens.slice(batch))).collect()
}

/// The device that the options name; a build for GPUs says what it took where that was left to it.
pub fn device(global: &Global) -> Result<Device> {
    let (device, why) = chosen(global)?;
    if let (Some(why), true) = (why, cfg!(feature = "cuda")) {
        super::note(global.quiet, &format!("note: computing on {} ({why})", interp::device::name(&device)));
    }
    Ok(device)
}

/// The device that the options name, and why that one where it was left open.
pub fn chosen(global: &Global) -> Result<(Device, Option<String>)> {
    let (device, why) = match global.device.as_str() {
        "auto" => {
            let (device, why) = interp::device::find();
            (device, Some(why))
        }
        name => (interp::device::open(name)?, None),
    };
    if global.tf32 {
        interp::device::allow_tf32(&device)?;
    }
    Ok((device, why))
}

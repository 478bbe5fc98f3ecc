//! The workbench: a model with its tokenizer, the prompts, and how results were made.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use interp::text::{Bos, Encoding};
use interp::weights::{Checkpoint, DigestCache, Files, Places, Progress, find};
use interp::{Config, Edit, Error, Gpt2, Plan, Result, Tokenizer, Tokens, Trace, embedded, memory};
use polars::prelude::DataFrame;

use super::args::{Edits, Global, Side, Text};

/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 8192;
/// Largest file of prompts.
const MAX_TEXT: u64 = 64 << 20;

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

/// Where the model came from.
pub struct Source {
    pub name: String,
    pub files: Option<Files>,
    /// sha256 of weights and tokenizer, computed beside the work.
    digests: std::thread::JoinHandle<Result<Digests>>,
}

#[derive(Clone, Debug, Default)]
pub struct Digests {
    pub weights: Vec<String>,
    pub tokenizer: Option<String>,
}

impl Bench {
    /// Finds, checks and loads the model that the options name.
    pub fn open(global: &Global) -> Result<Self> {
        let start = Instant::now();
        let device = device(&global.device)?;
        let dtype = global.dtype.into();
        let (checkpoint, tokenizer, source) = open_files(global)?;
        if let Some(limit) = &global.memory {
            memory::check("the weights", checkpoint.memory(dtype), Some(memory::parse(limit)?))?;
        }
        check_vocabulary(tokenizer.as_ref(), checkpoint.config())?;
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
            device: if device.is_cpu() { "cpu".into() } else { global.device.clone() },
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
        let prompts = read_prompts(text)?;
        let limit = self.config().n_positions;
        let encoding = global.encoding();
        let tokens = tokenizer.tokens(&prompts, encoding)?;
        let Some(side) = text.truncate else {
            tokens.check(self.config(), 0)?;
            return Ok(tokens);
        };
        truncated(&tokens, limit, side, tokenizer, encoding)
    }

    /// A plan with the edits of `--edit`.
    pub fn plan(&self, edits: &Edits) -> Result<Plan> {
        let Some(path) = &edits.edit else { return Ok(Plan::new()) };
        let bytes = interp::weights::read_small(path, 16 << 20)?;
        let data = |what: String| Error::Data { path: path.clone(), what };
        let text = String::from_utf8(bytes).map_err(|e| data(format!("not UTF-8: {e}")))?;
        let edits: Vec<Edit> = interp::edit::parse_edits(&text, self.config().n_layer)
            .map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
        if edits.is_empty() {
            return Err(data("holds no edit".into()));
        }
        Ok(Plan::new().edits(edits))
    }

    /// Runs a plan over all prompts, a batch at a time, and stacks the frames; says which edits changed nothing.
    pub fn run(
        &self,
        plan: &Plan,
        tokens: &Tokens,
        frame: impl Fn(&Trace) -> Result<DataFrame>,
    ) -> Result<(DataFrame, Vec<interp::plan::Applied>)> {
        let mut stacked: Option<DataFrame> = None;
        let mut applied = Vec::new();
        for (first, batch) in batches(tokens) {
            if first > 0 && plan.edit_list().iter().any(Edit::is_narrowed_by_prompt) {
                return Err(Error::Request(format!(
                    "edits of single prompts need all prompts in one batch of {BATCH_TOKENS} tokens; give fewer prompts"
                )));
            }
            let trace = plan.run(&self.model, &batch)?;
            applied = merge(applied, trace.edits());
            let part = interp::frame::shift_prompts(frame(&trace)?, first as u32)?;
            match &mut stacked {
                Some(stacked) => {
                    stacked.vstack_mut(&part)?;
                }
                None => stacked = Some(part),
            }
        }
        let frame = stacked.ok_or_else(|| Error::Bug("no batch".into()))?;
        self.report_edits(&applied);
        Ok((frame, applied))
    }

    pub fn report_edits(&self, applied: &[interp::plan::Applied]) {
        for edit in applied.iter().filter(|edit| edit.relative_change == Some(0.0)) {
            super::note(self.quiet, &format!("note: edit `{}` changed nothing: the values were so already", edit.edit));
        }
    }
}

impl Source {
    /// Hashes of what was loaded; waits for them.
    pub fn digests(self) -> Result<Digests> {
        self.digests.join().unwrap_or_else(|_| Err(Error::Bug("hashing failed".into())))
    }
}

/// Edits of several batches: the largest change of each.
fn merge(before: Vec<interp::plan::Applied>, now: &[interp::plan::Applied]) -> Vec<interp::plan::Applied> {
    if before.is_empty() {
        return now.to_vec();
    }
    let larger = |(mut a, b): (interp::plan::Applied, &interp::plan::Applied)| {
        a.relative_change = [a.relative_change, b.relative_change].into_iter().flatten().reduce(f64::max);
        a
    };
    before.into_iter().zip(now).map(larger).collect()
}

/// Cuts a batch into batches of a bounded number of padded tokens, with the index of each first prompt.
pub fn batches(tokens: &Tokens) -> Vec<(usize, Tokens)> {
    let mut cuts = vec![0];
    let (mut rows, mut longest) = (0, 0);
    for prompt in 0..tokens.len() {
        longest = longest.max(tokens.row(prompt).len());
        rows += 1;
        if rows > 1 && rows * longest > BATCH_TOKENS {
            cuts.push(prompt);
            (rows, longest) = (1, tokens.row(prompt).len());
        }
    }
    cuts.push(tokens.len());
    cuts.windows(2).map(|pair| (pair[0], tokens.slice(pair[0]..pair[1]))).collect()
}

/// The checkpoint and tokenizer of a model, checked but not loaded.
pub fn open_files(global: &Global) -> Result<(Checkpoint, Option<Tokenizer>, Source)> {
    let given = global.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let given_path = global.tokenizer.clone();
    if global.model == embedded::NAME {
        let tokenizer = match given {
            Some(tokenizer) => tokenizer,
            None => embedded::tokenizer()?,
        };
        let digests = std::thread::spawn(move || {
            Ok(Digests {
                weights: vec![interp::weights::sha256_of(embedded::WEIGHTS)],
                tokenizer: Some(interp::weights::sha256_of(embedded::TOKENIZER)),
            })
        });
        let source = Source { name: embedded::NAME.into(), files: None, digests };
        return Ok((embedded::checkpoint()?, Some(tokenizer), source));
    }
    let mut places = Places::from_env()?;
    places.offline |= global.offline;
    let mut bar = Bar::new(global.quiet);
    let files = find(&global.model, &places, &mut bar)?;
    bar.finish();
    let bytes = interp::weights::read_small(&files.config, 1 << 20)?;
    let config = Config::parse(&bytes, &files.config)?;
    let checkpoint = Checkpoint::open(&files.weights, &config)?;
    let tokenizer_path = given_path.or_else(|| files.tokenizer.clone());
    let tokenizer = match (given, &files.tokenizer) {
        (Some(tokenizer), _) => Some(tokenizer),
        (None, Some(path)) => Some(Tokenizer::load(path)?),
        (None, None) => None,
    };
    let digests = {
        let (weights, cache) = (files.weights.clone(), DigestCache::new(places.digests.clone()));
        std::thread::spawn(move || digests(&weights, tokenizer_path.as_deref(), &cache))
    };
    let source = Source { name: global.model.clone(), files: Some(files), digests };
    Ok((checkpoint, tokenizer, source))
}

/// Hashes of the files, each compared with the hash that its name in the Hugging Face cache promises.
fn digests(weights: &[PathBuf], tokenizer: Option<&Path>, cache: &DigestCache) -> Result<Digests> {
    let mut found = Vec::new();
    for file in weights {
        let digest = cache.sha256(file)?;
        let promised = std::fs::canonicalize(file)
            .ok()
            .and_then(|blob| interp::weights::Expected::from_etag(blob.file_name()?.to_str()?));
        if let Some(interp::weights::Expected::Sha256(promised)) = promised {
            if promised != digest {
                return Err(Error::Data {
                    path: file.clone(),
                    what: format!(
                        "sha256 is {digest}, but the cache promises {promised}; delete the file and download it again"
                    ),
                });
            }
        }
        found.push(digest);
    }
    let tokenizer = match tokenizer {
        Some(path) if path.is_dir() => Some(cache.sha256(&path.join("vocab.json"))?),
        Some(path) => Some(cache.sha256(path)?),
        None => None,
    };
    Ok(Digests { weights: found, tokenizer })
}

fn check_vocabulary(tokenizer: Option<&Tokenizer>, config: &Config) -> Result<()> {
    match tokenizer.map(Tokenizer::vocab_size) {
        Some(size) if size > config.vocab_size => Err(Error::Data {
            path: PathBuf::from("tokenizer"),
            what: format!("has {size} tokens, but the model knows {}: it belongs to another model", config.vocab_size),
        }),
        _ => Ok(()),
    }
}

/// The device that a name means on this machine.
pub fn device(name: &str) -> Result<Device> {
    match name.split_once(':').map_or((name, None), |(kind, n)| (kind, Some(n))) {
        ("auto" | "cpu", None) => Ok(Device::Cpu),
        ("cuda", n) if n.is_none_or(|n| n.parse::<usize>().is_ok()) => {
            Err(Error::Unavailable("this build has no CUDA; use --device cpu".into()))
        }
        _ => Err(Error::Request(format!("`{}` is no device; there are auto, cpu and cuda[:N]", name.escape_debug()))),
    }
}

/// The texts that the options name.
pub fn read_prompts(text: &Text) -> Result<Vec<String>> {
    let from_stdin = match &text.stdin {
        Some(dash) if dash == "-" => true,
        Some(other) => {
            let other = other.to_string_lossy();
            return Err(Error::Request(format!("`{}` is not an option; write --prompt TEXT", other.escape_debug())));
        }
        None => text.file.as_deref() == Some(Path::new("-")),
    };
    let sources = usize::from(!text.prompt.is_empty()) + usize::from(text.file.is_some() || text.stdin.is_some());
    if sources > 1 || (text.file.is_some() && text.stdin.is_some()) {
        return Err(Error::Request("give text by one of --prompt, --file and -, not by several".into()));
    }
    if !text.prompt.is_empty() {
        return text
            .prompt
            .iter()
            .enumerate()
            .map(|(i, prompt)| decode(prompt.as_encoded_bytes(), text.lossy, Path::new(&format!("prompt {i}"))))
            .collect();
    }
    let (bytes, path) = match &text.file {
        _ if from_stdin => {
            if std::io::stdin().is_terminal() {
                return Err(Error::Request("standard input is a terminal; give --prompt TEXT or pipe text in".into()));
            }
            let mut bytes = Vec::new();
            let path = PathBuf::from("standard input");
            std::io::stdin()
                .take(MAX_TEXT + 1)
                .read_to_end(&mut bytes)
                .map_err(|source| Error::Io { path: path.clone(), source })?;
            (bytes, path)
        }
        Some(path) => (interp::weights::read_small(path, MAX_TEXT)?, path.clone()),
        None => return Err(Error::Request("no text: give --prompt TEXT, --file PATH, or - for standard input".into())),
    };
    if bytes.len() as u64 > MAX_TEXT {
        return Err(Error::Data { path, what: format!("more than the {MAX_TEXT} bytes that are read") });
    }
    let content = decode(&bytes, text.lossy, &path)?;
    let content = content.strip_prefix('\u{feff}').unwrap_or(&content);
    let json = path.extension().is_some_and(|e| e == "jsonl");
    let prompts = content
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| if json { json_text(line, i, &path) } else { Ok(line.to_string()) })
        .collect::<Result<Vec<_>>>()?;
    if prompts.is_empty() {
        return Err(Error::Request(format!("{} holds no text", path.display())));
    }
    Ok(prompts)
}

fn json_text(line: &str, number: usize, path: &Path) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(line)
        .map_err(|e| Error::Data { path: path.to_path_buf(), what: format!("line {}: not JSON: {e}", number + 1) })?;
    match value.get("text").and_then(|text| text.as_str()) {
        Some(text) => Ok(text.to_string()),
        None => Err(Error::Data { path: path.to_path_buf(), what: format!("line {}: no text field", number + 1) }),
    }
}

fn decode(bytes: &[u8], lossy: bool, path: &Path) -> Result<String> {
    if lossy {
        return Ok(String::from_utf8_lossy(bytes).into_owned());
    }
    std::str::from_utf8(bytes).map(str::to_string).map_err(|e| Error::Data {
        path: path.to_path_buf(),
        what: format!("not UTF-8 at byte {}; pass --lossy to replace such bytes", e.valid_up_to()),
    })
}

/// Drops tokens on one side; a prepended end-of-text token stays first.
fn truncated(tokens: &Tokens, limit: usize, side: Side, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Tokens> {
    let rows: Vec<Vec<u32>> = (0..tokens.len())
        .map(|prompt| {
            let row = tokens.row(prompt);
            let bos = encoding.bos != Bos::No && row.first().copied() == tokenizer.end_of_text();
            match side {
                _ if row.len() <= limit => row.to_vec(),
                Side::Right => row[..limit].to_vec(),
                Side::Left if bos => row[..1].iter().chain(&row[row.len() - (limit - 1)..]).copied().collect(),
                Side::Left => row[row.len() - limit..].to_vec(),
            }
        })
        .collect();
    let text = rows.iter().map(|row| row.iter().map(|&id| tokenizer.text(id)).collect()).collect();
    Tokens::from_ids(rows)?.with_text(text)
}

/// A progress bar for downloads, on a terminal only.
pub struct Bar {
    bar: Option<indicatif::ProgressBar>,
    file: String,
}

impl Bar {
    pub fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = shown.then(|| {
            let bar = indicatif::ProgressBar::new(0);
            if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, file: String::new() }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn update(&mut self, file: &str, done: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        if self.file != file {
            self.file = file.to_string();
            bar.set_message(self.file.clone());
            bar.set_length(total);
        }
        bar.set_position(done);
    }
}

//! `models convert`: a checkpoint of nanoGPT becomes a model that every command reads.
//!
//! The pickle is read by a second process with limits on memory and time. It writes plain weights, which this one then
//! checks as it checks any others.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use interp::ops::Gelu;
use interp::weights::{Checkpoint, NanoGpt, nanogpt, write_model};
use interp::{Config, Error, Result, Tokenizer, disk, memory};
use polars::df;
use serde::{Deserialize, Serialize};

use super::args::Global;
use super::models::show;
use super::report::{output_dir, print};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The checkpoint that nanoGPT wrote, such as out-shakespeare-char/ckpt.pt.
    checkpoint: PathBuf,
    /// Its vocabulary of characters [default: meta.pkl beside it, or data/DATASET/meta.pkl below the current directory].
    #[arg(long, value_name = "meta.pkl", conflicts_with = "tokenizer")]
    meta: Option<PathBuf>,
    /// GELU with which it was trained, which a checkpoint does not say: gelu is today's nanoGPT, gelu_new its older
    /// versions and GPT-2's.
    #[arg(long, value_enum, default_value = "gelu")]
    activation: Activation,
    /// Keep the rows with which nanoGPT pads GPT-2's vocabulary from 50,257 to 50,304.
    #[arg(long)]
    keep_padding: bool,
}

/// What the second process is told.
#[derive(clap::Args, Debug)]
pub struct ReaderArgs {
    checkpoint: PathBuf,
    dir: PathBuf,
    #[arg(long, value_enum)]
    activation: Activation,
    #[arg(long)]
    keep_padding: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Activation {
    Gelu,
    #[value(name = "gelu_new")]
    GeluNew,
}

impl From<Activation> for Gelu {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => Gelu::Erf,
            Activation::GeluNew => Gelu::Tanh,
        }
    }
}

/// What the second process answers; faults without the path, which the first one knows.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Read { dataset: Option<String>, steps: Option<u64>, trimmed: usize },
    Missing(String),
    Data(String),
    TryAgain(String),
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let out = output_dir("convert", global, &args.checkpoint.display().to_string())?;
    let given = match (&args.meta, &global.tokenizer) {
        (Some(meta), _) => Some(nanogpt::characters(meta)?),
        (None, Some(path)) => Some(Tokenizer::load(path)?),
        (None, None) => None,
    };
    let scratch = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let (dataset, steps, trimmed) = read_apart(&args, scratch.path())?;
    let tokenizer = match given {
        Some(tokenizer) => Some(tokenizer),
        None => vocabulary(&args.checkpoint, dataset.as_deref())?,
    };

    let config_path = scratch.path().join("config.json");
    let config = Config::parse(&interp::weights::read_small(&config_path, 1 << 20)?, &config_path)?;
    interp::weights::check_vocabulary(tokenizer.as_ref(), &config)?;
    let checkpoint = Checkpoint::open(&[scratch.path().join("model.safetensors")], &config)?;
    let loaded = checkpoint.load(candle_core::DType::F32, &candle_core::Device::Cpu)?;
    if !loaded.not_finite.is_empty() && global.strict {
        let what = format!("{} holds values that are not finite", loaded.not_finite.join(", "));
        return Err(Error::Data { path: args.checkpoint, what });
    }
    disk::write_dir(&out)?;
    write_model(&out, &loaded.model, tokenizer.as_ref())?;

    let frame = df!(
        "model" => [out.display().to_string()],
        "layers" => [config.n_layer as u64],
        "heads" => [config.n_head as u64],
        "width" => [config.n_embd as u64],
        "context" => [config.n_positions as u64],
        "vocabulary" => [config.vocab_size as u64],
        "parameters" => [config.parameters()],
        "steps" => [steps],
        "dataset" => [dataset.clone()],
        "trimmed" => [trimmed as u64],
    )?;
    let vocabulary = match (&tokenizer, trimmed) {
        (Some(t), 0) if t.is_of_characters() => format!("{} characters", t.vocab_size()),
        (Some(t), 0) => format!("{} tokens", t.vocab_size()),
        (Some(t), n) => format!("{} tokens; {n} rows of padding are left out", t.vocab_size()),
        (None, _) => "no tokenizer: pass --tokenizer with GPT-2's files here, or wherever the model is used".into(),
    };
    let text = format!(
        "{} layers, {} heads, width {}, context {}, {} parameters, {}{}\n{vocabulary}\nwrote {}",
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_positions,
        config.parameters(),
        if config.activation == Gelu::Erf { "exact GELU" } else { "GELU in its tanh form" },
        steps.map_or(String::new(), |steps| format!(", trained for {steps} steps")),
        out.display(),
    );
    show(global, &frame, text)
}

/// The characters that sample.py of nanoGPT would use.
fn vocabulary(checkpoint: &Path, dataset: Option<&str>) -> Result<Option<Tokenizer>> {
    let below = dataset
        .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)))
        .map(|name| Path::new("data").join(name).join("meta.pkl"));
    let beside = checkpoint.with_file_name("meta.pkl");
    let meta = [Some(beside), below].into_iter().flatten().find(|path| path.is_file());
    meta.map(|path| nanogpt::characters(&path)).transpose()
}

/// Has the checkpoint read by a second process, which leaves weights in `dir`.
fn read_apart(args: &Args, dir: &Path) -> Result<(Option<String>, Option<u64>, usize)> {
    let io = |source| Error::Io { path: args.checkpoint.clone(), source };
    let mut reader = Command::new(std::env::current_exe().map_err(io)?);
    reader.args(["models", "read-checkpoint"]).arg(&args.checkpoint).arg(dir);
    reader.args(["--activation", Gelu::from(args.activation).name()]);
    if args.keep_padding {
        reader.arg("--keep-padding");
    }
    let output = reader.stdin(Stdio::null()).stderr(Stdio::null()).output().map_err(io)?;
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        Answer::Data(format!("reading it took more memory or time than weights do, or failed ({})", output.status))
    });
    match answer {
        Answer::Read { dataset, steps, trimmed } => Ok((dataset, steps, trimmed)),
        Answer::Missing(message) => Err(Error::Missing(message)),
        Answer::Data(what) => Err(Error::Data { path: args.checkpoint.clone(), what }),
        Answer::TryAgain(message) => Err(Error::TryAgain(message)),
    }
}

/// The second process.
pub fn read(args: ReaderArgs) -> Result<()> {
    limit(&args.checkpoint)?;
    let answer = read_limited(&args).unwrap_or_else(|e| match e {
        Error::Missing(message) => Answer::Missing(message),
        Error::TryAgain(_) | Error::Io { .. } | Error::CannotWrite { .. } => Answer::TryAgain(e.to_string()),
        Error::Data { what, .. } => Answer::Data(what),
        other => Answer::Data(other.to_string()),
    });
    print(&serde_json::to_string(&answer).map_err(|e| Error::Bug(e.to_string()))?)
}

fn read_limited(args: &ReaderArgs) -> Result<Answer> {
    let mut checkpoint = NanoGpt::open(&args.checkpoint, args.activation.into())?;
    memory::check("the weights", 8 * checkpoint.config().parameters(), None)?;
    let trimmed = if args.keep_padding { 0 } else { checkpoint.trim_padding() };
    let (dataset, steps) = (checkpoint.dataset().map(str::to_string), checkpoint.steps());
    write_model(&args.dir, &checkpoint.load()?, None)?;
    Ok(Answer::Read { dataset, steps, trimmed })
}

/// Memory and time that weights of this size may take.
fn limit(checkpoint: &Path) -> Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let size = std::fs::metadata(checkpoint).map_or(0, |m| m.len());
    let both = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    for (resource, most) in [(Resource::As, (1 << 30) + 3 * size), (Resource::Cpu, 30 + size / 10_000_000)] {
        setrlimit(resource, both(most))
            .map_err(|e| Error::Unavailable(format!("cannot limit memory and time: {e}")))?;
    }
    Ok(())
}

//! Pickles are read by a second process with limits on memory and time, which calls nothing in them. It answers with plain
//! values, or writes plain weights that the first one then checks as it checks any others.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use interp::ops::Gelu;
use interp::weights::{Hints, TorchModel, nanogpt, write_model};
use interp::{Error, Result, Tokenizer, memory};
use serde::{Deserialize, Serialize};

use super::output::print;

/// GELU by the names that `config.json` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Activation {
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

/// The command line of the child process that reads a model.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelArgs {
    /// The files of its weights.
    pub files: Vec<PathBuf>,
    /// Where the weights go.
    #[arg(long)]
    pub to: PathBuf,
    /// A directory whose config.json describes the model, if it has one.
    #[arg(long)]
    pub beside: PathBuf,
    #[arg(long, value_enum)]
    pub activation: Option<Activation>,
    #[arg(long)]
    pub heads: Option<usize>,
    #[arg(long)]
    pub keep_padding: bool,
}

/// The command line of the child process that reads a vocabulary.
#[derive(clap::Args, Debug)]
pub struct CharactersArgs {
    meta: PathBuf,
}

/// What is known of a model whose weights were written.
#[derive(Debug, Serialize, Deserialize)]
pub struct Read {
    pub dataset: Option<String>,
    pub steps: Option<u64>,
    /// Rows of padding that were left out.
    pub trimmed: usize,
    pub notes: Vec<String>,
}

/// What the second process answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Model(Read),
    Characters(Vec<char>),
    Request(String),
    Missing(String),
    /// The file, and its fault.
    Data(String, String),
    TryAgain(String),
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        match error {
            Error::Request(message) => Answer::Request(message),
            Error::Missing(message) => Answer::Missing(message),
            Error::Data { path, what } => Answer::Data(path.display().to_string(), what),
            Error::TryAgain(_) | Error::Io { .. } | Error::CannotWrite { .. } => Answer::TryAgain(error.to_string()),
            other => Answer::Data(String::new(), other.to_string()),
        }
    }
}

/// Has the weights of a model read by a second process, which leaves them as `model.safetensors` with their config in `args.to`.
pub fn model(args: &ModelArgs) -> Result<Read> {
    let mut reader = reader("read-checkpoint")?;
    reader.arg("--to").arg(&args.to).arg("--beside").arg(&args.beside);
    if let Some(activation) = args.activation {
        reader.args(["--activation", Gelu::from(activation).name()]);
    }
    if let Some(heads) = args.heads {
        reader.args(["--heads", &heads.to_string()]);
    }
    if args.keep_padding {
        reader.arg("--keep-padding");
    }
    reader.arg("--").args(&args.files);
    let first = args.files.first().cloned().unwrap_or_default();
    match answer(reader, &first)? {
        Answer::Model(read) => Ok(read),
        other => Err(Error::Bug(format!("asked for a model, got {other:?}"))),
    }
}

/// Has nanoGPT's `meta.pkl` read by a second process.
pub fn characters(meta: &Path) -> Result<Tokenizer> {
    let mut reader = reader("read-characters")?;
    reader.arg("--").arg(meta);
    match answer(reader, meta)? {
        Answer::Characters(characters) => Tokenizer::from_characters(&characters),
        other => Err(Error::Bug(format!("asked for characters, got {other:?}"))),
    }
}

fn reader(action: &str) -> Result<Command> {
    let this = std::env::current_exe().map_err(|source| Error::Io { path: "interp".into(), source })?;
    let mut reader = Command::new(this);
    reader.args(["models", action]);
    Ok(reader)
}

fn answer(mut reader: Command, file: &Path) -> Result<Answer> {
    let io = |source| Error::Io { path: file.to_path_buf(), source };
    let output = reader.stdin(Stdio::null()).stderr(Stdio::null()).output().map_err(io)?;
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let what = format!("reading it took more memory or time than it should, or failed ({})", output.status);
        Answer::Data(String::new(), what)
    });
    match answer {
        Answer::Request(message) => Err(Error::Request(message)),
        Answer::Missing(message) => Err(Error::Missing(message)),
        Answer::Data(path, what) if path.is_empty() => Err(Error::Data { path: file.to_path_buf(), what }),
        Answer::Data(path, what) => Err(Error::Data { path: path.into(), what }),
        Answer::TryAgain(message) => Err(Error::TryAgain(message)),
        read => Ok(read),
    }
}

/// The second process, for weights.
pub fn read_model(args: &ModelArgs) -> Result<()> {
    limit(&args.files, 1 << 30)?;
    say(read_model_limited(args))
}

fn read_model_limited(args: &ModelArgs) -> Result<Answer> {
    let activation = args.activation.map(Gelu::from);
    let mut model = match Hints::read_from(&args.beside) {
        Ok(hints) => TorchModel::open(&args.files, &hints.with(args.heads, activation)?)?,
        // A checkpoint of nanoGPT describes itself, whatever lies beside it; nothing else does without --heads.
        Err(fault) => {
            let hints = Hints { activation, ..Hints::default() };
            TorchModel::open(&args.files, &hints).map_err(|e| if matches!(e, Error::Request(_)) { fault } else { e })?
        }
    };
    memory::check("the weights", 8 * model.config().parameters(), None)?;
    let trimmed = if args.keep_padding { 0 } else { model.trim_padding() };
    let (dataset, steps, notes) = (model.dataset().map(str::to_string), model.steps(), model.notes());
    write_model(&args.to, &model.load()?, None)?;
    Ok(Answer::Model(Read { dataset, steps, trimmed, notes }))
}

/// The second process, for a vocabulary.
pub fn read_characters(args: &CharactersArgs) -> Result<()> {
    limit(std::slice::from_ref(&args.meta), 256 << 20)?;
    say(nanogpt::characters(&args.meta).map(Answer::Characters))
}

fn say(answer: Result<Answer>) -> Result<()> {
    let answer = answer.unwrap_or_else(Answer::from);
    print(&serde_json::to_string(&answer).map_err(|e| Error::Bug(e.to_string()))?)
}

/// Memory and time that files of this size may take, beyond what the process has taken already; `least` for any size.
fn limit(files: &[PathBuf], least: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let size: u64 = files.iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum();
    let memory = mapped() + least + 3 * size;
    for (resource, most) in [(Resource::As, memory), (Resource::Cpu, 30 + size / 10_000_000)] {
        // A limit that was set from outside may be lower, and cannot be raised.
        let most = Some(getrlimit(resource).maximum.map_or(most, |outer| outer.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })
            .map_err(|e| Error::Unavailable(format!("cannot limit memory and time: {e}")))?;
    }
    Ok(())
}

/// Bytes of address space that this process has, which is more with every thread.
fn mapped() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size =
        status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    size.unwrap_or(0) << 10
}

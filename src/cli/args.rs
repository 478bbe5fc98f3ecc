//! Options that several commands share.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use interp::Result;
use interp::frame::Csv;
use interp::text::{Bos, Encoding};

use super::honours::Given;
use super::request;

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Model: tiny (built in), gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, owner/repo[@revision], a directory
    /// or a .safetensors file.
    #[arg(long, global = true, default_value = "tiny", value_name = "MODEL")]
    pub model: String,
    /// Tokenizer, if it is not beside the model: tokenizer.json, or a directory with it or vocab.json and merges.txt.
    #[arg(long, global = true, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Where to compute: auto, cpu or cuda[:N].
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// On a GPU, let products of f32 round their input to TF32: faster, and right to 1e-3 or so.
    #[arg(long, global = true)]
    pub tf32: bool,
    /// Type of weights and activations; sums, LayerNorm and softmax are always in f32. In training, what matrices are multiplied in
    /// [default: f32, or the recipe's].
    #[arg(long, global = true, value_enum)]
    pub dtype: Option<Dtype>,
    /// Start prompts with the token that starts a text, such as <|endoftext|>: auto prepends it unless it is there, yes prepends it
    /// always.
    #[arg(long, global = true, default_value = "auto", value_enum)]
    pub bos: BosArg,
    /// Read special tokens that are written in a text, such as <|endoftext|>, as these tokens instead of as text.
    #[arg(long, global = true)]
    pub allow_special: bool,
    /// Seed of everything random.
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Directory for frame, figures and run.json [default: outputs/COMMAND/NAME].
    #[arg(long, global = true, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Directory outputs/COMMAND/NAME; letters, digits, dots, dashes and underscores.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "out", value_parser = run_name)]
    pub name: Option<String>,
    /// What stdout carries: text for people, or the whole frame as json or csv.
    #[arg(long, global = true, default_value = "text", value_enum)]
    pub format: Format,
    /// With --format csv, put ' before texts that a spreadsheet would compute, such as =1+1.
    #[arg(long, global = true)]
    pub escape_formulas: bool,
    /// Print nothing but errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Never touch the network.
    #[arg(long, global = true)]
    pub offline: bool,
    /// Refuse what would need more memory than this, such as 800MB or 4GB [default: what is available].
    #[arg(long, global = true, value_name = "SIZE", value_parser = interp::memory::parse)]
    pub memory: Option<u64>,
    /// What an hour of this machine costs: results and estimates then say what they cost.
    #[arg(long, global = true, value_name = "PER_HOUR", value_parser = price)]
    pub price: Option<f64>,
    /// Refuse weights with values that are not finite, instead of warning.
    #[arg(long, global = true)]
    pub strict: bool,
    /// What stands on the command line, this command's own options included.
    #[arg(skip)]
    pub given: Given,
}

/// A name that is one directory below another, on every system.
fn run_name(name: &str) -> std::result::Result<String, String> {
    let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    let reserved = ["con", "prn", "aux", "nul"].contains(&name.to_ascii_lowercase().as_str());
    let ends = name.starts_with(['.', '-']) || name.ends_with('.');
    if (1..=64).contains(&name.len()) && letters && !ends && !reserved {
        return Ok(name.to_string());
    }
    Err("a name is 1 to 64 letters, digits, dots, dashes and underscores, with no dot or dash in front; --out takes any directory".into())
}

/// Largest price of an hour, in whatever money.
const MOST_PER_HOUR: f64 = 1e9;

/// An amount of money.
fn price(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if (0.0..=MOST_PER_HOUR).contains(&price) => Ok(price),
        _ => Err(format!("a price is a number from 0 to {MOST_PER_HOUR}")),
    }
}

/// Where text comes from.
#[derive(Args, Debug, Default)]
pub struct Text {
    /// A prompt; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<OsString>,
    /// A file with one prompt per line, .jsonl or .ndjson with a `text` field per line, or .parquet; - is standard input.
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// - reads prompts from standard input, one per line.
    #[arg(value_name = "-")]
    pub stdin: Option<OsString>,
    /// Shorten prompts that are longer than the context, by dropping tokens on this side.
    #[arg(long, value_enum, value_name = "SIDE")]
    pub truncate: Option<Side>,
    /// Replace bytes that are not UTF-8 instead of refusing them.
    #[arg(long)]
    pub lossy: bool,
}

impl Text {
    /// Whether any text was named.
    pub fn is_given(&self) -> bool {
        !self.prompt.is_empty() || self.file.is_some() || self.stdin.is_some()
    }

    /// Refuses how text is read where none is; `why` says what is instead.
    pub fn refuse(&self, why: &str) -> Result<()> {
        let option = match self {
            Text { truncate: Some(_), .. } => "--truncate",
            Text { lossy: true, .. } => "--lossy",
            _ => return Ok(()),
        };
        Err(request(format!("{option} would do nothing: {why}; it goes with --prompt, --file and -")))
    }
}

/// Interventions.
#[derive(Args, Debug, Default)]
pub struct Edits {
    /// A file of edits (TOML or JSON) to apply while the model runs. Positions count from the start of the text, negative ones from its
    /// end; in generate, from the end of the prompt.
    #[arg(long, value_name = "FILE")]
    pub edit: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for candle_core::DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => candle_core::DType::F32,
            Dtype::Bf16 => candle_core::DType::BF16,
            Dtype::F16 => candle_core::DType::F16,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BosArg {
    Auto,
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
    Csv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    Left,
    Right,
}

impl Global {
    /// Type of weights and activations.
    pub fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(Dtype::F32)
    }

    /// Options that say where something is computed and at what price, for another process; they do not change what it is.
    pub fn machine(&self) -> Vec<String> {
        let mut words: Vec<String> = vec![format!("--device={}", self.device)];
        for (flag, on) in [("--tf32", self.tf32), ("--offline", self.offline), ("--strict", self.strict)] {
            words.extend(on.then(|| flag.to_string()));
        }
        words.extend(self.memory.iter().map(|limit| format!("--memory={limit}")));
        words.extend(self.price.iter().map(|price| format!("--price={price}")));
        words
    }

    /// Refuses options that nothing reads, by their ids; `why` says why not here.
    pub fn refuse(&self, options: &[&str], why: &str) -> Result<()> {
        self.given.refuse(options, why)
    }

    /// How frames are written as CSV.
    pub fn csv(&self) -> Csv {
        Csv { escape_formulas: self.escape_formulas }
    }

    /// What some seconds cost at --price.
    pub fn cost(&self, seconds: f64) -> Option<f64> {
        self.price.map(|price| price * seconds / 3600.0)
    }

    pub fn encoding(&self) -> Encoding {
        let bos = match self.bos {
            BosArg::Auto => Bos::Auto,
            BosArg::Yes => Bos::Yes,
            BosArg::No => Bos::No,
        };
        Encoding { bos, allow_special: self.allow_special }
    }
}

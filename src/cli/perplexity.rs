use std::path::{Path, PathBuf};

use clap::ValueEnum;
use interp::perplexity::{Document, Protocol, Score, comparison, per_token, score};
use interp::text::Bos;
use interp::{Error, Plan, Result, Tokenizer, figure};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::Global;
use super::bench::Bench;
use super::cost::{self, Estimate};
use super::prompts::decode;
use super::report::{How, Outcome, Report, bar};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Models to compare, separated by commas [default: --model].
    #[arg(long, value_name = "MODELS", value_delimiter = ',', conflicts_with = "model")]
    models: Vec<String>,
    /// A file whose whole content is one text, or .jsonl with a document in the `text` field of each line; may be given
    /// several times.
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// A text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// How documents of a .jsonl file are read: each for itself, or joined to one text.
    #[arg(long, value_enum, default_value = "none", value_name = "HOW")]
    join: Join,
    /// Tokens in a window [default: the model's context].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens from one window to the next [default: half the window].
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Also write tokens.parquet, the loss of every token; for one model and one text.
    #[arg(long)]
    per_token: bool,
    /// Replace bytes that are not UTF-8 instead of refusing them.
    #[arg(long)]
    lossy: bool,
    /// Only say how long it would take and how much memory, from some windows that are measured and forgotten.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Join {
    None,
    Newline,
    Blank,
}

/// Largest text file that is read.
const MAX_TEXT: u64 = 4 << 30;

pub fn run(args: Args, global: &Global) -> Result<()> {
    let texts = texts(&args)?;
    let models = if args.models.is_empty() { vec![global.model.clone()] } else { args.models.clone() };
    if args.per_token && models.len() * texts.len() > 1 {
        return Err(request("--per-token is for one model and one text"));
    }
    if args.dry_run {
        return estimate(&args, &models, &texts, global);
    }
    let report = Report::begin("perplexity", global, &format!("{} {}", models.join(" "), names(&texts)))?;
    let (mut scores, mut protocols, mut made_with) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tokens_frame, mut last) = (None, None);
    for name in &models {
        let mut bench = Bench::open(&Global { model: name.clone(), ..global.clone() })?;
        let tokenizer = bench.tokenizer()?;
        let protocol = protocol(&args, global, &bench, tokenizer)?;
        for (text_name, documents) in &texts {
            let documents = tokenized(text_name, documents, tokenizer, &protocol)?;
            let score = scored(&bench, &documents, &protocol, global)?;
            if args.per_token {
                tokens_frame = Some(per_token(&documents, &score, tokenizer)?);
            }
            scores.push((name.clone(), text_name.clone(), score));
            protocols.push(protocol.clone());
        }
        let digests = bench.source.digests()?;
        made_with.push(json!({
            "name": name, "weights_sha256": digests.weights, "tokenizer_sha256": digests.tokenizer,
        }));
        last = Some(bench);
    }
    let bench = last.ok_or_else(|| request("no model"))?;
    if let Some(frame) = &mut tokens_frame {
        interp::frame::save_parquet(frame, &report.dir().join("tokens.parquet"))?;
    }
    let frame = comparison(&scores, &protocols, global.price)?;
    let plan = Plan::new();
    let extra = json!({ "models": made_with, "join": format!("{:?}", args.join).to_lowercase() });
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::perplexity(&frame)?,
        summary: summary(&frame)?,
        frame,
        how: How { plan: &plan, applied: Vec::new(), tokens: None, extra },
    };
    report.finish(global, bench, outcome)
}

/// Names and documents of all texts.
fn texts(args: &Args) -> Result<Vec<(String, Vec<String>)>> {
    let mut texts = Vec::new();
    for (i, prompt) in args.prompt.iter().enumerate() {
        texts.push((format!("prompt {i}"), vec![prompt.clone()]));
    }
    for path in &args.file {
        let text = decode(&interp::weights::read_small(path, MAX_TEXT)?, args.lossy, path)?;
        let documents = match path.extension().is_some_and(|e| e == "jsonl") {
            false => vec![text],
            true => interp::texts::jsonl_texts(&text, path)?,
        };
        let documents: Vec<String> = match args.join {
            Join::None => documents,
            Join::Newline => vec![documents.join("\n")],
            Join::Blank => vec![documents.join("\n\n")],
        };
        if documents.iter().all(String::is_empty) {
            return Err(Error::Data { path: path.clone(), what: "holds no text".into() });
        }
        texts.push((file_name(path), documents));
    }
    if texts.is_empty() {
        return Err(request("no text: give --file PATH or --prompt TEXT"));
    }
    Ok(texts)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn names(texts: &[(String, Vec<String>)]) -> String {
    texts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
}

fn protocol(args: &Args, global: &Global, bench: &Bench, tokenizer: &Tokenizer) -> Result<Protocol> {
    let context = args.context.unwrap_or(bench.config().n_positions);
    let bos = match global.encoding().bos {
        Bos::Yes => true,
        Bos::Auto => tokenizer.end_of_text().is_some(),
        Bos::No => false,
    };
    let protocol = Protocol { context, stride: args.stride.unwrap_or((context / 2).max(1)), bos };
    protocol.check(bench.config())?;
    Ok(protocol)
}

fn tokenized(name: &str, texts: &[String], tokenizer: &Tokenizer, protocol: &Protocol) -> Result<Vec<Document>> {
    let documents = texts.iter().map(|text| Document::new(text, tokenizer, protocol));
    documents.collect::<Result<_>>().map_err(|e| Error::Request(format!("{name}: {e}")))
}

/// Windows that a dry run scores, besides the first.
const SAMPLE: usize = 11;

/// Scores the beginning of every text, to say how long all of it would take.
fn estimate(args: &Args, models: &[String], texts: &[(String, Vec<String>)], global: &Global) -> Result<()> {
    let (mut seconds, mut tokens) = (0.0, 0);
    for name in models {
        let bench = Bench::open(&Global { model: name.clone(), ..global.clone() })?;
        let tokenizer = bench.tokenizer()?;
        let protocol = protocol(args, global, &bench, tokenizer)?;
        seconds += bench.load_seconds;
        for (text_name, documents) in texts {
            let documents = tokenized(text_name, documents, tokenizer, &protocol)?;
            let passes = |some: &[Document]| some.iter().map(|one| protocol.passes(one.ids().len())).sum::<usize>();
            let all = passes(&documents);
            // Whole documents, and the beginning of one that is longer.
            let mut left = SAMPLE * protocol.stride + protocol.context;
            let mut sample = Vec::new();
            for document in documents.iter() {
                if left >= 2 {
                    sample.push(document.beginning(left));
                    left = left.saturating_sub(document.ids().len());
                }
            }
            let mut best = f64::INFINITY;
            // The first time also touches all memory for the first time.
            for _ in 0..2 {
                best = best.min(score(&bench.model, &sample, &protocol, &mut |_| Ok(()))?.seconds);
            }
            seconds += best * all as f64 / passes(&sample).max(1) as f64;
            tokens += all;
        }
    }
    let peak = cost::peak();
    let lines = vec![("tokens read", format!("{tokens}, {:.0} per second", tokens as f64 / seconds))];
    Estimate { seconds, peak, facts: json!({ "tokens_read": tokens }), lines }.show(global)
}

fn scored(bench: &Bench, documents: &[Document], protocol: &Protocol, global: &Global) -> Result<Score> {
    let total: usize = documents.iter().map(|document| document.ids().len()).sum();
    let bar = bar(global.quiet, total as u64, "{pos}/{len} tokens [{wide_bar}] {per_sec}, {eta} left");
    let score = score(&bench.model, documents, protocol, &mut |done| {
        bar.set_position(done as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(score)
}

fn summary(frame: &DataFrame) -> Result<String> {
    let text = |name: &str| frame.column(name)?.str();
    let number = |name: &str| frame.column(name)?.f64();
    let (model, name, protocol) = (text("model")?, text("text")?, text("protocol")?);
    let (loss, perplexity) = (number("loss")?, number("perplexity")?);
    let (word, bits) = (number("word_perplexity")?, number("bits_per_byte")?);
    let tokens = frame.column("tokens")?.u64()?;
    let mut lines = vec!["      loss  perplexity  per word  bits/byte    tokens  model, text (protocol)".to_string()];
    for i in 0..frame.height() {
        let value = |column: &polars::prelude::Float64Chunked| column.get(i).unwrap_or(f64::NAN);
        lines.push(format!(
            "  {:>8.4}  {:>10.3}  {:>8.2}  {:>9.4}  {:>8}  {}, {} ({})",
            value(loss),
            value(perplexity),
            value(word),
            value(bits),
            tokens.get(i).unwrap_or(0),
            model.get(i).unwrap_or_default(),
            name.get(i).unwrap_or_default(),
            protocol.get(i).unwrap_or_default()
        ));
    }
    Ok(lines.join("\n"))
}

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use interp::dataset::documents::{Content, Documents, Form, read_form};
use interp::perplexity::{Document, Protocol, Score, comparison, per_token, score};
use interp::text::Bos;
use interp::{Error, Plan, Result, Tokenizer, figure, limits};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::Global;
use super::bench::Bench;
use super::cost::{self, Estimate};
use super::number::whole;
use super::output::bar;
use super::prompts::{no_special_in_tokens, reading};
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Models to compare, separated by commas [default: --model].
    #[arg(long, value_name = "MODELS", value_delimiter = ',', conflicts_with = "model")]
    models: Vec<String>,
    /// A file whose whole content is one text, .jsonl or .ndjson with a document in the `text` field of each line, .parquet with one
    /// in each row, or nanoGPT's .bin; may be given several times.
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// A text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// How documents of a file with several are read: each for itself, or joined to one text.
    #[arg(long, value_enum, default_value = "none", value_name = "HOW")]
    join: Join,
    /// Tokens in a window [default: the model's context].
    #[arg(long, value_name = "N", value_parser = whole(2, limits::POSITIONS))]
    context: Option<usize>,
    /// Tokens from one window to the next [default: half the window].
    #[arg(long, value_name = "N", value_parser = whole(1, limits::POSITIONS))]
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

/// A text by its name.
struct Named {
    name: String,
    path: PathBuf,
    content: Source,
}

/// What a text is read from.
enum Source {
    Documents(Vec<String>),
    /// Tokens of a file that holds nothing else.
    Tokens(Vec<u32>),
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let texts = texts(&args, global)?;
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
        for text in &texts {
            let documents = tokenized(text, &bench, &protocol, global)?;
            let score = scored(&bench, &documents, &protocol, global)?;
            if args.per_token {
                tokens_frame = Some(per_token(&documents, &score, tokenizer)?);
            }
            scores.push((name.clone(), text.name.clone(), score));
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

/// All texts by their names.
fn texts(args: &Args, global: &Global) -> Result<Vec<Named>> {
    let mut texts = Vec::new();
    for (i, prompt) in args.prompt.iter().enumerate() {
        let name = format!("prompt {i}");
        texts.push(Named { path: PathBuf::from(&name), name, content: Source::Documents(vec![prompt.clone()]) });
    }
    no_special_in_tokens(global, if args.prompt.is_empty() { &args.file } else { &[] })?;
    for path in &args.file {
        let read = reading(global).lossy(args.lossy).whole().open(path)?;
        let content = match read_form(path)? {
            Form::Tokens => Source::Tokens(tokens(read)?),
            _ => Source::Documents(joined(super::prompts::texts(read)?, args.join)),
        };
        if matches!(&content, Source::Documents(all) if all.iter().all(String::is_empty)) {
            return Err(Error::Data { path: path.clone(), what: "holds no text".into() });
        }
        texts.push(Named { name: file_name(path), path: path.clone(), content });
    }
    if texts.is_empty() {
        return Err(request("no text: give --file PATH or --prompt TEXT"));
    }
    Ok(texts)
}

fn joined(documents: Vec<String>, join: Join) -> Vec<String> {
    match join {
        Join::None => documents,
        Join::Newline => vec![documents.join("\n")],
        Join::Blank => vec![documents.join("\n\n")],
    }
}

fn tokens(documents: Documents) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for document in documents {
        if let Content::Tokens { ids, .. } = document?.content {
            all.extend(ids);
        }
    }
    Ok(all)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn names(texts: &[Named]) -> String {
    texts.iter().map(|text| text.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn protocol(args: &Args, global: &Global, bench: &Bench, tokenizer: &Tokenizer) -> Result<Protocol> {
    let context = args.context.unwrap_or(bench.config().n_positions);
    let bos = match global.encoding().bos {
        Bos::Yes => true,
        Bos::Auto => tokenizer.bos().is_some(),
        Bos::No => false,
    };
    let protocol = Protocol { context, stride: args.stride.unwrap_or((context / 2).max(1)), bos };
    protocol.check(bench.config())?;
    Ok(protocol)
}

fn tokenized(text: &Named, bench: &Bench, protocol: &Protocol, global: &Global) -> Result<Vec<Document>> {
    let tokenizer = bench.tokenizer()?;
    let documents: Result<Vec<Document>> = match &text.content {
        Source::Documents(all) => {
            all.iter().map(|one| Document::new(one, tokenizer, protocol, global.allow_special)).collect()
        }
        Source::Tokens(ids) => {
            let size = bench.config().vocab_size;
            if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
                let what = format!(
                    "holds token {id}, which is not below the model's vocabulary size {size}: it was made with another tokenizer"
                );
                return Err(Error::Data { path: text.path.clone(), what });
            }
            Document::of_tokens(ids.clone(), tokenizer, protocol).map(|document| vec![document])
        }
    };
    documents.map_err(|e| match e {
        Error::Data { what, .. } => Error::Data { path: text.path.clone(), what: format!("the tokenizer: {what}") },
        e => Error::Request(format!("{}: {e}", text.name)),
    })
}

/// Windows that a dry run scores, besides the first.
const SAMPLE: usize = 11;

/// Scores the beginning of every text, to say how long all of it would take.
fn estimate(args: &Args, models: &[String], texts: &[Named], global: &Global) -> Result<()> {
    let (mut seconds, mut tokens) = (0.0, 0);
    for name in models {
        let bench = Bench::open(&Global { model: name.clone(), ..global.clone() })?;
        let tokenizer = bench.tokenizer()?;
        let protocol = protocol(args, global, &bench, tokenizer)?;
        seconds += bench.load_seconds;
        for text in texts {
            let documents = tokenized(text, &bench, &protocol, global)?;
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

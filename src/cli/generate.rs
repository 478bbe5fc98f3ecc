use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use interp::generate::{Options, Written, generate};
use interp::sampling::Sampling;
use interp::text::{Bos, END_OF_TEXT, Encoding};
use interp::{Edit, Result, Tokens, figure, limits, memory};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Format, Global, Text};
use super::bench::Bench;
use super::cost::{self, Estimate};
use super::honours::OF_TEXT;
use super::number::whole;
use super::output::print;
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// What texts begin with: a text, FILE:PATH for the whole of a file, or <|endoftext|> for nothing [default:
    /// <|endoftext|>, unless --prompt or --file is given].
    #[arg(long, value_name = "START")]
    start: Option<String>,
    /// Tokens to write at most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole(1, limits::NEW_TOKENS))]
    max_new_tokens: usize,
    /// Texts per prompt.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1, limits::SAMPLES))]
    num_samples: usize,
    /// Divides the logits before drawing; 0 takes the likeliest token [default: 1].
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Always the likeliest token; the same as --temperature 0.
    #[arg(long)]
    greedy: bool,
    /// Draw from the K likeliest tokens.
    #[arg(long, value_name = "K", value_parser = whole(1, limits::VOCABULARY))]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that hold this share of the probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Makes tokens that the text holds already less likely; 1 does not.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// End a text where it says this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after a token that ends a text, such as <|endoftext|>.
    #[arg(long)]
    ignore_end: bool,
    /// Go on past the model's context: from there on it sees the last tokens only.
    #[arg(long)]
    window: bool,
    /// Only say how long it would take and how much memory, from some tokens that are written and forgotten.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

impl Args {
    fn options(&self, global: &Global) -> Result<Options> {
        if self.greedy && self.temperature.is_some_and(|t| t != 0.0) {
            return Err(request("--greedy is --temperature 0; give one of them"));
        }
        let sampling = Sampling {
            temperature: if self.greedy { 0.0 } else { self.temperature.unwrap_or(1.0) },
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
        };
        Ok(Options {
            sampling,
            seed: global.seed,
            num_samples: self.num_samples,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.clone(),
            ignore_end: self.ignore_end,
            window: self.window,
            cache: true,
        })
    }
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let options = args.options(global)?;
    options.sampling.check()?;
    let bench = Bench::open(global)?;
    let tokens = starts(&args, &bench, global)?;
    let plan = bench.plan(&args.edits)?;
    let edits: Vec<Edit> = plan.edit_list().to_vec();
    options.check(&bench.model, &tokens, &edits)?;
    let kept = fits(&bench, &tokens, &options, global)?;
    if args.dry_run {
        return estimate(&bench, &tokens, &edits, &options, kept, global);
    }
    let report = Report::begin("generate", global, &bench.name(&tokens))?;
    let tokenizer = bench.tokenizer()?;
    // One text is shown as it grows; several would be mixed up, and are shown at the end.
    let stream = global.format == Format::Text && !global.quiet && tokens.len() * options.num_samples == 1;
    let mut shown = Shown::default();
    if stream {
        shown.push(bench.name(&tokens).as_bytes())?;
    }
    let mut each = |written: Written| -> Result<()> {
        if !stream || tokenizer.ends().contains(&written.token) {
            return Ok(());
        }
        shown.push(&tokenizer.bytes(written.token).unwrap_or_default())
    };
    let written = generate(&bench.model, tokenizer, &tokens, &edits, &options, &mut each);
    if stream {
        shown.end()?;
    }
    let (frame, applied) = written?;
    bench.report_edits(&applied)?;
    let summary = summary(&frame, !stream)?;
    let sampling = &options.sampling;
    let extra = json!({
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty, "num_samples": options.num_samples,
        "max_new_tokens": options.max_new_tokens, "stop": options.stop, "ignore_end": options.ignore_end,
        "window": options.window,
    });
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::generate(&frame)?,
        summary,
        frame,
        how: How { plan: &plan, applied, tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// The prompts as tokens; they may be longer than the context only where a window slides.
fn starts(args: &Args, bench: &Bench, global: &Global) -> Result<Tokens> {
    let text = &args.text;
    let given = text.is_given();
    let start = match &args.start {
        Some(_) if given => return Err(request("give text by one of --start, --prompt, --file and -, not by several")),
        None if given && args.window => {
            if text.truncate.is_some() {
                return Err(request(
                    "--truncate would do nothing: with --window prompts may be longer than the context",
                ));
            }
            let texts = super::prompts::read_prompts(text, global)?;
            return bench.tokenizer()?.tokens(&texts, global.encoding());
        }
        None if given => return bench.tokens(global, text),
        start => start.as_deref().unwrap_or(END_OF_TEXT),
    };
    text.refuse("--start says how the text begins")?;
    let tokenizer = bench.tokenizer()?;
    if start == END_OF_TEXT {
        global.refuse(OF_TEXT, "without a text it begins with <|endoftext|>")?;
        if tokenizer.bos().is_none() {
            return Err(request("this tokenizer has no token that starts a text; give one by --prompt or --start"));
        }
        return tokenizer.tokens(&[""], Encoding { bos: Bos::Yes, allow_special: false });
    }
    let text = match start.strip_prefix("FILE:") {
        None => start.to_string(),
        Some(path) => {
            let limit = interp::text::MAX_PROMPT as u64;
            interp::weights::read_text(Path::new(path), limit)?.replace("\r\n", "\n")
        }
    };
    tokenizer.tokens(&[text], global.encoding())
}

/// Tokens of each text that a dry run writes: all steps after the first are alike but for what they look back at.
const SAMPLE: (usize, usize) = (8, 40);

/// Writes the beginning of all texts twice, to say how long all of them would take at most.
fn estimate(
    bench: &Bench,
    tokens: &Tokens,
    edits: &[Edit],
    options: &Options,
    kept: u64,
    global: &Global,
) -> Result<()> {
    let time = |count: usize| -> Result<f64> {
        let options = Options { max_new_tokens: count, ignore_end: true, stop: Vec::new(), ..options.clone() };
        // What is edited only later than the sample goes costs as much as one step.
        let reached = |edit: &&Edit| options.check(&bench.model, tokens, std::slice::from_ref(*edit)).is_ok();
        let edits: Vec<Edit> = edits.iter().filter(reached).cloned().collect();
        let start = Instant::now();
        generate(&bench.model, bench.tokenizer()?, tokens, &edits, &options, &mut |_| Ok(()))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let all = options.max_new_tokens;
    let (few, more) = (SAMPLE.0.min(all), SAMPLE.1.min(all));
    time(few)?; // touches all memory for the first time
    let (short, long) = (time(few)?, time(more)?);
    let step = if more > few { (long - short).max(0.0) / (more - few) as f64 } else { 0.0 };
    let texts = tokens.len() * options.num_samples;
    Estimate {
        seconds: bench.load_seconds + short + step * (all - few) as f64,
        peak: cost::peak() + kept,
        facts: json!({ "texts": texts, "tokens": texts * all, "step_seconds": step }),
        lines: vec![
            ("texts", format!("{texts} of at most {all} tokens")),
            match step > 0.0 {
                true => ("a step", format!("{:.1} ms, {:.1} tokens/s", 1e3 * step, texts as f64 / step)),
                false => ("all of it", "was written to measure it".into()),
            },
        ],
    }
    .show(global)
}

/// Bytes of keys, values and logits of all texts at their full length, if there is room for them.
fn fits(bench: &Bench, tokens: &Tokens, options: &Options, global: &Global) -> Result<u64> {
    let config = bench.config();
    let texts = (tokens.len() * options.num_samples) as u64;
    let length = (tokens.longest() + options.max_new_tokens).min(config.n_positions) as u64;
    let kept = 2 * (config.n_layer * config.n_head * config.head_dim) as u64 * length;
    // What was written stands in the frame and in its figure: ids, texts and log-probabilities.
    let written = 64 * options.max_new_tokens as u64;
    let needed = memory::product(&[texts, 4 * (kept + 3 * config.vocab_size as u64) + written]);
    let limit = global.memory;
    memory::check(&format!("keys and values of {texts} texts of {length} tokens"), needed, limit)?;
    Ok(needed)
}

/// Text on its way to the terminal, whole characters at a time.
#[derive(Default)]
struct Shown {
    waiting: Vec<u8>,
}

impl Shown {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.waiting.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.waiting) {
            Ok(_) => self.waiting.len(),
            // What is only cut short waits for its end; what is wrong is shown as it is.
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Err(_) => self.waiting.len(),
        };
        let ready: Vec<u8> = self.waiting.drain(..whole).collect();
        print(&visible(&String::from_utf8_lossy(&ready)))
    }

    fn end(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.waiting);
        print(&(visible(&String::from_utf8_lossy(&rest)) + "\n"))
    }
}

/// The text with its lines, and nothing in it that a terminal would obey.
fn visible(text: &str) -> String {
    if !std::io::stdout().is_terminal() && !text.contains('\u{1b}') {
        return text.to_string();
    }
    text.split('\n').map(interp::error::printable).collect::<Vec<_>>().join("\n")
}

/// How long and how likely each text is, and the text itself unless it was shown already.
fn summary(frame: &DataFrame, texts: bool) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (prompt, sample, tokens) = (ints("prompt")?, ints("sample")?, ints("new_tokens")?);
    let logprob: Vec<f64> = frame.column("logprob")?.f64()?.into_no_null_iter().collect();
    let text = frame.column("text")?.str()?;
    let finish = frame.column("finish")?.str()?;
    let mut lines = Vec::new();
    for i in 0..frame.height() {
        let mean = logprob[i] / f64::from(tokens[i].max(1));
        lines.push(format!(
            "── prompt {}, sample {}: {} tokens, {mean:.2} nats each, {}",
            prompt[i],
            sample[i],
            tokens[i],
            finish.get(i).unwrap_or_default()
        ));
        if texts {
            lines.push(text.get(i).unwrap_or_default().to_string());
        }
    }
    Ok(lines.join("\n"))
}

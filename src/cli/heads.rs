use std::path::PathBuf;

use interp::circuits::{Basis, Circuits};
use interp::detector::{self, Detector, Measure};
use interp::heads::{self, Atlas};
use interp::{Error, Plan, Result, Site, Tokens, composition, figure, limits, page, weights};
use polars::prelude::DataFrame;
use serde_json::{Value, json};

use super::args::{Global, Text};
use super::bench::Bench;
use super::honours::OF_TEXT;
use super::number::whole;
use super::output::{bar, counted};
use super::report::{How, Outcome, Report};
use super::request;

/// Heads per score that the summary names.
const BEST: usize = 5;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Q-, K- and V-composition of all pairs of heads instead of the atlas; it takes no text.
    #[arg(long, conflicts_with_all = ["detect", "pattern"])]
    composition: bool,
    /// Score heads on the prompts by TransformerLens's detectors instead: previous_token_head, duplicate_token_head,
    /// induction_head; several with commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    detect: Vec<String>,
    /// A detector of your own: a JSON file with a list of rows, one weight per key, 0 where the key comes later.
    #[arg(long, value_name = "FILE")]
    pattern: Option<PathBuf>,
    /// How detectors compare: mul is the share of attention that matches, abs 1 less the mean difference.
    #[arg(long, value_name = "MEASURE", default_value = "mul")]
    measure: String,
    /// Detectors leave out attention to position 0.
    #[arg(long)]
    exclude_bos: bool,
    /// Detectors leave out attention of a token to itself.
    #[arg(long)]
    exclude_current_token: bool,
    /// Weights as published, or folded as TransformerLens processes them; copying and composition depend on it.
    #[arg(long, value_name = "BASIS", default_value = "published")]
    basis: String,
    /// Sequences of random tokens.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole(1, 1000_usize))]
    sequences: usize,
    /// Random tokens in a sequence, before they are repeated.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole(2, limits::POSITIONS))]
    length: usize,
    #[command(flatten)]
    text: Text,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let basis: Basis = args.basis.parse()?;
    if args.composition && args.text.is_given() {
        return Err(request(
            "composition is a matter of weights and takes no text; leave out --prompt or --composition",
        ));
    }
    let detects = !args.detect.is_empty() || args.pattern.is_some();
    if !args.text.is_given() {
        let what = if args.composition { "composition is a matter of weights" } else { "the tokens are random ones" };
        global.refuse(OF_TEXT, what)?;
        args.text.refuse(what)?;
    }
    if !detects {
        global.refuse(&["measure exclude_bos exclude_current_token"], "it is about --detect and --pattern")?;
    }
    if detects {
        global.refuse(&["seed sequences length basis"], "detectors look at the attention of the prompts")?;
        detected(&args, global)
    } else if args.composition {
        global.refuse(&["sequences length"], "composition is a matter of weights")?;
        composed(basis, global)
    } else {
        atlas(&args, basis, global)
    }
}

fn atlas(args: &Args, basis: Basis, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let text = if args.text.is_given() { Some(prompts(&bench, args, global)?) } else { None };
    let (sequences, length) = (args.sequences, args.length);
    let random = heads::repeated(bench.config(), bench.tokenizer.as_ref(), sequences, length, global.seed)?;
    let used = random.longest() / 2;
    let name = text.as_ref().map_or(format!("{basis} {sequences} x {used}"), |t| format!("{basis} {}", bench.name(t)));
    let report = Report::begin("heads", global, &format!("{} {name}", bench.source.name))?;
    let bar = bar(global.quiet, 0, "{pos}/{len} layers [{wide_bar}] {eta} left");
    let circuits = Circuits::of(&bench.model, basis);
    let Atlas { frame, loss } = heads::atlas(&bench.model, &random, text.as_ref(), &circuits, &mut counted(&bar))?;
    bar.finish_and_clear();
    drop(circuits);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    // Position i predicts token i + 1, and the first repeated token is as new as any.
    let (new, again) = (mean(&loss[..used - 1]), mean(&loss[used..]));
    let mut lines = vec![format!(
        "random tokens: {sequences} × {used}, written twice; loss {new:.3} nats the first time, {again:.3} the second"
    )];
    if used < length {
        lines.push(format!(
            "  {length} tokens twice do not fit the {} positions of this model",
            bench.config().n_positions
        ));
    }
    if text.is_some() {
        lines.push("  bos_share, entropy and distance are of the prompts".into());
    }
    lines.push(summary(&frame)?);
    let ids = |t: &Tokens| (0..t.len()).map(|row| t.row(row).to_vec()).collect::<Vec<_>>();
    let mut extra = json!({
        "random_tokens": {
            "sequences": sequences, "length": used, "length_asked": length, "ids": ids(&random),
            "drawn_from": "every id the tokenizer knows, the end of text excluded", "loss_by_position": loss,
        },
        "text_scores": ["bos_share", "entropy", "distance"],
        "text_scores_are_of": if text.is_some() { "the prompts" } else { "the random tokens" },
    });
    note_basis(&mut extra, basis);
    if text.is_none() {
        extra["bos"] = Value::Null;
    }
    let plan = Plan::new().reads((0..bench.config().n_layer).map(Site::Pattern));
    let outcome = Outcome {
        page: std::iter::once(page::heads(&frame)?)
            .chain(bench.linked(&text.as_ref().unwrap_or(&random).only(0))?)
            .collect(),
        figure: figure::heads(&frame)?,
        summary: lines.join("\n"),
        frame,
        how: How { plan: &plan, applied: Vec::new(), tokens: Some(text.as_ref().unwrap_or(&random)), extra },
    };
    report.finish(global, bench, outcome)
}

fn composed(basis: Basis, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    if bench.config().n_layer < 2 {
        return Err(request("this model has one layer; heads compose with those of later layers"));
    }
    let (layers, heads) = (bench.config().n_layer as u64, bench.config().n_head as u64);
    bench.check_rows(3 * heads * heads * layers * (layers - 1) / 2, global)?;
    let report = Report::begin("heads", global, &format!("{} composition {basis}", bench.source.name))?;
    let bar = bar(global.quiet, 0, "{pos}/{len} pairs of layers [{wide_bar}] {eta} left");
    let circuits = Circuits::of(&bench.model, basis);
    let frame = composition::scores(&circuits, global.seed, &mut counted(&bar))?;
    bar.finish_and_clear();
    drop(circuits);
    let mut extra = json!({ "shown": figure::strongest_kind(&frame)?, "bos": Value::Null });
    note_basis(&mut extra, basis);
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::composition(&frame)?,
        summary: composition_summary(&frame)?,
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: None, extra },
    };
    report.finish(global, bench, outcome)
}

fn detected(args: &Args, global: &Global) -> Result<()> {
    let measure: Measure = args.measure.parse()?;
    let options =
        detector::Options { measure, exclude_bos: args.exclude_bos, exclude_current_token: args.exclude_current_token };
    let mut detectors = args.detect.iter().map(|name| name.parse()).collect::<Result<Vec<Detector>>>()?;
    if let Some(path) = &args.pattern {
        let rows = serde_json::from_str(&weights::read_text(path, 64 << 20)?);
        let rows = rows.map_err(|e| Error::Data { path: path.clone(), what: format!("not a list of rows: {e}") })?;
        detectors.push(Detector::Custom(rows));
    }
    let bench = Bench::open(global)?;
    let tokens = prompts(&bench, args, global)?;
    for detector in &detectors {
        for prompt in 0..tokens.len() {
            detector.pattern(tokens.row(prompt))?;
        }
    }
    let names: Vec<&str> = detectors.iter().map(Detector::name).collect();
    let report = Report::begin("heads", global, &format!("{} {}", names.join(" "), bench.name(&tokens)))?;
    let frame = detector::detect(&bench.model, &tokens, &detectors, options)?;
    let extra = json!({
        "detectors": names, "measure": measure.to_string(), "exclude_bos": options.exclude_bos,
        "exclude_current_token": options.exclude_current_token,
    });
    let plan = Plan::new().reads((0..bench.config().n_layer).map(Site::Pattern));
    let outcome = Outcome {
        page: std::iter::once(page::detection(&frame, &measure.to_string())?)
            .chain(bench.linked(&tokens.only(0))?)
            .collect(),
        figure: figure::detection(&frame, &measure.to_string())?,
        summary: detection_summary(&frame, &names)?,
        frame,
        how: How { plan: &plan, applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// The prompts, long enough that a head has a choice.
fn prompts(bench: &Bench, args: &Args, global: &Global) -> Result<Tokens> {
    let tokens = bench.tokens(global, &args.text)?;
    match (0..tokens.len()).find(|&prompt| tokens.row(prompt).len() < 2) {
        Some(prompt) => Err(request(format!("prompt {prompt} has 1 token; heads need at least 2 to choose from"))),
        None => Ok(tokens),
    }
}

/// In run.json `raw` means as published, as for every other command.
fn note_basis(extra: &mut Value, basis: Basis) {
    if basis == Basis::Folded {
        extra["basis"] = json!(basis.to_string());
    }
}

/// The heads with the largest values of each score, and for copying those with the smallest, which negate.
fn summary(frame: &DataFrame) -> Result<String> {
    let mut lines = vec!["score         strongest heads".to_string()];
    for score in heads::SCORES {
        lines.push(format!("  {score:<12} {}", best(frame, score, &["layer", "head"], BEST)?.join("   ")));
        if score.starts_with("copying") {
            let all = best(frame, score, &["layer", "head"], usize::MAX)?;
            let least: Vec<&str> = all.iter().rev().take(BEST).map(String::as_str).collect();
            lines.push(format!("    least      {}", least.join("   ")));
        }
    }
    Ok(lines.join("\n"))
}

fn detection_summary(frame: &DataFrame, names: &[&str]) -> Result<String> {
    let mut lines = Vec::new();
    let rows = frame.height() / names.len();
    for (i, name) in names.iter().enumerate() {
        let part = frame.slice((i * rows) as i64, rows);
        lines.push(format!("  {name:<20} {}", best(&part, "score", &["layer", "head"], BEST)?.join("   ")));
    }
    Ok(lines.join("\n"))
}

fn composition_summary(frame: &DataFrame) -> Result<String> {
    let baseline = frame.column("baseline")?.f64()?.get(0).unwrap_or(f64::NAN);
    let mut lines = vec![format!("strongest pairs, earlier → later head; random matrices score {baseline:.3}")];
    for kind in ["q", "k", "v"] {
        let pairs = best(frame, kind, &["layer", "head", "to_layer", "to_head"], BEST)?;
        lines.push(format!("  {kind}  {}", pairs.join("   ")));
    }
    Ok(lines.join("\n"))
}

/// The rows with the largest values of a column: `3.2 0.97`, or `2.1→3.2 0.31`.
fn best(frame: &DataFrame, column: &str, places: &[&str], count: usize) -> Result<Vec<String>> {
    let values = frame.column(column)?.f64()?;
    let places = places.iter().map(|name| Ok(frame.column(name)?.u32()?)).collect::<Result<Vec<_>>>()?;
    let mut order: Vec<(usize, f64)> = values.iter().enumerate().filter_map(|(i, x)| Some((i, x?))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named = |(i, value): &(usize, f64)| {
        let at: Vec<u32> = places.iter().map(|place| place.get(*i).unwrap_or(0)).collect();
        let heads: Vec<String> = at.chunks(2).map(|head| format!("{}.{}", head[0], head[1])).collect();
        format!("{} {value:.3}", heads.join("→"))
    };
    Ok(order.iter().take(count).map(named).collect())
}

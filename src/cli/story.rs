use interp::attribution::{self, By};
use interp::convention::LayerNormConvention;
use interp::lens;
use interp::target::Target;
use interp::{Error, Plan, Result, Site, Tokens, attention, figure, frame, memory, neurons, page, predict};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Global, Text};
use super::bench::Bench;
use super::report::{How, Outcome, Report};
use super::{note, request};

/// Longest prompt: beyond it the views of single tokens cannot be read.
const TOKENS: usize = 256;
/// Neurons of each layer.
const NEURONS: usize = 6;
/// Neurons that have a bar of their own.
const BARS: usize = 60;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The answer whose logit is taken apart [default: the likeliest next token].
    #[arg(long, value_name = "TOKEN")]
    answer: Option<String>,
    /// The answer it is compared with [default: the second likeliest, or none beside --answer].
    #[arg(long, value_name = "TOKEN", requires = "answer")]
    wrong: Option<String>,
    #[command(flatten)]
    text: Text,
}

/// One page that tells what the model does with one prompt.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let mut bench = Bench::open(global)?;
    let tokens = bench.tokens(global, &args.text)?;
    if tokens.len() > 1 {
        return Err(request(format!("a report is about one prompt, not {}; give one --prompt", tokens.len())));
    }
    if tokens.longest() > TOKENS {
        return Err(request(format!(
            "the prompt has {} tokens and a report shows {TOKENS}; shorten it, or use attention, lens and attribute",
            tokens.longest()
        )));
    }
    let (layers, heads) = (bench.config().n_layer, bench.config().n_head);
    memory::check("the frame of patterns", attention::frame_bytes(&tokens, layers, heads), bench.room(global)?)?;
    let report = Report::begin("report", global, &bench.name(&tokens))?;
    let tokenizer = bench.tokenizer()?;
    let mlps = (0..layers).map(Site::MlpPost);
    let plan = Plan::new().reads((0..layers).map(Site::Pattern).chain(lens::sites(layers)).chain(mlps.clone()));
    let trace = plan.run(&bench.model, &tokens)?;
    let predictions = predict::from_trace(&trace, tokenizer, 10)?;
    let lensed = lens::from_trace(&bench.model, tokenizer, &trace, 5, LayerNormConvention::Recompute)?;
    let patterns = attention::from_layers(&trace, 0..layers, None)?;
    let mut fired = None;
    for site in mlps {
        frame::append(&mut fired, neurons::from_trace(&trace, site, NEURONS)?)?;
    }
    let fired: DataFrame = fired.ok_or_else(|| Error::Bug("a model without layers".into()))?;
    let target = target(args, &bench, &tokens, &predictions)?;
    let attributed = attribution::attribute(&bench.model, &tokens, std::slice::from_ref(&target), By::Neuron, -1)?;
    let shares = attribution::frame(&attributed, LayerNormConvention::FinalScale, BARS, tokenizer, global.seed)?;
    bench.source.digests()?; // weights that are not what they should be leave no result
    for (name, frame) in [("lens", &lensed), ("attention", &patterns), ("attribution", &shares), ("neurons", &fired)] {
        frame::save_parquet(&mut frame.clone(), &report.dir().join(format!("{name}.parquet")))?;
    }
    let mut picture = figure::predict(&predictions, 0)?;
    let below = picture.size().1 as i32;
    picture.place((0, below), figure::lens(&lensed, 0)?);
    let looks = match page::patterns_fit(tokens.longest(), layers * heads) {
        true => Some(page::attention(&patterns)?),
        false => {
            let why = format!("{} heads on {} tokens would be too much", layers * heads, tokens.longest());
            note(global.quiet, &format!("note: no attention on the page: {why}; attention.parquet has it"));
            None
        }
    };
    let pages = [page::predictions(&predictions)?, page::lens(&lensed)?]
        .into_iter()
        .chain(looks)
        .chain([page::attribution(&shares)?, page::neurons(&fired)?])
        .collect();
    let html = report.out().join("figure.html");
    let outcome = Outcome {
        page: pages,
        figure: picture,
        summary: summary(&predictions, &html)?,
        frame: predictions,
        how: How {
            plan: &plan,
            applied: Vec::new(),
            tokens: Some(&tokens),
            extra: json!({
                "target": { "answers": target.answers(), "wrong": target.wrong(), "value": attributed[0].value },
                "frames": ["frame.parquet", "lens.parquet", "attention.parquet", "attribution.parquet", "neurons.parquet"],
            }),
        },
    };
    report.finish(global, bench, outcome)
}

/// What was asked for, or the likeliest next token over the second likeliest.
fn target(args: &Args, bench: &Bench, tokens: &Tokens, predictions: &DataFrame) -> Result<Target> {
    if args.answer.is_some() {
        return Target::parse(bench.tokenizer()?, args.answer.as_slice(), args.wrong.as_slice());
    }
    let last = tokens.longest() as u32 - 1;
    let (pos, next) = (predictions.column("pos")?.u32()?, predictions.column("next_id")?.u32()?);
    let best: Vec<u32> =
        pos.iter().zip(next.iter()).filter(|(pos, _)| *pos == Some(last)).filter_map(|(_, id)| id).collect();
    Target::new(best[..1].to_vec(), best[1..best.len().min(2)].to_vec())
}

/// What comes next, and where to look.
fn summary(predictions: &DataFrame, html: &std::path::Path) -> Result<String> {
    let (pos, next) = (predictions.column("pos")?.u32()?, predictions.column("next")?.str()?);
    let logprob = predictions.column("logprob")?.f32()?;
    let last = pos.iter().flatten().max();
    let lines: Vec<String> = (0..predictions.height())
        .filter(|&i| pos.get(i) == last)
        .take(5)
        .map(|i| {
            let p = logprob.get(i).unwrap_or(f32::NEG_INFINITY).exp();
            format!("  {:<16} {p:.4}", figure::shown(next.get(i).unwrap_or_default()))
        })
        .collect();
    Ok(format!("after the last token\n{}\nopen {}", lines.join("\n"), html.display()))
}

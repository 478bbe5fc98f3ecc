use interp::{Result, figure, limits, memory, page, predict};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Global, Text};
use super::bench::Bench;
use super::number::whole;
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many predictions per position.
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = whole(1, limits::VOCABULARY))]
    top: usize,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let tokens = bench.tokens(global, &args.text)?;
    let plan = bench.plan(&args.edits)?;
    bench.check(&plan, &tokens)?;
    bench.check_rows(
        memory::product(&[tokens.count() as u64, args.top.min(bench.config().vocab_size) as u64]),
        global,
    )?;
    let report = Report::begin("predict", global, &bench.name(&tokens))?;
    let tokenizer = bench.tokenizer()?;
    let (frame, applied) = bench.run(&plan, &tokens, |trace| predict::from_trace(trace, tokenizer, args.top))?;
    let outcome = Outcome {
        page: vec![page::predictions(&frame)?],
        figure: figure::predict(&frame, 0)?,
        summary: summary(&frame)?,
        frame,
        how: How { plan: &plan, applied, tokens: Some(&tokens), extra: json!({ "top": args.top }) },
    };
    report.finish(global, bench, outcome)
}

/// The predictions after the last token of every prompt.
fn summary(frame: &DataFrame) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (prompt, pos, rank) = (ints("prompt")?, ints("pos")?, ints("rank")?);
    let next: Vec<&str> = frame.column("next")?.str()?.iter().map(|x| x.unwrap_or_default()).collect();
    let logprob: Vec<f32> = frame.column("logprob")?.f32()?.into_no_null_iter().collect();
    let logit: Vec<f32> = frame.column("logit")?.f32()?.into_no_null_iter().collect();
    let prompts = prompt.iter().max().map_or(0, |p| p + 1);
    let mut lines = Vec::new();
    let mut first = 0;
    for p in 0..prompts {
        // The rows of a prompt stand together.
        let next_first = first + prompt[first..].iter().take_while(|own| **own == p).count();
        let rows = || first..next_first;
        let last = rows().map(|i| pos[i]).max().unwrap_or(0);
        if prompts > 1 {
            lines.push(format!("prompt {p}"));
        }
        lines.push("  rank  probability   logit  next".into());
        lines.extend(rows().filter(|&i| pos[i] == last).map(|i| {
            format!("  {:>4}  {:>11.4}  {:>6.2}  {}", rank[i], logprob[i].exp(), logit[i], figure::shown(next[i]))
        }));
        first = next_first;
    }
    Ok(lines.join("\n"))
}

use interp::{Plan, Result, figure, frame};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Global, Text};
use super::bench::Bench;
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    text: Text,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let tokens = bench.tokens(global, &args.text)?;
    let report = Report::begin("tokens", global, &bench.name(&tokens))?;
    let frame = DataFrame::new(tokens.count(), frame::token_columns(&tokens))?;
    let mut lines = Vec::new();
    for prompt in 0..tokens.len() {
        let row = tokens.row(prompt);
        lines.push(format!("prompt {prompt}: {} tokens", row.len()));
        lines.push(" pos      id  token".into());
        lines.extend(
            row.iter()
                .enumerate()
                .map(|(pos, id)| format!("{pos:>4}  {id:>6}  {}", figure::shown(&tokens.text(prompt, pos)))),
        );
    }
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::tokens(&frame, 0)?,
        summary: lines.join("\n"),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra: json!({}) },
    };
    report.finish(global, bench, outcome)
}

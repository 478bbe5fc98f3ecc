use interp::lens::{self, LayerNormConvention};
use interp::{Result, figure, limits, memory, page};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Global, Text};
use super::bench::Bench;
use super::number::whole;
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many predictions per layer and position.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = whole(1, limits::VOCABULARY))]
    top: usize,
    /// How an intermediate stream passes the last LayerNorm: recompute (the logit lens) or final-scale.
    #[arg(long, value_name = "CONVENTION", default_value = "recompute")]
    ln: String,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let convention: LayerNormConvention = args.ln.parse()?;
    let bench = Bench::open(global)?;
    let tokens = bench.tokens(global, &args.text)?;
    let plan = bench.plan(&args.edits)?.reads(lens::sites(bench.config().n_layer));
    bench.check(&plan, &tokens)?;
    let layers = bench.config().n_layer as u64 + 1;
    let top = args.top.min(bench.config().vocab_size) as u64;
    bench.check_rows(memory::product(&[tokens.count() as u64, layers, top]), global)?;
    let report = Report::begin("lens", global, &format!("{convention} {}", bench.name(&tokens)))?;
    let tokenizer = bench.tokenizer()?;
    let (frame, applied) =
        bench.run(&plan, &tokens, |trace| lens::from_trace(&bench.model, tokenizer, trace, args.top, convention))?;
    let outcome = Outcome {
        page: vec![page::lens(&frame)?],
        figure: figure::lens(&frame, 0)?,
        summary: summary(&frame)?,
        frame,
        how: How {
            plan: &plan,
            applied,
            tokens: Some(&tokens),
            extra: json!({ "top": args.top, "ln": convention.to_string() }),
        },
    };
    report.finish(global, bench, outcome)
}

/// What each layer expects after the last token of the first prompt.
fn summary(frame: &DataFrame) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (prompt, layer, pos) = (ints("prompt")?, ints("layer")?, ints("pos")?);
    let next: Vec<&str> = frame.column("next")?.str()?.iter().map(|x| x.unwrap_or_default()).collect();
    let logprob: Vec<f32> = frame.column("logprob")?.f32()?.into_no_null_iter().collect();
    let rows: Vec<usize> = (0..frame.height()).filter(|&i| prompt[i] == 0).collect();
    let last = rows.iter().map(|&i| pos[i]).max().unwrap_or(0);
    let layers = rows.iter().map(|&i| layer[i]).max().unwrap_or(0);
    let mut lines = vec!["before layer  likeliest after the last token".to_string()];
    for l in 0..=layers {
        let shown: Vec<String> = rows
            .iter()
            .filter(|&&i| layer[i] == l && pos[i] == last)
            .take(5)
            .map(|&i| format!("{} {:.3}", figure::shown(next[i]), logprob[i].exp()))
            .collect();
        let name = if l == layers { "output".to_string() } else { l.to_string() };
        lines.push(format!("  {name:>11}  {}", shown.join("   ")));
    }
    Ok(lines.join("\n"))
}

use interp::{Result, figure, residual};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Global, Text};
use super::bench::Bench;
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let layers = bench.config().n_layer;
    let tokens = bench.tokens(global, &args.text)?;
    let plan = bench.plan(&args.edits)?.reads(residual::sites(layers)).logits(interp::LogitsAt::None);
    plan.check(bench.config(), &tokens)?;
    let report = Report::begin("residual", global, &bench.name(&tokens))?;
    let (frame, applied) = bench.run(&plan, &tokens, |trace| residual::from_trace(trace, layers))?;
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::residual(&frame, 0)?,
        summary: summary(&frame)?,
        frame,
        how: How { plan: &plan, applied, tokens: Some(&tokens), extra: json!({}) },
    };
    report.finish(global, bench, outcome)
}

/// Mean norm and cosine of every site over all positions but the first, whose norm stands apart.
fn summary(frame: &DataFrame) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (layer, pos) = (ints("layer")?, ints("pos")?);
    let site: Vec<&str> = frame.column("site")?.str()?.iter().map(|x| x.unwrap_or_default()).collect();
    let norm: Vec<f32> = frame.column("norm")?.f32()?.into_no_null_iter().collect();
    let cosine: Vec<Option<f32>> = frame.column("cosine")?.f32()?.iter().collect();
    let skip_first = pos.iter().any(|&p| p > 0);
    let mut order: Vec<(u32, &str)> = site.iter().enumerate().map(|(i, s)| (layer[i], *s)).collect();
    order.dedup();
    let mut lines = vec![format!("  {:<16}{:>9}{:>9}", "site", "norm", "cosine")];
    for (l, s) in order {
        let rows: Vec<usize> =
            (0..frame.height()).filter(|&i| layer[i] == l && site[i] == s && !(skip_first && pos[i] == 0)).collect();
        let n = rows.len().max(1) as f32;
        let mean_norm = rows.iter().map(|&i| norm[i]).sum::<f32>() / n;
        let cosines: Option<Vec<f32>> = rows.iter().map(|&i| cosine[i]).collect();
        let mean_cosine = cosines.map_or(String::new(), |c| format!("{:.3}", c.iter().sum::<f32>() / n));
        lines.push(format!("  {:<16}{mean_norm:>9.3}{mean_cosine:>9}", format!("{s}.{l}")));
    }
    lines.push("  means over positions after the first".into());
    Ok(lines.join("\n"))
}

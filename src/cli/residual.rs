use std::collections::BTreeMap;

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
    bench.check(&plan, &tokens)?;
    bench.check_rows((tokens.count() * residual::sites(layers).count()) as u64, global)?;
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
    // Sites in the order of the forward pass; prompts in several batches have each site several times.
    let mut sums: BTreeMap<(u32, usize, &str), Sums> = BTreeMap::new();
    for i in (0..frame.height()).filter(|&i| !(skip_first && pos[i] == 0)) {
        let rank = ["resid_pre", "resid_mid", "resid_post"].iter().position(|kind| *kind == site[i]).unwrap_or(0);
        let own = sums.entry((layer[i], rank, site[i])).or_default();
        own.rows += 1;
        own.norm += norm[i];
        own.cosine = own.cosine.zip(cosine[i]).map(|(sum, cosine)| sum + cosine);
    }
    let mut lines = vec![format!("  {:<16}{:>9}{:>9}", "site", "norm", "cosine")];
    for ((layer, _, site), Sums { rows, norm, cosine }) in sums {
        let n = rows as f32;
        let cosine = cosine.map_or(String::new(), |sum| format!("{:.3}", sum / n));
        lines.push(format!("  {:<16}{:>9.3}{cosine:>9}", format!("{site}.{layer}"), norm / n));
    }
    lines.push("  means over positions after the first".into());
    Ok(lines.join("\n"))
}

/// Sums over the rows of a site.
struct Sums {
    rows: usize,
    norm: f32,
    cosine: Option<f32>,
}

impl Default for Sums {
    fn default() -> Self {
        Self { rows: 0, norm: 0.0, cosine: Some(0.0) }
    }
}

use interp::site::{Site, resolve_layer};
use interp::{Result, figure, limits, memory, neurons, page};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Global, Text};
use super::bench::Bench;
use super::number::whole;
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Layer; -1 is the last.
    #[arg(long, value_name = "L", value_parser = super::index)]
    layer: i64,
    /// How many neurons, by largest absolute activation.
    #[arg(long, value_name = "K", default_value_t = 24, value_parser = whole(1, limits::NEURONS))]
    top: usize,
    /// Before GELU instead of after it.
    #[arg(long)]
    pre: bool,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let layer = resolve_layer(args.layer, bench.config().n_layer)?;
    let site = if args.pre { Site::MlpPre(layer) } else { Site::MlpPost(layer) };
    let tokens = bench.tokens(global, &args.text)?;
    let plan = bench.plan(&args.edits)?.read(site).until(layer + 1);
    bench.check(&plan, &tokens)?;
    bench.check_rows(memory::product(&[tokens.count() as u64, args.top.min(bench.config().n_inner) as u64]), global)?;
    let report = Report::begin("neurons", global, &format!("layer {layer} {}", bench.name(&tokens)))?;
    let (frame, applied) = bench.run(&plan, &tokens, |trace| neurons::from_trace(trace, site, args.top))?;
    let outcome = Outcome {
        page: vec![page::neurons(&frame)?],
        figure: figure::neurons(&frame, 0)?,
        summary: summary(&frame)?,
        frame,
        how: How {
            plan: &plan,
            applied,
            tokens: Some(&tokens),
            extra: json!({ "layer": layer, "top": args.top, "site": site.to_string() }),
        },
    };
    report.finish(global, bench, outcome)
}

/// The strongest neurons of the first prompt with the tokens on which they fire most.
fn summary(frame: &DataFrame) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (prompt, pos, neuron) = (ints("prompt")?, ints("pos")?, ints("neuron")?);
    let token: Vec<&str> = frame.column("token")?.str()?.iter().map(|x| x.unwrap_or_default()).collect();
    let activation: Vec<f32> = frame.column("activation")?.f32()?.into_no_null_iter().collect();
    let rows: Vec<usize> = (0..frame.height()).filter(|&i| prompt[i] == 0).collect();
    let mut order: Vec<u32> = rows.iter().map(|&i| neuron[i]).collect();
    order.dedup();
    let mut lines = vec!["neuron  strongest on".to_string()];
    for n in order.into_iter().take(12) {
        let mut fires: Vec<usize> = rows.iter().copied().filter(|&i| neuron[i] == n).collect();
        fires.sort_by(|&a, &b| activation[b].abs().total_cmp(&activation[a].abs()));
        let shown: Vec<String> = fires
            .iter()
            .take(4)
            .map(|&i| format!("{}@{} {:.2}", figure::shown(token[i]), pos[i], activation[i]))
            .collect();
        lines.push(format!("  {n:>5}  {}", shown.join("   ")));
    }
    Ok(lines.join("\n"))
}

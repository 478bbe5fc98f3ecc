use std::time::Instant;

use interp::effect::{Scale, why_meaningless};
use interp::metric::Metric;
use interp::paths::{self, End, Freeze, Paths};
use interp::{Plan, Result, figure};
use serde_json::json;

use super::args::Global;
use super::bench::Bench;
use super::output::{bar, counted};
use super::pairs::PairArgs;
use super::report::{How, Outcome, Report};
use super::{doubled, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pairs: PairArgs,
    /// Where the paths end: logits, 9.9.q (or k, v), m3, resid_pre.5; several with commas are patched together.
    #[arg(long, value_name = "NAMES", default_value = "logits", value_delimiter = ',')]
    receiver: Vec<End>,
    /// What stays as it was on the way: mlps (only the edge itself counts), ln (LayerNorm's scale), or both; without it MLPs and
    /// LayerNorm follow, as in the paper on indirect objects.
    #[arg(long, value_enum, value_name = "PARTS", value_delimiter = ',')]
    freeze: Vec<Part>,
    /// What to measure: logit_diff, prob, prob_diff, logprob, rank, kl; several with commas. The first is drawn.
    #[arg(long, value_name = "NAMES", default_value = "logit_diff", value_delimiter = ',')]
    metric: Vec<String>,
    /// noise puts what senders write for the corrupted prompt into the clean run, denoise the other way round.
    #[arg(long, value_enum, default_value = "noise")]
    direction: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Mlps,
    Ln,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    Noise,
    Denoise,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let metrics = args.metric.iter().map(|name| Metric::named(name)).collect::<Result<Vec<_>>>()?;
    let freeze = Freeze { mlps: args.freeze.contains(&Part::Mlps), layer_norm: args.freeze.contains(&Part::Ln) };
    let ends: Vec<String> = args.receiver.iter().map(End::to_string).collect();
    if let Some(twice) = doubled(&ends) {
        return Err(request(format!("{twice} is there twice")));
    }
    let asked = args.pairs.read(true)?;
    let bench = Bench::open(global)?;
    let found = asked.pairs(&bench, global, &args.pairs.draw)?;
    let report = Report::begin("paths", global, &format!("{} {}", ends.join(" "), asked.name))?;
    let start = Instant::now();
    let bar = bar(global.quiet, 0, "{pos}/{len} pairs [{wide_bar}] {per_sec}, {eta} left");
    let mut progress = counted(&bar);
    let room = bench.room(global)?;
    let mut patched: Vec<Paths> = Vec::new();
    for pair in &found.pairs {
        let denoise = args.direction == Way::Denoise;
        patched.push(paths::paths(&bench.model, pair, &args.receiver, freeze, denoise, room)?);
        progress(patched.len(), found.pairs.len())?;
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let frame = paths::frame(&patched, &args.receiver, &metrics, global.seed)?;
    let tokens = found.tokens()?;
    let mut extra = found.record();
    extra["receivers"] = json!(ends);
    extra["freeze"] = json!({ "mlps": freeze.mlps, "layer_norm": freeze.layer_norm });
    extra["direction"] = json!(if args.direction == Way::Noise { "noise" } else { "denoise" });
    extra["metrics"] = json!(args.metric);
    extra["paths_seconds"] = json!(seconds);
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::paths(&frame, metrics[0].name())?,
        summary: summary(&patched, metrics[0], &ends, seconds),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// The senders that matter most.
fn summary(patched: &[Paths], metric: Metric, ends: &[String], seconds: f64) -> String {
    let m = metric as usize;
    let n = patched.len() as f64;
    let mean = |of: &dyn Fn(&Paths) -> f64| patched.iter().map(of).sum::<f64>() / n;
    let (base, other) = (mean(&|one| one.base[m]), mean(&|one| one.other[m]));
    let mut senders: Vec<(String, f64)> = (0..patched[0].senders.len())
        .map(|s| (patched[0].senders[s].0.to_string(), mean(&|one| one.senders[s].1[m]) - base))
        .collect();
    senders.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let scales: Vec<Scale> = patched.iter().map(|one| one.scale(metric)).collect();
    let scale = Scale::mean(&scales);
    let why = why_meaningless(&scales, senders.iter().map(|(_, change)| scale.effect(scale.base + change)));
    let best = senders.iter().take(10).map(|(name, change)| match (&why, scale.effect(scale.base + change)) {
        (None, Some(effect)) => format!("  {name:<8} {change:+.3}, an effect of {effect:.3}"),
        _ => format!("  {name:<8} {change:+.2e}"),
    });
    let raw = why.as_ref().map(|why| format!("the scale of effects is meaningless: {why}; these are raw changes"));
    let head = format!(
        "{} {base:.3} in the plain run, {other:.3} in the other; change by the paths to {}, {} pairs, {seconds:.1} s",
        metric.name(),
        ends.join(" "),
        patched.len()
    );
    std::iter::once(head).chain(raw).chain(best).collect::<Vec<_>>().join("\n")
}

use std::time::Instant;

use interp::faithful;
use interp::figure;
use interp::graph::{Instead, Judge, Source};
use interp::metric::Metric;
use interp::{Plan, Result};
use polars::prelude::df;
use serde_json::json;

use super::super::args::Global;
use super::super::bench::Bench;
use super::super::note;
use super::super::output::{bar, bounded, counted};
use super::super::pairs::PairArgs;
use super::super::report::{How, Outcome, Report};
use super::{ends, instead, metric, read};

/// Largest circuit that is tried without each of its edges, unless that is asked for.
const FEW: usize = 200;
/// Random circuits that a circuit is compared with.
const CONTROLS: u64 = 20;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// A circuit: one that comes with the workbench, a file of `circuit find`, or one of EAP-IG.
    #[arg(value_name = "CIRCUIT")]
    circuit: String,
    #[command(flatten)]
    pairs: PairArgs,
    /// What to measure: logit_diff, prob, prob_diff, logprob, rank, kl [default: the circuit's own, else logit_diff].
    #[arg(long, value_name = "NAME", value_parser = metric)]
    metric: Option<Metric>,
    /// What edges outside of the circuit carry: corrupt (the run of the pair's corrupted prompt), mean (of these runs, by length
    /// and position) or zero (as EAP-IG evaluates: tokens, heads and MLPs write nothing, positions and biases stay) [default: the
    /// circuit's own, else corrupt].
    #[arg(long, value_name = "WHAT", value_parser = instead)]
    instead: Option<Instead>,
    /// What is lost without each edge, of large circuits too: as many runs of every pair as there are edges.
    #[arg(long)]
    each_edge: bool,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let file = read(&args.circuit)?;
    let circuit = file.circuit()?;
    let mut draw = args.pairs.draw.clone();
    let asked = match args.pairs.pairs.is_some() || args.pairs.clean.is_some() || file.pairs.is_empty() {
        true => args.pairs.read(true)?,
        false => {
            // Like the pairs that found it, but for what is asked for here.
            let corruption = Some(file.corruption.clone()).filter(|name| !name.is_empty());
            draw.corruption = draw.corruption.or(corruption);
            draw.template = draw.template.or(file.template);
            draw.right_only |= file.right_only;
            super::super::pairs::asked(&file.pairs, &draw)?
        }
    };
    let own = if file.metric.is_empty() { Metric::LogitDiff } else { Metric::named(&file.metric)? };
    let measured = args.metric.unwrap_or(own);
    let bench = Bench::open(global)?;
    circuit.check(interp::graph::Graph::of(bench.config()))?;
    let pairs = asked.pairs(&bench, global, &draw)?;
    let replaced = match (args.instead, file.instead.as_str()) {
        (Some(instead), _) => instead,
        (None, "") => Instead::default(),
        (None, name) => {
            instead(name).map_err(|what| interp::Error::Data { path: args.circuit.clone().into(), what })?
        }
    };
    if file.seed == Some(global.seed) && asked.name == file.pairs {
        let seed = global.seed.wrapping_add(1);
        note(
            global.quiet,
            &format!("note: this seed drew the pairs that found the circuit; --seed {seed} draws others"),
        );
    }
    let judge = Judge::new(&bench.model, &pairs.pairs, measured, replaced, bench.room(global)?)?;
    let name =
        std::path::Path::new(&args.circuit).file_stem().map_or(args.circuit.clone(), |s| s.to_string_lossy().into());
    let report = Report::begin("circuit", global, &format!("test {name} {}", asked.name))?;
    let start = Instant::now();
    let judged = faithful::one(&judge, circuit.clone(), global.seed)?;
    let bar = bar(global.quiet, 0, "{pos}/{len} runs [{wide_bar}] {per_sec}, {eta} left");
    let each_edge = args.each_edge || circuit.len() <= FEW;
    if !each_edge {
        let n = circuit.len();
        note(
            global.quiet,
            &format!("note: tried without each node, not without each of {n} edges; --each-edge does that"),
        );
    }
    let trial = faithful::trial(&judge, &circuit, each_edge, global.seed, &mut counted(&bar));
    bar.finish_and_clear();
    let trial = trial?;
    let random = faithful::random(&judge, circuit.len(), CONTROLS, global.seed)?;
    let random: Vec<f64> = random.iter().map(|one| one.faithfulness.mean).collect();
    let seconds = start.elapsed().as_secs_f64();
    let chance = random.iter().sum::<f64>() / random.len() as f64;
    let gap = trial.knocked.iter().map(|(circuit, model)| (circuit - model).abs());
    let (worst, mean) = (gap.clone().fold(0.0, f64::max), gap.sum::<f64>() / trial.knocked.len() as f64);
    let share = judged.faithfulness.mean;
    // What is lost without each part: 0 for one that is not needed.
    let graph = circuit.graph();
    let roles = file.roles();
    let nodes =
        trial.nodes.iter().map(|(node, without)| (node.to_string(), roles.get(node).copied(), "node", share - without));
    let edges =
        trial.edges.iter().map(|(edge, without)| (graph.edge(*edge).to_string(), None, "edge", share - without));
    let mut parts: Vec<(String, Option<&str>, &str, f64)> = nodes.chain(edges).collect();
    parts.sort_by(|a, b| b.3.abs().total_cmp(&a.3.abs()));
    let frame = df!(
        "part" => parts.iter().map(|part| part.0.clone()).collect::<Vec<_>>(),
        "kind" => parts.iter().map(|part| part.2).collect::<Vec<_>>(),
        "role" => parts.iter().map(|part| part.1).collect::<Vec<_>>(),
        "lost" => parts.iter().map(|part| part.3).collect::<Vec<_>>(),
    )
    .map_err(interp::Error::from)?;
    let mut losses = vec![f64::NAN; graph.edges()];
    trial.edges.iter().for_each(|(edge, without)| losses[*edge] = share - without);
    let idle = parts.iter().filter(|part| part.2 == "edge" && part.3.abs() < 0.01).count();
    if idle > 0 {
        note(global.quiet, &format!("note: {idle} of {} edges change faithfulness by less than 0.01", circuit.len()));
    }
    let interval = judged.faithfulness;
    let best = parts.iter().filter(|part| part.2 == "node").take(8).map(|part| format!("{} {:.3}", part.0, part.3));
    let summary = [
        format!("{}, {} pairs", ends(&judge), pairs.pairs.len()),
        format!("{} of {} edges, {} heads and MLPs", circuit.len(), graph.edges(), circuit.nodes().len()),
        format!("faithfulness {}; {CONTROLS} random circuits of that size {chance:.3}", bounded(interval)),
        format!(
            "complete: the rest carries {:.3}; without random nodes circuit and model differ by {mean:.3}, at most {worst:.3}",
            trial.rest.mean
        ),
        format!("minimal: lost without each node: {}", best.collect::<Vec<_>>().join(", ")),
    ];
    let tokens = pairs.tokens()?;
    let mut extra = pairs.record();
    extra["circuit"] = json!({
        "file": args.circuit, "about": file.about, "source": file.source, "metric": measured.name(),
        "instead": replaced.name(), "instead_means": replaced.convention(), "edges": circuit.len(), "of": graph.edges(),
        "nodes": circuit.nodes().iter().map(Source::to_string).collect::<Vec<_>>(),
        "faithfulness": share, "low": interval.low(), "high": interval.high(), "rest": trial.rest.mean,
        "incompleteness": { "mean": mean, "worst": worst, "knocked": trial.knocked },
        "random": random, "test_seconds": seconds,
    });
    let outcome = Outcome {
        page: Vec::new(),
        figure: match each_edge {
            true => figure::circuit(&circuit, Some(&losses), &format!("{name}: what is lost without each edge")),
            false => figure::circuit(&circuit, None, &name),
        },
        summary: summary.join("\n"),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    drop(judge);
    report.finish(global, bench, outcome)
}

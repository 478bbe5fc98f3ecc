use std::time::Instant;

use interp::edges::{Steps, attribute, exact};
use interp::faithful::{self, Areas, Choice, Curve, Judged};
use interp::figure::{self, Figure};
use interp::frame::save_parquet;
use interp::graph::{Circuit, CircuitFile, Graph, Instead, Judge, Source};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::prune::prune;
use interp::{Error, Plan, Result, disk, limits};
use polars::prelude::{DataFrame, df};
use serde_json::{Value, json};

use super::super::args::Global;
use super::super::bench::Bench;
use super::super::calibrate::correlation;
use super::super::number::{real, whole};
use super::super::output::{bar, bounded, counted};
use super::super::pairs::PairArgs;
use super::super::report::{How, Outcome, Report};
use super::super::request;
use super::{Split, ends, instead, metric};

/// Random circuits that a circuit is compared with.
const CONTROLS: u64 = 20;
/// Thresholds of pruning, unless others are given.
const THRESHOLDS: [f64; 6] = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001];

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pairs: PairArgs,
    #[command(flatten)]
    split: Split,
    /// How edges are chosen: eap-ig and eap by gradients, exact by trying each one, acdc by taking edges away.
    #[arg(long, value_enum, default_value = "eap-ig")]
    method: Method,
    /// Steps of the integrated gradients [default: 5].
    #[arg(long, value_name = "M", value_parser = whole(1, 1000_usize))]
    steps: Option<usize>,
    /// What to measure: logit_diff, prob, prob_diff, logprob, kl, for acdc also rank [default: logit_diff; for acdc kl].
    #[arg(long, value_name = "NAME", value_parser = metric)]
    metric: Option<Metric>,
    /// Keep this many edges, fewer where some are not fed, instead of as few as are faithful.
    #[arg(long, value_name = "N", conflicts_with = "least", value_parser = whole(1, limits::RANKED))]
    edges: Option<usize>,
    /// The share of the behaviour that the circuit has to carry [default: 0.8].
    #[arg(long, value_name = "SHARE")]
    least: Option<f64>,
    /// What costs less than this is taken away by acdc; several with commas make a curve [default: 0.3 … 0.001].
    #[arg(long, value_name = "T", value_delimiter = ',', value_parser = real(0.0, 1e30))]
    threshold: Vec<f64>,
    /// What edges outside of the circuit carry: corrupt (the run of the pair's corrupted prompt), mean (of these runs, by length
    /// and position) or zero (as EAP-IG evaluates: tokens, heads and MLPs write nothing, positions and biases stay).
    #[arg(long, value_name = "WHAT", default_value = "corrupt", value_parser = instead)]
    instead: Instead,
    /// Try this many of the best edges, and as many out of the input and MLPs, where gradients are known to mislead.
    #[arg(long, value_name = "K", value_parser = whole(1, limits::RANKED))]
    calibrate: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    EapIg,
    Eap,
    Exact,
    Acdc,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::EapIg => "eap-ig",
            Method::Eap => "eap",
            Method::Exact => "exact",
            Method::Acdc => "acdc",
        }
    }
}

/// What was found on the pairs for it.
struct Found {
    circuit: Circuit,
    /// By edge, the mean over pairs; none for pruning.
    scores: Option<Vec<f64>>,
    curve: Curve,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    check(args)?;
    let asked = args.pairs.read(true)?;
    let bench = Bench::open(global)?;
    let found_pairs = asked.pairs(&bench, global, &args.pairs.draw)?;
    let (finding, judging) = args.split.halves(&found_pairs.pairs, global.quiet);
    let measured = args.metric.unwrap_or(if args.method == Method::Acdc { Metric::Kl } else { Metric::LogitDiff });
    let room = bench.room(global)?;
    let judge = Judge::new(&bench.model, &finding, measured, args.instead, room)?;
    let other = Judge::new(&bench.model, &judging, measured, args.instead, room)?;
    let name = format!("find {} {}", args.method.name(), asked.name);
    let report = Report::begin("circuit", global, &name)?;
    let start = Instant::now();
    let mut found = find(args, &bench, &judge, &finding, global)?;
    // Circuits were chosen by the pairs for it; what they carry is said of the others.
    let top = match &found.scores {
        Some(scores) => {
            found.curve = faithful::curve(&other, scores, Choice::Greedy, global.seed, &mut |_, _| Ok(()))?;
            Some(faithful::curve(&other, scores, Choice::Top, global.seed, &mut |_, _| Ok(()))?)
        }
        None => {
            let sizes = found.curve.points.iter().map(|point| point.circuit.clone()).collect();
            found.curve = faithful::of(&other, sizes, global.seed, &mut |_, _| Ok(()))?;
            None
        }
    };
    let (mib, mib_greedy) = (top.as_ref().and_then(Curve::mib), found.curve.mib());
    let by_size = found.curve.by_size();
    let circuit = &found.circuit;
    let judged = faithful::one(&other, circuit.clone(), global.seed)?;
    let rest = other.faithfulness(&other.values(&circuit.complement())?, global.seed);
    let random = faithful::random(&other, circuit.len(), CONTROLS, global.seed)?;
    let calibrated = args.calibrate.map(|k| calibrate(args, &bench, &found, &finding, k, measured, global));
    let calibrated = calibrated.transpose()?;
    let seconds = start.elapsed().as_secs_f64();

    let graph = circuit.graph();
    let frame = edges(graph, &found, calibrated.as_ref(), &judge)?;
    let top_name = format!("{} top-n", args.method.name());
    let mut curves = vec![(args.method.name(), found.curve.points.as_slice())];
    curves.extend(top.as_ref().map(|curve| (top_name.as_str(), curve.points.as_slice())));
    curves.push(("random", random.as_slice()));
    save_parquet(&mut faithful::frame(&curves, graph.edges())?, &report.dir().join("curve.parquet"))?;
    let file = CircuitFile {
        about: format!("{} of {}, by {}", measured.name(), asked.name, args.method.name()),
        source: "interp circuit find".into(),
        suits: bench.source.name.clone(),
        layers: graph.layers,
        heads: graph.heads,
        pairs: args.pairs.pairs.clone().unwrap_or_default(),
        corruption: args.pairs.draw.corruption.clone().unwrap_or_default(),
        template: args.pairs.draw.template,
        right_only: args.pairs.draw.right_only,
        metric: measured.name().into(),
        instead: args.instead.name().into(),
        seed: Some(global.seed),
        edges: circuit.edges().map(|edge| edge.to_string()).collect(),
        ..CircuitFile::default()
    };
    disk::write_bytes(&report.dir().join("circuit.toml"), file.to_toml()?.as_bytes())?;
    let tokens = found_pairs.tokens()?;
    let mut extra = found_pairs.record();
    let shares = random.iter().map(|one| one.faithfulness.mean);
    let low = shares.clone().fold(f64::INFINITY, f64::min);
    let high = shares.clone().fold(f64::NEG_INFINITY, f64::max);
    let chance = (shares.sum::<f64>() / random.len() as f64, low, high);
    extra["circuit"] = json!({
        "method": args.method.name(), "steps": steps(args), "metric": measured.name(), "instead": args.instead.name(),
        "edges": circuit.len(), "of": graph.edges(), "nodes": circuit.nodes().iter().map(Source::to_string).collect::<Vec<_>>(),
        "instead_means": args.instead.convention(),
        "finding": finding.len(), "judging": judging.len(), "held_out": args.split.held_out(&found_pairs.pairs),
        "faithfulness": judged.faithfulness.mean, "low": judged.faithfulness.low(), "high": judged.faithfulness.high(),
        "rest": rest.mean, "random": { "count": CONTROLS, "mean": chance.0, "low": chance.1, "high": chance.2 },
        "cpr": mib.map(|areas| areas.under), "cmd": mib.map(|areas| areas.from_one),
        "cpr_greedy": mib_greedy.map(|areas| areas.under), "cmd_greedy": mib_greedy.map(|areas| areas.from_one),
        "area_by_size": by_size.under, "gap_by_size": by_size.from_one,
        "calibration": calibrated.as_ref().map(Calibrated::record),
        "find_seconds": seconds,
    });
    let mut summary = vec![
        format!("{}; {} pairs to find it, {} to judge it", ends(&other), finding.len(), judging.len()),
        format!(
            "{} of {} edges, {} heads and MLPs: {}",
            circuit.len(),
            graph.edges(),
            circuit.nodes().len(),
            circuit.nodes().iter().map(Source::to_string).collect::<Vec<_>>().join(" ")
        ),
        format!("faithfulness {}; the rest without it {:.3}", bounded(judged.faithfulness), rest.mean),
        format!("{CONTROLS} random circuits of that size: {:.3}, from {:.3} to {:.3}", chance.0, chance.1, chance.2),
        match mib.zip(mib_greedy) {
            Some((Areas { under, from_one }, greedy)) => format!(
                "over all sizes, by MIB's formulae: CPR {under:.3}, CMD {from_one:.3} (greedy {:.3}, {:.3}); {seconds:.1} s",
                greedy.under, greedy.from_one
            ),
            None => format!(
                "over the thresholds' sizes: area {:.3}, gap to 1 {:.3}; {seconds:.1} s",
                by_size.under, by_size.from_one
            ),
        },
    ];
    summary.extend(calibrated.as_ref().map(Calibrated::words));
    let outcome = Outcome {
        page: Vec::new(),
        figure: draw(args, &found, &judged, &curves, calibrated.as_ref(), &asked.name),
        summary: summary.join("\n"),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    drop((judge, other));
    report.finish(global, bench, outcome)
}

fn check(args: &Args) -> Result<()> {
    let only = |given: bool, option: &str, methods: &str| match given {
        true => Err(request(format!("{option} goes with --method {methods}"))),
        false => Ok(()),
    };
    only(args.steps.is_some() && args.method != Method::EapIg, "--steps", "eap-ig")?;
    only(!args.threshold.is_empty() && args.method != Method::Acdc, "--threshold", "acdc")?;
    let estimated = [Method::EapIg, Method::Eap].contains(&args.method);
    only(args.calibrate.is_some() && !estimated, "--calibrate", "eap-ig or eap: the others try every edge")?;
    only(args.edges.is_some() && args.method == Method::Acdc, "--edges", "eap-ig, eap or exact; acdc has --threshold")?;
    if args.least.is_some_and(|least| !(least > 0.0 && least <= 1.0)) {
        return Err(request("--least is a share above 0 and up to 1"));
    }
    if args.metric == Some(Metric::Kl) && args.method == Method::Eap {
        return Err(request("kl has no slope in the clean run, where eap takes gradients; take eap-ig, exact or acdc"));
    }
    let rank = args.metric == Some(Metric::Rank);
    only(rank && args.method != Method::Acdc, "--metric rank", "acdc: a rank has no gradient, and steps")
}

fn steps(args: &Args) -> Option<usize> {
    (args.method == Method::EapIg).then(|| args.steps.unwrap_or(5))
}

fn find(args: &Args, bench: &Bench, judge: &Judge<'_>, pairs: &[Pair], global: &Global) -> Result<Found> {
    let bar = bar(global.quiet, 0, "{pos}/{len} [{wide_bar}] {per_sec}, {eta} left");
    let mut progress = counted(&bar);
    let least = args.least.unwrap_or(0.8);
    let reached = |curve: &Curve| {
        let most = curve.points.iter().map(|point| point.faithfulness.mean).fold(f64::NEG_INFINITY, f64::max);
        request(format!("no circuit carries {least} of the behaviour; the best has {most:.3}: lower --least"))
    };
    let found = if args.method == Method::Acdc {
        let thresholds = if args.threshold.is_empty() { THRESHOLDS.to_vec() } else { args.threshold.clone() };
        let circuits = thresholds.iter().map(|t| prune(judge, *t, &mut progress)).collect::<Result<Vec<Circuit>>>()?;
        let curve = faithful::of(judge, circuits, global.seed, &mut progress)?;
        let enough = curve.points.iter().find(|point| point.faithfulness.mean >= least && !point.circuit.is_empty());
        let circuit = enough.ok_or_else(|| reached(&curve))?.circuit.clone();
        Found { circuit, scores: None, curve }
    } else {
        let scores = scores(args, bench, pairs, judge.metric(), bench.room(global)?, &mut progress)?;
        let curve = faithful::curve(judge, &scores, Choice::Greedy, global.seed, &mut progress)?;
        let circuit = match args.edges {
            Some(edges) => Circuit::greedy(judge.graph(), &scores, edges),
            None => {
                let smallest = faithful::smallest(judge, &scores, &curve, least, global.seed)?;
                smallest.ok_or_else(|| reached(&curve))?.circuit
            }
        };
        Found { circuit, scores: Some(scores), curve }
    };
    bar.finish_and_clear();
    if found.circuit.is_empty() {
        return Err(request("so few edges do not lead from the input to the logits; ask for more --edges"));
    }
    Ok(found)
}

/// The mean score of every edge.
fn scores(
    args: &Args,
    bench: &Bench,
    pairs: &[Pair],
    metric: Metric,
    room: Option<u64>,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let by_pair = match (args.method, steps(args)) {
        (Method::Exact, _) => {
            let all: Vec<usize> = (0..Graph::of(bench.config()).edges()).collect();
            tried(bench, pairs, metric, &all, room, progress)?
        }
        (_, Some(m)) => attribute(&bench.model, pairs, metric, Steps::Integrated(m), room, progress)?,
        _ => attribute(&bench.model, pairs, metric, Steps::Clean, room, progress)?,
    };
    Ok(helping(mean(&by_pair), metric))
}

/// Scores of which positive ones help the answer, whichever way the metric goes.
fn helping(scores: Vec<f64>, metric: Metric) -> Vec<f64> {
    let sign = if metric.falls_with_skill() { -1.0 } else { 1.0 };
    scores.into_iter().map(|score| sign * score).collect()
}

fn tried(
    bench: &Bench,
    pairs: &[Pair],
    metric: Metric,
    edges: &[usize],
    room: Option<u64>,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    let one = |(i, pair): (usize, &Pair)| {
        let mut progress = |done, all| progress(i * all + done, all * pairs.len());
        exact(&bench.model, pair, metric, edges, room, &mut progress)
    };
    pairs.iter().enumerate().map(one).collect()
}

fn mean(by_pair: &[Vec<f64>]) -> Vec<f64> {
    let n = by_pair.len() as f64;
    (0..by_pair[0].len()).map(|i| by_pair.iter().map(|scores| scores[i]).sum::<f64>() / n).collect()
}

/// Edges that were tried, with what was estimated of them.
struct Calibrated {
    /// Edge by number, score, effect when tried, whether it leaves a head.
    points: Vec<(usize, f64, f64, bool)>,
    graph: Graph,
}

fn calibrate(
    args: &Args,
    bench: &Bench,
    found: &Found,
    pairs: &[Pair],
    k: usize,
    metric: Metric,
    global: &Global,
) -> Result<Calibrated> {
    let room = bench.room(global)?;
    let scores = found.scores.as_ref().ok_or_else(|| Error::Bug(format!("{:?} has no scores", args.method)))?;
    let graph = found.circuit.graph();
    let of_head = |edge: usize| matches!(graph.edge(edge).from, Source::Head { .. });
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].abs().total_cmp(&scores[*a].abs()));
    let mut edges: Vec<usize> = order.iter().take(k).copied().collect();
    edges.extend(order.iter().skip(k).filter(|edge| !of_head(**edge)).take(k));
    let bar = bar(global.quiet, 0, "{pos}/{len} edges tried [{wide_bar}] {per_sec}, {eta} left");
    let effects = helping(mean(&tried(bench, pairs, metric, &edges, room, &mut counted(&bar))?), metric);
    bar.finish_and_clear();
    let points = edges.into_iter().zip(effects).map(|(edge, effect)| (edge, scores[edge], effect, of_head(edge)));
    Ok(Calibrated { points: points.collect(), graph })
}

impl Calibrated {
    /// Pearson's correlation of scores and effects, of some of the points; none for fewer than three.
    fn correlation(&self, of: impl Fn(bool) -> bool) -> Option<f64> {
        correlation(self.points.iter().filter(|point| of(point.3)).map(|point| (point.1, point.2)))
    }

    fn worst(&self) -> Option<&(usize, f64, f64, bool)> {
        self.points.iter().max_by(|a, b| (a.1 - a.2).abs().total_cmp(&(b.1 - b.2).abs()))
    }

    fn record(&self) -> Value {
        let worst = self.worst().map(|(edge, score, effect, _)| {
            json!({ "edge": self.graph.edge(*edge).to_string(), "score": score, "exact": effect })
        });
        json!({
            "edges": self.points.len(), "worst": worst, "correlation": self.correlation(|_| true),
            "correlation_heads": self.correlation(|head| head),
            "correlation_input_and_mlps": self.correlation(|head| !head),
        })
    }

    fn words(&self) -> String {
        let r = |r: Option<f64>| r.map_or("none".to_string(), |r| format!("{r:.3}"));
        let worst = self.worst().map_or(String::new(), |(edge, score, effect, _)| {
            format!("; the worst, {}: {score:.3} instead of {effect:.3}", self.graph.edge(*edge))
        });
        format!(
            "{} edges tried: correlation with the scores {}, out of heads {}, out of the input and MLPs {}{worst}",
            self.points.len(),
            r(self.correlation(|_| true)),
            r(self.correlation(|head| head)),
            r(self.correlation(|head| !head)),
        )
    }
}

/// Every edge, the largest scores first.
///
/// `share` is the score as a share of the whole behaviour.
fn edges(graph: Graph, found: &Found, calibrated: Option<&Calibrated>, judge: &Judge<'_>) -> Result<DataFrame> {
    let score = |edge: usize| found.scores.as_ref().map(|scores| scores[edge]);
    let mut order: Vec<usize> = (0..graph.edges()).collect();
    order.sort_by(|a, b| {
        let size = |edge: usize| score(edge).map_or(0.0, f64::abs);
        (size(*b).total_cmp(&size(*a))).then(found.circuit.has(*b).cmp(&found.circuit.has(*a)))
    });
    let span = judge.full().iter().sum::<f64>() - judge.empty().iter().sum::<f64>();
    let span = (span / judge.full().len() as f64).abs();
    let exact = |edge: usize| {
        let points = calibrated.map(|calibrated| calibrated.points.as_slice()).unwrap_or_default();
        points.iter().find(|point| point.0 == edge).map(|point| point.2)
    };
    let all = |f: &dyn Fn(usize) -> String| order.iter().map(|edge| f(*edge)).collect::<Vec<_>>();
    Ok(df!(
        "edge" => all(&|edge| graph.edge(edge).to_string()),
        "from" => all(&|edge| graph.edge(edge).from.to_string()),
        "to" => all(&|edge| graph.edge(edge).to.to_string()),
        "score" => order.iter().map(|edge| score(*edge)).collect::<Vec<_>>(),
        "share" => order.iter().map(|edge| score(*edge).map(|score| score / span)).collect::<Vec<_>>(),
        "kept" => order.iter().map(|edge| found.circuit.has(*edge)).collect::<Vec<_>>(),
        "exact" => order.iter().map(|edge| exact(*edge)).collect::<Vec<_>>(),
    )?)
}

fn draw(
    args: &Args,
    found: &Found,
    judged: &Judged,
    curves: &[(&str, &[Judged])],
    calibrated: Option<&Calibrated>,
    name: &str,
) -> Figure {
    let title = format!("{name}: faithfulness {}", bounded(judged.faithfulness));
    let graph = figure::circuit(&found.circuit, found.scores.as_deref(), &title);
    let mut side = figure::faithfulness(curves, &format!("What circuits carry, by {}", args.method.name()));
    if let Some(calibrated) = calibrated {
        let points: Vec<(f64, f64, bool)> = calibrated.points.iter().map(|p| (p.1, p.2, p.3)).collect();
        let note = calibrated.correlation(|_| true).map_or(String::new(), |r| format!("r = {r:.3}"));
        let scatter = figure::calibration(&points, &note, ("out of heads", "out of input, MLPs"));
        let (curve, below) = (side.size(), scatter.size());
        let mut both = Figure::new(curve.0.max(below.0), curve.1 + below.1 + 20);
        both.place((0, 0), side);
        both.place((0, curve.1 as i32 + 20), scatter);
        side = both;
    }
    graph.beside(side)
}

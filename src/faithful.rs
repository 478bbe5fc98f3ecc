//! Whether a circuit is true: faithfulness by size, completeness, minimality.

use polars::prelude::{DataFrame, df};

use crate::error::Result;
use crate::graph::{Circuit, Judge, Source};
use crate::random::{Rng, stream};
use crate::stats::Interval;

/// Sizes of circuits that are tried, as shares of all edges (Mueller et al. 2025, MIB).
const SHARES: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0];
/// Random subsets of a circuit's nodes that are knocked out of it and of the whole model.
const SUBSETS: u64 = 20;

/// A circuit with its faithfulness.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its edges.
    pub circuit: Circuit,
    /// What it carries.
    pub faithfulness: Interval,
}

/// Circuits of growing size.
#[derive(Clone, Debug)]
pub struct Curve {
    /// In the order of their sizes.
    pub points: Vec<Judged>,
    /// Area under faithfulness by share of edges: the integrated circuit performance ratio (CPR).
    pub cpr: f64,
    /// Area between faithfulness and 1: the integrated circuit–model distance (CMD).
    pub cmd: f64,
}

/// The largest edges by `scores`, at several sizes.
///
/// # Errors
/// Faults of the runs, and what `progress` returns.
pub fn curve(
    judge: &Judge<'_>,
    scores: &[f64],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Curve> {
    let graph = judge.graph();
    let mut sizes: Vec<usize> = SHARES.iter().map(|share| (share * graph.edges() as f64).ceil() as usize).collect();
    sizes.dedup();
    let mut circuits: Vec<Circuit> = sizes.iter().map(|size| Circuit::greedy(graph, scores, *size)).collect();
    circuits.dedup();
    of(judge, circuits, seed, progress)
}

/// A curve of these circuits.
///
/// # Errors
/// As [`curve`].
pub fn of(
    judge: &Judge<'_>,
    mut circuits: Vec<Circuit>,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Curve> {
    circuits.sort_by_key(Circuit::len);
    let n = circuits.len();
    let mut points = Vec::with_capacity(n);
    for (i, circuit) in circuits.into_iter().enumerate() {
        points.push(one(judge, circuit, seed)?);
        progress(i + 1, n)?;
    }
    let (cpr, cmd) = areas(&points, judge.graph().edges());
    Ok(Curve { points, cpr, cmd })
}

/// One circuit.
///
/// # Errors
/// Faults of the runs.
pub fn one(judge: &Judge<'_>, circuit: Circuit, seed: u64) -> Result<Judged> {
    let faithfulness = judge.faithfulness(&judge.values(&circuit)?, seed);
    Ok(Judged { circuit, faithfulness })
}

/// By the trapezoid rule from no edge, which carries 0, to all, which carry 1.
fn areas(points: &[Judged], edges: usize) -> (f64, f64) {
    let inner = points.iter().map(|point| (point.circuit.len() as f64 / edges as f64, point.faithfulness.mean));
    let all: Vec<(f64, f64)> = std::iter::once((0.0, 0.0)).chain(inner).chain([(1.0, 1.0)]).collect();
    let area = |height: &dyn Fn(f64) -> f64| -> f64 {
        all.windows(2).map(|two| (two[1].0 - two[0].0) * (height(two[0].1) + height(two[1].1)) / 2.0).sum()
    };
    (area(&|f| f), area(&|f| (1.0 - f).abs()))
}

/// The smallest circuit of the largest edges whose faithfulness, in the mean, is at least `least`, among those near the first
/// point of a curve that reaches it; none if only the whole model does.
///
/// # Errors
/// Faults of the runs.
pub fn smallest(judge: &Judge<'_>, scores: &[f64], curve: &Curve, least: f64, seed: u64) -> Result<Option<Judged>> {
    let graph = judge.graph();
    let enough = |point: &Judged| point.faithfulness.mean >= least && point.circuit.len() < graph.edges();
    let Some(at) = curve.points.iter().position(enough) else { return Ok(None) };
    let mut best = curve.points[at].clone();
    let (mut low, mut high) = (if at == 0 { 0 } else { curve.points[at - 1].circuit.len() }, best.circuit.len());
    while high - low > 1 {
        let middle = (low + high) / 2;
        let tried = one(judge, Circuit::greedy(graph, scores, middle), seed)?;
        // Unfed edges fall away, so that a circuit may be smaller than it was asked to be.
        if tried.faithfulness.mean >= least && !tried.circuit.is_empty() {
            high = middle.min(tried.circuit.len().max(low + 1));
            best = tried;
        } else {
            low = middle;
        }
    }
    Ok(Some(best))
}

/// Random circuits of about a size: how faithful would any circuit be?
///
/// # Errors
/// Faults of the runs.
pub fn random(judge: &Judge<'_>, edges: usize, count: u64, seed: u64) -> Result<Vec<Judged>> {
    let circuits: Vec<Circuit> = (0..count).map(|i| Circuit::random(judge.graph(), edges, seed, i)).collect();
    let values = judge.values_of(&circuits.iter().collect::<Vec<_>>())?;
    let judged =
        |(circuit, values): (Circuit, &Vec<f64>)| Judged { circuit, faithfulness: judge.faithfulness(values, seed) };
    Ok(circuits.into_iter().zip(&values).map(judged).collect())
}

/// Whether a circuit is complete and minimal (Wang et al. 2022).
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the rest of the model carries without the circuit's edges: 0 for a complete circuit.
    pub rest: Interval,
    /// For random sets K of its nodes: faithfulness of the circuit without K, and of the model without K. In a complete circuit
    /// both are the same.
    pub knocked: Vec<(f64, f64)>,
    /// Faithfulness without each of its nodes.
    pub nodes: Vec<(Source, f64)>,
    /// Faithfulness without each of its edges, by number, where that was asked for.
    pub edges: Vec<(usize, f64)>,
}

/// Tries a circuit, without each of its edges too if `each_edge` is set; `progress(done, all)` counts runs.
///
/// # Errors
/// Faults of the runs, and what `progress` returns.
pub fn trial(
    judge: &Judge<'_>,
    circuit: &Circuit,
    each_edge: bool,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Trial> {
    let full = Circuit::full(judge.graph());
    let rest = judge.faithfulness(&judge.values(&circuit.complement())?, seed);
    let nodes = circuit.nodes();
    let numbers: Vec<usize> = circuit.numbers().filter(|_| each_edge).collect();
    let all = 2 * SUBSETS as usize + nodes.len() + numbers.len();
    let share = |circuit: &Circuit| -> Result<f64> { Ok(judge.faithfulness(&judge.values(circuit)?, seed).mean) };
    let mut done = 0;
    let mut count = |n: usize| {
        done += n;
        progress(done, all)
    };
    let mut knocked = Vec::new();
    for i in 0..SUBSETS {
        let mut rng = stream(seed, "knocked out nodes", i);
        let out: Vec<Source> = nodes.iter().copied().filter(|_| rng.random::<bool>()).collect();
        knocked.push((share(&circuit.without(&out))?, share(&full.without(&out))?));
        count(2)?;
    }
    let mut without_node = Vec::new();
    for node in nodes {
        without_node.push((node, share(&circuit.without(&[node]))?));
        count(1)?;
    }
    let mut without_edge = Vec::new();
    for edge in numbers {
        let mut less = circuit.clone();
        less.set(edge, false);
        without_edge.push((edge, share(&less)?));
        count(1)?;
    }
    Ok(Trial { rest, knocked, nodes: without_node, edges: without_edge })
}

/// Circuits that were judged as a frame, by how they were found.
///
/// | column | |
/// |---|---|
/// | `method` | how edges were chosen |
/// | `edges`, `share` | how many, and of all |
/// | `nodes` | heads and MLPs that they pass through |
/// | `faithfulness`, `low`, `high` | with a bootstrap interval of 95 % over pairs |
///
/// # Errors
/// None in practice.
pub fn frame(found: &[(&str, &[Judged])], edges: usize) -> Result<DataFrame> {
    let points = || found.iter().flat_map(|(name, points)| points.iter().map(move |point| (*name, point)));
    let sizes: Vec<u32> = points().map(|(_, point)| point.circuit.len() as u32).collect();
    let bound = |x: f64| (!x.is_nan()).then_some(x);
    Ok(df!(
        "method" => points().map(|(name, _)| name).collect::<Vec<_>>(),
        "edges" => sizes.clone(),
        "share" => sizes.iter().map(|n| f64::from(*n) / edges as f64).collect::<Vec<_>>(),
        "nodes" => points().map(|(_, point)| point.circuit.nodes().len() as u32).collect::<Vec<_>>(),
        "faithfulness" => points().map(|(_, point)| point.faithfulness.mean).collect::<Vec<_>>(),
        "low" => points().map(|(_, point)| bound(point.faithfulness.low)).collect::<Vec<_>>(),
        "high" => points().map(|(_, point)| bound(point.faithfulness.high)).collect::<Vec<_>>(),
    )?)
}

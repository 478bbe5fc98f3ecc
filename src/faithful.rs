//! Whether a circuit is true: faithfulness by size, completeness, minimality.

use polars::prelude::{DataFrame, df};

use crate::error::Result;
use crate::graph::{Circuit, Judge, Source};
use crate::random::{Rng, stream};
use crate::stats::Interval;

/// Sizes of circuits that are tried, as shares of all edges: those of MIB, the Mechanistic Interpretability Benchmark (Mueller et
/// al. 2025).
const SHARES: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Random subsets of a circuit's nodes that are knocked out of it and of the whole model.
const SUBSETS: u64 = 20;

/// A circuit with its faithfulness.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its edges.
    pub circuit: Circuit,
    /// The share of all edges that was asked for, where one was; edges that lead nowhere fall away, so that it has fewer.
    pub asked: Option<f64>,
    /// What it carries.
    pub faithfulness: Interval,
}

/// How the edges of a circuit of some size are chosen by their scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The largest, [`Circuit::top`]: what MIB does unless it is told otherwise.
    Top,
    /// The largest that lead to the logits, [`Circuit::greedy`]: MIB's `apply_greedy`.
    Greedy,
}

/// Circuits of growing size.
#[derive(Clone, Debug)]
pub struct Curve {
    /// In the order of their sizes.
    pub points: Vec<Judged>,
}

/// What is below a curve, and what is between it and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Areas {
    /// Below faithfulness: the higher, the better.
    pub under: f64,
    /// Between faithfulness and 1: the lower, the better.
    pub from_one: f64,
}

impl Areas {
    /// By the trapezoid rule, of (share of edges, faithfulness).
    fn of(points: &[(f64, f64)]) -> Self {
        let area = |height: &dyn Fn(f64) -> f64| -> f64 {
            points.windows(2).map(|two| (two[1].0 - two[0].0) * (height(two[0].1) + height(two[1].1)) / 2.0).sum()
        };
        Self { under: area(&|f| f), from_one: area(&|f| (1.0 - f).abs()) }
    }
}

impl Curve {
    /// MIB's integrated circuit performance ratio (CPR, `under`) and integrated circuit–model distance (CMD, `from_one`), of a curve
    /// of [`curve`]; none for other circuits.
    ///
    /// With shares k of 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 % of all edges, circuits of ⌊k · edges⌋ edges before those that
    /// lead nowhere are dropped, and f(k) their faithfulness: CPR = Σ (kᵢ₊₁ − kᵢ) · (f(kᵢ) + f(kᵢ₊₁)) / 2, and CMD the same sum of
    /// |1 − f|, over the shares that were asked for, not those that are left, and from 0.1 %, not from 0. That is
    /// `evaluate_area_under_curve` of the benchmark's code.
    pub fn mib(&self) -> Option<Areas> {
        let points = self.points.iter().map(|point| Some((point.asked?, point.faithfulness.mean)));
        points.collect::<Option<Vec<_>>>().map(|points| Areas::of(&points))
    }

    /// The same areas by the shares that circuits really have, from no edge, which carries 0, to all, which carry 1: this can be said
    /// of any circuits, and edges that were dropped are not paid for.
    pub fn by_size(&self) -> Areas {
        let share = |circuit: &Circuit| circuit.len() as f64 / circuit.graph().edges() as f64;
        let inner = self.points.iter().map(|point| (share(&point.circuit), point.faithfulness.mean));
        Areas::of(&std::iter::once((0.0, 0.0)).chain(inner).chain([(1.0, 1.0)]).collect::<Vec<_>>())
    }
}

/// Circuits of the largest edges by `scores`, at MIB's sizes.
///
/// # Errors
/// Faults of the runs, and what `progress` returns.
pub fn curve(
    judge: &Judge<'_>,
    scores: &[f64],
    choice: Choice,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Curve> {
    let graph = judge.graph();
    let mut points: Vec<Judged> = Vec::with_capacity(SHARES.len());
    for (i, share) in SHARES.into_iter().enumerate() {
        let size = (share * graph.edges() as f64) as usize;
        let circuit = match choice {
            Choice::Top => Circuit::top(graph, scores, size),
            Choice::Greedy => Circuit::greedy(graph, scores, size),
        };
        let known = points.last().filter(|last| last.circuit == circuit).map(|last| last.faithfulness);
        let faithfulness = known.map_or_else(|| one(judge, circuit.clone(), seed).map(|one| one.faithfulness), Ok)?;
        points.push(Judged { circuit, asked: Some(share), faithfulness });
        progress(i + 1, SHARES.len())?;
    }
    Ok(Curve { points })
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
    Ok(Curve { points })
}

/// One circuit.
///
/// # Errors
/// Faults of the runs.
pub fn one(judge: &Judge<'_>, circuit: Circuit, seed: u64) -> Result<Judged> {
    let faithfulness = judge.faithfulness(&judge.values(&circuit)?, seed);
    Ok(Judged { circuit, asked: None, faithfulness })
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
    let judged = |(circuit, values): (Circuit, &Vec<f64>)| Judged {
        circuit,
        asked: None,
        faithfulness: judge.faithfulness(values, seed),
    };
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
/// | `asked` | the share of all edges that was asked for, on curves at MIB's sizes |
/// | `edges`, `share` | how many there are, and of all |
/// | `nodes` | heads and MLPs that they pass through |
/// | `faithfulness`, `low`, `high` | with a bootstrap interval of 95 % over pairs |
///
/// # Errors
/// None in practice.
pub fn frame(found: &[(&str, &[Judged])], edges: usize) -> Result<DataFrame> {
    let points = || found.iter().flat_map(|(name, points)| points.iter().map(move |point| (*name, point)));
    let sizes: Vec<u32> = points().map(|(_, point)| point.circuit.len() as u32).collect();
    Ok(df!(
        "method" => points().map(|(name, _)| name).collect::<Vec<_>>(),
        "asked" => points().map(|(_, point)| point.asked).collect::<Vec<_>>(),
        "edges" => sizes.clone(),
        "share" => sizes.iter().map(|n| f64::from(*n) / edges as f64).collect::<Vec<_>>(),
        "nodes" => points().map(|(_, point)| point.circuit.nodes().len() as u32).collect::<Vec<_>>(),
        "faithfulness" => points().map(|(_, point)| point.faithfulness.mean).collect::<Vec<_>>(),
        "low" => points().map(|(_, point)| point.faithfulness.low()).collect::<Vec<_>>(),
        "high" => points().map(|(_, point)| point.faithfulness.high()).collect::<Vec<_>>(),
    )?)
}

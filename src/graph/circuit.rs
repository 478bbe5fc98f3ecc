//! A set of edges.

use std::collections::{BTreeSet, BinaryHeap};

use super::layout::{Edge, Graph};
use super::node::{Receiver, Source};
use crate::error::{Error, Result};
use crate::random::{Rng, stream};

/// Some of the edges of a graph: those that a behaviour is said to need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    graph: Graph,
    kept: Vec<bool>,
}

impl Circuit {
    /// All edges.
    pub fn full(graph: Graph) -> Self {
        Self { graph, kept: vec![true; graph.edges()] }
    }

    /// No edge.
    pub fn empty(graph: Graph) -> Self {
        Self { graph, kept: vec![false; graph.edges()] }
    }

    /// These edges.
    ///
    /// # Errors
    /// [`Error::Request`] for an edge that the graph does not have.
    pub fn of(graph: Graph, edges: impl IntoIterator<Item = Edge>) -> Result<Self> {
        let mut circuit = Self::empty(graph);
        for edge in edges {
            circuit.kept[graph.edge_index(edge)?] = true;
        }
        Ok(circuit)
    }

    /// Every edge between these nodes; the input and the logits are among them.
    ///
    /// # Errors
    /// [`Error::Request`] for a node that the graph does not have.
    pub fn between(graph: Graph, nodes: &[Source]) -> Result<Self> {
        let mut inside: BTreeSet<Source> = BTreeSet::from([Source::Input]);
        for node in nodes {
            // Every node writes to the logits.
            graph.edge_index(Edge { from: *node, to: Receiver::Logits })?;
            inside.insert(*node);
        }
        let mut circuit = Self::empty(graph);
        for (i, kept) in circuit.kept.iter_mut().enumerate() {
            let Edge { from, to } = graph.edge(i);
            *kept = inside.contains(&from) && to.source().is_none_or(|node| inside.contains(&node));
        }
        Ok(circuit)
    }

    /// `edges` edges with large scores, in absolute value, each with a way to the logits: from the logits back, the best edge
    /// into a node that is there already (Hanna et al. 2024). Fewer where no more lead there, or where an edge is not fed.
    pub fn greedy(graph: Graph, scores: &[f64], edges: usize) -> Self {
        let mut circuit = Self::empty(graph);
        let mut open: BinaryHeap<(Score, usize)> = BinaryHeap::new();
        let mut there = vec![false; graph.sources()];
        let push = |open: &mut BinaryHeap<(Score, usize)>, receiver: usize| {
            open.extend(graph.edges_into(receiver).map(|edge| (Score(scores[edge].abs()), edge)));
        };
        push(&mut open, graph.receivers() - 1);
        for _ in 0..edges {
            let Some((_, edge)) = open.pop() else { break };
            circuit.kept[edge] = true;
            let source = graph.edge(edge).from;
            if !std::mem::replace(&mut there[graph.source_index(source)], true) {
                receivers(graph, source).for_each(|receiver| push(&mut open, receiver));
            }
        }
        circuit.connected()
    }

    /// The `edges` edges of the largest scores, in absolute value, without those that lie on no way from the input to the logits
    /// (MIB's and EAP-IG's `apply_topn`).
    pub fn top(graph: Graph, scores: &[f64], edges: usize) -> Self {
        let mut order: Vec<usize> = (0..graph.edges()).collect();
        order.sort_by(|a, b| scores[*b].abs().total_cmp(&scores[*a].abs()));
        let mut circuit = Self::empty(graph);
        order.iter().take(edges).for_each(|edge| circuit.kept[*edge] = true);
        circuit.connected()
    }

    /// As many edges as [`Circuit::greedy`] would take, chosen by chance.
    pub fn random(graph: Graph, edges: usize, seed: u64, index: u64) -> Self {
        let mut rng = stream(seed, "random circuit", index);
        let scores: Vec<f64> = (0..graph.edges()).map(|_| rng.random::<f64>()).collect();
        // What is not fed is dropped, so that more than `edges` have to be taken to keep as many.
        let (mut low, mut high) = (edges, graph.edges());
        while low < high {
            let middle = (low + high) / 2;
            if Self::greedy(graph, &scores, middle).len() < edges { low = middle + 1 } else { high = middle }
        }
        Self::greedy(graph, &scores, low)
    }

    /// Without edges that no way from the input to the logits passes through: they carry nothing.
    pub fn connected(&self) -> Self {
        let graph = self.graph;
        // Forward: which nodes are fed. Backward: which are read.
        let mut fed = vec![false; graph.sources()];
        fed[0] = true;
        for source in 1..fed.len() {
            fed[source] = receivers(graph, graph.source(source)).any(|receiver| {
                graph.edges_into(receiver).enumerate().any(|(from, edge)| self.kept[edge] && fed[from])
            });
        }
        let mut read = vec![false; graph.sources()];
        let mut kept = vec![false; self.kept.len()];
        for receiver in (0..graph.receivers()).rev() {
            let counts = graph.receiver(receiver).source().is_none_or(|node| read[graph.source_index(node)]);
            for (from, edge) in graph.edges_into(receiver).enumerate() {
                if counts && self.kept[edge] && fed[from] {
                    kept[edge] = true;
                    read[from] = true;
                }
            }
        }
        Self { graph, kept }
    }

    /// All other edges.
    pub fn complement(&self) -> Self {
        Self { graph: self.graph, kept: self.kept.iter().map(|kept| !kept).collect() }
    }

    /// Without the edges into and out of some nodes.
    pub fn without(&self, nodes: &[Source]) -> Self {
        let mut circuit = self.clone();
        for (i, kept) in circuit.kept.iter_mut().enumerate() {
            let Edge { from, to } = self.graph.edge(i);
            *kept &= !nodes.contains(&from) && to.source().is_none_or(|node| !nodes.contains(&node));
        }
        circuit
    }

    /// With or without an edge, by its number.
    pub fn set(&mut self, edge: usize, kept: bool) {
        self.kept[edge] = kept;
    }

    /// The graph that it is part of.
    pub fn graph(&self) -> Graph {
        self.graph
    }

    /// Whether it has an edge, by its number.
    pub fn has(&self, edge: usize) -> bool {
        self.kept[edge]
    }

    /// Its edges by number.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + '_ {
        self.kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(i, _)| i)
    }

    /// Its edges, in the order of the graph.
    pub fn edges(&self) -> impl Iterator<Item = Edge> + '_ {
        self.numbers().map(|i| self.graph.edge(i))
    }

    /// Number of edges.
    pub fn len(&self) -> usize {
        self.kept.iter().filter(|kept| **kept).count()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        !self.kept.contains(&true)
    }

    /// Heads and MLPs that it passes through, in order.
    pub fn nodes(&self) -> Vec<Source> {
        let ends = self.edges().flat_map(|edge| [Some(edge.from), edge.to.source()]).flatten();
        let found: BTreeSet<usize> = ends.map(|node| self.graph.source_index(node)).filter(|i| *i > 0).collect();
        found.into_iter().map(|i| self.graph.source(i)).collect()
    }

    /// Checks that it is of a model's graph.
    ///
    /// # Errors
    /// [`Error::Request`] with both sizes.
    pub fn check(&self, graph: Graph) -> Result<()> {
        if self.graph == graph {
            return Ok(());
        }
        Err(Error::request(format!(
            "the circuit is of a model of {} layers with {} heads each, this one has {} with {}",
            self.graph.layers, self.graph.heads, graph.layers, graph.heads
        )))
    }
}

/// The numbers of what a node reads with.
fn receivers(graph: Graph, node: Source) -> impl Iterator<Item = usize> {
    let all = match node {
        Source::Input => Vec::new(),
        Source::Head { layer, head } => {
            let of = |reads| graph.receiver_index(Receiver::Head { layer, head, reads });
            crate::reads::Reads::ALL.map(of).to_vec()
        }
        Source::Mlp(layer) => vec![graph.receiver_index(Receiver::Mlp(layer))],
    };
    all.into_iter()
}

/// A score that can be ordered; of equal ones the earlier edge comes last.
#[derive(PartialEq)]
struct Score(f64);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAPH: Graph = Graph { layers: 2, heads: 2 };

    fn circuit(edges: &[&str]) -> Circuit {
        Circuit::of(GRAPH, edges.iter().map(|edge| edge.parse().unwrap())).unwrap()
    }

    #[test]
    fn what_is_not_on_a_way_is_dropped() {
        let dangling = circuit(&["input->a0.h0<v>", "a0.h0->m1", "a0.h1->logits", "m0->logits", "input->logits"]);
        let edges: Vec<String> = dangling.connected().edges().map(|edge| edge.to_string()).collect();
        assert_eq!(edges, ["input->logits"]);
        let whole = circuit(&["input->a0.h0<v>", "a0.h0->m1", "m1->logits"]);
        assert_eq!(whole.connected(), whole);
        assert_eq!(whole.nodes(), ["a0.h0".parse().unwrap(), "m1".parse().unwrap()]);
        assert_eq!(whole.without(&["m1".parse().unwrap()]).len(), 1);
        assert_eq!(whole.complement().len(), GRAPH.edges() - 3);
    }

    #[test]
    fn greedy_circuits_hang_together() {
        let mut scores = vec![0.0; GRAPH.edges()];
        let mut score = |edge: &str, value: f64| scores[GRAPH.edge_index(edge.parse().unwrap()).unwrap()] = value;
        score("m1->logits", 1.0);
        score("a0.h1->m1", -0.5);
        score("input->a0.h1<k>", 0.2);
        score("input->a1.h0<q>", 9.0); // the best, but a1.h0 leads nowhere yet
        let found = Circuit::greedy(GRAPH, &scores, 3);
        let edges: Vec<String> = found.edges().map(|edge| edge.to_string()).collect();
        assert_eq!(edges, ["input->a0.h1<k>", "a0.h1->m1", "m1->logits"]);
        assert_eq!(Circuit::greedy(GRAPH, &scores, GRAPH.edges()), Circuit::full(GRAPH));
        for edges in [5, 20, 40] {
            let random = Circuit::random(GRAPH, edges, 1, 0);
            assert!(random.len() >= edges && random.len() < edges + 8, "{} for {edges}", random.len());
            assert_eq!(random, random.connected());
        }
        assert_ne!(Circuit::random(GRAPH, 20, 1, 0), Circuit::random(GRAPH, 20, 1, 1));
        // The best edge is among the first of `top`, and falls away while it leads nowhere.
        assert!(Circuit::top(GRAPH, &scores, 1).is_empty());
        assert_eq!(Circuit::top(GRAPH, &scores, 4), found);
        assert_eq!(Circuit::top(GRAPH, &scores, GRAPH.edges()), Circuit::full(GRAPH));
    }

    #[test]
    fn nodes_bring_all_edges_between_them() {
        let circuit = Circuit::between(GRAPH, &["0.1".parse().unwrap(), "m1".parse().unwrap()]).unwrap();
        // input → three readings of the head, MLP, logits; head → MLP, logits; MLP → logits.
        assert_eq!(circuit.len(), 3 + 1 + 1 + 2 + 1);
        assert!(Circuit::between(GRAPH, &["2.0".parse().unwrap()]).is_err());
    }
}

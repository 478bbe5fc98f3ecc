//! Which nodes and edges a model has, and their order.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::node::{Receiver, Source};
use crate::config::Config;
use crate::error::{Error, Result, shorten};
use crate::reads::Reads;

/// An edge: what one node writes, as far as one receiver reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// What writes.
    pub from: Source,
    /// What reads.
    pub to: Receiver,
}

/// `a0.h1->a5.h2<q>`.
impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.from, self.to)
    }
}

impl FromStr for Edge {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (from, to) = name.split_once("->").ok_or_else(|| {
            Error::request(format!("`{}` is no edge; an edge is a0.h1->a5.h2<q> or m3->logits", shorten(name)))
        })?;
        Ok(Edge { from: from.trim().parse()?, to: to.trim().parse()? })
    }
}

/// The graph of a model of this many layers and heads.
///
/// Sources stand in the order of the forward pass: the input, then the heads and the MLP of each layer. Receivers too: in each
/// layer all queries, all keys, all values, the MLP; at the end the logits. What a receiver reads are the first so many
/// sources, so that an edge's number is its receiver's first one and the number of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Layers.
    pub layers: usize,
    /// Heads of each.
    pub heads: usize,
}

impl Graph {
    /// The graph of a model.
    pub fn of(config: &Config) -> Self {
        Self { layers: config.n_layer, heads: config.n_head }
    }

    /// Number of sources.
    pub fn sources(self) -> usize {
        1 + self.layers * (self.heads + 1)
    }

    /// Number of receivers.
    pub fn receivers(self) -> usize {
        1 + self.layers * (3 * self.heads + 1)
    }

    /// Number of edges: 32,491 for GPT-2 small.
    pub fn edges(self) -> usize {
        self.edges_into(self.receivers() - 1).end
    }

    /// A source by its number.
    pub fn source(self, index: usize) -> Source {
        let Some(rest) = index.checked_sub(1) else { return Source::Input };
        let (layer, at) = (rest / (self.heads + 1), rest % (self.heads + 1));
        if at < self.heads { Source::Head { layer, head: at } } else { Source::Mlp(layer) }
    }

    /// The number of a source.
    pub fn source_index(self, source: Source) -> usize {
        match source {
            Source::Input => 0,
            Source::Head { layer, head } => 1 + layer * (self.heads + 1) + head,
            Source::Mlp(layer) => 1 + layer * (self.heads + 1) + self.heads,
        }
    }

    /// A receiver by its number.
    pub fn receiver(self, index: usize) -> Receiver {
        let (layer, at) = (index / (3 * self.heads + 1), index % (3 * self.heads + 1));
        match at / self.heads {
            _ if layer == self.layers => Receiver::Logits,
            part @ 0..3 => Receiver::Head { layer, head: at % self.heads, reads: Reads::ALL[part] },
            _ => Receiver::Mlp(layer),
        }
    }

    /// The number of a receiver.
    pub fn receiver_index(self, receiver: Receiver) -> usize {
        let first = |layer: usize| layer * (3 * self.heads + 1);
        match receiver {
            Receiver::Head { layer, head, reads } => first(layer) + reads as usize * self.heads + head,
            Receiver::Mlp(layer) => first(layer) + 3 * self.heads,
            Receiver::Logits => first(self.layers),
        }
    }

    /// How many sources come before a receiver: the first so many.
    pub fn before(self, receiver: Receiver) -> usize {
        let first = |layer: usize| 1 + layer * (self.heads + 1);
        match receiver {
            Receiver::Head { layer, .. } => first(layer),
            Receiver::Mlp(layer) => first(layer) + self.heads,
            Receiver::Logits => first(self.layers),
        }
    }

    /// The numbers of the edges into a receiver, by its number.
    pub fn edges_into(self, receiver: usize) -> Range<usize> {
        let (layer, at) = (receiver / (3 * self.heads + 1), receiver % (3 * self.heads + 1));
        // Every layer before this one has 3·heads receivers of its first sources and one MLP that also reads its heads.
        let sources_before = layer + (self.heads + 1) * (layer * layer.saturating_sub(1) / 2);
        let before = (3 * self.heads + 1) * sources_before + layer * self.heads;
        let first = before + at * (1 + layer * (self.heads + 1));
        first..first + self.before(self.receiver(receiver))
    }

    /// An edge by its number.
    pub fn edge(self, index: usize) -> Edge {
        // Receivers in order have edges in order.
        let (mut low, mut high) = (0, self.receivers());
        while high - low > 1 {
            let middle = (low + high) / 2;
            if self.edges_into(middle).start <= index { low = middle } else { high = middle }
        }
        let to = self.receiver(low);
        Edge { from: self.source(index - self.edges_into(low).start), to }
    }

    /// The number of an edge.
    ///
    /// # Errors
    /// [`Error::Request`] for an edge that this graph does not have.
    pub fn edge_index(self, edge: Edge) -> Result<usize> {
        let inside = |layer: Option<usize>, head: usize| layer.is_none_or(|l| l < self.layers) && head < self.heads;
        let from = if let Source::Head { head, .. } = edge.from { head } else { 0 };
        let to = if let Receiver::Head { head, .. } = edge.to { head } else { 0 };
        if !inside(edge.from.layer(), from) || !inside(edge.to.layer(), to) {
            return Err(Error::request(format!(
                "there is no edge {edge}: this model has layers 0..={} and heads 0..={}",
                self.layers - 1,
                self.heads - 1
            )));
        }
        let source = self.source_index(edge.from);
        if source >= self.before(edge.to) {
            return Err(Error::request(format!(
                "there is no edge {edge}: {} does not come before {}",
                edge.from, edge.to
            )));
        }
        Ok(self.edges_into(self.receiver_index(edge.to)).start + source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graph_of_gpt2_small_has_its_known_size() {
        let graph = Graph { layers: 12, heads: 12 };
        assert_eq!((graph.sources(), graph.receivers(), graph.edges()), (157, 445, 32_491));
    }

    #[test]
    fn numbers_and_names_go_both_ways() {
        let graph = Graph { layers: 3, heads: 2 };
        for i in 0..graph.sources() {
            assert_eq!(graph.source_index(graph.source(i)), i);
        }
        let mut next = 0;
        for i in 0..graph.receivers() {
            assert_eq!(graph.receiver_index(graph.receiver(i)), i);
            assert_eq!(graph.edges_into(i).start, next);
            next = graph.edges_into(i).end;
        }
        assert_eq!(graph.edges(), next);
        for i in 0..graph.edges() {
            let edge = graph.edge(i);
            assert_eq!(graph.edge_index(edge.to_string().parse().unwrap()).unwrap(), i, "{edge}");
        }
        let fault = |name: &str| graph.edge_index(name.parse().unwrap()).unwrap_err().to_string();
        assert!(fault("m1->m1").contains("does not come before"));
        assert!(fault("a1.h0->a1.h1<q>").contains("does not come before"));
        assert!(fault("a3.h0->logits").contains("layers 0..=2"));
        assert!(fault("input->a0.h2<q>").contains("heads 0..=1"));
    }
}

//! Circuits as data.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::circuit::Circuit;
use super::layout::{Edge, Graph};
use super::node::Source;
use crate::error::{Error, Result, shorten, toml_fault};
use crate::limits::{self, HEADS, LAYERS};

/// Circuits that come with the program, by name.
pub const SHIPPED: [(&str, &str); 4] = [
    ("ioi", include_str!("../../probes/circuits/ioi.toml")),
    ("greater-than", include_str!("../../probes/circuits/greater-than.toml")),
    ("tiny-ioi", include_str!("../../probes/circuits/tiny-ioi.toml")),
    ("tiny-agreement", include_str!("../../probes/circuits/tiny-agreement.toml")),
];

/// A circuit and what is known of it, as a TOML or JSON file.
///
/// Its edges are those that it names, and all between the nodes that it names, roles included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitFile {
    /// In words.
    pub about: String,
    /// Where it was published, or the command that found it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The model that it was found in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suits: String,
    /// Layers of that model.
    pub layers: usize,
    /// Heads of each.
    pub heads: usize,
    /// The set of pairs that shows the behaviour, by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pairs: String,
    /// What was corrupted in these pairs, of what the set offers; the first if that is not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub corruption: String,
    /// The one template of the set that the pairs were drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<usize>,
    /// Whether pairs were left out whose clean prompt the model answers wrongly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub right_only: bool,
    /// The metric that it was found by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metric: String,
    /// What edges outside of it carried when it was found: `corrupt`, `mean` or `zero`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instead: String,
    /// The seed that drew the pairs which found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Nodes between which every edge belongs to the circuit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Edges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<String>,
    /// Nodes by what they are said to do; they are nodes of the circuit.
    #[serde(default, rename = "role", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
}

/// What some nodes are said to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// `name mover`.
    pub name: String,
    /// Which nodes.
    pub nodes: Vec<String>,
}

/// A file as EAP-IG's `Graph.to_json` writes it.
#[derive(Deserialize)]
struct Foreign {
    cfg: ForeignShape,
    edges: BTreeMap<String, ForeignEdge>,
}

#[derive(Deserialize)]
struct ForeignShape {
    n_layers: usize,
    n_heads: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ForeignEdge {
    Kept(bool),
    Scored { in_graph: bool },
}

impl CircuitFile {
    /// Reads a file's text; `path` is for messages. JSON is read as TOML is, or as EAP-IG writes it.
    ///
    /// # Errors
    /// [`Error::Data`] with the key or the name that is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let file: Self = if text.trim_start().starts_with('{') {
            let value: serde_json::Value = serde_json::from_str(text).map_err(|e| wrong(format!("no JSON: {e}")))?;
            if value.get("cfg").is_some() {
                let foreign: Foreign = serde_json::from_value(value).map_err(|e| wrong(format!("EAP-IG: {e}")))?;
                Self::foreign(foreign)
            } else {
                serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?
            }
        } else {
            toml::from_str(text).map_err(|e| wrong(toml_fault(text, &e)))?
        };
        file.circuit().map_err(|e| wrong(e.to_string()))?;
        Ok(file)
    }

    fn foreign(foreign: Foreign) -> Self {
        let kept = |edge: &ForeignEdge| match edge {
            ForeignEdge::Kept(kept) | ForeignEdge::Scored { in_graph: kept } => *kept,
        };
        let edges = foreign.edges.iter().filter(|(_, edge)| kept(edge)).map(|(name, _)| name.clone()).collect();
        Self {
            about: "a file of EAP-IG".into(),
            layers: foreign.cfg.n_layers,
            heads: foreign.cfg.n_heads,
            edges,
            ..Self::default()
        }
    }

    /// The circuit of a name that comes with the program.
    ///
    /// # Errors
    /// [`Error::Bug`] for a shipped file that is wrong.
    pub fn shipped(name: &str) -> Result<Option<Self>> {
        let found = SHIPPED.iter().find(|(own, _)| *own == name);
        found.map(|(name, text)| Self::parse(text, Path::new(name)).map_err(|e| Error::Bug(e.to_string()))).transpose()
    }

    /// Its edges.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that is none, a circuit without edges, and edges that lead nowhere.
    pub fn circuit(&self) -> Result<Circuit> {
        let graph = Graph { layers: self.layers, heads: self.heads };
        // With as many as a model may have, a graph has 57 million edges; GPT-2 XL's has 2.3 million.
        limits::within("layers", graph.layers, 1..=LAYERS)?;
        limits::within("heads", graph.heads, 1..=HEADS)?;
        let edges = self.edges.iter().map(|name| name.parse::<Edge>()).collect::<Result<Vec<_>>>()?;
        let nodes = self.nodes.iter().chain(self.roles.iter().flat_map(|role| &role.nodes));
        let nodes = nodes.map(|name| name.parse::<Source>()).collect::<Result<Vec<_>>>()?;
        let mut circuit = Circuit::of(graph, edges)?;
        if !nodes.is_empty() {
            Circuit::between(graph, &nodes)?.numbers().for_each(|edge| circuit.set(edge, true));
        }
        let connected = circuit.connected();
        if let Some(loose) = circuit.edges().find(|edge| !connected.has(graph.edge_index(*edge).unwrap_or(0))) {
            return Err(Error::request(format!(
                "{} edges lie on no way from the input to the logits, the first is {}",
                circuit.len() - connected.len(),
                shorten(&loose.to_string())
            )));
        }
        if circuit.is_empty() {
            return Err(Error::request("the circuit has no edge"));
        }
        Ok(circuit)
    }

    /// What each node is said to do, where that is said; the first role of several.
    pub fn roles(&self) -> BTreeMap<Source, &str> {
        let mut found = BTreeMap::new();
        for (role, name) in self.roles.iter().flat_map(|role| role.nodes.iter().map(move |name| (role, name))) {
            if let Ok(node) = name.parse::<Source>() {
                found.entry(node).or_insert(role.name.as_str());
            }
        }
        found
    }

    /// As TOML.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::Bug(e.to_string()))
    }
}

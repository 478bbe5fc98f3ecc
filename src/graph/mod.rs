//! A model as a graph: what writes to the residual stream, what reads from it, and an edge for every pair of the two.
//!
//! Nodes and edges are those of edge attribution (Syed et al. 2023; Hanna et al. 2024), under the names of EAP-IG's files.

mod circuit;
mod file;
mod judge;
mod layout;
mod node;
mod outputs;
mod rewired;

pub use circuit::Circuit;
pub use file::{CircuitFile, Role, SHIPPED};
pub use judge::{Instead, Judge};
pub use layout::{Edge, Graph};
pub use node::{Receiver, Source};
pub use outputs::Outputs;
pub use rewired::Rewired;

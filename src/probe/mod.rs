//! Linear probes: what can be read from activations, held against what could be read anyway.
//!
//! A probe that does well says that its labels can be read from a site, no more: not that the model put them there for a
//! purpose, nor that the probe did not learn them by itself. So every probe comes with the commonest class, with labels of
//! other rows, with a model that has learned nothing, with a control task of random labels (Hewitt & Liang 2019), and with the
//! bits that it takes to send the labels by it (Voita & Titov 2020); and rows that belong together are never on both sides.

mod applied;
mod controls;
mod features;
mod fitted;
mod judge;
mod layers;
mod mdl;
pub mod saved;
mod source;
mod summary;
mod table;
mod used;
mod view;

pub use crate::subspace::Subspace;
pub use applied::{Evaluated, applied, evaluated};
pub use controls::{control_task, selectivity, shuffled};
pub use features::features;
pub use fitted::{Fitting, Probe};
pub use judge::{Score, judge};
pub use layers::{Kept, Options, Studied, Study, layers};
pub use mdl::{Length, online};
pub use source::{At, from_documents, from_identity};
pub use summary::Summary;
pub use used::{Trial, used};
pub use view::{View, view};

//! What each edge does for an answer: estimated from gradients, or tried out.
//!
//! The score of an edge is how much a metric falls when that edge alone carries what its source wrote in the corrupted run.
//! Positive edges help the answer, negative ones hold it back.

mod attributed;
mod exact;

pub use attributed::{Steps, attribute};
pub use exact::exact;

//! Figures: pictures of frames, as SVG and PNG.

mod atlas;
mod attributed;
mod canvas;
mod causal;
mod charts;
mod heatmap;
mod judged;
mod palette;
mod probed;
mod scatter;
mod steered;
mod verified;
mod views;

pub use atlas::{composition, detection, heads, strongest_kind};
pub use attributed::{accumulated, attribution};
pub use canvas::{Anchor, Figure};
pub use causal::{ablate, pairs, patch};
pub use charts::{Bars, Line, Lines, Strip};
pub use heatmap::{HeatMaps, Panel};
pub use judged::{applied, evaluated, plane};
pub use palette::{Rgb, Scale};
pub use probed::probes;
pub use scatter::Scatter;
pub use steered::steer;
pub use verified::verified;
pub use views::{
    attention, capture, export, generate, lens, neurons, perplexity, predict, residual, shown, sites, tokens, training,
};

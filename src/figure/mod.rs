//! Figures: pictures of frames, as SVG and PNG.

mod atlas;
mod attributed;
mod behaved;
mod canvas;
mod causal;
mod charts;
mod dots;
mod glyphs;
mod heatmap;
mod judged;
mod palette;
mod probed;
pub(crate) mod rows;
mod scatter;
mod steered;
mod studied;
mod verified;
mod views;
mod wired;

pub use atlas::{composition, detection, detection_maps, head_maps, heads, strongest_kind};
pub use attributed::{accumulated, attribution};
pub use behaved::behave;
pub use canvas::{Anchor, Figure, MAX_SIDE, PNG_SCALE};
pub use causal::{ablate, ablate_chart, pairs, patch, patch_chart};
pub use charts::{Bars, Chart, Line, Lines, Strip};
pub use dots::{Dot, Dots};
pub use heatmap::{HeatMaps, Panel};
pub use judged::{applied, evaluated, plane};
pub use palette::{Rgb, Scale};
pub use probed::probes;
pub use rows::shown;
pub use scatter::Scatter;
pub use steered::steer;
pub use studied::study;
pub use verified::verified;
pub use views::{
    attention, capture, export, generate, lens, neurons, perplexity, predict, residual, saliency, sites, tokens,
    training,
};
pub use wired::{calibration, circuit, faithfulness, paths};

//! How a model starts before it has learned anything.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::random;

/// Draws a tensor as GPT-2 was initialised: N(0, 0.02) at its width of 768 and in inverse proportion to the root of
/// other widths, residual projections narrower by √(2·layers).
///
/// Positions alone start as sinusoids (Vaswani et al. 2017, §3.5) of the same size: there, looking one back is a
/// rotation, and a small model finds previous-token and induction heads in minutes instead of hours.
///
/// # Errors
/// As candle.
pub fn weights(name: &str, shape: &[usize], config: &Config, seed: u64) -> Result<Tensor> {
    let spread = 0.02 * (768.0 / config.n_embd as f64).sqrt();
    let count = shape.iter().product();
    let values: Vec<f32> = if name.ends_with(".bias") {
        vec![0.0; count]
    } else if name.contains("ln_") {
        vec![1.0; count]
    } else if name == "wpe.weight" {
        let size = spread * std::f64::consts::SQRT_2;
        (0..count).map(|i| (size * sinusoid(i / shape[1], i % shape[1], shape[1], shape[0])) as f32).collect()
    } else {
        let narrow = if name.ends_with("c_proj.weight") { (2.0 * config.n_layer as f64).sqrt() } else { 1.0 };
        let mut rng = random::stream(seed, name, 0);
        (0..count).map(|_| (spread / narrow * random::normal(&mut rng)) as f32).collect()
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The weights of a model that has learned nothing, by name.
///
/// # Errors
/// [`Error::Bug`] for a name that is no tensor of the model, and as [`weights`].
pub fn draw(config: &Config, seed: u64) -> impl Fn(&str) -> Result<Tensor> + '_ {
    let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    move |name| {
        let shape = shapes.get(name).ok_or_else(|| Error::Bug(format!("{name} is no tensor of the model")))?;
        weights(name, shape, config, seed)
    }
}

/// Wavelengths grow from two and a half positions to all of them, so that neighbours differ as clearly as halves do.
fn sinusoid(pos: usize, dim: usize, width: usize, positions: usize) -> f64 {
    const SHORTEST: f64 = 2.5;
    let share = (dim / 2) as f64 / (width / 2).max(2).saturating_sub(1) as f64;
    let wavelength = SHORTEST * (positions as f64 / SHORTEST).powf(share);
    let angle = 2.0 * std::f64::consts::PI * pos as f64 / wavelength;
    if dim.is_multiple_of(2) { angle.sin() } else { angle.cos() }
}

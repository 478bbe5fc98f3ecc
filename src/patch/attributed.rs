//! Attribution patching (Nanda 2023; Syed et al. 2023): every cell of a sweep at once, to first order.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Direction, Options, Patched, cells, corruption};
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::metric::{Measures, Metric};
use crate::pair::Pair;
use crate::plan::Trace;
use crate::site::Site;
use crate::sweep::{self, Sweep};
use crate::tokens::Tokens;

/// What [`super::patch`] would find, estimated from gradients in the run that would be patched: a cell changes the metric by
/// Σ (the other run's activation − this run's) · ∂metric / ∂activation.
///
/// Metrics other than `metrics` are not estimated and not numbers. No cell is run, so that there are no controls. It is known to
/// fail where the model is far from linear: at `resid_pre` and `mlp_out`, and where attention is saturated.
///
/// # Errors
/// [`Error::Request`] for a metric without a gradient; [`Error::TryAgain`] for too little memory; faults of the prompts.
pub fn attribute(model: &Gpt2, pair: &Pair, sweeps: &[Sweep], metrics: &[Metric], options: Options) -> Result<Patched> {
    let config = model.config();
    let cells = cells(config, pair, sweeps, options.layers);
    let sites = sweep::sites(cells.iter().map(|(_, cell)| cell));
    let length = pair.len();
    memory::check_left("attribution patching", config.gradient_memory(2, length), options.memory)?;
    // Both runs pass together, the patched one first: so few tokens take as long as reading the weights does.
    let denoise = options.direction == Direction::Denoise;
    let prompts = if denoise { [pair.corrupt(), pair.clean()] } else { [pair.clean(), pair.corrupt()] };
    let plan =
        corruption(model, pair, Some(usize::from(!denoise)))?.reads(sites.iter().copied()).logits(LogitsAt::Last);
    let trace = sites.iter().fold(plan, |plan, site| plan.grad(*site)).run(model, &Tokens::stack(prompts)?)?;
    let logits = to_f32(trace.logits()?)?;
    let (own, theirs) = logits.split_at(config.vocab_size);
    let clean = if denoise { theirs } else { own };
    let measures = Measures::new(clean);
    let (found, source) = (measures.of(own, pair.target()), measures.of(theirs, pair.target()));
    let mut values = vec![vec![f64::NAN; Metric::ALL.len()]; cells.len()];
    for metric in metrics {
        let gradient = metric.gradient(own, clean, pair.target())?;
        let products = products(&trace, &sites, gradient)?;
        for ((_, cell), values) in cells.iter().zip(&mut values) {
            let mut change = 0.0;
            for site in cell.sites() {
                let product = products.get(&site).ok_or(Error::NotRead(site))?;
                let places = cell.places(site, config, pair.len());
                change += places.into_iter().flat_map(|(first, n)| &product[first..first + n]).sum::<f64>();
            }
            values[*metric as usize] = found[*metric as usize] + change;
        }
    }
    let cells = cells.into_iter().zip(values).map(|((sweep, cell), values)| (sweep, cell, values)).collect();
    let rounding = measures.rounding(pair.target(), model.dtype());
    Ok(Patched { cells, base: found, source, rounding, equal: 0, identity: f64::NAN, restored: f64::NAN })
}

/// (The other run's activation − this run's) · gradient in this run, the first of the two, element by element.
fn products(trace: &Trace, sites: &[Site], mut slopes: Vec<f64>) -> Result<BTreeMap<Site, Vec<f64>>> {
    slopes.resize(2 * slopes.len(), 0.0);
    let (sloped, scale) = trace.with_slopes(&slopes)?;
    let backward = trace.backward(&sloped)?;
    let product = |&site: &Site| -> Result<(Site, Vec<f64>)> {
        let both = to_f32(trace.get(site)?)?;
        let (own, theirs) = both.split_at(both.len() / 2);
        // What does not reach the last token has no gradient.
        let slope = match backward.get(site) {
            Ok(slope) => to_f32(&slope.narrow(0, 0, 1)?)?,
            Err(Error::NoGradient { .. }) => vec![0.0; own.len()],
            Err(e) => return Err(e),
        };
        // Hidden scores are −∞ in both runs.
        let one = |((own, theirs), slope): ((&f32, &f32), &f32)| match own == theirs {
            true => 0.0,
            false => scale * f64::from(theirs - own) * f64::from(*slope),
        };
        Ok((site, own.iter().zip(theirs).zip(&slope).map(one).collect()))
    };
    sites.par_iter().map(product).collect()
}

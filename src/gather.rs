//! Activations at chosen positions of many prompts.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::arrivals::Arrivals;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::plan::Plan;
use crate::site::{Axis, Site};
use crate::tokens::Tokens;

/// Reads sites of a model, batch after batch.
pub struct Gather<'a> {
    model: &'a Gpt2,
    plan: Plan,
    /// The places among the sites at which what is read at a site is wanted.
    columns: BTreeMap<Site, Vec<usize>>,
    arrivals: Arrivals,
}

impl<'a> Gather<'a> {
    /// For these sites. Nothing behind the last of them is computed.
    ///
    /// # Errors
    /// As [`Arrivals::new`].
    pub fn new(model: &'a Gpt2, sites: &[Site]) -> Result<Self> {
        let mut columns: BTreeMap<Site, Vec<usize>> = BTreeMap::new();
        for (i, site) in sites.iter().enumerate() {
            columns.entry(read_at(*site)).or_default().push(i);
        }
        let mut plan = Plan::new().reads(columns.keys().copied()).logits(LogitsAt::None);
        if let Some(until) = columns.keys().map(|site| layers_of(*site)).collect::<Option<Vec<_>>>() {
            plan = plan.until(until.into_iter().max().unwrap_or(0));
        }
        Ok(Self { model, plan, columns, arrivals: Arrivals::new(model.device())? })
    }

    /// Runs the model on a batch and adds, for every site, its vectors at the chosen positions of each prompt, in order: one
    /// `[row, d]` per site. A batch that a GPU has no memory for is divided; values leave a GPU while it computes the next.
    ///
    /// # Errors
    /// Faults of the tokens, and [`crate::Error::NotFinite`].
    pub fn read(&mut self, tokens: &Tokens, chosen: &[Vec<u32>], into: &mut [Vec<f32>]) -> Result<()> {
        memory::halving(0..tokens.len(), &mut |part| {
            let before: Vec<usize> = into.iter().map(Vec::len).collect();
            let read = self.read_part(&tokens.slice(part.clone()), &chosen[part], into);
            if read.is_err() {
                into.iter_mut().zip(&before).for_each(|(values, before)| values.truncate(*before));
            }
            read
        })
    }

    fn read_part(&mut self, tokens: &Tokens, chosen: &[Vec<u32>], into: &mut [Vec<f32>]) -> Result<()> {
        let Self { model, plan, columns, arrivals } = self;
        let compute = |send: &mut dyn FnMut(Site, &Tensor) -> Result<()>| plan.run_each(model, tokens, send);
        arrivals.each(compute, |site, all| {
            let (padded, width) = (tokens.longest(), all.len() / (tokens.len() * tokens.longest()));
            for column in &columns[&site] {
                for (prompt, positions) in chosen.iter().enumerate() {
                    for run in positions.chunk_by(|a, b| a + 1 == *b) {
                        let at = (prompt * padded + run[0] as usize) * width;
                        into[*column].extend_from_slice(&all[at..at + run.len() * width]);
                    }
                }
            }
        })?;
        Ok(())
    }
}

/// Checks sites: every one must have one vector per position.
///
/// # Errors
/// [`Error::Request`] for sites without one, and for the logits, which are 200 kB per token.
pub fn check_sites(sites: &[Site]) -> Result<()> {
    match sites.iter().find(|site| site.axes().get(1) != Some(&Axis::Pos) || **site == Site::Logits) {
        Some(Site::Logits) => Err(Error::request("logits are no activations; `predict` has the likeliest tokens")),
        Some(site) => {
            Err(Error::request(format!("`{site}` has no vector per position, and nothing to be kept of a token")))
        }
        None if sites.is_empty() => Err(Error::request("there is no site to read")),
        None => Ok(()),
    }
}

/// Numbers per row of a site.
pub fn width(config: &Config, site: Site) -> usize {
    site.shape(&config.extents(1, 1, 0)).iter().product()
}

/// A stream is the same at the end of a layer and at the start of the next, which then need not be computed.
fn read_at(site: Site) -> Site {
    match site {
        Site::ResidPre(layer) if layer > 0 => Site::ResidPost(layer - 1),
        site => site,
    }
}

/// The layers that a run passes to reach a site; none for what comes after all of them.
fn layers_of(site: Site) -> Option<usize> {
    match site {
        Site::Embed | Site::PosEmbed => Some(0),
        site => site.layer().map(|layer| layer + 1),
    }
}

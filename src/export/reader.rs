//! Running the model on sequences, and keeping what is asked for.

use std::collections::BTreeMap;

use super::rows::Rows;
use crate::dataset::sequences::{Cut, Sequence, Sequences};
use crate::error::Result;
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::plan::Plan;
use crate::site::Site;
use crate::tokens::Tokens;

/// A model, the sites that are wanted of it, and what it reads.
pub(super) struct Reader<'a> {
    pub(super) model: &'a Gpt2,
    pub(super) sites: Vec<Site>,
    pub(super) sequences: Sequences,
}

impl Reader<'_> {
    /// Runs the model on sequences and adds the rows that the cut asks for.
    pub(super) fn read(&mut self, batch: &[Sequence], cut: &Cut, rows: &mut Rows) -> Result<()> {
        let ids = batch.iter().map(|sequence| self.sequences.ids(sequence)).collect::<Result<Vec<_>>>()?;
        let chosen: Vec<Vec<u32>> = batch.iter().map(|sequence| sequence.positions(cut)).collect();
        for ((sequence, ids), positions) in batch.iter().zip(&ids).zip(&chosen) {
            for &pos in positions {
                rows.prompt.push(sequence.index);
                rows.document.push(sequence.document);
                rows.pos.push(pos);
                rows.token_id.push(ids[pos as usize]);
            }
        }
        let tokens = Tokens::from_ids(ids)?;
        let mut columns: BTreeMap<Site, Vec<usize>> = BTreeMap::new();
        for (i, site) in self.sites.iter().enumerate() {
            columns.entry(read_at(*site)).or_default().push(i);
        }
        let mut plan = Plan::new().reads(columns.keys().copied()).logits(LogitsAt::None);
        // Nothing behind the last site is computed.
        if let Some(until) = columns.keys().map(|site| layers_of(*site)).collect::<Option<Vec<_>>>() {
            plan = plan.until(until.into_iter().max().unwrap_or(0));
        }
        plan.run_each(self.model, &tokens, &mut |site, value| {
            frame::with_f32(value, |all| {
                let (padded, width) = (tokens.longest(), all.len() / (tokens.len() * tokens.longest()));
                for column in &columns[&site] {
                    let column = &mut rows.values[*column];
                    for (prompt, positions) in chosen.iter().enumerate() {
                        for run in positions.chunk_by(|a, b| a + 1 == *b) {
                            let at = (prompt * padded + run[0] as usize) * width;
                            column.extend_from_slice(&all[at..at + run.len() * width]);
                        }
                    }
                }
            })
        })?;
        Ok(())
    }
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

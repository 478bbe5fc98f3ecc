//! Running the model on sequences, and keeping what is asked for.

use super::rows::Rows;
use crate::dataset::sequences::{Cut, Sequence, Sequences};
use crate::error::Result;
use crate::gather::Gather;
use crate::gpt2::Gpt2;
use crate::site::Site;
use crate::tokens::Tokens;

/// A model, the sites that are wanted of it, and what it reads.
pub(super) struct Reader<'a> {
    pub(super) model: &'a Gpt2,
    pub(super) sites: Vec<Site>,
    pub(super) sequences: Sequences,
    pub(super) gather: Gather<'a>,
}

impl Reader<'_> {
    /// Runs the model on sequences and adds the rows that the cut asks for.
    pub(super) fn read(&mut self, batch: &[Sequence], cut: &Cut, rows: &mut Rows) -> Result<()> {
        let ids = batch.iter().map(|sequence| self.sequences.ids(sequence)).collect::<Result<Vec<_>>>()?;
        let chosen: Vec<Vec<u32>> = batch.iter().map(|sequence| sequence.positions(cut)).collect();
        for ((sequence, ids), positions) in batch.iter().zip(&ids).zip(&chosen) {
            let documents = self.sequences.documents(sequence)?;
            for &pos in positions {
                rows.prompt.push(sequence.index);
                rows.document.push(documents[pos as usize]);
                rows.pos.push(pos);
                rows.token_id.push(ids[pos as usize]);
            }
        }
        self.gather.read(&Tokens::from_ids(ids)?, &chosen, &mut rows.values)
    }
}

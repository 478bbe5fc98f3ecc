//! Rows of a table, and adding up what is learned about each of them.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::on_gpu;
use super::real::{Real, slice, wrong_dtype};

/// Row `ids[i]` of `table`, for every i: `[vocab, d]` → `[n, d]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    table.index_select(ids, 0)
}

/// Adds row i to row `ids[i]` of a table, in the order of i.
pub(super) struct AddRows<'a>(pub(super) &'a [u32]);

impl InplaceOp2 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (count, width) = l1.shape().dims2()?;
        if self.0.iter().any(|&id| id as usize >= count) || l2.shape().dims2()? != (self.0.len(), width) {
            candle_core::bail!("add-rows: {:?} into {:?}", l2.shape(), l1.shape())
        }
        match s1 {
            CpuStorage::F32(table) => self.run(super::real::part(table, l1)?, slice(s2, l2, self.name())?, width),
            CpuStorage::F64(table) => self.run(super::real::part(table, l1)?, slice(s2, l2, self.name())?, width),
            other => return Err(wrong_dtype(other, self.name())),
        }
        Ok(())
    }

    on_gpu!(self, mut table, x => {
        let (count, width) = table.1.shape().dims2()?;
        match self.0.iter().all(|&id| (id as usize) < count) && x.1.shape().dims2()? == (self.0.len(), width) {
            true => cuda::add_rows(table, x, self.0),
            false => candle_core::bail!("add-rows: {:?} into {:?}", x.1.shape(), table.1.shape()),
        }
    });
}

impl AddRows<'_> {
    fn run<T: Real>(&self, table: &mut [T], rows: &[T], width: usize) {
        for (&id, row) in self.0.iter().zip(rows.chunks_exact(width.max(1))) {
            table[id as usize * width..][..width].iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
    }
}

//! Rows of a table, and adding up what is learned about each of them.

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Tensor, Var};

#[cfg(feature = "cuda")]
use super::cuda;
use super::on_gpu;
use super::real::{Real, slice, wrong_dtype};

/// Row `ids[i]` of `table`, for every i: `[vocab, d]` → `[n, d]`.
///
/// With `into`, the backward pass adds the gradient of the table to that tensor, instead of handing candle a table of
/// zeros with a few rows in it; in its type, which may be a wider one.
pub fn embedding(table: &Tensor, ids: &Tensor, into: Option<&Tensor>) -> Result<Tensor> {
    let rows = table.index_select(ids, 0)?;
    match into {
        None => Ok(rows),
        // A variable, so that candle's backward pass comes here.
        Some(into) => {
            let rows = Var::from_tensor(&rows.to_dtype(into.dtype())?)?;
            rows.apply_op1(Rows { ids: ids.to_vec1()?, into: into.clone() })?.to_dtype(table.dtype())
        }
    }
}

struct Rows {
    ids: Vec<u32>,
    into: Tensor,
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let copy = super::real::for_real!(storage, "embedding", T => {
            Ok(T::to_cpu_storage_owned(slice::<T>(storage, layout, "embedding")?.to_vec()))
        })?;
        Ok((copy, layout.shape().clone()))
    }

    on_gpu!(self, x => cuda::rows(x));

    fn bwd(&self, _rows: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.into.inplace_op2(&grad.contiguous()?, &AddRows(&self.ids))?;
        Ok(None)
    }
}

/// Adds row i to row `ids[i]` of a table, in the order of i.
struct AddRows<'a>(&'a [u32]);

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

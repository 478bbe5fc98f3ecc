//! The sum of two tensors of one shape: the residual stream's.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{for_real, slice, vectorised};
use super::{in_real, on_gpu, rows};

/// a + b, elementwise.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let b = b.to_dtype(super::real_dtype(a))?.contiguous()?;
    in_real(a, |a| a.contiguous()?.apply_op2(&b, Add))
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        if l1.shape() != l2.shape() {
            let (lhs, rhs) = (l1.shape().clone(), l2.shape().clone());
            return Err(candle_core::Error::ShapeMismatchBinaryOp { lhs, rhs, op: "add" }.bt());
        }
        for_real!(s1, "add", T => {
            let (a, b) = (slice::<T>(s1, l1, "add")?, slice::<T>(s2, l2, "add")?);
            let mut out = vec![T::zero(); a.len()];
            rows::each_block(&mut out, 1, 3, |start, out| {
                vectorised!({
                    let end = start + out.len();
                    for ((y, &a), &b) in out.iter_mut().zip(&a[start..end]).zip(&b[start..end]) {
                        *y = a + b;
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, a, b => match a.1.shape() == b.1.shape() {
        true => cuda::add(a, b),
        false => candle_core::bail!("add: {:?} and {:?}", a.1.shape(), b.1.shape()),
    });

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}

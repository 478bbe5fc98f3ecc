//! AdamW's update (Loshchilov & Hutter 2019, algorithm 2), in place and in one pass: what it takes is reading and writing memory.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, part, slice, vectorised, wrong_dtype};

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// What the gradient is multiplied by first: below 1 to clip.
    pub scale: f64,
    /// β₁, the decay of the mean of gradients.
    pub mean: f64,
    /// β₂, the decay of the mean of their squares.
    pub square: f64,
    /// Learning rate over 1 − β₁ᵗ.
    pub step: f64,
    /// 1 / √(1 − β₂ᵗ).
    pub correction: f64,
    /// Added to the corrected root of v.
    pub eps: f64,
    /// 1 − learning rate · weight decay.
    pub decay: f64,
}

/// m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g² and p ← decay·p − step·m / (correction·√v + eps), with g the scaled gradient: four
/// contiguous tensors of one shape and type, f32 or f64, none of which shares its memory with another.
pub fn adamw(parameter: &Tensor, mean: &Tensor, square: &Tensor, grad: &Tensor, adam: AdamStep) -> Result<()> {
    if [mean, square, grad].iter().any(|x| x.dims() != parameter.dims() || x.dtype() != parameter.dtype()) {
        candle_core::bail!("adamw: tensors of different shapes or types")
    }
    parameter.inplace_op2(grad, &Update { mean, square, adam })
}

struct Update<'a> {
    mean: &'a Tensor,
    square: &'a Tensor,
    adam: AdamStep,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        // candle hands out one tensor to change at a time: the others are asked for from within.
        self.mean.inplace_op1(&Within::new(|s3, l3| {
            self.square.inplace_op1(&Within::new(|s4, l4| match (&mut *s1, &mut *s3, s4) {
                (CpuStorage::F32(p), CpuStorage::F32(m), CpuStorage::F32(v)) => {
                    self.adam.run(part(p, l1)?, part(m, l3)?, part(v, l4)?, slice(s2, l2, "adamw")?);
                    Ok(())
                }
                (CpuStorage::F64(p), CpuStorage::F64(m), CpuStorage::F64(v)) => {
                    self.adam.run(part(p, l1)?, part(m, l3)?, part(v, l4)?, slice(s2, l2, "adamw")?);
                    Ok(())
                }
                (p, ..) => Err(wrong_dtype(p, "adamw")),
            }))
        }))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &mut candle_core::CudaStorage,
        l1: &Layout,
        s2: &candle_core::CudaStorage,
        l2: &Layout,
    ) -> Result<()> {
        let (mean, square) = (self.mean.storage_and_layout(), self.square.storage_and_layout());
        match (&*mean.0, &*square.0) {
            (candle_core::Storage::Cuda(m), candle_core::Storage::Cuda(v)) => {
                cuda::adamw((s1, l1), (m, mean.1), (v, square.1), (s2, l2), self.adam)
            }
            _ => candle_core::bail!("adamw: tensors on different devices"),
        }
    }
}

/// What to do with a tensor that is to be changed.
struct Within<F>(RefCell<F>);

impl<F: FnMut(&mut CpuStorage, &Layout) -> Result<()>> Within<F> {
    fn new(work: F) -> Self {
        Self(RefCell::new(work))
    }
}

impl<F: FnMut(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for Within<F> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(storage, layout)
    }
}

impl AdamStep {
    fn run<T: Real>(&self, p: &mut [T], m: &mut [T], v: &mut [T], grad: &[T]) {
        /// Elements that one task updates.
        const PIECE: usize = 1 << 14;
        let (scale, step, correction) = (T::of(self.scale), T::of(self.step), T::of(self.correction));
        let (eps, decay) = (T::of(self.eps), T::of(self.decay));
        let [(keep_m, add_m), (keep_v, add_v)] = [self.mean, self.square].map(|keep| (T::of(keep), T::of(1.0 - keep)));
        let (m, v) = (m.par_chunks_mut(PIECE), v.par_chunks_mut(PIECE));
        let pieces = p.par_chunks_mut(PIECE).zip(m).zip(v).zip(grad.par_chunks(PIECE));
        pieces.for_each(|(((p, m), v), grad)| {
            vectorised!({
                for (((p, m), v), &g) in p.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(grad) {
                    let g = scale * g;
                    *m = keep_m * *m + add_m * g;
                    *v = keep_v * *v + add_v * (g * g);
                    *p = *p * decay - step * *m / (v.sqrt() * correction + eps);
                }
            })
        });
    }
}

//! The in-place updates of AdamW.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::on_gpu;
use super::real::{Real, part, slice, vectorised, wrong_dtype};
use super::rows;

/// m ← keep·m + (1 − keep)·scale·g, in place.
pub fn update_mean(mean: &Tensor, grad: &Tensor, keep: f64, scale: f64) -> Result<()> {
    mean.inplace_op2(grad, &Average { keep, scale, square: false })
}

/// v ← keep·v + (1 − keep)·(scale·g)², in place.
pub fn update_square(square: &Tensor, grad: &Tensor, keep: f64, scale: f64) -> Result<()> {
    square.inplace_op2(grad, &Average { keep, scale, square: true })
}

/// p ← decay·p − step·m / (correction·√v + eps), in place; `step` and `correction` carry the bias corrections.
pub fn update_parameter(parameter: &Tensor, mean: &Tensor, square: &Tensor, adam: AdamStep) -> Result<()> {
    parameter.inplace_op3(mean, square, &adam)
}

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Learning rate over 1 − β₁ᵗ.
    pub step: f64,
    /// 1 / √(1 − β₂ᵗ).
    pub correction: f64,
    /// Added to the corrected root of v.
    pub eps: f64,
    /// 1 − learning rate · weight decay.
    pub decay: f64,
}

struct Average {
    keep: f64,
    scale: f64,
    square: bool,
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "running-average"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        match s1 {
            CpuStorage::F32(m) => self.run(part(m, l1)?, slice(s2, l2, self.name())?),
            CpuStorage::F64(m) => self.run(part(m, l1)?, slice(s2, l2, self.name())?),
            other => return Err(wrong_dtype(other, self.name())),
        }
        Ok(())
    }

    on_gpu!(self, mut m, g => cuda::average(m, g, self.keep, self.scale, self.square));
}

impl Average {
    fn run<T: Real>(&self, m: &mut [T], g: &[T]) {
        let (keep, add, scale) = (T::of(self.keep), T::of(1.0 - self.keep), T::of(self.scale));
        rows::each_block(m, 1, 3, |start, m| {
            vectorised!({
                let g = &g[start..start + m.len()];
                for (m, &g) in m.iter_mut().zip(g) {
                    let g = scale * g;
                    *m = keep * *m + add * if self.square { g * g } else { g };
                }
            })
        });
    }
}

impl InplaceOp3 for AdamStep {
    fn name(&self) -> &'static str {
        "adamw-step"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        match s1 {
            CpuStorage::F32(p) => self.run(part(p, l1)?, slice(s2, l2, self.name())?, slice(s3, l3, self.name())?),
            CpuStorage::F64(p) => self.run(part(p, l1)?, slice(s2, l2, self.name())?, slice(s3, l3, self.name())?),
            other => return Err(wrong_dtype(other, self.name())),
        }
        Ok(())
    }

    on_gpu!(self, mut p, m, v => cuda::adam_step(p, m, v, *self));
}

impl AdamStep {
    fn run<T: Real>(&self, p: &mut [T], m: &[T], v: &[T]) {
        let (step, correction) = (T::of(self.step), T::of(self.correction));
        let (eps, decay) = (T::of(self.eps), T::of(self.decay));
        rows::each_block(p, 1, 4, |start, p| {
            vectorised!({
                let end = start + p.len();
                for ((p, &m), &v) in p.iter_mut().zip(&m[start..end]).zip(&v[start..end]) {
                    *p = *p * decay - step * m / (v.sqrt() * correction + eps);
                }
            })
        });
    }
}

//! GPT-2's activation: GELU in its tanh form (`gelu_new`), not the erf form.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::real::{Real, for_real, slice, vectorised};
use super::{in_real, rows};

/// gelu(x) = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), elementwise (Hendrycks & Gimpel 2016, eq. 2).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    in_real(x, |x| x.contiguous()?.apply_op1(Gelu))
}

struct Gelu;
struct GeluGrad;

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// σ(2u) with u = √(2/π)·(x + 0.044715·x³): since ½(1 + tanh u) = σ(2u), gelu(x) is x times this.
#[inline(always)]
fn gate<T: Real>(x: T) -> T {
    let u = T::of(-2.0 * SQRT_2_OVER_PI) * x * (T::one() + T::of(CUBIC) * x * x);
    T::one() / (T::one() + u.fast_exp())
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "gelu", T => {
            let x = slice::<T>(storage, layout, "gelu")?;
            let mut out = vec![T::zero(); x.len()];
            rows::each_block(&mut out, 1, 8, |start, out| {
                vectorised(|| {
                    let x = &x[start..start + out.len()];
                    for (y, &x) in out.iter_mut().zip(x) {
                        *y = x * gate(x);
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GeluGrad)?))
    }
}

impl CustomOp2 for GeluGrad {
    fn name(&self) -> &'static str {
        "gelu-grad"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "gelu-grad", T => {
            let (x, grad) = (slice::<T>(s1, l1, "gelu-grad")?, slice::<T>(s2, l2, "gelu-grad")?);
            let mut out = vec![T::zero(); x.len()];
            rows::each_block(&mut out, 1, 12, |start, out| {
                vectorised(|| {
                    let end = start + out.len();
                    for ((y, &x), &g) in out.iter_mut().zip(&x[start..end]).zip(&grad[start..end]) {
                        // d/dx x·σ(2u) = σ + x·σ·(1 − σ)·2u′, with 2u′ = 2√(2/π)·(1 + 3·0.044715·x²).
                        let s = gate(x);
                        let slope = T::of(2.0 * SQRT_2_OVER_PI) * (T::one() + T::of(3.0 * CUBIC) * x * x);
                        *y = g * (s + x * s * (T::one() - s) * slope);
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }
}

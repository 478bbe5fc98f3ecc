//! The activation of the MLP: GELU, in GPT-2's tanh form or the exact one of a Transformer from `torch.nn`.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, for_real, slice, vectorised};
use super::{in_real, on_gpu, rows};

/// Which GELU. They differ by up to 5e-4, which is not the same model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gelu {
    /// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel 2016, eq. 2): `gelu_new`, of OpenAI's models.
    #[default]
    Tanh,
    /// x·Φ(x), Φ the normal distribution function: `gelu`, of models trained by nanoGPT.
    Erf,
}

impl Gelu {
    /// Its name in Hugging Face's `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Gelu::Tanh => "gelu_new",
            Gelu::Erf => "gelu",
        }
    }

    /// In place.
    pub(super) fn apply<T: Real>(self, x: &mut [T]) {
        match self {
            Gelu::Tanh => each(x, 8, |x| x * tanh_gate(x)),
            Gelu::Erf => each(x, 12, |x| x * x.normal_cdf()),
        }
    }
}

/// The activation, elementwise.
pub fn gelu(x: &Tensor, form: Gelu) -> Result<Tensor> {
    in_real(x, |x| x.contiguous()?.apply_op1(form))
}

pub(super) struct GeluGrad(pub(super) Gelu);

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;
/// 1/√(2π), the density of the normal distribution at 0.
const DENSITY: f64 = 0.398_942_280_401_432_7;

/// σ(2u) with u = √(2/π)·(x + 0.044715·x³): since ½(1 + tanh u) = σ(2u), gelu(x) is x times this.
#[inline(always)]
fn tanh_gate<T: Real>(x: T) -> T {
    let u = T::of(-2.0 * SQRT_2_OVER_PI) * x * (T::one() + T::of(CUBIC) * x * x);
    T::one() / (T::one() + u.fast_exp())
}

#[inline(always)]
fn tanh_slope<T: Real>(x: T) -> T {
    // d/dx x·σ(2u) = σ + x·σ·(1 − σ)·2u′, with 2u′ = 2√(2/π)·(1 + 3·0.044715·x²).
    let s = tanh_gate(x);
    let slope = T::of(2.0 * SQRT_2_OVER_PI) * (T::one() + T::of(3.0 * CUBIC) * x * x);
    s + x * s * (T::one() - s) * slope
}

#[inline(always)]
fn erf_slope<T: Real>(x: T) -> T {
    // d/dx x·Φ(x) = Φ + x·φ.
    x.normal_cdf() + x * T::of(DENSITY) * (T::of(-0.5) * x * x).fast_exp()
}

/// x = f(x), in blocks of rows.
fn each<T: Real>(x: &mut [T], cost: usize, f: impl Fn(T) -> T + Sync) {
    rows::each_block(x, 1, cost, |_, x| {
        vectorised!({
            for x in x.iter_mut() {
                *x = f(*x);
            }
        })
    });
}

/// y = g·f(x), in blocks of rows.
fn map2<T: Real>(x: &[T], grad: &[T], f: impl Fn(T) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    rows::each_block(&mut out, 1, 12, |start, out| {
        vectorised!({
            let end = start + out.len();
            for ((y, &x), &g) in out.iter_mut().zip(&x[start..end]).zip(&grad[start..end]) {
                *y = g * f(x);
            }
        })
    });
    out
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "gelu", T => {
            let mut out = slice::<T>(storage, layout, "gelu")?.to_vec();
            self.apply(&mut out);
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    on_gpu!(self, x => cuda::gelu(x, *self == Gelu::Erf));

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GeluGrad(*self))?))
    }
}

impl CustomOp2 for GeluGrad {
    fn name(&self) -> &'static str {
        "gelu-grad"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "gelu-grad", T => {
            let (x, grad) = (slice::<T>(s1, l1, "gelu-grad")?, slice::<T>(s2, l2, "gelu-grad")?);
            let out = match self.0 {
                Gelu::Tanh => map2(x, grad, tanh_slope),
                Gelu::Erf => map2(x, grad, erf_slope),
            };
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, x, grad => cuda::gelu_grad(x, grad, self.0 == Gelu::Erf));
}

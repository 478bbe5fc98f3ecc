//! LayerNorm in the three steps that have sites, and fused where nobody looks between them.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::linear::with_last;
use super::real::{Real, for_real, slice, sum_of, sum_of2, vectorised};
use super::{in_real, on_gpu, rows};

/// √(var(x) + eps) of every row, with the biased variance: `[.., d]` → `[.., 1]`.
pub fn norm_scale(x: &Tensor, eps: f64) -> Result<Tensor> {
    in_real(x, |x| x.contiguous()?.apply_op1(Scale { eps }))
}

/// (x − mean(x)) / scale of every row: `[.., d]`, `[.., 1]` → `[.., d]`.
pub fn normalize(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let scale = scale.to_dtype(super::real_dtype(x))?.contiguous()?;
    in_real(x, |x| x.contiguous()?.apply_op2(&scale, Normalize))
}

/// x·gain + bias of every row: `[.., d]`, `[d]`, `[d]` → `[.., d]`.
pub fn affine(x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (gain, bias) = (gain.to_dtype(super::real_dtype(x))?, bias.to_dtype(super::real_dtype(x))?);
    in_real(x, |x| x.contiguous()?.apply_op3(&gain, &bias, Affine))
}

/// [`norm_scale`], [`normalize`] and [`affine`] in one pass, with the same bits.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (gain, bias) = (gain.to_dtype(super::real_dtype(x))?, bias.to_dtype(super::real_dtype(x))?);
    in_real(x, |x| x.contiguous()?.apply_op3(&gain, &bias, LayerNorm { eps }))
}

struct Scale {
    eps: f64,
}
struct Normalize;
struct Affine;
struct LayerNorm {
    eps: f64,
}

#[inline(always)]
fn mean<T: Real>(row: &[T]) -> T {
    sum_of(row, |x| x) / T::of(row.len() as f64)
}

/// Two passes, because `E[x²] − E[x]²` cancels on the rows with huge activations that GPT-2 has.
#[inline(always)]
fn scale<T: Real>(row: &[T], mean: T, eps: f64) -> T {
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) / T::of(row.len() as f64);
    (variance + T::of(eps)).sqrt()
}

fn width(layout: &Layout) -> Result<usize> {
    layout.shape().dims().last().copied().ok_or_else(|| candle_core::Error::Msg("scalar row".into()))
}

impl CustomOp1 for Scale {
    fn name(&self) -> &'static str {
        "norm-scale"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "norm-scale", T => {
            let (x, d) = (slice::<T>(storage, layout, "norm-scale")?, width(layout)?);
            let mut out = vec![T::zero(); x.len() / d];
            rows::each_block(&mut out, 1, d, |start, out| {
                vectorised!({
                    for (i, y) in out.iter_mut().enumerate() {
                        let row = &x[(start + i) * d..][..d];
                        *y = scale(row, mean(row), self.eps);
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), with_last(layout, 1)))
        })
    }

    on_gpu!(self, x => cuda::norm_scale(x, self.eps));

    /// ds/dx = (x − mean) / (d·s).
    fn bwd(&self, x: &Tensor, s: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (d, dtype) = (x.dim(D::Minus1)? as f64, x.dtype());
        let [x, s, grad] = super::wide([x, s, grad])?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        Ok(Some(centred.broadcast_mul(&(grad / s)?)?.affine(1.0 / d, 0.0)?.to_dtype(dtype)?))
    }
}

impl CustomOp2 for Normalize {
    fn name(&self) -> &'static str {
        "normalize"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "normalize", T => {
            let (x, d) = (slice::<T>(s1, l1, "normalize")?, width(l1)?);
            let s = slice::<T>(s2, l2, "normalize")?;
            let mut out = vec![T::zero(); x.len()];
            rows::each_block(&mut out, d, 2 * d, |start, out| {
                vectorised!({
                    for (i, y) in out.chunks_exact_mut(d).enumerate() {
                        let row = &x[(start + i) * d..][..d];
                        let (mean, s) = (mean(row), s[start + i]);
                        for (y, &x) in y.iter_mut().zip(row) {
                            *y = (x - mean) / s;
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, x, s => cuda::normalize(x, s));

    /// dn/dx = (g − mean(g)) / s; dn/ds = −Σ g·n / s.
    fn bwd(&self, _x: &Tensor, s: &Tensor, n: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dtype = n.dtype();
        let [s, n, grad] = super::wide([s, n, grad])?;
        let to_x = grad.broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?.broadcast_div(&s)?;
        let to_s = (&grad * &n)?.sum_keepdim(D::Minus1)?.neg()?.div(&s)?;
        Ok((Some(to_x.to_dtype(dtype)?), Some(to_s.to_dtype(dtype)?)))
    }
}

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "norm-affine"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "norm-affine", T => {
            let (x, d) = (slice::<T>(s1, l1, "norm-affine")?, width(l1)?);
            let (gain, bias) = (slice::<T>(s2, l2, "norm-affine")?, slice::<T>(s3, l3, "norm-affine")?);
            let mut out = vec![T::zero(); x.len()];
            rows::each_block(&mut out, d, 2 * d, |start, out| {
                vectorised!({
                    for (i, y) in out.chunks_exact_mut(d).enumerate() {
                        let row = &x[(start + i) * d..][..d];
                        for (((y, &x), &gain), &bias) in y.iter_mut().zip(row).zip(gain).zip(bias) {
                            *y = x * gain + bias;
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, x, gain, bias => cuda::affine(x, gain, bias));

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (to_gain, to_bias) = gain_and_bias(x, gain, bias, &grad)?;
        Ok((Some(grad.broadcast_mul(gain)?), to_gain, to_bias))
    }
}

/// The gradients of an affine's parameters, where anybody follows them: Σ g·x and Σ g over all rows.
fn gain_and_bias(x: &Tensor, gain: &Tensor, bias: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let to_gain = if gain.track_op() { Some(super::sum_rows(&(grad * x)?)?) } else { None };
    let to_bias = if bias.track_op() { Some(super::sum_rows(grad)?) } else { None };
    Ok((to_gain, to_bias))
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "layer-norm", T => {
            let (x, d) = (slice::<T>(s1, l1, "layer-norm")?, width(l1)?);
            let (gain, bias) = (slice::<T>(s2, l2, "layer-norm")?, slice::<T>(s3, l3, "layer-norm")?);
            let mut out = vec![T::zero(); x.len()];
            rows::each_block(&mut out, d, 2 * d, |start, out| {
                vectorised!({
                    for (i, y) in out.chunks_exact_mut(d).enumerate() {
                        let row = &x[(start + i) * d..][..d];
                        let mean = mean(row);
                        let s = scale(row, mean, self.eps);
                        for (((y, &x), &gain), &bias) in y.iter_mut().zip(row).zip(gain).zip(bias) {
                            let n = (x - mean) / s;
                            *y = n * gain + bias;
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, x, gain, bias => cuda::layer_norm(x, gain, bias, self.eps));

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let to_x = grad.apply_op3_no_bwd(x, gain, &LayerNormGrad { eps: self.eps })?;
        let (to_gain, to_bias) = if gain.track_op() {
            let s = norm_scale(x, self.eps)?;
            gain_and_bias(&normalize(x, &s)?, gain, bias, &grad)?
        } else {
            gain_and_bias(x, gain, bias, &grad)?
        };
        Ok((Some(to_x), to_gain, to_bias))
    }
}

/// The gradient of LayerNorm's input: (h − mean(h) − n·mean(h·n)) / s with h = g·gain and n the normalised row.
pub(super) struct LayerNormGrad {
    pub(super) eps: f64,
}

impl CustomOp3 for LayerNormGrad {
    fn name(&self) -> &'static str {
        "layer-norm-grad"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "layer-norm-grad", T => {
            let (grad, d) = (slice::<T>(s1, l1, "layer-norm-grad")?, width(l1)?);
            let (x, gain) = (slice::<T>(s2, l2, "layer-norm-grad")?, slice::<T>(s3, l3, "layer-norm-grad")?);
            let mut out = vec![T::zero(); x.len()];
            rows::each_block(&mut out, d, 3 * d, |start, out| {
                vectorised!({
                    for (i, y) in out.chunks_exact_mut(d).enumerate() {
                        let row = &x[(start + i) * d..][..d];
                        let grad = &grad[(start + i) * d..][..d];
                        let mean_x = mean(row);
                        let s = scale(row, mean_x, self.eps);
                        for ((y, &g), &gain) in y.iter_mut().zip(grad).zip(gain) {
                            *y = g * gain;
                        }
                        let mean_h = mean(y);
                        let along = sum_of2(y, row, |h, x| h * (x - mean_x)) / (s * s * T::of(d as f64));
                        for (y, &x) in y.iter_mut().zip(row) {
                            *y = (*y - mean_h - (x - mean_x) * along) / s;
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, grad, x, gain => cuda::layer_norm_grad(grad, x, gain, self.eps));
}

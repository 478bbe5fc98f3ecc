//! The arithmetic of GPT-2 as differentiable operations on candle tensors.
//!
//! candle-nn's fused LayerNorm and softmax have no backward pass: gradients behind them vanish without an error.
//! These have one, checked against finite differences in `tests/gradients.rs`. They compute in f32 (or f64); f16 and
//! bf16 tensors are widened on the way in and rounded on the way out, so every reduction is in f32.

mod adamw;
mod add;
mod attention;
mod backward;
#[cfg(feature = "cuda")]
mod cuda;
mod embedding;
mod gelu;
pub(crate) mod gemm;
mod linear;
mod loss;
mod norm;
pub(crate) mod real;
mod region;
mod rows;
mod sum;
mod tap;
mod thin;
mod unembed;
#[cfg(feature = "cuda")]
mod whole;

use candle_core::{DType, Result, Tensor};

pub use adamw::{AdamStep, adamw};
pub use add::add;
pub use attention::{Causal, attend, attention, attention_hides_maps, attention_scores, causal_softmax, masked};
pub use backward::{Attended, add_product, add_row_sums, add_rows, gelu_backward, layer_norm_backward};
pub use embedding::embedding;
pub use gelu::{Gelu, gelu};
pub use linear::{linear, linear_gelu, linear_t, over_rows, sum_rows};
pub use loss::{IGNORE, cross_entropy};
pub use norm::{affine, layer_norm, norm_scale, normalize};
pub use region::{read_region, write_region};
pub(crate) use sum::finite;
pub use sum::{all_finite, sum_of_squares};
pub use tap::Taps;
pub(crate) use unembed::logits_at_once;
pub use unembed::{next_token_gradient, next_token_gradient_by, next_token_losses};

/// What an operation does on a GPU: `on_gpu!(self, x, y => …)` beside its `cpu_fwd`, with every tensor as storage and layout;
/// `on_gpu!(self, mut x, y => …)` for one that changes x.
macro_rules! on_gpu {
    ($this:ident, $a:ident => $body:expr) => {
        #[cfg(feature = "cuda")]
        fn cuda_fwd(&$this, s1: &candle_core::CudaStorage, l1: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
            let $a = (s1, l1);
            $body
        }
    };
    ($this:ident, $a:ident, $b:ident => $body:expr) => {
        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &$this,
            s1: &candle_core::CudaStorage,
            l1: &Layout,
            s2: &candle_core::CudaStorage,
            l2: &Layout,
        ) -> Result<(candle_core::CudaStorage, Shape)> {
            let ($a, $b) = ((s1, l1), (s2, l2));
            $body
        }
    };
    ($this:ident, $a:ident, $b:ident, $c:ident => $body:expr) => {
        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &$this,
            s1: &candle_core::CudaStorage,
            l1: &Layout,
            s2: &candle_core::CudaStorage,
            l2: &Layout,
            s3: &candle_core::CudaStorage,
            l3: &Layout,
        ) -> Result<(candle_core::CudaStorage, Shape)> {
            let ($a, $b, $c) = ((s1, l1), (s2, l2), (s3, l3));
            $body
        }
    };
    ($this:ident, mut $a:ident, $b:ident => $body:expr) => {
        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &$this,
            s1: &mut candle_core::CudaStorage,
            l1: &Layout,
            s2: &candle_core::CudaStorage,
            l2: &Layout,
        ) -> Result<()> {
            let ($a, $b) = ((&*s1, l1), (s2, l2));
            $body
        }
    };
    ($this:ident, mut $a:ident, $b:ident, $c:ident => $body:expr) => {
        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &$this,
            s1: &mut candle_core::CudaStorage,
            l1: &Layout,
            s2: &candle_core::CudaStorage,
            l2: &Layout,
            s3: &candle_core::CudaStorage,
            l3: &Layout,
        ) -> Result<()> {
            let ($a, $b, $c) = ((&*s1, l1), (s2, l2), (s3, l3));
            $body
        }
    };
}
pub(crate) use on_gpu;

/// The type that an operation on `x` computes in: what its values are on a GPU, whose kernels widen them one by one.
fn real_dtype(x: &Tensor) -> DType {
    match x.dtype() {
        dtype if x.device().is_cuda() => dtype,
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Tensors of 16 bits as f32, in which sums are kept; others as they are.
fn wide<const N: usize>(all: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut out = all.map(Tensor::clone);
    for x in &mut out {
        if x.dtype() != DType::F64 {
            *x = x.to_dtype(DType::F32)?;
        }
    }
    Ok(out)
}

/// Applies `f` in the type it computes in, and returns in the type of `x`.
fn in_real(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let real = real_dtype(x);
    if x.dtype() == real { f(x) } else { f(&x.to_dtype(real)?)?.to_dtype(x.dtype()) }
}

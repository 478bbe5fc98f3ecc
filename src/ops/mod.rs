//! The arithmetic of GPT-2 as differentiable operations on candle tensors.
//!
//! candle-nn's fused LayerNorm and softmax have no backward pass: gradients behind them vanish without an error.
//! These have one, checked against finite differences in `tests/gradients.rs`. They compute in f32 (or f64); f16 and
//! bf16 tensors are widened on the way in and rounded on the way out, so every reduction is in f32.

mod adamw;
mod add;
mod attention;
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
mod thin;

use candle_core::{DType, Result, Tensor};

pub use adamw::{AdamStep, update_mean, update_parameter, update_square};
pub use add::add;
pub use attention::{Causal, attend, attention_scores, causal_softmax, masked};
pub use embedding::embedding;
pub use gelu::{Gelu, gelu};
pub use linear::{linear, linear_t, over_rows, sum_rows};
pub use loss::{IGNORE, cross_entropy};
pub use norm::{affine, layer_norm, norm_scale, normalize};
pub use region::{read_region, write_region};
pub(crate) use sum::finite;
pub use sum::{all_finite, sum_of_squares};

/// The type that an operation on `x` computes in.
fn real_dtype(x: &Tensor) -> DType {
    if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Applies `f` in the type it computes in, and returns in the type of `x`.
fn in_real(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let real = real_dtype(x);
    if x.dtype() == real { f(x) } else { f(&x.to_dtype(real)?)?.to_dtype(x.dtype()) }
}

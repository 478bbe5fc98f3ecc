//! What a model loses on the tokens that come next, without the logits of all positions at once.
//!
//! With a vocabulary of 50,257 they are the largest tensor of a training step by far. On a GPU they have the 16 bits of what they come
//! from; on the CPU they are f32.

use candle_core::{Device, Result, Tensor};

use super::linear::{Product, logits};
use super::loss::{cross_entropy, turn_into_gradient};

/// Rows whose logits exist at once: enough for products at full speed, of which a GPU needs more.
pub fn logits_at_once(device: &Device) -> usize {
    if device.is_cuda() { 4096 } else { 256 }
}

/// [`cross_entropy`] of x·Wᵀ, row by row: `[n, d]`, `[vocab, d]` and n targets → `[n]`; not differentiable.
pub fn next_token_losses(x: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let rows = logits_at_once(x.device());
    in_blocks(rows, x, weight, targets, |_, _, logits, targets| cross_entropy(logits, targets.to_vec()))
}

/// As [`next_token_losses`], and the gradient of `factor` · Σ losses for x, `[n, d]`; its gradient for W is added to `into`.
///
/// Logits become their own gradients: there is never a second tensor of their size.
pub fn next_token_gradient(
    x: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    factor: f64,
    into: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    next_token_gradient_by(logits_at_once(x.device()), x, weight, targets, factor, into)
}

/// As [`next_token_gradient`], with so many rows at once: for tests.
#[doc(hidden)]
pub fn next_token_gradient_by(
    rows: usize,
    x: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    factor: f64,
    into: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let mut gradient = Vec::new();
    let losses = in_blocks(rows, x, weight, targets, |x, weight, logits, targets| {
        let losses = cross_entropy(logits, targets.to_vec())?;
        turn_into_gradient(logits, &losses.ones_like()?.affine(factor, 0.0)?, targets.into())?;
        if let Some(sum) = into {
            sum.inplace_op3(logits, x, &Product { transposed: true })?;
        }
        gradient.push(logits.apply_op2_no_bwd(weight, &Product { transposed: false })?);
        Ok(losses)
    })?;
    Ok((losses, Tensor::cat(&gradient, 0)?.to_dtype(x.dtype())?))
}

/// The losses that `f` finds for some rows of x at a time, the weight, and the rows' logits and targets.
fn in_blocks(
    most: usize,
    x: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    mut f: impl FnMut(&Tensor, &Tensor, &Tensor, &[u32]) -> Result<Tensor>,
) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    if targets.len() != n {
        candle_core::bail!("{} targets for {n} rows", targets.len())
    }
    let dtype = super::real_dtype(x);
    let (x, weight) = (x.detach().to_dtype(dtype)?.contiguous()?, weight.detach().to_dtype(dtype)?.contiguous()?);
    let mut losses = Vec::new();
    for start in (0..n).step_by(most) {
        let rows = most.min(n - start);
        let x = x.narrow(0, start, rows)?;
        losses.push(f(&x, &weight, &logits(&x, &weight)?, &targets[start..start + rows])?);
    }
    Tensor::cat(&losses, 0)
}

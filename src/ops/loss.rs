//! Cross-entropy per token, without a second copy of the logits.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, for_real, max_of, slice, sum_of, vectorised};
use super::{in_real, on_gpu, rows};

/// A target that is not scored: padding, or the position after the last token.
pub const IGNORE: u32 = u32::MAX;

/// `−log softmax(logits)[target]` of every row, in nats; 0 where the target is [`IGNORE`].
///
/// `[n, vocab]` and n targets → `[n]`. Every other target must be below the vocabulary size.
pub fn cross_entropy(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    if targets.len() != n || targets.iter().any(|&t| t != IGNORE && t as usize >= vocab) {
        candle_core::bail!("cross-entropy: {} targets for {n} rows of {vocab} logits", targets.len())
    }
    let targets: Arc<[u32]> = targets.into();
    in_real(logits, |logits| logits.contiguous()?.apply_op1(CrossEntropy { targets }))
}

struct CrossEntropy {
    targets: Arc<[u32]>,
}
struct CrossEntropyGrad {
    targets: Arc<[u32]>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "cross-entropy", T => {
            let (n, vocab) = layout.shape().dims2()?;
            let logits = slice::<T>(storage, layout, "cross-entropy")?;
            let mut out = vec![T::zero(); n];
            rows::each_block(&mut out, 1, 4 * vocab, |start, out| {
                vectorised!({
                    for (i, loss) in out.iter_mut().enumerate() {
                        let target = self.targets[start + i];
                        if target == IGNORE {
                            continue;
                        }
                        let row = &logits[(start + i) * vocab..][..vocab];
                        let max = max_of(row);
                        let total = sum_of(row, |x| (x - max).fast_exp());
                        *loss = total.ln() + max - row[target as usize];
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), Shape::from(n)))
        })
    }

    on_gpu!(self, logits => cuda::cross_entropy(logits, &self.targets));

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = CrossEntropyGrad { targets: self.targets.clone() };
        Ok(Some(logits.apply_op2_no_bwd(&grad.contiguous()?, &op)?))
    }
}

impl CustomOp2 for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross-entropy-grad"
    }

    /// g·(softmax − one-hot).
    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "cross-entropy-grad", T => {
            let (_, vocab) = l1.shape().dims2()?;
            let (logits, grad) = (slice::<T>(s1, l1, "cross-entropy-grad")?, slice::<T>(s2, l2, "cross-entropy-grad")?);
            let mut out = vec![T::zero(); logits.len()];
            rows::each_block(&mut out, vocab, 4 * vocab, |start, out| {
                vectorised!({
                    for (i, out) in out.chunks_exact_mut(vocab).enumerate() {
                        let (target, g) = (self.targets[start + i], grad[start + i]);
                        if target == IGNORE {
                            continue;
                        }
                        let row = &logits[(start + i) * vocab..][..vocab];
                        let max = max_of(row);
                        for (y, &x) in out.iter_mut().zip(row) {
                            *y = (x - max).fast_exp();
                        }
                        let factor = g / sum_of(out, |x| x);
                        for y in out.iter_mut() {
                            *y *= factor;
                        }
                        out[target as usize] -= g;
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, logits, grad => cuda::cross_entropy_grad(logits, grad, &self.targets));
}

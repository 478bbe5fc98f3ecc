//! Cross-entropy per token, without a second copy of the logits.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, for_real, max_of, part, slice, sum_of, vectorised, wrong_dtype};
use super::{on_gpu, rows};

/// A target that is not scored: padding, or the position after the last token.
pub const IGNORE: u32 = u32::MAX;

/// `−log softmax(logits)[target]` of every row, in nats; 0 where the target is [`IGNORE`].
///
/// `[n, vocab]` and n targets → `[n]`, in f32 whatever 16 bits the logits have. Every other target must be below the vocabulary
/// size.
pub fn cross_entropy(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    if targets.len() != n || targets.iter().any(|&t| t != IGNORE && t as usize >= vocab) {
        candle_core::bail!("cross-entropy: {} targets for {n} rows of {vocab} logits", targets.len())
    }
    let targets: Arc<[u32]> = targets.into();
    spaced(&logits.to_dtype(super::real_dtype(logits))?)?.apply_op1(CrossEntropy { targets })
}

/// Turns logits into the gradients of their losses, each times its own number of `grad`.
pub(super) fn turn_into_gradient(logits: &Tensor, grad: &Tensor, targets: Arc<[u32]>) -> Result<()> {
    logits.inplace_op2(&grad.contiguous()?, &CrossEntropyGrad { targets })
}

/// Rows as operations read them: contiguous, and on a GPU any distance apart.
fn spaced(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cuda() && x.stride()[1] == 1 { Ok(x.clone()) } else { x.contiguous() }
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
        let out = logits.detach().force_contiguous()?;
        turn_into_gradient(&out, grad, self.targets.clone())?;
        Ok(Some(out))
    }
}

impl InplaceOp2 for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross-entropy-grad"
    }

    /// g·(softmax − one-hot).
    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        match s1 {
            CpuStorage::F32(logits) => self.run(part(logits, l1)?, slice(s2, l2, self.name())?),
            CpuStorage::F64(logits) => self.run(part(logits, l1)?, slice(s2, l2, self.name())?),
            other => return Err(wrong_dtype(other, self.name())),
        }
        Ok(())
    }

    on_gpu!(self, mut logits, grad => cuda::cross_entropy_grad(logits, grad, &self.targets));
}

impl CrossEntropyGrad {
    fn run<T: Real>(&self, logits: &mut [T], grad: &[T]) {
        let vocab = logits.len() / grad.len().max(1);
        rows::each_block(logits, vocab, 4 * vocab, |start, block| {
            vectorised!({
                for (i, row) in block.chunks_exact_mut(vocab).enumerate() {
                    let (target, g) = (self.targets[start + i], grad[start + i]);
                    if target == IGNORE {
                        row.fill(T::zero());
                        continue;
                    }
                    let max = max_of(row);
                    for y in row.iter_mut() {
                        *y = (*y - max).fast_exp();
                    }
                    let factor = g / sum_of(row, |x| x);
                    for y in row.iter_mut() {
                        *y *= factor;
                    }
                    row[target as usize] -= g;
                }
            })
        });
    }
}

//! Attention without its maps: one operation on a GPU, in 16 bits.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, IndexOp, Layout, Result, Shape, Storage, Tensor};

use candle_core::backend::BackendStorage;

use super::{Causal, cuda, on_gpu};

/// Whether there are kernels for so many queries of a type, and such heads. With few queries the steps are as fast.
pub fn has_kernels(dtype: DType, queries: usize, dim: usize) -> bool {
    /// Of the 64 of a block.
    const LEAST: usize = 16;
    matches!(dtype, DType::F16 | DType::BF16) && (dim == 32 || dim == 64) && queries >= LEAST
}

/// Whether there are kernels for such queries, keys and values, and for the gradients of those that have some.
pub fn fits(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let Ok((_, queries, _, dim)) = q.dims4() else { return false };
    // Every row of a head is read 16 bytes at a time.
    let aligned = |x: &Tensor| {
        let (_, layout) = x.storage_and_layout();
        let stride = layout.stride();
        stride.last() == Some(&1) && layout.start_offset() % 8 == 0 && stride[..3].iter().all(|stride| stride % 8 == 0)
    };
    let (all, tracked) = ([q, k, v], [q, k, v].iter().any(|x| x.track_op()));
    has_kernels(q.dtype(), queries, dim)
        && all.iter().all(|x| x.dtype() == q.dtype() && aligned(x))
        && (!tracked || q.dims() == k.dims())
}

/// As [`super::attention()`], for what [`fits`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &Causal) -> Result<Tensor> {
    q.apply_op3(k, v, Whole { scale, mask: mask.clone() })
}

/// The gradients of queries, keys and values, `[prompt, pos, 3, head, dim]`, for the result and its gradient.
pub fn backward(qkv: [&Tensor; 3], out: &Tensor, grad: &Tensor, scale: f64, mask: &Causal) -> Result<Tensor> {
    let of = qkv.map(Tensor::detach);
    // Rows are aligned where a tensor begins at a multiple of 16 bytes.
    let [out, grad] = [out, grad].map(|x| match x.is_contiguous() && x.layout().start_offset() % 8 == 0 {
        true => Ok(x.detach()),
        false => x.detach().force_contiguous(),
    });
    out?.apply_op2_no_bwd(&grad?, &WholeGrad { of, scale, mask: mask.clone() })
}

struct Whole {
    scale: f64,
    mask: Causal,
}

struct WholeGrad {
    of: [Tensor; 3],
    scale: f64,
    mask: Causal,
}

fn not_here<T>() -> Result<T> {
    candle_core::bail!("attention as a whole is for a GPU; on the CPU it goes in steps")
}

impl CustomOp3 for Whole {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    on_gpu!(self, q, k, v => {
        let ((b, p, h, d), shape) = (q.1.shape().dims4()?, k.1.shape().dims4()?);
        if shape != (b, p + self.mask.offset(), h, d) || k.1.shape() != v.1.shape() {
            candle_core::bail!("attention of {:?} to {:?} and {:?}", q.1.shape(), k.1.shape(), v.1.shape())
        }
        cuda::whole(q, k, v, self.scale, &self.mask)
    });

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let all = backward([q, k, v], out, grad, self.scale, &self.mask)?;
        let part = |i: usize| all.i((.., .., i)).map(Some);
        Ok((part(0)?, part(1)?, part(2)?))
    }
}

impl CustomOp2 for WholeGrad {
    fn name(&self) -> &'static str {
        "attention-grad"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    on_gpu!(self, out, grad => {
        let like = |x: &Tensor| x.dims() == self.of[0].dims() && x.dtype() == self.of[0].dtype();
        let [q, k, v] = &self.of;
        if !fits(q, k, v) || !like(k) || !like(v) || self.mask.offset() > 0 || q.dims() != out.1.dims() || q.dims() != grad.1.dims() {
            candle_core::bail!("gradients of attention of {:?} to {:?}", q.shape(), k.shape())
        }
        if [out, grad].iter().any(|(x, _)| x.dtype() != q.dtype()) {
            candle_core::bail!("gradients of attention in {:?} for {:?}", grad.0.dtype(), q.dtype())
        }
        let [q, k, v] = self.of.each_ref().map(Tensor::storage_and_layout);
        match (&*q.0, &*k.0, &*v.0) {
            (Storage::Cuda(a), Storage::Cuda(b), Storage::Cuda(c)) => {
                cuda::whole_grad([(a, q.1), (b, k.1), (c, v.1)], out, grad, self.scale, &self.mask)
            }
            _ => not_here(),
        }
    });
}

//! Affine maps: GPT-2's `Conv1D` (weight `[in, out]`) and its unembedding (weight `[vocab, in]`).

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp3, Layout, Result, Shape, Storage, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::gelu::{Gelu, gelu};
use super::gemm::{Threads, View, gemm};
use super::real::{Real, for_real, part, slice, vectorised, wrong_dtype};
use super::{in_real, on_gpu, rows, thin};

/// Most rows for which turning a large matrix around decides the time of x·Wᵀ.
const FEW_ROWS: usize = 64;

/// x·W + b over the last axis: `[.., in]`, `[in, out]`, `[out]` → `[.., out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let dtype = super::real_dtype(x);
    let (weight, bias) = (weight.to_dtype(dtype)?.contiguous()?, bias.to_dtype(dtype)?.contiguous()?);
    in_real(x, |x| x.contiguous()?.apply_op3(&weight, &bias, Linear { then: None }))
}

/// [`gelu`] of [`linear`], where nobody looks between them: the same bits in one pass.
pub fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor, form: Gelu) -> Result<Tensor> {
    let rounds = x.dtype() != super::real_dtype(x); // to 16 bits, between the two
    if rounds || [x, weight, bias].iter().any(|x| x.track_op()) {
        return gelu(&linear(x, weight, bias)?, form);
    }
    let (weight, bias) = (weight.to_dtype(x.dtype())?.contiguous()?, bias.to_dtype(x.dtype())?.contiguous()?);
    x.contiguous()?.apply_op3_no_bwd(&weight, &bias, &Linear { then: Some(form) })
}

/// x·Wᵀ over the last axis: `[.., in]`, `[out, in]` → `[.., out]`.
pub fn linear_t(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.to_dtype(super::real_dtype(x))?.contiguous()?;
    in_real(x, |x| x.contiguous()?.apply_op2(&weight, LinearT))
}

/// Adds up all rows: `[.., d]` → `[d]`.
pub fn sum_rows(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&SumRows)
}

/// aᵀ·b, a sum over the rows of both: `[n, i]`, `[n, j]` → `[i, j]`; not differentiable.
pub fn over_rows(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op2_no_bwd(&b.contiguous()?, &Product { transposed: true })
}

/// x·Wᵀ of two matrices, `[n, d]`, `[vocab, d]` → `[n, vocab]`; not differentiable. On a GPU rows begin where its fast products can read
/// and write them, which rows of 50,257 values would not.
pub(super) fn logits(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return x.apply_op2_no_bwd(weight, &Logits)?.narrow(1, 0, weight.dim(0)?);
    }
    linear_t(x, weight)
}

struct Linear {
    then: Option<Gelu>,
}
#[cfg(feature = "cuda")]
struct Logits;
struct LinearT;
struct SumRows;

/// a·b or aᵀ·b of two matrices, for the backward passes: candle's product runs on one thread where this binary lets it.
pub(super) struct Product {
    pub(super) transposed: bool,
}

/// The gradient of a matrix, aᵀ·b, where anybody follows it.
fn weight_gradient(weight: &Tensor, a: &Tensor, b: &Tensor) -> Result<Option<Tensor>> {
    match weight.track_op() {
        true => a.apply_op2_no_bwd(b, &Product { transposed: true }).map(Some),
        false => Ok(None),
    }
}

/// The leading dims of `x`, flattened, and its last one.
pub(super) fn matrix(layout: &Layout) -> (usize, usize) {
    let dims = layout.shape().dims();
    let width = dims.last().copied().unwrap_or(1);
    (dims.iter().rev().skip(1).product(), width)
}

/// The shape of a tensor with another last dimension.
pub(super) fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut dims = layout.shape().dims().to_vec();
    dims.pop();
    dims.push(last);
    Shape::from(dims)
}

/// `[.., d]` as `[n, d]`.
fn flat(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = matrix(x.layout());
    x.reshape((rows, width))
}

/// A product with the rows of a gradient, `[n, i]` → `[n, o]`, and zeros where the first and the last rows are zeros: a metric of
/// one prompt of a batch, or of last positions, reaches few of them.
fn of_rows(grad: &Tensor, product: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let reached = reached(grad)?;
    let (before, after) = (reached.start, grad.dim(0)? - reached.end);
    if (before, after) == (0, 0) {
        return product(grad);
    }
    product(&grad.narrow(0, before, reached.len())?)?.pad_with_zeros(0, before, after)
}

/// From the first to the last row that is not all zeros, one of zeros if all are; on a GPU, which would have to be waited for, all of them.
fn reached(x: &Tensor) -> Result<Range<usize>> {
    let (n, width) = x.dims2()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return Ok(0..n) };
    for_real!(storage, "reached", T => {
        let mut rows = slice::<T>(storage, layout, "reached")?.chunks_exact(width.max(1));
        let reaches = |row: &[T]| row.iter().any(|x| *x != T::zero());
        let Some(first) = rows.position(reaches) else { return Ok(0..n.min(1)) };
        let last = rows.rposition(reaches).map_or(first, |last| first + 1 + last);
        Ok(first..last + 1)
    })
}

fn mismatch(x: &Layout, w: &Layout, op: &'static str) -> candle_core::Error {
    candle_core::Error::ShapeMismatchBinaryOp { lhs: x.shape().clone(), rhs: w.shape().clone(), op }.bt()
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let ((m, k), (inner, n)) = (matrix(l1), l2.shape().dims2()?);
        if k != inner || l3.shape().elem_count() != n {
            return Err(mismatch(l1, l2, "linear"));
        }
        for_real!(s1, "linear", T => {
            let (x, w) = (slice::<T>(s1, l1, "linear")?, slice::<T>(s2, l2, "linear")?);
            let bias = slice::<T>(s3, l3, "linear")?;
            let mut out = Vec::with_capacity(m * n);
            for _ in 0..m {
                out.extend_from_slice(bias);
            }
            if m <= thin::ROWS {
                thin::add_product(&mut out, x, w, k, n);
            } else {
                let (x, w) = (View::new(x, (m, k), (k, 1)), View::new(w, (k, n), (n, 1)));
                gemm(&mut out, n, x, w, T::one(), true, Threads::All);
            }
            if let Some(form) = self.then {
                form.apply(&mut out);
            }
            Ok((T::to_cpu_storage_owned(out), with_last(l1, n)))
        })
    }

    on_gpu!(self, x, weight, bias => {
        let (inner, n) = weight.1.shape().dims2()?;
        match matrix(x.1).1 == inner && bias.1.shape().elem_count() == n {
            true => cuda::linear(x, weight, bias, self.then),
            false => Err(mismatch(x.1, weight.1, "linear")),
        }
    });

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = flat(&grad.contiguous()?)?;
        let product = |grad: &Tensor| linear_t(grad, weight);
        let to_x = if x.track_op() { Some(of_rows(&grad, product)?.reshape(x.dims())?) } else { None };
        let to_weight = weight_gradient(weight, &flat(x)?, &grad)?;
        let to_bias = if bias.track_op() { Some(sum_rows(&grad)?) } else { None };
        Ok((to_x, to_weight, to_bias))
    }
}

impl CustomOp2 for LinearT {
    fn name(&self) -> &'static str {
        "linear-t"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (n, inner)) = (matrix(l1), l2.shape().dims2()?);
        if k != inner {
            return Err(mismatch(l1, l2, "linear-t"));
        }
        for_real!(s1, "linear-t", T => {
            let (x, w) = (slice::<T>(s1, l1, "linear-t")?, slice::<T>(s2, l2, "linear-t")?);
            let mut out = vec![T::zero(); m * n];
            if m <= thin::ROWS {
                thin::product_t(&mut out, x, w, k);
            } else if m <= FEW_ROWS {
                // W·xᵀ instead: the matrix product reads W as it lies, where x·Wᵀ would first turn all of it around.
                let mut turned = vec![T::zero(); n * m];
                let (x, w) = (View::new(x, (m, k), (k, 1)).transposed(), View::new(w, (n, k), (k, 1)));
                gemm(&mut turned, m, w, x, T::one(), false, Threads::All);
                rows::each_block(&mut out, n, 2 * n, |first, rows| {
                    for (i, row) in rows.chunks_exact_mut(n).enumerate() {
                        let column = turned[first + i..].iter().step_by(m);
                        row.iter_mut().zip(column).for_each(|(y, turned)| *y = *turned);
                    }
                });
            } else {
                let (x, w) = (View::new(x, (m, k), (k, 1)), View::new(w, (n, k), (k, 1)).transposed());
                gemm(&mut out, n, x, w, T::one(), false, Threads::All);
            }
            Ok((T::to_cpu_storage_owned(out), with_last(l1, n)))
        })
    }

    on_gpu!(self, x, weight => match matrix(x.1).1 == weight.1.shape().dims2()?.1 {
        true => cuda::linear_t(x, weight),
        false => Err(mismatch(x.1, weight.1, "linear-t")),
    });

    fn bwd(&self, x: &Tensor, weight: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = flat(&grad.contiguous()?)?;
        let product = |grad: &Tensor| grad.apply_op2_no_bwd(weight, &Product { transposed: false });
        let to_x = if x.track_op() { Some(of_rows(&grad, product)?.reshape(x.dims())?) } else { None };
        let to_weight = weight_gradient(weight, &grad, &flat(x)?)?;
        Ok((to_x, to_weight))
    }
}

#[cfg(feature = "cuda")]
impl CustomOp2 for Logits {
    fn name(&self) -> &'static str {
        "logits"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("rows of logits are spaced on a GPU only")
    }

    on_gpu!(self, x, weight => cuda::logits(x, weight));
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, n) = self.shape(l1, l2)?;
        for_real!(s1, "product", T => {
            let mut out = vec![T::zero(); m * n];
            self.run::<T>(&mut out, false, (s1, l1), (s2, l2))?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((m, n))))
        })
    }

    on_gpu!(self, a, b => cuda::matrices(a, self.transposed, b, self.shape(a.1, b.1)?));
}

/// Adds the product to a tensor.
impl InplaceOp3 for Product {
    fn name(&self) -> &'static str {
        "add-product"
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
        if l1.shape().dims2()? != self.shape(l2, l3)? {
            return Err(mismatch(l1, l2, "add-product"));
        }
        match s1 {
            CpuStorage::F32(sum) => self.run(part(sum, l1)?, true, (s2, l2), (s3, l3)),
            CpuStorage::F64(sum) => self.run(part(sum, l1)?, true, (s2, l2), (s3, l3)),
            other => Err(wrong_dtype(other, "add-product")),
        }
    }

    on_gpu!(self, mut sum, a, b => match sum.1.shape().dims2()? == self.shape(a.1, b.1)? {
        true => cuda::add_matrices(sum, a, self.transposed, b),
        false => Err(mismatch(sum.1, a.1, "add-product")),
    });
}

impl Product {
    fn shape(&self, l1: &Layout, l2: &Layout) -> Result<(usize, usize)> {
        let ((rows, cols), (inner, n)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        let (m, k) = if self.transposed { (cols, rows) } else { (rows, cols) };
        if k == inner { Ok((m, n)) } else { Err(mismatch(l1, l2, "product")) }
    }

    fn run<T: Real>(
        &self,
        out: &mut [T],
        add: bool,
        (s1, l1): (&CpuStorage, &Layout),
        (s2, l2): (&CpuStorage, &Layout),
    ) -> Result<()> {
        let ((rows, cols), (k, n)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        let (a, b) = (slice::<T>(s1, l1, "product")?, slice::<T>(s2, l2, "product")?);
        if !self.transposed && !add && rows <= thin::ROWS {
            thin::add_product(out, a, b, k, n);
            return Ok(());
        }
        let a = View::new(a, (rows, cols), (cols, 1));
        let a = if self.transposed { a.transposed() } else { a };
        gemm(out, n, a, View::new(b, (k, n), (n, 1)), T::one(), add, Threads::All);
        Ok(())
    }
}

impl CustomOp1 for SumRows {
    fn name(&self) -> &'static str {
        "sum-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "sum-rows", T => {
            let x = slice::<T>(storage, layout, "sum-rows")?;
            let (n, d) = matrix(layout);
            let out = rows::reduce(n, d, |range, sum| {
                vectorised!({
                    for row in x[range.start * d..range.end * d].chunks_exact(d.max(1)) {
                        for (s, &x) in sum.iter_mut().zip(row) {
                            *s += x;
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), Shape::from(d)))
        })
    }

    on_gpu!(self, x => cuda::sum_rows(x));
}

//! The operations on a GPU: what `cuda_fwd` of each does. Matrix products are cuBLAS's; the rest are kernels of
//! our own (`kernels.cu`), compiled to PTX when the workbench is built and loaded once per device.
//!
//! f16 and bf16 stay what they are in memory; every kernel computes in f32. Products are rounded to 16 bits before a bias is added,
//! and cuBLAS may add up parts of them in 16 bits: half precision is not better than half precision here.

mod attention;
mod launch;
mod product;

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};
use launch::Argument::{Number, Size, Word};
use launch::{Argument, Grid, empty, launch, start, words};
use product::{Matrices, multiply};

use super::linear::{matrix, with_last};

pub use attention::{attend, attend_t, fits_whole, masked, scores, softmax, softmax_grad, whole};

/// A tensor as an operation gets it.
pub type Given<'a> = (&'a CudaStorage, &'a Layout);

/// A kernel with a block per row of `x`, and one value or a row per row as its result.
fn by_rows(
    name: &'static str,
    given: &[Given<'_>],
    out: usize,
    arguments: impl FnOnce(usize) -> Vec<Argument>,
    shape: Shape,
) -> Result<(CudaStorage, Shape)> {
    let (x, layout) = given[0];
    let ((rows, width), device) = (matrix(layout), x.device());
    let result = empty(device, x.dtype(), rows * out)?;
    let mut all = given.iter().map(|(x, layout)| start(x, layout, name)).collect::<Result<Vec<_>>>()?;
    all.push(launch::at(&result, 0)?);
    all.extend(arguments(width));
    if rows * width > 0 {
        launch(device, name, x.dtype(), Grid::rows(rows, width)?, &all)?;
    }
    Ok((result, shape))
}

/// A kernel with a thread per element of `x`, whose result has its shape.
fn by_elements(name: &'static str, given: &[Given<'_>], arguments: &[Argument]) -> Result<(CudaStorage, Shape)> {
    let (x, layout) = given[0];
    let n = layout.shape().elem_count();
    let result = empty(x.device(), x.dtype(), n)?;
    let mut all = given.iter().map(|(x, layout)| start(x, layout, name)).collect::<Result<Vec<_>>>()?;
    all.push(launch::at(&result, 0)?);
    all.extend(arguments);
    all.push(Size(n as u64));
    if n > 0 {
        launch(x.device(), name, x.dtype(), Grid::elements(n as u64), &all)?;
    }
    Ok((result, layout.shape().clone()))
}

/// A kernel that changes a tensor in place, a thread per element.
fn in_place(name: &'static str, (x, layout): Given<'_>, others: &[Given<'_>], arguments: &[Argument]) -> Result<()> {
    let n = layout.shape().elem_count();
    if others.iter().any(|(other, _)| other.dtype() != x.dtype()) {
        candle_core::bail!("{name}: tensors of different types")
    }
    let mut all = vec![start(x, layout, name)?];
    for (other, layout) in others {
        all.push(start(other, layout, name)?);
    }
    all.extend(arguments);
    all.push(Size(n as u64));
    if n == 0 {
        return Ok(());
    }
    launch(x.device(), name, x.dtype(), Grid::elements(n as u64), &all)
}

/// A contiguous copy.
fn copy((x, layout): Given<'_>) -> Result<CudaStorage> {
    let n = layout.shape().elem_count();
    let mut out = empty(x.device(), x.dtype(), n)?;
    x.copy_strided_src(&mut out, 0, layout)?;
    Ok(out)
}

// LayerNorm and its steps.

pub fn norm_scale(x: Given<'_>, eps: f64) -> Result<(CudaStorage, Shape)> {
    by_rows("norm_scale", &[x], 1, |d| vec![Size(d as u64), Number(eps)], with_last(x.1, 1))
}

pub fn normalize(x: Given<'_>, scale: Given<'_>) -> Result<(CudaStorage, Shape)> {
    by_rows("normalize", &[x, scale], matrix(x.1).1, |d| vec![Size(d as u64)], x.1.shape().clone())
}

pub fn layer_norm(x: Given<'_>, gain: Given<'_>, bias: Given<'_>, eps: f64) -> Result<(CudaStorage, Shape)> {
    let arguments = |d| vec![Size(d as u64), Number(eps)];
    by_rows("layer_norm", &[x, gain, bias], matrix(x.1).1, arguments, x.1.shape().clone())
}

pub fn layer_norm_grad(grad: Given<'_>, x: Given<'_>, gain: Given<'_>, eps: f64) -> Result<(CudaStorage, Shape)> {
    let arguments = |d| vec![Size(d as u64), Number(eps)];
    by_rows("layer_norm_grad", &[grad, x, gain], matrix(x.1).1, arguments, x.1.shape().clone())
}

pub fn affine(x: Given<'_>, gain: Given<'_>, bias: Given<'_>) -> Result<(CudaStorage, Shape)> {
    by_elements("affine", &[x, gain, bias], &[Size(matrix(x.1).1 as u64)])
}

// The rest of a block.

pub fn add(a: Given<'_>, b: Given<'_>) -> Result<(CudaStorage, Shape)> {
    by_elements("add", &[a, b], &[])
}

pub fn gelu(x: Given<'_>, exact: bool) -> Result<(CudaStorage, Shape)> {
    by_elements("gelu", &[x], &[Word(exact.into())])
}

pub fn gelu_grad(x: Given<'_>, grad: Given<'_>, exact: bool) -> Result<(CudaStorage, Shape)> {
    by_elements("gelu_grad", &[x, grad], &[Word(exact.into())])
}

/// a·b of two matrices, either of which may be read transposed: `[m, k]`, `[k, n]` → `[m, n]`.
fn product(
    (a, a_at, a_turned): (&CudaStorage, &Layout, bool),
    (b, b_at, b_turned): (&CudaStorage, &Layout, bool),
) -> Result<CudaStorage> {
    let (left, right) =
        (Matrices::one(a, a_at.start_offset(), matrix(a_at)), Matrices::one(b, b_at.start_offset(), matrix(b_at)));
    let left = if a_turned { left.turned() } else { left };
    let right = if b_turned { right.turned() } else { right };
    let size = (left.size.0, right.size.1);
    let out = empty(a.device(), a.dtype(), size.0 * size.1)?;
    multiply(Matrices::one(&out, 0, size), left, right, (1, 1), 1.0)?;
    Ok(out)
}

/// x·W + b.
pub fn linear(x: Given<'_>, weight: Given<'_>, bias: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let n = weight.1.shape().dims2()?.1;
    let out = product((x.0, x.1, false), (weight.0, weight.1, false))?;
    let shape = with_last(x.1, n);
    let layout = Layout::contiguous(&shape);
    in_place("add_bias", (&out, &layout), &[bias], &[Size(n as u64)])?;
    Ok((out, shape))
}

/// x·Wᵀ.
pub fn linear_t(x: Given<'_>, weight: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let n = weight.1.shape().dims2()?.0;
    Ok((product((x.0, x.1, false), (weight.0, weight.1, true))?, with_last(x.1, n)))
}

/// a·b, or aᵀ·b, of shape `[m, n]`.
pub fn matrices(a: Given<'_>, transposed: bool, b: Given<'_>, shape: (usize, usize)) -> Result<(CudaStorage, Shape)> {
    Ok((product((a.0, a.1, transposed), (b.0, b.1, false))?, Shape::from(shape)))
}

/// Adds that product to a tensor.
pub fn add_matrices(sum: Given<'_>, a: Given<'_>, transposed: bool, b: Given<'_>) -> Result<()> {
    let mut found = product((a.0, a.1, transposed), (b.0, b.1, false))?;
    if found.dtype() != sum.0.dtype() {
        found = found.to_dtype(&Layout::contiguous(sum.1.shape()), sum.0.dtype())?;
    }
    let to = start(sum.0, sum.1, "add-product")?;
    let n = sum.1.shape().elem_count() as u64;
    let arguments = [to, launch::at(&found, 0)?, to, Size(n)];
    launch(sum.0.device(), "add", sum.0.dtype(), Grid::elements(n), &arguments)
}

/// The sum of all rows.
pub fn sum_rows(x: Given<'_>) -> Result<(CudaStorage, Shape)> {
    /// Rows that a block adds up.
    const TALL: usize = 1024;
    let ((rows, d), device, dtype) = (matrix(x.1), x.0.device(), x.0.dtype());
    let count = rows.div_ceil(TALL).max(1);
    let kept = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (parts, out) = (empty(device, kept, count * d)?, empty(device, dtype, d)?);
    let middle = launch::at(&parts, 0)?;
    let arguments = [start(x.0, x.1, "sum-rows")?, middle, Size(rows as u64), Size(d as u64), Size(TALL as u64)];
    launch(device, "sum_rows_parts", dtype, Grid::blocks(d.div_ceil(32), count, 256)?, &arguments)?;
    let arguments = [middle, launch::at(&out, 0)?, Size(count as u64), Size(d as u64)];
    launch(device, "sum_rows_whole", dtype, Grid::elements(d as u64), &arguments)?;
    Ok((out, Shape::from(d)))
}

// Tokens.

/// A copy.
pub fn rows(x: Given<'_>) -> Result<(CudaStorage, Shape)> {
    Ok((copy(x)?, x.1.shape().clone()))
}

/// Adds row i to row `ids[i]` of a table, in the order of i.
pub fn add_rows(table: Given<'_>, x: Given<'_>, ids: &[u32]) -> Result<()> {
    let (_, d) = table.1.shape().dims2()?;
    if table.0.dtype() != x.0.dtype() {
        candle_core::bail!("add-rows: tensors of different types")
    }
    // Each row of the table that is met is a block's, so that nothing is added twice at once.
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|i| ids[*i as usize]);
    let runs: Vec<&[u32]> = order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]).collect();
    if runs.is_empty() {
        return Ok(());
    }
    let met: Vec<u32> = runs.iter().map(|run| ids[run[0] as usize]).collect();
    let mut starts = vec![0];
    starts.extend(runs.iter().scan(0, |end, run| {
        *end += run.len() as u32;
        Some(*end)
    }));
    let device = x.0.device();
    let (met, starts, order) = (words(device, &met)?, words(device, &starts)?, words(device, &order)?);
    let mut arguments = vec![start(table.0, table.1, "add-rows")?, start(x.0, x.1, "add-rows")?];
    arguments.extend([launch::at(&met, 0)?, launch::at(&starts, 0)?, launch::at(&order, 0)?, Size(d as u64)]);
    launch(device, "add_rows", x.0.dtype(), Grid::rows(runs.len(), d)?, &arguments)
}

pub fn cross_entropy(logits: Given<'_>, targets: &[u32]) -> Result<(CudaStorage, Shape)> {
    let (rows, vocab) = logits.1.shape().dims2()?;
    let (device, dtype) = (logits.0.device(), logits.0.dtype());
    if rows == 0 {
        return Ok((empty(device, dtype, 0)?, Shape::from(0)));
    }
    let (targets, out) = (words(device, targets)?, empty(device, dtype, rows)?);
    let given = start(logits.0, logits.1, "cross-entropy")?;
    let arguments = [given, launch::at(&targets, 0)?, launch::at(&out, 0)?, Size(vocab as u64)];
    launch(device, "cross_entropy", dtype, Grid::blocks(rows, 1, 512)?, &arguments)?;
    Ok((out, Shape::from(rows)))
}

pub fn cross_entropy_grad(logits: Given<'_>, grad: Given<'_>, targets: &[u32]) -> Result<(CudaStorage, Shape)> {
    let (rows, vocab) = logits.1.shape().dims2()?;
    let (device, dtype) = (logits.0.device(), logits.0.dtype());
    if rows == 0 {
        return Ok((empty(device, dtype, 0)?, logits.1.shape().clone()));
    }
    let (targets, out) = (words(device, targets)?, empty(device, dtype, rows * vocab)?);
    let mut arguments =
        vec![start(logits.0, logits.1, "cross-entropy-grad")?, start(grad.0, grad.1, "cross-entropy-grad")?];
    arguments.extend([launch::at(&targets, 0)?, launch::at(&out, 0)?, Size(vocab as u64)]);
    launch(device, "cross_entropy_grad", dtype, Grid::blocks(rows, 1, 512)?, &arguments)?;
    Ok((out, logits.1.shape().clone()))
}

// Training.

pub fn average(mean: Given<'_>, grad: Given<'_>, keep: f64, scale: f64, square: bool) -> Result<()> {
    in_place("average", mean, &[grad], &[Number(keep), Number(scale), Word(square.into())])
}

pub fn adam_step(parameter: Given<'_>, mean: Given<'_>, square: Given<'_>, step: super::AdamStep) -> Result<()> {
    let super::AdamStep { step, correction, eps, decay } = step;
    in_place("adam_step", parameter, &[mean, square], &[Number(step), Number(correction), Number(eps), Number(decay)])
}

// Edits and checks.

/// A copy with a box in it replaced.
pub fn write_region(
    value: Given<'_>,
    part: Given<'_>,
    region: &[std::ops::Range<usize>],
) -> Result<(CudaStorage, Shape)> {
    /// Dimensions that the kernel counts through.
    const MOST: usize = 5;
    if region.len() > MOST {
        candle_core::bail!("write-region: {} dimensions, at most {MOST} can be", region.len())
    }
    let out = copy(value)?;
    let whole = Layout::contiguous(value.1.shape());
    let strides = whole.stride();
    let missing = MOST - region.len();
    let begin: usize = region.iter().zip(strides).map(|(range, stride)| range.start * stride).sum();
    let sizes = std::iter::repeat_n(1, missing).chain(region.iter().map(|range| range.len()));
    let steps = std::iter::repeat_n(0, missing).chain(strides.iter().copied());
    let n = part.1.shape().elem_count() as u64;
    let mut arguments = vec![launch::at(&out, 0)?, start(part.0, part.1, "write-region")?];
    arguments.extend(sizes.chain(steps).map(|size| Size(size as u64)));
    arguments.extend([Size(begin as u64), Size(n)]);
    if n > 0 {
        launch(value.0.device(), "write_box", value.0.dtype(), Grid::elements(n), &arguments)?;
    }
    Ok((out, value.1.shape().clone()))
}

/// Whether no element is NaN or infinite; waits for the device.
pub fn all_finite(x: Given<'_>) -> Result<bool> {
    let (n, device) = (x.1.shape().elem_count() as u64, x.0.device());
    let flag = words(device, &[0])?;
    let arguments = [start(x.0, x.1, "all-finite")?, launch::at(&flag, 0)?, Size(n)];
    launch(device, "not_finite", x.0.dtype(), Grid::elements(n), &arguments)?;
    Ok(device.clone_dtoh(flag.as_cuda_slice::<u32>()?)? == [0])
}

/// Σ x², in f64; waits for the device.
pub fn sum_of_squares(x: Given<'_>) -> Result<f64> {
    let (n, device) = (x.1.shape().elem_count() as u64, x.0.device());
    let grid = Grid::elements(n);
    let parts = empty(device, DType::F64, grid.count())?;
    let arguments = [start(x.0, x.1, "sum-of-squares")?, launch::at(&parts, 0)?, Size(n)];
    launch(device, "squares", x.0.dtype(), grid, &arguments)?;
    Ok(device.clone_dtoh(parts.as_cuda_slice::<f64>()?)?.into_iter().sum())
}

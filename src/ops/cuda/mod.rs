//! The operations on a GPU: what `cuda_fwd` of each does. Matrix products are cuBLAS's; the rest are kernels of
//! our own (`kernels.cu`), compiled to PTX when the workbench is built and loaded once per device.
//!
//! f16 and bf16 stay what they are in memory; every kernel computes in f32. Products are rounded to 16 bits before a bias is added,
//! and cuBLAS may add up parts of them in 16 bits: half precision is not better than half precision here.

mod attention;
mod launch;
mod product;
mod whole;

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};
use launch::Argument::{Number, Size, Word};
use launch::{Argument, Grid, empty, launch, start, words};
use product::{Matrices, multiply};

use super::gelu::Gelu;
use super::linear::{matrix, with_last};

pub use attention::{attend, attend_t, masked, scores, softmax, softmax_grad};
pub use whole::{whole, whole_grad};

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
    alike(name, given)?;
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
    alike(name, given)?;
    if given.iter().any(|(_, other)| other.shape().elem_count() != n) {
        candle_core::bail!("{name}: tensors of different sizes")
    }
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

/// Refuses tensors of different types, which a kernel would read as what they are not.
fn alike(name: &str, given: &[Given<'_>]) -> Result<()> {
    match given.iter().find(|(x, _)| x.dtype() != given[0].0.dtype()) {
        Some((other, _)) => candle_core::bail!("{name}: {:?} and {:?}", given[0].0.dtype(), other.dtype()),
        None => Ok(()),
    }
}

/// A kernel that changes a tensor in place, a thread per element.
fn in_place(name: &'static str, (x, layout): Given<'_>, others: &[Given<'_>], arguments: &[Argument]) -> Result<()> {
    let n = layout.shape().elem_count();
    alike(name, &[&[(x, layout)], others].concat())?;
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

/// The type that sums of values of a type are kept in.
fn summed(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
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
    by_rows("affine", &[x, gain, bias], matrix(x.1).1, |d| vec![Size(d as u64)], x.1.shape().clone())
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

/// a·b of two matrices: `[m, k]`, `[k, n]` → `[m, n]`.
fn product(left: Matrices<'_>, right: Matrices<'_>) -> Result<CudaStorage> {
    let (device, size) = (left.storage.device(), (left.size.0, right.size.1));
    let out = empty(device, left.storage.dtype(), size.0 * size.1)?;
    multiply(Matrices::one(&out, 0, size), left, right, (1, 1), 1.0, false)?;
    Ok(out)
}

/// x·W + b, and GELU of that.
pub fn linear(x: Given<'_>, weight: Given<'_>, bias: Given<'_>, then: Option<Gelu>) -> Result<(CudaStorage, Shape)> {
    let n = weight.1.shape().dims2()?.1;
    let out = product(Matrices::of(x, "linear")?, Matrices::of(weight, "linear")?)?;
    let shape = with_last(x.1, n);
    let (rows, mut arguments) = (shape.elem_count() / n.max(1), vec![launch::at(&out, 0)?]);
    arguments.extend([start(bias.0, bias.1, "linear")?, Size(n as u64)]);
    arguments.extend(then.map(|form| Word((form == Gelu::Erf).into())));
    alike("linear", &[x, weight, bias])?;
    if rows * n > 0 {
        let name = if then.is_some() { "bias_gelu" } else { "add_bias" };
        launch(out.device(), name, out.dtype(), Grid::rows(rows, n)?, &arguments)?;
    }
    Ok((out, shape))
}

/// x·Wᵀ.
pub fn linear_t(x: Given<'_>, weight: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let n = weight.1.shape().dims2()?.0;
    Ok((product(Matrices::of(x, "linear-t")?, Matrices::of(weight, "linear-t")?.turned())?, with_last(x.1, n)))
}

/// x·Wᵀ of two matrices with some columns more than it has, such that every row begins at a multiple of 128 bytes. Nothing is written to those.
pub fn logits(x: Given<'_>, weight: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let (left, right) = (Matrices::of(x, "logits")?, Matrices::of(weight, "logits")?.turned());
    let (device, dtype, size) = (x.0.device(), x.0.dtype(), (left.size.0, right.size.1));
    let apart = size.1.next_multiple_of(128 / dtype.size_in_bytes());
    let out = empty(device, dtype, size.0 * apart)?;
    let to = Matrices { stride: (apart, 1), ..Matrices::one(&out, 0, size) };
    multiply(to, left, right, (1, 1), 1.0, false)?;
    Ok((out, Shape::from((size.0, apart))))
}

/// a·b, or aᵀ·b, of shape `[m, n]`.
pub fn matrices(a: Given<'_>, transposed: bool, b: Given<'_>, shape: (usize, usize)) -> Result<(CudaStorage, Shape)> {
    Ok((product(left(a, transposed)?, Matrices::of(b, "product")?)?, Shape::from(shape)))
}

fn left(a: Given<'_>, transposed: bool) -> Result<Matrices<'_>> {
    let left = Matrices::of(a, "product")?;
    Ok(if transposed { left.turned() } else { left })
}

/// Adds that product to a tensor, of f32 where factors have 16 bits.
pub fn add_matrices(sum: Given<'_>, a: Given<'_>, transposed: bool, b: Given<'_>) -> Result<()> {
    multiply(Matrices::of(sum, "add-product")?, left(a, transposed)?, Matrices::of(b, "product")?, (1, 1), 1.0, true)
}

/// The sum of all rows.
pub fn sum_rows(x: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let (d, device, dtype) = (matrix(x.1).1, x.0.device(), x.0.dtype());
    let (out, layout) = (empty(device, summed(dtype), d)?, Layout::contiguous(d));
    row_sums((&out, &layout), x, None, false)?;
    let out = if out.dtype() == dtype { out } else { out.to_dtype(&layout, dtype)? };
    Ok((out, Shape::from(d)))
}

/// Adds the sum of all rows to a vector, or that of the products of two tensors' rows.
pub fn add_row_sums(sum: Given<'_>, x: Given<'_>, y: Option<Given<'_>>) -> Result<()> {
    row_sums(sum, x, y, true)
}

fn row_sums(sum: Given<'_>, x: Given<'_>, y: Option<Given<'_>>, add: bool) -> Result<()> {
    /// Rows that a block adds up.
    const TALL: usize = 1024;
    let ((rows, d), device, dtype) = (matrix(x.1), x.0.device(), x.0.dtype());
    if sum.0.dtype() != summed(dtype) || y.is_some_and(|y| y.0.dtype() != dtype || y.1.shape() != x.1.shape()) {
        candle_core::bail!("rows of {dtype:?} {:?} into {:?}", x.1.shape(), sum.0.dtype())
    }
    let count = rows.div_ceil(TALL).max(1);
    let parts = empty(device, summed(dtype), count * d)?;
    let middle = launch::at(&parts, 0)?;
    let y = y.map_or(Ok(Argument::At(0)), |(y, layout)| start(y, layout, "sum-rows"))?;
    let arguments = [start(x.0, x.1, "sum-rows")?, y, middle, Size(rows as u64), Size(d as u64), Size(TALL as u64)];
    launch(device, "sum_rows_parts", dtype, Grid::blocks(d.div_ceil(32), count, 256)?, &arguments)?;
    let to = start(sum.0, sum.1, "sum-rows")?;
    let arguments = [middle, to, Size(count as u64), Size(d as u64), Word(add.into())];
    launch(device, "sum_rows_whole", dtype, Grid::elements(d as u64), &arguments)
}

// Tokens.

/// Adds row i to row `ids[i]` of a table, in the order of i.
pub fn add_rows(table: Given<'_>, x: Given<'_>, ids: &[u32]) -> Result<()> {
    let (_, d) = table.1.shape().dims2()?;
    if table.0.dtype() != summed(x.0.dtype()) {
        candle_core::bail!("add-rows: {:?} into {:?}", x.0.dtype(), table.0.dtype())
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

/// Rows of logits, what each loses, and where: as both kernels of cross-entropy are told.
fn cross_entropies(name: &'static str, (logits, layout): Given<'_>, losses: Given<'_>, targets: &[u32]) -> Result<()> {
    let rows = Matrices::of((logits, layout), name)?;
    let ((count, vocab), (apart, _), device) = (rows.size, rows.stride, logits.device());
    if losses.0.dtype() != summed(logits.dtype()) {
        candle_core::bail!("{name}: {:?} for losses of logits of {:?}", losses.0.dtype(), logits.dtype())
    }
    if count == 0 {
        return Ok(());
    }
    let targets = words(device, targets)?;
    let arguments = [
        launch::at(logits, rows.start)?,
        start(losses.0, losses.1, name)?,
        launch::at(&targets, 0)?,
        Size(vocab as u64),
        Size(apart as u64),
    ];
    launch(device, name, logits.dtype(), Grid::blocks(count, 1, 512)?, &arguments)
}

/// What every row of logits loses; rows may be any distance apart.
pub fn cross_entropy(logits: Given<'_>, targets: &[u32]) -> Result<(CudaStorage, Shape)> {
    let (rows, _) = logits.1.shape().dims2()?;
    let losses = empty(logits.0.device(), summed(logits.0.dtype()), rows)?;
    cross_entropies("cross_entropy", logits, (&losses, &Layout::contiguous(rows)), targets)?;
    Ok((losses, Shape::from(rows)))
}

/// Turns logits into their gradients, for the gradients of their losses.
pub fn cross_entropy_grad(logits: Given<'_>, grad: Given<'_>, targets: &[u32]) -> Result<()> {
    cross_entropies("cross_entropy_grad", logits, grad, targets)
}

// Training.

pub fn adamw(p: Given<'_>, m: Given<'_>, v: Given<'_>, grad: Given<'_>, adam: super::AdamStep) -> Result<()> {
    let super::AdamStep { scale, mean, square, step, correction, eps, decay } = adam;
    let numbers = [scale, mean, square, step, correction, eps, decay].map(Number);
    in_place("adamw", p, &[m, v, grad], &numbers)
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

/// Σ x² of all of some tensors, in f64; waits for the device.
pub fn sum_of_squares(all: &[Given<'_>]) -> Result<f64> {
    /// Blocks of a tensor at most: each leaves a part of the sum to the host.
    const MOST: usize = 1024;
    let Some((first, _)) = all.first() else { return Ok(0.0) };
    let device = first.device();
    let grids = all.iter().map(|(_, layout)| {
        let n = layout.shape().elem_count();
        Grid::blocks(n.div_ceil(1024).clamp(1, MOST), 1, 256)
    });
    let grids = grids.collect::<Result<Vec<_>>>()?;
    let parts = empty(device, DType::F64, grids.iter().map(Grid::count).sum())?;
    let mut begin = 0;
    for ((x, layout), grid) in all.iter().zip(grids) {
        let n = Size(layout.shape().elem_count() as u64);
        let arguments = [start(x, layout, "sum-of-squares")?, launch::at(&parts, begin)?, n];
        launch(device, "squares", x.dtype(), grid, &arguments)?;
        begin += grid.count();
    }
    Ok(device.clone_dtoh(parts.as_cuda_slice::<f64>()?)?.into_iter().sum())
}

//! Causal attention: products of all heads at once, and the mask.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape};

use super::launch::Argument::{At, Number, Size};
use super::launch::{self, Argument, Grid, empty, launch, start, words};
use super::{Given, copy};
use crate::ops::Causal;

/// `[prompt, pos, head, dim]` whose last dimension is contiguous, as `[prompt, head, pos, dim]`.
fn pack((x, layout): Given<'_>) -> Result<CudaStorage> {
    let (_, pos, heads, dim) = layout.shape().dims4()?;
    let [s0, s1, s2, 1] = layout.stride()[..] else {
        return Err(candle_core::Error::RequiresContiguous { op: "pack" }.bt());
    };
    let n = layout.shape().elem_count();
    let out = empty(x.device(), x.dtype(), n)?;
    let mut arguments = vec![launch::at(x, layout.start_offset())?, launch::at(&out, 0)?];
    arguments.extend([pos, heads, dim, s0, s1, s2, n].map(|size| Size(size as u64)));
    if n > 0 {
        launch(x.device(), "pack", x.dtype(), Grid::elements(n as u64), &arguments)?;
    }
    Ok(out)
}

/// `[prompt, head, pos, dim]` as `[prompt, pos, head, dim]`.
fn unpack(x: &CudaStorage, (prompts, pos, heads, dim): (usize, usize, usize, usize)) -> Result<(CudaStorage, Shape)> {
    let n = prompts * pos * heads * dim;
    let out = empty(x.device(), x.dtype(), n)?;
    let mut arguments = vec![launch::at(x, 0)?, launch::at(&out, 0)?];
    arguments.extend([pos, heads, dim, n].map(|size| Size(size as u64)));
    if n > 0 {
        launch(x.device(), "unpack", x.dtype(), Grid::elements(n as u64), &arguments)?;
    }
    Ok((out, Shape::from((prompts, pos, heads, dim))))
}

/// A batch of matrices, contiguous or each transposed.
fn batch(count: usize, rows: usize, columns: usize, turned: bool, offset: usize) -> Layout {
    let stride = if turned { vec![rows * columns, 1, rows] } else { vec![rows * columns, columns, 1] };
    Layout::new(Shape::from((count, rows, columns)), stride, offset)
}

/// Where the holes of a mask are on the device; they have to outlive the launch.
fn holes(mask: &Causal, like: &CudaStorage) -> Result<Option<CudaStorage>> {
    let ends = mask.holes().map(|holes| holes.iter().flat_map(|hole| [hole.start as u32, hole.end as u32]).collect());
    ends.map(|ends: Vec<u32>| words(like.device(), &ends)).transpose()
}

fn place(holes: Option<&CudaStorage>) -> Result<Argument> {
    holes.map_or(Ok(At(0)), |holes| launch::at(holes, 0))
}

/// Writes `value` wherever a map of attention is hidden.
fn hide(
    map: &CudaStorage,
    (prompts, heads, queries, keys): (usize, usize, usize, usize),
    value: f64,
    mask: &Causal,
) -> Result<()> {
    let n = prompts * heads * queries * keys;
    let holes = holes(mask, map)?;
    let mut arguments = vec![launch::at(map, 0)?];
    arguments.extend([heads, queries, keys, mask.offset()].map(|size| Size(size as u64)));
    arguments.extend([place(holes.as_ref())?, Number(value), Size(n as u64)]);
    match n {
        0 => Ok(()),
        _ => launch(map.device(), "hide", map.dtype(), Grid::elements(n as u64), &arguments),
    }
}

/// scale · q·kᵀ per head with `hidden` where the mask hides a key.
pub fn scores(q: Given<'_>, k: Given<'_>, (scale, hidden): (f64, f64), mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let ((prompts, queries, heads, dim), (_, keys, _, _)) = (q.1.shape().dims4()?, k.1.shape().dims4()?);
    let (left, right) = (pack(q)?, pack(k)?);
    let count = prompts * heads;
    let shapes = (batch(count, queries, dim, false, 0), batch(count, dim, keys, true, 0));
    // Before the product, whose sums might leave the range of f16.
    let n = (count * queries * dim) as u64;
    if scale != 1.0 && n > 0 {
        let arguments = [launch::at(&left, 0)?, Number(scale), Size(n)];
        launch(left.device(), "scale_by", left.dtype(), Grid::elements(n), &arguments)?;
    }
    let out = left.matmul(&right, (count, queries, keys, dim), &shapes.0, &shapes.1)?;
    let shape = (prompts, heads, queries, keys);
    hide(&out, shape, hidden, mask)?;
    Ok((out, Shape::from(shape)))
}

/// Softmax over the keys that the mask shows.
pub fn softmax(x: Given<'_>, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let (prompts, heads, queries, keys) = x.1.shape().dims4()?;
    let rows = prompts * heads * queries;
    let (out, holes) = (empty(x.0.device(), x.0.dtype(), rows * keys)?, holes(mask, x.0)?);
    let mut arguments = vec![start(x.0, x.1, "causal-softmax")?, launch::at(&out, 0)?];
    arguments.extend([heads, queries, keys, mask.offset()].map(|size| Size(size as u64)));
    arguments.push(place(holes.as_ref())?);
    if rows * keys > 0 {
        launch(x.0.device(), "causal_softmax", x.0.dtype(), Grid::rows(rows, keys)?, &arguments)?;
    }
    Ok((out, x.1.shape().clone()))
}

/// p·(g − Σ p·g) over the keys that are seen.
pub fn softmax_grad(p: Given<'_>, grad: Given<'_>, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let (prompts, heads, queries, keys) = p.1.shape().dims4()?;
    let rows = prompts * heads * queries;
    let out = empty(p.0.device(), p.0.dtype(), rows * keys)?;
    let mut arguments = vec![start(p.0, p.1, "causal-softmax-grad")?, start(grad.0, grad.1, "causal-softmax-grad")?];
    arguments.push(launch::at(&out, 0)?);
    arguments.extend([queries, keys, mask.offset()].map(|size| Size(size as u64)));
    if rows * keys > 0 {
        launch(p.0.device(), "causal_softmax_grad", p.0.dtype(), Grid::rows(rows, keys)?, &arguments)?;
    }
    Ok((out, p.1.shape().clone()))
}

/// Σₖ weights[.., query, key] · x[.., key, ..].
pub fn attend(weights: Given<'_>, x: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let ((prompts, heads, queries, keys), (_, _, _, dim)) = (weights.1.shape().dims4()?, x.1.shape().dims4()?);
    let (count, packed) = (prompts * heads, pack(x)?);
    let left = batch(count, queries, keys, false, weights.1.start_offset());
    let right = batch(count, keys, dim, false, 0);
    let out = weights.0.matmul(&packed, (count, queries, dim, keys), &left, &right)?;
    unpack(&out, (prompts, queries, heads, dim))
}

/// Σ_query weights[.., query, key] · x[.., query, ..].
pub fn attend_t(weights: Given<'_>, x: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let ((prompts, heads, queries, keys), (_, _, _, dim)) = (weights.1.shape().dims4()?, x.1.shape().dims4()?);
    let (count, packed) = (prompts * heads, pack(x)?);
    let left = batch(count, keys, queries, true, weights.1.start_offset());
    let right = batch(count, queries, dim, false, 0);
    let out = weights.0.matmul(&packed, (count, keys, dim, queries), &left, &right)?;
    unpack(&out, (prompts, keys, heads, dim))
}

/// A copy with `hidden` wherever the mask hides a key.
pub fn masked(map: Given<'_>, hidden: f64, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let out = copy(map)?;
    hide(&out, map.1.shape().dims4()?, hidden, mask)?;
    Ok((out, map.1.shape().clone()))
}

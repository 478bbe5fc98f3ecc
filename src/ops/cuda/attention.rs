//! Causal attention: products of all heads at once, and the mask.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape};

use super::launch::Argument::{At, Number, Size};
use super::launch::{self, Argument, Grid, empty, launch, start, words};
use super::product::{Matrices, multiply};
use super::{Given, copy};
use crate::ops::Causal;

/// Up to so many prompts, every prompt's heads are a product of their own; more of them are packed first, and are one product.
const FEW: usize = 4;

/// A tensor `[prompt, pos, head, dim]` whose last dimension is contiguous, and whether it was packed, head by head.
enum Heads<'a> {
    There(Given<'a>),
    Packed(CudaStorage, (usize, usize, usize, usize)),
}

impl<'a> Heads<'a> {
    fn of((x, layout): Given<'a>) -> Result<Self> {
        let shape @ (prompts, pos, heads, dim) = layout.shape().dims4()?;
        let [s0, s1, s2, 1] = layout.stride()[..] else {
            return Err(candle_core::Error::RequiresContiguous { op: "heads" }.bt());
        };
        if prompts <= FEW {
            return Ok(Self::There((x, layout)));
        }
        let n = layout.shape().elem_count();
        let out = empty(x.device(), x.dtype(), n)?;
        let mut arguments = vec![launch::at(x, layout.start_offset())?, launch::at(&out, 0)?];
        arguments.extend([pos, heads, dim, s0, s1, s2].map(|size| Size(size as u64)));
        if n > 0 {
            launch(x.device(), "pack", x.dtype(), Grid::rows(prompts * pos, heads * dim)?, &arguments)?;
        }
        Ok(Self::Packed(out, shape))
    }

    /// The heads as matrices, `[pos, dim]`.
    fn matrices(&self) -> Result<Matrices<'_>> {
        Ok(match self {
            Self::There((storage, layout)) => {
                let ((_, pos, _, dim), stride) = (layout.shape().dims4()?, layout.stride());
                let (apart, stride) = ((stride[0], stride[2]), (stride[1], 1));
                Matrices { storage, start: layout.start_offset(), size: (pos, dim), stride, apart }
            }
            Self::Packed(storage, (_, pos, heads, dim)) => {
                let (size, stride) = ((*pos, *dim), (*dim, 1));
                Matrices { storage, start: 0, size, stride, apart: (heads * pos * dim, pos * dim) }
            }
        })
    }
}

/// Queries, or keys, whose products are computed together: with what none of them sees or is seen by left out, long texts take about half of
/// the time.
const BLOCK: usize = 256;

fn blocks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(BLOCK).map(move |start| start..n.min(start + BLOCK))
}

/// `map · x`, or its transpose `· x`, for a contiguous `[prompt, head, query, key]` that is 0 where `mask` hides a key and
/// `[prompt, pos, head, dim]`: like x.
fn products(map: Given<'_>, turned: bool, x: Given<'_>, factor: f64, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let ((prompts, heads, queries, keys), dim) = (map.1.shape().dims4()?, x.1.shape().dims4()?.3);
    let (left, x) = (maps(map.0, map.1.start_offset(), map.1)?, Heads::of(x)?);
    let pos = if turned { keys } else { queries };
    let n = prompts * pos * heads * dim;
    let out = empty(map.0.device(), map.0.dtype(), n)?;
    // [prompt, pos, head, dim], or where x is packed [prompt, head, pos, dim].
    let packed = matches!(x, Heads::Packed(..));
    let (stride, apart) = if packed { ((dim, 1), pos * dim) } else { ((heads * dim, 1), dim) };
    let to = Matrices { storage: &out, start: 0, size: (pos, dim), stride, apart: (heads * pos * dim, apart) };
    let right = x.matrices()?;
    for block in blocks(pos) {
        // A query sees no key behind its own position, and a key is seen by no query before it.
        let (left, seen) = if turned {
            let seen = block.start.saturating_sub(mask.offset()).min(queries)..queries;
            (left.columns(block.clone()).rows(seen.clone()).turned(), seen)
        } else {
            let seen = 0..keys.min(block.end + mask.offset());
            (left.rows(block.clone()).columns(seen.clone()), seen)
        };
        multiply(to.rows(block), left, right.rows(seen), (prompts, heads), factor, false)?;
    }
    let shape = Shape::from((prompts, pos, heads, dim));
    if !packed {
        return Ok((out, shape));
    }
    let unpacked = empty(map.0.device(), map.0.dtype(), n)?;
    let mut arguments = vec![launch::at(&out, 0)?, launch::at(&unpacked, 0)?];
    arguments.extend([pos, heads, dim].map(|size| Size(size as u64)));
    if n > 0 {
        launch(out.device(), "unpack", out.dtype(), Grid::rows(prompts * pos, heads * dim)?, &arguments)?;
    }
    Ok((unpacked, shape))
}

/// A contiguous `[prompt, head, query, key]` as matrices.
fn maps<'a>(storage: &'a CudaStorage, start: usize, layout: &Layout) -> Result<Matrices<'a>> {
    let (_, heads, queries, keys) = layout.shape().dims4()?;
    let apart = (heads * queries * keys, queries * keys);
    Ok(Matrices { storage, start, size: (queries, keys), stride: (keys, 1), apart })
}

/// Where the holes of a mask are on the device; they have to outlive the launch.
pub(super) fn holes(mask: &Causal, like: &CudaStorage) -> Result<Option<CudaStorage>> {
    let ends = mask.holes().map(|holes| holes.iter().flat_map(|hole| [hole.start as u32, hole.end as u32]).collect());
    ends.map(|ends: Vec<u32>| words(like.device(), &ends)).transpose()
}

pub(super) fn place(holes: Option<&CudaStorage>) -> Result<Argument> {
    holes.map_or(Ok(At(0)), |holes| launch::at(holes, 0))
}

/// Writes `value` wherever a map of attention is hidden.
fn hide(
    map: &CudaStorage,
    (prompts, heads, queries, keys): (usize, usize, usize, usize),
    value: f64,
    mask: &Causal,
) -> Result<()> {
    let rows = prompts * heads * queries;
    let holes = holes(mask, map)?;
    let mut arguments = vec![launch::at(map, 0)?];
    arguments.extend([heads, queries, keys, mask.offset()].map(|size| Size(size as u64)));
    arguments.extend([place(holes.as_ref())?, Number(value)]);
    match rows * keys {
        0 => Ok(()),
        _ => launch(map.device(), "hide", map.dtype(), Grid::rows(rows, keys)?, &arguments),
    }
}

/// scale · q·kᵀ per head, with `hidden` where the mask hides a key, if it is given.
pub fn scores(
    q: Given<'_>,
    k: Given<'_>,
    (scale, hidden): (f64, Option<f64>),
    mask: &Causal,
) -> Result<(CudaStorage, Shape)> {
    let ((prompts, queries, heads, _), keys) = (q.1.shape().dims4()?, k.1.shape().dims4()?.1);
    let shape = (prompts, heads, queries, keys);
    let out = empty(q.0.device(), q.0.dtype(), prompts * heads * queries * keys)?;
    let (q, k) = (Heads::of(q)?, Heads::of(k)?);
    let (to, q, k) = (maps(&out, 0, &Layout::contiguous(shape))?, q.matrices()?, k.matrices()?);
    for block in blocks(queries) {
        let seen = 0..keys.min(block.end + mask.offset());
        let to = to.rows(block.clone()).columns(seen.clone());
        multiply(to, q.rows(block), k.rows(seen).turned(), (prompts, heads), scale, false)?;
    }
    if let Some(hidden) = hidden {
        hide(&out, shape, hidden, mask)?;
    }
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

/// factor · Σₖ weights[.., query, key] · x[.., key, ..].
pub fn attend(weights: Given<'_>, x: Given<'_>, factor: f64, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    products(weights, false, x, factor, mask)
}

/// factor · Σ_query weights[.., query, key] · x[.., query, ..].
pub fn attend_t(weights: Given<'_>, x: Given<'_>, factor: f64, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    products(weights, true, x, factor, mask)
}

/// A copy with `hidden` wherever the mask hides a key.
pub fn masked(map: Given<'_>, hidden: f64, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let out = copy(map)?;
    hide(&out, map.1.shape().dims4()?, hidden, mask)?;
    Ok((out, map.1.shape().clone()))
}

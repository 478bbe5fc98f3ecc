//! Attention as one kernel, and its gradients as two, for 16 bits.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Result, Shape};

use super::Given;
use super::attention::{holes, place};
use super::launch::Argument::{Number, Size};
use super::launch::{self, Argument, Grid, WHOLE, empty, start};
use crate::ops::Causal;

/// Queries of a block, and keys.
const BLOCK: usize = 64;

/// What all kernels of attention as a whole are told first.
fn given(
    q: Given<'_>,
    k: Given<'_>,
    v: Given<'_>,
    scale: f64,
    holes: Argument,
    mask: &Causal,
) -> Result<Vec<Argument>> {
    let ((_, queries, heads, _), (_, keys, _, _)) = (q.1.shape().dims4()?, k.1.shape().dims4()?);
    let mut all =
        [q, k, v].iter().map(|(x, layout)| launch::at(x, layout.start_offset())).collect::<Result<Vec<_>>>()?;
    all.extend([heads, queries, keys, mask.offset()].map(|size| Size(size as u64)));
    for (_, layout) in [q, k, v] {
        all.extend(layout.stride()[..3].iter().map(|stride| Size(*stride as u64)));
    }
    all.extend([holes, Number(scale)]);
    Ok(all)
}

/// All three steps at once, rounded as they are, for tensors whose rows are aligned.
pub fn whole(q: Given<'_>, k: Given<'_>, v: Given<'_>, scale: f64, mask: &Causal) -> Result<(CudaStorage, Shape)> {
    let (prompts, queries, heads, dim) = q.1.shape().dims4()?;
    let out = empty(q.0.device(), q.0.dtype(), prompts * queries * heads * dim)?;
    let holes = holes(mask, q.0)?;
    let mut arguments = given(q, k, v, scale, place(holes.as_ref())?, mask)?;
    arguments.push(launch::at(&out, 0)?);
    if prompts > 0 {
        let grid = Grid::blocks(prompts * heads, queries.div_ceil(BLOCK), 128)?;
        WHOLE.launch(q.0.device(), &format!("attention_{dim}"), q.0.dtype(), grid, &arguments)?;
    }
    Ok((out, q.1.shape().clone()))
}

/// The gradients of that, for as many queries as keys: `[prompt, pos, 3, head, dim]`. The result and its gradient are contiguous.
pub fn whole_grad(
    [q, k, v]: [Given<'_>; 3],
    out: Given<'_>,
    grad: Given<'_>,
    scale: f64,
    mask: &Causal,
) -> Result<(CudaStorage, Shape)> {
    let (prompts, pos, heads, dim) = q.1.shape().dims4()?;
    let (device, dtype) = (q.0.device(), q.0.dtype());
    let to = empty(device, dtype, 3 * prompts * pos * heads * dim)?;
    let (known, holes) = (empty(device, DType::F32, 3 * prompts * heads * pos)?, holes(mask, q.0)?);
    let (grad, into, rows) = (start(grad.0, grad.1, "attention")?, launch::at(&to, 0)?, launch::at(&known, 0)?);
    if prompts > 0 {
        let grid = Grid::blocks(prompts * heads, pos.div_ceil(BLOCK), 128)?;
        let given = given(q, k, v, scale, place(holes.as_ref())?, mask)?;
        let mut arguments = given.clone();
        arguments.extend([start(out.0, out.1, "attention")?, grad, into, rows]);
        WHOLE.launch(device, &format!("attention_grad_q_{dim}"), dtype, grid, &arguments)?;
        let mut arguments = given;
        arguments.extend([grad, into, rows]);
        WHOLE.launch(device, &format!("attention_grad_kv_{dim}"), dtype, grid, &arguments)?;
    }
    Ok((to, Shape::from((prompts, pos, 3, heads, dim))))
}

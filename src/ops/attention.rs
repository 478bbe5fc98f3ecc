//! Causal attention in the three steps that have sites: scores, softmax, weighted values.
//!
//! Queries, keys and values are `[prompt, pos, head, dim]` and may be views of one fused projection; attention maps
//! are `[prompt, head, query, key]`. What the mask hides is never computed, read or differentiated.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::gemm::{Threads, View, gemm};
use super::real::{Real, for_real, max_of, slice, sum_of, sum_of2, vectorised};
use super::{in_real, on_gpu, rows};

/// Which keys each query may look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Causal {
    /// Keys that come before the first query: the length of a key–value cache.
    offset: usize,
    /// One range of keys per prompt that hold padding instead of tokens.
    holes: Option<Arc<[Range<usize>]>>,
}

impl Causal {
    /// Query i sees keys 0 ..= i + `offset`.
    pub fn new(offset: usize) -> Self {
        Self { offset, holes: None }
    }

    /// Also hides a range of keys per prompt.
    pub fn with_holes(offset: usize, holes: Vec<Range<usize>>) -> Self {
        let holes = if holes.iter().all(Range::is_empty) { None } else { Some(holes.into()) };
        Self { offset, holes }
    }

    /// The range of hidden keys of each prompt, if any is hidden.
    pub fn holes(&self) -> Option<&[Range<usize>]> {
        self.holes.as_deref()
    }

    /// Keys that come before the first query.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether `query` of `prompt` may look at `key`.
    pub fn sees(&self, prompt: usize, query: usize, key: usize) -> bool {
        key <= query + self.offset && !self.hole(prompt).contains(&key)
    }

    /// How many leading keys `query` reaches, holes included.
    fn reach(&self, query: usize, keys: usize) -> usize {
        (query + self.offset + 1).min(keys)
    }

    fn hole(&self, prompt: usize) -> Range<usize> {
        self.holes.as_ref().and_then(|holes| holes.get(prompt).cloned()).unwrap_or(0..0)
    }

    /// Writes `value` wherever a row of keys is hidden.
    fn hide<T: Copy>(&self, prompt: usize, query: usize, row: &mut [T], value: T) {
        let reach = self.reach(query, row.len());
        row[reach..].fill(value);
        let hole = self.hole(prompt);
        if !hole.is_empty() {
            row[hole.start.min(reach)..hole.end.min(reach)].fill(value);
        }
    }
}

/// All three steps, where nobody looks between them: → like q, `[prompt, pos, head, dim]`.
///
/// With the same bits, but for 16 bits on a GPU, where the maps are never in memory: there sums over keys are added up in another
/// order, and about one value in a hundred is rounded to its other neighbour.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &Causal) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() && super::whole::fits(q, k, v) {
        return super::whole::attention(q, k, v, scale, mask);
    }
    let scores = attention_scores(q, k, scale, mask, false)?;
    attend(&causal_softmax(&scores, mask)?, v, mask)
}

/// Whether [`attention()`] has no maps at all where nobody looks at them, for as many queries as keys of such a type.
pub fn attention_hides_maps(dtype: DType, device: &Device, queries: usize, dim: usize) -> bool {
    #[cfg(feature = "cuda")]
    return device.is_cuda() && super::whole::has_kernels(dtype, queries, dim);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (dtype, device, queries, dim);
        false
    }
}

/// scale · q·kᵀ per head with −∞ where the mask hides a key: → `[prompt, head, query, key]`.
///
/// Unless they are `looked_at`, only [`causal_softmax`] may read them: what is hidden may then be anything, and its gradient
/// must be 0, as that leaves it.
pub fn attention_scores(q: &Tensor, k: &Tensor, scale: f64, mask: &Causal, looked_at: bool) -> Result<Tensor> {
    let k = k.to_dtype(super::real_dtype(q))?;
    let hidden = looked_at.then_some(f64::NEG_INFINITY);
    in_real(q, |q| dense(q)?.apply_op2(&dense(&k)?, Scores { scale, hidden, mask: mask.clone() }))
}

/// Softmax over the keys that the mask shows; 0 elsewhere, and 0 in a row whose scores are all −∞.
pub fn causal_softmax(scores: &Tensor, mask: &Causal) -> Result<Tensor> {
    in_real(scores, |scores| scores.contiguous()?.apply_op1(Softmax { mask: mask.clone() }))
}

/// Σₖ weights[.., query, key] · x[.., key, ..]: `[prompt, head, query, key]`, `[prompt, pos, head, dim]` → like x.
///
/// `weights` must be 0 where the mask hides a key, as [`causal_softmax`] and [`masked`] leave them.
pub fn attend(weights: &Tensor, x: &Tensor, mask: &Causal) -> Result<Tensor> {
    let x = x.to_dtype(super::real_dtype(weights))?;
    in_real(weights, |weights| weights.contiguous()?.apply_op2(&dense(&x)?, Attend { factor: 1.0, mask: mask.clone() }))
}

/// An attention map with `hidden` wherever the mask hides a key.
pub fn masked(map: &Tensor, hidden: f64, mask: &Causal) -> Result<Tensor> {
    in_real(map, |map| map.contiguous()?.apply_op1(Masked { hidden, mask: mask.clone() }))
}

/// A tensor whose last dimension is contiguous: itself, if it is.
pub(super) fn dense(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

pub(super) struct Scores {
    pub(super) scale: f64,
    /// What stands where a key is hidden; without it anything may.
    pub(super) hidden: Option<f64>,
    pub(super) mask: Causal,
}
struct Softmax {
    mask: Causal,
}
pub(super) struct SoftmaxGrad {
    pub(super) mask: Causal,
}
pub(super) struct Attend {
    pub(super) factor: f64,
    pub(super) mask: Causal,
}
pub(super) struct AttendT {
    pub(super) factor: f64,
    pub(super) mask: Causal,
}
struct Masked {
    hidden: f64,
    mask: Causal,
}

/// Queries handled at once: a block of a causal map computes only the keys that its last query sees.
const BLOCK: usize = 64;

/// A strided `[prompt, pos, head, dim]` tensor on the CPU.
struct Heads<'a, T> {
    data: &'a [T],
    prompts: usize,
    pos: usize,
    heads: usize,
    dim: usize,
    stride: [usize; 3],
}

impl<'a, T: Real> Heads<'a, T> {
    fn new(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<Self> {
        let (prompts, pos, heads, dim) = layout.shape().dims4()?;
        match layout.stride() {
            [a, b, c, 1] => {
                let data = &storage.as_slice::<T>()?[layout.start_offset()..];
                Ok(Self { data, prompts, pos, heads, dim, stride: [*a, *b, *c] })
            }
            _ => Err(candle_core::Error::RequiresContiguous { op }.bt()),
        }
    }

    /// Positions `range` of one head as a matrix.
    fn matrix(&self, prompt: usize, head: usize, range: Range<usize>) -> View<'a, T> {
        let start = prompt * self.stride[0] + range.start * self.stride[1] + head * self.stride[2];
        View::new(&self.data[start..], (range.len(), self.dim), (self.stride[1], 1))
    }
}

fn check(ok: bool, l1: &Layout, l2: &Layout, op: &'static str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(candle_core::Error::ShapeMismatchBinaryOp { lhs: l1.shape().clone(), rhs: l2.shape().clone(), op }.bt())
}

impl CustomOp2 for Scores {
    fn name(&self) -> &'static str {
        "attention-scores"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "attention-scores", T => {
            let (q, k) = (Heads::<T>::new(s1, l1, "attention-scores")?, Heads::<T>::new(s2, l2, "attention-scores")?);
            let fits = (q.prompts, q.heads, q.dim) == (k.prompts, k.heads, k.dim);
            check(fits && k.pos == q.pos + self.mask.offset, l1, l2, "attention-scores")?;
            let (scale, hidden) = (T::of(self.scale), self.hidden.map(T::of));
            let mut out = vec![T::zero(); q.prompts * q.heads * q.pos * k.pos];
            out.par_chunks_mut((q.pos * k.pos).max(1)).enumerate().for_each(|(i, map)| {
                let (prompt, head) = (i / q.heads, i % q.heads);
                for (block, map) in map.chunks_mut(BLOCK * k.pos).enumerate() {
                    let queries = block * BLOCK..block * BLOCK + map.len() / k.pos;
                    let reach = self.mask.reach(queries.end - 1, k.pos);
                    let a = q.matrix(prompt, head, queries.clone());
                    let b = k.matrix(prompt, head, 0..reach).transposed();
                    gemm(map, k.pos, a, b, scale, false, Threads::One);
                    if let Some(hidden) = hidden {
                        for (query, row) in queries.zip(map.chunks_mut(k.pos)) {
                            self.mask.hide(prompt, query, row, hidden);
                        }
                    }
                }
            });
            Ok((T::to_cpu_storage_owned(out), Shape::from((q.prompts, q.heads, q.pos, k.pos))))
        })
    }

    on_gpu!(self, q, k => {
        let ((b, p, h, d), (kb, kp, kh, kd)) = (q.1.shape().dims4()?, k.1.shape().dims4()?);
        check((b, h, d) == (kb, kh, kd) && kp == p + self.mask.offset, q.1, k.1, "attention-scores")?;
        cuda::scores(q, k, (self.scale, self.hidden), &self.mask)
    });

    fn bwd(&self, q: &Tensor, k: &Tensor, _scores: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = if self.hidden.is_some() { masked(grad, 0.0, &self.mask)? } else { grad.contiguous()? };
        let (factor, mask) = (self.scale, || self.mask.clone());
        let to_q = if q.track_op() { Some(grad.apply_op2_no_bwd(k, &Attend { factor, mask: mask() })?) } else { None };
        let to_k = if k.track_op() { Some(grad.apply_op2_no_bwd(q, &AttendT { factor, mask: mask() })?) } else { None };
        Ok((to_q, to_k))
    }
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "causal-softmax", T => {
            let scores = slice::<T>(storage, layout, "causal-softmax")?;
            let (_, heads, queries, keys) = layout.shape().dims4()?;
            let mut out = vec![T::zero(); scores.len()];
            rows::each_block(&mut out, keys, 4 * keys, |start, out| {
                vectorised!({
                    for (r, out) in out.chunks_exact_mut(keys).enumerate() {
                        let r = start + r;
                        let (prompt, query) = (r / (heads * queries), r % queries);
                        let reach = self.mask.reach(query, keys);
                        out[..reach].copy_from_slice(&scores[r * keys..][..reach]);
                        self.mask.hide(prompt, query, &mut out[..reach], T::neg_infinity());
                        softmax_row(&mut out[..reach]);
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    on_gpu!(self, scores => cuda::softmax(scores, &self.mask));

    fn bwd(&self, _scores: &Tensor, pattern: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(pattern.apply_op2_no_bwd(&grad, &SoftmaxGrad { mask: self.mask.clone() })?))
    }
}

#[inline(always)]
fn softmax_row<T: Real>(row: &mut [T]) {
    let max = max_of(row);
    if max == T::neg_infinity() {
        return row.fill(T::zero());
    }
    for x in row.iter_mut() {
        *x = (*x - max).fast_exp();
    }
    let total = sum_of(row, |x| x);
    for x in row.iter_mut() {
        *x /= total;
    }
}

impl CustomOp2 for SoftmaxGrad {
    fn name(&self) -> &'static str {
        "causal-softmax-grad"
    }

    /// dL/ds = p·(g − Σ p·g) over the visible keys; 0 elsewhere.
    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "causal-softmax-grad", T => {
            let pattern = slice::<T>(s1, l1, "causal-softmax-grad")?;
            let grad = slice::<T>(s2, l2, "causal-softmax-grad")?;
            let (_, _, queries, keys) = l1.shape().dims4()?;
            let mut out = vec![T::zero(); pattern.len()];
            rows::each_block(&mut out, keys, 3 * keys, |start, out| {
                vectorised!({
                    for (r, out) in out.chunks_exact_mut(keys).enumerate() {
                        let r = start + r;
                        let reach = self.mask.reach(r % queries, keys);
                        let (p, g) = (&pattern[r * keys..][..reach], &grad[r * keys..][..reach]);
                        let mean = sum_of2(p, g, |p, g| p * g);
                        for ((out, &p), &g) in out.iter_mut().zip(p).zip(g) {
                            *out = p * (g - mean);
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, p, grad => cuda::softmax_grad(p, grad, &self.mask));
}

impl CustomOp2 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "attend", T => {
            let weights = slice::<T>(s1, l1, "attend")?;
            let (prompts, heads, queries, keys) = l1.shape().dims4()?;
            let x = Heads::<T>::new(s2, l2, "attend")?;
            check((prompts, heads, keys) == (x.prompts, x.heads, x.pos), l1, l2, "attend")?;
            let (width, factor) = (heads * x.dim, T::of(self.factor));
            let mut out = vec![T::zero(); prompts * queries * width];
            blocks(&mut out, queries, width, |prompt, block, out| {
                let reach = self.mask.reach(block.end - 1, keys);
                for head in 0..heads {
                    let start = ((prompt * heads + head) * queries + block.start) * keys;
                    let w = View::new(&weights[start..], (block.len(), reach), (keys, 1));
                    let x = x.matrix(prompt, head, 0..reach);
                    gemm(&mut out[head * x.cols()..], width, w, x, factor, false, Threads::One);
                }
            });
            Ok((T::to_cpu_storage_owned(out), Shape::from((prompts, queries, heads, x.dim))))
        })
    }

    on_gpu!(self, weights, x => {
        let ((b, h, _, keys), (xb, pos, xh, _)) = (weights.1.shape().dims4()?, x.1.shape().dims4()?);
        check((b, h, keys) == (xb, xh, pos), weights.1, x.1, "attend")?;
        cuda::attend(weights, x, self.factor, &self.mask)
    });

    fn bwd(
        &self,
        weights: &Tensor,
        x: &Tensor,
        _z: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = dense(grad)?;
        let to_weights = if weights.track_op() {
            let op = Scores { scale: self.factor, hidden: Some(0.0), mask: self.mask.clone() };
            Some(grad.apply_op2_no_bwd(x, &op)?)
        } else {
            None
        };
        let to_x = if x.track_op() {
            let op = AttendT { factor: self.factor, mask: self.mask.clone() };
            Some(weights.apply_op2_no_bwd(&grad, &op)?)
        } else {
            None
        };
        Ok((to_weights, to_x))
    }
}

/// Calls `f(prompt, positions, rows)` on blocks of positions of a `[prompt, pos, width]` output.
fn blocks<T: Send>(out: &mut [T], pos: usize, width: usize, f: impl Fn(usize, Range<usize>, &mut [T]) + Sync) {
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(pos * width).enumerate().for_each(|(prompt, out)| {
        out.par_chunks_mut(BLOCK * width).enumerate().for_each(|(block, out)| {
            f(prompt, block * BLOCK..block * BLOCK + out.len() / width, out);
        });
    });
}

impl CustomOp2 for AttendT {
    fn name(&self) -> &'static str {
        "attend-t"
    }

    /// factor · Σ_query weights[.., query, key] · x[.., query, ..]: the transpose of [`Attend`].
    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(s1, "attend-t", T => {
            let weights = slice::<T>(s1, l1, "attend-t")?;
            let (prompts, heads, queries, keys) = l1.shape().dims4()?;
            let x = Heads::<T>::new(s2, l2, "attend-t")?;
            check((prompts, heads, queries) == (x.prompts, x.heads, x.pos), l1, l2, "attend-t")?;
            let (width, factor) = (heads * x.dim, T::of(self.factor));
            let mut out = vec![T::zero(); prompts * keys * width];
            blocks(&mut out, keys, width, |prompt, block, out| {
                // Queries before this one see none of the block's keys.
                let first = block.start.saturating_sub(self.mask.offset).min(queries);
                for head in 0..heads {
                    let start = ((prompt * heads + head) * queries + first) * keys + block.start;
                    if first == queries {
                        continue;
                    }
                    let w = View::new(&weights[start..], (queries - first, block.len()), (keys, 1));
                    let x = x.matrix(prompt, head, first..queries);
                    gemm(&mut out[head * x.cols()..], width, w.transposed(), x, factor, false, Threads::One);
                }
            });
            Ok((T::to_cpu_storage_owned(out), Shape::from((prompts, keys, heads, x.dim))))
        })
    }

    on_gpu!(self, weights, x => {
        let ((b, h, queries, _), (xb, pos, xh, _)) = (weights.1.shape().dims4()?, x.1.shape().dims4()?);
        check((b, h, queries) == (xb, xh, pos), weights.1, x.1, "attend-t")?;
        cuda::attend_t(weights, x, self.factor, &self.mask)
    });
}

impl CustomOp1 for Masked {
    fn name(&self) -> &'static str {
        "masked"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "masked", T => {
            let map = slice::<T>(storage, layout, "masked")?;
            let (_, heads, queries, keys) = layout.shape().dims4()?;
            let mut out = map.to_vec();
            rows::each_block(&mut out, keys, keys, |start, out| {
                for (r, row) in out.chunks_exact_mut(keys).enumerate() {
                    let r = start + r;
                    self.mask.hide(r / (heads * queries), r % queries, row, T::of(self.hidden));
                }
            });
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    on_gpu!(self, map => cuda::masked(map, self.hidden, &self.mask));

    fn bwd(&self, _map: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(masked(grad, 0.0, &self.mask)?))
    }
}

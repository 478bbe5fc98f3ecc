//! What is true of a whole tensor: the sum of its squares, and whether all of it is finite.

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

use super::real::{Real, for_real, slice, sum_of, vectorised};

/// Elements that one task adds up; fixed, so that the result does not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// Σ x² over the elements of all tensors, in f64 over pieces in f32.
pub fn sum_of_squares(all: &[Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    {
        let all = all.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let there: Vec<_> = all.iter().map(Tensor::storage_and_layout).collect();
        let given = there.iter().map(|(storage, layout)| match &**storage {
            Storage::Cuda(storage) => Some((storage, *layout)),
            _ => None,
        });
        if let Some(given) = given.collect::<Option<Vec<_>>>() {
            return super::cuda::sum_of_squares(&given);
        }
    }
    let squares = |storage: &CpuStorage, layout: &Layout| for_real!(storage, "sum-of-squares", T => Ok(squares(slice::<T>(storage, layout, "sum-of-squares")?)));
    all.iter().map(|x| whole(x, squares)).sum()
}

/// Whether no element is NaN or infinite.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if let Some(found) = on_device(x, super::cuda::all_finite)? {
        return Ok(found);
    }
    whole(
        x,
        |storage, layout| for_real!(storage, "all-finite", T => Ok(finite(slice::<T>(storage, layout, "all-finite")?))),
    )
}

/// What a kernel says of a tensor on a GPU; none for one that is elsewhere.
#[cfg(feature = "cuda")]
fn on_device<R>(x: &Tensor, f: impl FnOnce(super::cuda::Given<'_>) -> Result<R>) -> Result<Option<R>> {
    if !x.device().is_cuda() || x.elem_count() == 0 {
        return Ok(None);
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => f((storage, layout)).map(Some),
        _ => Ok(None),
    }
}

/// Hands over all elements, on the CPU, side by side and in the type that is computed in.
fn whole<R>(x: &Tensor, f: impl FnOnce(&CpuStorage, &Layout) -> Result<R>) -> Result<R> {
    let x = x.to_device(&Device::Cpu)?.to_dtype(super::real_dtype(x))?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(storage, layout),
        _ => candle_core::bail!("a tensor on the CPU has its storage elsewhere"),
    }
}

fn squares<T: Real>(x: &[T]) -> f64 {
    let piece = |x: &[T]| num_traits::ToPrimitive::to_f64(&vectorised!(sum_of(x, |x| x * x)));
    let pieces: Vec<f64> = x.par_chunks(PIECE).map(|x| piece(x).unwrap_or(f64::NAN)).collect();
    pieces.into_iter().sum()
}

/// x·0 is 0 for every finite x and NaN for the rest; sums vectorise where a search would not.
pub(crate) fn finite<T: Real>(values: &[T]) -> bool {
    values.chunks(4096).all(|chunk| vectorised!(sum_of(chunk, |x| x * T::zero())) == T::zero())
}

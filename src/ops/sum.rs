//! Sums over a whole tensor.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor};
use rayon::prelude::*;

use super::real::{Real, slice, sum_of, vectorised};

/// Elements that one task adds up; fixed, so that the result does not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// Σ x², in f64 over pieces in f32.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = x.to_device(&Device::Cpu)?.to_dtype(super::real_dtype(x))?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("a tensor on the CPU has its storage elsewhere") };
    Ok(match storage {
        CpuStorage::F64(_) => squares(slice::<f64>(storage, layout, "sum-of-squares")?),
        _ => squares(slice::<f32>(storage, layout, "sum-of-squares")?),
    })
}

fn squares<T: Real>(x: &[T]) -> f64 {
    let piece = |x: &[T]| num_traits::ToPrimitive::to_f64(&vectorised!(sum_of(x, |x| x * x)));
    let pieces: Vec<f64> = x.par_chunks(PIECE).map(|x| piece(x).unwrap_or(f64::NAN)).collect();
    pieces.into_iter().sum()
}

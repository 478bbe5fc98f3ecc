//! Arithmetic on rows of floats, written so that the compiler can vectorise it, and the same for every caller.
//!
//! Reductions run over a fixed number of lanes, so a row gives the same bits whatever machine width was found.

use candle_core::{CpuStorage, Error, Result, WithDType};

/// Lanes of a reduction: one AVX-512 register of f32.
const LANES: usize = 16;

/// The float types that the CPU kernels compute in.
pub trait Real:
    WithDType
    + num_traits::Float
    + std::iter::Sum
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::ops::DivAssign
{
    /// eˣ for x below some 88; anything smaller than the smallest normal number is 0, NaN stays NaN.
    fn fast_exp(self) -> Self;

    /// Φ(x), the distribution function of the normal distribution.
    fn normal_cdf(self) -> Self;

    /// A constant, rounded to this type.
    fn of(x: f64) -> Self;
}

impl Real for f32 {
    /// Cephes' expf: 2ⁿ·p(r) with |r| ≤ ln 2 / 2; within 2 ulp of the true value.
    #[inline(always)]
    fn fast_exp(self) -> f32 {
        const LOWEST: f32 = -87.336_54;
        const HIGHEST: f32 = 88.02;
        // Adding and subtracting 1.5·2²³ rounds to an integer without a call.
        const ROUND: f32 = 12_582_912.0;
        let x = if self > LOWEST { self } else { LOWEST };
        let x = if x < HIGHEST { x } else { HIGHEST };
        let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
        let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
        let mut p = 1.987_569_2e-4_f32;
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p * r + c;
        }
        let p = p * r * r + r + 1.0;
        let scaled = p * f32::from_bits((((n as i32) + 127) << 23) as u32);
        if self <= LOWEST {
            0.0
        } else if self.is_nan() {
            self
        } else {
            scaled
        }
    }

    /// ½·erfc(−x/√2) with the Chebyshev fit of Numerical Recipes (erfcc): within 2e-7 of the true value, and
    /// within 1e-5 relative to it down to −8.
    #[inline(always)]
    fn normal_cdf(self) -> f32 {
        let z = self.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.5 * z);
        let mut p = 0.170_872_77_f32;
        for c in [
            -0.822_152_23,
            1.488_515_9,
            -1.135_204,
            0.278_868_07,
            -0.186_288_06,
            0.096_784_18,
            0.374_091_96,
            1.000_023_7,
            -1.265_512_2,
        ] {
            p = p * t + c;
        }
        let tail = 0.5 * t * (p - z * z).fast_exp();
        if self < 0.0 { tail } else { 1.0 - tail }
    }

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
}

impl Real for f64 {
    #[inline(always)]
    fn fast_exp(self) -> f64 {
        self.exp()
    }

    #[inline(always)]
    fn normal_cdf(self) -> f64 {
        0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2)
    }

    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
}

/// Evaluates an expression compiled for the widest vector instructions of this machine.
///
/// A macro, because only what is inlined is compiled for them. A closure of some size, handed to a function, is not;
/// neither is one that is called through `FnOnce`, which puts a call of its own between.
macro_rules! vectorised {
    ($body:expr) => {
        pulp::Arch::new().dispatch($crate::ops::real::Inlined(
            #[inline(always)]
            || $body,
        ))
    };
}
pub(crate) use vectorised;

/// See [`vectorised`].
pub struct Inlined<F>(pub F);

impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

/// Σ f(xᵢ) in a fixed order.
#[inline(always)]
pub fn sum_of<T: Real>(row: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    let mut tail = T::zero();
    for &x in chunks.remainder() {
        tail += f(x);
    }
    fold(lanes) + tail
}

/// Σ f(aᵢ, bᵢ) in a fixed order.
#[inline(always)]
pub fn sum_of2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (x, y) in (&mut a).zip(&mut b) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    let mut tail = T::zero();
    for (&x, &y) in a.remainder().iter().zip(b.remainder()) {
        tail += f(x, y);
    }
    fold(lanes) + tail
}

/// The largest element; −∞ of an empty row. NaN is the largest of all, so that it cannot hide.
#[inline(always)]
pub fn max_of<T: Real>(row: &[T]) -> T {
    let mut lanes = [T::neg_infinity(); LANES];
    let mut chunks = row.chunks_exact(LANES);
    let larger = |x: T, y: T| if y > x || y.is_nan() { y } else { x };
    for chunk in &mut chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    let tail = chunks.remainder().iter().fold(T::neg_infinity(), |m, &x| larger(m, x));
    lanes.into_iter().fold(tail, larger)
}

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Evaluates `$body` with `$t` as the float type of a CPU storage.
macro_rules! for_real {
    ($storage:expr, $op:expr, $t:ident => $body:expr) => {{
        #[allow(unused_imports)]
        use candle_core::WithDType;
        #[allow(unused_imports)]
        use num_traits::{Float, One, Zero};
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $t = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $t = f64;
                $body
            }
            other => Err(super::real::wrong_dtype(other, $op)),
        }
    }};
}
pub(super) use for_real;

#[cold]
pub fn wrong_dtype(storage: &CpuStorage, op: &'static str) -> Error {
    use candle_core::backend::BackendStorage;
    Error::UnsupportedDTypeForOp(storage.dtype(), op).bt()
}

/// The elements of a contiguous tensor.
pub fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &candle_core::Layout, op: &'static str) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => Err(Error::RequiresContiguous { op }.bt()),
    }
}

/// The elements of a contiguous tensor, to be changed.
pub fn part<'a, T>(data: &'a mut [T], layout: &candle_core::Layout) -> Result<&'a mut [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut data[start..end]),
        None => Err(Error::RequiresContiguous { op: "in-place" }.bt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_ends_at_zero() {
        let mut worst = 0.0_f64;
        for i in 0..2_000_000 {
            let x = -87.3 + i as f32 * (175.0 / 2_000_000.0);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(x.fast_exp()) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
        assert_eq!(f32::NEG_INFINITY.fast_exp(), 0.0);
        assert_eq!((-1e30_f32).fast_exp(), 0.0);
        assert_eq!(0.0_f32.fast_exp(), 1.0);
        assert!(f32::NAN.fast_exp().is_nan());
    }

    #[test]
    fn the_normal_distribution_is_right_to_a_few_ulp() {
        for i in -120_000..=120_000 {
            let x = i as f32 / 10_000.0;
            let (found, exact) = (f64::from(x.normal_cdf()), f64::from(x).normal_cdf());
            assert!((found - exact).abs() <= 2e-7, "{x}: {found} instead of {exact}");
            assert!(x < -8.0 || (found - exact).abs() <= 1e-5 * exact, "{x}: {found} instead of {exact}");
        }
        assert!(f32::NAN.normal_cdf().is_nan());
    }

    #[test]
    fn reductions_agree_with_plain_loops() {
        for n in [0, 1, 15, 16, 17, 100] {
            let row: Vec<f64> = (0..n).map(|i| ((i * 37) % 11) as f64 - 5.0).collect();
            assert_eq!(sum_of(&row, |x| x * x), row.iter().map(|x| x * x).sum::<f64>());
            assert_eq!(sum_of2(&row, &row, |x, y| x * y), row.iter().map(|x| x * x).sum::<f64>());
            assert_eq!(max_of(&row), row.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
        assert!(max_of(&[1.0, f64::NAN, 3.0]).is_nan());
    }
}

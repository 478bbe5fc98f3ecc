//! Products of matrices: cuBLAS's.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::{WrapErr, gemm_reduced_precision_f32};
use candle_core::{CudaStorage, DType, Result};

use super::{Given, launch, summed};
use crate::ops::linear::matrix;

/// Matrices of one size in a storage, for every prompt and head.
#[derive(Clone, Copy)]
pub struct Matrices<'a> {
    pub storage: &'a CudaStorage,
    /// The first element of the first.
    pub start: usize,
    /// Rows and columns.
    pub size: (usize, usize),
    /// How far apart rows are, and columns; one of the two is 1.
    pub stride: (usize, usize),
    /// How far apart those of prompts are, and those of a prompt's heads.
    pub apart: (usize, usize),
}

impl<'a> Matrices<'a> {
    /// One matrix whose rows come one after the other.
    pub fn one(storage: &'a CudaStorage, start: usize, (rows, columns): (usize, usize)) -> Self {
        Self { storage, start, size: (rows, columns), stride: (columns, 1), apart: (0, 0) }
    }

    /// A tensor as one matrix: its rows may be any distance apart where it has no more than two dimensions.
    pub fn of((storage, layout): Given<'a>, op: &'static str) -> Result<Self> {
        match (layout.dims(), layout.stride(), layout.contiguous_offsets()) {
            (_, _, Some((start, _))) => Ok(Self::one(storage, start, matrix(layout))),
            ([rows, columns], [stride, 1], _) => {
                Ok(Self { stride: (*stride, 1), ..Self::one(storage, layout.start_offset(), (*rows, *columns)) })
            }
            _ => Err(candle_core::Error::RequiresContiguous { op }.bt()),
        }
    }

    /// Some rows of every one.
    pub fn rows(self, range: Range<usize>) -> Self {
        Self { start: self.start + range.start * self.stride.0, size: (range.len(), self.size.1), ..self }
    }

    /// Some columns of every one.
    pub fn columns(self, range: Range<usize>) -> Self {
        self.turned().rows(range).turned()
    }

    /// Every one transposed.
    pub fn turned(self) -> Self {
        Self { size: (self.size.1, self.size.0), stride: (self.stride.1, self.stride.0), ..self }
    }

    /// How cuBLAS reads them, which stores matrices column by column: turned or not, and how far apart columns are.
    fn leading(&self) -> Result<(sys::cublasOperation_t, i32)> {
        let ((rows, columns), (down, right)) = (self.size, self.stride);
        // Where there is one row or column, how far apart they are is any number.
        if right == 1 || columns == 1 {
            Ok((sys::cublasOperation_t::CUBLAS_OP_N, int(if rows == 1 { columns } else { down })?))
        } else if down == 1 || rows == 1 {
            Ok((sys::cublasOperation_t::CUBLAS_OP_T, int(right)?))
        } else {
            candle_core::bail!("a matrix whose rows are {down} apart and whose columns are {right}")
        }
    }

    fn at(&self, prompt: usize) -> Result<u64> {
        launch::address(self.storage, self.start + prompt * self.apart.0)
    }
}

/// What cuBLAS calls a type.
fn real(dtype: DType) -> Result<sys::cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::F64 => Ok(sys::cudaDataType_t::CUDA_R_64F),
        DType::F16 => Ok(sys::cudaDataType_t::CUDA_R_16F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        other => candle_core::bail!("there are no products of {other:?}"),
    }
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("a product of {n} rows is too large for cuBLAS")))
}

/// `out` = factor · left · right for so many prompts, and heads of each; the columns of `out` are 1 apart. With `add` the product is added to
/// what is there.
///
/// Sums are kept in f32 (f64 for f64) and multiplied by the factor before they are rounded. `out` may be f32 where the factors have 16 bits.
pub fn multiply(
    out: Matrices<'_>,
    left: Matrices<'_>,
    right: Matrices<'_>,
    (mut prompts, mut heads): (usize, usize),
    factor: f64,
    add: bool,
) -> Result<()> {
    let ((m, k), (_, n), dtype, to) = (left.size, right.size, left.storage.dtype(), out.storage.dtype());
    if right.storage.dtype() != dtype || (to != dtype && to != summed(dtype)) {
        candle_core::bail!("a product of {dtype:?} and {:?} into {to:?}", right.storage.dtype())
    }
    if right.size.0 != k || out.size != (m, n) || out.stride.1 != 1 {
        candle_core::bail!("a product of {:?} and {:?} into {:?}", left.size, right.size, out.size)
    }
    if m * n * prompts * heads == 0 {
        return Ok(());
    }
    let compute = match dtype {
        DType::F32 if gemm_reduced_precision_f32() => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        DType::F64 => sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
        _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let (real, out_real) = (real(dtype)?, real(to)?);
    // Heads of all prompts at once where they are evenly apart.
    if [&out, &left, &right].iter().all(|x| x.apart.0 == x.apart.1 * heads) {
        (prompts, heads) = (1, prompts * heads);
    }
    let beta = if add { 1.0 } else { 0.0 };
    let (wide, narrow) = ([factor, beta], [factor as f32, beta as f32]);
    let scalar = |i: usize| match dtype {
        DType::F64 => std::ptr::from_ref(&wide[i]).cast(),
        _ => std::ptr::from_ref(&narrow[i]).cast(),
    };
    let ((turn_right, to_right), (turn_left, to_left)) = (right.leading()?, left.leading()?);
    let (device, handle) = (out.storage.device(), out.storage.device().cublas_handle());
    device.cuda_stream().context().bind_to_thread().w()?;
    for prompt in 0..prompts {
        let (to, a, b) = (out.at(prompt)?, left.at(prompt)?, right.at(prompt)?);
        // SAFETY: the matrices lie within their storages, as whoever made them says; factors outlive the call, which reads them.
        // cuBLAS sees all three transposed: outᵀ = rightᵀ · leftᵀ.
        #[allow(unsafe_code)]
        unsafe {
            result::gemm_strided_batched_ex(
                *handle.handle(),
                turn_right,
                turn_left,
                int(n)?,
                int(m)?,
                int(k)?,
                scalar(0),
                b as *const _,
                real,
                to_right,
                right.apart.1 as i64,
                a as *const _,
                real,
                to_left,
                left.apart.1 as i64,
                scalar(1),
                to as *mut _,
                out_real,
                int(out.stride.0.max(n))?,
                out.apart.1 as i64,
                int(heads)?,
                compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .w()?;
    }
    Ok(())
}

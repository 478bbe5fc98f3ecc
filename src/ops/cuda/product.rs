//! Products of matrices: cuBLAS's.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::{WrapErr, gemm_reduced_precision_f32};
use candle_core::{CudaStorage, DType, Result};

use super::launch;

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
            Ok((sys::cublasOperation_t::CUBLAS_OP_T, int(if columns == 1 { rows } else { right })?))
        } else {
            candle_core::bail!("a matrix whose rows are {down} apart and whose columns are {right}")
        }
    }

    fn at(&self, prompt: usize) -> Result<u64> {
        launch::address(self.storage, self.start + prompt * self.apart.0)
    }
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("a product of {n} rows is too large for cuBLAS")))
}

/// `out` = factor · left · right for so many prompts, and heads of each; the columns of `out` are 1 apart.
///
/// Sums are kept in f32 (f64 for f64) and multiplied by the factor before they are rounded.
pub fn multiply(
    out: Matrices<'_>,
    left: Matrices<'_>,
    right: Matrices<'_>,
    (mut prompts, mut heads): (usize, usize),
    factor: f64,
) -> Result<()> {
    let ((m, k), (_, n), dtype) = (left.size, right.size, out.storage.dtype());
    if (left.storage.dtype(), right.storage.dtype()) != (dtype, dtype) {
        candle_core::bail!("a product of {:?} and {:?}", left.storage.dtype(), right.storage.dtype())
    }
    if right.size.0 != k || out.size != (m, n) || out.stride.1 != 1 {
        candle_core::bail!("a product of {:?} and {:?} into {:?}", left.size, right.size, out.size)
    }
    if m * n * prompts * heads == 0 {
        return Ok(());
    }
    let (real, compute) = match dtype {
        DType::F32 if gemm_reduced_precision_f32() => {
            (sys::cudaDataType_t::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32)
        }
        DType::F32 => (sys::cudaDataType_t::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
        DType::F16 => (sys::cudaDataType_t::CUDA_R_16F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
        DType::BF16 => (sys::cudaDataType_t::CUDA_R_16BF, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
        DType::F64 => (sys::cudaDataType_t::CUDA_R_64F, sys::cublasComputeType_t::CUBLAS_COMPUTE_64F),
        other => candle_core::bail!("there are no products of {other:?}"),
    };
    // Heads of all prompts at once where they are evenly apart.
    if [&out, &left, &right].iter().all(|x| x.apart.0 == x.apart.1 * heads) {
        (prompts, heads) = (1, prompts * heads);
    }
    let (wide, narrow) = ([factor, 0.0], [factor as f32, 0.0]);
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
                real,
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

//! Kernels by their names, and memory for what they write.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result};

/// Kernels, for any device that has compute capability 8.0 or more: the driver translates those of a module when one is first asked for.
pub struct Module {
    name: &'static str,
    ptx: &'static str,
}

/// Those of kernels.cu.
const KERNELS: Module = Module { name: "kernels", ptx: include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx")) };
/// Those of whole.cu: as much to translate as all others.
pub const WHOLE: Module = Module { name: "whole", ptx: include_str!(concat!(env!("OUT_DIR"), "/whole.ptx")) };

/// Threads of a block where every thread has an element of its own.
const THREADS: u32 = 256;
/// Elements that a thread reads at once, as many f32 as 16 bytes hold.
const TAKEN: u64 = 4;
/// Blocks at most of such a launch; threads then have more elements.
const BLOCKS: u64 = 1 << 16;

/// What a kernel is told.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// Where something is on the device; 0 for nothing.
    At(u64),
    Size(u64),
    Word(u32),
    Number(f64),
}

/// Blocks and the threads of each.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    columns: u32,
    rows: u32,
    threads: u32,
}

impl Grid {
    /// Threads for so many elements, of which each takes some at once.
    pub fn elements(n: u64) -> Self {
        let columns = n.div_ceil(u64::from(THREADS) * TAKEN).clamp(1, BLOCKS);
        Self { columns: columns as u32, rows: 1, threads: THREADS }
    }

    /// A block per row of so many elements.
    pub fn rows(rows: usize, width: usize) -> Result<Self> {
        let threads = width.div_ceil(TAKEN as usize).next_power_of_two().clamp(32, 512) as u32;
        Self::blocks(rows, 1, threads)
    }

    pub fn blocks(columns: usize, rows: usize, threads: u32) -> Result<Self> {
        match (i32::try_from(columns), u16::try_from(rows)) {
            (Ok(columns), Ok(rows)) if columns > 0 && rows > 0 => {
                Ok(Self { columns: columns as u32, rows: u32::from(rows), threads })
            }
            _ => candle_core::bail!("{columns} × {rows} blocks cannot be launched at once: take a smaller batch"),
        }
    }

    /// Its blocks.
    pub fn count(&self) -> usize {
        self.columns as usize * self.rows as usize
    }
}

/// The ending of a kernel's name.
fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F64 => Ok("f64"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => candle_core::bail!("there are no kernels for {other:?}"),
    }
}

/// Runs a kernel of kernels.cu, see [`Module::launch`].
pub fn launch(device: &CudaDevice, name: &str, dtype: DType, grid: Grid, arguments: &[Argument]) -> Result<()> {
    KERNELS.launch(device, name, dtype, grid, arguments)
}

impl Module {
    /// Runs a kernel for values of a type; nothing is waited for.
    ///
    /// The caller says that arguments are those of the kernel, and that what they point to is as large as it reads and writes.
    pub fn launch(
        &self,
        device: &CudaDevice,
        name: &str,
        dtype: DType,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        let function = device.get_or_load_custom_func(&format!("{name}_{}", suffix(dtype)?), self.name, self.ptx)?;
        let mut builder = function.builder();
        for argument in arguments {
            match argument {
                Argument::At(value) | Argument::Size(value) => builder.arg(value),
                Argument::Word(value) => builder.arg(value),
                Argument::Number(value) => builder.arg(value),
            };
        }
        let Grid { columns, rows, threads } = grid;
        let config = LaunchConfig { grid_dim: (columns, rows, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: every call in these modules passes what the kernel of that name declares, for buffers of the sizes that it is told;
        // tests/gpu/check.py runs the kernels themselves.
        #[allow(unsafe_code)]
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// Where the element `offset` of a storage is, as a number.
pub fn address(storage: &CudaStorage, offset: usize) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    macro_rules! pointer {
        ($slice:expr, $size:expr) => {
            $slice.device_ptr(&stream).0 + (offset * $size) as u64
        };
    }
    // All work of a device is on one stream, so that the order of calls is the order of work.
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => pointer!(slice, 4),
        CudaStorageSlice::F64(slice) => pointer!(slice, 8),
        CudaStorageSlice::F16(slice) => pointer!(slice, 2),
        CudaStorageSlice::BF16(slice) => pointer!(slice, 2),
        CudaStorageSlice::U32(slice) => pointer!(slice, 4),
        _ => candle_core::bail!("there are no kernels for {:?}", storage.dtype()),
    })
}

/// Where the element `offset` of a storage is.
pub fn at(storage: &CudaStorage, offset: usize) -> Result<Argument> {
    address(storage, offset).map(Argument::At)
}

/// Where a contiguous tensor begins.
pub fn start(storage: &CudaStorage, layout: &Layout, op: &'static str) -> Result<Argument> {
    match layout.contiguous_offsets() {
        Some((start, _)) => at(storage, start),
        None => Err(Error::RequiresContiguous { op }.bt()),
    }
}

/// Memory for `n` values that a kernel writes all of.
pub fn empty(device: &CudaDevice, dtype: DType, n: usize) -> Result<CudaStorage> {
    // SAFETY: whoever asks for it writes every element before anything reads one.
    #[allow(unsafe_code)]
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc(n)?),
            DType::F64 => CudaStorageSlice::F64(device.alloc(n)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc(n)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(n)?),
            other => candle_core::bail!("there are no kernels for {other:?}"),
        }
    };
    Ok(CudaStorage { slice, device: device.clone() })
}

/// Numbers of the host on the device.
pub fn words(device: &CudaDevice, values: &[u32]) -> Result<CudaStorage> {
    Ok(CudaStorage { slice: CudaStorageSlice::U32(device.clone_htod(values)?), device: device.clone() })
}

//! Where to compute.

use candle_core::Device;

use crate::error::{Error, Result};

/// The device of a name: `cpu`; `cuda`, the first GPU, or `cuda:N`; `auto`, what [`find`] finds.
///
/// # Errors
/// [`Error::Request`] for another name, [`Error::Unavailable`] for a GPU that is not there, or for any in a build without the
/// feature `cuda`.
pub fn open(name: &str) -> Result<Device> {
    let (kind, number) = name.split_once(':').map_or((name, None), |(kind, number)| (kind, Some(number)));
    match (kind, number.map(str::parse::<usize>)) {
        ("cpu", None) => Ok(Device::Cpu),
        ("auto", None) => Ok(find().0),
        ("cuda", None) => open_cuda(0),
        ("cuda", Some(Ok(number))) => open_cuda(number),
        _ => Err(Error::no_such("device", name, ["auto", "cpu", "cuda", "cuda:N"])),
    }
}

/// The first GPU if it can be used, with what it is; else the CPU, with why no GPU is used.
pub fn find() -> (Device, String) {
    let gpu = cuda(0).and_then(|device| {
        let name = describe(&device).map_err(|e| e.to_string())?.map(|gpu| gpu.name);
        Ok((device, name.unwrap_or_default()))
    });
    gpu.unwrap_or_else(|why| (Device::Cpu, why))
}

/// A device by the name that [`open`] takes.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        _ => "cpu".into(),
    }
}

/// Lets products of f32 matrices on a GPU round their input to TF32, ten bits of mantissa: several times as fast, and no longer
/// right to 1e-4.
///
/// # Errors
/// [`Error::Request`] for a device that has no such mode.
pub fn allow_tf32(device: &Device) -> Result<()> {
    if !device.is_cuda() {
        return Err(Error::request("TF32 is a mode of NVIDIA GPUs; leave --tf32 out, or give --device cuda"));
    }
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(true);
    Ok(())
}

fn open_cuda(number: usize) -> Result<Device> {
    cuda(number).map_err(|why| {
        Error::Unavailable(match cfg!(feature = "cuda") {
            true => format!("there is no GPU cuda:{number} to compute on ({why}); use --device cpu"),
            false => format!("{why}; use --device cpu, or build with --features cuda where nvcc is installed"),
        })
    })
}

/// A GPU by its number, or why it cannot be used.
#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> std::result::Result<Device, String> {
    Err("this build has no CUDA".into())
}

/// A GPU by its number, or why it cannot be used.
#[cfg(feature = "cuda")]
fn cuda(number: usize) -> std::result::Result<Device, String> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    /// The least compute capability that is supported, before the point.
    const LEAST: i32 = 8;
    // What comes behind the first line is where in candle.
    let said = |e: &dyn std::fmt::Display| crate::error::shorten(e.to_string().lines().next().unwrap_or_default());
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if let Some(why) = crate::driver::missing() {
        return Err(why);
    }
    let known = driver().map_err(|e| said(&e))?;
    if known < BUILT {
        let (known, built) = (version(known), version(BUILT));
        return Err(format!(
            "its driver knows CUDA {known}, and this build is of CUDA {built}: update the driver, or build with an older toolkit"
        ));
    }
    // A stream of its own, the same for all threads: candle's usual one is another for every thread of the host.
    let device = Device::new_cuda_with_stream(number).map_err(|e| said(&e))?;
    let cuda = device.as_cuda_device().map_err(|e| said(&e))?;
    let major = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    let major = cuda.cuda_stream().context().attribute(major).map_err(|e| said(&e))?;
    if major < LEAST {
        return Err(format!("its compute capability is {major}, and the least that is supported is {LEAST}"));
    }
    // SAFETY: all work of the device is on its one stream, in the order of calls, so that nothing has to be recorded for
    // others to wait for; and an attribute of a pool is set by a pointer to a number that outlives the call.
    #[allow(unsafe_code)]
    unsafe {
        cuda.disable_event_tracking();
        // Memory that is freed stays with the process: asking for it again costs more than any kernel here.
        let mut keep = u64::MAX;
        let context = cuda.cuda_stream().context().cu_device();
        let pool = result::device::get_default_mem_pool(context).map_err(|e| said(&e))?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut keep).cast()).map_err(|e| said(&e))?;
    }
    Ok(device)
}

/// The version of CUDA that kernels were compiled by.
#[cfg(feature = "cuda")]
const BUILT: i32 = match i32::from_str_radix(env!("CUDA_VERSION"), 10) {
    Ok(version) => version,
    Err(_) => panic!("the version of CUDA is a number"),
};

/// The latest version of CUDA that the driver knows.
#[cfg(feature = "cuda")]
fn driver() -> std::result::Result<i32, candle_core::cuda_backend::cudarc::driver::DriverError> {
    let mut version = 0;
    // SAFETY: it writes a number where it is told, and reads nothing.
    #[allow(unsafe_code)]
    unsafe { candle_core::cuda_backend::cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

/// A version of CUDA, as people write what the driver counts.
#[cfg(feature = "cuda")]
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// What a device is, for people: its name, capability, and free and whole memory in bytes; none for the CPU.
///
/// # Errors
/// [`Error::Unavailable`] for a GPU that does not answer.
pub fn describe(device: &Device) -> Result<Option<Description>> {
    #[cfg(feature = "cuda")]
    if let Ok(cuda) = device.as_cuda_device() {
        use candle_core::cuda_backend::cudarc::cublas;
        use candle_core::cuda_backend::cudarc::driver::result;
        use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
        let fault = |e: result::DriverError| Error::Unavailable(e.to_string());
        let mut blas = 0;
        // SAFETY: it writes a number where it is told, and the handle is that of an open device.
        #[allow(unsafe_code)]
        unsafe {
            let handle = *cuda.cublas_handle().handle();
            let asked = cublas::sys::cublasGetVersion_v2(handle, &raw mut blas).result();
            asked.map_err(|e| Error::Unavailable(format!("cuBLAS does not say its version: {e:?}")))?;
        }
        let context = cuda.cuda_stream().context().clone();
        let of = |attribute| context.attribute(attribute).map_err(fault);
        let (free, memory) = result::mem_get_info().map_err(fault)?;
        return Ok(Some(Description {
            name: context.name().map_err(fault)?,
            capability: format!(
                "{}.{}",
                of(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                of(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?
            ),
            free: free as u64,
            memory: memory as u64,
            driver: version(driver().map_err(fault)?),
            cublas: format!("{}.{}.{}", blas / 10_000, blas / 100 % 100, blas % 100),
        }));
    }
    let _ = device;
    Ok(None)
}

/// Bytes that are free on the GPU that this thread computes on, and that it has.
pub(crate) fn memory_left() -> Option<(u64, u64)> {
    #[cfg(feature = "cuda")]
    if let Ok((free, all)) = candle_core::cuda_backend::cudarc::driver::result::mem_get_info() {
        return Some((free as u64, all as u64));
    }
    None
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// As its maker calls it.
    pub name: String,
    /// Its compute capability.
    pub capability: String,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that it has.
    pub memory: u64,
    /// The latest version of CUDA that its driver knows.
    pub driver: String,
    /// The version of cuBLAS that computes its products.
    pub cublas: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!(name(&open("cpu").unwrap()), "cpu");
        for bad in ["gpu", "cuda:x", "cuda:", "cpu:0", "auto:1", ""] {
            assert!(matches!(open(bad), Err(Error::Request(_))), "{bad}");
        }
        assert!(matches!(open("cuda:99"), Err(Error::Unavailable(_))));
        assert!(matches!(allow_tf32(&Device::Cpu), Err(Error::Request(_))));
    }
}

//! CUDA's libraries, opened when one of their functions is first called.
//!
//! A binary that is linked with them would have them opened by the system's loader before `main`, and would end there on a machine
//! that has none. So the functions that candle calls are defined here: each jumps to where the library's own is, which the first call
//! looks up, as the loader does for a function that is bound lazily. The linker then finds nothing left to ask the libraries for, and
//! leaves them out: Rust's own does, which is the usual one from 1.90 on; GNU's keeps what only dropped code asks for. A function that
//! is not found returns its library's code for that, and [`missing`] says why.

// Functions that stand for others are nothing that the compiler can check.
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A library, and what its functions return where they are not found: a code that it declares.
struct Library {
    name: &'static CStr,
    missing: extern "C" fn() -> i32,
}

extern "C" fn code<const CODE: i32>() -> i32 {
    CODE
}

impl Library {
    /// The library, which stays open: the loader gives the same one every time.
    fn open(&self) -> Result<*mut c_void, String> {
        // SAFETY: the name ends with a zero. What runs when CUDA's libraries are opened would have run before `main` otherwise.
        let handle = unsafe { libc::dlopen(self.name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
        if handle.is_null() { Err(reason()) } else { Ok(handle) }
    }
}

/// Why this thread's last request to the loader failed.
fn reason() -> String {
    // SAFETY: it returns a text that lasts until this thread's next request, or nothing.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { "it cannot be opened".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}

/// The first library without which there is no GPU, and why it cannot be opened.
pub fn missing() -> Option<String> {
    [&CUDA, &CUBLAS, &CURAND].into_iter().find_map(|library| {
        let why = library.open().err()?;
        let name = library.name.to_string_lossy();
        // Another one may be missing that the library asks for.
        let none = why.starts_with(&*name) && why.contains("No such file");
        Some(match (none, std::ptr::eq(library, &CUDA)) {
            (true, true) => format!("no NVIDIA driver is installed: there is no {name}"),
            (true, false) => format!("there is no {name}; put CUDA's libraries on LD_LIBRARY_PATH"),
            (false, _) => why,
        })
    })
}

/// Defines every function, and says which library has it: the library's name and its code for what is not found.
macro_rules! functions {
    ($($library:ident $name:expr, $missing:literal: $($function:ident)*;)*) => {
        $(static $library: Library = Library { name: $name, missing: code::<$missing> };)*

        const FUNCTIONS: &[(&Library, &CStr)] = &[$($((&$library, name(concat!(stringify!($function), "\0"))),)*)*];

        // `name` jumps to what its place in the table says: at first to the next line, which has it looked up.
        global_asm!(
            ".macro interp_function name",
            ".pushsection .data.interp_functions, \"aw\", @progbits",
            "77: .quad 78f",
            ".popsection",
            ".globl \\name",
            ".type \\name, @function",
            "\\name:",
            "jmp *77b(%rip)",
            "78:",
            "leaq 77b(%rip), %r11",
            "jmp interp_first_call",
            ".endm",
            ".pushsection .data.interp_functions, \"aw\", @progbits",
            ".balign 8",
            "interp_functions:",
            ".popsection",
            ".text",
            // Everything that holds an argument is kept while the function is looked up.
            "interp_first_call:",
            "pushq %rbp",
            "movq %rsp, %rbp",
            "pushq %rdi", "pushq %rsi", "pushq %rdx", "pushq %rcx", "pushq %r8", "pushq %r9", "pushq %rax",
            "subq $136, %rsp",
            "movups %xmm0, (%rsp)", "movups %xmm1, 16(%rsp)", "movups %xmm2, 32(%rsp)", "movups %xmm3, 48(%rsp)",
            "movups %xmm4, 64(%rsp)", "movups %xmm5, 80(%rsp)", "movups %xmm6, 96(%rsp)", "movups %xmm7, 112(%rsp)",
            "leaq interp_functions(%rip), %rdi",
            "movq %r11, %rsi",
            "call {look_up}",
            "movq %rax, %r11",
            "movups (%rsp), %xmm0", "movups 16(%rsp), %xmm1", "movups 32(%rsp), %xmm2", "movups 48(%rsp), %xmm3",
            "movups 64(%rsp), %xmm4", "movups 80(%rsp), %xmm5", "movups 96(%rsp), %xmm6", "movups 112(%rsp), %xmm7",
            "addq $136, %rsp",
            "popq %rax", "popq %r9", "popq %r8", "popq %rcx", "popq %rdx", "popq %rsi", "popq %rdi",
            "popq %rbp",
            "jmp *%r11",
            $($(concat!("interp_function ", stringify!($function)),)*)*
            look_up = sym look_up,
            options(att_syntax)
        );
    };
}

const fn name(bytes: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(bytes.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name with a zero in it"),
    }
}

/// Where the function is whose place in the table is given; the place then says so too.
extern "C" fn look_up(table: *const AtomicPtr<c_void>, place: *const AtomicPtr<c_void>) -> *const c_void {
    let index = (place as usize - table as usize) / size_of::<AtomicPtr<c_void>>();
    let (library, name) = FUNCTIONS[index];
    // SAFETY: the name ends with a zero, and the place is one of the table above, which is nowhere else written to.
    unsafe {
        let found = library.open().map_or(std::ptr::null_mut(), |handle| libc::dlsym(handle, name.as_ptr()));
        let found = if found.is_null() { library.missing as *mut c_void } else { found };
        (*place).store(found, Ordering::Relaxed);
        found
    }
}

/// A library of CUDA's toolkit, of the version that the workbench was built with.
macro_rules! toolkit {
    ($name:literal) => {
        name(concat!($name, env!("CUDA_MAJOR"), "\0"))
    };
}

// What cudarc and candle's kernels call, in any version of CUDA that they know. A name that is missing here is the linker's to find, which
// then links the library as usual; .ci/cuda says so.
functions! {
    CUDA c"libcuda.so.1", 500:
        cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetLimit
        cuCtxGetStreamPriorityRange cuCtxSetCacheConfig cuCtxSetCurrent cuCtxSetFlags cuCtxSetLimit cuCtxSynchronize
        cuDestroyExternalMemory cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetDefaultMemPool cuDeviceGetMemPool
        cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2 cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain
        cuDeviceSetMemPool cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventElapsedTime
        cuEventElapsedTime_v2 cuEventQuery cuEventRecord cuEventSynchronize cuExternalMemoryGetMappedBuffer cuFuncGetAttribute
        cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorName cuGetErrorString cuGraphClone cuGraphDestroy cuGraphExecDestroy
        cuGraphInstantiateWithFlags cuGraphLaunch cuGraphUpload cuImportExternalMemory cuInit cuLaunchCooperativeKernel
        cuLaunchHostFunc cuLaunchKernel cuMemAdvise_v2 cuMemAllocAsync cuMemAllocFromPoolAsync cuMemAllocManaged cuMemAlloc_v2
        cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc cuMemPoolCreate cuMemPoolDestroy
        cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemPoolTrimTo cuMemPrefetchAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2
        cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemcpyPeerAsync cuMemsetD8Async
        cuMemsetD8_v2 cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData cuModuleUnload
        cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialBlockSize
        cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize cuProfilerStart cuProfilerStop
        cuStreamAttachMemAsync cuStreamBeginCapture_v2 cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2
        cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent;
    CUBLAS toolkit!("libcublas.so."), 15:
        cublasCreate_v2 cublasDasum_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasDgemm_v2 cublasDgemv_v2 cublasGemmEx
        cublasGemmGroupedBatchedEx cublasGemmStridedBatchedEx cublasGetPointerMode_v2 cublasGetVersion_v2 cublasSasum_v2
        cublasSetPointerMode_v2 cublasSetStream_v2 cublasSgemmStridedBatched cublasSgemm_v2 cublasSgemv_v2;
    CUBLAS_LT toolkit!("libcublasLt.so."), 15:
        cublasLtCreate cublasLtDestroy cublasLtLoggerOpenFile cublasLtLoggerSetLevel cublasLtMatmul
        cublasLtMatmulAlgoGetHeuristic cublasLtMatmulDescCreate cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute
        cublasLtMatmulPreferenceCreate cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute
        cublasLtMatrixLayoutCreate cublasLtMatrixLayoutDestroy cublasLtMatrixLayoutSetAttribute;
    CURAND c"libcurand.so.10", 203:
        curandCreateGenerator curandDestroyGenerator curandGenerate curandGenerateLogNormal curandGenerateLogNormalDouble
        curandGenerateLongLong curandGenerateNormal curandGenerateNormalDouble curandGeneratePoisson curandGenerateUniform
        curandGenerateUniformDouble curandSetGeneratorOffset curandSetPseudoRandomGeneratorSeed curandSetStream;
    NVRTC toolkit!("libnvrtc.so."), 11:
        nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetPTX nvrtcGetPTXSize nvrtcGetProgramLog
        nvrtcGetProgramLogSize;
    CUDART toolkit!("libcudart.so."), 500:
        __cudaGetKernel __cudaLaunchKernel __cudaLaunchKernel_ptsz __cudaPopCallConfiguration __cudaPushCallConfiguration
        __cudaRegisterFatBinary __cudaRegisterFatBinaryEnd __cudaRegisterFunction __cudaRegisterVar __cudaUnregisterFatBinary
        cudaDeviceGetAttribute cudaFuncSetAttribute cudaGetDevice cudaGetLastError cudaLaunchKernel cudaLaunchKernel_ptsz;
}

//! Copies from a GPU into memory that it writes by itself.

use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DevicePtr, PinnedHostSlice, result, sys};
use candle_core::{DType, Device, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::error::{Error, Result};

/// Copies that are under way at most; each holds a value on the GPU and memory of its size on the host.
const MOST: usize = 4;

type Memory = PinnedHostSlice<u8>;

/// A stream for copies beside the one that computes.
pub(super) struct Lane {
    computes: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    free: Vec<Memory>,
}

/// A value that is being copied.
struct Flight {
    value: Tensor,
    memory: Option<Memory>,
    bytes: usize,
    landed: CudaEvent,
}

impl Lane {
    /// None for the CPU.
    pub(super) fn new(device: &Device) -> Result<Option<Self>> {
        let Device::Cuda(device) = device else { return Ok(None) };
        let computes = device.cuda_stream();
        let copies = computes.context().new_stream().w()?;
        Ok(Some(Self { computes, copies, free: Vec::new() }))
    }

    /// See [`super::Arrivals::each`].
    pub(super) fn each<K: Send, T>(
        &mut self,
        compute: impl FnOnce(&mut dyn FnMut(K, &Tensor) -> Result<()>) -> Result<T>,
        mut arrived: impl FnMut(K, &[f32]) + Send,
    ) -> Result<T> {
        std::thread::scope(|scope| {
            let (flights, landing) = sync_channel::<(K, Flight)>(MOST);
            let (back, free) = channel();
            let waiting = scope.spawn(move || -> Result<()> {
                let mut wide = Vec::new();
                for (key, flight) in landing {
                    let memory = flight.land(&mut wide, |all| arrived(key, all))?;
                    let _ = back.send(memory); // nobody may want it any more
                }
                Ok(())
            });
            let done = compute(&mut |key, value| {
                self.free.extend(free.try_iter());
                let flight = self.start(value)?;
                // Whoever waits tells why it has stopped.
                flights.send((key, flight)).map_err(|_| Error::Interrupted("values no longer arrive".into()))
            });
            drop(flights);
            let landed = waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.free.extend(free.try_iter());
            landed.and(done)
        })
    }

    /// Memory of the host for so many bytes, used before if there is some.
    fn memory(&mut self, bytes: usize) -> Result<Memory> {
        if let Some(i) = self.free.iter().position(|memory| memory.len() >= bytes) {
            return Ok(self.free.swap_remove(i));
        }
        self.free.pop(); // too small: what comes is not smaller, as a rule
        // SAFETY: what is in it is read only after the copy that fills it.
        #[allow(unsafe_code)]
        let memory = unsafe { self.computes.context().alloc_pinned_with_flags::<u8>(bytes, 0) };
        Ok(memory.w()?)
    }

    fn start(&mut self, value: &Tensor) -> Result<Flight> {
        let value = match value.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => value.contiguous()?,
            _ => value.to_dtype(DType::F32)?.contiguous()?,
        };
        let bytes = value.elem_count() * value.dtype().size_in_bytes();
        let mut memory = self.memory(bytes)?;
        self.copies.wait(&self.computes.record_event(None).w()?).w()?;
        let from = {
            let (storage, layout) = value.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { return Err(Error::Bug("a value is not on its GPU".into())) };
            let start = match &storage.slice {
                CudaStorageSlice::F32(slice) => slice.device_ptr(&self.copies).0,
                CudaStorageSlice::F16(slice) => slice.device_ptr(&self.copies).0,
                CudaStorageSlice::BF16(slice) => slice.device_ptr(&self.copies).0,
                _ => return Err(Error::Bug(format!("a value of {:?} is on its way", value.dtype()))),
            };
            start + (layout.start_offset() * value.dtype().size_in_bytes()) as u64
        };
        let to = memory.as_mut_slice().w()?;
        // SAFETY: the copy reads `bytes` of the value and writes as many of the memory, which is no smaller; a flight keeps both
        // until it has landed, and what computes the value comes before on the stream that is waited for.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_dtoh_async(&mut to[..bytes], from, self.copies.cu_stream()) }.w()?;
        // A thread that waits for it sleeps.
        let landed = self.copies.record_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC));
        let landed = landed.or_else(|e| self.copies.synchronize().and(Err(e))).w()?;
        Ok(Flight { value, memory: Some(memory), bytes, landed })
    }
}

impl Flight {
    /// Waits for the value, hands its elements on, and gives the memory back.
    fn land(mut self, wide: &mut Vec<f32>, arrived: impl FnOnce(&[f32])) -> Result<Memory> {
        self.landed.synchronize().w()?;
        let memory = self.memory.take().ok_or_else(|| Error::Bug("a value lands twice".into()))?;
        let all = &memory.as_slice().w()?[..self.bytes];
        let mut widened = |convert: &dyn Fn(&mut [f32])| {
            wide.resize(self.bytes / 2, 0.0);
            convert(wide);
        };
        match self.value.dtype() {
            DType::F16 => widened(&|to| bytemuck::cast_slice::<u8, f16>(all).convert_to_f32_slice(to)),
            DType::BF16 => widened(&|to| bytemuck::cast_slice::<u8, bf16>(all).convert_to_f32_slice(to)),
            _ => {
                arrived(bytemuck::cast_slice(all));
                return Ok(memory);
            }
        }
        arrived(wide);
        Ok(memory)
    }
}

impl Drop for Flight {
    /// Neither the value nor the memory may go while the copy is under way.
    fn drop(&mut self) {
        let _ = self.landed.synchronize();
    }
}

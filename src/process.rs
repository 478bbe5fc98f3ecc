//! How a process works fastest: what a binary sets before anything else.

use crate::error::{Error, Result};

/// Bytes of stack of a thread that works: as much as the first thread has on most systems.
const STACK: usize = 8 << 20;

/// Does the work of a whole binary, with the process set up for it; to be called first of all in `main`.
///
/// - Large blocks that are freed are kept. Left alone, glibc hands every freed activation back to the system and takes fresh pages for
///   the next one; with threads at work, that is up to half of the time of a training step.
/// - candle's own thread pool is turned off, unless `CANDLE_NUM_THREADS` is set: it spins between operations and takes one caller at
///   a time, so that it slows down ours.
/// - The work is done by a thread of rayon's pool. From any other, every operation would wake that pool and sleep until it is done.
///
/// A panic of the work is this function's panic.
///
/// # Errors
/// [`Error::TryAgain`] where the system starts no more threads.
///
/// # Safety
/// No other thread may have been started yet: the environment is written to.
#[allow(unsafe_code)]
pub unsafe fn run<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    keep_freed();
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: the caller promises that nothing else reads the environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    }
    rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global().map_err(no_threads)?;
    Ok(rayon::scope(|_| work()))
}

fn no_threads(e: rayon::ThreadPoolBuildError) -> Error {
    let cause = std::error::Error::source(&e).map_or(e.to_string(), ToString::to_string);
    Error::TryAgain(format!("cannot start threads: {cause}; set RAYON_NUM_THREADS to fewer"))
}

/// Threads for work beside that of [`run`]: whoever waits for such work may hold the last free thread of rayon's pool.
///
/// # Errors
/// [`Error::TryAgain`] where the system starts no more threads.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build().map_err(no_threads)
}

fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt sets three numbers of the allocator, under its own lock.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        // Threads would get arenas of their own, which hand large blocks back whatever is set.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

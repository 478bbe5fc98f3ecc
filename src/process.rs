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
/// - No pool of threads is larger than the CPUs that this process may use, whatever the environment says: see [`capped`]. `work` is
///   given one line for each setting that was changed, for the user to read.
///
/// A panic of the work is this function's panic.
///
/// # Errors
/// [`Error::TryAgain`] where the system starts no more threads.
///
/// # Safety
/// No other thread may have been started yet: the environment is written to.
#[allow(unsafe_code)]
pub unsafe fn run<R: Send>(work: impl FnOnce(Vec<String>) -> R + Send) -> Result<R> {
    keep_freed();
    let mut notes = Vec::new();
    for name in SETTINGS {
        let Some(asked) = std::env::var_os(name) else { continue };
        let Some((threads, note)) = capped(name, &asked.to_string_lossy(), cpus()) else { continue };
        // SAFETY: the caller promises that nothing else reads the environment.
        unsafe { std::env::set_var(name, threads.to_string()) }
        notes.push(note);
    }
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: the caller promises that nothing else reads the environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    }
    rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global().map_err(no_threads)?;
    Ok(rayon::scope(|_| work(notes)))
}

/// The variables by which the libraries at work are told how many threads to start: rayon's two names, polars', and candle's.
const SETTINGS: [&str; 4] = ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS", "POLARS_MAX_THREADS", "CANDLE_NUM_THREADS"];

/// CPUs that this process may use: as many as its affinity mask and the CPU quota of its cgroups allow.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many threads a setting is given instead of what was asked for, and why; none for a setting that may stay. More threads than CPUs
/// do not compute faster, and thousands take the machine down. What is no number is refused by some libraries with a panic.
pub fn capped(name: &str, asked: &str, cpus: usize) -> Option<(usize, String)> {
    let (shown, why) = match asked.trim().parse::<u128>() {
        Ok(0) => return (name == "POLARS_MAX_THREADS").then(|| (cpus, format!("note: {name}=0 is taken as {cpus}"))),
        Ok(threads) if threads <= cpus as u128 => return None,
        Ok(threads) => (threads.to_string(), "is more than the CPUs that this process may use"),
        Err(_) => (crate::error::shorten(asked), "is no number of threads"),
    };
    Some((cpus, format!("note: {name}={shown} {why}; {cpus} threads are used")))
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

/// Hands memory that was freed back to the system, so that [`crate::memory::held`] says what is in use.
pub fn hand_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim works under the allocator's own lock, and touches no block that is in use.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_asks_for_more_threads_than_cpus() {
        for (asked, threads) in [
            ("100000", Some(4)),
            ("5", Some(4)),
            ("340282366920938463463374607431768211456", Some(4)),
            ("many", Some(4)),
            ("-1", Some(4)),
            ("4", None),
            ("1", None),
            ("0", None),
        ] {
            let found = capped("RAYON_NUM_THREADS", asked, 4);
            assert_eq!(found.as_ref().map(|(threads, _)| *threads), threads, "{asked}: {found:?}");
        }
        assert_eq!(capped("POLARS_MAX_THREADS", "0", 4).unwrap().0, 4);
        let (_, note) = capped("RAYON_NUM_THREADS", "100000", 4).unwrap();
        assert_eq!(
            note,
            "note: RAYON_NUM_THREADS=100000 is more than the CPUs that this process may use; 4 threads are used"
        );
        assert!(cpus() >= 1);
    }
}

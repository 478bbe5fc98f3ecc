//! The `interp` binary.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The command line reports a panic itself, in one line.
    cli::backtrace::keep();
    // SAFETY: no other thread has been started yet.
    #[allow(unsafe_code)]
    let ended = unsafe { interp::process::run(|notes| cli::main(std::env::args_os(), &notes)) };
    ended.unwrap_or_else(|e| cli::failed(&e))
}

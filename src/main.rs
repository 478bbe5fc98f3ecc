//! The `interp` binary.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The command line reports a panic itself, in one line.
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|value| value == "0") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    // SAFETY: no other thread has been started yet.
    #[allow(unsafe_code)]
    let ended = unsafe { interp::process::run(|| cli::main(std::env::args_os())) };
    ended.unwrap_or_else(|e| cli::failed(&e))
}

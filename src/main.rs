//! The `interp` binary.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // candle's own thread pool spins between operations and takes one caller at a time; where we work on several
    // threads ourselves it halves the speed. It reads this variable when it is first used.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread has been started yet.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("CANDLE_NUM_THREADS", "1")
        }
    }
    interp::memory::keep_freed();
    // The command line reports a panic itself, in one line.
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|value| value == "0") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    cli::main(std::env::args_os())
}

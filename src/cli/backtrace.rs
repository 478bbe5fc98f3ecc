//! Where a bug came from, for who asks with `RUST_BACKTRACE`. A refusal has none.

use std::backtrace::Backtrace;
use std::io::Write;
use std::sync::Mutex;

/// Of the last panic: a panic may be caught, and become a refusal.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Keeps quiet about panics, and where each happened.
pub fn keep() {
    std::panic::set_hook(Box::new(|panic| {
        if wanted() {
            let text = format!("{panic}\n{}", Backtrace::force_capture());
            if let Ok(mut last) = LAST.lock() {
                *last = text;
            }
        }
    }));
}

/// Shows where the last panic happened.
pub fn show() {
    if let (true, Ok(last)) = (wanted(), LAST.lock()) {
        let _ = writeln!(std::io::stderr(), "{last}");
    }
}

/// Shows the backtrace that candle appends to what it says.
pub fn of_candle(error: &candle_core::Error) {
    if let (true, Some((_, trace))) = (wanted(), error.to_string().split_once("\n   0: ")) {
        let _ = writeln!(std::io::stderr(), "   0: {trace}");
    }
}

fn wanted() -> bool {
    std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0")
}

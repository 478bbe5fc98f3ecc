//! Ending when the user asks: the first signal after what is at hand, the second one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use interp::Error;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether the user asked to stop.
pub struct Stop {
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Listens from now on.
    pub fn listen() -> Self {
        let (signal, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for number in [SIGINT, SIGTERM] {
            // These run in the order in which they are registered. They fail for signals that cannot be caught alone.
            let _ = flag::register_conditional_shutdown(number, 128 + number, asked.clone());
            let _ = flag::register(number, asked.clone());
            let _ = flag::register_usize(number, signal.clone(), number as usize);
        }
        Self { signal }
    }

    pub fn is_asked(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// What it ends with, ` at step 7` for instance.
    pub fn error(&self, at: String) -> Error {
        match self.signal.load(Ordering::Relaxed) == SIGTERM as usize {
            true => Error::Terminated(at),
            false => Error::Interrupted(at),
        }
    }
}

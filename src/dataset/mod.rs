//! Activation datasets: planned first, written part by part, sealed last.
//!
//! A dataset is a directory. `plan.json` says what it will hold; `tokens.bin`, `sequences.bin` and `labels.parquet` are
//! the text that was read; each `part-00000.parquet` (or of another layout) has a record beside it, and `manifest.json` comes when all are there.
//! Every file is absent or whole, so an export that was cut off at any moment goes on where it was.

pub(crate) mod document;
pub mod documents;
pub(crate) mod files;
pub mod labels;
pub(crate) mod lines;
pub mod lock;
pub mod manifest;
pub mod plan;
pub mod reader;
pub mod sequences;
pub mod statistics;
mod table;

use std::path::Path;

use crate::error::{Error, Result};

/// Refuses while another process writes a piece of a division into another number of pieces than `of`, or of any without it: two
/// pieces of different divisions have parts in common.
///
/// # Errors
/// [`Error::TryAgain`] with the piece.
pub(crate) fn read_for_pieces(dir: &Path, of: Option<usize>) -> Result<()> {
    let fail = |e| Error::reading(dir, e);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(name) = name.to_str().filter(|name| files::is_piece(name)) else { continue };
        if of.is_some_and(|of| name.ends_with(&format!("-of-{of}.lock"))) {
            continue;
        }
        drop(lock::Lock::open(&dir.join(name))?); // left by a process that was killed
    }
    Ok(())
}

//! Activation datasets: planned first, written part by part, sealed last.
//!
//! A dataset is a directory. `plan.json` says what it will hold; `tokens.bin`, `sequences.bin` and `labels.parquet` are
//! the text that was read; each `part-00000.parquet` (or of another layout) has a record beside it, and `manifest.json` comes when all are there.
//! Every file is absent or whole, so an export that was cut off at any moment goes on where it was.

pub mod documents;
pub mod lock;
pub mod manifest;
pub mod plan;
pub mod reader;
pub mod sequences;
pub mod statistics;

//! Where weights come from: found, checked whole, and only then loaded.

mod checkpoint;
mod digest;
mod find;
mod header;
mod hub;
pub mod nanogpt;
mod pickle;
mod places;
mod save;

pub use checkpoint::{Checkpoint, Loaded, check_vocabulary, shard_names, weight_files};
pub use digest::{DigestCache, Expected, FileDigest, Sha256Writer, promised, sha256, sha256_of};
pub use find::{Files, cached, find};
pub use header::{read_small, read_text};
pub use hub::{Progress, download};
pub use nanogpt::NanoGpt;
pub use places::{Places, Repository};
pub use save::{write_model, write_tensors};

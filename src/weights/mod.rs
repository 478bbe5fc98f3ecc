//! Where weights come from: found, checked whole, and only then loaded.

mod checkpoint;
mod digest;
mod find;
mod header;
mod hub;
mod places;

pub use checkpoint::{Checkpoint, Loaded, shard_names, weight_files};
pub use digest::{DigestCache, Expected, FileDigest, sha256, sha256_of};
pub use find::{Files, cached, find};
pub use header::read_small;
pub use hub::{Progress, download};
pub use places::{Places, Repository};

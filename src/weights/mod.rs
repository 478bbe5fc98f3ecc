//! Where weights come from: found, checked whole, and only then loaded.

mod address;
mod checkpoint;
mod digest;
mod fetch;
mod find;
mod foreign;
mod header;
mod hub;
mod layout;
pub mod nanogpt;
mod pickle;
mod places;
mod save;
mod tokenizer;
mod torch;
mod within;

pub use checkpoint::{Checkpoint, Loaded, shard_names, weight_files};
pub use digest::{DigestCache, Expected, FileDigest, Sha256Writer, promised, sha256, sha256_of};
pub use find::{Files, cached, find, find_torch};
pub use header::{open_regular, read_small, read_tensors, read_text};
pub use hub::{Format, Progress, download};
pub use places::{Patience, Places, Repository, Token};
pub use save::{MODEL_FILES, write_model, write_tensors};
pub use tokenizer::{check_vocabulary, load_roles, load_tokenizer};
pub use torch::{Hints, TorchModel};

//! Links in the cache. Hugging Face's own lead from a snapshot to a blob of the same repository; any other is refused, or a
//! cache that somebody else made could have files of this machine read or overwritten.

use std::path::Path;

use crate::disk;
use crate::error::{Error, Result};

/// Refuses a file of the cache that a link puts outside its repository; `repo` is the repository's directory.
pub(super) fn check_inside(hub: &Path, repo: &Path, file: &Path) -> Result<()> {
    let real = |path: &Path| {
        std::fs::canonicalize(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound if path.is_symlink() => {
                Error::Missing(format!("{}: a link to a file that does not exist", path.display()))
            }
            _ => Error::reading(path, e),
        })
    };
    let (hub, name) = (real(hub)?, repo.file_name().unwrap_or_default());
    let (own, file_at) = (hub.join(name), real(file)?);
    if file_at.starts_with(own.join("blobs")) || file_at.starts_with(own.join("snapshots")) {
        return Ok(());
    }
    Err(outside(file, &file_at))
}

/// Creates a directory of the cache; refuses one that a link puts outside of it.
pub(super) fn directory(hub: &Path, dir: &Path) -> Result<()> {
    disk::write_dir(hub)?;
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |e| Error::reading(path, e)
    };
    let root = std::fs::canonicalize(hub).map_err(io(hub))?;
    // The part that exists says where the rest would be created.
    let there = dir.ancestors().find(|path| path.is_symlink() || path.exists()).unwrap_or(hub);
    let real = std::fs::canonicalize(there).map_err(io(there))?;
    let wanted = root.join(there.strip_prefix(hub).unwrap_or(there));
    if real != wanted {
        return Err(outside(there, &real));
    }
    disk::write_dir(dir)
}

fn outside(path: &Path, to: &Path) -> Error {
    let to = crate::error::shorten_to(&to.display().to_string(), 200);
    Error::data(
        path,
        format!("a link to {to}, out of its repository in the cache; only links from snapshots to blobs are followed"),
    )
}

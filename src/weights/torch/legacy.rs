//! The format before PyTorch 1.6: five pickles, then the storages one after the other, each after its length.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::header::open_regular;
use super::super::pickle::{self, Pickle, Value};
use super::Stored;
use crate::error::{Error, Result};

/// The number with which the format begins, 0x1950a86a20f9469cfc6c, as a pickle has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

pub struct Legacy {
    path: PathBuf,
    file: File,
    /// Key → first byte and number of bytes.
    storages: HashMap<String, (u64, u64)>,
}

/// Whether a file begins as this format does.
pub fn is_legacy(head: &[u8]) -> bool {
    head.first() == Some(&0x80) && head.iter().take(24).copied().collect::<Vec<_>>().windows(10).any(|w| w == MAGIC)
}

impl Legacy {
    pub fn open(path: &Path) -> Result<(Pickle, Self)> {
        let wrong = |what: &str| Error::data(path, what);
        let file = open_regular(path)?;
        let size = file.metadata().map_err(|e| Error::reading(path, e))?.len();
        let mut bytes = Vec::new();
        (&file).take(pickle::MAX_BYTES).read_to_end(&mut bytes).map_err(|e| Error::reading(path, e))?;
        let mut at = 0;
        let mut next = || -> Result<Pickle> {
            let (pickle, length) = Pickle::parse_first(bytes.get(at..).unwrap_or_default(), path)?;
            at += length;
            Ok(pickle)
        };
        let magic = next()?;
        if *magic.get(magic.root()) != Value::Bytes(MAGIC.to_vec()) {
            return Err(wrong("was not written by torch.save"));
        }
        let version = next()?;
        if *version.get(version.root()) != Value::Int(1001) {
            return Err(wrong("is of another version of PyTorch's old format than 1001"));
        }
        let system = next()?;
        let little = system.field(system.root(), "little_endian").map(|id| system.get(id));
        if little != Some(&Value::Bool(true)) {
            return Err(wrong("its numbers are not little-endian"));
        }
        let (pickle, keys) = (next()?, next()?);
        let widths = widths(&pickle);
        let mut storages = HashMap::new();
        let mut start = at as u64;
        for key in keys.items(keys.root()).ok_or_else(|| wrong("has no list of storages"))? {
            let Value::Text(key) = keys.get(*key) else { return Err(wrong("a storage has no name")) };
            let width = *widths.get(key.as_str()).ok_or_else(|| wrong("a storage is of no known type"))?;
            let mut count = [0; 8];
            file.read_exact_at(&mut count, start)
                .map_err(|_| wrong("ends before its storages do: it was cut short"))?;
            let length = u64::from_le_bytes(count).checked_mul(width as u64);
            let end = length.and_then(|length| (start + 8).checked_add(length)).filter(|&end| end <= size);
            let end = end.ok_or_else(|| {
                let what = format!("storage {key} ends after the {size} bytes that the file has: it was cut short");
                Error::data(path, what)
            })?;
            storages.insert(key.clone(), (start + 8, end - start - 8));
            start = end;
        }
        Ok((pickle, Self { path: path.to_path_buf(), file, storages }))
    }

    /// The bytes of a storage.
    pub fn storage(&mut self, key: &str) -> Result<Vec<u8>> {
        let &(start, length) = self
            .storages
            .get(key)
            .ok_or_else(|| Error::data(&self.path, format!("storage {} is not in it", crate::error::shorten(key))))?;
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(|e| Error::reading(&self.path, e))?;
        Ok(bytes)
    }
}

/// Bytes per element of each storage that a pickle refers to.
fn widths(pickle: &Pickle) -> HashMap<&str, usize> {
    let persistent = pickle.values().filter_map(|value| match value {
        Value::Persistent(id) => pickle.items(*id),
        _ => None,
    });
    persistent
        .filter_map(|items| {
            let [_, class, key, ..] = items else { return None };
            match (pickle.get(*class), pickle.get(*key)) {
                (Value::Global(class), Value::Text(key)) => Some((key.as_str(), Stored::width(class)?)),
                _ => None,
            }
        })
        .collect()
}

//! The format since PyTorch 1.6: a zip archive with the pickle and each storage as an entry, stored as it is.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use super::super::header::open_regular;
use super::super::pickle::{self, Pickle};
use crate::error::{Error, Result, shorten};

pub struct Zipped {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    /// The directory inside it.
    root: String,
}

impl Zipped {
    pub fn open(path: &Path) -> Result<(Pickle, Self)> {
        let wrong = |what: String| Error::data(path, what);
        let zip = ZipArchive::new(BufReader::new(open_regular(path)?))
            .map_err(|e| wrong(format!("a damaged zip archive ({e}): copy or download it again")))?;
        let names: Vec<String> = zip.file_names().filter_map(|name| Some(name.ok()?.to_string())).collect();
        let roots: Vec<&str> = names
            .iter()
            .filter_map(|name| name.strip_suffix("data.pkl"))
            .filter(|root| root.is_empty() || root.ends_with('/'))
            .collect();
        let root = match roots.as_slice() {
            [root] => root.to_string(),
            [] => return Err(wrong("a zip archive without data.pkl, so not of torch.save".into())),
            _ => return Err(wrong(format!("holds {} files data.pkl; a checkpoint holds one", roots.len()))),
        };
        if names.iter().any(|name| *name == format!("{root}constants.pkl")) {
            return Err(wrong(
                "is a TorchScript program, from which no weights are read: save the state_dict with torch.save".into(),
            ));
        }
        let mut archive = Self { path: path.to_path_buf(), zip, root };
        if archive.entry("byteorder", 16).is_ok_and(|order| order != b"little") {
            return Err(Error::data(path, "its numbers are not little-endian"));
        }
        let pickle = Pickle::parse(&archive.entry("data.pkl", pickle::MAX_BYTES)?, path)?;
        Ok((pickle, archive))
    }

    /// The bytes of a storage.
    pub fn storage(&mut self, key: &str) -> Result<Vec<u8>> {
        let size = std::fs::metadata(&self.path).map_err(|e| Error::reading(&self.path, e))?.len();
        self.entry(&format!("data/{key}"), size)
    }

    /// A file of the archive, of at most `limit` bytes.
    fn entry(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let wrong = |what: String| Error::data(&self.path, format!("{}{}: {what}", shorten(&self.root), shorten(name)));
        let mut entry = self.zip.by_name(&format!("{}{name}", self.root)).map_err(|e| wrong(e.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(wrong("is compressed; PyTorch stores weights as they are".into()));
        }
        if entry.size() > limit {
            return Err(wrong(format!("has {} bytes; at most {limit} are read", entry.size())));
        }
        let mut bytes = Vec::new();
        entry.by_ref().take(limit).read_to_end(&mut bytes).map_err(|e| wrong(e.to_string()))?;
        Ok(bytes)
    }
}

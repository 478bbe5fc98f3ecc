//! The header of a safetensors file, checked whole before anything is allocated for its tensors.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::foreign;
use crate::error::{Error, Result};

/// Largest header that is read; GPT-2 XL needs less than 64 KiB.
const MAX_HEADER: u64 = 8 << 20;

/// Where the bytes of a checkpoint are.
#[derive(Debug)]
pub enum Source {
    File(File),
    /// In memory, or compiled into the binary.
    Bytes(Cow<'static, [u8]>),
}

impl Source {
    pub fn len(&self) -> std::io::Result<u64> {
        match self {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Fills `buffer` from byte `offset` on. A file that shrank meanwhile is an error, never a fault.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Source::File(file) => std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset),
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
                let end = start.checked_add(buffer.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(bytes.get(start..end).ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// A file of tensors whose header has been checked: what it holds and where.
#[derive(Debug)]
pub struct Header {
    pub path: PathBuf,
    pub source: Source,
    /// Offset of the first tensor's first byte.
    pub data_start: u64,
    /// Every tensor, in the order of the header.
    pub tensors: Vec<(String, TensorInfo)>,
}

impl Header {
    /// Opens `path` and checks that its header describes the rest of the file exactly.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is no regular file, [`Error::Data`] with the fault otherwise.
    pub fn open(path: &Path) -> Result<Self> {
        Self::check(path, Source::File(open_regular(path)?))
    }

    /// [`Header::open`] for a checkpoint in memory.
    pub fn parse(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::check(Path::new(name), Source::Bytes(bytes))
    }

    fn check(path: &Path, source: Source) -> Result<Self> {
        let io = |e| Error::reading(path, e);
        let size = source.len().map_err(io)?;
        // A file that is no safetensors may still be known by its first bytes.
        let mut head = vec![0; size.min(512) as usize];
        source.read_at(&mut head, 0).map_err(io)?;
        let wrong = |what: String| Error::data(path, foreign::name(path, &head).unwrap_or(what));
        if size < 8 {
            return Err(wrong(format!("header: {size} bytes is too short for a safetensors file")));
        }
        let mut length = [0; 8];
        source.read_at(&mut length, 0).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > size - 8 {
            return Err(wrong(format!(
                "header: claims {length} bytes, but the file has {size} and a header at most {MAX_HEADER}"
            )));
        }
        let mut text = vec![0; length as usize];
        source.read_at(&mut text, 8).map_err(io)?;
        let text = std::str::from_utf8(&text).map_err(|e| wrong(format!("header: not UTF-8: {e}")))?;
        let entries: Entries =
            serde_json::from_str(text).map_err(|e| wrong(format!("header: {}", clean(&e.to_string()))))?;
        check_layout(&entries.0, size - 8 - length).map_err(|what| wrong(format!("header: {what}")))?;
        Ok(Self { path: path.to_path_buf(), source, data_start: 8 + length, tensors: entries.0 })
    }
}

/// Opens a regular file and nothing else: a pipe would hang, a device would never end.
///
/// # Errors
/// [`Error::Missing`] for what is not there or no regular file, [`Error::Io`].
pub fn open_regular(path: &Path) -> Result<File> {
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if path.is_symlink() => {
            Error::Missing(format!("{}: a link to a file that does not exist", path.display()))
        }
        _ => Error::reading(path, e),
    })?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
        return Err(Error::Missing(format!("{}: {what}, where a file is wanted", path.display())));
    }
    // It may have become a pipe meanwhile: opening one must not wait for its other end.
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| Error::reading(path, e))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(Error::Missing(format!("{}: not a regular file, where a file is wanted", path.display()))),
        Err(e) => Err(Error::reading(path, e)),
    }
}

/// Files that are not compared with the memory that is left before they are read.
const SMALL: u64 = 64 << 20;

/// Reads a regular file of at most `limit` bytes whole.
///
/// # Errors
/// As [`open_regular`]; [`Error::Data`] for a file that is larger, or that is a pointer to a file which Git LFS has not fetched;
/// [`Error::TryAgain`] for one that does not fit into memory.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let length = file.metadata().map_err(|e| Error::reading(path, e))?.len();
    if length > limit {
        return Err(Error::data(path, format!("larger than the {limit} bytes that such a file may have")));
    }
    if length > SMALL {
        crate::memory::check(&format!("reading {}", path.display()), length, None)?;
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::reading(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::data(path, format!("larger than the {limit} bytes that such a file may have")));
    }
    match foreign::pointer(&bytes) {
        Some(what) => Err(Error::data(path, what)),
        None => Ok(bytes),
    }
}

/// Reads a safetensors file of at most `limit` bytes whole, after its header was checked as that of weights is: no empty tensor, no shape
/// whose product passes 64 bits, no byte that belongs to none.
///
/// # Errors
/// As [`read_small`], and [`Error::Data`] for a header that does not describe the rest of the file.
pub fn read_tensors(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let bytes = read_small(path, limit)?;
    let tensors = Header::open(path)?.tensors;
    match tensors.iter().find(|(_, info)| info.shape.contains(&0)) {
        Some((name, info)) => {
            Err(Error::data(path, format!("header: tensor `{}` is empty: its shape is {:?}", clean(name), info.shape)))
        }
        None => Ok(bytes),
    }
}

/// Reads a text file of at most `limit` bytes whole, without a byte-order mark.
///
/// # Errors
/// As [`read_small`], and [`Error::Data`] where it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let text = String::from_utf8(read_small(path, limit)?)
        .map_err(|e| Error::data(path, format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

fn clean(message: &str) -> String {
    crate::error::shorten(message)
}

/// Tensors must cover the data without overlap or hole, and each must be as long as its shape says.
fn check_layout(tensors: &[(String, TensorInfo)], data: u64) -> std::result::Result<(), String> {
    let mut by_offset: Vec<&(String, TensorInfo)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, info) in by_offset {
        let name = clean(name);
        let (start, end) = info.data_offsets;
        if start != expected || end < start {
            return Err(format!("tensor `{name}` is at bytes {start}..{end}, where one should start at {expected}"));
        }
        let size = info
            .shape
            .iter()
            .try_fold(1_usize, |n, &dim| n.checked_mul(dim))
            .and_then(|n| n.checked_mul(info.dtype.bitsize()))
            .map(|bits| bits / 8);
        match size {
            None => return Err(format!("tensor `{name}`: the shape {:?} overflows", info.shape)),
            Some(size) if size != end - start => {
                return Err(format!(
                    "tensor `{name}` of {:?} {:?} needs {size} bytes but has {}",
                    info.dtype,
                    info.shape,
                    end - start
                ));
            }
            Some(_) => expected = end,
        }
    }
    match data.cmp(&(expected as u64)) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => {
            Err(format!("expected {expected} bytes of data, found {data}: the file is cut short; download it again"))
        }
        std::cmp::Ordering::Greater => Err(format!("{} bytes follow the last tensor", data - expected as u64)),
    }
}

/// The header's entries in order; unlike a map it notices a name that comes twice.
struct Entries(Vec<(String, TensorInfo)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{name}` appears twice")));
                    }
                    if name == "__metadata__" {
                        // As the safetensors library: null is as good as none, values are texts.
                        map.next_value::<Option<std::collections::BTreeMap<String, String>>>()
                            .map_err(|e| serde::de::Error::custom(format!("`__metadata__`: {e}")))?;
                    } else {
                        let info = map
                            .next_value::<TensorInfo>()
                            .map_err(|e| serde::de::Error::custom(format!("tensor `{name}`: {e}")))?;
                        entries.push((name, info));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// The candle type of a stored dtype, for those that weights may have.
pub fn float_dtype(dtype: Dtype) -> Option<candle_core::DType> {
    match dtype {
        Dtype::F64 => Some(candle_core::DType::F64),
        Dtype::F32 => Some(candle_core::DType::F32),
        Dtype::F16 => Some(candle_core::DType::F16),
        Dtype::BF16 => Some(candle_core::DType::BF16),
        _ => None,
    }
}

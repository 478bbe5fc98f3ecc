//! Files that `torch.save` wrote: a pickle, and the storages with the numbers that it refers to.
//!
//! Nothing in them is ever executed, and a damaged or hostile one is an error. Still, read what a stranger made in a
//! process of its own with limits, as `interp models convert` does.

mod legacy;
mod model;
mod stored;
mod zipped;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

pub use model::{Hints, TorchModel};
pub(super) use stored::Stored;

use super::foreign;
use super::pickle::Pickle;
use crate::error::{Error, Result, shorten};
use legacy::Legacy;
use zipped::Zipped;

/// A file of PyTorch whose pickle has been read.
pub(super) struct TorchFile {
    pub path: PathBuf,
    pub pickle: Pickle,
    storages: Storages,
    /// The storage that was read last: tensors often share one.
    last: Option<(String, Vec<u8>)>,
}

/// Where the numbers are.
enum Storages {
    /// Since PyTorch 1.6: entries of a zip archive.
    Zipped(Zipped),
    /// Before: one after the other, behind the pickles.
    Legacy(Legacy),
}

impl TorchFile {
    /// Opens a file and reads its pickle.
    ///
    /// # Errors
    /// [`Error::Missing`], or [`Error::Data`] for what PyTorch did not write or what calls a function that weights do not
    /// need.
    pub fn open(path: &Path) -> Result<Self> {
        let head = foreign::head(path).unwrap_or_default();
        let (pickle, storages) = if head.starts_with(b"PK") {
            let (pickle, zip) = Zipped::open(path)?;
            (pickle, Storages::Zipped(zip))
        } else if legacy::is_legacy(&head) {
            let (pickle, legacy) = Legacy::open(path)?;
            (pickle, Storages::Legacy(legacy))
        } else {
            super::header::open_regular(path)?;
            let what = match foreign::is_torch(path, &head) {
                true => {
                    "is a plain pickle; torch.save writes another format: save the state_dict with torch.save".into()
                }
                false => foreign::name(path, &head).unwrap_or("was not written by torch.save".into()),
            };
            return Err(Error::data(path, what));
        };
        if let Some(name) = pickle.globals().find(|name| !is_harmless(name)) {
            let what = format!(
                "calls `{}`, which weights have no use for; it is not read: save the state_dict alone",
                shorten(name)
            );
            return Err(Error::data(path, what));
        }
        Ok(Self { path: path.to_path_buf(), pickle, storages, last: None })
    }

    /// A tensor, in the type in which it is stored.
    pub fn read(&mut self, stored: &Stored) -> Result<Tensor> {
        if self.last.as_ref().is_none_or(|(key, _)| *key != stored.storage) {
            self.last = None; // before the next one is read: the two need not fit together
            let bytes = match &mut self.storages {
                Storages::Zipped(zip) => zip.storage(&stored.storage)?,
                Storages::Legacy(legacy) => legacy.storage(&stored.storage)?,
            };
            self.last = Some((stored.storage.clone(), bytes));
        }
        let bytes = self.last.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let values = stored.gather(bytes).map_err(|what| Error::data(&self.path, what))?;
        Ok(Tensor::from_raw_buffer(&values, stored.dtype, &stored.shape, &Device::Cpu)?)
    }
}

/// Functions and classes that files of weights name. None is called: this is what a reader may expect to find.
fn is_harmless(name: &str) -> bool {
    const STORAGES: [&str; 10] =
        ["Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Bool", "Int", "Long"];
    let storage = |name: &str| name.strip_suffix("Storage").is_some_and(|kind| STORAGES.contains(&kind));
    matches!(
        name,
        "collections.OrderedDict"
            | "torch._utils._rebuild_tensor_v2"
            | "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch._tensor._rebuild_from_type_v2"
            | "torch.nn.parameter.Parameter"
            | "torch.Tensor"
            | "torch.Size"
            | "torch.device"
            // A loss that training code kept as NumPy's number.
            | "numpy.core.multiarray.scalar"
            | "numpy._core.multiarray.scalar"
            | "numpy.dtype"
            | "_codecs.encode"
    ) || name.strip_prefix("torch.").is_some_and(storage)
}

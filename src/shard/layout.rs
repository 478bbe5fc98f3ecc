//! How a file of rows is laid out.

use std::io::Write;
use std::path::Path;

use polars::prelude::{DataFrame, SchemaRef};
use serde::{Deserialize, Serialize};

use super::column::{Values, Wide};
use super::flat::{Flat, fault};
use super::npz::Npz;
use super::sequences::SequenceFile;
use super::tensors::{self, Tensors};
use super::writer::ShardWriter;
use crate::error::{Error, Result, shorten};
use crate::site::Site;

/// Columns that tell the rows of every dataset apart.
pub const IDENTITY: [&str; 5] = ["prompt", "document", "pos", "token_id", "token"];
/// The entry of a file that says which plan it is of.
pub const PLAN: &str = "interp_plan";
/// The entry of the header of safetensors that is no tensor.
const METADATA: &str = "__metadata__";
/// Bytes of texts in a header of safetensors at most: readers take no header of more than 100,000,000.
const MAX_HEADER: usize = 90_000_000;
/// Bytes that a column of texts takes in an archive of numpy at most.
const MAX_TEXTS: u64 = 1 << 30;

/// Whether a name can be that of an array in an archive, and of a file where the archive is unpacked; `numpy.load` takes `.npy` off.
fn is_entry(name: &str) -> bool {
    let bad = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    !name.contains(bad) && !name.ends_with(".npy") && name.len() <= 200 && !matches!(name, "." | "..")
}

/// A file of rows on its way.
pub trait Shard {
    /// Writes rows: their identity, and one array per row for every wide column.
    ///
    /// # Errors
    /// [`crate::Error::Io`] or [`crate::Error::CannotWrite`]; the file cannot be finished any more.
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()>;

    /// Writes what belongs at the end, and flushes.
    ///
    /// # Errors
    /// As [`Shard::write`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What a file of rows holds.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions<'a> {
    /// The file, for errors.
    pub path: &'a Path,
    /// Columns that tell rows apart.
    pub identity: &'a SchemaRef,
    /// Wide columns.
    pub wide: &'a [Wide],
    /// For the file's footer or header.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// How a file of rows is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Parquet, an array per row and site: [`ShardWriter`].
    #[default]
    Parquet,
    /// numpy's archive of arrays, `[row]` and `[row, d]`.
    Npz,
    /// Tensors, `[row]` and `[row, d]`; texts are codes, and tokens numbers only.
    Safetensors,
    /// What SAELens reads with `datasets.load_from_disk`: a row per sequence, `[pos, d]` in it.
    Saelens,
}

impl Layout {
    /// All of them, by name.
    pub const ALL: [(&'static str, Layout); 4] = [
        ("parquet", Layout::Parquet),
        ("npz", Layout::Npz),
        ("safetensors", Layout::Safetensors),
        ("saelens", Layout::Saelens),
    ];

    /// What a file's name ends in.
    pub fn extension(self) -> &'static str {
        match self {
            Layout::Parquet => "parquet",
            Layout::Npz => "npz",
            Layout::Safetensors => "safetensors",
            Layout::Saelens => "arrow",
        }
    }

    /// Whether rows can be written as they come; otherwise [`Shard::write`] takes all rows of a file at once.
    pub fn streams(self) -> bool {
        matches!(self, Layout::Parquet | Layout::Saelens)
    }

    /// Checks that the names of labels can be those of columns beside the identity of rows and these sites.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that is taken, that is given twice, or that a file of this layout cannot have.
    pub fn check_names(self, labels: &[String], sites: &[String]) -> Result<()> {
        for (i, name) in labels.iter().enumerate() {
            let refuse = |what: &str| Err(Error::request(format!("--label {} {what}", shorten(name))));
            if name.is_empty() {
                return Err(Error::request("--label has an empty name"));
            }
            if labels[..i].contains(name) {
                return refuse("is given twice");
            }
            if IDENTITY.contains(&name.as_str()) {
                return refuse("is the name of a column of every dataset, and cannot be a label too; rename the field");
            }
            let long = |site: &String| site.parse().is_ok_and(|site: Site| site.long() == *name);
            if sites.iter().any(|site| site == name || long(site)) {
                return refuse("is the name of a site of this dataset, and cannot be a label too; rename the field");
            }
            if self == Layout::Safetensors && [METADATA, PLAN].contains(&name.as_str()) {
                return refuse("is an entry of every file of safetensors, and cannot be a label too; rename the field");
            }
            if self == Layout::Npz && !is_entry(name) {
                return refuse(
                    "cannot be the name of a file in an archive: it may have no slash, colon, control character or `.npy` at its end, and at most 200 bytes; rename the field, or use --layout parquet",
                );
            }
        }
        Ok(())
    }

    /// Checks that files of this layout keep labels exactly: the values of all documents, `rows` of them in a file at most.
    ///
    /// # Errors
    /// [`Error::Data`] that names the label and its type.
    pub fn check(self, labels: &DataFrame, rows: u64) -> Result<()> {
        if !matches!(self, Layout::Npz | Layout::Safetensors) {
            return Ok(());
        }
        let mut header = 0;
        for column in labels.columns() {
            let Flat::Text(texts) = Flat::of(column)? else { continue };
            let refuse =
                |what: String| Err(fault(column.name(), format!("is {what}; leave it out, or use --layout parquet")));
            if self == Layout::Safetensors {
                header += tensors::header_bytes(&texts);
                if header > MAX_HEADER {
                    return refuse(format!(
                        "text whose values take {header} bytes, and a header of safetensors with all labels has at most {MAX_HEADER}"
                    ));
                }
                continue;
            }
            if let Some(i) = texts.iter().position(|text| text.ends_with('\0')) {
                return refuse(format!("text that ends in a character of code 0 in document {i}, which numpy drops"));
            }
            let longest = texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
            let bytes = rows.saturating_mul(4 * longest as u64);
            if bytes > MAX_TEXTS {
                return refuse(format!(
                    "text of up to {longest} characters, which every row has room for in npz: {bytes} bytes in a part of {rows} rows, and at most {MAX_TEXTS} are written"
                ));
            }
        }
        Ok(())
    }

    /// Begins a file; with [`Layout::Saelens`], `context` rows are a sequence.
    ///
    /// # Errors
    /// As [`ShardWriter::new`].
    pub fn writer<'a>(
        self,
        to: impl Write + 'a,
        options: &ShardOptions<'_>,
        context: usize,
    ) -> Result<Box<dyn Shard + 'a>> {
        let ShardOptions { path, identity, wide, metadata } = *options;
        Ok(match self {
            Layout::Parquet => Box::new(ShardWriter::new(to, path, identity, wide, metadata)?),
            Layout::Npz => Box::new(Npz::new(to, path, wide)),
            Layout::Safetensors => Box::new(Tensors::new(to, path, wide, metadata)),
            Layout::Saelens => Box::new(SequenceFile::new(to, path, wide, context)?),
        })
    }
}

impl<W: Write> Shard for ShardWriter<W> {
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()> {
        ShardWriter::write(self, identity, wide)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        ShardWriter::finish(*self).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::df;

    #[test]
    fn names_that_are_taken_or_impossible_are_refused() {
        let sites = ["resid_post.0".to_string()];
        let check = |layout: Layout, names: &[&str]| {
            layout.check_names(&names.iter().map(|name| name.to_string()).collect::<Vec<_>>(), &sites)
        };
        let all =
            ["x,x", "prompt", "document", "pos", "token_id", "token", "resid_post.0", "blocks.0.hook_resid_post", ""];
        for (_, layout) in Layout::ALL {
            check(layout, &["topic", "größe", "a.b", "a b", "X", "x"]).unwrap();
            for names in all {
                let refused = check(layout, &names.split(',').collect::<Vec<_>>()).unwrap_err();
                assert!(matches!(refused, Error::Request(_)), "{names}: {refused}");
            }
        }
        let long = "x".repeat(201);
        for (layout, names) in [
            (Layout::Safetensors, vec!["__metadata__", "interp_plan"]),
            (Layout::Npz, vec!["a/b", "../x", "a\\b", "c:x", "x.npy", ".", "..", "a\nb", "a\0", long.as_str()]),
        ] {
            for name in names {
                assert!(matches!(check(layout, &[name]), Err(Error::Request(_))), "{name}");
                check(Layout::Parquet, &[name]).unwrap();
            }
        }
    }

    #[test]
    fn texts_that_a_layout_would_change_are_refused() {
        let labels = |text: &str| df!("x" => [text]).unwrap();
        let refused =
            |layout: Layout, text: &str, rows: u64| layout.check(&labels(text), rows).unwrap_err().to_string();
        assert!(refused(Layout::Npz, "a\0", 1).contains("label `x`: is text that ends in a character of code 0"));
        assert!(refused(Layout::Npz, &"y".repeat(1000), 1 << 20).contains("text of up to 1000 characters"));
        for layout in [Layout::Npz, Layout::Safetensors, Layout::Parquet] {
            layout.check(&labels("a\0b"), 1 << 20).unwrap();
        }
        Layout::Safetensors.check(&labels("a\0"), 1).unwrap();
        let wide = "\u{1}".repeat(MAX_HEADER / 7);
        assert!(refused(Layout::Safetensors, &wide, 1).contains("a header of safetensors"));
        Layout::Parquet.check(&labels(&wide), u64::MAX).unwrap();
    }
}

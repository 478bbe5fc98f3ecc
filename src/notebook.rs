//! What a Jupyter notebook shows: figures, pages and frames, by the protocol of evcxr.
//!
//! evcxr shows the last expression of a cell by its method `evcxr_display`, which prints blocks of content, one per MIME
//! type. [`crate::figure::Figure`] and [`crate::page::Page`] have one; a frame gets one by [`show`].
//!
//! evcxr compiles every cell into a library of its own. Linked into each, polars would have the seeds of its hashes once
//! per cell, and columns of a frame from one cell would not be found in the next: `notebooks/kernel` makes the workbench one
//! library that all cells share.

use ::base64::Engine;
use ::base64::engine::general_purpose::STANDARD as BASE64;
use candle_core::{DType, Device};
use polars::prelude::*;

use crate::config::Config;
use crate::embedded;
use crate::error::{Error, Result, printable};
use crate::gpt2::Gpt2;
use crate::page::escaped;
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, Expected, Places, find, load_tokenizer, promised, read_small, sha256};

/// Rows of a frame that a notebook shows.
const ROWS: usize = 20;

/// What the cells of a notebook need, in one line.
pub mod prelude {
    pub use std::path::Path;

    pub use candle_core::{DType, Device, Tensor};
    pub use polars::prelude::*;

    pub use super::{open, show};
    pub use crate::frame::load_parquet;
    pub use crate::page::{self, Page};
    pub use crate::text::Encoding;
    pub use crate::{Edit, Error, Gpt2, Plan, Result, Site, Tokenizer, Tokens, Trace, figure};
}

/// A model in f32 on the CPU, and its tokenizer: `tiny`, or what `--model` of the command line takes (`gpt2` is downloaded
/// once).
///
/// # Errors
/// A model that cannot be found, that is not what it should be, or that has no tokenizer.
pub fn open(name: &str) -> Result<(Gpt2, Tokenizer)> {
    if name == embedded::NAME {
        return Ok((embedded::model()?, embedded::tokenizer()?));
    }
    let files = find(name, &Places::from_env()?, false, &mut ())?;
    for file in files.weights.iter().chain(&files.tokenizer) {
        let Some(Expected::Sha256(promised)) = promised(file) else { continue };
        let found = sha256(file)?;
        if found != promised {
            let what =
                format!("sha256 is {found}, but the cache promises {promised}; delete the file and download it again");
            return Err(Error::data(file, what));
        }
    }
    let config = Config::parse(&read_small(&files.config, 1 << 20)?, &files.config)?;
    let loaded = Checkpoint::open(&files.weights, &config)?.load(DType::F32, &Device::Cpu)?;
    if let Some(first) = loaded.not_finite.first() {
        return Err(Error::data(&files.config, format!("{first} holds values that are not finite")));
    }
    let tokenizer = load_tokenizer(&files, None, &config)?;
    let tokenizer = tokenizer.ok_or_else(|| Error::Missing(format!("{name}: no tokenizer beside the model")))?;
    Ok((loaded.model, tokenizer))
}

/// A frame, ready to be shown.
#[derive(Clone, Debug)]
pub struct Table(DataFrame);

/// Shows a frame as a table, its first rows and how many there are.
pub fn show(frame: &DataFrame) -> Table {
    Table(frame.clone())
}

impl Table {
    /// What a notebook shows.
    pub fn evcxr_display(&self) {
        display(&[("text/html", self.html()), ("text/plain", format!("{}", self.0))]);
    }

    /// The table as HTML.
    pub fn html(&self) -> String {
        let columns = self.0.columns();
        let mut html = String::from("<table><thead><tr>");
        for column in columns {
            html += &format!("<th>{}<br><small>{}</small></th>", escaped(&printable(column.name())), column.dtype());
        }
        html += "</tr></thead><tbody>";
        for i in 0..self.0.height().min(ROWS) {
            html += "<tr>";
            for column in columns {
                let text = column.get(i).map(|value| cell(&value)).unwrap_or_default();
                html += &format!("<td>{}</td>", escaped(&text));
            }
            html += "</tr>";
        }
        html += &format!("</tbody></table><p>{} rows × {} columns</p>", self.0.height(), columns.len());
        html
    }
}

/// A value as a cell shows it: text so that spaces are seen, numbers with four digits after the point.
fn cell(value: &AnyValue<'_>) -> String {
    match value {
        AnyValue::Null => String::new(),
        AnyValue::String(text) => printable(&format!("{text:?}")),
        AnyValue::Float32(x) => decimal(f64::from(*x)),
        AnyValue::Float64(x) => decimal(*x),
        AnyValue::Array(values, _) | AnyValue::List(values) => {
            let first = values.iter().take(3).map(|value| cell(&value)).collect::<Vec<_>>().join(", ");
            if values.len() > 3 { format!("[{first}, … {}]", values.len()) } else { format!("[{first}]") }
        }
        other => printable(&other.to_string()),
    }
}

fn decimal(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-3 { format!("{x:.2e}") } else { format!("{x:.4}") }
}

/// Prints content for a notebook: MIME type and text, each type at most once.
pub fn display(blocks: &[(&str, String)]) {
    for (mime, content) in blocks {
        // One line, so that no text in it can look like the end of the block.
        let content = match mime.starts_with("text/plain") {
            true => content.lines().map(|line| format!(" {}", printable(line))).collect::<Vec<_>>().join("\n"),
            false => content.replace(['\n', '\r'], " "),
        };
        println!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT");
    }
}

/// Bytes as text.
pub(crate) fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_text_as_text() {
        let frame = df!("token" => [" a", "<b>\u{1b}"], "x" => [0.1_f32, f32::NAN]).unwrap();
        let html = show(&frame).html();
        assert!(html.contains("<td>&quot; a&quot;</td><td>0.1000</td>"), "{html}");
        assert!(
            html.contains("&lt;b&gt;\\u{1b}") && html.contains("NaN") && html.contains("2 rows × 2 columns"),
            "{html}"
        );
    }
}

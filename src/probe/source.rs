//! Where rows come from besides tasks: documents with labels, and exported datasets.

use polars::prelude::*;

use crate::dataset::documents::{Content, Documents};
use crate::error::{Error, Result};
use crate::labelled::{Kind, Labelled, Row};
use crate::text::{Encoding, Tokenizer};
use crate::tokens::Tokens;

/// Which tokens of a text are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The first of the text.
    First,
    /// The last.
    Last,
    /// All of the text.
    All,
}

impl At {
    /// By name.
    ///
    /// # Errors
    /// [`Error::Request`] for another.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "first" => Ok(At::First),
            "last" => Ok(At::Last),
            "all" => Ok(At::All),
            other => Err(Error::request(format!(
                "`{}` is no place to read at; there are first, last and all",
                crate::error::shorten(other)
            ))),
        }
    }

    /// The positions of a text whose tokens begin at `start`.
    fn positions(&self, start: usize, length: usize) -> std::ops::Range<usize> {
        match self {
            At::First => start..length.min(start + 1),
            At::Last => length.saturating_sub(1).max(start)..length,
            At::All => start..length,
        }
    }
}

/// Documents whose first label is what is to be read, and whose second, if there is one, says what belongs together; without
/// it every document is a group of its own.
///
/// # Errors
/// Faults of the documents, [`Error::Request`] for a label that is missing, and as [`Labelled::new`].
pub fn from_documents(
    documents: Documents,
    at: &At,
    kind: Kind,
    tokenizer: &Tokenizer,
    encoding: Encoding,
) -> Result<(Tokens, Labelled)> {
    let (mut texts, mut labels) = (Vec::new(), Vec::new());
    for (i, document) in documents.enumerate() {
        let document = document?;
        let Content::Text(text) = document.content else {
            return Err(Error::request("tokens without text have no labels"));
        };
        texts.push(text);
        let mut own = document.labels.into_iter().map(|label| match label {
            serde_json::Value::Null => Err(Error::request(format!("document {i} has no label"))),
            serde_json::Value::String(text) => Ok(text),
            other => Ok(other.to_string()),
        });
        let label = own.next().ok_or_else(|| Error::request("documents without labels teach a probe nothing"))??;
        labels.push((label, own.next().transpose()?.unwrap_or_else(|| i.to_string())));
    }
    let tokens = tokenizer.tokens(&texts, encoding)?;
    let mut rows = Vec::new();
    for (prompt, (label, group)) in labels.into_iter().enumerate() {
        let ids = tokens.row(prompt);
        let start = usize::from(ids.first().is_some_and(|id| tokenizer.end_of_text() == Some(*id)));
        for pos in at.positions(start, ids.len()) {
            let control = ids[pos].to_string();
            rows.push(Row {
                prompt: prompt as u32,
                pos: pos as u32,
                label: label.clone(),
                group: group.clone(),
                control,
            });
        }
    }
    let labelled = Labelled::new(kind, &rows)?;
    Ok((tokens, labelled))
}

/// Rows of a dataset's identity columns, and which of the dataset's rows they are.
///
/// # Errors
/// [`Error::Request`] for a column that is not there or has gaps, and as [`Labelled::new`].
pub fn from_identity(
    identity: &DataFrame,
    (label, group): (&str, &str),
    at: &At,
    kind: Kind,
    start: Option<u32>,
) -> Result<(Vec<usize>, Labelled)> {
    let column = |name: &str| -> Result<Vec<String>> {
        let found = identity.column(name).map_err(|_| {
            let have = identity.get_column_names().iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            Error::request(format!("the dataset has no column `{name}`; it has {have}"))
        })?;
        let text = |i: usize| match found.get(i)? {
            AnyValue::Null => Err(Error::request(format!("row {i} has no `{name}`"))),
            AnyValue::String(text) => Ok(text.to_string()),
            AnyValue::Float64(x) => Ok(x.to_string()),
            other => Ok(other.to_string()),
        };
        (0..identity.height()).map(text).collect()
    };
    let (labels, groups) = (column(label)?, column(group)?);
    let u32s = |name: &str| -> Result<Vec<u32>> { Ok(identity.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (prompt, pos, token) = (u32s("prompt")?, u32s("pos")?, u32s("token_id")?);
    // Rows of a prompt may be anywhere in a dataset that was shuffled.
    let mut order: Vec<usize> = (0..prompt.len()).collect();
    order.sort_by_key(|row| (prompt[*row], pos[*row]));
    let (mut chosen, mut rows) = (Vec::new(), Vec::new());
    for own in order.chunk_by(|a, b| prompt[*a] == prompt[*b]) {
        let begin = usize::from(pos[own[0]] == 0 && start == Some(token[own[0]]));
        for &row in own.get(at.positions(begin, own.len())).unwrap_or_default() {
            let (label, group) = (labels[row].clone(), groups[row].clone());
            rows.push(Row { prompt: prompt[row], pos: pos[row], label, group, control: token[row].to_string() });
            chosen.push(row);
        }
    }
    let labelled = Labelled::new(kind, &rows)?;
    Ok((chosen, labelled))
}

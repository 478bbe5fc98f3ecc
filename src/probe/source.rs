//! Where rows come from besides tasks: documents with labels, and exported datasets.

use std::collections::BTreeMap;

use polars::prelude::*;

use crate::dataset::documents::{Content, Documents};
use crate::error::{Error, Result};
use crate::labelled::{Row, mark};
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
            other => Err(Error::no_such("place to read at", other, ["first", "last", "all"])),
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
/// it every text is a group of its own, so that one that comes twice is never on both sides.
///
/// # Errors
/// Faults of the documents, and [`Error::Request`] for a label that is missing, or for a text that is in two groups.
pub fn from_documents(
    documents: Documents,
    at: &At,
    tokenizer: &Tokenizer,
    encoding: Encoding,
) -> Result<(Tokens, Vec<Row>)> {
    let (mut texts, mut labels) = (Vec::new(), Vec::new());
    for (i, document) in documents.enumerate() {
        let document = document?;
        let Content::Text(text) = document.content else {
            return Err(Error::request("tokens without text have no labels"));
        };
        let missing = || Error::request(format!("document {i} has no label"));
        let mut own = document.labels.into_iter().map(|label| label.to_text().ok_or_else(missing));
        let label = own.next().ok_or_else(|| Error::request("documents without labels teach a probe nothing"))??;
        labels.push((label, own.next().transpose()?));
        texts.push(text);
    }
    let tokens = tokenizer.tokens(&texts, encoding)?;
    let (mut rows, mut groups) = (Vec::new(), Groups::default());
    for (prompt, (label, group)) in labels.into_iter().enumerate() {
        let ids = tokens.row(prompt);
        let start = usize::from(ids.first().is_some_and(|id| tokenizer.bos() == Some(*id)));
        let text = mark(&ids[start..]);
        let group = groups.of(&text, group, prompt)?;
        for pos in at.positions(start, ids.len()) {
            let control = ids[pos].to_string();
            rows.push(Row {
                prompt: prompt as u32,
                pos: pos as u32,
                label: label.clone(),
                group: group.clone(),
                control,
                text: Some(text.clone()),
            });
        }
    }
    Ok((tokens, rows))
}

/// What belongs together, of texts as tokens.
#[derive(Default)]
struct Groups {
    /// A document and its group, by what tells its text from others.
    known: BTreeMap<String, (usize, String)>,
}

impl Groups {
    /// The group of a document: the one that is given, or the text itself. What is learned from a text must not be tested on
    /// it, so it has one group.
    fn of(&mut self, text: &str, given: Option<String>, document: usize) -> Result<String> {
        let group = given.unwrap_or_else(|| text.to_string());
        let (first, known) = self.known.entry(text.to_string()).or_insert((document, group.clone()));
        match *known == group {
            true => Ok(group),
            false => Err(Error::request(format!(
                "documents {first} and {document} are the same text in the groups `{}` and `{}`: it could be learned and tested; leave one out",
                crate::error::shorten(known),
                crate::error::shorten(&group)
            ))),
        }
    }
}

/// Rows of a dataset's identity columns, and which of the dataset's rows they are. Without a `group` every text is one, as in
/// [`from_documents`]; `whole` says that the dataset has all tokens of its documents, without which texts and their ends cannot be
/// told.
///
/// # Errors
/// [`Error::Request`] for a column that is not there or has gaps, for a text that is in two groups, and without a group or for the
/// first or last token of texts that are not whole.
pub fn from_identity(
    identity: &DataFrame,
    (label, group): (&str, Option<&str>),
    at: &At,
    (start, whole): (Option<u32>, bool),
) -> Result<(Vec<usize>, Vec<Row>)> {
    let column = |name: &str| -> Result<Vec<String>> {
        let found = identity.column(name).map_err(|_| {
            let have: Vec<&str> = identity.get_column_names().iter().map(|name| name.as_str()).collect();
            Error::no_such("column", name, have)
        })?;
        let text = |i: usize| match found.get(i)? {
            AnyValue::Null => Err(Error::request(format!("row {i} has no `{name}`"))),
            AnyValue::String(text) => Ok(text.to_string()),
            AnyValue::Float64(x) => Ok(x.to_string()),
            AnyValue::Float32(x) => Ok(x.to_string()),
            other => Ok(other.to_string()),
        };
        (0..identity.height()).map(text).collect()
    };
    if !whole && (group.is_none() || *at != At::All) {
        return Err(Error::request(
            "the dataset has some tokens of its texts only (--sample, --skip-first-token or --max-tokens): give --group, and --at all",
        ));
    }
    let labels = column(label)?;
    let given = group.map(column).transpose()?;
    let u32s = |name: &str| -> Result<Vec<u32>> { Ok(identity.column(name)?.u32()?.into_no_null_iter().collect()) };
    let (prompt, pos, token, document) = (u32s("prompt")?, u32s("pos")?, u32s("token_id")?, u32s("document")?);
    // Rows may be anywhere in a dataset that was shuffled, and a long text in several sequences.
    let mut order: Vec<usize> = (0..prompt.len()).collect();
    order.sort_by_key(|row| (prompt[*row], pos[*row]));
    order.retain(|row| !(pos[*row] == 0 && start == Some(token[*row]))); // what starts a sequence is none of the text
    order.sort_by_key(|row| document[*row]);
    let mut known = Groups::default();
    let (mut chosen, mut rows) = (Vec::new(), Vec::new());
    for own in order.chunk_by(|a, b| document[*a] == document[*b]) {
        let text = mark(&own.iter().map(|row| token[*row]).collect::<Vec<_>>());
        let given = given.as_ref().map(|given| given[own[0]].clone());
        let group = match given {
            // Other tokens of two texts may differ where these do not.
            Some(given) if !whole => given,
            given => known.of(&text, given, document[own[0]] as usize)?,
        };
        for &row in own.get(at.positions(0, own.len())).unwrap_or_default() {
            rows.push(Row {
                prompt: prompt[row],
                pos: pos[row],
                label: labels[row].clone(),
                group: group.clone(),
                control: token[row].to_string(),
                text: whole.then(|| text.clone()),
            });
            chosen.push(row);
        }
    }
    Ok((chosen, rows))
}

//! A document: one text of a file, or of those that are at hand, with its labels.

use super::labels::Label;
use crate::error::Result;

/// One text, with what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What it says.
    pub content: Content,
    /// One value per label that was asked for.
    pub labels: Vec<Label>,
}

/// Text, or what a tokenizer made of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text.
    Text(String),
    /// Token ids; the next document goes on with the same text if `more`.
    Tokens {
        /// The ids.
        ids: Vec<u32>,
        /// Whether the text goes on.
        more: bool,
    },
}

impl Content {
    /// Whether the next document goes on with the same text.
    pub fn goes_on(&self) -> bool {
        matches!(self, Content::Tokens { more: true, .. })
    }
}

/// Documents as they are read.
pub type Documents = Box<dyn Iterator<Item = Result<Document>>>;

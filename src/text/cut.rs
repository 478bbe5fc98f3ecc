//! Long texts: what is too long, and where one may be cut without changing its tokens.

use crate::error::{Error, Result};

/// Longest prompt in bytes; far more than any context holds.
pub const MAX_PROMPT: usize = 1 << 20;

/// Longest run of whitespace: beyond a million the regex engine gives up splitting and later words go wrong.
const MAX_WHITESPACE: usize = 1 << 16;

/// Refuses a prompt that is too long.
pub fn check_size(text: &str) -> Result<()> {
    if text.len() > MAX_PROMPT {
        return Err(Error::request(format!("prompt has {} bytes; at most {MAX_PROMPT} are read", text.len())));
    }
    Ok(())
}

/// Refuses a text with too many spaces in a row.
pub fn check_whitespace(text: &str) -> Result<()> {
    let mut run = 0;
    for c in text.chars() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        if run > MAX_WHITESPACE {
            return Err(Error::request(format!("prompt has more than {MAX_WHITESPACE} spaces in a row")));
        }
    }
    Ok(())
}

/// Pieces of a text of about 256 KiB: cut only between a character that is no space and a single space before a letter,
/// where ` ?\p{L}+` begins a new word whatever came before.
pub fn cut(text: &str) -> Vec<&str> {
    const PIECE: usize = 1 << 18;
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > PIECE {
        let start = (PIECE..).find(|&i| rest.is_char_boundary(i)).unwrap_or(rest.len());
        let mut before = ' ';
        let boundary = rest[start..].char_indices().find(|&(i, c)| {
            let after = rest[start + i..].chars().nth(1);
            let found = c == ' ' && !before.is_whitespace() && after.is_some_and(char::is_alphabetic);
            before = c;
            found
        });
        let Some((i, _)) = boundary else { break };
        let (piece, next) = rest.split_at(start + i);
        pieces.push(piece);
        rest = next;
    }
    pieces.push(rest);
    pieces
}

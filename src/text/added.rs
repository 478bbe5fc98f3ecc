//! Added tokens: found in a text before it is split into words, as Hugging Face's tokenizers find them.

use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::AddedToken;

/// The added tokens of a tokenizer, ready to be found.
#[derive(Clone, Default)]
pub struct Added {
    /// Tokens that are looked for in the text as it is, and those that are looked for in what these leave. A normalizer would come
    /// between the two; there is none, so that only their order differs.
    passes: Vec<Pass>,
    by_id: BTreeMap<u32, AddedToken>,
}

#[derive(Clone)]
struct Pass {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text to be split into words; from this byte to that.
    Text(usize, usize),
    /// An added token.
    Token(u32),
}

impl Added {
    /// Prepares tokens by their ids.
    ///
    /// # Errors
    /// What the search automaton says of patterns that it cannot hold.
    pub fn new(by_id: BTreeMap<u32, AddedToken>) -> std::result::Result<Self, String> {
        let mut passes = Vec::new();
        for normalized in [false, true] {
            let tokens: Vec<(u32, AddedToken)> = by_id
                .iter()
                .filter(|(_, token)| token.normalized == normalized && !token.content.is_empty())
                .map(|(id, token)| (*id, token.clone()))
                .collect();
            if tokens.is_empty() {
                continue;
            }
            let automaton = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.iter().map(|(_, token)| token.content.as_bytes()))
                .map_err(|e| e.to_string())?;
            passes.push(Pass { automaton, tokens });
        }
        Ok(Self { passes, by_id })
    }

    /// The token with an id.
    pub fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.by_id.iter().map(|(id, token)| (*id, token))
    }

    /// Cuts a text at added tokens; at special ones only if `special`.
    pub fn pieces(&self, text: &str, special: bool) -> Vec<Piece> {
        let mut pieces = vec![Piece::Text(0, text.len())];
        for pass in &self.passes {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                match piece {
                    Piece::Text(start, end) => pass.cut(&text[start..end], start, special, &mut next),
                    token => next.push(token),
                }
            }
            pieces = next;
        }
        pieces.retain(|piece| !matches!(piece, Piece::Text(start, end) if start >= end));
        pieces
    }
}

impl Pass {
    /// Cuts a text that begins at byte `base` of a longer one.
    fn cut(&self, text: &str, base: usize, special: bool, pieces: &mut Vec<Piece>) {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            if (token.special && !special) || (token.single_word && !is_word(text, found.range())) {
                continue;
            }
            let (mut start, mut end) = (found.start(), found.end());
            if token.lstrip {
                start = done.max(text[done.min(start)..start].trim_end().len() + done.min(start));
            }
            if token.rstrip {
                end += text[end..].len() - text[end..].trim_start().len();
            }
            if done < start {
                pieces.push(Piece::Text(base + done, base + start));
            }
            pieces.push(Piece::Token(*id));
            done = end;
        }
        pieces.push(Piece::Text(base + done, base + text.len()));
    }
}

/// Whether neither side of a range goes on with a letter, a digit or an underscore.
fn is_word(text: &str, range: Range<usize>) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| regex_syntax::try_is_word_character(c).unwrap_or(false));
    !joins(text[..range.start].chars().next_back()) && !joins(text[range.end..].chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(tokens: &[AddedToken]) -> Added {
        Added::new((100..).zip(tokens.iter().cloned()).collect()).unwrap()
    }

    #[test]
    fn white_space_belongs_to_tokens_that_strip_it() {
        let token = |lstrip, rstrip| added(&[AddedToken::from("<t>", true).lstrip(lstrip).rstrip(rstrip)]);
        let pieces = |added: &Added| added.pieces("a  <t> \n b", true);
        assert_eq!(pieces(&token(false, false)), [Piece::Text(0, 3), Piece::Token(100), Piece::Text(6, 10)]);
        assert_eq!(pieces(&token(true, false)), [Piece::Text(0, 1), Piece::Token(100), Piece::Text(6, 10)]);
        assert_eq!(pieces(&token(false, true)), [Piece::Text(0, 3), Piece::Token(100), Piece::Text(9, 10)]);
        assert_eq!(pieces(&token(true, true)), [Piece::Text(0, 1), Piece::Token(100), Piece::Text(9, 10)]);
    }

    #[test]
    fn special_tokens_are_text_unless_they_are_allowed() {
        let added = added(&[AddedToken::from("<s>", true), AddedToken::from("<n>", false)]);
        assert_eq!(added.pieces("<s><n>", false), [Piece::Text(0, 3), Piece::Token(101)]);
        assert_eq!(added.pieces("<s><n>", true), [Piece::Token(100), Piece::Token(101)]);
        assert_eq!(added.pieces("", true), []);
    }

    #[test]
    fn single_words_stand_alone_and_the_longest_token_wins() {
        let words = added(&[AddedToken::from("cat", false).single_word(true)]);
        for (text, found) in [("cat", true), ("a cat.", true), ("cats", false), ("_cat", false), ("écat", false)] {
            assert_eq!(words.pieces(text, false).contains(&Piece::Token(100)), found, "{text}");
        }
        let longest = added(&[AddedToken::from("ab", true), AddedToken::from("abc", true)]);
        assert_eq!(longest.pieces("abcab", true), [Piece::Token(101), Piece::Token(100)]);
    }
}

//! The largest numbers that the workbench takes from options, files and other programs.
//!
//! Every number from outside is compared with one of these limits before anything is computed or allocated for it. They are wide: each is
//! beyond what anybody needs on a machine of today, and small enough that no product of a few of them overflows 64 bits. Whether
//! there is memory for what lies within them is another question, which [`crate::memory`] answers.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Blocks of a model; GPT-3 has 96.
pub const LAYERS: usize = 96;
/// Heads of a block.
pub const HEADS: usize = 64;
/// Width of the residual stream.
pub const WIDTH: usize = 8192;
/// Width of a head.
pub const HEAD_WIDTH: usize = 1024;
/// Neurons of a block.
pub const NEURONS: usize = 65_536;
/// Positions that a model reads.
pub const POSITIONS: usize = 65_536;
/// Entries of a vocabulary.
pub const VOCABULARY: usize = 1_000_000;

/// Steps of a training run, and whatever is counted in them.
pub const TRAINING_STEPS: u64 = 1_000_000_000;
/// Rows that one training step learns from, and rows that the validation loss is measured on.
pub const TRAINING_ROWS: usize = 1 << 20;
/// Documents from which a tokenizer is learned.
pub const DOCUMENTS: u64 = 10_000_000;

/// Texts that are written for each prompt.
pub const SAMPLES: usize = 10_000;
/// Tokens that are written for each text; more than a model has positions where the window slides.
pub const NEW_TOKENS: usize = 1_000_000;
/// Runs with noise of their own in causal tracing.
pub const NOISE_SAMPLES: usize = 10_000;
/// Prompt pairs that are drawn from a set.
pub const PAIRS: usize = 100_000;
/// Questions that are drawn from a suite, and texts that are drawn from a probing task.
pub const EXAMPLES: u64 = 1_000_000;
/// Examples that stand before a question.
pub const SHOTS: usize = 1000;
/// Random directions that a steering direction is compared with.
pub const CONTROLS: usize = 1000;
/// Numbers in a list of strengths, penalties, thresholds or shots.
pub const LISTED: usize = 1000;
/// Rows that one part of an activation dataset holds.
pub const PART_ROWS: u64 = 1 << 40;
/// Times that a measurement is repeated.
pub const REPEATS: usize = 100_000;
/// Rows of a benchmark.
pub const BATCH: usize = 1 << 20;
/// Steps of an iterative method: a fit, a rotation, integrated gradients.
pub const ITERATIONS: usize = 1_000_000;
/// What is ranked or counted out of a model: neurons, edges, cells, tokens.
pub const RANKED: usize = 100_000_000;

/// Numbers in a class that has a range instead of rows.
pub const RANGE: u64 = 100_000;
/// Slots of a set of templates.
pub const SLOTS: usize = 1000;
/// Fields of a class.
pub const FIELDS: usize = 100;
/// Templates, each counted once for every arrangement or case that it has.
pub const TEMPLATES: usize = 10_000;
/// Bytes of a text that a template makes.
pub const TEXT_BYTES: usize = 1 << 20;
/// Bytes that a file of templates or a grid comes to when every template is filled, or every run is written out, once.
pub const EXPANDED_BYTES: usize = 64 << 20;
/// Answers of a question, and choices that they are held against.
pub const ANSWERS: usize = 1000;
/// Ways to put a question.
pub const PHRASINGS: usize = 1000;
/// Runs of a study.
pub const RUNS: usize = 10_000;
/// Options that a study varies.
pub const VARIED: usize = 100;
/// Edits of a run, each counted once for every site that it names.
pub const EDITS: usize = 10_000;
/// Characters of all patterns that choose sites or parameters together.
pub const PATTERNS: usize = 10_000;

/// Refuses a number outside of a range, with both.
///
/// # Errors
/// [`Error::Request`].
pub fn within<T: PartialOrd + Display>(name: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    fault(name, value, range).map_or(Ok(()), |what| Err(Error::Request(what)))
}

/// What is wrong with a number, if it is outside of a range; the caller says in which file.
pub fn fault<T: PartialOrd + Display>(name: &str, value: T, range: RangeInclusive<T>) -> Option<String> {
    (!range.contains(&value)).then(|| format!("{name} is {value}; it must be in {}..={}", range.start(), range.end()))
}

/// Refuses more of something than there may be.
///
/// # Errors
/// [`Error::Request`] with both numbers.
pub fn at_most(what: &str, count: usize, most: usize) -> Result<()> {
    many(what, count, most).map_or(Ok(()), |what| Err(Error::Request(what)))
}

/// What is wrong with a count, if it is too large; the caller says in which file.
pub fn many(what: &str, count: usize, most: usize) -> Option<String> {
    (count > most).then(|| format!("{count} {what}; there may be at most {most}"))
}

/// Refuses patterns that are longer together than any list of names has to be.
///
/// # Errors
/// [`Error::Request`] with both numbers.
pub fn patterns(all: &[impl AsRef<str>]) -> Result<()> {
    at_most("characters of patterns", all.iter().map(|pattern| pattern.as_ref().len() + 1).sum(), PATTERNS)
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters and `[0-5]` for any number from 0 to 5, written in digits.
///
/// It goes over the pattern once, and back to the last `*` alone: the time is at most the product of both lengths.
pub fn fits_pattern(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut star: Option<(&str, &str)> = None;
    loop {
        let step = match pattern.chars().next() {
            Some('*') => {
                star = Some((&pattern[1..], name));
                pattern = &pattern[1..];
                continue;
            }
            None if name.is_empty() => return true,
            None => None,
            Some('[') => in_range(pattern, name),
            Some(c) => name.strip_prefix(c).map(|rest| (&pattern[c.len_utf8()..], rest)),
        };
        match (step, star) {
            (Some((rest, left)), _) => (pattern, name) = (rest, left),
            // What the last `*` stands for is one character longer.
            (None, Some((after, from))) => {
                let Some(skipped) = from.chars().next() else { return false };
                let left = &from[skipped.len_utf8()..];
                star = Some((after, left));
                (pattern, name) = (after, left);
            }
            (None, None) => return false,
        }
    }
}

/// What follows a range in the pattern, and the number in the name.
fn in_range<'a>(pattern: &'a str, name: &'a str) -> Option<(&'a str, &'a str)> {
    let (range, after) = pattern[1..].split_once(']')?;
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let (low, high) = (low.parse::<usize>().ok()?, high.parse::<usize>().ok()?);
    let (digits, left) = name.split_at(name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len()));
    (low..=high).contains(&digits.parse().ok()?).then_some((after, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_refused_with_their_limit() {
        assert!(within("n", 3, 1..=3).is_ok() && at_most("pairs", 3, 3).is_ok());
        assert_eq!(within("n_layer", 97, 1..=LAYERS).unwrap_err().to_string(), "n_layer is 97; it must be in 1..=96");
        assert_eq!(within("x", f64::NAN, 0.0..=1.0).unwrap_err().to_string(), "x is NaN; it must be in 0..=1");
        assert_eq!(at_most("slots", 4, 3).unwrap_err().to_string(), "4 slots; there may be at most 3");
    }

    #[test]
    fn patterns_fit_as_they_say() {
        for (pattern, name, fits) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("*.bias", "h.0.ln_1.bias", true),
            ("h.[0-5].*", "h.5.ln_1.bias", true),
            ("h.[0-5].*", "h.50.ln_1.bias", false),
            ("*[7]*", "h.7.x", true),
            ("h.[x]", "h.1", false),
            ("h.[1", "h.1", false),
            ("ä*ü", "äöü", true),
            ("*aab", "aaaaab", true),
        ] {
            assert_eq!(fits_pattern(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn stars_take_no_longer_than_the_product_of_both_lengths() {
        // With a step back for every star this would take 10^20 steps.
        let pattern = "*a".repeat(30) + "!";
        assert!(!fits_pattern(&pattern, &"a".repeat(100)));
    }
}

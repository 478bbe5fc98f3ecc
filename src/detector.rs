//! Finding heads by what their attention should look like: TransformerLens's `detect_head`.

use std::fmt;
use std::str::FromStr;

use polars::prelude::*;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::plan::Plan;
use crate::site::Site;
use crate::tokens::Tokens;

/// The attention that is looked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Detector {
    /// Every token looks at the one before.
    Previous,
    /// Every token looks at its earlier occurrences.
    Duplicate,
    /// Every token looks at what came after its earlier occurrences.
    Induction,
    /// Rows of queries by columns of keys; 0 where the key comes after the query.
    Custom(Vec<Vec<f32>>),
}

/// How a pattern is compared with the one that is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// Σ A·D / Σ A: the share of attention that goes where it should.
    #[default]
    Mul,
    /// 1 − T·mean |A − D| over all T² cells. TransformerLens rounds it to three digits; here it is not rounded.
    Abs,
}

/// What is compared, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The measure.
    pub measure: Measure,
    /// Leaves out attention to position 0.
    pub exclude_bos: bool,
    /// Leaves out attention of a token to itself.
    pub exclude_current_token: bool,
}

impl FromStr for Detector {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Previous, Self::Duplicate, Self::Induction];
        let found = all.iter().find(|detector| detector.name() == name).cloned();
        found.ok_or_else(|| Error::no_such("detector", name, all.iter().map(Detector::name)))
    }
}

impl FromStr for Measure {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "mul" => Ok(Self::Mul),
            "abs" => Ok(Self::Abs),
            other => Err(Error::no_such("measure", other, ["mul", "abs"])),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Mul { "mul" } else { "abs" })
    }
}

impl Detector {
    /// TransformerLens's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Previous => "previous_token_head",
            Self::Duplicate => "duplicate_token_head",
            Self::Induction => "induction_head",
            Self::Custom(_) => "custom",
        }
    }

    /// The attention that is looked for on these tokens: `[query, key]`, row by row.
    ///
    /// # Errors
    /// [`Error::Request`] for a custom pattern of another size, or one that looks ahead.
    pub fn pattern(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let length = ids.len();
        if let Self::Custom(rows) = self {
            if rows.len() != length || rows.iter().any(|row| row.len() != length) {
                let (height, width) = (rows.len(), rows.iter().map(Vec::len).max().unwrap_or(0));
                return Err(Error::request(format!(
                    "the pattern is {height} × {width} and the prompt has {length} tokens; it must be {length} × {length}"
                )));
            }
            let ahead = |query: usize| rows[query][query + 1..].iter().any(|&x| x != 0.0);
            if let Some(query) = (0..length).find(|&query| ahead(query)) {
                return Err(Error::request(format!("row {query} of the pattern looks ahead; later keys must be 0")));
            }
            return Ok(rows.concat());
        }
        let wanted = |query: usize, key: usize| match self {
            Self::Previous => key + 1 == query,
            Self::Duplicate => key < query && ids[key] == ids[query],
            // The key follows an occurrence before the query: `key` itself may be the query.
            _ => (1..=query).contains(&key) && ids[key - 1] == ids[query],
        };
        Ok((0..length * length).map(|i| f32::from(u8::from(wanted(i / length, i % length)))).collect())
    }
}

/// How well every head matches each detector, as the mean over the prompts.
///
/// | column | |
/// |---|---|
/// | `detector` | its name |
/// | `layer`, `head` | |
/// | `score` | 1 is a perfect match; null where nothing is left to compare |
///
/// # Errors
/// [`Error::Request`] for a prompt of one token, or a custom pattern that does not fit; else as [`Plan::run`].
pub fn detect(model: &Gpt2, tokens: &Tokens, detectors: &[Detector], options: Options) -> Result<DataFrame> {
    let (layers, heads) = (model.config().n_layer, model.config().n_head);
    let plan = Plan::new().reads((0..layers).map(Site::Pattern)).logits(LogitsAt::None);
    plan.check(model.config(), tokens)?;
    let mut sums = vec![0.0; detectors.len() * layers * heads];
    for prompt in 0..tokens.len() {
        let row = tokens.row(prompt);
        let length = row.len();
        if length < 2 {
            return Err(Error::request(format!("prompt {prompt} has {length} token; a detector needs at least 2")));
        }
        let wanted = detectors.iter().map(|detector| detector.pattern(row)).collect::<Result<Vec<_>>>()?;
        plan.run_each(model, &tokens.only(prompt), &mut |site, pattern| {
            let patterns = frame::to_f32(pattern)?; // [1, head, length, length]
            for (detector, wanted) in wanted.iter().enumerate() {
                let first = (detector * layers + site.layer().unwrap_or(0)) * heads;
                sums[first..first + heads]
                    .par_iter_mut()
                    .zip(patterns.par_chunks_exact(length * length))
                    .for_each(|(sum, found)| *sum += similarity(found, wanted, length, options));
            }
            Ok(())
        })?;
    }
    let count = tokens.len() as f64;
    let rows = || (0..detectors.len() * layers * heads).map(|i| (i / (layers * heads), i / heads % layers, i % heads));
    Ok(df!(
        "detector" => rows().map(|(detector, ..)| detectors[detector].name()).collect::<Vec<_>>(),
        "layer" => rows().map(|(_, layer, _)| layer as u32).collect::<Vec<_>>(),
        "head" => rows().map(|(.., head)| head as u32).collect::<Vec<_>>(),
        "score" => sums.into_iter().map(|sum| sum.is_finite().then_some(sum / count)).collect::<Vec<_>>(),
    )?)
}

/// How much a pattern is like the one that is looked for; NaN where all attention is left out.
fn similarity(found: &[f32], wanted: &[f32], length: usize, options: Options) -> f64 {
    let (mut hit, mut all, mut difference) = (0.0, 0.0, 0.0);
    for (i, (&a, &d)) in found.iter().zip(wanted).enumerate() {
        let (query, key) = (i / length, i % length);
        if (options.exclude_bos && key == 0) || (options.exclude_current_token && key == query) {
            continue;
        }
        let (a, d) = (f64::from(a), f64::from(d));
        hit += a * d;
        all += a;
        difference += (a - d).abs();
    }
    match options.measure {
        Measure::Mul if all == 0.0 => f64::NAN,
        Measure::Mul => hit / all,
        Measure::Abs => 1.0 - difference / length as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(detector: Detector, ids: &[u32]) -> Vec<(usize, usize)> {
        let pattern = detector.pattern(ids).unwrap();
        (0..pattern.len()).filter(|&i| pattern[i] == 1.0).map(|i| (i / ids.len(), i % ids.len())).collect()
    }

    #[test]
    fn detectors_point_where_they_should() {
        let ids = [7, 1, 2, 1, 1];
        assert_eq!(pairs(Detector::Previous, &ids), [(1, 0), (2, 1), (3, 2), (4, 3)]);
        assert_eq!(pairs(Detector::Duplicate, &ids), [(3, 1), (4, 1), (4, 3)]);
        assert_eq!(pairs(Detector::Induction, &ids), [(3, 2), (4, 2), (4, 4)]);
    }

    #[test]
    fn measures_are_1_for_a_perfect_match() {
        let found = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let wanted = Detector::Previous.pattern(&[1, 2, 3]).unwrap();
        let score = |options| similarity(&found, &wanted, 3, options);
        let plain = Options::default();
        assert!((score(plain) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(score(Options { exclude_current_token: true, ..plain }), 1.0);
        assert_eq!(score(Options { exclude_bos: true, ..plain }), 1.0);
        assert_eq!(score(Options { measure: Measure::Abs, exclude_current_token: true, ..plain }), 1.0);
        assert!((score(Options { measure: Measure::Abs, ..plain }) - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn custom_patterns_must_fit_and_not_look_ahead() {
        let message = |rows: Vec<Vec<f32>>| Detector::Custom(rows).pattern(&[1, 2]).unwrap_err().to_string();
        assert!(message(vec![vec![1.0]]).contains("1 × 1 and the prompt has 2 tokens"));
        assert!(message(vec![vec![1.0, 0.5], vec![0.0, 1.0]]).contains("row 0 of the pattern looks ahead"));
    }
}

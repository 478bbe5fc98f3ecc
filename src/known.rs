//! What is known of a model, and whether it still holds: every tensor, how text is cut, and numbers that it gives.
//!
//! A record is made of a model that is right ([`Record::of`]) and held against files that should be it. For published sizes some
//! numbers are known from the literature ([`published_numbers`]).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::answers::answers;
use crate::circuits::{Basis, Circuits};
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::Gpt2;
use crate::heads;
use crate::metric::Metric;
use crate::perplexity::{self, Document, Protocol};
use crate::published::{self, Set};
use crate::text::{Bos, Encoding, Tokenizer};
use crate::weights;

/// Texts of which the loss is known, from the tests of TransformerLens.
const TEXTS: [(&str, &str); 2] = [
    ("Hello world!", "Hello world!"),
    (
        "Natural language processing tasks, …",
        "Natural language processing tasks, such as question answering, machine translation, reading comprehension, and \
         summarization, are typically approached with supervised learning on taskspecific datasets.",
    ),
];
/// A text that tokenizers cut in different ways.
const CUT: &str =
    "The quick brown fox's 1234567 naïve cafés\n\n\tdidn't  cost €9.99 — “really”? 日本語 🙂 <|endoftext|>";
/// Random sequences for head scores, and their length.
const SEQUENCES: usize = 10;
const LENGTH: usize = 50;

/// A number that a model gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    /// What it is of.
    pub name: String,
    /// What it is.
    pub value: f64,
    /// How far off it may be.
    pub tolerance: f64,
}

/// What is known of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Shape, and sha256 of the values in f32, little-endian, of every tensor.
    pub tensors: BTreeMap<String, TensorRecord>,
    /// How a text is cut that shows differences; none for a model without tokenizer.
    pub token_ids: Option<Vec<u32>>,
    /// Losses, logit differences and head scores.
    pub numbers: Vec<Number>,
}

/// What is known of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// Its shape.
    pub shape: Vec<usize>,
    /// sha256 of its values in f32, little-endian.
    pub sha256: String,
}

/// One thing that was held against what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What.
    pub what: String,
    /// What was found, or what is wrong with it.
    pub result: std::result::Result<String, String>,
}

impl Check {
    /// A check with its outcome.
    pub fn new(what: impl Into<String>, result: std::result::Result<String, String>) -> Self {
        Self { what: what.into(), result }
    }
}

impl Record {
    /// What a model is now. Numbers of prompts that its tokenizer cannot cut as pairs are left out.
    ///
    /// # Errors
    /// As the analyses.
    pub fn of(model: &Gpt2, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in model.tensors() {
            let values = to_f32(&tensor.to_dtype(DType::F32)?)?;
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.insert(name, TensorRecord { shape: tensor.dims().to_vec(), sha256: weights::sha256_of(&bytes) });
        }
        let token_ids = tokenizer.map(cut).transpose()?;
        let numbers = match tokenizer {
            None => Vec::new(),
            Some(tokenizer) => {
                let exact = |(name, value)| Number { name, value, tolerance: 1e-4 };
                let mut all: Vec<Number> = losses(model, tokenizer)?.into_iter().map(exact).collect();
                all.extend(differences(model, tokenizer)?.into_iter().map(exact));
                all.extend(strongest(model, tokenizer)?.into_iter().map(exact));
                all
            }
        };
        Ok(Self { tensors, token_ids, numbers })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is none.
    pub fn load(path: &Path) -> Result<Self> {
        let text = weights::read_text(path, 64 << 20)?;
        serde_json::from_str(&text).map_err(|e| Error::data(path, format!("no record of a model: {e}")))
    }

    /// Holds a model against this record: a line for the tensors or for each that is wrong, one for the tokenizer, one for each
    /// number.
    ///
    /// # Errors
    /// As [`Record::of`].
    pub fn check(&self, model: &Gpt2, tokenizer: Option<&Tokenizer>) -> Result<Vec<Check>> {
        let now = Self::of(model, tokenizer)?;
        let mut checks = self.check_tensors(&now);
        checks.push(Check::new("tokenizer", self.check_cut(&now, tokenizer)));
        for known in &self.numbers {
            let found = now.numbers.iter().find(|number| number.name == known.name);
            checks.push(known.held_against(found.map(|number| number.value)));
        }
        Ok(checks)
    }

    fn check_tensors(&self, now: &Self) -> Vec<Check> {
        let mut wrong = Vec::new();
        for (name, known) in &self.tensors {
            let fault = match now.tensors.get(name) {
                None => Some("the model has no such tensor".to_string()),
                Some(own) if own.shape != known.shape => {
                    Some(format!("its shape is {:?}, not {:?}", own.shape, known.shape))
                }
                Some(own) if own.sha256 != known.sha256 => {
                    let whose = self.tensors.iter().find(|(_, other)| other.sha256 == own.sha256);
                    Some(match whose {
                        Some((other, _)) => format!("it holds the values of {other}"),
                        None => "its values are not those of the record".to_string(),
                    })
                }
                Some(_) => None,
            };
            wrong.extend(fault.map(|fault| Check::new(format!("tensor {name}"), Err(fault))));
        }
        let extra = now.tensors.keys().filter(|name| !self.tensors.contains_key(*name));
        wrong.extend(
            extra.map(|name| Check::new(format!("tensor {name}"), Err("the record has no such tensor".into()))),
        );
        if wrong.is_empty() {
            wrong.push(Check::new("tensors", Ok(format!("all {} hold the values of the record", self.tensors.len()))));
        }
        wrong
    }

    fn check_cut(&self, now: &Self, tokenizer: Option<&Tokenizer>) -> std::result::Result<String, String> {
        match (&self.token_ids, &now.token_ids, tokenizer) {
            (None, None, _) => Ok("none, as in the record".into()),
            (None, Some(_), _) => Err("the record is of a model without one".into()),
            (Some(_), None, _) | (Some(_), _, None) => Err("there is none beside the model".into()),
            (Some(known), Some(own), _) if known == own => {
                Ok(format!("cuts a text into the {} tokens of the record", own.len()))
            }
            (Some(known), Some(own), Some(tokenizer)) => {
                let at = known.iter().zip(own).position(|(a, b)| a != b).unwrap_or(known.len().min(own.len()));
                let shown = |ids: &[u32]| {
                    ids.get(at).map_or("nothing".into(), |&id| format!("{id} (`{}`)", tokenizer.text(id)))
                };
                Err(format!("token {at} of a text is {}, not {} as in the record", shown(own), shown(known)))
            }
        }
    }
}

impl Number {
    /// Holds what was computed against it.
    pub fn held_against(&self, found: Option<f64>) -> Check {
        let Self { name, value, tolerance } = self;
        let result = match found {
            None => Err("could not be computed with this model and tokenizer".into()),
            Some(found) if (found - value).abs() <= *tolerance => {
                Ok(format!("{found:.6}, known as {value} ± {tolerance}"))
            }
            Some(found) => Err(format!("is {found:.6}, known as {value} ± {tolerance}")),
        };
        Check::new(name.clone(), result)
    }
}

fn cut(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    tokenizer.encode(CUT, Encoding { bos: Bos::No, allow_special: false })
}

fn loss_name(text: &str) -> String {
    format!("loss of “{text}”")
}

fn difference_name(i: usize) -> String {
    format!("IOI logit difference, prompt {i}")
}

fn induction_name(layer: u32, head: u32) -> String {
    format!("induction score of head {layer}.{head}")
}

/// Mean loss of the fixed texts in nats per token, each after the end-of-text token.
fn losses(model: &Gpt2, tokenizer: &Tokenizer) -> Result<Vec<(String, f64)>> {
    let context = model.config().n_positions;
    let protocol = Protocol { context, stride: context, bos: tokenizer.bos().is_some() };
    let one = |(name, text): &(&str, &str)| {
        let document = Document::new(text, tokenizer, &protocol, false)?;
        let score = perplexity::score(model, &[document], &protocol, &mut |_| Ok(()))?;
        Ok((loss_name(name), score.nats() / score.tokens() as f64))
    };
    TEXTS.iter().map(one).collect()
}

/// Logit differences of the eight prompts of TransformerLens's demonstrations, and their mean.
fn differences(model: &Gpt2, tokenizer: &Tokenizer) -> Result<Vec<(String, f64)>> {
    // A vocabulary in which names are several tokens has no such numbers.
    let Ok(pairs) = published::pairs(Set::Indirect, tokenizer) else { return Ok(Vec::new()) };
    if pairs.iter().any(|pair| pair.len() > model.config().n_positions) {
        return Ok(Vec::new());
    }
    let all: Vec<f64> =
        answers(model, &pairs)?.iter().map(|answered| answered.clean[Metric::LogitDiff as usize]).collect();
    let mut named: Vec<(String, f64)> = all.iter().enumerate().map(|(i, x)| (difference_name(i), *x)).collect();
    named.push((MEAN.into(), all.iter().sum::<f64>() / all.len() as f64));
    Ok(named)
}

const MEAN: &str = "IOI logit difference, mean";

/// Induction scores of all heads on random tokens, written twice.
fn inductions(model: &Gpt2, tokenizer: &Tokenizer) -> Result<Vec<(u32, u32, f64)>> {
    if model.config().n_positions < 8 {
        return Ok(Vec::new());
    }
    let tokens = heads::repeated(model.config(), Some(tokenizer), SEQUENCES, LENGTH, 0)?;
    let circuits = Circuits::of(model, Basis::default());
    let frame = heads::atlas(model, &tokens, None, &circuits, &mut |_, _| Ok(()))?.frame;
    let (layer, head) = (frame.column("layer")?.u32()?, frame.column("head")?.u32()?);
    let score = frame.column("induction")?.cast(&polars::prelude::DataType::Float64)?;
    let rows = layer.iter().zip(head.iter()).zip(score.f64()?.iter());
    Ok(rows.filter_map(|((layer, head), score)| Some((layer?, head?, score?))).collect())
}

/// The three strongest.
fn strongest(model: &Gpt2, tokenizer: &Tokenizer) -> Result<Vec<(String, f64)>> {
    let mut all = inductions(model, tokenizer)?;
    all.sort_by(|a, b| b.2.total_cmp(&a.2));
    Ok(all.into_iter().take(3).map(|(layer, head, score)| (induction_name(layer, head), score)).collect())
}

/// Numbers of a published size that are known from the literature, by its name; empty where none are. Losses are from the tests of
/// TransformerLens, logit differences from its Activation Patching demonstration, induction scores from its main demonstration, on
/// other random tokens.
pub fn published_numbers(name: &str) -> Vec<Number> {
    let number = |name: String, value: f64, tolerance: f64| Number { name, value, tolerance };
    match name {
        "gpt2" => {
            let mut all =
                vec![number(loss_name(TEXTS[0].0), 5.331856, 1e-4), number(loss_name(TEXTS[1].0), 3.999, 1e-3)];
            let differences = [3.337, 3.202, 2.709, 3.797, 1.720, 5.281, 2.601, 5.767];
            all.extend(differences.iter().enumerate().map(|(i, x)| number(difference_name(i), *x, 1e-3)));
            all.push(number(MEAN.into(), 3.5519, 2e-4));
            let heads = [(5, 5, 0.9321), (7, 10, 0.9243), (5, 1, 0.9171), (6, 9, 0.9170), (7, 2, 0.8615)];
            all.extend(heads.iter().map(|&(l, h, x)| number(induction_name(l, h), x, 0.03)));
            all
        }
        "distilgpt2" => {
            let heads = [(3, 10, 0.9372), (3, 2, 0.8674)];
            heads.iter().map(|&(l, h, x)| number(induction_name(l, h), x, 0.03)).collect()
        }
        _ => Vec::new(),
    }
}

/// Holds a model against numbers.
///
/// # Errors
/// As the analyses.
pub fn check_numbers(numbers: &[Number], model: &Gpt2, tokenizer: &Tokenizer) -> Result<Vec<Check>> {
    let mut found = losses(model, tokenizer)?;
    found.extend(differences(model, tokenizer)?);
    let heads = inductions(model, tokenizer)?;
    found.extend(heads.into_iter().map(|(layer, head, score)| (induction_name(layer, head), score)));
    let of = |name: &str| found.iter().find(|(own, _)| own == name).map(|(_, value)| *value);
    Ok(numbers.iter().map(|number| number.held_against(of(&number.name))).collect())
}

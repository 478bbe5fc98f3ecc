//! Prompt pairs as data: templates with slots, what is corrupted, and what answers.
//!
//! A file has `templates`, `[class.X]` and `[slot]` (`slots.rs`); `[[arrange]]`, ways in which roles stand for slots, with
//! templates of their own if they like; `[[corrupt]]`, what the second prompt has instead; and `[answer]`, a text, or the rows
//! of an ordered class `after` or `up_to` a slot.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result, shorten};
use crate::limits::{self, ANSWERS, SLOTS, TEMPLATES};
use crate::pair::{Pair, Question};
use crate::random::{SliceRandom, stream};
use crate::slots::{Class, Expanded, Fallible, Picks, Roles, Slot, Slots, check_templates};
use crate::target::Target;
use crate::text::{Bos, Encoding, Tokenizer};

/// The sets that come with the workbench, by name.
pub const SHIPPED: [(&str, &str); 9] = [
    ("ioi", include_str!("../probes/pairs/ioi.toml")),
    ("greater-than", include_str!("../probes/pairs/greater-than.toml")),
    ("agreement", include_str!("../probes/pairs/agreement.toml")),
    ("facts", include_str!("../probes/pairs/facts.toml")),
    ("tiny-ioi", include_str!("../probes/pairs/tiny-ioi.toml")),
    ("tiny-greater-than", include_str!("../probes/pairs/tiny-greater-than.toml")),
    ("tiny-agreement", include_str!("../probes/pairs/tiny-agreement.toml")),
    ("tiny-facts", include_str!("../probes/pairs/tiny-facts.toml")),
    ("tiny-pronoun", include_str!("../probes/pairs/tiny-pronoun.toml")),
];

/// A family of prompt pairs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSet {
    /// What it is about, in one line.
    pub about: String,
    /// The model, or family of models, whose vocabulary it is written for.
    pub suits: String,
    #[serde(default)]
    templates: Vec<String>,
    class: BTreeMap<String, Class>,
    slot: BTreeMap<String, Slot>,
    #[serde(default)]
    arrange: Vec<Arrange>,
    corrupt: Vec<Corrupt>,
    answer: Answers,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arrange {
    name: String,
    #[serde(default)]
    roles: Roles,
    #[serde(default)]
    templates: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Corrupt {
    name: String,
    set: Roles,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    right: Answer,
    wrong: Answer,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Answer {
    Text(String),
    After { class: String, after: String },
    UpTo { class: String, up_to: String },
}

/// What the answers of a pair are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answering {
    /// Words of one token each.
    #[default]
    Words,
    /// Words of which the first token counts.
    FirstTokens,
    /// These ids, of the right answers and of the wrong ones; the words of [`Drawn`] are what a tokenizer makes of them.
    Ids(Vec<u32>, Vec<u32>),
}

/// A pair in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// The template and the arrangement that it was made of.
    pub template: String,
    /// The prompt whose answer is right.
    pub clean: String,
    /// The prompt that differs.
    pub corrupt: String,
    /// The answers, usually one.
    pub answer: Vec<String>,
    /// The answers that they are compared with.
    pub wrong: Vec<String>,
    /// What both are.
    pub answering: Answering,
    /// What else a file says of the pair, by name.
    pub labels: Vec<(String, serde_json::Value)>,
}

impl PairSet {
    /// The set of that name among those that come with the workbench.
    pub fn shipped(name: &str) -> Option<Result<Self>> {
        let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == name)?;
        Some(Self::parse(text, Path::new(name)))
    }

    /// The first `count` pairs of a seed, over all templates.
    ///
    /// # Errors
    /// [`Error::Request`] for words that the tokenizer does not know, for answers that are not one token, and for prompts of a
    /// pair that differ in length.
    pub fn pairs(&self, count: u64, seed: u64, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Vec<Pair>> {
        (0..count).map(|index| self.draw(None, None, seed, index)?.pair(tokenizer, encoding)).collect()
    }

    /// Reads a set and tries every template once; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] with what is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let mut set: Self = toml::from_str(text).map_err(|e| wrong(crate::error::toml_fault(text, &e)))?;
        if set.arrange.is_empty() {
            set.arrange.push(Arrange::default());
        }
        check_templates(&set.templates, set.arrange.iter().map(|arrange| arrange.templates.as_slice()))
            .map_err(wrong)?;
        for arrange in &mut set.arrange {
            if arrange.templates.is_empty() {
                arrange.templates.clone_from(&set.templates);
            }
        }
        set.check().map_err(wrong)?;
        Ok(set)
    }

    fn slots(&self) -> Slots<'_> {
        Slots { class: &self.class, slot: &self.slot }
    }

    fn check(&self) -> Fallible<()> {
        self.slots().check()?;
        if self.corrupt.is_empty() || self.arrange.iter().any(|arrange| arrange.templates.is_empty()) {
            return Err("a set needs templates and a corruption".into());
        }
        let roles =
            self.arrange.iter().map(|arrange| &arrange.roles).chain(self.corrupt.iter().map(|corrupt| &corrupt.set));
        let roles = roles.map(|roles| roles.len()).max().unwrap_or(0);
        limits::many("roles of an arrangement or a corruption", roles, SLOTS).map_or(Ok(()), Err)?;
        let tries = self.forms().count().saturating_mul(self.corrupt.len());
        limits::many("templates times corruptions", tries, TEMPLATES).map_or(Ok(()), Err)?;
        let mut expanded = Expanded::default();
        for (arrange, template) in self.forms() {
            for corrupt in &self.corrupt {
                let picks = self.slots().pick(&mut stream(0, "pairs", 0))?;
                let form = |what: String| {
                    format!("{} `{}`, corrupted by {}: {what}", arrange.name, shorten(template), corrupt.name)
                };
                expanded.add(template, self.fill(arrange, template, corrupt, &picks).map_err(form)?.bytes())?;
            }
        }
        Ok(())
    }

    /// Every template with its arrangement.
    fn forms(&self) -> impl Iterator<Item = (&Arrange, &str)> {
        self.arrange.iter().flat_map(|arrange| arrange.templates.iter().map(move |t| (arrange, t.as_str())))
    }

    /// What each template looks like, with the name of its arrangement; `--template` counts these.
    pub fn templates(&self) -> Vec<String> {
        self.forms().map(|(arrange, template)| named(arrange, template)).collect()
    }

    /// How many templates there are, in all arrangements.
    pub fn count(&self) -> usize {
        self.arrange.iter().map(|arrange| arrange.templates.len()).sum()
    }

    /// The numbers of the templates that are worded as this one, in all arrangements.
    pub fn worded_as(&self, template: usize) -> Vec<usize> {
        let forms: Vec<&str> = self.forms().map(|(_, template)| template).collect();
        (0..forms.len()).filter(|&i| forms.get(template) == Some(&forms[i])).collect()
    }

    /// The names of the corruptions, the usual one first.
    pub fn corruptions(&self) -> impl Iterator<Item = &str> {
        self.corrupt.iter().map(|corrupt| corrupt.name.as_str())
    }

    /// Pair number `index` of a seed: every template in turn, in an order that the seed shuffles, or always the one that
    /// is named by its number.
    ///
    /// # Errors
    /// [`Error::Request`] for a template or a corruption that the set does not have, [`Error::Data`] for a text that is too long.
    pub fn draw(&self, corruption: Option<&str>, template: Option<usize>, seed: u64, index: u64) -> Result<Drawn> {
        let corrupt = match corruption {
            None => self.corrupt.first(),
            Some(name) => self.corrupt.iter().find(|corrupt| corrupt.name == name),
        };
        let corrupt =
            corrupt.ok_or_else(|| Error::no_such("corruption", corruption.unwrap_or_default(), self.corruptions()))?;
        let forms: Vec<(&Arrange, &str)> = self.forms().collect();
        let form = match template {
            Some(i) if i >= forms.len() => {
                return Err(Error::request(format!("template {i} is out of range 0..={}", forms.len() - 1)));
            }
            Some(i) => i,
            None => {
                let (round, at) = (index / forms.len() as u64, (index % forms.len() as u64) as usize);
                let mut order: Vec<usize> = (0..forms.len()).collect();
                order.shuffle(&mut stream(seed, "templates of pairs", round));
                order[at]
            }
        };
        // What can be wrong with every pair was found when the set was read; with these words the text may still be too long.
        let wrong = |what| Error::data("set of pairs", what);
        let picks = self.slots().pick(&mut stream(seed, "pairs", index)).map_err(wrong)?;
        self.fill(forms[form].0, forms[form].1, corrupt, &picks).map_err(wrong)
    }

    fn fill(&self, arrange: &Arrange, template: &str, corrupt: &Corrupt, picks: &Picks<'_>) -> Fallible<Drawn> {
        let (all, own) = (self.slots(), &arrange.roles);
        let mut roles = own.clone();
        let mut slots = Roles::new();
        for (name, value) in &corrupt.set {
            // Values are those of the clean prompt, so that two overrides can exchange two names.
            let value = own.get(value).unwrap_or(value).clone();
            if own.contains_key(name) {
                roles.insert(name.clone(), value);
            } else if self.slot.contains_key(name) {
                slots.insert(name.clone(), value);
            } else {
                return Err(format!("there is no slot or role `{name}`"));
            }
        }
        let answers = |answer: &Answer| -> Fallible<Vec<String>> {
            let rows = |class: &str, slot: &str| -> Fallible<(&Class, usize)> {
                if all.class_of(slot)? != class {
                    return Err(format!("slot `{slot}` does not draw from class `{class}`, whose rows answer"));
                }
                let class = self.class.get(class).ok_or_else(|| format!("there is no class `{class}`"))?;
                Ok((class, *picks.get(slot).ok_or_else(|| format!("there is no slot `{slot}`"))?))
            };
            // So many as there are for any row that the slot may get, so that what holds for one pair holds for all.
            let few = |most: usize| limits::many("answers to one prompt", most, ANSWERS).map_or(Ok(()), Err);
            match answer {
                Answer::Text(text) => Ok(vec![all.written(text, &[own], picks)?.text]),
                Answer::After { class, after } => {
                    let (class, row) = rows(class, after)?;
                    let (_, from, to) = all.bounds(after)?;
                    few(class.len() - from - 1)?;
                    if to + 1 == class.len() {
                        return Err(format!("no row comes after the last that slot `{after}` may get"));
                    }
                    Ok(class.first_words(row + 1..class.len()))
                }
                Answer::UpTo { class, up_to } => {
                    few(all.bounds(up_to)?.2 + 1)?;
                    rows(class, up_to).map(|(class, row)| class.first_words(0..row + 1))
                }
            }
        };
        Ok(Drawn {
            template: named(arrange, template),
            clean: all.written(template, &[own], picks)?.text,
            corrupt: all.written(template, &[&roles, &slots], picks)?.text,
            answer: answers(&self.answer.right)?,
            wrong: answers(&self.answer.wrong)?,
            ..Drawn::default()
        })
    }
}

/// The token that a text begins with.
fn first_token(tokenizer: &Tokenizer, text: &str) -> Result<u32> {
    let plain = Encoding { bos: Bos::No, allow_special: false };
    let tokens = tokenizer.tokens(&[text], plain)?;
    tokens.row(0).first().copied().ok_or_else(|| Error::request("an answer is empty"))
}

fn named(arrange: &Arrange, template: &str) -> String {
    if arrange.name.is_empty() { template.to_string() } else { format!("{}: {template}", arrange.name) }
}

impl Drawn {
    /// Bytes of its texts, about what they take.
    pub fn bytes(&self) -> usize {
        let texts = [&self.template, &self.clean, &self.corrupt].into_iter().chain(&self.answer).chain(&self.wrong);
        texts.map(|text| text.len() + 24).sum()
    }

    /// The clean prompt and its answers as tokens.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn question(&self, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Question> {
        let tokens = tokenizer.tokens(&[&self.clean], encoding)?;
        let first =
            |texts: &[String]| texts.iter().map(|text| first_token(tokenizer, text)).collect::<Result<Vec<_>>>();
        let target = match &self.answering {
            Answering::Words => Target::parse(tokenizer, &self.answer, &self.wrong)?,
            Answering::FirstTokens => Target::new(first(&self.answer)?, first(&self.wrong)?)?,
            Answering::Ids(right, wrong) => {
                let vocabulary = tokenizer.vocab_size() as u32;
                if let Some(id) = right.iter().chain(wrong).find(|id| **id >= vocabulary) {
                    return Err(Error::request(format!(
                        "the answer {id} is no token of this model, which has {vocabulary}: the pairs were written for another"
                    )));
                }
                Target::new(right.clone(), wrong.clone())?
            }
        };
        Ok(Question { tokens, target })
    }

    /// With words for answers that are ids.
    pub fn worded(mut self, tokenizer: &Tokenizer) -> Self {
        if let Answering::Ids(right, wrong) = &self.answering {
            let words = |ids: &[u32]| ids.iter().map(|&id| tokenizer.text(id)).collect();
            (self.answer, self.wrong) = (words(right), words(wrong));
        }
        self
    }

    /// The pair as tokens.
    ///
    /// # Errors
    /// As [`Pair::new`] and [`Target::parse`].
    pub fn pair(&self, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Pair> {
        let Question { tokens, target } = self.question(tokenizer, encoding)?;
        Pair::new(tokens, tokenizer.tokens(&[&self.corrupt], encoding)?, target)
    }
}

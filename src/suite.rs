//! Behavioural experiments as data: prompts, how they may go on, and which way is right.
//!
//! A file has `about`, `suits`, and one source of questions:
//!
//! - `templates`, `[class.X]` and `[slot]` (`slots.rs`), with `answer`, how a prompt goes on if the model is right, and `choices`,
//!   what that is held against: texts, or `{ slot, count }`, the answer with other rows of a slot. Without choices the right
//!   answer must be the likeliest of all texts of its length.
//! - `pairs`, a set of prompt pairs (`pairset.rs`): the clean prompts, and both answers.
//! - `families` of the language of the embedded model, on its held-out templates.
//!
//! `[[phrasing]]` wraps prompts in a `text` with `{prompt}`. With few-shot examples, questions of the same template with their
//! answers stand before, each followed by `separator`. A text is scored by the `sum` of its tokens' log-probabilities or by their
//! `mean`; answers are one token each unless `any_length` is set. `vocabulary` is the size of the one that the words are written for.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::embedded;
use crate::error::{Error, Result, no_such, shorten, toml_fault};
use crate::language::{self, Family, Language, Metric, Split};
use crate::limits::{self, ANSWERS, EXAMPLES, PHRASINGS, SHOTS};
use crate::memory;
use crate::pairset::PairSet;
use crate::random::{IndexedRandom, SliceRandom, Stream, stream};
use crate::slots::{Class, Expanded, Fallible, Picks, Roles, Slot, Slots, check_templates};
use crate::text::{Bos, Encoding, Tokenizer};

/// The suites that come with the workbench, by name.
pub const SHIPPED: [(&str, &str); 19] = [
    ("facts", include_str!("../probes/behave/facts.toml")),
    ("ioi", include_str!("../probes/behave/ioi.toml")),
    ("agreement", include_str!("../probes/behave/agreement.toml")),
    ("greater-than", include_str!("../probes/behave/greater-than.toml")),
    ("induction", include_str!("../probes/behave/induction.toml")),
    ("sentiment", include_str!("../probes/behave/sentiment.toml")),
    ("arithmetic", include_str!("../probes/behave/arithmetic.toml")),
    ("subtraction", include_str!("../probes/behave/subtraction.toml")),
    ("phrasing", include_str!("../probes/behave/phrasing.toml")),
    ("few-shot", include_str!("../probes/behave/few-shot.toml")),
    ("tiny-card", include_str!("../probes/behave/tiny-card.toml")),
    ("tiny-facts", include_str!("../probes/behave/tiny-facts.toml")),
    ("tiny-ioi", include_str!("../probes/behave/tiny-ioi.toml")),
    ("tiny-agreement", include_str!("../probes/behave/tiny-agreement.toml")),
    ("tiny-greater-than", include_str!("../probes/behave/tiny-greater-than.toml")),
    ("tiny-induction", include_str!("../probes/behave/tiny-induction.toml")),
    ("tiny-sentiment", include_str!("../probes/behave/tiny-sentiment.toml")),
    ("tiny-phrasing", include_str!("../probes/behave/tiny-phrasing.toml")),
    ("tiny-few-shot", include_str!("../probes/behave/tiny-few-shot.toml")),
];

/// A behavioural experiment.
#[derive(Clone, Debug)]
pub struct Suite {
    /// What it is about, in one line.
    pub about: String,
    /// The model, or family of models, whose vocabulary it is written for.
    pub suits: String,
    /// How texts are scored.
    pub score: Scoring,
    vocabulary: Option<usize>,
    any_length: bool,
    separator: String,
    phrasings: Vec<Phrasing>,
    source: Source,
}

/// What a text is scored by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// The log-probability of the whole: short texts have an advantage.
    #[default]
    Sum,
    /// The mean over its tokens.
    Mean,
}

impl Scoring {
    /// Its name in files and frames.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Sum => "sum",
            Scoring::Mean => "mean",
        }
    }
}

/// A way to put a prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Phrasing {
    name: String,
    text: String,
}

/// Where `{prompt}` stands in a phrasing.
const PROMPT: &str = "{prompt}";

#[derive(Clone, Debug)]
enum Source {
    Templates(Box<Templates>),
    Pairs(Box<PairSet>),
    Families(Box<Language>, Vec<Family>),
}

#[derive(Clone, Debug)]
struct Templates {
    templates: Vec<String>,
    class: BTreeMap<String, Class>,
    slot: BTreeMap<String, Slot>,
    answer: String,
    choices: Option<Choices>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Choices {
    Texts(Vec<String>),
    Rows { slot: String, count: usize },
}

/// A suite as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    suits: String,
    vocabulary: Option<usize>,
    #[serde(default)]
    score: Scoring,
    #[serde(default)]
    any_length: bool,
    #[serde(default = "newline")]
    separator: String,
    #[serde(default)]
    phrasing: Vec<Phrasing>,
    pairs: Option<String>,
    #[serde(default)]
    families: Vec<String>,
    #[serde(default)]
    templates: Vec<String>,
    #[serde(default)]
    class: BTreeMap<String, Class>,
    #[serde(default)]
    slot: BTreeMap<String, Slot>,
    answer: Option<String>,
    choices: Option<Choices>,
}

fn newline() -> String {
    "\n".into()
}

/// A question in words. Several right answers count together, and so do the wrong ones that they are held against.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    prompt: String,
    right: Vec<String>,
    wrong: Vec<String>,
}

/// What is asked: which phrasing, how many examples before it, how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking<'a> {
    /// One of [`Suite::phrasings`].
    pub phrasing: &'a str,
    /// Questions with their answers that stand before.
    pub shots: usize,
    /// Questions, over all templates in turn.
    pub count: u64,
    /// Decides words and examples.
    pub seed: u64,
}

/// A question in the tokens of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Index into [`Suite::templates`].
    pub template: usize,
    /// The prompt as it is put, examples and all.
    pub text: String,
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// The right answers; several count together.
    pub right: Vec<Continuation>,
    /// The wrong ones: with one right answer each for itself, with several of them together. Empty: all other texts.
    pub wrong: Vec<Continuation>,
}

/// How a prompt may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// In words.
    pub text: String,
    /// In tokens, cut by itself.
    pub ids: Vec<u32>,
}

impl Suite {
    /// The suite of that name among those that come with the workbench.
    pub fn shipped(name: &str) -> Option<Result<Self>> {
        let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == name)?;
        Some(Self::parse(text, Path::new(name)))
    }

    /// Reads a suite and tries every template with every phrasing once; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] with what is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let file: File = toml::from_str(text).map_err(|e| wrong(toml_fault(text, &e)))?;
        let source = source(&file).map_err(wrong)?;
        let mut phrasings = file.phrasing;
        if phrasings.is_empty() {
            phrasings.push(Phrasing { name: "plain".into(), text: PROMPT.into() });
        }
        limits::many("phrasings", phrasings.len(), PHRASINGS).map_or(Ok(()), |what| Err(wrong(what)))?;
        for (i, phrasing) in phrasings.iter().enumerate() {
            if phrasing.text.matches(PROMPT).count() != 1 {
                return Err(wrong(format!("phrasing `{}` must hold {PROMPT} once", phrasing.name)));
            }
            if phrasings[..i].iter().any(|earlier| earlier.name == phrasing.name) {
                return Err(wrong(format!("there are two phrasings `{}`", phrasing.name)));
            }
        }
        let suite = Self {
            about: file.about,
            suits: file.suits,
            score: file.score,
            vocabulary: file.vocabulary,
            any_length: file.any_length,
            separator: file.separator,
            phrasings,
            source,
        };
        if let Source::Templates(templates) = &suite.source {
            templates.check().map_err(wrong)?;
        }
        Ok(suite)
    }

    /// What each template looks like, or which family it is.
    pub fn templates(&self) -> Vec<String> {
        match &self.source {
            Source::Templates(templates) => templates.templates.clone(),
            Source::Pairs(pairs) => pairs.templates(),
            Source::Families(_, families) => families.iter().map(|family| family.name.clone()).collect(),
        }
    }

    /// How many templates there are.
    fn count(&self) -> usize {
        match &self.source {
            Source::Templates(templates) => templates.templates.len(),
            Source::Pairs(pairs) => pairs.count(),
            Source::Families(_, families) => families.len(),
        }
    }

    /// The names of the phrasings, in the order of the file.
    pub fn phrasings(&self) -> impl Iterator<Item = &str> {
        self.phrasings.iter().map(|phrasing| phrasing.name.as_str())
    }

    /// Refuses a tokenizer whose vocabulary is not the one that the words are written for.
    ///
    /// # Errors
    /// [`Error::Request`] with both sizes.
    pub fn check_vocabulary(&self, tokenizer: &Tokenizer) -> Result<()> {
        match self.vocabulary {
            Some(size) if size != tokenizer.vocab_size() => Err(Error::request(format!(
                "the suite is written for {} with a vocabulary of {size} tokens; this model's has {}: scores would measure the \
                 cutting of words (--any-vocabulary asks anyway)",
                self.suits,
                tokenizer.vocab_size()
            ))),
            _ => Ok(()),
        }
    }

    /// The questions of a seed in the tokens of a model. Question `i` is of template `i` modulo their number.
    ///
    /// # Errors
    /// [`Error::Request`] for a phrasing that there is not, answers that are more than one token unless the suite allows it,
    /// prompts that end where an answer cannot be cut off, and more questions or examples than [`EXAMPLES`] and [`SHOTS`];
    /// [`Error::TryAgain`] where there is no memory for so many.
    pub fn questions(&self, asking: Asking<'_>, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Vec<Question>> {
        let found = self.phrasings.iter().find(|phrasing| phrasing.name == asking.phrasing);
        let phrasing = found.ok_or_else(|| Error::request(no_such("phrasing", asking.phrasing, self.phrasings())))?;
        limits::within("questions", asking.count, 1..=EXAMPLES)?;
        limits::within("shots", asking.shots, 0..=SHOTS)?;
        let question = |index| self.question(phrasing, asking, index, tokenizer, encoding);
        let bytes = question(0)?.bytes() as u64;
        memory::check(&format!("{} questions", asking.count), memory::product(&[asking.count, bytes]), None)?;
        (0..asking.count).map(question).collect()
    }

    fn question(
        &self,
        phrasing: &Phrasing,
        asking: Asking<'_>,
        index: u64,
        tokenizer: &Tokenizer,
        encoding: Encoding,
    ) -> Result<Question> {
        let count = self.count() as u64;
        let template = (index % count) as usize;
        let item = self.item(template, asking.seed, "questions", index / count, tokenizer)?;
        let mut text = String::new();
        let mut seen = vec![item.prompt.clone()];
        // Examples are other questions; a suite with too few of them says so instead of giving the answer away.
        let mut draw = index * TRIES;
        while seen.len() <= asking.shots {
            if draw == (index + 1) * TRIES {
                return Err(Error::request(format!(
                    "template `{}` has fewer than {} different questions to show before one",
                    shorten(&self.templates()[template]),
                    asking.shots
                )));
            }
            let shot = self.item(self.shown(template, asking.seed, draw), asking.seed, "shots", draw, tokenizer)?;
            draw += 1;
            if seen.contains(&shot.prompt) {
                continue;
            }
            text += &phrasing.text.replace(PROMPT, &shot.prompt);
            // Of several right answers one is shown, not always the first: that would be a rule of its own.
            let mut rng = stream(asking.seed, "behave shown", draw);
            text += shot.right.choose(&mut rng).map_or("", String::as_str);
            text += &self.separator;
            seen.push(shot.prompt);
        }
        text += &phrasing.text.replace(PROMPT, &item.prompt);
        let prompt = prompt_ids(&text, tokenizer, encoding)?;
        let continuation = |answer: &String| -> Result<Continuation> {
            let found = self.continuation(answer, tokenizer, encoding.allow_special)?;
            if let Source::Templates(_) = &self.source {
                let whole = prompt_ids(&format!("{text}{answer}"), tokenizer, encoding)?;
                if whole != [prompt.as_slice(), &found.ids].concat() {
                    return Err(Error::request(format!(
                        "the answer `{}` is cut into other tokens after the prompt `…{}` than by itself: begin it with a space",
                        shorten(answer),
                        end_of(&text)
                    )));
                }
            }
            Ok(found)
        };
        Ok(Question {
            template,
            right: item.right.iter().map(continuation).collect::<Result<_>>()?,
            wrong: item.wrong.iter().map(continuation).collect::<Result<_>>()?,
            prompt,
            text,
        })
    }

    /// A template for an example: worded as that of the question, but in any arrangement, or the place or the number of the
    /// answer would be a rule that all examples show.
    fn shown(&self, template: usize, seed: u64, draw: u64) -> usize {
        match &self.source {
            Source::Pairs(pairs) => pairs
                .worded_as(template)
                .choose(&mut stream(seed, "behave arranged", draw))
                .copied()
                .unwrap_or(template),
            _ => template,
        }
    }

    fn continuation(&self, text: &str, tokenizer: &Tokenizer, allow_special: bool) -> Result<Continuation> {
        let ids = tokenizer.encode(text, Encoding { bos: Bos::No, allow_special })?;
        if ids.is_empty() || (ids.len() > 1 && !self.any_length) {
            let pieces: Vec<String> = ids.iter().map(|&id| format!("`{}`", tokenizer.text(id))).collect();
            return Err(Error::request(format!(
                "the answer `{}` is {} tokens, {}, in this vocabulary (the suite is written for {}; any_length = true in it scores \
                 longer answers)",
                shorten(text),
                ids.len(),
                pieces.join(" "),
                self.suits
            )));
        }
        Ok(Continuation { text: text.to_string(), ids })
    }

    /// Question `index` of a template, in words.
    fn item(&self, template: usize, seed: u64, purpose: &str, index: u64, tokenizer: &Tokenizer) -> Result<Item> {
        match &self.source {
            Source::Templates(templates) => {
                let mut rng = stream(seed, &format!("behave {purpose} {template}"), index);
                let fault =
                    |what| Error::data("suite", format!("`{}`: {what}", shorten(&templates.templates[template])));
                let picks = templates.slots().pick(&mut rng).map_err(fault)?;
                templates.fill(&templates.templates[template], &picks, &mut rng).map_err(fault)
            }
            Source::Pairs(pairs) => {
                // Words of their own for every template, and others for what is shown before.
                let index = index * pairs.count() as u64 + template as u64;
                let index = if purpose == "questions" { index } else { u64::MAX - index };
                let drawn = pairs.draw(None, Some(template), seed, index)?;
                Ok(Item { prompt: drawn.clean, right: drawn.answer, wrong: drawn.wrong })
            }
            Source::Families(language, families) => {
                let family = &families[template];
                // The questions of the model's card.
                let purpose = if purpose == "questions" { "card" } else { purpose };
                let mut rng = stream(seed, &format!("{purpose} {}", family.name), index);
                let item = language.item(family, Split::Heldout, &mut rng);
                match family.metric {
                    Some(Metric::Later) => {
                        let (right, wrong) = language::later(tokenizer, family, &item)?;
                        Ok(Item { prompt: item.prompt, right, wrong })
                    }
                    Some(Metric::Choice) => Ok(Item {
                        prompt: item.prompt,
                        right: vec![item.answer],
                        wrong: item.wrong.into_iter().collect(),
                    }),
                    _ => Ok(Item { prompt: item.prompt, right: vec![item.answer], wrong: Vec::new() }),
                }
            }
        }
    }
}

impl Question {
    /// Bytes of its texts and tokens, about what they take.
    fn bytes(&self) -> usize {
        let answers = self.right.iter().chain(&self.wrong);
        let answers: usize = answers.map(|answer| answer.text.len() + 4 * answer.ids.len() + 64).sum();
        self.text.len() + 4 * self.prompt.len() + answers + 128
    }
}

/// Draws until as many different examples are found.
const TRIES: u64 = 1000;

/// A prompt that an answer can follow.
fn prompt_ids(text: &str, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Vec<u32>> {
    if text.ends_with(' ') {
        return Err(Error::request(format!(
            "the prompt ends with a space, `…{}`: no answer follows one; begin the answer with it instead",
            end_of(text)
        )));
    }
    Ok(tokenizer.tokens(&[text], encoding)?.row(0).to_vec())
}

/// The last characters of a text, for a message.
fn end_of(text: &str) -> String {
    let end: Vec<char> = text.chars().rev().take(20).collect();
    shorten(&end.into_iter().rev().collect::<String>())
}

/// The one source of questions of a file.
fn source(file: &File) -> Fallible<Source> {
    let words = !file.slot.is_empty() || !file.class.is_empty();
    let own = !file.templates.is_empty() || file.answer.is_some() || file.choices.is_some() || words;
    let sources = [own, file.pairs.is_some(), !file.families.is_empty()].iter().filter(|given| **given).count();
    if sources != 1 {
        return Err("a suite has either templates with an answer, or pairs, or families".into());
    }
    if let Some(name) = &file.pairs {
        let known = || crate::pairset::SHIPPED.iter().map(|(name, _)| *name);
        let set = PairSet::shipped(name).ok_or_else(|| no_such("set of pairs", name, known()))?;
        return Ok(Source::Pairs(Box::new(set.map_err(|e| e.to_string())?)));
    }
    if !file.families.is_empty() {
        let language = embedded::language().map_err(|e| e.to_string())?;
        let known = || language.families().iter().filter(|family| family.metric.is_some());
        let family = |name: &String| {
            let found = known().find(|family| family.name == *name).cloned();
            found.ok_or_else(|| no_such("family", name, known().map(|family| family.name.as_str())))
        };
        limits::many("families", file.families.len(), known().count()).map_or(Ok(()), Err)?;
        let families = file.families.iter().map(family).collect::<Fallible<_>>()?;
        return Ok(Source::Families(Box::new(language), families));
    }
    let answer = file.answer.clone().ok_or("a suite with templates needs an answer")?;
    Ok(Source::Templates(Box::new(Templates {
        templates: file.templates.clone(),
        class: file.class.clone(),
        slot: file.slot.clone(),
        answer,
        choices: file.choices.clone(),
    })))
}

impl Templates {
    fn slots(&self) -> Slots<'_> {
        Slots { class: &self.class, slot: &self.slot }
    }

    fn check(&self) -> Fallible<()> {
        self.slots().check()?;
        if self.templates.is_empty() {
            return Err("a suite needs templates".into());
        }
        check_templates(&self.templates, std::iter::once(self.templates.as_slice()))?;
        let choices = match &self.choices {
            Some(Choices::Texts(texts)) => texts.len(),
            Some(Choices::Rows { count, .. }) => *count,
            None => 0,
        };
        limits::many("choices", choices, ANSWERS).map_or(Ok(()), Err)?;
        match &self.choices {
            Some(Choices::Texts(texts)) if texts.is_empty() => return Err("choices are empty; leave them out".into()),
            Some(Choices::Rows { slot, count }) => {
                let (_, from, to) = self.slots().bounds(slot)?;
                if *count == 0 || *count > to - from {
                    return Err(format!("slot `{slot}` has {} other rows; choices ask for {count}", to - from));
                }
            }
            _ => {}
        }
        let mut expanded = Expanded::default();
        for template in &self.templates {
            let mut rng = stream(0, "behave", 0);
            let picks = self.slots().pick(&mut rng)?;
            let item =
                self.fill(template, &picks, &mut rng).map_err(|what| format!("`{}`: {what}", shorten(template)))?;
            expanded.add(
                template,
                item.prompt.len() + item.right.iter().chain(&item.wrong).map(String::len).sum::<usize>(),
            )?;
        }
        Ok(())
    }

    fn fill(&self, template: &str, picks: &Picks<'_>, rng: &mut Stream) -> Fallible<Item> {
        let write = |text: &str, picks: &Picks<'_>| self.slots().written(text, &[&Roles::new()], picks);
        let prompt = write(template, picks)?.text;
        let right = write(&self.answer, picks)?.text;
        let mut wrong: Vec<String> = Vec::new();
        match &self.choices {
            None => {}
            Some(Choices::Texts(texts)) => {
                for text in texts {
                    let text = write(text, picks)?.text;
                    if !wrong.contains(&text) {
                        wrong.push(text);
                    }
                }
            }
            Some(Choices::Rows { slot, count }) => {
                let (_, from, to) = self.slots().bounds(slot)?;
                let mut rows: Vec<usize> = (from..=to).collect();
                rows.shuffle(rng);
                for row in rows {
                    if wrong.len() == *count {
                        break;
                    }
                    let mut other = picks.clone();
                    other.insert(slot, row);
                    let text = write(&self.answer, &other)?.text;
                    // Two rows may share an answer, as two countries a language.
                    if text != right && !wrong.contains(&text) {
                        wrong.push(text);
                    }
                }
            }
        }
        wrong.retain(|text| *text != right);
        if wrong.is_empty() && self.choices.is_some() {
            return Err(format!("all choices are the answer `{}`", shorten(&right)));
        }
        Ok(Item { prompt, right: vec![right], wrong })
    }
}

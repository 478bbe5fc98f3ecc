//! Probing tasks as data: texts made of templates, what is to be read from them, and where.
//!
//! A file has `templates`, `[class.X]` and `[slot]` (`slots.rs`); `[[case]]`, ways in which roles stand for slots, each with
//! a label of its own if it likes; and
//!
//! - `label`: a text with names in braces; or `position`, the place of the token; or `token` or `next`, the class of the
//!   token or of the one after it by `[rule]`, lists of words. Tokens of no class are no rows.
//! - `sites`: where it is asked, by names or patterns; anywhere without it.
//! - `at`: the token that is read: `first`, `last`, `all`, or the last one of what stands for a name, `{noun}`.
//! - `group`: what must not be on both sides of a split, a text with names; the template without it.
//! - `control`: what gets a label of its own in the control task, a text with names; the token without it.
//! - `answer` and `wrong`, which a case may have for itself: how the text goes on if the model goes by the label, and if it goes
//!   by another one; a token each. With them it can be tried whether the model uses what is read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result, shorten, toml_fault};
use crate::labelled::{Kind, Row, mark};
use crate::limits::{self, EXAMPLES};
use crate::memory;
use crate::random::{SliceRandom, stream};
use crate::slots::{Class, Expanded, Fallible, Picks, Roles, Slot, Slots, check_templates};
use crate::target::Target;
use crate::text::{Encoding, Tokenizer};
use crate::tokens::Tokens;

/// The tasks that come with the workbench, by name.
pub const SHIPPED: [(&str, &str); 16] = [
    ("number", include_str!("../probes/number.toml")),
    ("sentiment", include_str!("../probes/sentiment.toml")),
    ("giver", include_str!("../probes/giver.toml")),
    ("fact", include_str!("../probes/fact.toml")),
    ("year", include_str!("../probes/year.toml")),
    ("position", include_str!("../probes/position.toml")),
    ("next", include_str!("../probes/next.toml")),
    ("part-of-speech", include_str!("../probes/part-of-speech.toml")),
    ("tiny-number", include_str!("../probes/tiny-number.toml")),
    ("tiny-sentiment", include_str!("../probes/tiny-sentiment.toml")),
    ("tiny-giver", include_str!("../probes/tiny-giver.toml")),
    ("tiny-language", include_str!("../probes/tiny-language.toml")),
    ("tiny-year", include_str!("../probes/tiny-year.toml")),
    ("tiny-position", include_str!("../probes/tiny-position.toml")),
    ("tiny-next", include_str!("../probes/tiny-next.toml")),
    ("tiny-part-of-speech", include_str!("../probes/tiny-part-of-speech.toml")),
];

/// What is to be read from activations.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What it asks, in one line.
    pub about: String,
    /// The model, or family of models, whose vocabulary it is written for.
    pub suits: String,
    /// Whether labels are names or numbers.
    #[serde(default)]
    pub kind: Kind,
    /// Texts that are enough for it.
    #[serde(default = "usual_examples", rename = "examples")]
    pub usual: u64,
    /// Where it is asked, by names or patterns of sites; empty for wherever one likes.
    #[serde(default)]
    pub sites: Vec<String>,
    label: String,
    at: String,
    group: Option<String>,
    control: Option<String>,
    answer: Option<String>,
    wrong: Option<String>,
    templates: Vec<String>,
    class: BTreeMap<String, Class>,
    slot: BTreeMap<String, Slot>,
    #[serde(default)]
    case: Vec<Case>,
    #[serde(default)]
    rule: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    label: Option<String>,
    answer: Option<String>,
    wrong: Option<String>,
    #[serde(default)]
    roles: Roles,
    #[serde(default)]
    templates: Vec<String>,
}

fn usual_examples() -> u64 {
    2000
}

/// A text of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What it says.
    pub text: String,
    label: String,
    group: String,
    control: Option<String>,
    /// Where in the text the token ends that is read, in bytes, if a name says so.
    end: Option<usize>,
    /// How it goes on, rightly and wrongly.
    answers: Option<(String, String)>,
}

/// The texts of a task, and what is to be read from them.
#[derive(Clone, Debug)]
pub struct Examples {
    /// The texts.
    pub tokens: Tokens,
    /// What is to be read.
    pub rows: Vec<Row>,
    /// How each text goes on, where the task says so.
    pub targets: Option<Vec<Target>>,
}

impl Task {
    /// The task of that name among those that come with the workbench.
    pub fn shipped(name: &str) -> Option<Result<Self>> {
        let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == name)?;
        Some(Self::parse(text, Path::new(name)))
    }

    /// Reads a task and tries every template once; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] with what is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let mut task: Self = toml::from_str(text).map_err(|e| wrong(toml_fault(text, &e)))?;
        if task.case.is_empty() {
            task.case.push(Case::default());
        }
        check_templates(&task.templates, task.case.iter().map(|case| case.templates.as_slice())).map_err(wrong)?;
        limits::fault("examples", task.usual, 2..=EXAMPLES).map_or(Ok(()), |what| Err(wrong(what)))?;
        limits::patterns(&task.sites).map_err(|e| wrong(format!("sites: {e}")))?;
        for case in task.case.iter_mut().filter(|case| case.templates.is_empty()) {
            case.templates.clone_from(&task.templates);
        }
        task.check().map_err(wrong)?;
        Ok(task)
    }

    fn slots(&self) -> Slots<'_> {
        Slots { class: &self.class, slot: &self.slot }
    }

    fn check(&self) -> Fallible<()> {
        self.slots().check()?;
        if self.templates.is_empty() && self.case.iter().any(|case| case.templates.is_empty()) {
            return Err("a task needs templates".into());
        }
        let by_rule = matches!(self.label.as_str(), "token" | "next");
        if by_rule == self.rule.is_empty() {
            return Err("labels `token` and `next` go by [rule], and others do not".into());
        }
        if let Some((word, _)) = self.words().iter().find(|(_, classes)| classes.len() > 1) {
            return Err(format!("`{word}` is in more than one class of [rule]"));
        }
        if self.at != "all" && (by_rule || self.label == "position") {
            return Err(format!("label `{}` is for at = \"all\"", self.label));
        }
        let some = self.case.iter().any(|case| self.answers(case) != [None, None]);
        if some && !self.case.iter().all(|case| matches!(self.answers(case), [Some(_), Some(_)])) {
            return Err("`answer` and `wrong` belong together, and all cases have them or none".into());
        }
        if some && self.at == "all" {
            return Err("answers are for tasks that read one token of a text, not for at = \"all\"".into());
        }
        let mut expanded = Expanded::default();
        for (case, template) in self.forms() {
            let picks = self.slots().pick(&mut stream(0, "examples", 0))?;
            let example =
                self.fill(case, template, &picks).map_err(|what| format!("`{}`: {what}", shorten(template)))?;
            expanded.add(template, example.bytes())?;
        }
        Ok(())
    }

    /// How texts of a case go on, rightly and wrongly.
    fn answers<'a>(&'a self, case: &'a Case) -> [Option<&'a str>; 2] {
        [case.answer.as_deref().or(self.answer.as_deref()), case.wrong.as_deref().or(self.wrong.as_deref())]
    }

    /// The classes of each word.
    fn words(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut words: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (class, own) in &self.rule {
            own.iter().for_each(|word| words.entry(word).or_default().push(class));
        }
        words
    }

    /// Every template with its case.
    fn forms(&self) -> impl Iterator<Item = (&Case, &str)> {
        self.case.iter().flat_map(|case| case.templates.iter().map(move |t| (case, t.as_str())))
    }

    /// Example number `index` of a seed: every template of every case in turn, in an order that the seed shuffles.
    ///
    /// # Errors
    /// [`Error::Data`] for a text that is too long; what else can be wrong was found by [`Task::parse`].
    pub fn draw(&self, seed: u64, index: u64) -> Result<Example> {
        let forms: Vec<(&Case, &str)> = self.forms().collect();
        let (round, at) = (index / forms.len() as u64, (index % forms.len() as u64) as usize);
        let mut order: Vec<usize> = (0..forms.len()).collect();
        order.shuffle(&mut stream(seed, "templates of a task", round));
        let (case, template) = forms[order[at]];
        let wrong = |what| Error::data("task", what);
        let picks = self.slots().pick(&mut stream(seed, "examples", index)).map_err(wrong)?;
        self.fill(case, template, &picks).map_err(wrong)
    }

    fn fill(&self, case: &Case, template: &str, picks: &Picks<'_>) -> Fallible<Example> {
        let (slots, roles) = (self.slots(), [&case.roles]);
        let written = slots.written(template, &roles, picks)?;
        let filled = |text: &str| slots.written(text, &roles, picks).map(|written| written.text);
        let end = match self.at.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            None if matches!(self.at.as_str(), "first" | "last" | "all") => None,
            None => return Err(format!("at = \"{}\": there are first, last, all and {{name}}", self.at)),
            Some(name) => {
                let place = written.places.iter().rfind(|(own, _)| own == name);
                Some(place.ok_or_else(|| format!("there is no {{{name}}}, where the task reads"))?.1.end)
            }
        };
        let answers = match self.answers(case) {
            [Some(answer), Some(wrong)] => Some((filled(answer)?, filled(wrong)?)),
            _ => None,
        };
        Ok(Example {
            answers,
            label: case.label.clone().map_or_else(|| filled(&self.label), Ok)?,
            group: self.group.as_deref().map_or(Ok(template.to_string()), filled)?,
            control: self.control.as_deref().map(filled).transpose()?,
            text: written.text,
            end,
        })
    }

    /// The first examples of a seed.
    ///
    /// # Errors
    /// [`Error::Request`] for words that the tokenizer does not know, for answers that are not one token, and for more than
    /// [`EXAMPLES`]; [`Error::TryAgain`] where there is no memory for so many.
    pub fn examples(&self, count: u64, seed: u64, tokenizer: &Tokenizer, encoding: Encoding) -> Result<Examples> {
        limits::within("examples", count, 1..=EXAMPLES)?;
        // As text, as tokens with their text, and as rows.
        let bytes = 4 * self.draw(seed, 0)?.bytes() as u64;
        memory::check(&format!("{count} texts of a task"), memory::product(&[count, bytes]), None)?;
        let examples = (0..count).map(|index| self.draw(seed, index)).collect::<Result<Vec<_>>>()?;
        let targets = examples
            .iter()
            .filter_map(|example| example.answers.as_ref())
            .map(|(answer, wrong)| Target::parse(tokenizer, &[answer], &[wrong]))
            .collect::<Result<Vec<_>>>()?;
        let targets = (!targets.is_empty()).then_some(targets);
        let texts: Vec<&str> = examples.iter().map(|example| example.text.as_str()).collect();
        let tokens = tokenizer.tokens(&texts, encoding)?;
        let words = self.words();
        let mut rows = Vec::new();
        for (prompt, example) in examples.iter().enumerate() {
            let ids = tokens.row(prompt);
            // The token that starts a sequence is none of the text.
            let start = usize::from(ids.first().is_some_and(|id| tokenizer.bos() == Some(*id)));
            let last = ids.len().saturating_sub(1);
            let chosen = match (self.at.as_str(), example.end) {
                (_, Some(end)) => {
                    let at = ending_at(tokenizer, &ids[start..], end) + start;
                    at..at + 1
                }
                ("first", _) => start..start + 1,
                ("last", _) => last..last + 1,
                _ => start..ids.len(),
            };
            let text = mark(&ids[start..]);
            for pos in chosen {
                let word = |pos: usize| ids.get(pos).map(|id| tokenizer.text(*id)).unwrap_or_default();
                let class = |pos: usize| words.get(word(pos).trim()).map(|classes| classes[0].to_string());
                let label = match self.label.as_str() {
                    "position" => Some(pos.to_string()),
                    "token" => class(pos),
                    "next" => class(pos + 1),
                    _ => Some(example.label.clone()),
                };
                let Some(label) = label else { continue };
                let control = example.control.clone().unwrap_or_else(|| word(pos));
                let (prompt, pos) = (prompt as u32, pos as u32);
                rows.push(Row { prompt, pos, label, group: example.group.clone(), control, text: Some(text.clone()) });
            }
        }
        Ok(Examples { tokens, rows, targets })
    }
}

impl Example {
    /// Bytes of its texts, about what they take.
    fn bytes(&self) -> usize {
        let answers = self.answers.iter().flat_map(|(right, wrong)| [right, wrong]);
        let texts = [&self.text, &self.label, &self.group].into_iter().chain(&self.control).chain(answers);
        texts.map(|text| text.len() + 24).sum()
    }
}

/// The token in which byte number `end` of the text ends.
fn ending_at(tokenizer: &Tokenizer, ids: &[u32], end: usize) -> usize {
    let mut read = 0;
    let reached = ids.iter().position(|id| {
        read += tokenizer.bytes(*id).map_or(0, |bytes| bytes.len());
        read >= end
    });
    reached.unwrap_or(ids.len().saturating_sub(1))
}

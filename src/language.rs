//! English-like text whose structure is known: templates with slots, read from a file.
//!
//! The format is described at the top of `models/tiny/language.toml`, the language of the embedded model.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::limits::{self, FIELDS, SLOTS};
use crate::random::{IndexedRandom, Rng, Stream};
use crate::text::{Bos, Encoding, Tokenizer};

/// A language: classes of words and families of templates.
#[derive(Clone, Debug)]
pub struct Language {
    classes: BTreeMap<String, Vec<Entry>>,
    families: Vec<Family>,
    held: HashSet<String>,
    digest: String,
}

/// One behaviour of the language.
#[derive(Clone, Debug)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// What it is about, in one line.
    pub about: String,
    /// How it is measured, if it is.
    pub metric: Option<Metric>,
    weight: u32,
    hold_names: bool,
    train: Vec<Template>,
    heldout: Vec<Template>,
}

/// How a family is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// The right continuation is likelier than the wrong one.
    Choice,
    /// The right continuation is the likeliest of the whole vocabulary.
    Top,
    /// Of all two-digit numbers, those after the one given are likelier than the rest.
    Later,
}

/// Which templates and names to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those of the training text.
    Train,
    /// Templates that training never saw, with names that the family never used.
    Heldout,
}

/// A sentence cut where the model is tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Everything before the choice.
    pub prompt: String,
    /// The right continuation.
    pub answer: String,
    /// The wrong one, where there is one.
    pub wrong: Option<String>,
    /// The rest of the sentence.
    pub rest: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    text: String,
    /// What makes two entries the same thing: the singular of a noun.
    lemma: String,
    fields: BTreeMap<String, String>,
}

type Template = Vec<Piece>;

/// The fault in words; the caller says where.
type Fallible<T> = std::result::Result<T, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Slot { name: String, class: Option<String>, field: Option<String> },
    Choice { answer: Template, wrong: Option<Template> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFormat {
    class: BTreeMap<String, ClassFormat>,
    family: Vec<FamilyFormat>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassFormat {
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    rows: Vec<Vec<String>>,
    #[serde(default)]
    numbered: bool,
    #[serde(default)]
    share: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    female: Vec<String>,
    #[serde(default)]
    male: Vec<String>,
    #[serde(default)]
    held: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FamilyFormat {
    name: String,
    about: String,
    metric: Option<Metric>,
    weight: u32,
    #[serde(default)]
    hold_names: bool,
    train: Vec<String>,
    #[serde(default)]
    heldout: Vec<String>,
}

impl Language {
    /// Reads a language; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] with the template or class at fault.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let file: FileFormat = toml::from_str(text).map_err(|e| wrong(crate::error::toml_fault(text, &e)))?;
        let mut classes = BTreeMap::new();
        let mut held = HashSet::new();
        for (name, class) in file.class {
            held.extend(class.held.iter().cloned());
            for (class, entries) in class.entries(&name).map_err(wrong)? {
                classes.insert(class, entries);
            }
        }
        let families = file
            .family
            .into_iter()
            .map(|family| {
                let parse = |templates: &[String]| -> Result<Vec<Template>> {
                    templates
                        .iter()
                        .map(|t| {
                            let template =
                                parse_template(t).and_then(|template| check(&template, &classes).map(|()| template));
                            template.map_err(|what| wrong(format!("family {}: `{t}`: {what}", family.name)))
                        })
                        .collect()
                };
                Ok(Family {
                    train: parse(&family.train)?,
                    heldout: parse(&family.heldout)?,
                    name: family.name,
                    about: family.about,
                    metric: family.metric,
                    weight: family.weight,
                    hold_names: family.hold_names,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if families.iter().map(|f| u64::from(f.weight)).sum::<u64>() > u64::from(u32::MAX) {
            return Err(wrong(format!("the weights of all families come to more than {}", u32::MAX)));
        }
        if families.iter().map(|f| f.weight).sum::<u32>() == 0 || families.iter().any(|f| f.train.is_empty()) {
            return Err(wrong("every family needs training templates, and one a weight above 0".into()));
        }
        Ok(Self { classes, families, held, digest: crate::weights::sha256_of(text.as_bytes()) })
    }

    /// The sha256 of the file.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Every behaviour, in the order of the file.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// A document of one to three sentences of random families.
    pub fn document(&self, rng: &mut Stream) -> String {
        let sentences: Vec<String> = (0..rng.random_range(1..=3))
            .map(|_| {
                let total: u32 = self.families.iter().map(|f| f.weight).sum();
                let mut draw = rng.random_range(0..total);
                let family = self.families.iter().find(|f| match draw.checked_sub(f.weight) {
                    Some(rest) => {
                        draw = rest;
                        false
                    }
                    None => true,
                });
                let item = self.item(family.unwrap_or(&self.families[0]), Split::Train, rng);
                item.prompt + &item.answer + &item.rest
            })
            .collect();
        sentences.join(" ")
    }

    /// A random sentence of a family. Families without held-out templates give training ones.
    pub fn item(&self, family: &Family, split: Split, rng: &mut Stream) -> Item {
        let templates = match split {
            Split::Heldout if !family.heldout.is_empty() => &family.heldout,
            _ => &family.train,
        };
        let names = match (family.hold_names, split) {
            (true, Split::Train) => Names::Seen,
            (true, Split::Heldout) => Names::Held,
            (false, _) => Names::All,
        };
        let mut filled = Filled { language: self, names, slots: BTreeMap::new() };
        let template = &templates[rng.random_range(0..templates.len())];
        let mut item = Item { prompt: String::new(), answer: String::new(), wrong: None, rest: String::new() };
        let mut chosen = false;
        for piece in template {
            match piece {
                Piece::Choice { answer, wrong } => {
                    chosen = true;
                    item.answer = filled.write(answer, rng);
                    item.wrong = wrong.as_ref().map(|wrong| filled.write(wrong, rng));
                }
                piece => {
                    let text = filled.write(std::slice::from_ref(piece), rng);
                    if chosen { &mut item.rest } else { &mut item.prompt }.push_str(&text);
                }
            }
        }
        item
    }
}

/// The two-digit numbers after the one in the prompt, and those up to it, as far as they are one token after the prompt.
///
/// # Errors
/// [`Error::Data`] for a prompt without a year, or a tokenizer that cuts most numbers.
pub(crate) fn later(tokenizer: &Tokenizer, family: &Family, item: &Item) -> Result<(Vec<String>, Vec<String>)> {
    let digits: Vec<&str> = item.prompt.split(|c: char| !c.is_ascii_digit()).filter(|s| s.len() == 4).collect();
    let begin: u32 = digits
        .first()
        .and_then(|year| year[2..].parse().ok())
        .ok_or_else(|| not_measurable(family, &item.prompt, "has no year"))?;
    // After some centuries a few numbers are no token of their own, since BPE cuts 1812 otherwise than 18 and 12.
    let all: Vec<u32> = (2..=99)
        .filter(|number| next_token(tokenizer, family, &item.prompt, &format!("{number:02}")).is_ok())
        .collect();
    if all.len() < 80 {
        let what = format!("only {} of 98 numbers are one token after it", all.len());
        return Err(not_measurable(family, &item.prompt, &what));
    }
    let (later, rest): (Vec<u32>, Vec<u32>) = all.into_iter().partition(|number| *number > begin);
    let words = |numbers: Vec<u32>| numbers.iter().map(|number| format!("{number:02}")).collect();
    Ok((words(later), words(rest)))
}

/// The token that an answer adds to a prompt.
///
/// # Errors
/// [`Error::Data`] for an answer that is not one.
pub(crate) fn next_token(tokenizer: &Tokenizer, family: &Family, prompt: &str, answer: &str) -> Result<u32> {
    let plain = Encoding { bos: Bos::No, allow_special: false };
    let before = tokenizer.encode(prompt, plain)?;
    let after = tokenizer.encode(&format!("{prompt}{answer}"), plain)?;
    match after.strip_prefix(before.as_slice()) {
        Some([token]) => Ok(*token),
        _ => Err(not_measurable(family, prompt, &format!("`{answer}` is not one token after it"))),
    }
}

fn not_measurable(family: &Family, prompt: &str, why: &str) -> Error {
    Error::data("language", format!("family {}: `{prompt}`: {why}", family.name))
}

/// Which names a sentence may use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    All,
    Seen,
    Held,
}

/// A sentence being written: what each slot was filled with.
struct Filled<'a> {
    language: &'a Language,
    names: Names,
    slots: BTreeMap<&'a str, Entry>,
}

impl<'a> Filled<'a> {
    fn write(&mut self, pieces: &'a [Piece], rng: &mut Stream) -> String {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(t) => text.push_str(t),
                Piece::Slot { name, class, field } => {
                    if let Some(class) = class {
                        let entry = self.pick(class, rng);
                        self.slots.insert(name, entry);
                    }
                    let entry = self.slots.get(name.as_str());
                    let value = match field {
                        None => entry.map(|e| &e.text),
                        Some(field) => entry.and_then(|e| e.fields.get(field)),
                    };
                    text.push_str(value.map_or("", String::as_str)); // `check` saw to it that there is one
                }
                Piece::Choice { answer, .. } => text.push_str(&self.write(answer, rng)),
            }
        }
        text
    }

    /// A random entry that no other slot holds.
    fn pick(&self, class: &str, rng: &mut Stream) -> Entry {
        if class == "year" {
            return year(rng);
        }
        let taken: HashSet<&str> = self.slots.values().map(|entry| entry.lemma.as_str()).collect();
        let free: Vec<&Entry> = self.language.classes[class]
            .iter()
            .filter(|entry| !taken.contains(entry.lemma.as_str()))
            .filter(|entry| {
                class != "name"
                    || match self.names {
                        Names::All => true,
                        Names::Seen => !self.language.held.contains(&entry.text),
                        Names::Held => self.language.held.contains(&entry.text),
                    }
            })
            .collect();
        free.choose(rng).map(|entry| (*entry).clone()).unwrap_or_default()
    }
}

/// A year between 1102 and 1998 that leaves room for a later one in its century.
fn year(rng: &mut Stream) -> Entry {
    let (century, begin) = (rng.random_range(11..=19), rng.random_range(2..=97));
    let later = rng.random_range(begin + 1..=99);
    let fields =
        [("century", format!("{century}")), ("begin", format!("{begin:02}")), ("later", format!("{later:02}"))];
    let text = format!("{century}{begin:02}");
    Entry { lemma: text.clone(), text, fields: fields.map(|(k, v)| (k.to_string(), v)).into() }
}

impl ClassFormat {
    /// The class under its own name, and `_sg` and `_pl` where it is numbered.
    fn entries(self, name: &str) -> Fallible<Vec<(String, Vec<Entry>)>> {
        limits::many(&format!("fields of class {name}"), self.fields.len(), FIELDS).map_or(Ok(()), Err)?;
        let with = |text: &str, lemma: &str, fields: &[(String, String)]| Entry {
            text: text.into(),
            lemma: lemma.into(),
            fields: fields.iter().cloned().collect(),
        };
        let zip = |values: &[String]| -> Fallible<Vec<(String, String)>> {
            if values.len() != self.fields.len() {
                return Err(format!("class {name}: {values:?} does not fill the fields {:?}", self.fields));
            }
            Ok(self.fields.iter().cloned().zip(values.iter().cloned()).collect())
        };
        if self.numbered {
            let forms = |right: [&str; 3], wrong: [&str; 3]| -> Vec<(String, String)> {
                let keys = ["is", "was", "has", "isnt", "wasnt", "hasnt"];
                keys.iter().zip(right.into_iter().chain(wrong)).map(|(k, v)| (k.to_string(), v.to_string())).collect()
            };
            let (one, many) = (["is", "was", "has"], ["are", "were", "have"]);
            let (mut singular, mut plural) = (Vec::new(), Vec::new());
            for row in &self.rows {
                let [sg, pl] = row.as_slice() else {
                    return Err(format!("class {name}: {row:?} is not a singular and a plural"));
                };
                singular.push(with(sg, sg, &forms(one, many)));
                plural.push(with(pl, sg, &forms(many, one)));
            }
            let both = singular.iter().chain(&plural).cloned().collect();
            return Ok(vec![
                (name.to_string(), both),
                (format!("{name}_sg"), singular),
                (format!("{name}_pl"), plural),
            ]);
        }
        let mut entries = Vec::new();
        for row in &self.rows {
            let (text, values) = row.split_first().ok_or(format!("class {name}: an empty row"))?;
            entries.push(with(text, text, &zip(values)?));
        }
        for (group, words) in [("female", &self.female), ("male", &self.male)] {
            if words.is_empty() {
                continue;
            }
            let fields = zip(self.share.get(group).map_or(&[], Vec::as_slice))?;
            entries.extend(words.iter().map(|word| with(word, word, &fields)));
        }
        if entries.len() < 8 && name == "name" || entries.is_empty() {
            return Err(format!("class {name}: too few entries"));
        }
        Ok(vec![(name.to_string(), entries)])
    }
}

/// Reads `{A:name.field}` slots and one `[right|wrong]` choice.
fn parse_template(text: &str) -> Fallible<Template> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '[']) {
        if at > 0 {
            pieces.push(Piece::Text(rest[..at].to_string()));
        }
        let (open, close) = if rest[at..].starts_with('{') { ('{', '}') } else { ('[', ']') };
        let end = rest[at..].find(close).ok_or(format!("`{open}` is not closed"))? + at;
        let inside = &rest[at + 1..end];
        pieces.push(if open == '{' { parse_slot(inside)? } else { parse_choice(inside)? });
        rest = &rest[end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_string()));
    }
    limits::many("pieces of a template", pieces.len(), 2 * SLOTS).map_or(Ok(()), Err)?;
    if pieces.iter().filter(|piece| matches!(piece, Piece::Choice { .. })).count() > 1 {
        return Err("more than one choice".into());
    }
    Ok(pieces)
}

fn parse_slot(inside: &str) -> Fallible<Piece> {
    let (head, field) = match inside.split_once('.') {
        Some((head, field)) => (head, Some(field.to_string())),
        None => (inside, None),
    };
    let (name, class) = match head.split_once(':') {
        Some((name, class)) => (name, Some(class.to_string())),
        None => (head, None),
    };
    if name.is_empty() {
        return Err(format!("`{{{inside}}}` has no name"));
    }
    Ok(Piece::Slot { name: name.to_string(), class, field })
}

fn parse_choice(inside: &str) -> Fallible<Piece> {
    let (answer, wrong) = match inside.split_once('|') {
        Some((answer, wrong)) => (answer, Some(parse_template(wrong)?)),
        None => (inside, None),
    };
    Ok(Piece::Choice { answer: parse_template(answer)?, wrong })
}

/// Every slot must be filled before it is used, from a class that exists and has the field.
fn check(template: &Template, classes: &BTreeMap<String, Vec<Entry>>) -> Fallible<()> {
    fn walk<'a>(
        pieces: &'a [Piece],
        classes: &BTreeMap<String, Vec<Entry>>,
        filled: &mut BTreeMap<&'a str, &'a str>,
    ) -> Fallible<()> {
        for piece in pieces {
            match piece {
                Piece::Text(_) => {}
                Piece::Choice { answer, wrong } => {
                    walk(answer, classes, filled)?;
                    walk(wrong.as_deref().unwrap_or_default(), classes, filled)?;
                }
                Piece::Slot { name, class, field } => {
                    if let Some(class) = class {
                        filled.insert(name, class);
                    }
                    let class =
                        *filled.get(name.as_str()).ok_or(format!("slot `{name}` is used before it is filled"))?;
                    let known = match (class, field) {
                        ("year", None) => true,
                        ("year", Some(field)) => ["century", "begin", "later"].contains(&field.as_str()),
                        (class, field) => {
                            let entries = classes.get(class).ok_or(format!("there is no class `{class}`"))?;
                            // All entries of a class have the same fields.
                            let has = |field| entries.first().is_some_and(|entry| entry.fields.contains_key(field));
                            field.as_ref().is_none_or(has)
                        }
                    };
                    if !known {
                        return Err(format!("class `{class}` has no field `{}`", field.as_deref().unwrap_or("")));
                    }
                }
            }
        }
        Ok(())
    }
    walk(template, classes, &mut BTreeMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    const SMALL: &str = r#"
        [class.name]
        fields = ["they"]
        share = { female = ["she"], male = ["he"] }
        female = ["Ann", "Eve", "Ida", "May"]
        male = ["Bob", "Cal", "Dan", "Edd"]
        held = ["May", "Edd"]
        [class.noun]
        numbered = true
        rows = [["key", "keys"], ["box", "boxes"]]
        [[family]]
        name = "one"
        about = "test"
        metric = "choice"
        weight = 1
        hold_names = true
        train = ["{A:name} has the {n:noun}, which[ {n.is}| {n.isnt}] by {B:name}; {A.they} and {B.they}."]
        heldout = ["The {n:noun} of {A:name}[ {n.is}| {n.isnt}] here."]
    "#;

    #[test]
    fn slots_are_remembered_distinct_and_agree() {
        let language = Language::parse(SMALL, Path::new("small.toml")).unwrap();
        for i in 0..200 {
            let item = language.item(&language.families()[0], Split::Train, &mut stream(1, "test", i));
            let plural = item.prompt.contains("keys,") || item.prompt.contains("boxes,");
            assert_eq!((item.answer == " are", item.wrong.as_deref() == Some(" is")), (plural, plural));
            assert!(!item.prompt.contains("May") && !item.rest.contains("Edd"));
            let (first, second) = (item.prompt.split(' ').next().unwrap(), &item.rest[4..7]);
            assert_ne!(first, second);
            let held = language.item(&language.families()[0], Split::Heldout, &mut stream(2, "test", i));
            assert!(held.prompt.contains("May") || held.prompt.contains("Edd"), "{held:?}");
        }
    }

    #[test]
    fn faults_are_named() {
        let fault = |from: &str, to: &str| {
            Language::parse(&SMALL.replace(from, to), Path::new("small.toml")).unwrap_err().to_string()
        };
        assert!(fault("{B.they}", "{C.they}").contains("slot `C` is used before it is filled"));
        assert!(fault("{B.they}", "{B.their}").contains("no field `their`"));
        assert!(fault("{n:noun},", "{n:none},").contains("no class `none`"));
        assert!(fault("here.", "{here.").contains("not closed"));
        assert!(fault("weight = 1", "wieght = 1").contains("there is no key `wieght`, the nearest is `weight`"));
    }
}

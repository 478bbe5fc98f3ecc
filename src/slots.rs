//! Words in slots: classes of words, what is drawn from them, and the templates that they fill.
//!
//! A class has rows of words, which may have `fields`; a slot draws a row of its class (slots of one class always draw
//! different ones; `{ class, from, to }` bounds the rows); a template has names in braces. A name is looked up among the roles
//! that the caller gives first, then among the slots, and may have a field: `noun.plural`. A class of whole numbers has a
//! `range` instead of rows, and numbers can be reckoned with: `{a + b}`, `{a - b - 1}`, `{a * b}`, from left to right.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::error::shorten;
use crate::limits::{self, EXPANDED_BYTES, FIELDS, RANGE, SLOTS, TEMPLATES, TEXT_BYTES};
use crate::random::{Rng, Stream};

/// The fault in words; the caller says where.
pub(crate) type Fallible<T> = std::result::Result<T, String>;

/// Words of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Rows")]
pub(crate) struct Class {
    fields: Vec<String>,
    words: Words,
}

/// What a class holds. Numbers are written out when one is drawn: a file of a few bytes may name very many.
#[derive(Clone, Debug)]
enum Words {
    Rows(Vec<Vec<String>>),
    Numbers { from: i64, count: usize },
}

/// A class as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    rows: Vec<Vec<String>>,
    range: Option<(i64, i64)>,
}

impl TryFrom<Rows> for Class {
    type Error = String;

    fn try_from(file: Rows) -> Fallible<Self> {
        let words = match file.range {
            None => Words::Rows(file.rows),
            Some(_) if !file.rows.is_empty() || !file.fields.is_empty() => {
                return Err("a class has rows or a range, not both".into());
            }
            Some((from, to)) if from > to || to.abs_diff(from) >= RANGE => {
                return Err(format!("range [{from}, {to}] holds no numbers, or more than {RANGE}"));
            }
            Some((from, to)) => Words::Numbers { from, count: to.abs_diff(from) as usize + 1 },
        };
        Ok(Self { fields: file.fields, words })
    }
}

impl Class {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        match &self.words {
            Words::Rows(rows) => rows.len(),
            Words::Numbers { count, .. } => *count,
        }
    }

    /// A word of a row.
    fn word(&self, row: usize, column: usize) -> Option<Cow<'_, str>> {
        match &self.words {
            Words::Rows(rows) => rows.get(row)?.get(column).map(|word| Cow::Borrowed(word.as_str())),
            Words::Numbers { from, .. } => Some(Cow::Owned((from + row as i64).to_string())),
        }
    }

    /// The first words of some rows.
    pub(crate) fn first_words(&self, rows: std::ops::Range<usize>) -> Vec<String> {
        rows.filter_map(|row| self.word(row, 0)).map(Cow::into_owned).collect()
    }

    fn check(&self, name: &str) -> Fallible<()> {
        limits::many(&format!("fields of class {name}"), self.fields.len(), FIELDS).map_or(Ok(()), Err)?;
        let fields = self.fields.len().max(1);
        let Words::Rows(rows) = &self.words else { return Ok(()) };
        match rows.iter().find(|row| row.len() != fields) {
            Some(row) => Err(format!("class {name}: {} has not {fields} words", shorten(&format!("{row:?}")))),
            None if rows.is_empty() => Err(format!("class {name} is empty")),
            None => Ok(()),
        }
    }
}

/// What is drawn for a text: a row of a class, from all of them or between two.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Slot {
    Any(String),
    Bounded { class: String, from: usize, to: usize },
}

/// Names that stand for others.
pub(crate) type Roles = BTreeMap<String, String>;

/// A row for every slot.
pub(crate) type Picks<'a> = BTreeMap<&'a str, usize>;

/// The classes and slots of a file.
#[derive(Clone, Copy)]
pub(crate) struct Slots<'a> {
    pub(crate) class: &'a BTreeMap<String, Class>,
    pub(crate) slot: &'a BTreeMap<String, Slot>,
}

impl<'a> Slots<'a> {
    /// Checks that every row has its fields and that every slot can always be filled.
    pub(crate) fn check(self) -> Fallible<()> {
        limits::many("slots", self.slot.len(), SLOTS).map_or(Ok(()), Err)?;
        self.class.iter().try_for_each(|(name, class)| class.check(name))?;
        let mut earlier: Vec<(&str, usize, usize)> = Vec::new();
        for name in self.slot.keys() {
            let (class, from, to) = self.bounds(name)?;
            if from > to || to >= class.len() {
                return Err(format!("slot {name}: rows {from}..={to} of {}", class.len()));
            }
            // Whatever the slots before it get, a row must be left.
            let class = self.class_of(name)?;
            let rivals = earlier.iter().filter(|(other, a, b)| *other == class && *a <= to && from <= *b);
            let mut rivals: Vec<(usize, usize)> = rivals.map(|(_, a, b)| (*a, *b)).collect();
            rivals.sort_unstable();
            // The first row that none of them may get.
            let untouched = rivals.iter().fold(from, |row, (a, b)| if (*a..=*b).contains(&row) { b + 1 } else { row });
            if untouched > to && to - from < rivals.len() {
                return Err(too_few(name));
            }
            earlier.push((class, from, to));
        }
        Ok(())
    }

    /// The class that a slot draws from.
    pub(crate) fn class_of(self, slot: &str) -> Fallible<&'a str> {
        match self.slot.get(slot) {
            Some(Slot::Any(class) | Slot::Bounded { class, .. }) => Ok(class),
            None => Err(format!("there is no slot or role `{slot}`")),
        }
    }

    /// That class, and its first and last row that the slot may get.
    pub(crate) fn bounds(self, slot: &str) -> Fallible<(&'a Class, usize, usize)> {
        let name = self.class_of(slot)?;
        let bounds = match self.slot.get(slot) {
            Some(Slot::Bounded { from, to, .. }) => Some((*from, *to)),
            _ => None,
        };
        let class = self.class.get(name).ok_or_else(|| format!("slot {slot}: there is no class `{name}`"))?;
        let (from, to) = bounds.unwrap_or((0, class.len().saturating_sub(1)));
        Ok((class, from, to))
    }

    /// A row of its class for every slot; slots of one class get different rows.
    pub(crate) fn pick(self, rng: &mut Stream) -> Fallible<Picks<'a>> {
        let mut picks = BTreeMap::new();
        let mut taken: BTreeSet<(&str, usize)> = BTreeSet::new();
        for name in self.slot.keys() {
            let ((_, from, to), class) = (self.bounds(name)?, self.class_of(name)?);
            let gone: Vec<usize> = taken.range((class, from)..=(class, to)).map(|(_, row)| *row).collect();
            let free = (to + 1 - from).checked_sub(gone.len()).filter(|free| *free > 0).ok_or_else(|| too_few(name))?;
            // The so-and-so-many of the rows that are left: those that are gone before it come on top.
            let row = gone.iter().fold(from + rng.random_range(0..free), |row, gone| row + usize::from(*gone <= row));
            taken.insert((class, row));
            picks.insert(name.as_str(), row);
        }
        Ok(picks)
    }

    /// A text with the words in place of its names, and where the words of each name stand in it, in bytes.
    pub(crate) fn written(self, text: &str, roles: &[&Roles], picks: &Picks<'_>) -> Fallible<Written> {
        let mut out = Written::default();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let closed = after.split_once('}').filter(|(name, _)| !name.contains('{'));
            let (name, after) = closed.ok_or("a brace is not closed")?;
            out.text.push_str(before);
            let start = out.text.len();
            let value = self.value(name, roles, picks)?;
            if start + value.len() > TEXT_BYTES {
                return Err(format!("the text comes to more than {TEXT_BYTES} bytes"));
            }
            out.text.push_str(&value);
            out.places.push((name.to_string(), start..out.text.len()));
            rest = after;
        }
        out.text.push_str(rest);
        match out.text.len() <= TEXT_BYTES {
            true => Ok(out),
            false => Err(format!("the text comes to more than {TEXT_BYTES} bytes")),
        }
    }

    /// What stands for a name, or what comes of reckoning with several.
    fn value(self, name: &str, roles: &[&Roles], picks: &Picks<'_>) -> Fallible<Cow<'a, str>> {
        let parts: Vec<&str> = name.split(' ').collect();
        let [first, steps @ ..] = parts.as_slice() else { return Err("an empty name".into()) };
        if steps.is_empty() {
            return self.word(first, roles, picks);
        }
        let number = |name: &str| -> Fallible<i64> {
            let digits = name.bytes().all(|b| b.is_ascii_digit());
            let word = if digits { Cow::Borrowed(name) } else { self.word(name, roles, picks)? };
            word.trim().parse().map_err(|_| format!("`{name}` stands for `{word}`, which is no number"))
        };
        let mut value = number(first)?;
        for step in steps.chunks(2) {
            let next = match step {
                ["+", other] => value.checked_add(number(other)?),
                ["-", other] => value.checked_sub(number(other)?),
                ["*", other] => value.checked_mul(number(other)?),
                _ => return Err(format!("`{name}`: write `a + b`, `a - b` or `a * b`, with spaces")),
            };
            value = next.ok_or_else(|| format!("`{name}` is too large"))?;
        }
        Ok(Cow::Owned(value.to_string()))
    }

    fn word(self, name: &str, roles: &[&Roles], picks: &Picks<'_>) -> Fallible<Cow<'a, str>> {
        let (base, field) = name.split_once('.').map_or((name, None), |(base, field)| (base, Some(field)));
        let meant = roles.iter().find_map(|roles| roles.get(base)).map_or(base, String::as_str);
        let (slot, own) = meant.split_once('.').map_or((meant, None), |(slot, field)| (slot, Some(field)));
        let (class, ..) = self.bounds(slot)?;
        let row = *picks.get(slot).ok_or_else(|| format!("slot `{slot}` was not drawn"))?;
        let column = match field.or(own) {
            None if class.fields.len() > 1 => {
                return Err(format!("`{name}` needs a field: {}", class.fields.join(", ")));
            }
            None => 0,
            Some(field) => {
                let found = class.fields.iter().position(|own| own == field);
                found.ok_or_else(|| format!("`{name}`: there is no field `{field}`"))?
            }
        };
        class.word(row, column).ok_or_else(|| format!("`{name}`: slot `{slot}` has no such row"))
    }
}

/// Refuses more templates, or a file that comes to more bytes when each of them is filled, than a file may have.
///
/// `own` are the templates of every arrangement or case; one without any has the `shared` ones.
pub(crate) fn check_templates<'a>(shared: &[String], own: impl Iterator<Item = &'a [String]>) -> Fallible<()> {
    let bytes = |templates: &[String]| templates.iter().map(String::len).sum::<usize>();
    let of_shared = (shared.len(), bytes(shared));
    let of = |own: &[String]| if own.is_empty() { of_shared } else { (own.len(), bytes(own)) };
    let (count, bytes) = own.map(of).fold((0, 0_usize), |all, own| (all.0 + own.0, all.1 + own.1));
    limits::many("templates in all arrangements or cases", count, TEMPLATES).map_or(Ok(()), Err)?;
    limits::many("bytes of templates in all arrangements or cases", bytes, EXPANDED_BYTES).map_or(Ok(()), Err)
}

/// Counts what the templates of a file come to while each is tried once.
#[derive(Default)]
pub(crate) struct Expanded(usize);

impl Expanded {
    /// Adds a template and the bytes that were made of it, or refuses the file.
    pub(crate) fn add(&mut self, template: &str, bytes: usize) -> Fallible<()> {
        self.0 += template.len() + bytes;
        match self.0 <= EXPANDED_BYTES {
            true => Ok(()),
            false => Err(format!("its templates come to more than {EXPANDED_BYTES} bytes when each is filled once")),
        }
    }
}

/// A template that was filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) text: String,
    /// The names that were in braces, and the bytes of the text that stand for them.
    pub(crate) places: Vec<(String, std::ops::Range<usize>)>,
}

fn too_few(slot: &str) -> String {
    format!("slot {slot}: its class has too few rows for all of its slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reckoned_with_from_left_to_right() {
        let class: BTreeMap<String, Class> =
            toml::from_str("number = { range = [3, 9] }\nword = { rows = [['x']] }").unwrap();
        let slot: BTreeMap<String, Slot> = toml::from_str("a = 'number'\nb = 'number'\nc = 'word'").unwrap();
        let slots = Slots { class: &class, slot: &slot };
        let picks: Picks<'_> = [("a", 4), ("b", 0), ("c", 0)].into();
        let write = |text: &str| slots.written(text, &[], &picks).map(|written| written.text);
        assert_eq!(write("{a} + {b} = {a + b}; {a - b - 1} {a * b + 2}").unwrap(), "7 + 3 = 10; 3 23");
        for (bad, why) in
            [("{a +}", "with spaces"), ("{a / b}", "with spaces"), ("{a + c}", "is no number"), ("{a + d}", "no slot")]
        {
            let error = write(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        for (bad, why) in [("range = [4, 3]", "holds no numbers"), ("range = [0, 5]\nrows = [['x']]", "not both")] {
            let error = toml::from_str::<Class>(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

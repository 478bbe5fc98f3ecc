//! Words in slots: classes of words, what is drawn from them, and the templates that they fill.
//!
//! A class has rows of words, which may have `fields`; a slot draws a row of its class (slots of one class always draw
//! different ones; `{ class, from, to }` bounds the rows); a template has names in braces. A name is looked up among the roles
//! that the caller gives first, then among the slots, and may have a field: `noun.plural`. A class of whole numbers has a
//! `range` instead of rows, and numbers can be reckoned with: `{a + b}`, `{a - b - 1}`, `{a * b}`, from left to right.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::random::{Rng, Stream};

/// The fault in words; the caller says where.
pub(crate) type Fallible<T> = std::result::Result<T, String>;

/// Words of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Rows")]
pub(crate) struct Class {
    pub(crate) fields: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
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

/// Numbers that a class may have.
const MOST_NUMBERS: i64 = 100_000;

impl TryFrom<Rows> for Class {
    type Error = String;

    fn try_from(file: Rows) -> Fallible<Self> {
        let rows = match file.range {
            None => file.rows,
            Some(_) if !file.rows.is_empty() || !file.fields.is_empty() => {
                return Err("a class has rows or a range, not both".into());
            }
            Some((from, to)) if from > to || to.saturating_sub(from) >= MOST_NUMBERS => {
                return Err(format!("range [{from}, {to}] holds no numbers, or more than {MOST_NUMBERS}"));
            }
            Some((from, to)) => (from..=to).map(|n| vec![n.to_string()]).collect(),
        };
        Ok(Self { fields: file.fields, rows })
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
        for (name, class) in self.class {
            let fields = class.fields.len().max(1);
            match class.rows.iter().find(|row| row.len() != fields) {
                Some(row) => return Err(format!("class {name}: {row:?} has not {fields} words")),
                None if class.rows.is_empty() => return Err(format!("class {name} is empty")),
                None => {}
            }
        }
        let mut earlier: Vec<(&str, usize, usize)> = Vec::new();
        for name in self.slot.keys() {
            let (class, from, to) = self.bounds(name)?;
            if from > to || to >= class.rows.len() {
                return Err(format!("slot {name}: rows {from}..={to} of {}", class.rows.len()));
            }
            // Whatever the slots before it get, a row must be left.
            let class = self.class_of(name)?;
            let rivals = || earlier.iter().filter(|(other, a, b)| *other == class && *a <= to && from <= *b);
            let untouched = (from..=to).any(|row| rivals().all(|(_, a, b)| row < *a || *b < row));
            if !untouched && to - from < rivals().count() {
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
        let (from, to) = bounds.unwrap_or((0, class.rows.len().saturating_sub(1)));
        Ok((class, from, to))
    }

    /// A row of its class for every slot; slots of one class get different rows.
    pub(crate) fn pick(self, rng: &mut Stream) -> Fallible<Picks<'a>> {
        let mut picks = BTreeMap::new();
        let mut taken: BTreeSet<(&str, usize)> = BTreeSet::new();
        for name in self.slot.keys() {
            let ((_, from, to), class) = (self.bounds(name)?, self.class_of(name)?);
            let free: Vec<usize> = (from..=to).filter(|row| !taken.contains(&(class, *row))).collect();
            if free.is_empty() {
                return Err(too_few(name));
            }
            let row = free[rng.random_range(0..free.len())];
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
            out.text.push_str(&self.value(name, roles, picks)?);
            out.places.push((name.to_string(), start..out.text.len()));
            rest = after;
        }
        out.text.push_str(rest);
        Ok(out)
    }

    /// What stands for a name, or what comes of reckoning with several.
    fn value(self, name: &str, roles: &[&Roles], picks: &Picks<'_>) -> Fallible<Cow<'a, str>> {
        let parts: Vec<&str> = name.split(' ').collect();
        let [first, steps @ ..] = parts.as_slice() else { return Err("an empty name".into()) };
        if steps.is_empty() {
            return self.word(first, roles, picks).map(Cow::Borrowed);
        }
        let number = |name: &str| -> Fallible<i64> {
            let word = if name.bytes().all(|b| b.is_ascii_digit()) { name } else { self.word(name, roles, picks)? };
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

    fn word(self, name: &str, roles: &[&Roles], picks: &Picks<'_>) -> Fallible<&'a str> {
        let (base, field) = name.split_once('.').map_or((name, None), |(base, field)| (base, Some(field)));
        let meant = roles.iter().find_map(|roles| roles.get(base)).map_or(base, String::as_str);
        let (slot, own) = meant.split_once('.').map_or((meant, None), |(slot, field)| (slot, Some(field)));
        let (class, ..) = self.bounds(slot)?;
        let row = &class.rows[*picks.get(slot).ok_or_else(|| format!("slot `{slot}` was not drawn"))?];
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
        Ok(&row[column])
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

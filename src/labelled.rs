//! Rows with labels: what a probe learns, and what keeps it honest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, shorten};

/// What a label is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One of some names.
    #[default]
    Classes,
    /// A number.
    Value,
}

/// The labels of rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Names, sorted, and which of them each row has.
    Classes {
        /// Each once, in alphabetical order.
        names: Vec<String>,
        /// An index into them per row.
        of: Vec<usize>,
    },
    /// Numbers, all finite.
    Values(Vec<f64>),
}

/// A position in a prompt, with all that a probe is told about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The prompt.
    pub prompt: u32,
    /// The position in it.
    pub pos: u32,
    /// What is to be read from the activation.
    pub label: String,
    /// Rows of one group are never on both sides of a split.
    pub group: String,
    /// What tells the text from others; none where not all of it is known.
    pub text: Option<String>,
    /// Rows of one control type get one label in the control task (Hewitt & Liang 2019): their word, usually.
    pub control: String,
}

/// Rows with labels, by prompt and position.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// The prompt of each row.
    pub prompt: Vec<u32>,
    /// The position of each row.
    pub pos: Vec<u32>,
    /// The label of each row.
    pub labels: Labels,
    /// The group of each row, an index into `group_names`.
    pub groups: Vec<u32>,
    /// Each group once, as they come.
    pub group_names: Vec<String>,
    /// What tells the text of each row from others, where that is known.
    pub texts: Vec<Option<String>>,
    /// The control type of each row.
    pub controls: Vec<u32>,
}

impl Labels {
    /// Labels from texts; numbers where `kind` says so.
    ///
    /// # Errors
    /// [`Error::Request`] for no label, for a single class, for texts that are no finite numbers, and for numbers that are all
    /// the same.
    pub fn parse(kind: Kind, texts: &[String]) -> Result<Self> {
        let first = texts.first().ok_or_else(|| Error::request("there is no row with a label"))?;
        let same = texts.iter().all(|text| text == first);
        match kind {
            _ if same => Err(Error::request(format!(
                "all {} labels are `{}`: there is nothing to tell apart",
                texts.len(),
                shorten(first)
            ))),
            Kind::Classes => {
                let codes = codes(texts);
                Ok(Labels::Classes { names: codes.0.into_iter().map(str::to_string).collect(), of: codes.1 })
            }
            Kind::Value => Ok(Labels::Values(texts.iter().map(|text| number(text)).collect::<Result<_>>()?)),
        }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Labels::Classes { of, .. } => of.len(),
            Labels::Values(values) => values.len(),
        }
    }

    /// Those of these rows, in this order; names stay as they are.
    pub fn picked(&self, rows: &[usize]) -> Self {
        match self {
            Labels::Classes { names, of } => {
                Labels::Classes { names: names.clone(), of: rows.iter().map(|row| of[*row]).collect() }
            }
            Labels::Values(values) => Labels::Values(rows.iter().map(|row| values[*row]).collect()),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Labelled {
    /// Puts rows together, with the classes that their labels have.
    ///
    /// # Errors
    /// As [`Labels::parse`].
    pub fn new(kind: Kind, rows: &[Row]) -> Result<Self> {
        let labels = Labels::parse(kind, &rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>())?;
        Ok(Self::with(labels, rows))
    }

    /// Puts rows together that are to be judged by what has these classes, or by what predicts numbers where there are none.
    ///
    /// # Errors
    /// [`Error::Request`] for no row, and for a label that is none of the classes, or no number.
    pub fn known(classes: Option<&[String]>, rows: &[Row]) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::request("there is no row with a label"));
        }
        let Some(classes) = classes else {
            return Ok(Self::with(
                Labels::Values(rows.iter().map(|row| number(&row.label)).collect::<Result<_>>()?),
                rows,
            ));
        };
        let class = |row: &Row| {
            classes.iter().position(|class| *class == row.label).ok_or_else(|| {
                let known: Vec<String> = classes.iter().take(20).map(|class| shorten(class)).collect();
                Error::request(format!(
                    "the probe knows no class `{}`; it has {}",
                    shorten(&row.label),
                    known.join(", ")
                ))
            })
        };
        let of = rows.iter().map(class).collect::<Result<_>>()?;
        Ok(Self::with(Labels::Classes { names: classes.to_vec(), of }, rows))
    }

    fn with(labels: Labels, rows: &[Row]) -> Self {
        let (group_names, groups) = firsts(rows.iter().map(|row| row.group.as_str()));
        let (_, controls) = firsts(rows.iter().map(|row| row.control.as_str()));
        Self {
            prompt: rows.iter().map(|row| row.prompt).collect(),
            pos: rows.iter().map(|row| row.pos).collect(),
            labels,
            groups,
            group_names,
            texts: rows.iter().map(|row| row.text.clone()).collect(),
            controls,
        }
    }
}

/// What tells a text from others: a hash of its tokens.
pub fn mark(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    format!("text {}", crate::weights::sha256_of(&bytes))
}

/// The chosen positions of each of `prompts` prompts, in order.
pub fn positions(rows: &[Row], prompts: usize) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new(); prompts];
    rows.iter().for_each(|row| all[row.prompt as usize].push(row.pos));
    all
}

/// A label that is a number.
fn number(text: &str) -> Result<f64> {
    text.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| {
        Error::request(format!("the label `{}` is no number, as those of a regression are", shorten(text)))
    })
}

/// The texts as they come, each once; and the place of each text among them.
fn firsts<'a>(texts: impl Iterator<Item = &'a str>) -> (Vec<String>, Vec<u32>) {
    let (mut names, mut places) = (Vec::new(), BTreeMap::new());
    let of = texts.map(|text| {
        *places.entry(text).or_insert_with(|| {
            names.push(text.to_string());
            names.len() as u32 - 1
        })
    });
    let of = of.collect();
    (names, of)
}

/// The texts, sorted, each once; and the place of each text among them.
fn codes(texts: &[String]) -> (Vec<&str>, Vec<usize>) {
    let mut names: BTreeMap<&str, usize> = texts.iter().map(|text| (text.as_str(), 0)).collect();
    names.values_mut().enumerate().for_each(|(i, code)| *code = i);
    let of = texts.iter().map(|text| names[text.as_str()]).collect();
    (names.into_keys().collect(), of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn classes_are_sorted_and_numbers_are_read() {
        let classes = Labels::parse(Kind::Classes, &texts(&["b", "a", "b"])).unwrap();
        assert_eq!(classes, Labels::Classes { names: texts(&["a", "b"]), of: vec![1, 0, 1] });
        assert_eq!(Labels::parse(Kind::Value, &texts(&["1", "-2.5"])).unwrap(), Labels::Values(vec![1.0, -2.5]));
        for (kind, bad, wanted) in [
            (Kind::Classes, vec!["a", "a"], "all 2 labels are `a`"),
            (Kind::Classes, vec![], "no row with a label"),
            (Kind::Value, vec!["1", "two"], "`two` is no number"),
            (Kind::Value, vec!["1", "NaN"], "`NaN` is no number"),
            (Kind::Value, vec!["3", "3"], "all 2 labels are `3`"),
        ] {
            let refused = Labels::parse(kind, &texts(&bad)).unwrap_err().to_string();
            assert!(refused.contains(wanted), "{refused}");
        }
    }

    #[test]
    fn rows_are_found_again_by_prompt() {
        let row = |prompt, pos, label: &str, group: &str| Row {
            prompt,
            pos,
            label: label.into(),
            group: group.into(),
            control: label.into(),
            text: None,
        };
        let rows = [row(0, 1, "a", "y"), row(0, 3, "b", "y"), row(2, 0, "a", "x")];
        let all = Labelled::new(Kind::Classes, &rows).unwrap();
        assert_eq!(positions(&rows, 3), [vec![1, 3], vec![], vec![0]]);
        assert_eq!((&all.groups, &all.controls), (&vec![0, 0, 1], &vec![0, 1, 0]));
        assert_eq!(all.group_names, ["y", "x"]);
    }

    #[test]
    fn what_is_judged_has_the_classes_of_the_probe() {
        let row = |label: &str| Row { label: label.into(), ..Row::default() };
        let classes = texts(&["a", "b", "c"]);
        let one = Labelled::known(Some(&classes), &[row("b"), row("b")]).unwrap();
        assert_eq!(one.labels, Labels::Classes { names: classes.clone(), of: vec![1, 1] });
        let refused = Labelled::known(Some(&classes), &[row("d")]).unwrap_err().to_string();
        assert!(refused.contains("knows no class `d`; it has a, b, c"), "{refused}");
        assert_eq!(Labelled::known(None, &[row("2")]).unwrap().labels, Labels::Values(vec![2.0]));
        assert!(Labelled::known(None, &[row("b")]).unwrap_err().to_string().contains("`b` is no number"));
        assert!(Labelled::known(None, &[]).unwrap_err().to_string().contains("no row"));
    }
}

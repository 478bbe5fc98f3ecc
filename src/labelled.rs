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
    /// The group of each row.
    pub groups: Vec<u32>,
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
            Kind::Value => {
                let parse = |text: &String| {
                    text.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| {
                        Error::request(format!(
                            "the label `{}` is no number, as those of a regression are",
                            shorten(text)
                        ))
                    })
                };
                Ok(Labels::Values(texts.iter().map(parse).collect::<Result<_>>()?))
            }
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
    /// Puts rows together.
    ///
    /// # Errors
    /// As [`Labels::parse`].
    pub fn new(kind: Kind, rows: &[Row]) -> Result<Self> {
        let texts = |of: fn(&Row) -> &String| rows.iter().map(|row| of(row).clone()).collect::<Vec<_>>();
        let numbers = |of: fn(&Row) -> &String| codes(&texts(of)).1.into_iter().map(|code| code as u32).collect();
        Ok(Self {
            prompt: rows.iter().map(|row| row.prompt).collect(),
            pos: rows.iter().map(|row| row.pos).collect(),
            labels: Labels::parse(kind, &texts(|row| &row.label))?,
            groups: numbers(|row| &row.group),
            controls: numbers(|row| &row.control),
        })
    }

    /// The chosen positions of each of `prompts` prompts, in order.
    pub fn positions(&self, prompts: usize) -> Vec<Vec<u32>> {
        let mut all = vec![Vec::new(); prompts];
        self.prompt.iter().zip(&self.pos).for_each(|(prompt, pos)| all[*prompt as usize].push(*pos));
        all
    }
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
        };
        let all =
            Labelled::new(Kind::Classes, &[row(0, 1, "a", "y"), row(0, 3, "b", "y"), row(2, 0, "a", "x")]).unwrap();
        assert_eq!(all.positions(3), [vec![1, 3], vec![], vec![0]]);
        assert_eq!((all.groups, all.controls), (vec![1, 1, 0], vec![0, 1, 0]));
    }
}

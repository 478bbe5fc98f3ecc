//! Pairs in files: JSON lines, a JSON array or CSV, with this project's field names or those of EAP-IG and MIB.
//!
//! | | fields |
//! |---|---|
//! | prompts | `clean` and `corrupt`, or EAP-IG's `corrupted`; MIB's `prompt` with `prompt` of a field `…_counterfactual` |
//! | answers in words, a text or a list | `answer` and `wrong` |
//! | answers as token ids, a number or a list | `correct_idx` and `incorrect_idx`, `country_idx` and `corrupted_country_idx`, `clean_answer_idx` and `corrupted_answer_idx`, `answers_idx` and `corrupted_answers_idx` |
//! | a year of two digits, whose answers are all later ones and whose wrong ones are the rest | `correct_idx` or `label` alone, or MIB's `year` of four digits |
//! | MIB | `metadata.indirect_object` and `metadata.subject`; `choices.label` at `answerKey`, here and in the counterfactual; `label` here and there. Of these the first token counts, as it does in MIB |
//!
//! All other fields are labels. A corruption has a name where a file offers several: NAME of `corrupted_NAME` and of
//! `NAME_counterfactual`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result, shorten};
use crate::pairset::{Answering, Drawn};
use crate::texts::jsonl;

/// Ids of the right and of the wrong answer, in EAP-IG's files.
const IDS: [(&str, &str); 4] = [
    ("correct_idx", "incorrect_idx"),
    ("country_idx", "corrupted_country_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
    ("answers_idx", "corrupted_answers_idx"),
];
/// Where a two-digit year stands alone.
const YEARS: [&str; 3] = ["correct_idx", "label", "year"];
/// What MIB corrupts by unless it is told otherwise.
const USUAL: [&str; 3] = ["s2_io_flip", "symbol", "random"];
const COUNTERFACTUAL: &str = "_counterfactual";

/// Reads the pairs of a file; `corruption` chooses one where the file offers several, and `path` is for messages.
///
/// # Errors
/// [`Error::Data`] with the number of the line (of JSON lines) or row (of an array or CSV), and the field; [`Error::Request`] for
/// a corruption that the file does not have.
pub fn parse(text: &str, path: &Path, corruption: Option<&str>) -> Result<Vec<Drawn>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows: Vec<(String, Value)> = match text.trim_start().chars().next() {
        Some('[') => {
            let rows: Vec<Value> =
                serde_json::from_str(text).map_err(|e| Error::data(path, format!("no JSON array: {e}")))?;
            rows.into_iter().enumerate().map(|(i, row)| (format!("row {i}"), row)).collect()
        }
        Some('{') => jsonl(text, path)?.into_iter().map(|(i, row)| (format!("line {i}"), row)).collect(),
        _ => csv(text, path)?.into_iter().enumerate().map(|(i, row)| (format!("row {i}"), row)).collect(),
    };
    if rows.is_empty() {
        return Err(Error::data(path, "holds no pair"));
    }
    let read = |(at, row): (String, Value)| {
        let Value::Object(fields) = row else { return Err(Error::data(path, format!("{at}: no object of fields"))) };
        Fields { fields }.pair(corruption).map_err(|fault| match fault {
            Fault::Request(what) => Error::request(format!("{}: {at}: {what}", path.display())),
            Fault::Data(what) => Error::data(path, format!("{at}: {what}")),
        })
    };
    rows.into_iter().map(read).collect()
}

/// What is wrong with a row, or with what was asked of it.
enum Fault {
    Data(String),
    Request(String),
}

fn data(what: impl Into<String>) -> Fault {
    Fault::Data(what.into())
}

/// The fields of a row that were not understood yet.
struct Fields {
    fields: Map<String, Value>,
}

type Read<T> = std::result::Result<T, Fault>;

impl Fields {
    fn pair(mut self, corruption: Option<&str>) -> Read<Drawn> {
        let clean = self.text(&["clean", "prompt"])?.ok_or_else(|| data("there is no field `clean`"))?;
        let (corrupt, other) = self.corrupted(corruption)?;
        let (answering, answer, wrong) = self.answers(&other)?;
        // What else the file offers to corrupt by is no label.
        self.fields.retain(|name, _| !name.ends_with(COUNTERFACTUAL));
        let labels: Vec<(String, Value)> =
            self.fields.into_iter().map(|(name, value)| (label_name(&name), value)).collect();
        if let Some(i) = (1..labels.len()).find(|&i| labels[..i].iter().any(|(name, _)| *name == labels[i].0)) {
            return Err(data(format!("two fields would be the label `{}`", shorten(&labels[i].0))));
        }
        Ok(Drawn { template: String::new(), clean, corrupt, answer, wrong, answering, labels })
    }

    /// A text under the first of these names that there is.
    fn text(&mut self, names: &[&str]) -> Read<Option<String>> {
        let Some(name) = names.iter().find(|name| self.fields.contains_key(**name)) else { return Ok(None) };
        match self.fields.remove(*name) {
            Some(Value::String(text)) => Ok(Some(text)),
            _ => Err(data(format!("`{name}` is no text"))),
        }
    }

    /// The corrupted prompt, and the fields of the counterfactual that it is from.
    fn corrupted(&mut self, asked: Option<&str>) -> Read<(String, Map<String, Value>)> {
        let named = |name: &str| {
            name.strip_suffix(COUNTERFACTUAL).or_else(|| name.strip_prefix("corrupted_")).map(str::to_string)
        };
        let is_one = |(name, value): &(&String, &Value)| match value {
            Value::Object(fields) => name.ends_with(COUNTERFACTUAL) && fields.contains_key("prompt"),
            Value::String(_) => name.as_str() == "corrupted_hard",
            _ => false,
        };
        let offered: BTreeMap<String, String> =
            self.fields.iter().filter(is_one).filter_map(|(name, _)| Some((named(name)?, name.clone()))).collect();
        let plain = ["corrupt", "corrupted"].into_iter().find(|name| self.fields.contains_key(*name));
        let list = || {
            let all = plain.iter().map(|_| "the plain one").chain(offered.keys().map(String::as_str));
            all.collect::<Vec<_>>().join(", ")
        };
        let chosen = match asked {
            Some(name) => {
                let name = name.strip_suffix(COUNTERFACTUAL).unwrap_or(name);
                Some(offered.get(name).ok_or_else(|| {
                    Fault::Request(format!("there is no corruption `{}`; there are {}", shorten(name), list()))
                })?)
            }
            None if plain.is_some() => None,
            None => match USUAL.iter().find_map(|name| offered.get(*name)) {
                Some(usual) => Some(usual),
                None if offered.len() == 1 => offered.values().next(),
                None if offered.is_empty() => return Err(data("there is no field `corrupt`")),
                None => return Err(Fault::Request(format!("--corruption chooses one of {}", list()))),
            },
        };
        let Some(name) = chosen else {
            let text = self.text(&["corrupt", "corrupted"])?;
            return Ok((text.ok_or_else(|| data("there is no field `corrupt`"))?, Map::new()));
        };
        // The plain one is not what was asked for.
        plain.iter().for_each(|plain| drop(self.fields.remove(*plain)));
        match self.fields.remove(name) {
            Some(Value::String(text)) => Ok((text, Map::new())),
            Some(Value::Object(mut fields)) => match fields.remove("prompt") {
                Some(Value::String(text)) => Ok((text, fields)),
                _ => Err(data(format!("`{name}.prompt` is no text"))),
            },
            _ => Err(data(format!("`{name}` is no text"))),
        }
    }

    /// The right and the wrong answers, and what they are.
    fn answers(&mut self, other: &Map<String, Value>) -> Read<(Answering, Vec<String>, Vec<String>)> {
        match (self.fields.remove("answer"), self.fields.remove("wrong")) {
            (Some(answer), Some(wrong)) => {
                return Ok((Answering::Words, texts("answer", answer)?, texts("wrong", wrong)?));
            }
            (Some(_), None) => return Err(data("there is a field `answer`, but no `wrong`")),
            (None, Some(_)) => return Err(data("there is a field `wrong`, but no `answer`")),
            (None, None) => {}
        }
        for (right, wrong) in IDS {
            if self.fields.contains_key(right) && self.fields.contains_key(wrong) {
                let mut ids = |name: &str| ids(name, self.fields.remove(name).unwrap_or_default());
                return Ok((Answering::Ids(ids(right)?, ids(wrong)?), Vec::new(), Vec::new()));
            }
        }
        if let Some((right, wrong)) = self.of_mib(other) {
            return Ok((Answering::FirstTokens, vec![right], vec![wrong]));
        }
        if let Some(name) = YEARS.into_iter().find(|name| self.fields.contains_key(*name)) {
            let year = number(&self.fields.remove(name).unwrap_or_default()).filter(|year| *year < 10_000);
            let year = year.map(|year| year % 100).filter(|year| *year < 99);
            let year =
                year.ok_or_else(|| data(format!("`{name}` is no year after which there are others of its century")))?;
            let years = |range: std::ops::RangeInclusive<u64>| range.map(|year| format!("{year:02}")).collect();
            return Ok((Answering::Words, years(year + 1..=99), years(0..=year)));
        }
        Err(data(
            "there are no answers: give `answer` and `wrong` in words, `correct_idx` and `incorrect_idx` as ids, or a year as \
             `correct_idx` or `label` alone",
        ))
    }

    /// The words whose first tokens answer in MIB.
    fn of_mib(&self, other: &Map<String, Value>) -> Option<(String, String)> {
        if let Some(Value::Object(metadata)) = self.fields.get("metadata") {
            let name = |key: &str| metadata.get(key).and_then(Value::as_str).map(|name| format!(" {name}"));
            if let (Some(right), Some(wrong)) = (name("indirect_object"), name("subject")) {
                return Some((right, wrong));
            }
        }
        let keyed = |fields: &Map<String, Value>| {
            let key = number(fields.get("answerKey")?)? as usize;
            plain(fields.get("choices")?.get("label")?.get(key)?)
        };
        let label = |fields: &Map<String, Value>| plain(fields.get("label")?);
        keyed(&self.fields).zip(keyed(other)).or_else(|| label(&self.fields).zip(label(other)))
    }
}

/// A label may not have the name of a column of the frame of pairs.
fn label_name(name: &str) -> String {
    const TAKEN: [&str; 12] = [
        "pair",
        "template",
        "clean",
        "corrupt",
        "answer",
        "wrong",
        "correct",
        "logit_diff",
        "corrupt_logit_diff",
        "prob",
        "prob_diff",
        "rank",
    ];
    match name {
        "" => "index".into(), // pandas writes its index under no name
        name if TAKEN.contains(&name) => format!("label_{name}"),
        name => name.into(),
    }
}

/// A text, or the text of a number.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A whole number, or the text of one.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A text, or several; in CSV several are a JSON list in one cell.
fn texts(name: &str, value: Value) -> Read<Vec<String>> {
    let wrong = || data(format!("`{name}` is no text and no list of texts"));
    let value = match &value {
        Value::String(text) if text.starts_with("[\"") => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    };
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(all) if !all.is_empty() => {
            all.into_iter().map(|one| one.as_str().map(str::to_string).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// A token id, or several.
fn ids(name: &str, value: Value) -> Read<Vec<u32>> {
    let wrong = || data(format!("`{name}` is no token id and no list of them"));
    let value = match &value {
        Value::String(text) if text.starts_with('[') => serde_json::from_str(text).map_err(|_| wrong())?,
        _ => value,
    };
    let id = |value: &Value| number(value).and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    match &value {
        Value::Array(all) if !all.is_empty() => all.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}

/// The rows of a CSV (RFC 4180) as objects of texts, by the names in its first row.
fn csv(text: &str, path: &Path) -> Result<Vec<Value>> {
    let mut records = records(text).map_err(|what| Error::data(path, what))?.into_iter();
    let Some(names) = records.next() else { return Ok(Vec::new()) };
    if let Some(i) = (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
        return Err(Error::data(path, format!("the column `{}` is there twice", shorten(&names[i]))));
    }
    let object = |(i, record): (usize, Vec<String>)| {
        if record.len() != names.len() {
            let (own, all) = (record.len(), names.len());
            return Err(Error::data(path, format!("row {i} has {own} cells, and the first row names {all} columns")));
        }
        Ok(names.iter().cloned().zip(record.into_iter().map(Value::String)).collect::<Map<_, _>>().into())
    };
    records.enumerate().map(object).collect()
}

/// The records of a CSV; blank lines are none.
fn records(text: &str) -> std::result::Result<Vec<Vec<String>>, String> {
    let (mut all, mut record, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut was_quoted) = (false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            _ if quoted => cell.push(c),
            ',' => {
                record.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                let blank = record.is_empty() && cell.is_empty() && !was_quoted;
                record.push(std::mem::take(&mut cell));
                was_quoted = false;
                let record = std::mem::take(&mut record);
                if !blank {
                    all.push(record);
                }
            }
            _ if was_quoted => return Err(format!("row {}: text after the end of a quoted cell", all.len())),
            _ => cell.push(c),
        }
    }
    if quoted {
        return Err(format!("row {}: a quoted cell does not end", all.len()));
    }
    if !record.is_empty() || !cell.is_empty() || was_quoted {
        record.push(cell);
        all.push(record);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Drawn>> {
        parse(text, Path::new("pairs"), None)
    }

    #[test]
    fn the_fields_of_others_are_read() {
        use Answering::*;
        let ids = |right: &[u32], wrong: &[u32]| Ids(right.to_vec(), wrong.to_vec());
        // First rows of EAP-IG's data sets, and what MIB's have.
        for (text, clean, corrupt, answering, right, wrong) in [
            (
                ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n826,\"When Amy, Laura\",\"When Amy, Nick\",hard,14235,16753\n",
                "When Amy, Laura",
                "When Amy, Nick",
                ids(&[14235], &[16753]),
                "",
                "",
            ),
            (
                "clean,capital,country,country_idx,corrupted,corrupted_capital,corrupted_country,corrupted_country_idx\r\n\" Kabul, the capital of\",Kabul,Afghanistan,8037,\" London, the capital of\",London,United Kingdom,1578\r\n",
                " Kabul, the capital of",
                " London, the capital of",
                ids(&[8037], &[1578]),
                "",
                "",
            ),
            (
                "clean,corrupted,clean_answer_idx,corrupted_answer_idx,label\nThe poet,The man,673,339,0",
                "The poet",
                "The man",
                ids(&[673], &[339]),
                "",
                "",
            ),
            (
                "clean,answers_idx,corrupted,corrupted_answers_idx,prob_diff\n\", gems\",\"[16840, 23685]\",\", vice\",\"[7018, 7602]\",0.15\n",
                ", gems",
                ", vice",
                ids(&[16840, 23685], &[7018, 7602]),
                "",
                "",
            ),
            (
                "clean,corrupted,label\nfrom 1396 to 13,from 1301 to 13,96\n",
                "from 1396 to 13",
                "from 1301 to 13",
                Words,
                "97,98,99",
                "00",
            ),
            (r#"{"clean": "a", "corrupted": "b", "correct_idx": 97, "year": 1}"#, "a", "b", Words, "98,99", "00"),
            (r#"[{"clean": "a", "corrupted": "b", "year": "1797"}]"#, "a", "b", Words, "98,99", "00"),
            (
                r#"[{"prompt": "p", "metadata": {"indirect_object": "Mary", "subject": "John"}, "choices": ["Mary", "John"],
                  "answerKey": 0, "abc_counterfactual": {"prompt": "q"}, "s2_io_flip_counterfactual": {"prompt": "r"}}]"#,
                "p",
                "r",
                FirstTokens,
                " Mary",
                " John",
            ),
            (
                r#"{"prompt": "p", "choices": {"label": ["A", "B"]}, "answerKey": 1, "symbol_counterfactual": {"prompt": "r", "choices": {"label": ["C", "D"]}, "answerKey": 0}}"#,
                "p",
                "r",
                FirstTokens,
                "B",
                "C",
            ),
            (
                r#"{"prompt": "1+2=", "label": "3", "random_counterfactual": {"prompt": "4+5=", "label": 9}}"#,
                "1+2=",
                "4+5=",
                FirstTokens,
                "3",
                "9",
            ),
            (
                "{\"clean\": \"a\", \"corrupt\": \"b\", \"answer\": [\" x\", \" y\"], \"wrong\": \" z\"}\n",
                "a",
                "b",
                Words,
                " x, y",
                " z",
            ),
        ] {
            let pair = read(text).unwrap_or_else(|e| panic!("{text}: {e}")).remove(0);
            assert_eq!((pair.clean.as_str(), pair.corrupt.as_str()), (clean, corrupt), "{text}");
            assert_eq!(pair.answering, answering, "{text}");
            assert_eq!(pair.answer.join(","), right, "{text}");
            assert!(pair.wrong.join(",").starts_with(wrong), "{text}: {:?}", pair.wrong);
        }
    }

    #[test]
    fn other_fields_are_labels_and_corruptions_are_chosen() {
        let text =
            r#"{"clean": "a", "corrupt": "b", "answer": "x", "wrong": "y", "topic": "sea", "prob": 0.5, "id": 7}"#;
        let labels = &read(text).unwrap()[0].labels;
        let all: Vec<(&str, String)> = labels.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
        let wanted = [("topic", "\"sea\""), ("label_prob", "0.5"), ("id", "7")];
        assert_eq!(all.len(), 3);
        assert!(wanted.iter().all(|(name, value)| all.contains(&(name, value.to_string()))), "{all:?}");
        let several = "clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\na,b,c,1,2\n";
        let hard = parse(several, Path::new("x"), Some("hard")).unwrap();
        assert_eq!((hard[0].corrupt.as_str(), hard[0].labels.len()), ("c", 0));
        let error = parse(several, Path::new("x"), Some("soft")).unwrap_err();
        assert!(error.to_string().contains("no corruption `soft`; there are the plain one, hard"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("", "holds no pair"),
            ("clean,corrupted,plural,group\na,b,1,x\n", "row 0: there are no answers"),
            (
                "clean,corrupted,correct_idx,incorrect_idx\na,b,1\n",
                "row 0 has 3 cells, and the first row names 4 columns",
            ),
            ("clean,corrupted,correct_idx,incorrect_idx\na,b,one,2\n", "row 0: `correct_idx` is no token id"),
            ("clean,clean,correct_idx\na,b,1\n", "`clean` is there twice"),
            ("clean,corrupted\n\"a,b\n", "a quoted cell does not end"),
            ("clean,corrupted\n\"a\"b,c\n", "text after the end of a quoted cell"),
            ("{\"corrupt\": \"b\"}", "line 1: there is no field `clean`"),
            ("{\"clean\": \"b\"}", "line 1: there is no field `corrupt`"),
            ("{\"clean\": \"b\"}\n{", "line 2: not JSON"),
            ("{\"clean\": 3, \"corrupt\": \"b\"}", "line 1: `clean` is no text"),
            (
                "{\"clean\": \"a\", \"corrupt\": \"b\", \"answer\": [], \"wrong\": \"y\"}",
                "`answer` is no text and no list",
            ),
            ("clean,corrupted,label\na,b,99\n", "`label` is no year"),
            ("[1]", "row 0: no object"),
            ("[{]", "no JSON array"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

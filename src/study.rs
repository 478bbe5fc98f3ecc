//! Many runs of one command as data: what they share, what is varied, and how the results are drawn.
//!
//! A file has `about`, `command`, `[options]` that all runs share, and `[grid]`, lists of values of which every combination is a
//! run, or `[[run]]`, runs one by one. Keys are the options of the command with `_` for `-`; for `train` and `finetune` also the keys
//! of the recipe. `[figure]` may name `x`, `y` and the rows that count, `where`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use polars::prelude::*;
use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result, toml_fault};
use crate::limits::{self, EXPANDED_BYTES, RUNS, VARIED};

/// Many runs of one command.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// What it asks, in one line.
    pub about: String,
    /// The command that is run.
    pub command: String,
    /// What all runs share.
    #[serde(default)]
    pub options: Table,
    #[serde(default)]
    grid: Table,
    #[serde(default)]
    run: Vec<Table>,
    /// How the results are drawn.
    #[serde(default)]
    pub figure: Drawing,
}

/// What of the results is drawn against what; what is left out is chosen by the command.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawing {
    /// The column along the axis.
    pub x: Option<String>,
    /// The column that is drawn.
    pub y: Option<String>,
    /// Rows that count: columns with the value that they must have, `""` for null.
    #[serde(default, rename = "where")]
    pub rows: BTreeMap<String, Value>,
}

impl Study {
    /// Reads a study; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] with what is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        Self::parse_with(text, path, &[])
    }

    /// Reads a study and sets single keys: `max_iters=20`, `grid.seed=[1, 2]`. A key without a section goes where it stands
    /// already, a new one to `[options]`.
    ///
    /// # Errors
    /// [`Error::Request`] for what is not KEY=VALUE; as [`Study::parse`].
    pub fn parse_with(text: &str, path: &Path, set: &[String]) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let mut study: Self = toml::from_str(text).map_err(|e| wrong(toml_fault(text, &e)))?;
        for assignment in set {
            study.set(assignment)?;
        }
        match (study.grid.is_empty(), study.run.is_empty()) {
            (true, true) => return Err(wrong("nothing is varied: give [grid] or [[run]]".into())),
            (false, false) => return Err(wrong("give [grid] or [[run]], not both".into())),
            _ => {}
        }
        study.check_size().map_err(wrong)?;
        for (key, values) in &study.grid {
            match values.as_array() {
                None => {
                    return Err(wrong(format!("grid.{key} is no list; a value that all runs share goes to [options]")));
                }
                Some(values) if values.is_empty() => {
                    return Err(wrong(format!("grid.{key} is empty: there would be no run")));
                }
                Some(values) if is_doubled(values.iter().map(Value::to_string)) => {
                    return Err(wrong(format!("grid.{key} holds a value twice: the runs would be the same")));
                }
                _ => {}
            }
        }
        let runs = study.runs();
        if let Some(key) = runs.iter().flat_map(Table::keys).find(|key| study.options.contains_key(*key)) {
            return Err(wrong(format!("`{key}` is in [options] and is varied")));
        }
        let mut seen = HashSet::new();
        if let Some(i) = runs.iter().position(|run| !seen.insert(run.to_string())) {
            return Err(wrong(format!("run {i} is the same as an earlier one")));
        }
        Ok(study)
    }

    /// Refuses more runs, options or bytes than a study may come to, before any run is written out.
    fn check_size(&self) -> std::result::Result<(), String> {
        let refuse = |what, count, most| limits::many(what, count, most).map_or(Ok(()), Err);
        refuse("options in [grid]", self.grid.len(), VARIED)?;
        refuse("runs", self.run.len(), RUNS)?;
        let keys: BTreeSet<&String> = self.run.iter().flat_map(Table::keys).collect();
        refuse("options in all [[run]] together", keys.len(), VARIED)?;
        let lists = || self.grid.values().filter_map(Value::as_array);
        let count = lists().fold(1_usize, |count, values| count.saturating_mul(values.len()));
        refuse("combinations in the grid", count, RUNS)?;
        // Every value stands in as many runs as the other lists have combinations.
        let bytes = |values: &Vec<Value>| {
            let own: usize = values.iter().map(|value| value.to_string().len()).sum();
            own.saturating_mul(count / values.len().max(1))
        };
        refuse("bytes in all runs of the grid", lists().map(bytes).fold(0, usize::saturating_add), EXPANDED_BYTES)
    }

    fn set(&mut self, assignment: &str) -> Result<()> {
        let (key, value) = assignment
            .split_once('=')
            .ok_or_else(|| Error::request(format!("--set {}: write KEY=VALUE", crate::error::shorten(assignment))))?;
        let (key, value) = (key.trim(), value.trim());
        // What is no TOML value is text without its quotation marks.
        let parsed = toml::from_str::<Table>(&format!("x = {value}")).ok().and_then(|mut table| table.remove("x"));
        let value = parsed.unwrap_or_else(|| Value::String(value.to_string()));
        let (section, key) = match key.split_once('.') {
            Some((section @ ("options" | "grid"), key)) => (section, key),
            _ if self.grid.contains_key(key) => ("grid", key),
            _ => ("options", key),
        };
        self.options.remove(key);
        self.grid.remove(key);
        match (section, value) {
            ("grid", Value::Array(values)) => self.grid.insert(key.into(), Value::Array(values)),
            // One value of what would be varied.
            ("grid", value) => self.grid.insert(key.into(), Value::Array(vec![value])),
            (_, value) => self.options.insert(key.into(), value),
        };
        Ok(())
    }

    /// What is varied in each run; the last key of a grid fastest, keys in the order of the alphabet.
    pub fn runs(&self) -> Vec<Table> {
        if !self.run.is_empty() {
            return self.run.clone();
        }
        let mut runs = vec![Table::new()];
        for (key, values) in &self.grid {
            let with = |run: &Table, value: &Value| {
                let mut run = run.clone();
                run.insert(key.clone(), value.clone());
                run
            };
            let values = values.as_array().map_or(&[] as &[Value], Vec::as_slice);
            runs = runs.iter().flat_map(|run| values.iter().map(move |value| with(run, value))).collect();
        }
        runs
    }

    /// Keys that are varied, in the order of the alphabet.
    pub fn varied(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.runs().iter().flat_map(|run| run.keys().cloned()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// Whether something stands there twice.
fn is_doubled(mut all: impl Iterator<Item = String>) -> bool {
    let mut seen = HashSet::new();
    all.any(|one| !seen.insert(one))
}

/// A value on one line: text without quotation marks, lists with commas.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// What is varied as columns, a row per run: whole numbers, numbers, truth values, or text; null where a run does not say.
pub fn columns(keys: &[String], runs: &[Table]) -> Vec<Column> {
    let column = |key: &String| {
        let values: Vec<Option<&Value>> = runs.iter().map(|run| run.get(key)).collect();
        let all = |f: fn(&Value) -> bool| values.iter().flatten().all(|value| f(value));
        let name: PlSmallStr = key.as_str().into();
        let number = |value: &Value| value.as_float().or(value.as_integer().map(|n| n as f64));
        if all(Value::is_integer) {
            Column::new(name, values.iter().map(|v| v.and_then(Value::as_integer)).collect::<Vec<_>>())
        } else if all(|value| value.is_integer() || value.is_float()) {
            Column::new(name, values.iter().map(|v| v.and_then(number)).collect::<Vec<_>>())
        } else if all(Value::is_bool) {
            Column::new(name, values.iter().map(|v| v.and_then(Value::as_bool)).collect::<Vec<_>>())
        } else {
            Column::new(name, values.iter().map(|v| v.map(shown)).collect::<Vec<_>>())
        }
    };
    keys.iter().map(column).collect()
}

/// The column of what is varied: of its own name, or `option.NAME` where the command has a column of that name that holds
/// something else.
pub fn column_of(key: &str, columns: &[&str]) -> String {
    let other = format!("option.{key}");
    if columns.contains(&other.as_str()) { other } else { key.to_string() }
}

/// The rows of a run's frame that a study keeps. Of training that is one: `steps`, `train_loss` and `validation_loss` at the
/// end, `lowest_validation_loss`, the median of `tokens_per_second`, `seconds` and `cost`.
///
/// # Errors
/// [`Error::Data`] for a frame of training without its columns.
pub fn result(command: &str, frame: DataFrame) -> Result<DataFrame> {
    if !["train", "finetune"].contains(&command) {
        return Ok(frame);
    }
    let split = frame.column("split")?.str()?.clone();
    let of = |name: &str, split_name: &str| -> Result<Vec<f64>> {
        let column = frame.column(name)?.f64()?.clone();
        Ok((0..frame.height()).filter(|&i| split.get(i) == Some(split_name)).filter_map(|i| column.get(i)).collect())
    };
    let (train, validation) = (of("loss", "train")?, of("loss", "validation")?);
    let last = |values: &[f64]| values.last().copied();
    let lowest = validation.iter().copied().reduce(f64::min);
    let column = |name: &str| -> Result<Option<f64>> { Ok(frame.column(name)?.f64()?.iter().last().flatten()) };
    Ok(df!(
        "steps" => [train.len() as u64],
        "train_loss" => [last(&train)],
        "validation_loss" => [last(&validation)],
        "lowest_validation_loss" => [lowest],
        "tokens_per_second" => [crate::stats::median(&of("tokens_per_second", "train")?)],
        "seconds" => [column("seconds")?],
        "cost" => [column("cost")?],
    )?)
}

/// Which rows and columns are drawn for a command where a study does not say: `y`, what rows must have, and the columns of the
/// command's own frame that tell its rows apart.
pub fn usual(command: &str) -> (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]) {
    match command {
        "train" | "finetune" => ("validation_loss", &[], &[]),
        "perplexity" => ("bits_per_byte", &[], &["model", "text", "context", "stride"]),
        "generate" => ("logprob", &[], &["prompt"]),
        "behave" => ("value", &[("metric", "accuracy"), ("template", "")], &["model", "suite", "phrasing", "shots"]),
        "paths" => ("effect", &[("pair", "")], &["sender", "metric"]),
        "saliency" => ("integrated", &[], &["prompt", "pos", "token"]),
        "subspace" => ("effect", &[("pair", ""), ("part", "along")], &[]),
        "bench" => ("tokens_per_second", &[], &["model", "task", "batch"]),
        _ => ("value", &[], &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Study> {
        Study::parse(&format!("about = 'x'\ncommand = 'finetune'\n{text}"), Path::new("s.toml"))
    }

    #[test]
    fn a_grid_is_every_combination_once() {
        let study = parse("[grid]\nlr = [1, 2]\nmodel = ['a', 'b', 'c']").unwrap();
        let runs: Vec<String> =
            study.runs().iter().map(|run| run.values().map(shown).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(runs, ["1 a", "1 b", "1 c", "2 a", "2 b", "2 c"]);
        assert_eq!(study.varied(), ["lr", "model"]);
        let listed = parse("[[run]]\nlr = 1\n[[run]]\nlr = 2.5\nmodel = 'a'").unwrap();
        let columns = columns(&listed.varied(), &listed.runs());
        assert_eq!(columns[0].dtype(), &DataType::Float64);
        assert_eq!(columns[1].null_count(), 1);
    }

    #[test]
    fn keys_are_set_where_they_stand() {
        let text = "about = 'x'\ncommand = 'finetune'\n[options]\na = 1\n[grid]\nb = [1, 2]";
        let set = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
            Study::parse_with(text, Path::new("s.toml"), &words)
        };
        let study = set(&["a=2", "b=x", "c=[1, 2]", "grid.d=[3, 4]"]).unwrap();
        assert_eq!(study.runs().len(), 2);
        assert_eq!((shown(&study.options["a"]), shown(&study.options["c"])), ("2".into(), "1,2".into()));
        assert_eq!(shown(&study.runs()[1]["b"]), "x");
        assert_eq!(set(&["grid.a=[5, 6]"]).unwrap().runs().len(), 4);
        assert!(set(&["a"]).unwrap_err().to_string().contains("KEY=VALUE"));
    }

    #[test]
    fn studies_that_are_wrong_are_refused() {
        for (bad, why) in [
            ("", "nothing is varied"),
            ("[grid]\nlr = []", "grid.lr is empty"),
            ("[grid]\nlr = 1", "is no list"),
            ("[grid]\nlr = [1, 1]", "twice"),
            ("[grid]\nlr = [1]\n[[run]]\nlr = 2", "not both"),
            ("[options]\nlr = 2\n[grid]\nlr = [1]", "is in [options] and is varied"),
            ("[[run]]\nlr = 2\n[[run]]\nlr = 2", "run 1 is the same"),
            ("[gird]\nlr = [1]", "no key `gird`, the nearest is `grid`"),
            ("[figure]\nz = 'x'", "no key `z`"),
            (
                format!("[grid]\nlr = {:?}", (0..10_001).collect::<Vec<_>>()).as_str(),
                "10001 combinations in the grid; there may be at most 10000",
            ),
            (
                ("[grid]\n".to_string() + &(0..101).map(|i| format!("k{i} = [1]\n")).collect::<String>()).as_str(),
                "101 options in [grid]",
            ),
            (
                ("[[run]]\n".to_string() + &(0..101).map(|i| format!("k{i} = 1\n")).collect::<String>()).as_str(),
                "101 options in all [[run]]",
            ),
            (
                format!("[grid]\nlr = {:?}\nname = ['{}']", (0..10_000).collect::<Vec<_>>(), "x".repeat(10_000))
                    .as_str(),
                "bytes in all runs of the grid",
            ),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}

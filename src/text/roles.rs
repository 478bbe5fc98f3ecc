//! Which tokens start and end a text.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result, shorten};

/// The tokens that start and end a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// The token that starts a text.
    pub bos: Option<u32>,
    /// The tokens that end one; the first of them stands between texts that follow each other.
    pub ends: Vec<u32>,
    /// Whether the tokenizer's own files name the start.
    names_bos: bool,
    /// The end that the tokenizer's own files name.
    named_end: Option<u32>,
}

impl Roles {
    /// Roles that a tokenizer's files name; `usual` is GPT-2's token for both.
    pub fn named(bos: Option<u32>, end: Option<u32>, usual: Option<u32>) -> Self {
        let ends = end.or(usual).into_iter().collect();
        Self { bos: bos.or(usual), ends, names_bos: bos.is_some(), named_end: end }
    }

    /// The same for a model: `eos_token_id` of its `generation_config.json`, else of its `config.json`, says what ends a text, and
    /// `bos_token_id` what starts one where the tokenizer names nothing and knows it as a special token. Returns what is to be said.
    ///
    /// # Errors
    /// [`Error::Data`] for ids that are no whole numbers.
    pub fn of_model(
        mut self,
        configs: &[(&Path, &Value)],
        vocab_size: usize,
        is_special: impl Fn(u32) -> bool,
    ) -> Result<(Self, Vec<String>)> {
        let mut notes = Vec::new();
        let mut within = |path: &Path, field: &str, ids: Vec<u64>| -> Vec<u32> {
            let (inside, outside): (Vec<u64>, Vec<u64>) = ids.into_iter().partition(|id| *id < vocab_size as u64);
            if let Some(id) = outside.first() {
                notes.push(format!(
                    "{}: {field} is {id}, which is not below vocab_size {vocab_size}; it is left out",
                    path.display()
                ));
            }
            inside.into_iter().map(|id| id as u32).collect()
        };
        for (path, config) in configs {
            let ends = within(path, "eos_token_id", ids(config, "eos_token_id", path)?);
            if !ends.is_empty() {
                if let Some(named) = self.named_end.filter(|named| !ends.contains(named)) {
                    notes.push(format!(
                        "{}: token {} ends a text; the tokenizer's own files name {named}",
                        path.display(),
                        ends[0]
                    ));
                }
                self.ends = ends;
                break;
            }
        }
        for (path, config) in configs {
            let starts = ids(config, "bos_token_id", path)?;
            if let Some(&start) = starts.first()
                && !self.names_bos
                && start < vocab_size as u64
                && is_special(start as u32)
            {
                self.bos = Some(start as u32);
            }
        }
        Ok((self, notes))
    }
}

/// A field with one id, a list of them, or nothing; negative numbers are nothing too.
fn ids(config: &Value, field: &str, path: &Path) -> Result<Vec<u64>> {
    let wrong = |value: &Value| {
        Error::data(
            path,
            format!("{field} is {}; it must be a token id or a list of them", shorten(&value.to_string())),
        )
    };
    let one = |value: &Value| match value {
        value if value.as_i64().is_some_and(|id| id < 0) => Ok(None),
        value => value.as_u64().map(Some).ok_or_else(|| wrong(value)),
    };
    match config.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(all)) => Ok(all.iter().map(one).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()),
        Some(value) => Ok(one(value)?.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value, generation: Value) -> (Roles, Vec<String>) {
        let configs = [(Path::new("generation_config.json"), &generation), (Path::new("config.json"), &config)];
        Roles::named(None, Some(7), Some(9)).of_model(&configs, 10, |id| id == 3).unwrap()
    }

    #[test]
    fn a_model_says_what_ends_a_text() {
        let nothing = json!({});
        assert_eq!(of(nothing.clone(), nothing.clone()).0.ends, [7]);
        assert_eq!(of(json!({"eos_token_id": 5}), nothing.clone()).0.ends, [5]);
        assert_eq!(of(json!({"eos_token_id": 5}), json!({"eos_token_id": [7, 2]})).0.ends, [7, 2]);
        let (roles, notes) = of(json!({"eos_token_id": 50256}), nothing.clone());
        assert_eq!(roles.ends, [7]);
        assert!(notes[0].contains("eos_token_id is 50256, which is not below vocab_size 10"), "{notes:?}");
        assert!(of(json!({"eos_token_id": 5}), nothing.clone()).1[0].contains("name 7"));
        assert_eq!(of(json!({"bos_token_id": 3}), nothing.clone()).0.bos, Some(3));
        assert_eq!(of(json!({"bos_token_id": 4}), nothing.clone()).0.bos, Some(9)); // an ordinary token
        assert_eq!(of(json!({"eos_token_id": -1, "bos_token_id": null}), nothing).0.ends, [7]);
        let bad = json!({"eos_token_id": "x"});
        assert!(Roles::default().of_model(&[(Path::new("config.json"), &bad)], 10, |_| false).is_err());
    }
}

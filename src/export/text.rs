//! Text made ready: sequences, labels and the plan.

use std::path::Path;

use polars::prelude::*;

use crate::dataset::documents::Documents;
use crate::dataset::plan::{Plan, Request};
use crate::dataset::sequences::{self, Sequences};
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::weights::sha256;
use crate::{disk, frame};

/// The files that a plan stands on; the last one only where there are labels.
pub(super) const FILES: [&str; 3] = ["tokens.bin", "sequences.bin", "labels.parquet"];

/// Cuts the text into sequences and writes them, the labels and the plan.
pub(super) fn write_plan(tokenizer: &Tokenizer, dir: &Path, request: &Request, documents: Documents) -> Result<Plan> {
    let [tokens, places, labels] = FILES.map(|name| dir.join(name));
    let mut values: Vec<Vec<serde_json::Value>> = vec![Vec::new(); request.labels.len()];
    let mut keep = |own: Vec<serde_json::Value>| {
        values.iter_mut().zip(own).for_each(|(column, value)| column.push(value));
        Ok(())
    };
    let mut list = Vec::new();
    let count = disk::write_with(&tokens, |file| {
        sequences::write(documents, tokenizer, &request.cut, &tokens, file, &mut list, &mut keep)
    })?;
    disk::write_bytes(&places, &list)?;
    let mut digests = vec![sha256(&tokens)?, sha256(&places)?];
    if !request.labels.is_empty() {
        let columns = request.labels.iter().zip(&values).map(|(name, values)| label_column(name, values));
        let mut frame = DataFrame::new(count as usize, columns.collect::<Result<_>>()?)?;
        request.layout.check(&frame)?;
        frame::save_parquet(&mut frame, &labels)?;
        digests.push(sha256(&labels)?);
    }
    let plan = Plan::new(request.clone(), count, &Sequences::open(&tokens, &places)?, digests);
    plan.save(dir)?;
    Ok(plan)
}

/// Labels as the narrowest type that holds them all: truth values, whole numbers, numbers, else text.
fn label_column(name: &str, values: &[serde_json::Value]) -> Result<Column> {
    use serde_json::Value;
    let reserved = ["prompt", "document", "pos", "token_id", "token"];
    if reserved.contains(&name) {
        return Err(Error::request(format!("`{name}` is a column of every dataset, and cannot be a label too")));
    }
    let all = |f: fn(&Value) -> bool| values.iter().all(|value| value.is_null() || f(value));
    let series = if all(Value::is_boolean) {
        Series::new(name.into(), values.iter().map(Value::as_bool).collect::<Vec<_>>())
    } else if all(Value::is_i64) {
        Series::new(name.into(), values.iter().map(Value::as_i64).collect::<Vec<_>>())
    } else if all(Value::is_number) {
        Series::new(name.into(), values.iter().map(Value::as_f64).collect::<Vec<_>>())
    } else {
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        Series::new(name.into(), values.iter().map(text).collect::<Vec<_>>())
    };
    Ok(series.into_column())
}

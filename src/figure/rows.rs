//! Reading frames, for those who draw them.

use polars::prelude::*;

use crate::error::{Error, Result};

/// One label per position.
pub(crate) fn labels(pos: &[u32], token: &[String], positions: usize) -> Vec<String> {
    let mut labels = vec![String::new(); positions];
    for (pos, token) in pos.iter().zip(token) {
        if labels[*pos as usize].is_empty() {
            labels[*pos as usize] = shown(token);
        }
    }
    labels
}

/// A token with its white space visible.
pub fn shown(token: &str) -> String {
    let visible = token.replace(' ', "·").replace('\n', "↵").replace('\t', "→");
    if visible.is_empty() { "□".into() } else { visible }
}

/// Rows of a frame, read by column.
pub(crate) struct Rows {
    frame: DataFrame,
}

impl Rows {
    /// Those of one prompt.
    pub(crate) fn of(frame: &DataFrame, prompt: u32) -> Result<Self> {
        let mask = frame.column("prompt")?.u32()?.equal(prompt);
        let frame = frame.filter(&mask)?;
        if frame.height() == 0 {
            return Err(Error::request(format!("the frame has no prompt {prompt}")));
        }
        Ok(Self { frame })
    }

    /// All of them.
    pub(crate) fn all(frame: &DataFrame) -> Self {
        Self { frame: frame.clone() }
    }

    pub(crate) fn len(&self) -> usize {
        self.frame.height()
    }

    /// Null becomes 0.
    pub(crate) fn ints(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.frame.column(name)?.cast(&DataType::UInt32)?.u32()?.iter().map(|x| x.unwrap_or(0)).collect())
    }

    /// Null becomes NaN.
    pub(crate) fn floats(&self, name: &str) -> Result<Vec<f64>> {
        let column = self.frame.column(name)?.cast(&DataType::Float64)?;
        Ok(column.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    }

    /// Null becomes empty.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.frame.column(name)?.str()?.iter().map(|x| x.unwrap_or_default().to_string()).collect())
    }
}

//! Frames as text: JSON rows and CSV.

use polars::prelude::{AnyValue, Column, DataFrame};
use serde_json::Value;

use crate::error::{Error, Result};

/// The rows of a frame as a JSON array of objects, whose keys stand in the order of the columns.
///
/// A null, a NaN and an infinity are `null`, because JSON has no other word for them; an `f32` is written with as many
/// digits as tell it from its neighbours (0.1, not 0.10000000149); a list is an array.
///
/// # Errors
/// As polars.
pub fn json(frame: &DataFrame) -> Result<String> {
    json_of(std::slice::from_ref(frame))
}

/// The rows of several frames as one JSON array; see [`json`].
///
/// # Errors
/// As polars.
pub fn json_of(frames: &[DataFrame]) -> Result<String> {
    let mut out = String::from("[");
    for frame in frames {
        let names = frame.columns().iter().map(|column| quoted_json(column.name())).collect::<Result<Vec<_>>>()?;
        for i in 0..frame.height() {
            out.push_str(if out.len() > 1 { ",{" } else { "{" });
            for (at, (name, column)) in names.iter().zip(frame.columns()).enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(name);
                out.push(':');
                out.push_str(&cell(column.get(i)?).to_string());
            }
            out.push('}');
        }
    }
    out.push(']');
    Ok(out)
}

fn quoted_json(text: &str) -> Result<String> {
    serde_json::to_string(text).map_err(|e| Error::Bug(e.to_string()))
}

/// A value of a frame as JSON; see [`json`].
pub fn cell(value: AnyValue<'_>) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => b.into(),
        AnyValue::String(s) => s.into(),
        AnyValue::StringOwned(s) => s.as_str().into(),
        AnyValue::UInt8(n) => n.into(),
        AnyValue::UInt16(n) => n.into(),
        AnyValue::UInt32(n) => n.into(),
        AnyValue::UInt64(n) => n.into(),
        AnyValue::Int8(n) => n.into(),
        AnyValue::Int16(n) => n.into(),
        AnyValue::Int32(n) => n.into(),
        AnyValue::Int64(n) => n.into(),
        // Through text, so that 0.1 as f32 prints as 0.1 and not as 0.10000000149.
        AnyValue::Float32(x) => x.to_string().parse::<f64>().ok().and_then(serde_json::Number::from_f64).into(),
        AnyValue::Float64(x) => serde_json::Number::from_f64(x).into(),
        AnyValue::Array(series, _) | AnyValue::List(series) => series.iter().map(cell).collect(),
        other => other.to_string().into(),
    }
}

/// How a frame is written as CSV.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Csv {
    /// Put `'` before every text that a spreadsheet would take for a formula. The text is then no longer the frame's.
    pub escape_formulas: bool,
}

impl Csv {
    /// The frame as CSV (RFC 4180): a line of names, then a line per row; lines end with a line feed.
    ///
    /// | value | cell |
    /// |---|---|
    /// | text | as it is; between quotation marks, which are doubled inside, where it holds `,`, `"` or a line end |
    /// | empty text | `""` |
    /// | null | nothing, without quotation marks |
    /// | number | decimal digits, with an exponent where it is shorter; an `f32` with as many as tell it from its neighbours |
    /// | NaN, infinities | `NaN`, `inf`, `-inf` |
    /// | truth | `true`, `false` |
    /// | list | a JSON array, in which what is not a finite number is `null` |
    ///
    /// # Errors
    /// As polars.
    pub fn text(self, frame: &DataFrame) -> Result<String> {
        let mut out = self.names(frame);
        out.push_str(&self.rows(frame)?);
        Ok(out)
    }

    /// The line of names alone.
    pub fn names(self, frame: &DataFrame) -> String {
        let names: Vec<String> = frame.columns().iter().map(|column| self.field(column.name())).collect();
        names.join(",") + "\n"
    }

    /// The lines of the rows alone.
    ///
    /// # Errors
    /// As polars.
    pub fn rows(self, frame: &DataFrame) -> Result<String> {
        let mut out = String::new();
        for i in 0..frame.height() {
            for (at, column) in frame.columns().iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(&self.value(column, i)?);
            }
            // Readers skip a line that holds nothing.
            if frame.width() == 1 && out.ends_with('\n') | out.is_empty() {
                out.push_str("\"\"");
            }
            out.push('\n');
        }
        Ok(out)
    }

    fn value(self, column: &Column, i: usize) -> Result<String> {
        let special = |x: f64| match x {
            x if x.is_nan() => "NaN".to_string(),
            x if x > 0.0 => "inf".to_string(),
            _ => "-inf".to_string(),
        };
        Ok(match column.get(i)? {
            AnyValue::Float32(x) if !x.is_finite() => special(x.into()),
            AnyValue::Float64(x) if !x.is_finite() => special(x),
            value => match cell(value) {
                Value::Null => String::new(),
                Value::String(text) => self.field(&text),
                Value::Array(list) => quoted(&Value::Array(list).to_string()),
                other => other.to_string(),
            },
        })
    }

    /// A text as a field.
    fn field(self, text: &str) -> String {
        if self.escape_formulas && is_formula(text) { quoted(&format!("'{text}")) } else { quoted(text) }
    }
}

/// Whether a spreadsheet may compute a text instead of showing it: what OWASP names, the full-width forms too, also after
/// space, which some spreadsheets drop.
fn is_formula(text: &str) -> bool {
    let first = text.trim_start().chars().next();
    text.starts_with(['\t', '\r', '\n']) || first.is_some_and(|c| "=+-@＝＋－＠".contains(c))
}

/// A text in quotation marks where CSV needs them; an empty one too, so that it is no null.
fn quoted(text: &str) -> String {
    if !text.is_empty() && !text.contains([',', '"', '\n', '\r']) {
        return text.to_string();
    }
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::{IntoColumn, NamedFrom, ReshapeDimension, Series};

    fn frame() -> DataFrame {
        let lists = Series::new("list".into(), [0.1_f32, f32::NAN, 1.0, 2.0, 3.0, 4.0]);
        let shape = [ReshapeDimension::new(3), ReshapeDimension::new(2)];
        let columns = vec![
            Column::new("z".into(), [Some("a,\"b\"\r\n"), Some(""), None]),
            Column::new("=a".into(), [" =1", "\t", "null"]),
            Column::new("x".into(), [Some(0.1_f32), Some(f32::NEG_INFINITY), None]),
            Column::new("y".into(), [2.5, f64::NAN, -1.0]),
            Column::new("n".into(), [u64::MAX, 0, 1]),
            Column::new("b".into(), [true, false, true]),
            lists.reshape_array(&shape).unwrap().into_column(),
        ];
        DataFrame::new(3, columns).unwrap()
    }

    #[test]
    fn csv_is_what_rfc_4180_says() {
        let expected = "z,=a,x,y,n,b,list\n\
                        \"a,\"\"b\"\"\r\n\", =1,0.1,2.5,18446744073709551615,true,\"[0.1,null]\"\n\
                        \"\",\t,-inf,NaN,0,false,\"[1.0,2.0]\"\n\
                        ,null,,-1.0,1,true,\"[3.0,4.0]\"\n";
        assert_eq!(Csv::default().text(&frame()).unwrap(), expected);
        let escaped = Csv { escape_formulas: true }.text(&frame()).unwrap();
        assert_eq!(escaped, expected.replace("=a", "'=a").replace(" =1", "' =1").replace("\t", "'\t"));
        let one = DataFrame::new(3, vec![Column::new("a".into(), [Some(""), None, Some("x")])]).unwrap();
        assert_eq!(Csv::default().text(&one).unwrap(), "a\n\"\"\n\"\"\nx\n");
    }

    #[test]
    fn json_keeps_the_order_of_the_columns() {
        let first =
            r#"{"z":"a,\"b\"\r\n","=a":" =1","x":0.1,"y":2.5,"n":18446744073709551615,"b":true,"list":[0.1,null]}"#;
        let text = json(&frame()).unwrap();
        assert!(text.starts_with(&format!("[{first},")), "{text}");
        let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!((rows.len(), &rows[1]["x"], &rows[2]["z"]), (3, &Value::Null, &Value::Null));
        assert_eq!(json_of(&[frame(), frame()]).unwrap().matches(first).count(), 2);
        assert_eq!(json(&DataFrame::empty()).unwrap(), "[]");
    }
}

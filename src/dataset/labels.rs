//! Labels: what is known of a document. A label is kept exactly, or its column is refused.

use polars::prelude::*;

use crate::error::{Error, Result, shorten};

/// One value of a label.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// No value.
    Missing,
    /// A truth value.
    Bool(bool),
    /// A whole number of up to 32 bits.
    I32(i32),
    /// A whole number of 64 bits, and every whole number in JSON.
    I64(i64),
    /// A whole number of up to 32 bits, without a sign.
    U32(u32),
    /// A whole number of 64 bits, without a sign; in JSON one that [`Label::I64`] cannot hold.
    U64(u64),
    /// A number of up to 32 bits.
    F32(f32),
    /// A number of 64 bits, and every number with a point or an exponent in JSON.
    F64(f64),
    /// A text.
    Text(String),
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    I32,
    I64,
    U32,
    U64,
    F32,
    F64,
    Text,
}

impl Label {
    /// A value as it is written in JSON.
    ///
    /// # Errors
    /// What is wrong with it: lists and objects, and whole numbers that 64 bits cannot hold.
    fn from_json(raw: &str) -> std::result::Result<Self, String> {
        match raw.as_bytes().first() {
            Some(b'"') => serde_json::from_str(raw).map(Label::Text).map_err(|e| e.to_string()),
            Some(b't') => Ok(Label::Bool(true)),
            Some(b'f') => Ok(Label::Bool(false)),
            Some(b'n') => Ok(Label::Missing),
            Some(b'[') => Err("is a list; a label is a text, a number or a truth value".into()),
            Some(b'{') => Err("is an object; a label is a text, a number or a truth value".into()),
            _ if raw.contains(['.', 'e', 'E']) => match raw.parse::<f64>() {
                Ok(x) if x.is_finite() => Ok(Label::F64(x)),
                _ => Err(format!("is {}, which is no number of 64 bits", shorten(raw))),
            },
            _ => match (raw.parse(), raw.parse()) {
                (Ok(n), _) => Ok(Label::I64(n)),
                (_, Ok(n)) => Ok(Label::U64(n)),
                _ => Err(format!("is {}, which a whole number of 64 bits cannot hold; write it as text", shorten(raw))),
            },
        }
    }

    /// As text; nothing where it is missing.
    pub fn to_text(&self) -> Option<String> {
        Some(match self {
            Label::Missing => return None,
            Label::Bool(b) => b.to_string(),
            Label::I32(n) => n.to_string(),
            Label::I64(n) => n.to_string(),
            Label::U32(n) => n.to_string(),
            Label::U64(n) => n.to_string(),
            Label::F32(x) => x.to_string(),
            Label::F64(x) => x.to_string(),
            Label::Text(text) => text.clone(),
        })
    }

    fn kind(&self) -> Option<Kind> {
        Some(match self {
            Label::Missing => return None,
            Label::Bool(_) => Kind::Bool,
            Label::I32(_) => Kind::I32,
            Label::I64(_) => Kind::I64,
            Label::U32(_) => Kind::U32,
            Label::U64(_) => Kind::U64,
            Label::F32(_) => Kind::F32,
            Label::F64(_) => Kind::F64,
            Label::Text(_) => Kind::Text,
        })
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Label::I32(n) => Some(i128::from(*n)),
            Label::I64(n) => Some(i128::from(*n)),
            Label::U32(n) => Some(i128::from(*n)),
            Label::U64(n) => Some(i128::from(*n)),
            _ => None,
        }
    }

    /// The number as an f64, if that is exactly it.
    fn exact(&self) -> Option<f64> {
        match self {
            Label::F32(x) => Some(f64::from(*x)),
            Label::F64(x) => Some(*x),
            other => {
                let n = other.whole()?;
                (n as f64 as i128 == n).then_some(n as f64)
            }
        }
    }
}

impl Kind {
    fn is_whole(self) -> bool {
        matches!(self, Kind::I32 | Kind::I64 | Kind::U32 | Kind::U64)
    }

    fn is_number(self) -> bool {
        self.is_whole() || matches!(self, Kind::F32 | Kind::F64)
    }

    /// In words, for a message.
    fn words(self) -> &'static str {
        match self {
            Kind::Bool => "a truth value",
            Kind::Text => "text",
            kind if kind.is_whole() => "a whole number",
            _ => "a number with a fraction",
        }
    }
}

/// A column for each of `names`, of the values of all documents.
///
/// # Errors
/// [`Error::Data`] for a column that no one type can hold exactly.
pub(crate) fn frame(names: &[String], values: &[Vec<Label>], documents: usize) -> Result<DataFrame> {
    let columns = names.iter().zip(values).map(|(name, values)| column(name, values));
    Ok(DataFrame::new(documents, columns.collect::<Result<_>>()?)?)
}

/// A label as a column of the one type that holds every value exactly.
///
/// # Errors
/// [`Error::Data`] that names two documents whose values no type can hold, or says that no document has a value.
fn column(name: &str, values: &[Label]) -> Result<Column> {
    let refuse = |what: String| Err(fault(name, what));
    let mut kinds: Vec<(Kind, usize)> = Vec::new();
    for (i, value) in values.iter().enumerate() {
        match value.kind() {
            Some(kind) if kinds.iter().all(|(known, _)| *known != kind) => kinds.push((kind, i)),
            _ => {}
        }
    }
    let all = |f: fn(Kind) -> bool| kinds.iter().all(|(kind, _)| f(*kind));
    let kind = match kinds.as_slice() {
        [] => return refuse("is null in every document, which has no type; leave it out".into()),
        [(kind, _)] => *kind,
        _ if all(Kind::is_whole) => {
            let numbers = || values.iter().filter_map(Label::whole);
            if numbers().all(|n| i64::try_from(n).is_ok()) {
                Kind::I64
            } else if numbers().all(|n| n >= 0) {
                Kind::U64
            } else {
                let place = |wanted: &dyn Fn(i128) -> bool| {
                    let found = values.iter().enumerate().filter_map(|(i, value)| Some((i, value.whole()?)));
                    found.into_iter().find(|(_, n)| wanted(*n)).unwrap_or_default()
                };
                let ((i, low), (j, high)) = (place(&|n| n < 0), place(&|n| n > i128::from(i64::MAX)));
                return refuse(format!(
                    "is {low} in document {i} and {high} in document {j}, which no whole number of 64 bits holds both; write them as text"
                ));
            }
        }
        _ if all(Kind::is_number) => {
            let inexact = values.iter().enumerate().find(|(_, v)| v.kind().is_some() && v.exact().is_none());
            if let Some((i, value)) = inexact {
                let other = kinds.iter().find(|(kind, _)| !kind.is_whole()).map_or(0, |(_, i)| *i);
                return refuse(format!(
                    "is the whole number {} in document {i}, and has a fraction in document {other}: a column of f64 cannot hold the first exactly; write them as text",
                    value.to_text().unwrap_or_default()
                ));
            }
            Kind::F64
        }
        [(first, i), rest @ ..] => {
            let (other, j) = rest.iter().find(|(kind, _)| kind.words() != first.words()).unwrap_or(&rest[0]);
            return refuse(format!(
                "is {} in document {i} and {} in document {j}; a column has one type",
                first.words(),
                other.words()
            ));
        }
    };
    Ok(series(name, kind, values).into_column())
}

fn series(name: &str, kind: Kind, values: &[Label]) -> Series {
    fn of<T>(values: &[Label], f: impl Fn(&Label) -> Option<T>) -> Vec<Option<T>> {
        values.iter().map(f).collect()
    }
    let name = name.into();
    match kind {
        Kind::Bool => Series::new(name, of(values, |v| if let Label::Bool(b) = v { Some(*b) } else { None })),
        Kind::I32 => Series::new(name, of(values, |v| v.whole().and_then(|n| i32::try_from(n).ok()))),
        Kind::I64 => Series::new(name, of(values, |v| v.whole().and_then(|n| i64::try_from(n).ok()))),
        Kind::U32 => Series::new(name, of(values, |v| v.whole().and_then(|n| u32::try_from(n).ok()))),
        Kind::U64 => Series::new(name, of(values, |v| v.whole().and_then(|n| u64::try_from(n).ok()))),
        Kind::F32 => Series::new(name, of(values, |v| if let Label::F32(x) = v { Some(*x) } else { None })),
        Kind::F64 => Series::new(name, of(values, Label::exact)),
        Kind::Text => {
            Series::new(name, of(values, |v| if let Label::Text(text) = v { Some(text.clone()) } else { None }))
        }
    }
}

/// A label that cannot be kept.
pub(crate) fn fault(name: &str, what: impl std::fmt::Display) -> Error {
    Error::data(format!("label `{}`", shorten(name)), what.to_string())
}

/// The labels in a line of JSON: one per name.
///
/// # Errors
/// What is wrong with the line: a field that is missing or there twice, or whose value is no label.
pub(super) fn in_json(line: &str, names: &[String]) -> std::result::Result<Vec<Label>, String> {
    let fields = fields(line)?;
    let find = |name: &String| {
        let mut found = fields.iter().filter(|(own, _)| own == name);
        match (found.next(), found.count()) {
            (None, _) => Err(format!("there is no field `{}`", shorten(name))),
            (Some((_, raw)), 0) => Label::from_json(raw).map_err(|what| format!("label `{}` {what}", shorten(name))),
            (_, more) => Err(format!("the field `{}` is there {} times", shorten(name), more + 1)),
        }
    };
    names.iter().map(find).collect()
}

/// The fields of an object in JSON, each with its value as it is written: numbers keep their digits, and a field that is there
/// twice is there twice.
pub(super) fn fields(line: &str) -> std::result::Result<Vec<(String, &str)>, String> {
    // This checks the whole line, so that what follows need not.
    serde_json::from_str::<serde::de::IgnoredAny>(line).map_err(|e| e.to_string())?;
    let Some(mut rest) = line.trim().strip_prefix('{') else { return Err("is no object".into()) };
    let mut fields = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',');
        if !rest.starts_with('"') {
            return Ok(fields);
        }
        let (key, after) = rest.split_at(end_of_value(rest, b":"));
        let key = serde_json::from_str(key.trim_end()).map_err(|e| e.to_string())?;
        let after = after.strip_prefix(':').unwrap_or(after);
        let (value, after) = after.split_at(end_of_value(after, b",}"));
        fields.push((key, value.trim()));
        rest = after;
    }
}

/// Where a value of JSON ends: before one of `ends` that is in no text, list or object of its own.
fn end_of_value(text: &str, ends: &[u8]) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            _ if depth == 0 && ends.contains(&byte) => return i,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(line: &str) -> std::result::Result<Vec<Label>, String> {
        in_json(line, &["x".to_string()])
    }

    #[test]
    fn json_is_read_as_it_is_written() {
        for (raw, wanted) in [
            ("null", Label::Missing),
            ("true", Label::Bool(true)),
            ("-0", Label::I64(0)),
            ("9007199254740993", Label::I64(9007199254740993)),
            ("-9223372036854775808", Label::I64(i64::MIN)),
            ("18446744073709551615", Label::U64(u64::MAX)),
            ("1.0", Label::F64(1.0)),
            ("1e20", Label::F64(1e20)),
            ("-0.0", Label::F64(-0.0)),
            (r#""a \" b, } \u00e9""#, Label::Text("a \" b, } é".into())),
        ] {
            for line in [format!(r#"{{"x": {raw}}}"#), format!(r#" {{ "a":[{{"x":1}},"}}"],"x" :{raw} , "b":{{}} }} "#)]
            {
                assert_eq!(labels(&line), Ok(vec![wanted.clone()]), "{line}");
            }
        }
        for (line, wanted) in [
            (r#"{"x": 18446744073709551616}"#, "18446744073709551616, which a whole number of 64 bits cannot hold"),
            (r#"{"x": -9223372036854775809}"#, "cannot hold; write it as text"),
            (r#"{"x": 1e999}"#, "no number of 64 bits"),
            (r#"{"x": [1]}"#, "label `x` is a list"),
            (r#"{"x": {}}"#, "label `x` is an object"),
            (r#"{"x": 1, "x": 2}"#, "the field `x` is there 2 times"),
            (r#"{"x": 1, "\u0078": 1}"#, "the field `x` is there 2 times"),
            (r#"{"y": {"x": 1}}"#, "there is no field `x`"),
            (r#"["x"]"#, "is no object"),
            (r#"{"x": 1} {"#, "trailing characters"),
            (r#"{"x": "\ud800"}"#, "hex escape"),
            (r#"{"x": NaN}"#, "expected value"),
            ("{}", "there is no field `x`"),
        ] {
            let found = labels(line).unwrap_err();
            assert!(found.contains(wanted), "{line}: {found}");
        }
    }

    #[test]
    fn a_column_has_the_type_that_holds_all_of_it() {
        use Label::*;
        let text = |t: &str| Text(t.into());
        for (values, wanted) in [
            (vec![I64(1), Missing, I64(1 << 60)], DataType::Int64),
            (vec![I64(1), U64(u64::MAX)], DataType::UInt64),
            (vec![U32(7), I32(-1)], DataType::Int64),
            (vec![U32(7), Missing], DataType::UInt32),
            (vec![F32(0.1), Missing], DataType::Float32),
            (vec![I64(1 << 53), F64(0.5)], DataType::Float64),
            (vec![F32(0.1), F64(0.1)], DataType::Float64),
            (vec![Bool(true), Missing], DataType::Boolean),
            (vec![text(""), Missing], DataType::String),
        ] {
            let column = column("x", &values).unwrap();
            assert_eq!(column.dtype(), &wanted);
            for (i, value) in values.iter().enumerate() {
                let found = column.get(i).unwrap();
                match value {
                    Missing => assert_eq!(found, AnyValue::Null),
                    F32(_) | F64(_) => assert_eq!(found.extract::<f64>(), value.exact()),
                    Text(_) | Bool(_) => assert_eq!(found.str_value(), value.to_text().unwrap()),
                    whole => assert_eq!(found.extract::<i128>(), whole.whole()),
                }
            }
        }
        for (values, wanted) in [
            (vec![], "is null in every document"),
            (vec![Missing, Missing], "is null in every document"),
            (
                vec![I64((1 << 53) + 1), F64(0.5)],
                "the whole number 9007199254740993 in document 0, and has a fraction in document 1",
            ),
            (vec![I64(-1), Missing, U64(u64::MAX)], "is -1 in document 0 and 18446744073709551615 in document 2"),
            (vec![text("a"), Missing, I64(1)], "is text in document 0 and a whole number in document 2"),
            (vec![Bool(true), F64(1.0)], "a truth value in document 0 and a number with a fraction in document 1"),
        ] {
            let refused = column("x", &values).unwrap_err();
            assert!(matches!(refused, Error::Data { .. }) && refused.to_string().contains(wanted), "{refused}");
            assert!(refused.to_string().starts_with("label `x`: "), "{refused}");
        }
    }
}

//! Identity columns as arrays, for files of arrays: there nothing can be missing but a number with a fraction.

use polars::prelude::*;

use crate::error::{Error, Result};

/// A column as one array.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Flat {
    /// Indices.
    U32(Vec<u32>),
    /// Whole numbers.
    I64(Vec<i64>),
    /// Numbers; what is missing is NaN.
    F64(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    Text(Vec<String>),
}

impl Flat {
    /// The values of a column.
    ///
    /// # Errors
    /// [`Error::Request`] for missing values that an array cannot leave out, and for other types.
    pub(super) fn of(column: &Column) -> Result<Self> {
        let (name, missing) = (column.name(), column.null_count());
        if missing > 0 && !column.dtype().is_float() {
            return Err(Error::request(format!(
                "`{name}` is missing in {missing} rows, which arrays cannot say; leave it out, or use --layout parquet"
            )));
        }
        Ok(match column.dtype() {
            DataType::UInt32 => Flat::U32(column.u32()?.into_no_null_iter().collect()),
            DataType::Boolean => Flat::Bool(column.bool()?.iter().flatten().collect()),
            DataType::String => Flat::Text(column.str()?.iter().flatten().map(str::to_string).collect()),
            kind if kind.is_integer() => Flat::I64(column.cast(&DataType::Int64)?.i64()?.into_no_null_iter().collect()),
            kind if kind.is_float() => {
                let wide = column.cast(&DataType::Float64)?;
                Flat::F64(wide.f64()?.iter().map(|value| value.unwrap_or(f64::NAN)).collect())
            }
            kind => {
                return Err(Error::request(format!("`{name}` is {kind}: labels are numbers, texts or truth values")));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_with_a_fraction_may_be_missing() {
        let frame = df!(
            "n" => [1_u32, 2], "score" => [Some(1.5_f64), None], "kind" => [Some("a"), None], "id" => [Some(1_i64), None],
            "good" => [true, false], "text" => ["a", ""],
        )
        .unwrap();
        let flat = |name: &str| Flat::of(frame.column(name).unwrap());
        assert_eq!(flat("n").unwrap(), Flat::U32(vec![1, 2]));
        assert_eq!(flat("good").unwrap(), Flat::Bool(vec![true, false]));
        assert_eq!(flat("text").unwrap(), Flat::Text(vec!["a".into(), "".into()]));
        assert!(matches!(flat("score").unwrap(), Flat::F64(x) if x[0] == 1.5 && x[1].is_nan()));
        for name in ["kind", "id"] {
            let refused = flat(name).unwrap_err().to_string();
            assert!(refused.contains(&format!("`{name}` is missing in 1 rows")), "{refused}");
        }
    }
}

//! Identity columns as arrays, for files of arrays: there nothing can be missing.

use polars::prelude::*;

use crate::error::{Error, Result, shorten};

/// A column as one array.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Flat {
    /// Whole numbers.
    I32(Vec<i32>),
    /// Whole numbers.
    I64(Vec<i64>),
    /// Whole numbers without a sign, indices among them.
    U32(Vec<u32>),
    /// Whole numbers without a sign.
    U64(Vec<u64>),
    /// Numbers.
    F32(Vec<f32>),
    /// Numbers.
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
    /// [`Error::Data`] for missing values, which no array of numbers or texts can say, and for other types.
    pub(super) fn of(column: &Column) -> Result<Self> {
        let (kind, missing) = (column.dtype(), column.null_count());
        if missing > 0 {
            return Err(fault(
                column.name(),
                format!(
                    "is {kind} and missing in {missing} of {} documents, which arrays cannot say; leave it out, or use --layout parquet",
                    column.len()
                ),
            ));
        }
        Ok(match kind {
            DataType::Int32 => Flat::I32(column.i32()?.into_no_null_iter().collect()),
            DataType::Int64 => Flat::I64(column.i64()?.into_no_null_iter().collect()),
            DataType::UInt32 => Flat::U32(column.u32()?.into_no_null_iter().collect()),
            DataType::UInt64 => Flat::U64(column.u64()?.into_no_null_iter().collect()),
            DataType::Float32 => Flat::F32(column.f32()?.into_no_null_iter().collect()),
            DataType::Float64 => Flat::F64(column.f64()?.into_no_null_iter().collect()),
            DataType::Boolean => Flat::Bool(column.bool()?.iter().flatten().collect()),
            DataType::String => Flat::Text(column.str()?.iter().flatten().map(str::to_string).collect()),
            kind => return Err(fault(column.name(), format!("is {kind}: labels are numbers, texts or truth values"))),
        })
    }
}

/// A label that a layout cannot keep.
pub(super) fn fault(name: &str, what: String) -> Error {
    Error::data(format!("label `{}`", shorten(name)), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_an_array_of_its_own_and_nothing_may_be_missing() {
        let frame = df!(
            "u32" => [u32::MAX], "u64" => [u64::MAX], "i32" => [i32::MIN], "i64" => [i64::MIN], "f32" => [-0.0_f32],
            "f64" => [f64::INFINITY], "bool" => [true], "text" => [""],
        )
        .unwrap();
        let flat = |name: &str| Flat::of(frame.column(name).unwrap()).unwrap();
        assert_eq!(flat("u32"), Flat::U32(vec![u32::MAX]));
        assert_eq!(flat("u64"), Flat::U64(vec![u64::MAX]));
        assert_eq!(flat("i32"), Flat::I32(vec![i32::MIN]));
        assert_eq!(flat("i64"), Flat::I64(vec![i64::MIN]));
        assert_eq!(flat("f32"), Flat::F32(vec![-0.0]));
        assert_eq!(flat("f64"), Flat::F64(vec![f64::INFINITY]));
        assert_eq!(flat("bool"), Flat::Bool(vec![true]));
        assert_eq!(flat("text"), Flat::Text(vec!["".into()]));
        let gaps = df!("kind" => [Some("a"), None], "id" => [Some(1_i64), None], "score" => [Some(0.5), None]).unwrap();
        for column in gaps.columns() {
            let refused = Flat::of(column).unwrap_err();
            let wanted = format!("label `{}`: is {} and missing in 1 of 2 documents", column.name(), column.dtype());
            assert!(refused.to_string().contains(&wanted), "{refused}");
        }
    }
}

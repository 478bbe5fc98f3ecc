//! A part of an axis: one index or a range.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use crate::error::{Error, Result};
use crate::site::resolve_index;

/// One index or a range along an axis; negative numbers count from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first: i64,
    /// The last index that belongs to it.
    last: i64,
    /// Whether it was written as a range that holds nothing, such as `3..3`.
    empty: bool,
}

impl Span {
    /// The indices of an axis of length `len`.
    ///
    /// # Errors
    /// [`Error::Request`] for an index that the axis does not have, and for a range without any index.
    pub fn resolve(self, what: &str, len: usize) -> Result<Range<usize>> {
        if self.empty {
            return Err(Error::request(format!("{what} {self} is an empty range")));
        }
        let (first, last) = (resolve_index(what, self.first, len)?, resolve_index(what, self.last, len)?);
        if first > last {
            return Err(Error::request(format!("{what} {self} is an empty range")));
        }
        Ok(first..last + 1)
    }

    /// Whether one of its ends counts from the end of the axis.
    pub fn counts_from_the_end(self) -> bool {
        !self.empty && (self.first < 0 || self.last < 0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { empty: true, .. } => write!(f, "{}..{}", self.first, self.last.saturating_add(1)),
            _ if self.first == self.last => write!(f, "{}", self.first),
            _ => write!(f, "{}..={}", self.first, self.last),
        }
    }
}

/// A number as an index; one that is too large for any axis stays so.
trait Index: Copy {
    fn index(self) -> i64;
}

impl Index for i32 {
    fn index(self) -> i64 {
        self.into()
    }
}

impl Index for i64 {
    fn index(self) -> i64 {
        self
    }
}

impl Index for usize {
    fn index(self) -> i64 {
        i64::try_from(self).unwrap_or(i64::MAX)
    }
}

macro_rules! spans {
    ($($int:ty),*) => {$(
        impl From<$int> for Span {
            fn from(index: $int) -> Self {
                Span { first: index.index(), last: index.index(), empty: false }
            }
        }
        impl From<RangeInclusive<$int>> for Span {
            fn from(range: RangeInclusive<$int>) -> Self {
                Span { first: range.start().index(), last: range.end().index(), empty: false }
            }
        }
        impl From<Range<$int>> for Span {
            fn from(range: Range<$int>) -> Self {
                let (first, end) = (range.start.index(), range.end.index());
                // `-3..0` are the last three; `0..0` and `2..0` are nothing.
                let empty = first == end || (end == 0 && first >= 0);
                Span { first, last: end.saturating_sub(1), empty }
            }
        }
    )*};
}
spans!(i32, i64, usize);

#[cfg(test)]
mod tests {
    use super::*;

    // A range that is empty to the compiler is one of positions from the end here, or must be refused.
    #[allow(clippy::reversed_empty_ranges)]
    #[test]
    fn ranges_are_what_they_are_in_rust_or_refused() {
        let of = |span: Span| span.resolve("pos", 6).map_err(|e| e.to_string());
        let good: [(Span, Range<usize>); 8] = [
            (2.into(), 2..3),
            ((-1).into(), 5..6),
            ((0..=-1).into(), 0..6),
            ((1..3).into(), 1..3),
            ((-3..-1).into(), 3..5),
            ((-3..0).into(), 3..6),
            ((0..6_usize).into(), 0..6),
            ((1..-1).into(), 1..5),
        ];
        for (span, wanted) in good {
            assert_eq!(of(span), Ok(wanted), "{span}");
        }
        let bad: [(Span, &str); 9] = [
            ((0..0).into(), "pos 0..0 is an empty range"),
            ((0..0_usize).into(), "pos 0..0 is an empty range"),
            ((3..3).into(), "pos 3..3 is an empty range"),
            ((2..0).into(), "pos 2..0 is an empty range"),
            ((4..=3).into(), "pos 4..=3 is an empty range"),
            (6.into(), "pos 6 is out of range 0..=5 (or -6..=-1)"),
            ((-7).into(), "pos -7 is out of range"),
            // As a signed number this would be -1.
            (usize::MAX.into(), "is out of range 0..=5"),
            ((0..=usize::MAX).into(), "is out of range 0..=5"),
        ];
        for (span, wanted) in bad {
            let message = of(span).unwrap_err();
            assert!(message.contains(wanted), "{message} does not say {wanted}");
        }
        assert!(Span::from(0..i64::MIN).resolve("pos", 6).is_err());
    }
}

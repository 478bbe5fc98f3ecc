//! Numbers on the command line, each with the range that it may have.

use std::fmt::Display;
use std::str::FromStr;

/// Reads a count from `least` to `most`, for a field that is an `usize`: clap does not compare the two types before it runs.
pub fn whole(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    between(least, most)
}

/// Reads a count from `least` to `most`, for a field that is an `u64`.
pub fn long(least: u64, most: u64) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    between(least, most)
}

fn between<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static,
{
    move |text: &str| match text.parse::<T>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        // A number that is too large for its type is a number all the same.
        _ if is_whole(text) => Err(format!("{text} is not in {least}..={most}")),
        _ => Err(format!("a whole number in {least}..={most} is wanted")),
    }
}

/// Reads a number from `least` to `most`; what is not finite is none.
pub fn real(least: f64, most: f64) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    // Thirty zeros are nothing to count.
    let shown = |x: f64| if x.abs() < 1e16 { format!("{x}") } else { format!("{x:e}") };
    let range = format!("{}..={}", shown(least), shown(most));
    move |text: &str| match text.trim().parse::<f64>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        Ok(_) => Err(format!("{text} is not in {range}")),
        Err(_) => Err(format!("a number in {range} is wanted")),
    }
}

fn is_whole(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_their_range() {
        let samples = whole(1, 10_000);
        assert_eq!(samples("10000"), Ok(10_000));
        for bad in ["0", "-1", "10001", "4294967296", "99999999999999999999999"] {
            assert_eq!(samples(bad), Err(format!("{bad} is not in 1..=10000")));
        }
        for bad in ["", "x", "1.5", "1e9", "0x10", "-"] {
            assert_eq!(samples(bad), Err("a whole number in 1..=10000 is wanted".into()));
        }
        let share = real(0.0, 1.0);
        assert_eq!(share("0.5"), Ok(0.5));
        for bad in ["NaN", "inf", "-0.1", "1e999"] {
            assert_eq!(share(bad), Err(format!("{bad} is not in 0..=1")));
        }
        assert!(share("half").is_err());
        assert_eq!(real(-1e30, 1e30)("nan"), Err("nan is not in -1e30..=1e30".into()));
    }
}

//! Lines of a file, and lines that are JSON.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result, shorten};

/// Longest line that is read: a file without line breaks must not fill the memory.
const MAX_LINE: usize = 256 << 20;

/// What a byte-order mark looks like in UTF-8.
pub const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Numbered lines, without what ends them, `\n` or `\r\n`, and without a byte-order mark.
///
/// The iterator fails with [`Error::Data`] for a line that is not UTF-8, unless `lossy`, and for one that is too long.
pub fn lines<R: Read>(from: R, path: &Path, lossy: bool) -> impl Iterator<Item = Result<(usize, String)>> + use<R> {
    let path = path.to_path_buf();
    let mut reader = BufReader::with_capacity(1 << 20, from);
    let mut number = 0;
    let mut ended = false;
    let mut offset = 0;
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let limit = MAX_LINE as u64 + 2;
        match if ended { Ok(0) } else { (&mut reader).take(limit).read_until(b'\n', &mut line) } {
            Ok(0) => return None,
            Ok(_) => {}
            Err(source) => {
                ended = true;
                return Some(Err(Error::reading(&path, source)));
            }
        }
        number += 1;
        let begun = offset;
        offset += line.len();
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        }
        if line.len() > MAX_LINE {
            ended = true;
            return Some(Err(Error::data(&path, format!("line {number} is longer than {MAX_LINE} bytes"))));
        }
        let begin = if number == 1 && line.starts_with(BYTE_ORDER_MARK.as_bytes()) { BYTE_ORDER_MARK.len() } else { 0 };
        Some(decode(line.split_off(begin), lossy, &path, (begun + begin, number)).map(|text| (number, text)))
    })
}

/// Text from bytes that begin at a byte and a line of a file.
///
/// # Errors
/// [`Error::Data`] with the first byte that is not UTF-8, unless such bytes are to be replaced.
pub fn decode(bytes: Vec<u8>, lossy: bool, path: &Path, (byte, line): (usize, usize)) -> Result<String> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(e) if lossy => Ok(String::from_utf8_lossy(e.as_bytes()).into_owned()),
        Err(e) => {
            let valid = e.utf8_error().valid_up_to();
            let line = line + e.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
            let what = format!("not UTF-8 at byte {} (line {line}); pass --lossy to replace such bytes", byte + valid);
            Err(Error::data(path, what))
        }
    }
}

/// A whole text: without a byte-order mark, its lines ended by `\n`.
pub fn whole(mut text: String) -> String {
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }
}

/// A line as a JSON object.
///
/// # Errors
/// [`Error::Data`] with the number of the line.
pub fn object(line: &str, number: usize, path: &Path) -> Result<Value> {
    let wrong = |what: String| Err(Error::data(path, format!("line {number}: {what}")));
    match serde_json::from_str(line) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(Value::Array(_)) => {
            wrong("a list, not an object; write one object per line, such as with jq -c '.[]'".into())
        }
        Ok(other) => wrong(format!("{} is no object; write one object per line", shorten(&other.to_string()))),
        Err(e) if e.is_eof() => {
            wrong("not JSON: the line ends within a value; write one object per line, such as with jq -c".into())
        }
        Err(e) => {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            wrong(format!("not JSON: {} at byte {}", shorten(what), e.column()))
        }
    }
}

/// Every line that is not blank as a JSON object, with its number from 1; `path` is for messages.
///
/// # Errors
/// [`Error::Data`] with the number of the first line that is none.
pub fn jsonl(text: &str, path: &Path) -> Result<Vec<(usize, Value)>> {
    let lines = lines(text.as_bytes(), path, false).filter(|line| !is_blank(line));
    lines.map(|line| line.and_then(|(i, line)| Ok((i, object(&line, i, path)?)))).collect()
}

/// Whether a line holds nothing.
pub fn is_blank(line: &Result<(usize, String)>) -> bool {
    matches!(line, Ok((_, line)) if line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], lossy: bool) -> Result<Vec<(usize, String)>> {
        lines(bytes, Path::new("f"), lossy).collect()
    }

    #[test]
    fn lines_end_as_python_ends_them() {
        let own = |texts: &[&str]| (1..).zip(texts.iter().map(|text| text.to_string())).collect::<Vec<_>>();
        assert_eq!(read("\u{feff}a\r\nb\n\r\nc".as_bytes(), false).unwrap(), own(&["a", "b", "", "c"]));
        assert_eq!(read(b"a\r\r\n\rb", false).unwrap(), own(&["a\r", "\rb"]));
        assert_eq!(read("a\u{feff}\n\u{feff}b".as_bytes(), false).unwrap(), own(&["a\u{feff}", "\u{feff}b"]));
        assert_eq!(whole("\u{feff}a\r\nb\rc\n".into()), "a\nb\rc\n");
    }

    #[test]
    fn what_is_no_text_or_no_object_has_its_line() {
        let refused = read(b"a\nb\xff\n", false).unwrap_err().to_string();
        assert!(refused.contains("not UTF-8 at byte 3 (line 2); pass --lossy"), "{refused}");
        assert_eq!(read(b"b\xff", true).unwrap()[0].1, "b\u{fffd}");
        for (line, wanted) in [
            ("[1]", "line 2: a list, not an object; write one object per line"),
            ("{", "line 2: not JSON: the line ends within a value; write one object per line"),
            ("{\"a\":}", "line 2: not JSON: expected value at byte 6"),
            ("3", "line 2: 3 is no object"),
        ] {
            let refused = jsonl(&format!("{{}}\n{line}\n"), Path::new("f")).unwrap_err().to_string();
            assert!(refused.contains(wanted), "{refused}");
        }
    }
}

//! What the embedded font can draw.

use ab_glyph::{Font, FontRef};

use crate::error::{Error, Result};

/// The font of PNGs, and of what text is measured by.
pub static FONT_BYTES: &[u8] = include_bytes!("font.ttf");

/// A text in which every character that the font has no glyph for is escaped (`の` as `\u{306E}`): drawn, it would be blank.
///
/// # Errors
/// [`Error::Bug`] if the font cannot be read.
pub fn drawable(text: &str) -> Result<String> {
    let font = FontRef::try_from_slice(FONT_BYTES).map_err(|_| Error::Bug("the embedded font is broken".into()))?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match font.glyph_id(c).0 {
            0 => out.push_str(&format!("\\u{{{:X}}}", u32::from(c))),
            _ => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_font_lacks_is_escaped() {
        for (text, drawn) in [
            (" the café, 1–2 …", " the café, 1–2 …"),
            ("日の", "\\u{65E5}\\u{306E}"),
            ("سلام", "\\u{633}\\u{644}\\u{627}\\u{645}"),
            ("a\u{1F600}b", "a\\u{1F600}b"),
            ("\\u{306E}", "\\u{306E}"),
        ] {
            assert_eq!(drawable(text).unwrap(), drawn);
        }
    }
}

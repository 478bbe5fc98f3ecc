//! Choosing parameters by name.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::error::{Error, Result, shorten};
use crate::limits::{self, fits_pattern};

/// The parameters of a model whose names match one of `patterns`.
///
/// `*` is any text and `[0-5]` any number from 0 to 5. A pattern may end where a part of the name ends: `wte` is
/// `wte.weight`, and `h.[0-5]` is all of the first six blocks.
///
/// # Errors
/// [`Error::Request`] for a pattern that matches nothing, patterns that match everything, and more than [`limits::PATTERNS`]
/// characters of them.
pub fn matching(patterns: &[String], config: &Config) -> Result<BTreeSet<String>> {
    limits::patterns(patterns)?;
    let names: Vec<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
    let mut found = BTreeSet::new();
    for pattern in patterns.iter().flat_map(|pattern| pattern.split(',')).map(str::trim) {
        let matches = |name: &&String| {
            let ends = name.match_indices('.').map(|(i, _)| i).chain([name.len()]);
            ends.into_iter().any(|end| fits_pattern(pattern, &name[..end]))
        };
        let matched: Vec<&String> = names.iter().filter(matches).collect();
        if matched.is_empty() {
            return Err(Error::request(format!(
                "`{}` matches no parameter; names are wte.weight, h.{}.attn.c_attn.weight, ln_f.bias …",
                shorten(pattern),
                config.n_layer - 1
            )));
        }
        found.extend(matched.into_iter().cloned());
    }
    if found.len() == names.len() {
        return Err(Error::request("every parameter is frozen; nothing is left to learn"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frozen(patterns: &[&str]) -> Result<usize> {
        let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
        Ok(matching(&patterns, &Config::new(12, 2, 8, 20, 16))?.len())
    }

    #[test]
    fn names_are_chosen_by_pattern() {
        assert_eq!(frozen(&[]).unwrap(), 0);
        assert_eq!(frozen(&["wte"]).unwrap(), 1);
        assert_eq!(frozen(&["h.1"]).unwrap(), 12, "block 1, not 10 and 11");
        assert_eq!(frozen(&["h.[0-5].*,wte"]).unwrap(), 6 * 12 + 1);
        assert_eq!(frozen(&["h.[9-11]"]).unwrap(), 36);
        assert_eq!(frozen(&["*.bias"]).unwrap(), 12 * 6 + 1);
        assert_eq!(frozen(&["*ln_*", "ln_f"]).unwrap(), 12 * 4 + 2);
        for bad in ["h.12", "attn", "h.[x]", ""] {
            assert!(frozen(&[bad]).unwrap_err().to_string().contains("matches no parameter"), "{bad}");
        }
        // Tried in every way in which stars can be read, this would never end.
        assert!(frozen(&["*".repeat(30).as_str(), "wte"]).unwrap_err().to_string().contains("nothing is left"));
        assert!(frozen(&[("*a".repeat(30) + "!").as_str()]).unwrap_err().to_string().contains("matches no parameter"));
        assert!(frozen(&["*a".repeat(6000).as_str()]).unwrap_err().to_string().contains("at most 10000"));
        assert!(frozen(&["*"]).unwrap_err().to_string().contains("nothing is left"));
    }
}

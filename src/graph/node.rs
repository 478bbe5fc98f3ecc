//! What writes to the residual stream, and what reads from it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, shorten};
use crate::reads::Reads;

/// What writes to the residual stream. The output bias of an attention belongs to no head, and to no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The embeddings of tokens and positions.
    Input,
    /// An attention head: z · W_O.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number there.
        head: usize,
    },
    /// The MLP of a layer, its bias included.
    Mlp(usize),
}

/// What reads from the residual stream: a copy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Receiver {
    /// Queries, keys or values of an attention head.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number there.
        head: usize,
        /// Which of the three.
        reads: Reads,
    },
    /// The MLP of a layer.
    Mlp(usize),
    /// The last LayerNorm and the unembedding.
    Logits,
}

impl Source {
    /// The layer that writes it.
    pub fn layer(self) -> Option<usize> {
        match self {
            Source::Input => None,
            Source::Head { layer, .. } | Source::Mlp(layer) => Some(layer),
        }
    }
}

impl Receiver {
    /// The layer that reads it.
    pub fn layer(self) -> Option<usize> {
        match self {
            Receiver::Logits => None,
            Receiver::Head { layer, .. } | Receiver::Mlp(layer) => Some(layer),
        }
    }

    /// The node that writes what is made of it; none for the logits.
    pub fn source(self) -> Option<Source> {
        match self {
            Receiver::Head { layer, head, .. } => Some(Source::Head { layer, head }),
            Receiver::Mlp(layer) => Some(Source::Mlp(layer)),
            Receiver::Logits => None,
        }
    }
}

/// `input`, `a5.h1`, `m3`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Input => f.write_str("input"),
            Source::Head { layer, head } => write!(f, "a{layer}.h{head}"),
            Source::Mlp(layer) => write!(f, "m{layer}"),
        }
    }
}

/// `a5.h1<q>`, `m3`, `logits`.
impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Receiver::Head { layer, head, reads } => write!(f, "a{layer}.h{head}<{}>", reads.name()),
            Receiver::Mlp(layer) => write!(f, "m{layer}"),
            Receiver::Logits => f.write_str("logits"),
        }
    }
}

/// Reads what it prints, and `5.1` for a head.
impl FromStr for Source {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        if name == "input" {
            return Ok(Source::Input);
        }
        if let Some(layer) = name.strip_prefix('m').and_then(|layer| layer.parse().ok()) {
            return Ok(Source::Mlp(layer));
        }
        head(name)
            .map(|(layer, head)| Source::Head { layer, head })
            .ok_or_else(|| Error::request(format!("`{}` is no node; nodes are input, a5.h1 or 5.1, m3", shorten(name))))
    }
}

impl FromStr for Receiver {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = || {
            Error::request(format!(
                "`{}` reads nothing; what reads is a5.h1<q> or 5.1.q (or k, v), m3, logits",
                shorten(name)
            ))
        };
        if name == "logits" {
            return Ok(Receiver::Logits);
        }
        if let Some(layer) = name.strip_prefix('m').and_then(|layer| layer.parse().ok()) {
            return Ok(Receiver::Mlp(layer));
        }
        let (at, reads) = match name.strip_suffix('>') {
            Some(rest) => rest.split_once('<'),
            None => name.rsplit_once('.'),
        }
        .ok_or_else(wrong)?;
        let reads = Reads::ALL.into_iter().find(|known| known.name() == reads).ok_or_else(wrong)?;
        head(at).map(|(layer, head)| Receiver::Head { layer, head, reads }).ok_or_else(wrong)
    }
}

/// `a5.h1` or `5.1`.
fn head(name: &str) -> Option<(usize, usize)> {
    let (layer, head) = match name.strip_prefix('a') {
        Some(rest) => rest.split_once(".h")?,
        None => name.split_once('.')?,
    };
    let number = |text: &str| text.chars().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((number(layer)?, number(head)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_print_and_parse() {
        for name in ["input", "a5.h11", "m3"] {
            assert_eq!(name.parse::<Source>().unwrap().to_string(), name);
        }
        for name in ["a5.h11<k>", "m0", "logits"] {
            assert_eq!(name.parse::<Receiver>().unwrap().to_string(), name);
        }
        assert_eq!("5.1".parse::<Source>().unwrap().to_string(), "a5.h1");
        assert_eq!("5.1.v".parse::<Receiver>().unwrap().to_string(), "a5.h1<v>");
        for name in ["", "logits", "a5", "a5.1", "h1", "5.x", "m", "m-1", "5.+1"] {
            assert!(name.parse::<Source>().is_err(), "{name}");
        }
        for name in ["", "input", "a5.h1", "a5.h1<z>", "5.1", "5.1.o", "a5.h1<q"] {
            assert!(name.parse::<Receiver>().is_err(), "{name}");
        }
    }
}

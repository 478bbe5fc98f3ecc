//! How an intermediate residual stream is read out.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How an intermediate residual stream passes the final LayerNorm. Both are in use, and they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerNormConvention {
    /// Divided by its own standard deviation: the logit lens.
    #[default]
    Recompute,
    /// Divided by the standard deviation of the final residual stream: direct logit attribution, accumulated.
    FinalScale,
}

impl FromStr for LayerNormConvention {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "recompute" => Ok(Self::Recompute),
            "final-scale" => Ok(Self::FinalScale),
            other => Err(Error::no_such("LayerNorm convention", other, ["recompute", "final-scale"])),
        }
    }
}

impl fmt::Display for LayerNormConvention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recompute => "recompute",
            Self::FinalScale => "final-scale",
        })
    }
}

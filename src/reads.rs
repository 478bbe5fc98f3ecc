//! The three things that an attention head reads.

use crate::site::Site;

/// What a head reads from the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reads {
    /// Its queries.
    Q,
    /// Its keys.
    K,
    /// Its values.
    V,
}

impl Reads {
    /// In the order of `c_attn`'s columns.
    pub const ALL: [Reads; 3] = [Reads::Q, Reads::K, Reads::V];

    /// `q`, `k` or `v`.
    pub fn name(self) -> &'static str {
        match self {
            Reads::Q => "q",
            Reads::K => "k",
            Reads::V => "v",
        }
    }

    /// Where the result is.
    pub fn site(self, layer: usize) -> Site {
        match self {
            Reads::Q => Site::Q(layer),
            Reads::K => Site::K(layer),
            Reads::V => Site::V(layer),
        }
    }

    /// Where the stream is that it is computed from.
    pub fn input(self, layer: usize) -> Site {
        match self {
            Reads::Q => Site::QInput(layer),
            Reads::K => Site::KInput(layer),
            Reads::V => Site::VInput(layer),
        }
    }
}

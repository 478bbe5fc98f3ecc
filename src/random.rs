//! Randomness, only ever from a seed: one independent stream per purpose.

pub use rand::Rng;
use rand::SeedableRng;
pub use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A generator whose numbers are fixed by a seed, a purpose and an index.
pub type Stream = ChaCha8Rng;

/// The stream of `seed` for a named purpose; `index` tells steps or items of that purpose apart.
pub fn stream(seed: u64, purpose: &str, index: u64) -> Stream {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    // FNV-1a, 64 bits: purposes are a handful of words in this crate.
    let hash = purpose
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    key[16..24].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A sample of the standard normal distribution (Box–Muller).
pub fn normal(rng: &mut Stream) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

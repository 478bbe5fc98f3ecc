//! How many bits labels are worth, given the activations: online coding.

use super::fitted::Fitting;
use crate::error::Result;
use crate::labelled::{Labelled, Labels};
use crate::random::{SliceRandom, stream};

/// Shares of the rows after which the probe is fitted anew (Voita & Titov 2020, arXiv:2003.12298, §3.2).
const SHARES: [f64; 11] = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0];

/// A description length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// Bits to send all labels.
    pub bits: f64,
    /// How many times shorter that is than sending them without the activations, every class equally likely.
    pub compression: f64,
}

/// The online code of class labels: the first rows are sent as they are, and each following block by the probabilities of a
/// probe that was fitted on those before it. Groups come one after the other, in an order that `seed` draws. None for numbers.
///
/// # Errors
/// As fitting.
pub fn online(
    x: ndarray::ArrayView2<'_, f32>,
    rows: &Labelled,
    fitting: &Fitting,
    seed: u64,
) -> Result<Option<Length>> {
    let Labels::Classes { names, of } = &rows.labels else { return Ok(None) };
    let mut groups: Vec<u32> = rows.groups.clone();
    groups.sort_unstable();
    groups.dedup();
    groups.shuffle(&mut stream(seed, "order of the online code", 0));
    let mut place = vec![0; groups.iter().max().map_or(0, |group| *group as usize + 1)];
    groups.iter().enumerate().for_each(|(i, group)| place[*group as usize] = i);
    let mut order: Vec<usize> = (0..of.len()).collect();
    order.shuffle(&mut stream(seed, "order of the online code", 1));
    order.sort_by_key(|row| place[rows.groups[*row] as usize]);

    let (n, classes) = (of.len(), names.len() as f64);
    let mut ends: Vec<usize> = SHARES.iter().map(|share| ((share * n as f64).round() as usize).clamp(1, n)).collect();
    ends.dedup();
    let mut bits = ends[0] as f64 * classes.log2();
    for block in ends.windows(2) {
        let (seen, next) = (&order[..block[0]], &order[block[0]..block[1]]);
        let probabilities = fitting.fit(x, &rows.labels, seen)?.probabilities(x, next)?;
        // A class that was not seen yet has a probability too.
        let known = seen.len() as f64 / (seen.len() as f64 + classes);
        for (row, p) in next.iter().zip(probabilities.outer_iter()) {
            bits -= (known * p[of[*row]] + (1.0 - known) / classes).log2();
        }
    }
    let plain = n as f64 * classes.log2();
    Ok(Some(Length { bits, compression: if bits > 0.0 { plain / bits } else { f64::INFINITY } }))
}

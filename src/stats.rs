//! How sure a mean is: over prompts, without assuming how they are distributed.

use crate::random::{Rng, stream};

/// A mean, or another statistic, with the bounds that 95 % of its resampled values lie within.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// 2.5 % of the resampled values are below the first, 2.5 % above the second; none where there is nothing to resample: a single
    /// value says nothing about how sure it is.
    pub bounds: Option<(f64, f64)>,
}

impl Interval {
    /// A value without bounds.
    pub fn bare(mean: f64) -> Self {
        Self { mean, bounds: None }
    }

    /// The lower bound.
    pub fn low(&self) -> Option<f64> {
        self.bounds.map(|(low, _)| low)
    }

    /// The upper bound.
    pub fn high(&self) -> Option<f64> {
        self.bounds.map(|(_, high)| high)
    }
}

/// Resamples of the bootstrap, and sign patterns of the permutation test where not all are tried.
const DRAWS: u64 = 2000;

/// Percentile bootstrap of the mean (Efron 1979); a single value has no bounds. NaN for none.
pub fn bootstrap(values: &[f64], seed: u64) -> Interval {
    bootstrap_of(values, seed, |sample| sample.iter().sum::<f64>() / sample.len() as f64)
}

/// Percentile bootstrap of any statistic, which stands in `mean`; a single value has no bounds.
pub fn bootstrap_of<T: Copy>(values: &[T], seed: u64, statistic: impl Fn(&[T]) -> f64) -> Interval {
    let n = values.len();
    let mean = statistic(values);
    if n < 2 {
        return Interval::bare(mean);
    }
    let mut sample = values.to_vec();
    let mut found: Vec<f64> = (0..DRAWS)
        .map(|draw| {
            let mut rng = stream(seed, "bootstrap", draw);
            sample.iter_mut().for_each(|value| *value = values[rng.random_range(0..n)]);
            statistic(&sample)
        })
        .collect();
    found.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| found[((DRAWS - 1) as f64 * share).round() as usize];
    Interval { mean, bounds: Some((at(0.025), at(0.975))) }
}

/// A share of `n`, with Wilson's bounds of 95 % (1927): unlike the bootstrap's they have a width where all or none are hits.
pub fn wilson(hits: usize, n: usize) -> Interval {
    let (n, mean) = (n as f64, hits as f64 / n as f64);
    let z2 = 1.959_963_984_540_054_f64.powi(2);
    let middle = (mean + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = (z2 * (mean * (1.0 - mean) / n + z2 / (4.0 * n * n))).sqrt() / (1.0 + z2 / n);
    Interval { mean, bounds: Some(((middle - half).max(0.0), (middle + half).min(1.0))) }
}

/// The value in the middle; NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    match n % 2 {
        _ if n == 0 => f64::NAN,
        0 => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        _ => sorted[n / 2],
    }
}

/// The bounds that 95 % of the values themselves lie within; NaN for none.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| sorted.get((sorted.len().saturating_sub(1) as f64 * share).round() as usize);
    (at(0.025).copied().unwrap_or(f64::NAN), at(0.975).copied().unwrap_or(f64::NAN))
}

/// The probability of a mean as far from 0 as this one, if every value could as well have had the other sign (paired
/// permutation test, two-sided): all sign patterns of up to eleven values, random ones of more.
pub fn sign_flip(values: &[f64], seed: u64) -> f64 {
    let sum = values.iter().sum::<f64>().abs();
    let as_far = |flipped: f64| flipped.abs() >= sum - 1e-12 * sum;
    if values.len() <= 11 {
        let patterns = 1_u64 << values.len();
        let flip = |pattern: u64| -> f64 {
            values.iter().enumerate().map(|(i, x)| if pattern >> i & 1 == 1 { -x } else { *x }).sum()
        };
        return (0..patterns).filter(|&pattern| as_far(flip(pattern))).count() as f64 / patterns as f64;
    }
    let flip = |draw: u64| -> f64 {
        let mut rng = stream(seed, "sign flip", draw);
        values.iter().map(|x| if rng.random_bool(0.5) { -x } else { *x }).sum()
    };
    // The pattern that was observed is one of them (Phipson & Smyth 2010).
    (1 + (0..DRAWS).filter(|&draw| as_far(flip(draw))).count()) as f64 / (DRAWS + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_mean_and_narrows_with_more_values() {
        let values = |n: u64| (0..n).map(|i| ((i * 37) % 11) as f64).collect::<Vec<_>>();
        let (few, many) = (bootstrap(&values(11), 1), bootstrap(&values(1100), 1));
        let ((low, high), (_, many_high)) = (few.bounds.unwrap(), many.bounds.unwrap());
        assert!(low < few.mean && few.mean < high && few.mean == many.mean);
        // ±1.96 standard errors: the standard deviation of 0 … 10 is √10.
        let error = (10.0_f64 / 1100.0).sqrt();
        assert!((many_high - many.mean - 1.96 * error).abs() < 0.15 * error, "{many:?}");
        assert_eq!(bootstrap(&[3.0], 0), Interval { mean: 3.0, bounds: None });
        assert_eq!(bootstrap_of(&[2.0], 0, median), Interval::bare(2.0));
    }

    #[test]
    fn bounds_hold_the_truth_as_often_as_they_say() {
        // Questions whose answers are right with a known probability, and margins of a known mean, many times over.
        let (runs, n, share) = (400_u64, 60, 0.9);
        let (mut accuracy, mut margin, mut middle) = (0, 0, 0);
        for run in 0..runs {
            let mut rng = stream(7, "coverage", run);
            let hits = (0..n).filter(|_| rng.random_bool(share)).count();
            let inside = |interval: Interval, truth: f64| {
                interval.bounds.map_or(0, |(low, high)| usize::from(low <= truth && truth <= high))
            };
            accuracy += inside(wilson(hits, n), share);
            let values: Vec<f64> = (0..n).map(|_| crate::random::normal(&mut rng)).collect();
            margin += inside(bootstrap(&values, run), 0.0);
            middle += inside(bootstrap_of(&values, run, median), 0.0);
        }
        // 95 % ± three standard errors of 400 runs.
        for (what, inside) in [("accuracy", accuracy), ("margin", margin), ("median", middle)] {
            let covered = inside as f64 / runs as f64;
            assert!((0.917..=0.983).contains(&covered), "{what}: {covered}");
        }
        let all = wilson(20, 20);
        let (low, high) = all.bounds.unwrap();
        assert!(all.mean == 1.0 && high == 1.0 && (0.80..0.87).contains(&low), "{all:?}");
        assert_eq!(median(&[3.0, 1.0, 2.0, 10.0]), 2.5);
    }

    #[test]
    fn signs_decide_how_surprising_a_mean_is() {
        assert_eq!(sign_flip(&[1.0; 5], 0), 2.0 / 32.0);
        assert_eq!(sign_flip(&[1.0, -1.0], 0), 1.0);
        assert!(sign_flip(&[1.0; 40], 0) < 0.001);
        let even: Vec<f64> = (0..40).map(|i| if i % 2 == 0 { 1.0 } else { -0.9 }).collect();
        assert!(sign_flip(&even, 0) > 0.5);
    }
}

//! Effects: how far an answer went from the value of one run (0) to that of another (1), of one pair and over several.
//!
//! Over several pairs an effect is the ratio of means, which is TransformerLens's definition: the mean of (value − base) divided
//! by the mean of (source − base). The mean of ratios is another number, and one pair whose two runs answer nearly alike decides
//! it.

use crate::metric::Metric;
use crate::stats::{Interval, bootstrap_of, sign_flip};

/// Effects beyond this, up or down, say more about a small denominator than about what was patched.
const FAR: f64 = 10.0;

/// What the answers of one pair are measured by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Where the effect is 0: the metric of the run that is patched.
    pub base: f64,
    /// Where it is 1: the metric of the run that values come from.
    pub source: f64,
    /// What rounding may make of the difference of these two ([`crate::metric::Measures::rounding`]).
    pub rounding: f64,
}

impl Scale {
    /// Of one metric, where `base`, `source` and `rounding` hold all of them in the order of [`Metric::ALL`].
    pub fn of(metric: Metric, base: &[f64], source: &[f64], rounding: &[f64]) -> Self {
        let m = metric as usize;
        Self { base: base[m], source: source[m], rounding: rounding[m] }
    }

    /// The mean of several, and for none no numbers. Rounding does not average out: it may go the same way in all.
    pub fn mean(all: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        Self { base: mean(|one| one.base), source: mean(|one| one.source), rounding: mean(|one| one.rounding) }
    }

    /// From base to source.
    pub fn span(&self) -> f64 {
        self.source - self.base
    }

    /// Whether base and source differ by more than rounding.
    pub fn is_meaningful(&self) -> bool {
        self.span().abs() > self.rounding
    }

    /// How far a value went from base to source; none where these two do not differ by more than rounding.
    pub fn effect(&self, value: f64) -> Option<f64> {
        self.is_meaningful().then(|| (value - self.base) / self.span())
    }
}

/// An effect over pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effect {
    /// The ratio of means, with its percentile bootstrap over pairs: numerator and denominator of a pair are drawn together.
    pub interval: Interval,
    /// How likely a ratio as far from 0 is if patching does nothing that has a direction.
    ///
    /// The null hypothesis: given what tells its two runs apart, (source − base), the change of a pair by patching, (value − base),
    /// is as likely to have the other sign. Under it every pattern of signs s of the pairs is equally likely, and p is the share of
    /// patterns with |Σ s·(value − base) / Σ (source − base)| at least as large as observed (paired permutation test, two-sided;
    /// Fisher 1935, *The Design of Experiments*, §21; Pitman 1937). The denominators belong to the unpatched runs and stay, so that
    /// the test of the ratio is that of its numerator. All patterns of up to eleven pairs are tried, random ones of more, with the
    /// observed one among them (Phipson & Smyth 2010).
    pub p: f64,
}

/// The effect of one intervention on several pairs; none where base and source do not differ by more than rounding in the mean.
pub fn over_pairs(scales: &[Scale], values: &[f64], seed: u64) -> Option<Effect> {
    let interval = ratio_of_means(scales, values, seed)?;
    let changes: Vec<f64> = scales.iter().zip(values).map(|(scale, value)| value - scale.base).collect();
    Some(Effect { interval, p: sign_flip(&changes, seed) })
}

/// The same without its p-value.
pub fn ratio_of_means(scales: &[Scale], values: &[f64], seed: u64) -> Option<Interval> {
    if !Scale::mean(scales).is_meaningful() {
        return None;
    }
    let pairs: Vec<(f64, f64)> =
        scales.iter().zip(values).map(|(scale, value)| (value - scale.base, scale.span())).collect();
    let ratio = |pairs: &[(f64, f64)]| {
        let (change, span) = pairs.iter().fold((0.0, 0.0), |(change, span), pair| (change + pair.0, span + pair.1));
        change / span
    };
    Some(bootstrap_of(&pairs, seed, ratio))
}

/// Why effects should not be read as shares of the behaviour, if they should not; then raw changes are what can be shown.
///
/// `effects` are those of some interventions, over all pairs.
pub fn why_meaningless(scales: &[Scale], effects: impl IntoIterator<Item = Option<f64>>) -> Option<String> {
    let mean = Scale::mean(scales);
    let Scale { base, source, rounding } = mean;
    let alike = format!("both runs answer alike, {base:.4} and {source:.4}, which differ by {:.1e}", mean.span().abs());
    if !mean.is_meaningful() {
        return Some(format!("{alike}, within the {rounding:.1e} of rounding"));
    }
    let far = effects.into_iter().flatten().map(f64::abs).fold(0.0, f64::max);
    (far > FAR).then(|| format!("{alike}, while a change is up to {far:.0} times as large"))
}

/// How likely it is by chance that the two runs of these pairs differ by as much in the mean (sign flips): where this is not small the
/// denominator of every effect could as well have the other sign.
pub fn chance_of_span(scales: &[Scale], seed: u64) -> f64 {
    sign_flip(&scales.iter().map(Scale::span).collect::<Vec<_>>(), seed)
}

/// Whether effects, as a frame has them, can be read as shares of the behaviour: there are some, and none is out of all proportion.
pub fn are_shares(effects: impl IntoIterator<Item = f64>) -> bool {
    let mut known = effects.into_iter().filter(|effect| effect.is_finite()).peekable();
    known.peek().is_some() && known.all(|effect| effect.abs() <= FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(base: f64, source: f64) -> Scale {
        Scale { base, source, rounding: 1e-3 }
    }

    #[test]
    fn one_pair_with_a_small_denominator_does_not_decide() {
        // Changes that cancel out; the first pair's runs answer nearly alike.
        let scales = [scale(0.0, 0.002), scale(0.0, 1.0), scale(0.5, 2.5), scale(-1.0, 1.0)];
        let values = [0.2, -0.1, 0.4, -1.0];
        let effect = over_pairs(&scales, &values, 3).unwrap();
        let by_hand = (0.2 - 0.1 - 0.1 + 0.0) / (0.002 + 1.0 + 2.0 + 2.0);
        assert!((effect.interval.mean - by_hand).abs() < 1e-15, "{effect:?}");
        let (low, high) = effect.interval.bounds.unwrap();
        assert!(low < by_hand && by_hand < high);
        // The mean of ratios would be 24.96.
        let ratios: Vec<f64> = scales.iter().zip(values).filter_map(|(scale, value)| scale.effect(value)).collect();
        assert!((ratios.iter().sum::<f64>() / 4.0 - 24.96).abs() < 0.1, "{ratios:?}");
        assert_eq!(effect.p, 1.0);
        assert_eq!(chance_of_span(&scales, 0), 0.125);
    }

    #[test]
    fn the_p_value_is_of_the_ratio() {
        let scales = [scale(0.0, 1.0), scale(0.1, -0.4), scale(0.5, 2.5), scale(-1.0, 1.0), scale(0.0, 0.3)];
        let values = [0.2, 0.15, 0.4, -0.7, 0.25];
        let span: f64 = scales.iter().map(Scale::span).sum();
        let ratio = |signs: u32| {
            let change = |(i, (scale, value)): (usize, (&Scale, f64))| {
                if signs >> i & 1 == 1 { scale.base - value } else { value - scale.base }
            };
            scales.iter().zip(values).enumerate().map(change).sum::<f64>() / span
        };
        let as_far = (0..32).filter(|&signs| ratio(signs).abs() >= ratio(0).abs() - 1e-12).count();
        assert_eq!(over_pairs(&scales, &values, 0).unwrap().p, as_far as f64 / 32.0);
    }

    #[test]
    fn what_is_within_rounding_has_no_effect() {
        let alike = scale(3.0, 3.0009);
        assert_eq!((alike.effect(5.0), scale(3.0, 3.0011).effect(3.0)), (None, Some(0.0)));
        assert_eq!(scale(f64::NAN, 1.0).effect(1.0), None);
        assert!(over_pairs(&[alike, alike], &[5.0, 5.0], 0).is_none());
        assert_eq!(over_pairs(&[scale(0.0, 1.0)], &[0.5], 0).unwrap().interval, Interval::bare(0.5));
        let why = why_meaningless(&[alike], []).unwrap();
        assert!(why.contains("3.0000 and 3.0009") && why.contains("within the 1.0e-3 of rounding"), "{why}");
        let why = why_meaningless(&[scale(0.0, 0.01)], [Some(149.8), None]).unwrap();
        assert!(why.contains("differ by 1.0e-2, while a change is up to 150 times as large"), "{why}");
        assert_eq!(why_meaningless(&[scale(0.0, 1.0)], [Some(1.2), Some(-0.3)]), None);
    }
}

//! Numbers that say how a model answers: from the logits after the last token of a prompt.

use candle_core::DType;

use crate::error::{Error, Result};
use crate::target::Target;

/// What is measured of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Logit of the answer minus logit of the wrong answer.
    LogitDiff,
    /// Probability of the answer.
    Prob,
    /// Probability of the answer minus that of the wrong answer.
    ProbDiff,
    /// Logarithm of that, in nats.
    Logprob,
    /// How many tokens are likelier than the answer.
    Rank,
    /// Kullback–Leibler divergence from the clean run's distribution to this one's, in nats.
    Kl,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 6] =
        [Metric::LogitDiff, Metric::Prob, Metric::ProbDiff, Metric::Logprob, Metric::Rank, Metric::Kl];

    /// `logit_diff`, `prob`, `prob_diff`, `logprob`, `rank` or `kl`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::LogitDiff => "logit_diff",
            Metric::Prob => "prob",
            Metric::ProbDiff => "prob_diff",
            Metric::Logprob => "logprob",
            Metric::Rank => "rank",
            Metric::Kl => "kl",
        }
    }

    /// Whether it is lower for a better answer.
    pub fn falls_with_skill(self) -> bool {
        matches!(self, Metric::Rank | Metric::Kl)
    }

    /// The metric of a name.
    ///
    /// # Errors
    /// [`Error::Request`] with all names.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|metric| metric.name() == name);
        found.ok_or_else(|| Error::no_such("metric", name, Self::ALL.map(Metric::name)))
    }

    /// Its value for a row of logits; `clean` are those of the clean run. NaN where the target lacks the answers that the
    /// metric needs.
    pub fn of(self, logits: &[f32], clean: &[f32], target: &Target) -> f64 {
        let (answer, wrong) = (target.answers(), target.wrong());
        let logit = |&id: &u32| f64::from(logits[id as usize]);
        let mean = |ids: &[u32]| ids.iter().map(logit).sum::<f64>() / ids.len() as f64;
        let prob = |ids: &[u32]| {
            let total = log_total(logits);
            if ids.is_empty() { f64::NAN } else { ids.iter().map(|id| (logit(id) - total).exp()).sum() }
        };
        match self {
            Metric::LogitDiff => mean(answer) - mean(wrong),
            Metric::Prob => prob(answer),
            Metric::ProbDiff => prob(answer) - prob(wrong),
            Metric::Logprob => prob(answer).ln(),
            Metric::Rank => {
                let best = answer.iter().map(logit).fold(f64::NAN, f64::max);
                if best.is_nan() { best } else { logits.iter().filter(|&&x| f64::from(x) > best).count() as f64 }
            }
            Metric::Kl => {
                let (ours, theirs) = (log_total(logits), log_total(clean));
                let term = |(&q, &p): (&f32, &f32)| {
                    let (q, p) = (f64::from(q) - ours, f64::from(p) - theirs);
                    p.exp() * (p - q)
                };
                logits.iter().zip(clean).map(term).sum::<f64>().max(0.0)
            }
        }
    }
}

impl Metric {
    /// Its derivatives by the logits; `clean` are those of the clean run.
    ///
    /// # Errors
    /// [`Error::Request`] for the rank, which has none, and for a target that lacks the answers that the metric needs.
    pub fn gradient(self, logits: &[f32], clean: &[f32], target: &Target) -> Result<Vec<f64>> {
        let (answer, wrong) = (target.answers(), target.wrong());
        let needs_wrong = matches!(self, Metric::LogitDiff | Metric::ProbDiff);
        if (self != Metric::Kl && answer.is_empty()) || (needs_wrong && wrong.is_empty()) {
            return Err(Error::request(format!("{} needs an answer and what it is compared with", self.name())));
        }
        let total = log_total(logits);
        let p = |i: usize| (f64::from(logits[i]) - total).exp();
        let mut gradient = vec![0.0; logits.len()];
        // d Σ p(id) / d logit = p·(1 if it is one of them) − p·Σ p(id), times a factor.
        let mut add_prob = |ids: &[u32], factor: f64| {
            let all: f64 = ids.iter().map(|&id| p(id as usize)).sum();
            gradient.iter_mut().enumerate().for_each(|(i, g)| *g -= factor * p(i) * all);
            ids.iter().for_each(|&id| gradient[id as usize] += factor * p(id as usize));
        };
        match self {
            Metric::LogitDiff => {
                answer.iter().for_each(|&id| gradient[id as usize] += 1.0 / answer.len() as f64);
                wrong.iter().for_each(|&id| gradient[id as usize] -= 1.0 / wrong.len() as f64);
            }
            Metric::Prob => add_prob(answer, 1.0),
            Metric::ProbDiff => {
                add_prob(answer, 1.0);
                add_prob(wrong, -1.0);
            }
            Metric::Logprob => add_prob(answer, 1.0 / Metric::Prob.of(logits, clean, target)),
            Metric::Rank => return Err(Error::request("the rank has no gradient; take logit_diff, prob or logprob")),
            Metric::Kl => {
                let theirs = log_total(clean);
                let q = |i: usize| (f64::from(clean[i]) - theirs).exp();
                gradient.iter_mut().enumerate().for_each(|(i, g)| *g = p(i) - q(i));
            }
        }
        Ok(gradient)
    }
}

/// All metrics of many runs that are compared with one clean run, whose probabilities are computed once.
#[derive(Clone, Debug)]
pub struct Measures {
    clean: Vec<f64>,
    /// Σ p·log p of the clean run.
    certainty: f64,
    /// Standard deviation of its logits.
    spread: f64,
}

impl Measures {
    /// Of runs that are compared with a clean run that ended in these logits.
    pub fn new(clean: &[f32]) -> Self {
        let total = log_total(clean);
        let logs = clean.iter().map(|&x| f64::from(x) - total);
        let certainty = logs.clone().map(|log| log.exp() * log).sum();
        let n = clean.len() as f64;
        let mean = clean.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let spread = (clean.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        Self { clean: logs.map(f64::exp).collect(), certainty, spread }
    }

    /// By how much rounding alone may move the difference of each metric between two runs, in the order of [`Metric::ALL`].
    ///
    /// Every logit of either run may be off by a share of the standard deviation of the clean run's logits: 1e-4 in f32, which is
    /// how far this project agrees with others, and four units in the last place in f16 and bf16.
    pub fn rounding(&self, target: &Target, dtype: DType) -> Vec<f64> {
        let share = match dtype {
            DType::F16 => 4.0 / 1024.0,
            DType::BF16 => 4.0 / 128.0,
            _ => 1e-4,
        };
        let logit = share * self.spread;
        let prob = |ids: &[u32]| ids.iter().map(|&id| self.clean[id as usize]).sum::<f64>();
        let (right, other) = (prob(target.answers()), prob(target.wrong()));
        // A logit difference has two logits in either run; a probability p moves by p·(1 − p) per logit, at most twice, its logarithm
        // by 1; ranks are whole; a divergence is a square.
        vec![4.0 * logit, 4.0 * logit * right, 4.0 * logit * (right + other), 4.0 * logit, 0.5, 4.0 * logit * logit]
    }

    /// Every metric of a row of logits, in the order of [`Metric::ALL`]; the values of [`Metric::of`], to rounding.
    pub fn of(&self, logits: &[f32], target: &Target) -> Vec<f64> {
        let (answer, wrong) = (target.answers(), target.wrong());
        let total = log_total(logits);
        let logit = |&id: &u32| f64::from(logits[id as usize]);
        let prob = |ids: &[u32]| match ids {
            [] => f64::NAN,
            ids => ids.iter().map(|id| (logit(id) - total).exp()).sum(),
        };
        let (right, other) = (prob(answer), prob(wrong));
        // Σ p·(log p − log q)
        let cross: f64 = self.clean.iter().zip(logits).map(|(p, &q)| p * f64::from(q)).sum();
        let kl = (self.certainty - cross + total).max(0.0);
        let simple = |metric: Metric| metric.of(logits, &[], target);
        vec![simple(Metric::LogitDiff), right, right - other, right.ln(), simple(Metric::Rank), kl]
    }
}

/// log Σ eˣ.
fn log_total(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (logits, clean) = ([1.0_f32, 3.0, 0.0, 2.0, -1.0], [0.0_f32, 1.0, 0.5, 0.0, 2.0]);
        let target = Target::new(vec![1, 3], vec![0, 4]).unwrap();
        for metric in Metric::ALL {
            let Ok(gradient) = metric.gradient(&logits, &clean, &target) else {
                assert_eq!(metric, Metric::Rank);
                continue;
            };
            for i in 0..5 {
                let at = |step: f32| {
                    let mut moved = logits;
                    moved[i] += step;
                    metric.of(&moved, &clean, &target)
                };
                let step = 1.0 / 256.0;
                let difference = (at(step) - at(-step)) / f64::from(2.0 * step);
                assert!((difference - gradient[i]).abs() < 1e-4, "{metric:?} {i}: {} is {difference}", gradient[i]);
            }
        }
    }

    #[test]
    fn metrics_follow_their_definitions() {
        let target = |a: &[u32], w: &[u32]| Target::new(a.to_vec(), w.to_vec()).unwrap();
        let (logits, clean) = ([1.0, 3.0, 0.0, 2.0], [0.0, 1.0, 0.0, 0.0]);
        let of = |metric: Metric| metric.of(&logits, &clean, &target(&[3], &[0]));
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        assert_eq!(of(Metric::LogitDiff), 1.0);
        assert_eq!(of(Metric::Rank), 1.0);
        assert!((of(Metric::Prob) - 2.0_f64.exp() / total).abs() < 1e-12);
        assert!((of(Metric::Logprob) - (2.0 - total.ln())).abs() < 1e-12);
        let clean_total = 3.0 + 1.0_f64.exp();
        let kl: f64 = (0..4)
            .map(|i| {
                let p = f64::from(clean[i]).exp() / clean_total;
                p * (p / (f64::from(logits[i]).exp() / total)).ln()
            })
            .sum();
        assert!((of(Metric::Kl) - kl).abs() < 1e-12);
        assert!((of(Metric::ProbDiff) - (2.0_f64.exp() - 1.0_f64.exp()) / total).abs() < 1e-12);
        // Sets: means of logits, sums of probabilities, the best rank.
        let of = |metric: Metric| metric.of(&logits, &clean, &target(&[1, 3], &[0, 2]));
        assert_eq!((of(Metric::LogitDiff), of(Metric::Rank)), (2.0, 0.0));
        assert!((of(Metric::Prob) - (3.0_f64.exp() + 2.0_f64.exp()) / total).abs() < 1e-12);
        assert!(Metric::Prob.of(&logits, &clean, &Target::none()).is_nan());
        let all = Measures::new(&clean).of(&logits, &target(&[1, 3], &[0, 2]));
        assert!(Metric::ALL.into_iter().zip(all).all(|(metric, found)| (found - of(metric)).abs() < 1e-12));
        assert_eq!(Metric::Kl.of(&clean, &clean, &target(&[0], &[1])), 0.0);
        // Logits of 0, 1, 0, 0 have a standard deviation of √3 / 4.
        let rounding = Measures::new(&clean).rounding(&target(&[1], &[0]), DType::F32);
        assert!((rounding[0] - 1e-4 * 3.0_f64.sqrt()).abs() < 1e-15 && rounding[4] == 0.5, "{rounding:?}");
        let coarse = Measures::new(&clean).rounding(&target(&[1], &[0]), DType::BF16);
        assert!((coarse[0] / rounding[0] - 312.5).abs() < 1e-9);
    }
}

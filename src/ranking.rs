//! The likeliest tokens of a row of logits, as columns of a frame.

use polars::prelude::*;

use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// A predicted token: id, logit, log-probability.
pub type Candidate = (u32, f32, f32);

/// The `k` largest logits, largest first, ties by id.
pub fn best(logits: &[f32], k: usize) -> Vec<Candidate> {
    let log_total = log_sum_exp(logits);
    let k = k.min(logits.len());
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k > 0 && k < ids.len() {
        ids.select_nth_unstable_by(k - 1, by_logit);
    }
    ids.truncate(k);
    ids.sort_unstable_by(by_logit);
    ids.into_iter().map(|id| (id, logits[id as usize], logits[id as usize] - log_total)).collect()
}

/// The log-probability of one token.
pub fn logprob(logits: &[f32], id: u32) -> f32 {
    logits[id as usize] - log_sum_exp(logits)
}

/// Entropy of the softmax of a row of logits, in nats.
pub fn entropy(logits: &[f32]) -> f32 {
    let log_total = log_sum_exp(logits);
    let share = |x: f32| {
        let logprob = f64::from(x - log_total);
        if logprob == f64::NEG_INFINITY { 0.0 } else { -logprob.exp() * logprob }
    };
    logits.iter().map(|&x| share(x)).sum::<f64>() as f32
}

/// How many tokens are likelier than this one; ties by id, as in [`best`].
pub fn rank(logits: &[f32], id: u32) -> u32 {
    let own = logits[id as usize];
    let before = |(other, x): (usize, &f32)| x.total_cmp(&own).then((id as usize).cmp(&other)).is_gt();
    logits.iter().enumerate().filter(|(other, x)| before((*other, x))).count() as u32
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    (f64::from(max) + total.ln()) as f32
}

/// Columns of predictions, shared with the lens.
#[derive(Default)]
pub struct Predictions {
    prompt: Vec<u32>,
    pos: Vec<u32>,
    token: Vec<String>,
    rank: Vec<u32>,
    next_id: Vec<u32>,
    next: Vec<String>,
    logit: Vec<f32>,
    logprob: Vec<f32>,
}

impl Predictions {
    /// Adds the candidates at one position.
    pub fn push(&mut self, tokens: &Tokens, prompt: usize, pos: usize, best: &[Candidate], tokenizer: &Tokenizer) {
        for (rank, &(id, logit, logprob)) in best.iter().enumerate() {
            self.prompt.push(prompt as u32);
            self.pos.push(pos as u32);
            self.token.push(tokens.text(prompt, pos).into_owned());
            self.rank.push(rank as u32);
            self.next_id.push(id);
            self.next.push(tokenizer.text(id));
            self.logit.push(logit);
            self.logprob.push(logprob);
        }
    }

    /// Rows so far.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.prompt.len()
    }

    /// `prompt`, `pos`, `token`, `rank`, `next_id`, `next`, `logit`, `logprob`.
    pub fn columns(self) -> Vec<Column> {
        vec![
            Column::new("prompt".into(), self.prompt),
            Column::new("pos".into(), self.pos),
            Column::new("token".into(), self.token),
            Column::new("rank".into(), self.rank),
            Column::new("next_id".into(), self.next_id),
            Column::new("next".into(), self.next),
            Column::new("logit".into(), self.logit),
            Column::new("logprob".into(), self.logprob),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{best, entropy, logprob, rank};

    #[test]
    fn the_best_are_sorted_and_normalised() {
        let logits = [0.0, 2.0, 1.0, 2.0];
        let all = best(&logits, 10);
        assert_eq!(all.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3, 2, 0]);
        assert!((all.iter().map(|c| f64::from(c.2).exp()).sum::<f64>() - 1.0).abs() < 1e-5); // a share of 1, in f32
        assert_eq!(best(&logits, 2), all[..2]);
        assert_eq!(logprob(&logits, 3), all[1].2);
        assert!(best(&logits, 0).is_empty());
    }

    #[test]
    fn ranks_are_places_in_the_order_of_the_best() {
        let logits = [0.5, 2.0, 2.0, -1.0];
        for (place, (id, ..)) in best(&logits, 4).into_iter().enumerate() {
            assert_eq!(rank(&logits, id), place as u32);
        }
    }

    #[test]
    fn entropy_is_that_of_the_softmax() {
        // Nats of order 1, in f32.
        assert!((entropy(&[1.0; 8]) - 8.0_f32.ln()).abs() < 1e-5);
        assert!(entropy(&[0.0, f32::NEG_INFINITY]).abs() < 1e-5);
        let p: f32 = 1.0 / (1.0 + (-1.0_f32).exp());
        assert!((entropy(&[1.0, 0.0]) + p * p.ln() + (1.0 - p) * (1.0 - p).ln()).abs() < 1e-5);
    }
}

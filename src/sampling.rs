//! Choosing the next token.

use candle_core::Tensor;
use candle_transformers::generation::{LogitsProcessor, Sampling as Draw};
use candle_transformers::utils::apply_repeat_penalty;

use crate::error::{Error, Result, said_by_candle};
use crate::random::{Rng, stream};

/// How the next token is drawn from the logits, with the names and the order of Hugging Face's `generate`: repetition
/// penalty, temperature, top-k, top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token, and so does one that leaves no other a chance.
    pub temperature: f64,
    /// Keeps the k likeliest tokens, and those that tie with the last of them.
    pub top_k: Option<usize>,
    /// Keeps the likeliest tokens up to this share of the probability, the one that crosses it included.
    pub top_p: Option<f64>,
    /// Divides the positive and multiplies the negative logits of tokens that the text holds already (Keskar et al.
    /// 2019); 1 changes nothing.
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    /// From the model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, repetition_penalty: 1.0 }
    }
}

impl Sampling {
    /// The likeliest token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Request`] with the first one out of range.
    pub fn check(&self) -> Result<()> {
        let fault =
            |name: &str, value: f64, range: &str| Err(Error::request(format!("{name} is {value}; it must be {range}")));
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return fault("temperature", self.temperature, "a number not below 0");
        }
        if self.top_k == Some(0) {
            return fault("top_k", 0.0, "at least 1");
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => return fault("top_p", p, "above 0 and at most 1"),
            _ => {}
        }
        // It is used in 32 bits, where very small numbers are 0 and very large ones infinite.
        let penalty = self.repetition_penalty as f32;
        if !(penalty > 0.0 && penalty.is_finite()) {
            return fault("repetition_penalty", self.repetition_penalty, "a number above 0 that fits into 32 bits");
        }
        if self.temperature == 0.0 && (self.top_k.is_some() || self.top_p.is_some()) {
            return Err(Error::request("temperature 0 takes the likeliest token; top_k and top_p would do nothing"));
        }
        Ok(())
    }

    /// Sets what falls outside top-k and top-p to 0; the rest need not add up to 1.
    fn keep(&self, probabilities: &mut [f32]) {
        if let Some(k) = self.top_k.filter(|&k| k < probabilities.len()) {
            let mut sorted = probabilities.to_vec();
            let (_, least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            let least = *least;
            probabilities.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
        }
        let Some(share) = self.top_p.filter(|&p| p < 1.0) else { return };
        let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        // n tokens this unlikely do not reach the rest together, so they need not be sorted.
        let floor = (1.0 - share) * total / probabilities.len() as f64;
        let mut order: Vec<usize> = (0..probabilities.len()).filter(|&i| f64::from(probabilities[i]) > floor).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
        let mut before = 0.0;
        let kept = order.iter().enumerate().take_while(|&(rank, &i)| {
            let keep = rank == 0 || before < share * total;
            before += f64::from(probabilities[i]);
            keep
        });
        let kept: Vec<(usize, f32)> = kept.map(|(_, &i)| (i, probabilities[i])).collect();
        probabilities.fill(0.0);
        kept.into_iter().for_each(|(i, p)| probabilities[i] = p);
    }
}

/// Draws the tokens of one text, one after the other.
pub struct Sampler {
    sampling: Sampling,
    processor: LogitsProcessor,
}

impl Sampler {
    /// A sampler with randomness of its own: text `index` of everything that is drawn from `seed`.
    pub fn new(sampling: Sampling, seed: u64, index: u64) -> Self {
        let draw = match sampling.temperature {
            0.0 => Draw::ArgMax,
            _ => Draw::All { temperature: 1.0 }, // see `cooled`
        };
        let seed = stream(seed, "generate", index).random();
        Self { processor: LogitsProcessor::from_sampling(seed, draw), sampling }
    }

    /// The next token after `text`, from logits `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Data`] for logits from which nothing can be drawn.
    pub fn next(&mut self, logits: &Tensor, text: &[u32]) -> Result<u32> {
        // One row: it is here that candle's sampling works on.
        let logits = &logits.to_device(&candle_core::Device::Cpu)?;
        let penalty = self.sampling.repetition_penalty as f32;
        let penalized = if penalty == 1.0 { logits.clone() } else { apply_repeat_penalty(logits, penalty, text)? };
        let cooled = cooled(&penalized, self.sampling.temperature)?;
        let sampling = &self.sampling;
        let drawn = self.processor.sample_f(&cooled, |probabilities| sampling.keep(probabilities));
        drawn.map_err(|e| Error::data("logits", format!("nothing can be drawn from them: {}", said_by_candle(&e))))
    }
}

/// Logits divided by a temperature, the largest moved to 0: however small the temperature is, nothing overflows, and what is far
/// below the largest becomes −∞, which is never drawn. At 0 they are as they were.
fn cooled(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let values = logits.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !largest.is_finite() || values.iter().any(|x| x.is_nan()) {
        let what =
            format!("nothing can be drawn from them: the largest is {largest}; is the repetition penalty too small?");
        return Err(Error::data("logits", what));
    }
    let cooled = |x: f32| match x {
        _ if temperature == 0.0 => x,
        _ if x == largest => 0.0,
        _ => ((f64::from(x) - f64::from(largest)) / temperature) as f32,
    };
    Ok(Tensor::from_vec(values.into_iter().map(cooled).collect(), logits.dims(), logits.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn kept(sampling: &Sampling, probabilities: &[f32]) -> Vec<usize> {
        let mut left = probabilities.to_vec();
        sampling.keep(&mut left);
        (0..left.len()).filter(|&i| left[i] > 0.0).collect()
    }

    #[test]
    fn top_k_keeps_ties_and_top_p_the_token_that_crosses() {
        let k = |k| Sampling { top_k: Some(k), ..Default::default() };
        assert_eq!(kept(&k(1), &[0.1, 0.4, 0.3, 0.2]), [1]);
        assert_eq!(kept(&k(2), &[0.25, 0.25, 0.25, 0.25]), [0, 1, 2, 3]);
        assert_eq!(kept(&k(9), &[0.1, 0.4, 0.3, 0.2]), [0, 1, 2, 3]);
        let p = |p| Sampling { top_p: Some(p), ..Default::default() };
        assert_eq!(kept(&p(0.4), &[0.1, 0.5, 0.25, 0.15]), [1]);
        assert_eq!(kept(&p(0.49), &[0.1, 0.5, 0.25, 0.15]), [1]);
        assert_eq!(kept(&p(0.51), &[0.1, 0.5, 0.25, 0.15]), [1, 2]);
        assert_eq!(kept(&p(1e-9), &[0.1, 0.5, 0.25, 0.15]), [1]);
        // After top-k the share is of what is left: 0.6 of 0.75.
        let both = Sampling { top_k: Some(2), top_p: Some(0.6), ..Default::default() };
        assert_eq!(kept(&both, &[0.1, 0.5, 0.25, 0.15]), [1]);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let bad = [
            Sampling { temperature: f64::NAN, ..Default::default() },
            Sampling { temperature: -1.0, ..Default::default() },
            Sampling { top_k: Some(0), ..Default::default() },
            Sampling { top_p: Some(0.0), ..Default::default() },
            Sampling { top_p: Some(1.1), ..Default::default() },
            Sampling { repetition_penalty: 0.0, ..Default::default() },
            Sampling { top_k: Some(5), ..Sampling::greedy() },
        ];
        assert!(bad.iter().all(|sampling| sampling.check().is_err()));
        assert!(Sampling::greedy().check().is_ok());
    }

    #[test]
    fn a_tiny_temperature_takes_the_likeliest_token_and_a_tiny_penalty_is_refused() {
        let logits = Tensor::new(&[-3.0_f32, 40.0, 39.99, -60.0], &Device::Cpu).unwrap();
        for temperature in [1e-9, 1e-37, 1e-45, 1e-300, 5e-324] {
            for (top_k, top_p) in [(None, None), (Some(3), None), (None, Some(1e-300)), (Some(2), Some(5e-324))] {
                let sampling = Sampling { temperature, top_k, top_p, ..Default::default() };
                sampling.check().unwrap();
                let drawn: Vec<u32> =
                    (0..20).map(|seed| Sampler::new(sampling.clone(), seed, 0).next(&logits, &[0]).unwrap()).collect();
                assert_eq!(drawn, [1; 20], "temperature {temperature}, top-k {top_k:?}, top-p {top_p:?}");
            }
        }
        // The largest logits of a type, and a temperature that they overflow with.
        let large = Tensor::new(&[f32::MAX, -f32::MAX, 0.0], &Device::Cpu).unwrap();
        let half = Sampling { temperature: 0.5, ..Default::default() };
        assert_eq!(Sampler::new(half, 0, 0).next(&large, &[]).unwrap(), 0);
        for repetition_penalty in [1e-50, 1e39, f64::MIN_POSITIVE] {
            let sampling = Sampling { repetition_penalty, ..Default::default() };
            assert!(sampling.check().unwrap_err().to_string().contains("repetition_penalty"), "{repetition_penalty}");
        }
        for temperature in [0.0, 1.0] {
            let tiny = Sampling { repetition_penalty: 1e-38, temperature, ..Default::default() };
            let error = Sampler::new(tiny, 0, 0).next(&logits, &[1]).unwrap_err().to_string();
            assert!(error.contains("repetition penalty too small"), "{error}");
        }
    }

    #[test]
    fn a_seed_is_a_text_and_texts_differ() {
        let logits = Tensor::zeros(50, candle_core::DType::F32, &Device::Cpu).unwrap();
        let draw = |seed, index| -> Vec<u32> {
            let mut sampler = Sampler::new(Sampling::default(), seed, index);
            (0..20).map(|_| sampler.next(&logits, &[]).unwrap()).collect()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
    }
}

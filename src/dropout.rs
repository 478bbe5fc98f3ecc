//! Dropout: where GPT-2 drops values while it learns.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpt2::Masks;
use crate::random::{Rng, Stream};
use crate::site::Site;

/// Drops a share of the values after the embedding, of attention patterns, and of what attention and MLP add to the
/// residual stream, and scales the rest up (Srivastava et al. 2014; nanoGPT's places).
pub struct Dropout {
    share: f64,
    rng: Stream,
}

impl Dropout {
    /// Drops `share` of the values, chosen by `rng`; a share of 0 does nothing at all.
    pub fn new(share: f64, rng: Stream) -> Self {
        Self { share, rng }
    }
}

impl Masks for Dropout {
    fn multiply(&self, site: Site) -> bool {
        self.share > 0.0 && matches!(site, Site::ResidPre(0) | Site::Pattern(_) | Site::AttnOut(_) | Site::MlpOut(_))
    }

    fn mask(&mut self, value: &Tensor) -> Result<Tensor> {
        // 32 random bits per value are enough to tell shares apart by 2⁻³².
        let limit = (self.share * f64::from(u32::MAX)) as u32;
        let kept = (1.0 / (1.0 - self.share)) as f32;
        let mask: Vec<f32> =
            (0..value.elem_count()).map(|_| if self.rng.random::<u32>() < limit { 0.0 } else { kept }).collect();
        Ok(Tensor::from_vec(mask, value.shape(), value.device())?.to_dtype(value.dtype())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;
    use candle_core::{DType, Device};

    #[test]
    fn a_share_is_dropped_and_the_mean_stays() {
        let ones = Tensor::ones((100, 1000), DType::F32, &Device::Cpu).unwrap();
        let mut dropout = Dropout::new(0.3, stream(1, "test", 0));
        let dropped = dropout.mask(&ones).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = dropped.iter().filter(|x| **x == 0.0).count() as f64 / 1e5;
        let mean = dropped.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        assert!((zeros - 0.3).abs() < 0.01 && (mean - 1.0).abs() < 0.02, "{zeros} {mean}");
        assert!(dropout.multiply(Site::ResidPre(0)) && dropout.multiply(Site::MlpOut(3)));
        assert!(!dropout.multiply(Site::ResidPre(1)) && !dropout.multiply(Site::Q(0)));
        assert!(!Dropout::new(0.0, stream(1, "test", 0)).multiply(Site::Pattern(0)));
    }
}

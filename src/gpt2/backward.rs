//! The gradient of GPT-2's loss for its weights, written out: [`super`], read from the bottom up.
//!
//! candle finds the gradients of sites, where they are looked at. For training it would fill zeros for every gradient, add to them and
//! copy; here every gradient is computed once, and what the forward pass left is dropped as soon as it has been used. The forward pass is
//! that of [`Gpt2::run`]: what has to be remembered of it comes by its hooks.

use std::collections::HashMap;

use candle_core::Tensor;

use super::{Attention, Block, Gpt2, LayerNorm, Linear, LogitsAt, Mlp, Pass};
use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::ops::{self, Causal};
use crate::site::Site;
use crate::tokens::Tokens;

/// Rows to learn from.
pub struct Lesson<'a> {
    /// What the model reads.
    pub tokens: &'a Tokens,
    /// The position of each row's first token.
    pub starts: &'a [usize],
    /// What comes next at every position, row by row, padding included; [`ops::IGNORE`] where nothing is to be learned, as on padding.
    pub targets: &'a [u32],
    /// The gradients are those of this times the sum of the losses.
    pub factor: f64,
}

/// What multiplies values on their way through the model: dropout.
pub trait Masks {
    /// Whether the values of a site are multiplied. Only `resid_pre.0`, and `pattern`, `attn_out` and `mlp_out` of every layer can be.
    fn multiply(&self, site: Site) -> bool;

    /// What to multiply by: a tensor of the shape, type and device of `value`.
    ///
    /// # Errors
    /// As candle.
    fn mask(&mut self, value: &Tensor) -> Result<Tensor>;
}

/// No masks.
impl Masks for () {
    fn multiply(&self, _site: Site) -> bool {
        false
    }

    fn mask(&mut self, value: &Tensor) -> Result<Tensor> {
        Ok(value.ones_like()?)
    }
}

impl Gpt2 {
    /// The loss of every target, `[n]` in nats, and the gradients of the weights: each is added to the tensor in its place in `sums`, a model
    /// of the same shape whose tensors are f32 (f64 for f64), or empty where no gradient is wanted.
    ///
    /// The gradients of logits are as small as `factor` times a probability, which is nothing in f16; bf16 holds them.
    ///
    /// # Errors
    /// A lesson or sums that do not fit the model, and whatever `masks` return.
    pub fn learn<M: Masks>(&self, lesson: &Lesson<'_>, masks: &mut M, sums: &Gpt2) -> Result<Tensor> {
        let &Lesson { tokens, starts, targets, factor } = lesson;
        let layers = self.h.len();
        if sums.h.len() != layers {
            return Err(Error::request(format!(
                "gradients of {layers} layers need as many sums, not {}",
                sums.h.len()
            )));
        }
        let embeds = wanted(&sums.wte).is_some() || wanted(&sums.wpe).is_some();
        // Below the lowest layer that learns, nobody asks for gradients.
        let learns = |layer: &usize| sums.h[*layer].tensors().iter().any(|(_, sum)| wanted(sum).is_some());
        let lowest = if embeds { 0 } else { (0..layers).find(learns).unwrap_or(layers) };
        let patterns = !ops::attention_hides_maps(self.dtype(), self.device(), tokens.longest(), self.config.head_dim);
        let mut tape = Tape { kept: HashMap::new(), masked: HashMap::new(), masks, lowest, patterns };
        let resid = self.run(Pass::new(tokens).starts(starts).logits(LogitsAt::None), &mut tape)?.resid;
        let (losses, mut grad) = self.learn_unembedding(&resid, targets, factor, sums)?;
        drop(resid);
        for layer in (lowest..layers).rev() {
            grad = self.h[layer].backward(&grad, layer, &mut tape, &sums.h[layer])?; // [B, P, dim]
        }
        if embeds {
            let grad = tape.through(Site::ResidPre(0), &grad)?;
            for (sum, ids) in [(&sums.wte, tokens.padded()), (&sums.wpe, super::positions(tokens, Some(starts), None))]
            {
                if let Some(sum) = wanted(sum) {
                    ops::add_rows(sum, &grad, &ids)?;
                }
            }
        }
        Ok(losses)
    }

    /// The losses, and the gradient of the final residual stream.
    fn learn_unembedding(&self, resid: &Tensor, targets: &[u32], factor: f64, sums: &Gpt2) -> Result<(Tensor, Tensor)> {
        let normal = self.ln_f.of(resid, None)?.flatten_to(1)?; // [n, dim]
        let sum = wanted(&sums.lm_head);
        let (losses, grad) = ops::next_token_gradient(&normal, &self.lm_head, targets, factor, sum)?;
        Ok((losses, self.ln_f.backward(resid, &grad.reshape(resid.shape())?, &sums.ln_f)?))
    }
}

/// The sum that a gradient is added to, if it is wanted.
fn wanted(sum: &Tensor) -> Option<&Tensor> {
    (sum.elem_count() > 0).then_some(sum)
}

/// What the forward pass leaves for the backward pass.
struct Tape<'a, M> {
    kept: HashMap<Site, Tensor>,
    /// What values were multiplied by.
    masked: HashMap<Site, Tensor>,
    masks: &'a mut M,
    /// The first layer that the backward pass comes to.
    lowest: usize,
    /// Whether patterns are in memory where nobody looks at them.
    patterns: bool,
}

impl<M: Masks> Tape<'_, M> {
    fn multiplies(&self, site: Site) -> bool {
        matches!(site, Site::ResidPre(0) | Site::Pattern(_) | Site::AttnOut(_) | Site::MlpOut(_))
            && self.masks.multiply(site)
    }

    fn comes_to(&self, site: Site) -> bool {
        site.layer().is_some_and(|layer| layer >= self.lowest)
    }

    fn keeps(&self, site: Site) -> bool {
        self.comes_to(site)
            && match site {
                Site::Pattern(_) => self.patterns || self.multiplies(site),
                Site::ResidPre(_) | Site::Q(_) | Site::K(_) | Site::V(_) | Site::Z(_) => true,
                Site::ResidMid(_) | Site::MlpPre(_) | Site::MlpPost(_) => true,
                _ => false,
            }
    }

    fn take(&mut self, site: Site) -> Result<Tensor> {
        self.kept.remove(&site).ok_or_else(|| Error::Bug(format!("the forward pass left no {site}")))
    }

    /// The gradient before a site's values were multiplied, for that behind.
    fn through(&mut self, site: Site, grad: &Tensor) -> Result<Tensor> {
        match self.masked.remove(&site) {
            Some(mask) => Ok((grad * mask)?),
            None => Ok(grad.clone()),
        }
    }
}

impl<M: Masks> Hooks for Tape<'_, M> {
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        let mut masked = value.clone();
        if self.multiplies(site) {
            let mask = self.masks.mask(&value)?;
            masked = (&value * &mask)?;
            if self.comes_to(site) {
                self.masked.insert(site, mask);
            }
        }
        if self.keeps(site) {
            // Of a pattern the softmax's gradient needs what it was before.
            self.kept.insert(site, if matches!(site, Site::Pattern(_)) { value } else { masked.clone() });
        }
        Ok(masked)
    }

    fn wants(&self, site: Site) -> bool {
        self.keeps(site) || self.multiplies(site)
    }
}

// Each takes the gradient of what it returned in the forward pass, and returns that of what it was given.

impl Block {
    fn backward<M: Masks>(&self, grad: &Tensor, layer: usize, tape: &mut Tape<'_, M>, sums: &Block) -> Result<Tensor> {
        let resid_mid = tape.take(Site::ResidMid(layer))?;
        let normal = self.ln_2.of(&resid_mid, None)?;
        let to_mlp = self.mlp.backward(&normal, grad, layer, tape, &sums.mlp)?;
        let grad = ops::add(grad, &self.ln_2.backward(&resid_mid, &to_mlp, &sums.ln_2)?)?;
        drop((resid_mid, normal, to_mlp));
        let resid_pre = tape.take(Site::ResidPre(layer))?;
        let normal = self.ln_1.of(&resid_pre, None)?;
        let to_attn = self.attn.backward(&normal, &grad, layer, tape, &sums.attn)?;
        Ok(ops::add(&grad, &self.ln_1.backward(&resid_pre, &to_attn, &sums.ln_1)?)?)
    }
}

impl Attention {
    fn backward<M: Masks>(
        &self,
        x: &Tensor,
        grad: &Tensor,
        layer: usize,
        tape: &mut Tape<'_, M>,
        sums: &Attention,
    ) -> Result<Tensor> {
        let grad = tape.through(Site::AttnOut(layer), grad)?;
        let z = tape.take(Site::Z(layer))?; // [B, P, H, D]
        let to_z = self.c_proj.backward(&z.flatten_from(2)?, &grad, &sums.c_proj)?.reshape(z.shape())?;
        let qkv = [Site::Q(layer), Site::K(layer), Site::V(layer)];
        let [q, k, v] = qkv.map(|site| tape.take(site));
        let (q, k, v) = (q?, k?, v?);
        let pattern = tape.kept.remove(&Site::Pattern(layer));
        let attended = ops::Attended { q: &q, k: &k, v: &v, z: &z, pattern: pattern.as_ref() };
        let mask = tape.masked.remove(&Site::Pattern(layer));
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let to_qkv = attended.backward(&to_z, mask.as_ref(), scale, &Causal::new(0))?; // [B, P, 3, H, D]
        self.c_attn.backward(x, &to_qkv.flatten_from(2)?, &sums.c_attn)
    }
}

impl Mlp {
    fn backward<M: Masks>(
        &self,
        x: &Tensor,
        grad: &Tensor,
        layer: usize,
        tape: &mut Tape<'_, M>,
        sums: &Mlp,
    ) -> Result<Tensor> {
        let grad = tape.through(Site::MlpOut(layer), grad)?;
        let to_post = self.c_proj.backward(&tape.take(Site::MlpPost(layer))?, &grad, &sums.c_proj)?;
        let to_pre = ops::gelu_backward(&tape.take(Site::MlpPre(layer))?, self.activation, &to_post)?;
        self.c_fc.backward(x, &to_pre, &sums.c_fc)
    }
}

impl Linear {
    fn backward(&self, x: &Tensor, grad: &Tensor, sums: &Linear) -> Result<Tensor> {
        if let Some(sum) = wanted(&sums.weight) {
            ops::add_product(sum, x, grad)?;
        }
        if let Some(sum) = wanted(&sums.bias) {
            ops::add_row_sums(sum, grad)?;
        }
        Ok(ops::linear_t(grad, &self.weight)?)
    }
}

impl LayerNorm {
    fn backward(&self, x: &Tensor, grad: &Tensor, sums: &LayerNorm) -> Result<Tensor> {
        let sums = [wanted(&sums.weight), wanted(&sums.bias)];
        Ok(ops::layer_norm_backward(x, &self.weight, self.eps, grad, sums)?)
    }
}

//! The weights of single heads, as TransformerLens names them: W_Q, W_K, W_V, W_O, W_E and W_U, in either basis.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use candle_core::{D, DType, Tensor};

use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::ops;

/// In which basis weights are looked at. Both describe the same model: probabilities and patterns are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Basis {
    /// As in the checkpoint.
    #[default]
    Published,
    /// As TransformerLens processes them: the gain of a LayerNorm is part of the weights that read from it, and what the
    /// residual stream or the softmax would not see is taken out (`fold_ln`, `center_writing_weights`, `center_unembed`).
    Folded,
}

impl FromStr for Basis {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "published" => Ok(Self::Published),
            "folded" => Ok(Self::Folded),
            other => Err(Error::no_such("basis", other, ["published", "folded"])),
        }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Published => "published",
            Self::Folded => "folded",
        })
    }
}

/// A model's weights by head. A view: the model keeps its own.
pub struct Circuits<'a> {
    model: &'a Gpt2,
    weights: BTreeMap<String, &'a Tensor>,
    basis: Basis,
}

/// The weights of all heads of a layer, in f32; vectors are rows and are multiplied from the left, x·W.
#[derive(Clone, Debug)]
pub struct Heads {
    /// `[head, dim, head_dim]`.
    pub q: Tensor,
    /// `[head, dim, head_dim]`.
    pub k: Tensor,
    /// `[head, dim, head_dim]`.
    pub v: Tensor,
    /// `[head, head_dim, dim]`.
    pub o: Tensor,
}

impl<'a> Circuits<'a> {
    /// The weights of `model`, seen in `basis`.
    pub fn of(model: &'a Gpt2, basis: Basis) -> Self {
        Self { model, weights: model.tensors().into_iter().collect(), basis }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.model.config().n_layer
    }

    /// W_Q, W_K, W_V and W_O of every head of a layer.
    ///
    /// Folded, W_x' = diag(γ)·W_x less its mean over the residual stream, where γ is the gain of the attention's LayerNorm,
    /// and each row of W_O' is W_O's less its mean.
    ///
    /// # Errors
    /// [`Error::Request`] for a layer that the model does not have.
    pub fn layer(&self, layer: usize) -> Result<Heads> {
        let config = self.model.config();
        if layer >= config.n_layer {
            return Err(Error::request(format!("this model has layers 0..={}, not {layer}", config.n_layer - 1)));
        }
        let (heads, width) = (config.n_head, config.head_dim);
        let mut read = self.get(&format!("h.{layer}.attn.c_attn.weight"))?; // [dim, 3·head·head_dim]
        let mut write = self.get(&format!("h.{layer}.attn.c_proj.weight"))?; // [head·head_dim, dim]
        if self.basis == Basis::Folded {
            let gain = self.get(&format!("h.{layer}.ln_1.weight"))?.unsqueeze(1)?; // [dim, 1]
            read = centered(&read.broadcast_mul(&gain)?, 0)?;
            write = centered(&write, 1)?;
        }
        let read = read.reshape((config.n_embd, 3, heads, width))?;
        let part = |i: usize| -> Result<Tensor> {
            Ok(read.narrow(1, i, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous()?) // [head, dim, head_dim]
        };
        Ok(Heads { q: part(0)?, k: part(1)?, v: part(2)?, o: write.reshape((heads, width, config.n_embd))? })
    }

    /// W_E: what a token writes, `[vocab, dim]`. Folded, each row less its mean.
    ///
    /// # Errors
    /// As candle.
    pub fn embedding(&self) -> Result<Tensor> {
        let wte = self.get("wte.weight")?;
        if self.basis == Basis::Folded { centered(&wte, D::Minus1) } else { Ok(wte) }
    }

    /// W_U: what the logits read, `[dim, vocab]`. Folded, W_U' = diag(γ)·W_U with the last LayerNorm's gain, less its mean
    /// over the residual stream, then less its mean over the vocabulary.
    ///
    /// # Errors
    /// As candle.
    pub fn unembedding(&self) -> Result<Tensor> {
        let unembed = self.get(self.unembedding_name())?.t()?; // [dim, vocab]
        if self.basis == Basis::Published {
            return Ok(unembed.contiguous()?);
        }
        let gain = self.get("ln_f.weight")?.unsqueeze(1)?; // [dim, 1]
        centered(&centered(&unembed.broadcast_mul(&gain)?, 0)?, 1)
    }

    /// W_U·W_E, `[dim, dim]`: from what is written to what a token that is then read would write.
    ///
    /// It needs neither factor in the folded basis: both means are sums over rows of the published ones, so it costs one
    /// product and no second copy of the vocabulary.
    ///
    /// # Errors
    /// As candle.
    pub fn round_trip(&self) -> Result<Tensor> {
        let (embed, unembed) = (self.get("wte.weight")?, self.get(self.unembedding_name())?); // both [vocab, dim]
        let product = ops::over_rows(&unembed, &embed)?; // [dim, dim]
        if self.basis == Basis::Published {
            return Ok(product);
        }
        let mean = unembed.mean_keepdim(0)?.t()?.contiguous()?; // [dim, 1]
        let product = (product - mean.matmul(&embed.sum_keepdim(0)?)?)?;
        let gain = self.get("ln_f.weight")?.unsqueeze(1)?;
        centered(&centered(&product.broadcast_mul(&gain)?, 0)?, 1)
    }

    fn unembedding_name(&self) -> &'static str {
        if self.model.config().tie_word_embeddings { "wte.weight" } else { "lm_head.weight" }
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        let tensor = self.weights.get(name).ok_or_else(|| Error::Bug(format!("the model has no {name}")))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }
}

/// Less the mean along a dimension.
fn centered(x: &Tensor, dim: impl candle_core::shape::Dim) -> Result<Tensor> {
    Ok(x.broadcast_sub(&x.mean_keepdim(dim)?)?)
}

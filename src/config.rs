//! The shape of a GPT-2: its numbers, the tensors they imply, and `config.json` read strictly.

use std::path::Path;

use candle_core::Device;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::ops::Gelu;
use crate::site::Extents;

/// The numbers that fix a GPT-2, named as in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks.
    pub n_layer: usize,
    /// Heads per block.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of a head; `n_embd / n_head` in every published model.
    pub head_dim: usize,
    /// Neurons per block; `4 · n_embd` in every published model.
    pub n_inner: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Positions.
    pub n_positions: usize,
    /// The activation of the MLPs.
    pub activation: Gelu,
    /// Added to the variance in LayerNorm.
    pub layer_norm_epsilon: f64,
    /// Whether the unembedding is the token embedding.
    pub tie_word_embeddings: bool,
}

/// A published model: `(name, repository, layers, heads, width)`.
pub const PUBLISHED: [(&str, &str, usize, usize, usize); 5] = [
    ("gpt2", "openai-community/gpt2", 12, 12, 768),
    ("gpt2-medium", "openai-community/gpt2-medium", 24, 16, 1024),
    ("gpt2-large", "openai-community/gpt2-large", 36, 20, 1280),
    ("gpt2-xl", "openai-community/gpt2-xl", 48, 25, 1600),
    ("distilgpt2", "distilbert/distilgpt2", 6, 12, 768),
];

/// Largest `config.json` that is read.
const MAX_BYTES: usize = 1 << 20;

impl Config {
    /// A GPT-2 of the usual proportions: heads split the width, the MLP is four times as wide.
    pub fn new(n_layer: usize, n_head: usize, n_embd: usize, vocab_size: usize, n_positions: usize) -> Self {
        Self {
            n_layer,
            n_head,
            n_embd,
            head_dim: n_embd / n_head.max(1),
            n_inner: 4 * n_embd,
            vocab_size,
            n_positions,
            activation: Gelu::Tanh,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
        }
    }

    /// A published size by name: `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl` or `distilgpt2`.
    pub fn published(name: &str) -> Option<Self> {
        let (_, _, layers, heads, width) = PUBLISHED.iter().find(|p| p.0 == name)?;
        Some(Self::new(*layers, *heads, *width, 50257, 1024))
    }

    /// Reads `config.json` as Hugging Face writes it for GPT-2.
    ///
    /// # Errors
    /// [`Error::Data`] that names the field and what it may be; nothing is guessed.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::data(path, format!("{} bytes; a config has at most {MAX_BYTES}", bytes.len())));
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|e| Error::data(path, format!("not JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(Error::data(path, "not a JSON object"));
        };
        Fields { map: &map, path }.config()
    }

    /// The `config.json` that Hugging Face's transformers loads this model from.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": self.activation.name(),
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_embd": self.n_embd,
            "n_inner": self.n_inner,
            "n_positions": self.n_positions,
            "n_ctx": self.n_positions,
            "vocab_size": self.vocab_size,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "bos_token_id": self.vocab_size - 1,
            "eos_token_id": self.vocab_size - 1,
        })
    }

    /// Name and shape of every tensor, in the order of the checkpoint. Weights are `[in, out]` (Conv1D).
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, heads, inner) = (self.n_embd, self.n_head * self.head_dim, self.n_inner);
        let mut all = vec![
            ("wte.weight".to_string(), vec![self.vocab_size, d]),
            ("wpe.weight".to_string(), vec![self.n_positions, d]),
        ];
        for layer in 0..self.n_layer {
            let block: [(&str, &[usize]); 12] = [
                ("ln_1.weight", &[d]),
                ("ln_1.bias", &[d]),
                ("attn.c_attn.weight", &[d, 3 * heads]),
                ("attn.c_attn.bias", &[3 * heads]),
                ("attn.c_proj.weight", &[heads, d]),
                ("attn.c_proj.bias", &[d]),
                ("ln_2.weight", &[d]),
                ("ln_2.bias", &[d]),
                ("mlp.c_fc.weight", &[d, inner]),
                ("mlp.c_fc.bias", &[inner]),
                ("mlp.c_proj.weight", &[inner, d]),
                ("mlp.c_proj.bias", &[d]),
            ];
            all.extend(block.map(|(name, shape)| (format!("h.{layer}.{name}"), shape.to_vec())));
        }
        all.push(("ln_f.weight".to_string(), vec![d]));
        all.push(("ln_f.bias".to_string(), vec![d]));
        if !self.tie_word_embeddings {
            all.push(("lm_head.weight".to_string(), vec![self.vocab_size, d]));
        }
        all
    }

    /// Bytes that reading a full context takes in f32, about: the weights, the logits, and the widest values of a layer.
    pub fn run_memory(&self) -> u64 {
        let widest = 2 * self.n_inner + 8 * self.n_embd + self.n_head * self.n_positions;
        4 * self.parameters() + 4 * (self.n_positions * (self.vocab_size + widest)) as u64
    }

    /// Bytes that a step of fine-tuning all parameters takes at most, in f32 on one row of a full context: weights, gradients, AdamW's two
    /// moments, and what the backward pass remembers.
    pub fn tune_memory(&self) -> u64 {
        16 * self.parameters() + self.training_memory(1, self.n_positions, &Device::Cpu)
    }

    /// Bytes that the backward pass of some rows remembers, and as much again for the gradients on their way: of each layer 18
    /// times its width and two attention maps per token, and the logits.
    pub(crate) fn gradient_memory(&self, rows: usize, length: usize) -> u64 {
        let per_layer = 18 * self.n_embd + 2 * self.n_head * length;
        (2 * 4 * rows * length * (self.n_layer * per_layer + self.vocab_size)) as u64
    }

    /// Bytes that [`crate::gpt2::Gpt2::learn`] takes beside weights and gradients, in f32: of each layer what its backward pass needs (streams,
    /// queries, keys, values, what they weigh, both sides of the activation, one attention map), gradients of one layer, and logits.
    pub(crate) fn training_memory(&self, rows: usize, length: usize, device: &Device) -> u64 {
        let (tokens, map) = (rows * length, self.n_head * length);
        let kept = 3 * self.n_embd + 3 * self.n_head * self.head_dim + 2 * self.n_inner + map;
        let on_their_way = 6 * self.n_embd + 6 * self.n_head * self.head_dim + 2 * self.n_inner + 3 * map;
        let logits = 2 * tokens.min(crate::ops::logits_at_once(device)) * self.vocab_size;
        (4 * (tokens * (self.n_layer * kept + on_their_way) + logits)) as u64
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// The lengths of all axes for a batch of `prompts` × `pos` tokens after `past` cached ones.
    pub fn extents(&self, prompts: usize, pos: usize, past: usize) -> Extents {
        Extents {
            prompts,
            pos,
            keys: past + pos,
            heads: self.n_head,
            head_dim: self.head_dim,
            model: self.n_embd,
            neurons: self.n_inner,
            vocab: self.vocab_size,
        }
    }
}

struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl Fields<'_> {
    fn config(&self) -> Result<Config> {
        match self.map.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => {}
            Some(other) => {
                let other = crate::error::shorten(other);
                return Err(self.wrong(format!("model_type is \"{other}\"; only gpt2 is supported")));
            }
            None => return Err(self.wrong("model_type is missing; it must be \"gpt2\"".into())),
        }
        let n_head = self.int("n_head", 1..=64, None)?;
        let n_embd = self.int("n_embd", 1..=8192, None)?;
        let explicit_head_dim = self.map.get("head_dim").is_some_and(|v| !v.is_null());
        if !explicit_head_dim && n_embd % n_head != 0 {
            return Err(self.wrong(format!("n_embd {n_embd} is not divisible by n_head {n_head}")));
        }
        let config = Config {
            n_layer: self.int("n_layer", 1..=96, None)?,
            n_head,
            n_embd,
            head_dim: self.int("head_dim", 1..=1024, Some(n_embd / n_head))?,
            n_inner: self.int("n_inner", 1..=65_536, Some(4 * n_embd))?,
            vocab_size: self.int("vocab_size", 1..=1_000_000, None)?,
            n_positions: match self.map.contains_key("n_positions") {
                true => self.int("n_positions", 1..=65_536, None)?,
                false => self.int("n_ctx", 1..=65_536, None)?,
            },
            activation: self.activation()?,
            layer_norm_epsilon: self.epsilon()?,
            tie_word_embeddings: self.flag("tie_word_embeddings", true)?,
        };
        for (name, wanted) in
            [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
        {
            if self.flag(name, wanted)? != wanted {
                return Err(self.wrong(format!("{name} is {}; only {wanted} is supported", !wanted)));
            }
        }
        Ok(config)
    }

    fn wrong(&self, what: String) -> Error {
        Error::data(self.path, what)
    }

    fn int(&self, name: &str, range: std::ops::RangeInclusive<usize>, default: Option<usize>) -> Result<usize> {
        let (low, high) = (range.start(), range.end());
        match (self.map.get(name), default) {
            (None | Some(Value::Null), Some(default)) => Ok(default),
            (None, None) => Err(self.wrong(format!("{name} is missing; it must be {low}..={high}"))),
            (Some(value), _) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if range.contains(&n) => Ok(n),
                _ => {
                    let shown = crate::error::shorten(&value.to_string());
                    Err(self.wrong(format!("{name} is {shown}; it must be an integer in {low}..={high}")))
                }
            },
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => {
                let other = crate::error::shorten(&other.to_string());
                Err(self.wrong(format!("{name} is {other}; it must be true or false")))
            }
        }
    }

    fn activation(&self) -> Result<Gelu> {
        match self.map.get("activation_function").and_then(Value::as_str) {
            None | Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Gelu::Tanh),
            Some("gelu") => Ok(Gelu::Erf),
            Some(other) => {
                let other = crate::error::shorten(other);
                Err(self.wrong(format!("activation_function is \"{other}\"; gelu_new and gelu are supported")))
            }
        }
    }

    fn epsilon(&self) -> Result<f64> {
        match self.map.get("layer_norm_epsilon") {
            None => Ok(1e-5),
            Some(value) => match value.as_f64() {
                Some(eps) if eps > 0.0 && eps <= 1.0 => Ok(eps),
                _ => {
                    let shown = crate::error::shorten(&value.to_string());
                    Err(self.wrong(format!("layer_norm_epsilon is {shown}; it must be above 0 and at most 1")))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_published_parameter_counts() {
        let counts: Vec<u64> = PUBLISHED.iter().map(|p| Config::published(p.0).unwrap().parameters()).collect();
        assert_eq!(counts, [124_439_808, 354_823_168, 774_030_080, 1_557_611_200, 81_912_576]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut config = Config::new(3, 5, 80, 97, 33);
        config.n_inner = 100;
        config.tie_word_embeddings = false;
        config.activation = Gelu::Erf;
        let json = serde_json::to_vec(&config.to_json()).unwrap();
        assert_eq!(Config::parse(&json, Path::new("config.json")).unwrap(), config);
    }
}

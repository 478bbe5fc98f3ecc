//! The shape of a GPT-2: its numbers, the tensors they imply, and `config.json` read strictly.

use std::path::Path;

use candle_core::Device;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::limits::{HEAD_WIDTH, HEADS, LAYERS, NEURONS, POSITIONS, VOCABULARY, WIDTH};
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
            n_inner: n_embd.saturating_mul(4),
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
        let read = 4 * self.n_positions as u128 * (self.vocab_size + widest) as u128;
        bytes(4 * u128::from(self.parameters()) + read)
    }

    /// Bytes that a step of fine-tuning all parameters takes at most, in f32 on one row of a full context: weights, gradients, AdamW's two
    /// moments, and what the backward pass remembers.
    pub fn tune_memory(&self) -> u64 {
        self.start_memory().saturating_add(self.training_memory(1, self.n_positions, &Device::Cpu))
    }

    /// Bytes that a training run takes before its first step: weights, gradients and AdamW's two moments in f32.
    pub fn start_memory(&self) -> u64 {
        self.parameters().saturating_mul(16)
    }

    /// Bytes that the backward pass of some rows remembers, and as much again for the gradients on their way: of each layer 18
    /// times its width and two attention maps per token, and the logits.
    pub(crate) fn gradient_memory(&self, rows: usize, length: usize) -> u64 {
        let per_layer = 18 * self.n_embd + 2 * self.n_head * length;
        let tokens = rows as u128 * length as u128;
        bytes(2 * 4 * tokens * (self.n_layer * per_layer + self.vocab_size) as u128)
    }

    /// Bytes that [`crate::gpt2::Gpt2::learn`] takes beside weights and gradients, in f32: of each layer what its backward pass needs (streams,
    /// queries, keys, values, what they weigh, both sides of the activation, one attention map), gradients of one layer, and logits.
    pub(crate) fn training_memory(&self, rows: usize, length: usize, device: &Device) -> u64 {
        let (tokens, map) = (rows as u128 * length as u128, self.n_head * length);
        let kept = 3 * self.n_embd + 3 * self.n_head * self.head_dim + 2 * self.n_inner + map;
        let on_their_way = 6 * self.n_embd + 6 * self.n_head * self.head_dim + 2 * self.n_inner + 3 * map;
        let logits = 2 * tokens.min(crate::ops::logits_at_once(device) as u128) * self.vocab_size as u128;
        bytes(4 * (tokens * (self.n_layer * kept + on_their_way) as u128 + logits))
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        let elements = |shape: &[usize]| shape.iter().map(|&n| n as u128).product::<u128>();
        bytes(self.tensors().iter().map(|(_, shape)| elements(shape)).sum())
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

/// A number of bytes, or as many as there are numbers for.
fn bytes(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl Fields<'_> {
    fn config(&self) -> Result<Config> {
        self.check_type()?;
        let n_head = self.int("n_head", 1..=HEADS, None)?;
        let n_embd = self.int("n_embd", 1..=WIDTH, None)?;
        let explicit_head_dim = self.map.get("head_dim").is_some_and(|v| !v.is_null());
        if !explicit_head_dim && n_embd % n_head != 0 {
            return Err(self.wrong(format!("n_embd {n_embd} is not divisible by n_head {n_head}")));
        }
        let config = Config {
            n_layer: self.int("n_layer", 1..=LAYERS, None)?,
            n_head,
            n_embd,
            head_dim: self.int("head_dim", 1..=HEAD_WIDTH, Some(n_embd / n_head))?,
            n_inner: self.int("n_inner", 1..=NEURONS, Some(4 * n_embd))?,
            vocab_size: self.int("vocab_size", 1..=VOCABULARY, None)?,
            n_positions: match self.has("n_positions") {
                true => self.int("n_positions", 1..=POSITIONS, None)?,
                false => self.int("n_ctx", 1..=POSITIONS, None)?,
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

    /// Files from before `model_type` name the class of the model.
    fn check_type(&self) -> Result<()> {
        if let Some(adapter) = self.map.get("peft_type") {
            let adapter = crate::error::shorten(&adapter.to_string());
            return Err(self.wrong(format!("describes an adapter ({adapter}), not a model")));
        }
        if self.map.get("quantization_config").is_some_and(|value| !value.is_null()) {
            return Err(
                self.wrong("has a quantization_config: quantised weights are not read, take the original's".into())
            );
        }
        let class = self.map.get("architectures").and_then(Value::as_array).and_then(|names| names.first()?.as_str());
        match (self.map.get("model_type"), class) {
            (Some(Value::String(name)), _) if name == "gpt2" => Ok(()),
            (None | Some(Value::Null), Some(class)) if class.starts_with("GPT2") => Ok(()),
            (None | Some(Value::Null), _) => Err(self.wrong("model_type is missing; it must be \"gpt2\"".into())),
            (Some(other), _) => {
                let other = crate::error::shorten(&other.to_string());
                Err(self.wrong(format!("model_type is {other}; only gpt2 is supported")))
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        let names = [Some(name), alias(name)];
        names.into_iter().flatten().any(|name| self.map.get(name).is_some_and(|value| !value.is_null()))
    }

    /// A field by GPT-2's name or by the name that other models have for it, with the name that was used; both may be there
    /// if they agree. What is `null` is as good as absent.
    fn get<'n>(&self, name: &'n str) -> Result<(&'n str, Option<&Value>)> {
        let value = |name: &str| self.map.get(name).filter(|value| !value.is_null());
        match (value(name), alias(name).and_then(|other| Some((other, value(other)?)))) {
            (Some(own), Some((other, value))) if own != value => {
                let (own, value) = (crate::error::shorten(&own.to_string()), crate::error::shorten(&value.to_string()));
                Err(self.wrong(format!("{name} is {own}, but {other} is {value}: they are two names of one number")))
            }
            (Some(own), _) => Ok((name, Some(own))),
            (None, Some((other, value))) => Ok((other, Some(value))),
            (None, None) => Ok((name, None)),
        }
    }

    fn wrong(&self, what: String) -> Error {
        Error::data(self.path, what)
    }

    fn int(&self, name: &str, range: std::ops::RangeInclusive<usize>, default: Option<usize>) -> Result<usize> {
        let (low, high) = (range.start(), range.end());
        let (name, value) = self.get(name)?;
        match (value, default) {
            (None, Some(default)) => Ok(default),
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
        let of = |value: &Value| match value.as_str() {
            Some("gelu_new" | "gelu_pytorch_tanh") => Some(Gelu::Tanh),
            Some("gelu") => Some(Gelu::Erf),
            _ => None,
        };
        let field = |name: &str| self.map.get(name).filter(|value| !value.is_null());
        let own = match field("activation_function") {
            None => Gelu::Tanh,
            Some(value) => of(value).ok_or_else(|| {
                let other = crate::error::shorten(&value.to_string());
                self.wrong(format!("activation_function is {other}; gelu_new and gelu are supported"))
            })?,
        };
        // transformers reads `activation_function` of a GPT-2 and nothing else.
        match field("hidden_act") {
            Some(value) if of(value) != Some(own) => {
                let other = crate::error::shorten(&value.to_string());
                Err(self.wrong(format!(
                    "hidden_act is {other}, but activation_function is {}: say which with activation_function",
                    own.name()
                )))
            }
            _ => Ok(own),
        }
    }

    fn epsilon(&self) -> Result<f64> {
        let number = |name: &str| match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(eps) if eps > 0.0 && eps <= 1.0 => Ok(Some(eps)),
                _ => {
                    let shown = crate::error::shorten(&value.to_string());
                    Err(self.wrong(format!("{name} is {shown}; it must be above 0 and at most 1")))
                }
            },
        };
        let own = number("layer_norm_epsilon")?.unwrap_or(1e-5);
        // As with the activation: transformers does not read this name.
        match number("layer_norm_eps")? {
            Some(other) if other != own => Err(self.wrong(format!(
                "layer_norm_eps is {other}, but layer_norm_epsilon is {own}: say which with layer_norm_epsilon"
            ))),
            _ => Ok(own),
        }
    }
}

/// The name that other models have for a number of GPT-2's config; transformers takes it for GPT-2's own.
fn alias(name: &str) -> Option<&'static str> {
    Some(match name {
        "n_layer" => "num_hidden_layers",
        "n_head" => "num_attention_heads",
        "n_embd" => "hidden_size",
        "n_positions" => "max_position_embeddings",
        "n_inner" => "intermediate_size",
        _ => return None,
    })
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

    #[test]
    fn names_of_other_models_are_the_same_numbers() {
        let parse = |change: &[(&str, Value)]| {
            let mut json = Config::new(3, 5, 80, 97, 33).to_json();
            for (name, value) in change {
                json[*name] = value.clone();
            }
            Config::parse(json.to_string().as_bytes(), Path::new("config.json")).map_err(|e| e.to_string())
        };
        let wanted = Config::new(3, 5, 80, 97, 33);
        let others = [
            ("n_layer", "num_hidden_layers", 3),
            ("n_head", "num_attention_heads", 5),
            ("n_embd", "hidden_size", 80),
            ("n_positions", "max_position_embeddings", 33),
            ("n_inner", "intermediate_size", 320),
        ];
        for (own, other, n) in others {
            assert_eq!(parse(&[(own, Value::Null), (other, json!(n))]), Ok(wanted.clone()), "{other} alone");
            assert_eq!(parse(&[(other, json!(n))]), Ok(wanted.clone()), "{other} too");
            let error = parse(&[(other, json!(n + 1))]).unwrap_err();
            assert!(error.contains(&format!("{own} is {n}, but {other} is {}", n + 1)), "{error}");
            let error = parse(&[(own, Value::Null), (other, json!("x"))]).unwrap_err();
            assert!(error.contains(&format!("{other} is \"x\"; it must be an integer")), "{error}");
        }
        assert_eq!(parse(&[("model_type", Value::Null)]), Ok(wanted.clone()), "architectures say it");
        for (change, fault) in [
            (("hidden_act", json!("gelu")), "hidden_act is \"gelu\", but activation_function is gelu_new"),
            (("layer_norm_eps", json!(1e-6)), "layer_norm_eps is 0.000001, but layer_norm_epsilon is 0.00001"),
            (("activation_function", json!(7)), "activation_function is 7"),
            (("model_type", json!(7)), "model_type is 7"),
            (("quantization_config", json!({"bits": 4})), "quantised weights are not read"),
        ] {
            let error = parse(&[change]).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
        assert_eq!(parse(&[("hidden_act", json!("gelu_new")), ("layer_norm_eps", json!(1e-5))]), Ok(wanted));
    }
}

//! GPT-2 (Radford et al. 2019), read top to bottom; fields are named as in the checkpoint.
//!
//! There is one forward pass. It is generic over [`Hooks`] and calls them once at every [`Site`]; with `()` it is the
//! plain model. B, P, H, D are prompts, positions, heads and head width; K is the number of keys: P, and with a
//! cache what came before.

mod backward;

use candle_core::{D, DType, Device, IndexOp, Tensor};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::kv::{Branch, KvCache, Past};
use crate::ops::{self, Causal, Gelu};
use crate::reads::Reads;
use crate::site::Site;
use crate::tokens::Tokens;

pub use backward::{Lesson, Masks};

/// A GPT-2 with its weights, in the basis in which they were published.
#[derive(Clone, Debug)]
pub struct Gpt2 {
    config: Config,
    wte: Tensor,
    wpe: Tensor,
    h: Vec<Block>,
    ln_f: LayerNorm,
    /// The unembedding `[vocab, dim]`: `wte` itself unless the checkpoint has its own.
    lm_head: Tensor,
    most_tokens: usize,
}

#[derive(Clone, Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

#[derive(Clone, Debug)]
struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    n_head: usize,
    head_dim: usize,
}

#[derive(Clone, Debug)]
struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    activation: Gelu,
}

/// An affine map with the weight as `[in, out]`, which GPT-2's checkpoint calls Conv1D.
#[derive(Clone, Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Clone, Debug)]
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// Which positions get logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitsAt {
    /// Every position.
    #[default]
    All,
    /// The last token of each prompt: `[prompt, 1, vocab]`.
    Last,
    /// None: the run ends with the final residual stream.
    None,
}

/// One run of the model: what goes in, where it starts and stops.
pub struct Pass<'a> {
    tokens: &'a Tokens,
    from: Option<(usize, Tensor)>,
    until: Option<usize>,
    logits: LogitsAt,
    past: Option<Past<'a>>,
    starts: Option<&'a [usize]>,
}

/// What a [`Pass`] ends with.
#[derive(Clone, Debug)]
pub struct Output {
    /// The residual stream where the run stopped, `[prompt, pos, dim]`.
    pub resid: Tensor,
    /// `[prompt, pos, vocab]`, or `[prompt, 1, vocab]` for [`LogitsAt::Last`]; none where the run stopped early.
    pub logits: Option<Tensor>,
}

impl<'a> Pass<'a> {
    /// All layers, logits everywhere.
    pub fn new(tokens: &'a Tokens) -> Self {
        Self { tokens, from: None, until: None, logits: LogitsAt::All, past: None, starts: None }
    }

    /// Starts at `layer` with `resid_pre` of that layer instead of at the embedding.
    pub fn from(mut self, layer: usize, resid_pre: Tensor) -> Self {
        self.from = Some((layer, resid_pre));
        self
    }

    /// Stops before `layer`: its `resid_pre` is not reached.
    pub fn until(mut self, layer: usize) -> Self {
        self.until = Some(layer);
        self
    }

    /// Where logits are wanted.
    pub fn logits(mut self, at: LogitsAt) -> Self {
        self.logits = at;
        self
    }

    /// The position of each prompt's first token, instead of 0; not for a run with a cache, which knows.
    pub fn starts(mut self, starts: &'a [usize]) -> Self {
        self.starts = Some(starts);
        self
    }

    /// Reads what came before from `cache`, and adds to it.
    pub fn cache(mut self, cache: &'a mut KvCache) -> Self {
        self.past = Some(Past::Cache(cache));
        self
    }

    /// Continues every row where `branch` says; the run resumes at the branch's first layer.
    pub fn branch(mut self, branch: &'a Branch) -> Self {
        self.past = Some(Past::Branch(branch));
        self
    }
}

impl Gpt2 {
    /// Builds a model from a function that gives each tensor of [`Config::tensors`] by name.
    ///
    /// # Errors
    /// Whatever `get` returns.
    pub fn new(config: Config, mut get: impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let wte = get("wte.weight")?;
        let h = (0..config.n_layer)
            .map(|layer| Block::new(&config, |name| get(&format!("h.{layer}.{name}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            wpe: get("wpe.weight")?,
            h,
            ln_f: LayerNorm::new(&config, "ln_f", &mut get)?,
            lm_head: if config.tie_word_embeddings { wte.clone() } else { get("lm_head.weight")? },
            wte,
            config,
            most_tokens: usize::MAX,
        })
    }

    /// The same model, out of memory for more tokens at once, those in a cache included: a GPU that is full, for tests.
    #[doc(hidden)]
    pub fn with_room_for(self, most_tokens: usize) -> Self {
        Self { most_tokens, ..self }
    }

    pub(crate) fn room(&self) -> usize {
        self.most_tokens
    }

    /// Every weight under its name in the checkpoint, in the order of [`Config::tensors`].
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("wte.weight".to_string(), &self.wte), ("wpe.weight".to_string(), &self.wpe)];
        for (layer, block) in self.h.iter().enumerate() {
            all.extend(block.tensors().map(|(name, weight)| (format!("h.{layer}.{name}"), weight)));
        }
        all.push(("ln_f.weight".to_string(), &self.ln_f.weight));
        all.push(("ln_f.bias".to_string(), &self.ln_f.bias));
        if !self.config.tie_word_embeddings {
            all.push(("lm_head.weight".to_string(), &self.lm_head));
        }
        all
    }

    /// A weight by its name in the checkpoint; `lm_head.weight` is `wte.weight` where the two are tied.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that the model does not have.
    pub fn weight(&self, name: &str) -> Result<&Tensor> {
        if name == "lm_head.weight" {
            return Ok(&self.lm_head);
        }
        let found = self.tensors().into_iter().find(|(other, _)| other == name).map(|(_, weight)| weight);
        found.ok_or_else(|| Error::request(format!("the model has no weight `{}`", crate::error::shorten(name))))
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The type of its weights.
    pub fn dtype(&self) -> DType {
        self.wte.dtype()
    }

    /// Where its weights are.
    pub fn device(&self) -> &Device {
        self.wte.device()
    }

    /// Logits `[prompt, pos, vocab]`, with nothing looked at and nothing changed.
    ///
    /// # Errors
    /// Tokens that do not fit the model (see [`Tokens::check`]).
    pub fn forward(&self, tokens: &Tokens) -> Result<Tensor> {
        let output = self.run(Pass::new(tokens), &mut ())?;
        output.logits.ok_or_else(|| Error::Bug("a full pass ended without logits".into()))
    }

    /// Runs a pass and calls `hooks` at every site that it reaches.
    ///
    /// # Errors
    /// Tokens or layers that do not fit the model, and whatever `hooks` return.
    pub fn run<H: Hooks>(&self, pass: Pass<'_>, hooks: &mut H) -> Result<Output> {
        let Pass { tokens, from, until, logits, mut past, starts } = pass;
        let layers = self.config.n_layer;
        let until = until.unwrap_or(layers);
        let start = from.as_ref().map_or(0, |(layer, _)| *layer);
        if start > until || until > layers {
            return Err(Error::request(format!("cannot run layers {start}..{until} of a model with {layers} layers")));
        }
        match &past {
            Some(Past::Cache(_)) if start > 0 => {
                return Err(Error::request(
                    "a resumed run cannot fill a key-value cache: layers before it would be missing",
                ));
            }
            Some(Past::Branch(branch))
                if from.is_none() || start != branch.first() || branch.rows() != tokens.len() =>
            {
                let (first, rows) = (branch.first(), branch.rows());
                return Err(Error::request(format!("this branch resumes {rows} rows at layer {first}")));
            }
            _ => {}
        }
        if starts.is_some_and(|starts| past.is_some() || starts.len() != tokens.len()) {
            return Err(Error::request("every prompt needs its start, and a run with a cache has none to give"));
        }
        let read = match &past {
            Some(Past::Cache(cache)) => cache.len(),
            _ => 0,
        };
        let at_once = tokens.len() * (read + tokens.longest());
        if at_once > self.most_tokens {
            return Err(Error::TryAgain(format!("no memory for {at_once} tokens at once")));
        }
        tokens.check(&self.config, read + starts.and_then(|starts| starts.iter().max()).unwrap_or(&0))?;
        let mask = match &mut past {
            Some(Past::Cache(cache)) => cache.begin(tokens)?,
            Some(Past::Branch(branch)) => branch.mask(),
            None => Causal::new(0),
        };

        let mut x = match from {
            Some((_, resid_pre)) => self.checked_resid(resid_pre, tokens)?,
            None => self.embed(tokens, starts, past.as_ref(), hooks)?,
        };
        for (layer, block) in self.h.iter().enumerate().take(until).skip(start) {
            x = block.forward(x, layer, &mask, past.as_mut(), hooks)?; // [B, P, dim]
        }
        if let Some(Past::Cache(cache)) = past {
            cache.finish(tokens);
        }
        let logits = if until < layers { None } else { self.unembed_at(&x, tokens, logits, hooks)? };
        Ok(Output { resid: x, logits })
    }

    /// The final LayerNorm and the unembedding of any residual stream: `[.., dim]` → `[.., vocab]`.
    ///
    /// # Errors
    /// A last axis that is not d_model.
    pub fn unembed(&self, resid: &Tensor) -> Result<Tensor> {
        Ok(ops::linear_t(&self.ln_f.of(resid, None)?, &self.lm_head)?)
    }

    /// What the model loses on the targets of every position of a final residual stream, row by row: `[.., dim]` → `[n]`, in nats. Logits
    /// are not held for all positions at once.
    ///
    /// # Errors
    /// Targets that are not one per position, or no tokens.
    pub fn losses(&self, resid: &Tensor, targets: &[u32]) -> Result<Tensor> {
        Ok(ops::next_token_losses(&self.ln_f.of(resid, None)?.flatten_to(D::Minus2)?, &self.lm_head, targets)?)
    }

    /// The unembedding of a residual stream that is divided by a given standard deviation instead of its own.
    ///
    /// # Errors
    /// Shapes other than `[.., dim]` and `[.., 1]`.
    pub fn unembed_with_scale(&self, resid: &Tensor, scale: &Tensor) -> Result<Tensor> {
        Ok(ops::linear_t(&self.ln_f.of(resid, Some(scale))?, &self.lm_head)?)
    }

    /// What one head's queries, keys or values are for any residual stream before the block's first LayerNorm:
    /// `[.., dim]` → `[.., head_dim]`. With a `scale`, `[.., 1]`, LayerNorm divides by that instead of its own.
    ///
    /// # Errors
    /// [`Error::Request`] for a layer or a head that the model does not have.
    pub fn read_head(
        &self,
        layer: usize,
        head: usize,
        reads: Reads,
        x: &Tensor,
        scale: Option<&Tensor>,
    ) -> Result<Tensor> {
        let block = self.block(layer)?;
        if head >= self.config.n_head {
            return Err(Error::request(format!("this model has heads 0..={}, not {head}", self.config.n_head - 1)));
        }
        block.attn.read(head, reads, &block.ln_1.of(x, scale)?)
    }

    /// What a block's MLP writes for any residual stream before its LayerNorm: `[.., dim]` → `[.., dim]`; `scale` as for
    /// [`Gpt2::read_head`].
    ///
    /// # Errors
    /// [`Error::Request`] for a layer that the model does not have.
    pub fn mlp(&self, layer: usize, x: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
        let block = self.block(layer)?;
        block.mlp.forward(&block.ln_2.of(x, scale)?, layer, &mut ())
    }

    fn block(&self, layer: usize) -> Result<&Block> {
        let last = self.config.n_layer - 1;
        self.h.get(layer).ok_or_else(|| Error::request(format!("this model has layers 0..={last}, not {layer}")))
    }

    fn embed<H: Hooks>(
        &self,
        tokens: &Tokens,
        starts: Option<&[usize]>,
        past: Option<&Past<'_>>,
        hooks: &mut H,
    ) -> Result<Tensor> {
        let (b, p) = (tokens.len(), tokens.longest());
        let look_up = |table: &Tensor, ids: Vec<u32>| -> Result<Tensor> {
            let ids = Tensor::from_vec(ids, b * p, self.device())?;
            let rows = ops::embedding(table, &ids)?;
            Ok(rows.reshape((b, p, self.config.n_embd))?)
        };
        let embed = look_up(&self.wte, tokens.padded())?;
        let embed = hooks.at(Site::Embed, embed)?; // [B, P, dim]
        let pos_embed = look_up(&self.wpe, positions(tokens, starts, past))?;
        let pos_embed = hooks.at(Site::PosEmbed, pos_embed)?; // [B, P, dim]
        Ok(ops::add(&embed, &pos_embed)?)
    }

    fn checked_resid(&self, resid: Tensor, tokens: &Tokens) -> Result<Tensor> {
        let wanted = [tokens.len(), tokens.longest(), self.config.n_embd];
        if resid.dims() != wanted {
            let found = resid.dims();
            return Err(Error::request(format!(
                "a run that resumes needs resid_pre of shape {wanted:?}, not {found:?}"
            )));
        }
        Ok(resid.to_device(self.device())?.to_dtype(self.dtype())?)
    }

    fn unembed_at<H: Hooks>(&self, x: &Tensor, tokens: &Tokens, at: LogitsAt, hooks: &mut H) -> Result<Option<Tensor>> {
        let looked_at = hooks.wants(Site::LnFinalScale) || hooks.wants(Site::LnFinalNormalized);
        // LayerNorm works row by row, so choosing rows before or after it gives the same bits.
        let x = match at {
            LogitsAt::None if !looked_at => return Ok(None),
            LogitsAt::Last if !looked_at => last(x, tokens)?,
            _ => x.clone(),
        };
        let x = self.ln_f.forward(&x, Site::LnFinalScale, Site::LnFinalNormalized, hooks)?;
        let x = match at {
            LogitsAt::None => return Ok(None),
            LogitsAt::Last if looked_at => last(&x, tokens)?,
            _ => x,
        };
        let logits = ops::linear_t(&x, &self.lm_head)?;
        Ok(Some(hooks.at(Site::Logits, logits)?)) // [B, P or 1, vocab]
    }
}

/// The position of every token of a batch, padding included, prompt by prompt.
fn positions(tokens: &Tokens, starts: Option<&[usize]>, past: Option<&Past<'_>>) -> Vec<u32> {
    let of = |prompt: usize| {
        let read = if let Some(Past::Cache(cache)) = past { cache.position(prompt) } else { 0 };
        let start = starts.map_or(0, |starts| starts[prompt]) + read;
        (start..start + tokens.longest()).map(|pos| pos as u32)
    };
    (0..tokens.len()).flat_map(of).collect()
}

/// The last real position of each prompt: `[B, P, dim]` → `[B, 1, dim]`.
fn last(x: &Tensor, tokens: &Tokens) -> Result<Tensor> {
    let rows: Vec<Tensor> = (0..tokens.len())
        .map(|prompt| {
            let last = tokens.row(prompt).len() - 1;
            x.i((prompt..prompt + 1, last..last + 1))
        })
        .collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

impl Block {
    fn new(config: &Config, mut get: impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            ln_1: LayerNorm::new(config, "ln_1", &mut get)?,
            attn: Attention {
                c_attn: Linear::new("attn.c_attn", &mut get)?,
                c_proj: Linear::new("attn.c_proj", &mut get)?,
                n_head: config.n_head,
                head_dim: config.head_dim,
            },
            ln_2: LayerNorm::new(config, "ln_2", &mut get)?,
            mlp: Mlp {
                c_fc: Linear::new("mlp.c_fc", &mut get)?,
                c_proj: Linear::new("mlp.c_proj", &mut get)?,
                activation: config.activation,
            },
        })
    }

    fn tensors(&self) -> [(&'static str, &Tensor); 12] {
        let Self { ln_1, attn, ln_2, mlp } = self;
        [
            ("ln_1.weight", &ln_1.weight),
            ("ln_1.bias", &ln_1.bias),
            ("attn.c_attn.weight", &attn.c_attn.weight),
            ("attn.c_attn.bias", &attn.c_attn.bias),
            ("attn.c_proj.weight", &attn.c_proj.weight),
            ("attn.c_proj.bias", &attn.c_proj.bias),
            ("ln_2.weight", &ln_2.weight),
            ("ln_2.bias", &ln_2.bias),
            ("mlp.c_fc.weight", &mlp.c_fc.weight),
            ("mlp.c_fc.bias", &mlp.c_fc.bias),
            ("mlp.c_proj.weight", &mlp.c_proj.weight),
            ("mlp.c_proj.bias", &mlp.c_proj.bias),
        ]
    }

    fn forward<H: Hooks>(
        &self,
        x: Tensor,
        layer: usize,
        mask: &Causal,
        past: Option<&mut Past<'_>>,
        hooks: &mut H,
    ) -> Result<Tensor> {
        let x = hooks.at(Site::ResidPre(layer), x)?; // [B, P, dim]
        let own = self.own_inputs(&x, layer, hooks)?;
        let normal = self.ln_1.forward(&x, Site::Ln1Scale(layer), Site::Ln1Normalized(layer), hooks)?;
        let attn = self.attn.forward(&normal, own, layer, mask, past, hooks)?;
        let x = hooks.at(Site::ResidMid(layer), ops::add(&x, &attn)?)?; // [B, P, dim]
        let read = hooks.at(Site::MlpIn(layer), x.clone())?; // [B, P, dim]
        let normal = self.ln_2.forward(&read, Site::Ln2Scale(layer), Site::Ln2Normalized(layer), hooks)?;
        let mlp = self.mlp.forward(&normal, layer, hooks)?;
        hooks.at(Site::ResidPost(layer), ops::add(&x, &mlp)?) // [B, P, dim]
    }

    /// What hooks that give each head a stream of its own change in queries, keys and values: `[B, P, H, D]` each, none
    /// where they change nothing.
    ///
    /// Only the difference enters, so that looking, and what is changed for other heads, changes nothing, to the bit.
    fn own_inputs<H: Hooks>(&self, x: &Tensor, layer: usize, hooks: &mut H) -> Result<[Option<Tensor>; 3]> {
        let mut changes = [None, None, None];
        for (reads, change) in Reads::ALL.into_iter().zip(&mut changes) {
            let site = reads.input(layer);
            if !hooks.wants(site) {
                continue;
            }
            let (b, p, dim) = x.dims3()?;
            let stream = x.unsqueeze(2)?.broadcast_as((b, p, self.attn.n_head, dim))?.contiguous()?; // [B, P, H, dim]
            let seen = hooks.at(site, stream.clone())?;
            if seen.id() != stream.id() {
                let all = |x: &Tensor| -> Result<Tensor> {
                    let x = self.ln_1.of(x, None)?;
                    let heads = (0..self.attn.n_head).map(|head| self.attn.read(head, reads, &x.i((.., .., head))?));
                    Ok(Tensor::stack(&heads.collect::<Result<Vec<_>>>()?, 2)?)
                };
                *change = Some((all(&seen)? - all(&stream)?)?);
            }
        }
        Ok(changes)
    }
}

impl Attention {
    fn forward<H: Hooks>(
        &self,
        x: &Tensor,
        own: [Option<Tensor>; 3],
        layer: usize,
        mask: &Causal,
        past: Option<&mut Past<'_>>,
        hooks: &mut H,
    ) -> Result<Tensor> {
        let (b, p, _) = x.dims3()?;
        let qkv = self.c_attn.forward(x)?.reshape((b, p, 3, self.n_head, self.head_dim))?;
        let part = |part: usize| -> Result<Tensor> {
            let read = qkv.i((.., .., part))?;
            Ok(if let Some(change) = &own[part] { (read + change)? } else { read })
        };
        let q = hooks.at(Site::Q(layer), part(0)?)?; // [B, P, H, D]
        let k = hooks.at(Site::K(layer), part(1)?)?; // [B, P, H, D]
        let v = hooks.at(Site::V(layer), part(2)?)?; // [B, P, H, D]
        let (k, v) = match past {
            Some(past) => past.join(layer, &k, &v)?, // [B, K, H, D]
            None => (k, v),
        };
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let looked_at = [Site::AttnScores(layer), Site::Pattern(layer)].map(|site| hooks.wants(site));
        let z = match looked_at {
            [false, false] => ops::attention(&q, &k, &v, scale, mask)?,
            [scores, _] => {
                let scores = ops::attention_scores(&q, &k, scale, mask, scores)?;
                let scores = hooks.at(Site::AttnScores(layer), scores)?; // [B, H, P, K]
                let pattern = ops::causal_softmax(&scores, mask)?; // [B, H, P, K]
                let id = pattern.id();
                let mut pattern = hooks.at(Site::Pattern(layer), pattern)?;
                if pattern.id() != id {
                    pattern = ops::masked(&pattern, 0.0, mask)?; // whatever a hook returns, the future stays closed
                }
                ops::attend(&pattern, &v, mask)?
            }
        };
        let z = hooks.at(Site::Z(layer), z)?; // [B, P, H, D]
        let mut out = self.c_proj.forward(&z.reshape((b, p, self.n_head * self.head_dim))?)?; // [B, P, dim]
        if hooks.wants(Site::Result(layer)) {
            let result = self.per_head(&z)?; // [B, P, H, dim]
            let seen = hooks.at(Site::Result(layer), result.clone())?;
            if seen.id() != result.id() {
                // Only the difference enters, so that looking changes nothing, to the bit.
                out = (out + (seen - result)?.sum(2)?)?;
            }
        }
        hooks.at(Site::AttnOut(layer), out)
    }

    /// Queries, keys or values of one head for a normalised stream: `[.., dim]` → `[.., D]`.
    fn read(&self, head: usize, reads: Reads, x: &Tensor) -> Result<Tensor> {
        let first = (reads as usize * self.n_head + head) * self.head_dim;
        let weight = self.c_attn.weight.narrow(1, first, self.head_dim)?; // [dim, D]
        Ok(ops::linear(x, &weight, &self.c_attn.bias.narrow(0, first, self.head_dim)?)?)
    }

    /// What each head adds to the residual stream: `z · W_O`, `[B, P, H, D]` → `[B, P, H, dim]`.
    fn per_head(&self, z: &Tensor) -> Result<Tensor> {
        let results = (0..self.n_head)
            .map(|head| {
                let weight = self.c_proj.weight.narrow(0, head * self.head_dim, self.head_dim)?; // [D, dim]
                let zero = self.c_proj.bias.zeros_like()?;
                ops::linear(&z.i((.., .., head))?, &weight, &zero)
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&results, 2)?)
    }
}

impl Mlp {
    fn forward<H: Hooks>(&self, x: &Tensor, layer: usize, hooks: &mut H) -> Result<Tensor> {
        let post = if hooks.wants(Site::MlpPre(layer)) {
            let pre = hooks.at(Site::MlpPre(layer), self.c_fc.forward(x)?)?; // [B, P, neuron]
            ops::gelu(&pre, self.activation)?
        } else {
            ops::linear_gelu(x, &self.c_fc.weight, &self.c_fc.bias, self.activation)?
        };
        let post = hooks.at(Site::MlpPost(layer), post)?; // [B, P, neuron]
        let out = self.c_proj.forward(&post)?;
        hooks.at(Site::MlpOut(layer), out) // [B, P, dim]
    }
}

impl Linear {
    fn new(name: &str, get: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { weight: get(&format!("{name}.weight"))?, bias: get(&format!("{name}.bias"))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, &self.bias)?)
    }
}

impl LayerNorm {
    fn new(config: &Config, name: &str, get: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: get(&format!("{name}.weight"))?,
            bias: get(&format!("{name}.bias"))?,
            eps: config.layer_norm_epsilon,
        })
    }

    /// Without hooks, divided by a given standard deviation or by its own.
    fn of(&self, x: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
        Ok(match scale {
            None => ops::layer_norm(x, &self.weight, &self.bias, self.eps)?,
            Some(scale) => ops::affine(&ops::normalize(x, scale)?, &self.weight, &self.bias)?,
        })
    }

    fn forward<H: Hooks>(&self, x: &Tensor, scale: Site, normalized: Site, hooks: &mut H) -> Result<Tensor> {
        if !hooks.wants(scale) && !hooks.wants(normalized) {
            return self.of(x, None); // the same bits in one pass
        }
        let s = hooks.at(scale, ops::norm_scale(x, self.eps)?)?; // [B, P, 1]
        let n = hooks.at(normalized, ops::normalize(x, &s)?)?; // [B, P, dim]
        Ok(ops::affine(&n, &self.weight, &self.bias)?)
    }
}

//! Direct logit attribution: what every part of the model adds to a logit, in the published basis, so that it adds up.
//!
//! The final residual stream is a sum of components, x = Σ xᶜ. The last LayerNorm centres it, divides it by s, its own
//! standard deviation, multiplies by the gain γ and adds the bias β; the unembedding multiplies by u, the difference of
//! the answers' rows. With s as it was in the run every component has a share of its own,
//!
//! ```text
//! DLAᶜ = ((xᶜ − mean xᶜ) / s) · (γ ⊙ u),    and β · u remains for the bias,
//! ```
//!
//! and the shares add up to the logit (Elhage et al. 2021; Wang et al. 2022, appendix). What rounding leaves is a row of
//! its own, the remainder.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use polars::prelude::*;

use crate::convention::LayerNormConvention;
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::plan::Plan;
use crate::site::{Site, resolve_index};
use crate::stats::{Interval, bootstrap};
use crate::target::Target;
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// How finely the stream is taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Embeddings, and what attention and MLP of every layer add, biases included.
    Component,
    /// Heads and output biases instead of attention.
    #[default]
    Head,
    /// Neurons and output biases instead of MLPs, too.
    Neuron,
}

impl FromStr for By {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "component" => Ok(Self::Component),
            "head" => Ok(Self::Head),
            "neuron" => Ok(Self::Neuron),
            other => Err(Error::no_such("level of attribution", other, ["component", "head", "neuron"])),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Component => "component",
            Self::Head => "head",
            Self::Neuron => "neuron",
        })
    }
}

/// A part of the model. Prints as `embed`, `head.5.1`, `mlp_out.3`, `neuron.4.117` …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// What kind it is.
    pub kind: &'static str,
    /// Its layer; none for parts outside of layers.
    pub layer: Option<usize>,
    /// Its head, for heads.
    pub head: Option<usize>,
    /// Its index in the layer, for neurons.
    pub neuron: Option<usize>,
}

impl Component {
    const fn once(kind: &'static str) -> Self {
        Self { kind, layer: None, head: None, neuron: None }
    }

    const fn of(kind: &'static str, layer: usize) -> Self {
        Self { kind, layer: Some(layer), head: None, neuron: None }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        [self.layer, self.head, self.neuron].into_iter().flatten().try_for_each(|index| write!(f, ".{index}"))
    }
}

/// The attribution of one prompt.
#[derive(Clone, Debug)]
pub struct Attributed {
    /// The position whose logits are attributed.
    pub pos: usize,
    /// The token there.
    pub token: String,
    /// What is attributed.
    pub target: Target,
    /// The shares, in the order of the forward pass; the bias of the last LayerNorm comes last.
    pub parts: Vec<(Component, f64)>,
    /// What the model itself says.
    pub value: f64,
}

impl Attributed {
    /// The model's value minus the sum of the shares.
    pub fn remainder(&self) -> f64 {
        self.value - self.parts.iter().map(|(_, share)| share).sum::<f64>()
    }
}

/// Attributes the logits at `pos` of every prompt (negative positions count from its end) to the parts of the model.
///
/// There is one target per prompt.
///
/// # Errors
/// Tokens that do not fit the model, a position or an answer that does not exist, too few targets.
pub fn attribute(model: &Gpt2, tokens: &Tokens, targets: &[Target], by: By, pos: i64) -> Result<Vec<Attributed>> {
    let layers = 0..model.config().n_layer;
    let of_layer = |l: usize| match by {
        By::Component => [Site::AttnOut(l), Site::MlpOut(l)],
        By::Head => [Site::Z(l), Site::MlpOut(l)],
        By::Neuron => [Site::Z(l), Site::MlpPost(l)],
    };
    let reads = [Site::Embed, Site::PosEmbed].into_iter().chain(layers.flat_map(of_layer));
    let run = Run::new(model, tokens, targets, pos, reads)?;
    let mut readers: BTreeMap<&Target, Reader> = BTreeMap::new();
    let mut all = Vec::new();
    for (prompt, target) in targets.iter().enumerate() {
        if !readers.contains_key(target) {
            readers.insert(target, Reader::new(model, target, by)?);
        }
        let reader = &readers[target];
        let scale = reader.scale(&run.last[prompt]);
        let parts = reader.parts(&run, prompt, scale, by)?;
        all.push(run.attributed(prompt, target, parts)?);
    }
    Ok(all)
}

/// The value that the target would have if the model stopped earlier: at `resid_pre` and `resid_mid` of every layer and
/// at the end, whose value is the model's.
///
/// The bias of the last LayerNorm is part of every value, and there is no remainder but in the last.
///
/// # Errors
/// As [`attribute`].
pub fn accumulated(
    model: &Gpt2,
    tokens: &Tokens,
    targets: &[Target],
    convention: LayerNormConvention,
    pos: i64,
) -> Result<Vec<Attributed>> {
    let layers = model.config().n_layer;
    let streams = (0..layers).flat_map(|l| [Site::ResidPre(l), Site::ResidMid(l)]);
    let run = Run::new(model, tokens, targets, pos, streams.clone())?;
    let mut all = Vec::new();
    for (prompt, target) in targets.iter().enumerate() {
        let reader = Reader::new(model, target, By::Component)?;
        let last = &run.last[prompt];
        let value = |x: &[f64]| {
            let s = match convention {
                LayerNormConvention::FinalScale => reader.scale(last),
                LayerNormConvention::Recompute => reader.scale(x),
            };
            dot(x, &reader.direction) / s + reader.bias
        };
        let mut parts = Vec::new();
        for site in streams.clone() {
            let layer = site.layer().unwrap_or(0);
            parts.push((Component::of(site.kind(), layer), value(run.row(site, prompt)?)));
        }
        parts.push((Component::of(Site::ResidPost(0).kind(), layers - 1), value(last)));
        all.push(run.attributed(prompt, target, parts)?);
    }
    Ok(all)
}

/// What a run left.
struct Run<'a> {
    tokens: &'a Tokens,
    positions: Vec<usize>,
    /// The values at every site, one row per prompt at its position: those of all positions would be a thousand times that.
    rows: BTreeMap<Site, Vec<Vec<f64>>>,
    /// The final residual stream of every prompt at its position.
    last: Vec<Vec<f64>>,
    /// The logits there.
    logits: Vec<Vec<f32>>,
}

impl<'a> Run<'a> {
    fn new(
        model: &Gpt2,
        tokens: &'a Tokens,
        targets: &[Target],
        pos: i64,
        sites: impl Iterator<Item = Site>,
    ) -> Result<Self> {
        if targets.len() != tokens.len() {
            return Err(Error::request(format!(
                "{} prompts need as many targets, not {}",
                tokens.len(),
                targets.len()
            )));
        }
        let positions: Vec<usize> = (0..tokens.len())
            .map(|prompt| resolve_index("pos", pos, tokens.row(prompt).len()))
            .collect::<Result<_>>()?;
        let mut rows = BTreeMap::new();
        let at = |value: &Tensor| -> Result<Vec<Vec<f64>>> {
            positions.iter().enumerate().map(|(prompt, pos)| wide(&value.get(prompt)?.get(*pos)?)).collect()
        };
        let plan = Plan::new().reads(sites).logits(LogitsAt::None);
        let trace = plan.run_each(model, tokens, &mut |site, value| {
            rows.insert(site, at(value)?);
            Ok(())
        })?;
        let (mut last, mut logits) = (Vec::new(), Vec::new());
        for (prompt, pos) in positions.iter().enumerate() {
            let resid = trace.resid().get(prompt)?.narrow(0, *pos, 1)?;
            last.push(wide(&resid)?);
            logits.push(to_f32(&model.unembed(&resid)?)?);
        }
        Ok(Self { tokens, positions, rows, last, logits })
    }

    /// The values at a site at the position of a prompt.
    fn row(&self, site: Site, prompt: usize) -> Result<&[f64]> {
        self.rows.get(&site).map(|rows| rows[prompt].as_slice()).ok_or(Error::NotRead(site))
    }

    fn attributed(&self, prompt: usize, target: &Target, parts: Vec<(Component, f64)>) -> Result<Attributed> {
        let (pos, value) = (self.positions[prompt], target.value(&self.logits[prompt])?);
        let token = self.tokens.text(prompt, pos).into_owned();
        Ok(Attributed { pos, token, target: target.clone(), parts, value })
    }
}

/// A target as seen from the residual stream and from what is written into it, before the division by s.
struct Reader {
    /// γ ⊙ u minus its mean, so that its product with any x is that with x − mean x. `[dim]`
    direction: Vec<f64>,
    /// β · u.
    bias: f64,
    eps: f64,
    head_dim: usize,
    layers: Vec<LayerReader>,
}

/// Output weights and biases of a layer times the direction.
#[derive(Default)]
struct LayerReader {
    /// `[head · head width]`.
    attention: Vec<f64>,
    attention_bias: f64,
    /// `[neuron]`.
    mlp: Vec<f64>,
    mlp_bias: f64,
}

impl Reader {
    fn new(model: &Gpt2, target: &Target, by: By) -> Result<Self> {
        let u = target.direction(model)?;
        let gain = wide(model.weight("ln_f.weight")?)?;
        let mut direction: Vec<f64> = u.iter().zip(gain).map(|(u, gain)| u * gain).collect();
        let mean = direction.iter().sum::<f64>() / direction.len() as f64;
        direction.iter_mut().for_each(|x| *x -= mean);
        let times = |name: &str| -> Result<Vec<f64>> {
            let weight = to_f32(model.weight(name)?)?;
            let product = |row: &[f32]| row.iter().zip(&direction).map(|(x, d)| f64::from(*x) * d).sum();
            Ok(weight.chunks_exact(direction.len()).map(product).collect())
        };
        let mut layers = Vec::new();
        for l in 0..model.config().n_layer {
            let mut layer = LayerReader::default();
            if by != By::Component {
                layer.attention = times(&format!("h.{l}.attn.c_proj.weight"))?;
                layer.attention_bias = times(&format!("h.{l}.attn.c_proj.bias"))?.iter().sum();
            }
            if by == By::Neuron {
                layer.mlp = times(&format!("h.{l}.mlp.c_proj.weight"))?;
                layer.mlp_bias = times(&format!("h.{l}.mlp.c_proj.bias"))?.iter().sum();
            }
            layers.push(layer);
        }
        let bias = dot(&wide(model.weight("ln_f.bias")?)?, &u);
        let config = model.config();
        Ok(Self { direction, bias, eps: config.layer_norm_epsilon, head_dim: config.head_dim, layers })
    }

    /// What LayerNorm divides a stream by.
    fn scale(&self, x: &[f64]) -> f64 {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n + self.eps).sqrt()
    }

    fn parts(&self, run: &Run<'_>, prompt: usize, scale: f64, by: By) -> Result<Vec<(Component, f64)>> {
        let whole = |site: Site| -> Result<f64> { Ok(dot(run.row(site, prompt)?, &self.direction) / scale) };
        let mut parts = vec![
            (Component::once("embed"), whole(Site::Embed)?),
            (Component::once("pos_embed"), whole(Site::PosEmbed)?),
        ];
        for (l, layer) in self.layers.iter().enumerate() {
            if by == By::Component {
                parts.push((Component::of("attn_out", l), whole(Site::AttnOut(l))?));
            } else {
                let z = run.row(Site::Z(l), prompt)?;
                let heads = z.chunks(self.head_dim).zip(layer.attention.chunks(self.head_dim));
                for (head, (z, weight)) in heads.enumerate() {
                    parts.push((Component { head: Some(head), ..Component::of("head", l) }, dot(z, weight) / scale));
                }
                parts.push((Component::of("b_O", l), layer.attention_bias / scale));
            }
            if by != By::Neuron {
                parts.push((Component::of("mlp_out", l), whole(Site::MlpOut(l))?));
                continue;
            }
            for (neuron, (post, weight)) in run.row(Site::MlpPost(l), prompt)?.iter().zip(&layer.mlp).enumerate() {
                let component = Component { neuron: Some(neuron), ..Component::of("neuron", l) };
                parts.push((component, post * weight / scale));
            }
            parts.push((Component::of("b_out", l), layer.mlp_bias / scale));
        }
        parts.push((Component::once("ln_final_bias"), self.bias));
        Ok(parts)
    }
}

/// Attributions as a frame; of neurons only the `neurons` strongest on average, and the others of a layer in one row.
///
/// | column | |
/// |---|---|
/// | `prompt` | which; null in rows that are means over several prompts |
/// | `component` | `embed`, `pos_embed`, `attn_out.L`, `head.L.H`, `b_O.L`, `mlp_out.L`, `neuron.L.N`, `other_neurons.L`, `b_out.L`, `ln_final_bias` and `remainder`; accumulated `resid_pre.L`, `resid_mid.L` and `resid_post.L` |
/// | `layer`, `head`, `neuron` | where it has them |
/// | `contribution` | its share of the logit (difference); of a prompt they add up to the model's. Accumulated: the logit (difference) as of there |
/// | `low`, `high` | in rows without a prompt: 95 % bootstrap interval of the mean |
/// | `pos`, `token` | whose logits are attributed; null in means |
/// | `answer`, `wrong` | the tokens, several joined by `|`; null in means |
/// | `convention` | `final-scale` or `recompute`, see [`LayerNormConvention`] |
///
/// # Errors
/// [`Error::Request`] for no attribution.
pub fn frame(
    attributed: &[Attributed],
    convention: LayerNormConvention,
    neurons: usize,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<DataFrame> {
    let Some(first) = attributed.first() else { return Err(Error::request("there is no prompt")) };
    let is_sum = first.parts.iter().any(|(component, _)| component.kind == "embed");
    let rows: Vec<Vec<(Component, f64)>> = shown(attributed, neurons)
        .into_iter()
        .zip(attributed)
        .map(|(mut parts, one)| {
            if is_sum {
                parts.push((Component::once("remainder"), one.remainder()));
            }
            parts
        })
        .collect();
    let names = |ids: &[u32]| -> Option<String> {
        (!ids.is_empty()).then(|| ids.iter().map(|&id| tokenizer.text(id)).collect::<Vec<_>>().join("|"))
    };
    let mut out = Rows::default();
    for (prompt, (parts, one)) in rows.iter().zip(attributed).enumerate() {
        let (answer, wrong) = (names(one.target.answers()), names(one.target.wrong()));
        for (component, share) in parts {
            out.push(component, *share, None);
            out.prompt.push(Some(prompt as u32));
            out.pos.push(Some(one.pos as u32));
            out.token.push(Some(one.token.clone()));
            out.answer.push(answer.clone());
            out.wrong.push(wrong.clone());
        }
    }
    if rows.len() > 1 {
        for (i, (component, _)) in rows[0].iter().enumerate() {
            let shares: Vec<f64> = rows.iter().map(|parts| parts[i].1).collect();
            let interval = bootstrap(&shares, seed);
            out.push(component, interval.mean, Some(interval));
            out.prompt.push(None);
            out.pos.push(None);
            out.token.push(None);
            out.answer.push(None);
            out.wrong.push(None);
        }
    }
    out.finish(convention)
}

/// The parts with all but the strongest neurons of each layer summed up; the same neurons for every prompt.
fn shown(attributed: &[Attributed], neurons: usize) -> Vec<Vec<(Component, f64)>> {
    let parts = &attributed[0].parts;
    let strength = |i: &usize| attributed.iter().map(|one| one.parts[*i].1.abs()).sum::<f64>();
    let mut order: Vec<usize> = (0..parts.len()).filter(|&i| parts[i].0.neuron.is_some()).collect();
    if order.is_empty() {
        return attributed.iter().map(|one| one.parts.clone()).collect();
    }
    order.sort_by(|a, b| strength(b).total_cmp(&strength(a)).then(a.cmp(b)));
    let mut kept = vec![true; parts.len()];
    order.iter().skip(neurons).for_each(|&i| kept[i] = false);
    let one = |one: &Attributed| {
        let mut parts: Vec<(Component, f64)> = Vec::new();
        let mut rest: Option<(usize, f64)> = None;
        for ((component, share), kept) in one.parts.iter().zip(&kept) {
            let layer = component.neuron.and(component.layer);
            if let Some((of, sum)) = rest.filter(|(of, _)| layer != Some(*of)) {
                parts.push((Component::of("other_neurons", of), sum));
                rest = None;
            }
            match (kept, layer) {
                (false, Some(layer)) => rest = Some((layer, rest.map_or(0.0, |(_, sum)| sum) + share)),
                _ => parts.push((*component, *share)),
            }
        }
        parts
    };
    attributed.iter().map(one).collect()
}

/// Columns on their way.
#[derive(Default)]
struct Rows {
    prompt: Vec<Option<u32>>,
    component: Vec<String>,
    layer: Vec<Option<u32>>,
    head: Vec<Option<u32>>,
    neuron: Vec<Option<u32>>,
    contribution: Vec<f64>,
    low: Vec<Option<f64>>,
    high: Vec<Option<f64>>,
    pos: Vec<Option<u32>>,
    token: Vec<Option<String>>,
    answer: Vec<Option<String>>,
    wrong: Vec<Option<String>>,
}

impl Rows {
    fn push(&mut self, component: &Component, contribution: f64, interval: Option<Interval>) {
        let index = |i: Option<usize>| i.map(|i| i as u32);
        self.component.push(component.to_string());
        self.layer.push(index(component.layer));
        self.head.push(index(component.head));
        self.neuron.push(index(component.neuron));
        self.contribution.push(contribution);
        self.low.push(interval.and_then(|interval| interval.low()));
        self.high.push(interval.and_then(|interval| interval.high()));
    }

    fn finish(self, convention: LayerNormConvention) -> Result<DataFrame> {
        let convention = vec![convention.to_string(); self.component.len()];
        Ok(df!(
            "prompt" => self.prompt,
            "component" => self.component,
            "layer" => self.layer,
            "head" => self.head,
            "neuron" => self.neuron,
            "contribution" => self.contribution,
            "low" => self.low,
            "high" => self.high,
            "pos" => self.pos,
            "token" => self.token,
            "answer" => self.answer,
            "wrong" => self.wrong,
            "convention" => convention,
        )?)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The elements of a tensor, for sums that should add up.
fn wide(value: &Tensor) -> Result<Vec<f64>> {
    Ok(to_f32(value)?.into_iter().map(f64::from).collect())
}

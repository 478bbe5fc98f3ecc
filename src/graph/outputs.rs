//! What every node of a graph writes in a run.

use candle_core::{DType, Tensor};

use super::layout::Graph;
use crate::config::Config;
use crate::error::Result;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::plan::{Plan, Trace};
use crate::site::Site;
use crate::tokens::Tokens;

/// What every source writes, `[prompt, source, pos · dim]` in the order of [`Graph`].
#[derive(Clone, Debug)]
pub struct Outputs {
    all: Tensor,
}

impl Outputs {
    /// Adds what has to be read for [`Outputs::of`].
    pub fn read(plan: Plan, config: &Config) -> Plan {
        let layers = (0..config.n_layer).flat_map(|l| [Site::Result(l), Site::MlpOut(l)]);
        plan.reads([Site::Embed, Site::PosEmbed].into_iter().chain(layers))
    }

    /// Of a run that [`Outputs::read`] them.
    ///
    /// # Errors
    /// [`crate::Error::NotRead`] for a run that did not.
    pub fn of(trace: &Trace, config: &Config) -> Result<Self> {
        let input = (trace.get(Site::Embed)? + trace.get(Site::PosEmbed)?)?;
        let mut blocks = vec![one(&input)?];
        for l in 0..config.n_layer {
            blocks.push(heads(trace.get(Site::Result(l))?)?);
            blocks.push(one(trace.get(Site::MlpOut(l))?)?);
        }
        Ok(Self { all: Tensor::cat(&blocks, 1)? })
    }

    /// Of a plain run of some prompts, with the logits after the last token of each, `[prompt, 1, vocab]`.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn run(model: &Gpt2, tokens: &Tokens) -> Result<(Self, Tensor)> {
        let trace = Self::read(Plan::new(), model.config()).logits(LogitsAt::Last).run(model, tokens)?;
        Ok((Self::of(&trace, model.config())?, trace.logits()?.clone()))
    }

    /// All of them, `[prompt, source, pos · dim]`.
    pub fn tensor(&self) -> &Tensor {
        &self.all
    }

    /// Those of some prompts.
    ///
    /// # Errors
    /// As candle.
    pub fn rows(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, self.all.device())?;
        Ok(Self { all: self.all.index_select(&rows, 0)? })
    }

    /// Those of several runs of equally long prompts.
    ///
    /// # Errors
    /// As candle.
    pub fn stack(runs: &[Self]) -> Result<Self> {
        Ok(Self { all: Tensor::cat(&runs.iter().map(|run| &run.all).collect::<Vec<_>>(), 0)? })
    }

    /// The mean over all prompts, for each of them.
    ///
    /// # Errors
    /// As candle.
    pub fn mean(&self) -> Result<Self> {
        Ok(Self { all: self.all.mean_keepdim(0)?.broadcast_as(self.all.shape())?.contiguous()? })
    }

    /// What is left of equally long prompts where tokens, heads and MLPs write zero: the embeddings of their positions, which the
    /// input writes too.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn zero(model: &Gpt2, tokens: &Tokens) -> Result<Self> {
        let trace = Plan::new().read(Site::PosEmbed).logits(LogitsAt::None).run(model, tokens)?;
        let positions = one(trace.get(Site::PosEmbed)?)?;
        let (b, _, values) = positions.dims3()?;
        let rest = Graph::of(model.config()).sources() - 1;
        let rest = Tensor::zeros((b, rest, values), DType::F32, positions.device())?;
        Ok(Self { all: Tensor::cat(&[positions, rest], 1)? })
    }

    /// Bytes that those of one prompt take.
    pub fn bytes(graph: Graph, length: usize, config: &Config) -> u64 {
        4 * (graph.sources() * length * config.n_embd) as u64
    }
}

/// `[prompt, pos, dim]` as one source.
pub(super) fn one(value: &Tensor) -> Result<Tensor> {
    let (b, p, d) = value.dims3()?;
    Ok(value.contiguous()?.reshape((b, 1, p * d))?.to_dtype(DType::F32)?)
}

/// `[prompt, pos, head, dim]` as one source per head.
pub(super) fn heads(value: &Tensor) -> Result<Tensor> {
    let (b, p, h, d) = value.dims4()?;
    Ok(value.transpose(1, 2)?.contiguous()?.reshape((b, h, p * d))?.to_dtype(DType::F32)?)
}

//! Input attribution: what each token of a prompt does for the answer, from gradients by its embedding.

use candle_core::{DType, Tensor};
use polars::prelude::{DataFrame, df};

use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::metric::Metric;
use crate::plan::{Plan, Trace};
use crate::site::Site;
use crate::target::Target;
use crate::tokens::Tokens;

/// Padded tokens of steps that pass through the model at once.
const BATCH_TOKENS: usize = 512;

/// Where integrated gradients begin.
#[derive(Clone, Debug, Default)]
pub enum Baseline {
    /// Token embeddings of zero.
    #[default]
    Zero,
    /// The mean of all token embeddings.
    Mean,
    /// The token embeddings of another prompt of the same length.
    Prompt(Tokens),
}

/// One prompt, attributed to its tokens.
#[derive(Clone, Debug)]
pub struct Saliency {
    /// The metric of the prompt.
    pub value: f64,
    /// The metric at the baseline.
    pub baseline: f64,
    /// ‖∂metric / ∂embedding‖ of each token.
    pub gradient_norm: Vec<f64>,
    /// Embedding · ∂metric / ∂embedding of each token.
    pub gradient_input: Vec<f64>,
    /// Integrated gradients of each token (Sundararajan et al. 2017); they sum to `value` − `baseline` but for the steps.
    pub integrated: Vec<f64>,
}

impl Saliency {
    /// How far the integrated gradients are from adding up.
    pub fn gap(&self) -> f64 {
        self.integrated.iter().sum::<f64>() - (self.value - self.baseline)
    }
}

/// Attributes a metric of one prompt to its tokens. Position embeddings stay as they are. The integral is taken by the midpoint
/// rule over `steps` points on the straight line from the baseline to the prompt.
///
/// # Errors
/// [`Error::Request`] for no steps, several prompts, a baseline of another length, or a metric without a gradient;
/// [`Error::TryAgain`] where one step takes more than `room` bytes.
pub fn saliency(
    model: &Gpt2,
    tokens: &Tokens,
    target: &Target,
    metric: Metric,
    baseline: &Baseline,
    steps: usize,
    room: Option<u64>,
) -> Result<Saliency> {
    if steps == 0 || tokens.len() != 1 {
        return Err(Error::request(format!(
            "{} prompts in {steps} steps: one prompt, and at least one step",
            tokens.len()
        )));
    }
    let plain = run(model, tokens, None)?;
    let clean = to_f32(plain.logits()?)?;
    let own = plain.get(Site::Embed)?.to_dtype(DType::F32)?;
    let start = match baseline {
        Baseline::Zero => own.zeros_like()?,
        Baseline::Mean => model
            .weight("wte.weight")?
            .to_dtype(DType::F32)?
            .mean_keepdim(0)?
            .broadcast_as(own.shape())?
            .contiguous()?,
        Baseline::Prompt(other) if other.longest() == tokens.longest() && other.len() == 1 => {
            Plan::new().read(Site::Embed).until(0).run(model, other)?.get(Site::Embed)?.to_dtype(DType::F32)?
        }
        Baseline::Prompt(other) => {
            let (a, b) = (tokens.longest(), other.longest());
            return Err(Error::request(format!(
                "the prompt has {a} tokens and its baseline {b}; they have to be equally long"
            )));
        }
    };
    let measure = |logits: &[f32]| metric.of(logits, &clean, target);
    let rows = |x: &Tensor| -> Result<Vec<f64>> { Ok(to_f32(&x.sum(2)?)?.into_iter().map(f64::from).collect()) };
    let gradient = gradient(&plain, &clean, target, metric)?;
    let gradient_norm = rows(&gradient.sqr()?)?.into_iter().map(f64::sqrt).collect();
    let gradient_input = rows(&(&gradient * &own)?)?;

    let way = (&own - &start)?;
    let usual = BATCH_TOKENS / tokens.longest();
    let step = model.config().gradient_memory(1, tokens.longest());
    let at_once = memory::at_once("one step of integrated gradients", step, usual, room)?;
    let products = memory::in_batches(steps, at_once, &mut |part| {
        let again = Tokens::from_ids(vec![tokens.row(0).to_vec(); part.len()])?;
        let on_way = |k: usize| Ok((&start + way.affine((k as f64 + 0.5) / steps as f64, 0.0)?)?);
        let trace = run(model, &again, Some(&Tensor::cat(&part.map(on_way).collect::<Result<Vec<_>>>()?, 0)?))?;
        rows(&self::gradient(&trace, &clean, target, metric)?.broadcast_mul(&way)?)
    })?;
    let mut integrated = vec![0.0; tokens.longest()];
    for products in products.chunks_exact(tokens.longest()) {
        integrated.iter_mut().zip(products).for_each(|(sum, x)| *sum += x / steps as f64);
    }
    let at_start = run(model, tokens, Some(&start))?;
    let baseline = measure(&to_f32(at_start.logits()?)?);
    Ok(Saliency { value: measure(&clean), baseline, gradient_norm, gradient_input, integrated })
}

/// A run of the prompt with some token embeddings, ready for their gradient.
fn run(model: &Gpt2, tokens: &Tokens, embed: Option<&Tensor>) -> Result<Trace> {
    let plan = Plan::new().read(Site::Embed).grad(Site::Embed).logits(LogitsAt::Last);
    let plan = if let Some(embed) = embed { plan.edit(Edit::set(Site::Embed, embed)) } else { plan };
    plan.run(model, tokens)
}

/// The metric's gradient by the token embeddings of every row, `[row, pos, dim]`.
fn gradient(trace: &Trace, clean: &[f32], target: &Target, metric: Metric) -> Result<Tensor> {
    let mut slopes = Vec::new();
    for row in to_f32(trace.logits()?)?.chunks_exact(clean.len()) {
        slopes.extend(metric.gradient(row, clean, target)?);
    }
    let (sloped, scale) = trace.with_slopes(&slopes)?;
    let backward = trace.backward(&sloped)?;
    Ok((backward.get(Site::Embed)?.to_dtype(DType::F32)? * scale)?)
}

/// Prompts with their attributions as a frame.
///
/// | column | |
/// |---|---|
/// | `prompt`, `pos`, `token_id`, `token` | which |
/// | `integrated`, `gradient_input`, `gradient_norm` | see [`Saliency`] |
///
/// # Errors
/// None in practice.
pub fn frame(tokens: &Tokens, all: &[Saliency]) -> Result<DataFrame> {
    let places = || (0..all.len()).flat_map(|row| (0..tokens.row(row).len()).map(move |pos| (row, pos)));
    let values = |of: fn(&Saliency) -> &Vec<f64>| places().map(|(row, pos)| of(&all[row])[pos]).collect::<Vec<_>>();
    Ok(df!(
        "prompt" => places().map(|(row, _)| row as u32).collect::<Vec<_>>(),
        "pos" => places().map(|(_, pos)| pos as u32).collect::<Vec<_>>(),
        "token_id" => places().map(|(row, pos)| tokens.row(row)[pos]).collect::<Vec<_>>(),
        "token" => places().map(|(row, pos)| tokens.text(row, pos).into_owned()).collect::<Vec<_>>(),
        "integrated" => values(|one| &one.integrated),
        "gradient_input" => values(|one| &one.gradient_input),
        "gradient_norm" => values(|one| &one.gradient_norm),
    )?)
}

//! Edge attribution patching: all edges from a few forward passes and one backward pass.

use candle_core::{DType, IndexOp, Tensor, Var};

use crate::config::Config;
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::graph::{Graph, Outputs, Receiver};
use crate::memory;
use crate::metric::Metric;
use crate::pair::Pair;
use crate::plan::{Gradients, Plan, Trace};
use crate::reads::Reads;
use crate::site::Site;
use crate::tokens::Tokens;

/// Padded tokens of prompts and steps that pass through the model at once.
const BATCH_TOKENS: usize = 512;

/// Where gradients are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// In the clean run: edge attribution patching (EAP, Syed et al. 2023).
    Clean,
    /// The mean over so many runs whose input goes from the corrupted one to the clean one, at k/m of the way for k = 0 … m − 1:
    /// EAP with integrated gradients (EAP-IG, Hanna et al. 2024, as its code has it).
    Integrated(usize),
}

impl Steps {
    fn count(self) -> usize {
        match self {
            Steps::Clean => 1,
            Steps::Integrated(steps) => steps,
        }
    }
}

/// Scores of every edge of a model for each pair, in the order of [`Graph`]:
/// Σ (what the source writes in the clean run − in the corrupted run) · ∂metric / ∂(what the receiver reads), over all
/// positions. `progress(done, all)` counts pairs.
///
/// # Errors
/// [`Error::Request`] for no steps, noise instead of a corrupted prompt, or a metric without a gradient;
/// [`Error::TryAgain`] where one step of one pair takes more than `room` bytes; faults of the prompts, and what `progress` returns.
pub fn attribute(
    model: &Gpt2,
    pairs: &[Pair],
    metric: Metric,
    steps: Steps,
    room: Option<u64>,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    if steps.count() == 0 {
        return Err(Error::request("integrated gradients need at least one step"));
    }
    pairs.iter().try_for_each(Pair::check_prompts)?;
    let config = model.config();
    let mut all = Vec::with_capacity(pairs.len());
    while all.len() < pairs.len() {
        let rest = &pairs[all.len()..];
        let length = rest[0].len();
        // At four sites a layer a copy and a gradient are kept.
        let taps = (2 * 4 * 4 * config.n_layer * config.n_embd * length) as u64;
        let step = config.gradient_memory(1, length) + taps;
        let held = 6 * Outputs::bytes(Graph::of(config), length, config);
        let usual = BATCH_TOKENS / (length * steps.count());
        let most = memory::at_once("one step of one pair", held + step, usual, room)?;
        let n = rest.iter().take(most).take_while(|pair| pair.len() == length).count();
        let left = room.map(|room| room - n as u64 * held);
        let at_once = memory::at_once("one step of one pair", n as u64 * step, BATCH_TOKENS / (length * n), left)?;
        all.extend(memory::in_batches(n, n, &mut |part| batch(model, &rest[part], metric, steps, at_once))?);
        progress(all.len(), pairs.len())?;
    }
    Ok(all)
}

/// Scores of pairs of one length, from so many steps at once.
fn batch(model: &Gpt2, pairs: &[Pair], metric: Metric, steps: Steps, at_once: usize) -> Result<Vec<Vec<f64>>> {
    let config = model.config();
    // Clean and corrupted prompts pass together: so few tokens take as long as reading the weights does.
    let n = pairs.len();
    let prompts = pairs.iter().map(Pair::clean).chain(pairs.iter().map(Pair::corrupt));
    let both = Outputs::read(Plan::new(), config).logits(LogitsAt::Last).run(model, &Tokens::stack(prompts)?)?;
    // [pair, source, pos · dim]
    let difference = {
        let written = Outputs::of(&both, config)?;
        (written.tensor().narrow(0, 0, n)? - written.tensor().narrow(0, n, n)?)?.contiguous()?
    };
    let mut scores: Vec<Vec<f64>> = vec![vec![0.0; Graph::of(config).edges()]; n];
    let m = steps.count();
    memory::in_parts(m, at_once, &mut |part| {
        let again: Vec<Vec<u32>> =
            pairs.iter().flat_map(|pair| std::iter::repeat_n(pair.clean().row(0).to_vec(), part.len())).collect();
        let mut plan = gradients(config);
        if let Steps::Integrated(m) = steps {
            let shares: Vec<f32> = part.clone().map(|k| k as f32 / m as f32).collect();
            plan = plan.edit(Edit::set(Site::Embed, &between(&both, n, &shares)?));
        }
        let trace = plan.run(model, &Tokens::from_ids(again)?)?;
        let (sloped, scale) = trace.with_slopes(&slopes(&trace, &both, pairs, metric)?)?;
        let backward = trace.backward(&sloped)?;
        let found = products(model, &difference, &trace, &backward)?;
        let scale = scale * part.len() as f64 / m as f64;
        for (scores, found) in scores.iter_mut().zip(found) {
            scores.iter_mut().zip(found).for_each(|(score, x)| *score += scale * f64::from(x));
        }
        Ok(())
    })?;
    Ok(scores)
}

/// For each pair and every edge, what its source writes otherwise times the gradient by what its receiver reads, the mean over
/// the rows of the pair.
fn products(model: &Gpt2, difference: &Tensor, trace: &Trace, backward: &Gradients) -> Result<Vec<Vec<f32>>> {
    let config = model.config();
    let graph = Graph::of(config);
    let pairs = difference.dim(0)?;
    let mut found = vec![vec![0.0; graph.edges()]; pairs];
    let mut add = |receivers: &[Receiver], gradients: Vec<Tensor>| -> Result<()> {
        let sources = graph.before(receivers[0]);
        let columns = Tensor::stack(&gradients, 2)?; // [pair, pos · dim, receiver]
        let products = difference.narrow(1, 0, sources)?.contiguous()?.matmul(&columns)?; // [pair, source, receiver]
        for (pair, found) in found.iter_mut().enumerate() {
            let products = products.i(pair)?.t()?.contiguous()?.to_vec2::<f32>()?;
            for (receiver, products) in receivers.iter().zip(products) {
                found[graph.edges_into(graph.receiver_index(*receiver))].copy_from_slice(&products);
            }
        }
        Ok(())
    };
    // Every gradient as [pair, pos · dim].
    let mean = |gradient: &Tensor| -> Result<Tensor> {
        let (b, p, d) = gradient.dims3()?;
        Ok(gradient.to_dtype(DType::F32)?.contiguous()?.reshape((pairs, b / pairs, p * d))?.mean(1)?)
    };
    for layer in 0..config.n_layer {
        let stream = trace.get(Site::ResidPre(layer))?;
        let (mut receivers, mut columns) = (Vec::new(), Vec::new());
        for reads in Reads::ALL {
            let above = backward.get(reads.site(layer))?;
            for head in 0..config.n_head {
                receivers.push(Receiver::Head { layer, head, reads });
                columns.push(mean(&through(model, stream, above, layer, head, reads)?)?);
            }
        }
        add(&receivers, columns)?;
        add(&[Receiver::Mlp(layer)], vec![mean(backward.get(Site::MlpIn(layer))?)?])?;
    }
    add(&[Receiver::Logits], vec![mean(backward.get(Site::ResidPost(config.n_layer - 1))?)?])?;
    Ok(found)
}

/// A plan for the gradient at everything that reads from the stream.
fn gradients(config: &Config) -> Plan {
    let layers = 0..config.n_layer;
    let sites = layers.clone().flat_map(|l| [Site::Q(l), Site::K(l), Site::V(l), Site::MlpIn(l)]);
    let sites = sites.chain([Site::ResidPost(config.n_layer - 1)]);
    let plan = Plan::new().reads(layers.map(Site::ResidPre)).logits(LogitsAt::Last);
    sites.fold(plan, Plan::grad)
}

/// Token embeddings on the way from the corrupted runs, the last n rows, to the clean ones, the first n: for each pair a row at
/// each of these shares of the way.
fn between(both: &Trace, n: usize, shares: &[f32]) -> Result<Tensor> {
    let all = both.get(Site::Embed)?;
    let (from, to) = (all.narrow(0, n, n)?, all.narrow(0, 0, n)?);
    let (b, p, d) = from.dims3()?;
    let rows = shares.len();
    let shares = Tensor::from_slice(shares, (1, rows, 1, 1), from.device())?.to_dtype(from.dtype())?;
    let way = (to - &from)?.unsqueeze(1)?.broadcast_mul(&shares)?; // [B, share, P, dim]
    Ok(from.unsqueeze(1)?.broadcast_add(&way)?.reshape((b * rows, p, d))?)
}

/// The metric's slopes by the logits of every row.
fn slopes(trace: &Trace, both: &Trace, pairs: &[Pair], metric: Metric) -> Result<Vec<f64>> {
    let (own, plain) = (to_f32(trace.logits()?)?, to_f32(both.logits()?)?);
    let vocab = plain.len() / (2 * pairs.len());
    let rows = own.len() / vocab / pairs.len();
    let mut slopes = Vec::with_capacity(own.len());
    for (row, own) in own.chunks_exact(vocab).enumerate() {
        let pair = row / rows;
        slopes.extend(metric.gradient(own, &plain[pair * vocab..][..vocab], pairs[pair].target())?);
    }
    Ok(slopes)
}

/// The gradient by the stream that one head reads, from that by its queries, keys or values: back through its columns of the
/// projection and a LayerNorm of its own.
fn through(model: &Gpt2, stream: &Tensor, above: &Tensor, layer: usize, head: usize, reads: Reads) -> Result<Tensor> {
    let own = Var::from_tensor(&stream.detach())?;
    let read = model.read_head(layer, head, reads, &own, None)?;
    let grads = (read * above.i((.., .., head))?.contiguous()?)?.sum_all()?.backward()?;
    grads.get(&own).cloned().ok_or_else(|| Error::Bug("a head that reads nothing".into()))
}

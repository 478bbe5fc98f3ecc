//! Runs in which some edges carry what another run wrote.

use candle_core::{IndexOp, Tensor};

use super::circuit::Circuit;
use super::layout::Graph;
use super::node::Receiver;
use super::outputs::{Outputs, heads, one};
use crate::error::{Error, Result};
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::hooks::Hooks;
use crate::ops;
use crate::reads::Reads;
use crate::site::Site;
use crate::tokens::Tokens;

/// A model of which only a circuit is at work: along every other edge a receiver sees what the source wrote in another run,
/// while all else is computed anew.
///
/// A receiver's stream is the run's own, plus the difference between the other run and this one for every source that is cut
/// off from it. Where nothing is cut nothing is added, so that the full circuit is the model itself, to the bit.
pub struct Rewired<'a> {
    model: &'a Gpt2,
    graph: Graph,
    /// What takes the place of each source, `[prompt, source, pos · dim]`.
    other: Tensor,
    /// By receiver, the sources that are cut off: `[prompt or 1, source]`, 1 where cut; none where none is.
    cuts: Vec<Option<Tensor>>,
    embed: Option<Tensor>,
    /// The stream that heads read.
    stream: Option<Tensor>,
    /// The other run less this one, of the sources so far, in blocks.
    differences: Vec<Tensor>,
}

impl<'a> Rewired<'a> {
    /// Logits after the last token of each prompt, `[prompt, vocab]`, with one circuit for all prompts or one for each.
    ///
    /// # Errors
    /// [`Error::Request`] for a circuit of another graph, and for values that stop being finite.
    pub fn run(model: &'a Gpt2, tokens: &Tokens, circuits: &[&Circuit], other: &Outputs) -> Result<Tensor> {
        let graph = Graph::of(model.config());
        for circuit in circuits {
            circuit.check(graph)?;
        }
        let prompts = other.tensor().dim(0)?;
        if ![1, tokens.len()].contains(&circuits.len()) || prompts != tokens.len() {
            return Err(Error::request(format!(
                "{} prompts need a circuit each or one for all, not {}, and {} other runs, not {prompts}",
                tokens.len(),
                circuits.len(),
                tokens.len(),
            )));
        }
        let cuts =
            (0..graph.receivers()).map(|receiver| cut(graph, circuits, receiver, model)).collect::<Result<_>>()?;
        let (other, differences) = (other.tensor().clone(), Vec::new());
        let mut hooks = Self { model, graph, other, cuts, embed: None, stream: None, differences };
        let output = model.run(Pass::new(tokens).logits(LogitsAt::Last), &mut hooks)?;
        let logits = output.logits.ok_or_else(|| Error::Bug("a run without logits".into()))?.squeeze(1)?;
        if !ops::all_finite(&logits)? {
            return Err(Error::request("the circuit gives logits that are not finite"));
        }
        Ok(logits)
    }

    /// Notes what sources write in this run.
    fn wrote(&mut self, block: Tensor) -> Result<()> {
        let first: usize = self.differences.iter().map(|block| block.dims()[1]).sum();
        let other = self.other.narrow(1, first, block.dim(1)?)?;
        self.differences.push((other - block)?);
        Ok(())
    }

    /// What a receiver's stream has more than the run's own, `[prompt, pos, dim]`; none where it is the same.
    fn change(&self, receiver: Receiver, like: &Tensor) -> Result<Option<Tensor>> {
        let Some(cut) = &self.cuts[self.graph.receiver_index(receiver)] else { return Ok(None) };
        let (b, p, dim) = like.dims3()?;
        let mut sum: Option<Tensor> = None;
        let mut first = 0;
        for block in &self.differences {
            let n = block.dim(1)?;
            if first >= self.graph.before(receiver) {
                break;
            }
            let cut = cut.narrow(1, first, n)?.unsqueeze(1)?; // [prompt or 1, 1, source]
            let cut = cut.broadcast_as((b, 1, n))?.contiguous()?;
            let part = cut.matmul(block)?; // [prompt, 1, pos · dim]
            sum = Some(if let Some(sum) = sum { (sum + part)? } else { part });
            first += n;
        }
        let sum = sum.ok_or_else(|| Error::Bug("a receiver before every source".into()))?;
        Ok(Some(sum.reshape((b, p, dim))?.to_dtype(like.dtype())?))
    }

    /// Queries, keys or values of a layer, of heads from which something is cut off computed from their own stream.
    fn heads(&self, layer: usize, reads: Reads, value: Tensor) -> Result<Tensor> {
        let stream = self.stream.as_ref().ok_or_else(|| Error::Bug("heads before a stream".into()))?;
        let mut changed = false;
        let all = (0..self.graph.heads).map(|head| {
            Ok(match self.change(Receiver::Head { layer, head, reads }, stream)? {
                None => value.i((.., .., head))?,
                Some(change) => {
                    changed = true;
                    self.model.read_head(layer, head, reads, &(stream + change)?, None)?
                }
            })
        });
        let all = all.collect::<Result<Vec<_>>>()?;
        Ok(if changed { Tensor::stack(&all, 2)? } else { value })
    }
}

/// The sources that circuits cut off from a receiver.
fn cut(graph: Graph, circuits: &[&Circuit], receiver: usize, model: &Gpt2) -> Result<Option<Tensor>> {
    let edges = graph.edges_into(receiver);
    let value = |circuit: &&Circuit, edge: usize| if circuit.has(edge) { 0.0 } else { 1.0 };
    let cuts: Vec<f32> =
        circuits.iter().flat_map(|circuit| edges.clone().map(move |edge| value(circuit, edge))).collect();
    if cuts.iter().all(|cut| *cut == 0.0) {
        return Ok(None);
    }
    Ok(Some(Tensor::from_vec(cuts, (circuits.len(), edges.len()), model.device())?))
}

impl Hooks for Rewired<'_> {
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        let last = self.graph.layers - 1;
        let receiver = match site {
            Site::Embed => {
                self.embed = Some(value.clone());
                return Ok(value);
            }
            Site::PosEmbed => {
                let embed = self.embed.take().ok_or_else(|| Error::Bug("no embedding".into()))?;
                self.wrote(one(&(embed + &value)?)?)?;
                return Ok(value);
            }
            Site::ResidPre(_) => {
                self.stream = Some(value.clone());
                return Ok(value);
            }
            Site::Q(l) => return self.heads(l, Reads::Q, value),
            Site::K(l) => return self.heads(l, Reads::K, value),
            Site::V(l) => return self.heads(l, Reads::V, value),
            Site::Result(_) => {
                self.wrote(heads(&value)?)?;
                return Ok(value);
            }
            Site::MlpOut(_) => {
                self.wrote(one(&value)?)?;
                return Ok(value);
            }
            Site::MlpIn(l) => Receiver::Mlp(l),
            Site::ResidPost(l) if l == last => Receiver::Logits,
            _ => return Ok(value),
        };
        Ok(match self.change(receiver, &value)? {
            Some(change) => (value + change)?,
            None => value,
        })
    }

    fn wants(&self, site: Site) -> bool {
        use Site::*;
        match site {
            ResidPost(l) => l + 1 == self.graph.layers,
            Embed | PosEmbed | ResidPre(_) | Q(_) | K(_) | V(_) | Result(_) | MlpOut(_) | MlpIn(_) => true,
            _ => false,
        }
    }
}

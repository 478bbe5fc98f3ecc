//! Edges tried out one by one.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::Gpt2;
use crate::graph::{Graph, Outputs, Receiver};
use crate::metric::Metric;
use crate::pair::Pair;
use crate::plan::Plan;
use crate::site::Site;
use crate::sweep::Cell;
use crate::trunk::{Trunk, Values, Wanted};

/// Bytes of replaced values that wait for their experiment at once.
const WAITING: usize = 64 << 20;

/// What each of these edges does for one pair: the metric of the clean run, less that of a run in which the edge carries what
/// its source wrote in the corrupted run. All that comes after the receiver is computed anew.
///
/// `progress(done, all)` counts edges.
///
/// # Errors
/// [`Error::Request`] for noise instead of a corrupted prompt, faults of the prompts, [`Error::TryAgain`] for too little
/// `memory`, and what `progress` returns.
pub fn exact(
    model: &Gpt2,
    pair: &Pair,
    metric: Metric,
    edges: &[usize],
    memory: Option<u64>,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<f64>> {
    pair.check_prompts()?;
    let graph = Graph::of(model.config());
    let clean = Clean::new(model, pair, memory)?;
    let base = metric.of(&clean.trunk.end().logits, &clean.trunk.end().logits, pair.target());
    // Edges by receiver, since those of one receiver are computed together.
    let mut order: Vec<usize> = (0..edges.len()).collect();
    order.sort_by_key(|&i| edges[i]);
    let mut found = vec![0.0; edges.len()];
    let (mut at, mut done) = (0, 0);
    while at < order.len() {
        let mut experiments: Vec<(usize, Cell, Values)> = Vec::new();
        let mut waiting = 0;
        while at < order.len() && waiting < WAITING {
            let receiver = graph.edge(edges[order[at]]).to;
            let of = graph.edges_into(graph.receiver_index(receiver));
            let n = order[at..].iter().take_while(|&&i| of.contains(&edges[i])).count();
            let group: Vec<(usize, usize)> = order[at..at + n].iter().map(|&i| (i, edges[i] - of.start)).collect();
            at += n;
            if receiver == Receiver::Logits {
                for ((i, _), logits) in group.iter().zip(clean.logits(&group)?) {
                    found[*i] = base - metric.of(&logits, &clean.trunk.end().logits, pair.target());
                    done += 1;
                }
                continue;
            }
            for (i, cell, values) in clean.experiments(receiver, &group)? {
                waiting += values.values().map(|values| 4 * values.len()).sum::<usize>();
                experiments.push((i, cell, values));
            }
        }
        let cells: Vec<Vec<Cell>> = experiments.iter().map(|(_, cell, _)| vec![*cell]).collect();
        let (numbers, values): (Vec<usize>, Vec<Values>) =
            experiments.into_iter().map(|(i, _, values)| (i, values)).unzip();
        clean.trunk.run(&cells, &values, &mut |experiment, end| {
            if let Some(end) = end {
                let value = metric.of(&end.logits, &clean.trunk.end().logits, pair.target());
                found[numbers[experiment]] = base - value;
            }
            done += 1;
            progress(done, edges.len())
        })?;
    }
    progress(done, edges.len())?;
    Ok(found)
}

/// The clean run of a pair, and how sources differ in the corrupted one.
struct Clean<'a> {
    model: &'a Gpt2,
    graph: Graph,
    trunk: Trunk<'a>,
    /// Corrupted less clean, `[source, pos, dim]`.
    differences: Tensor,
    length: usize,
}

impl<'a> Clean<'a> {
    fn new(model: &'a Gpt2, pair: &Pair, memory: Option<u64>) -> Result<Self> {
        let config = model.config();
        let layers = 0..config.n_layer;
        let sites = layers.flat_map(|l| {
            [
                Site::ResidPre(l),
                Site::ResidMid(l),
                Site::ResidPost(l),
                Site::Q(l),
                Site::K(l),
                Site::V(l),
                Site::MlpOut(l),
            ]
        });
        let trunk = Trunk::grow(model, Plan::new(), pair.clean(), sites, Wanted { loss_from: None, memory })?;
        let (clean, _) = Outputs::run(model, pair.clean())?;
        let (corrupt, _) = Outputs::run(model, pair.corrupt())?;
        let graph = Graph::of(config);
        let differences = (corrupt.tensor() - clean.tensor())?.reshape((graph.sources(), pair.len(), config.n_embd))?;
        Ok(Self { model, graph, trunk, differences, length: pair.len() })
    }

    fn value(&self, site: Site) -> Result<&[f32]> {
        self.trunk.values().get(&site).map(Vec::as_slice).ok_or(Error::NotRead(site))
    }

    /// The stream at a site, then once per source with that source's difference: `[1 + source, pos, dim]`.
    fn streams(&self, site: Site, group: &[(usize, usize)]) -> Result<Tensor> {
        let width = self.model.config().n_embd;
        let stream = Tensor::from_slice(self.value(site)?, (1, self.length, width), self.model.device())?;
        let sources: Vec<u32> = group.iter().map(|(_, source)| *source as u32).collect();
        let sources = Tensor::new(sources, self.model.device())?;
        let changed = self.differences.index_select(&sources, 0)?.broadcast_add(&stream)?;
        Ok(Tensor::cat(&[stream, changed], 0)?.to_dtype(self.model.dtype())?)
    }

    /// Whether a source writes something else at each position of the corrupted run.
    fn differs(&self, source: usize) -> Result<Vec<bool>> {
        let rows = self.differences.get(source)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        Ok(rows.into_iter().map(|row| row.iter().any(|x| *x != 0.0)).collect())
    }

    /// What a receiver makes of each source's difference, as an experiment on the clean run.
    fn experiments(&self, receiver: Receiver, group: &[(usize, usize)]) -> Result<Vec<(usize, Cell, Values)>> {
        let (site, head, made) = match receiver {
            Receiver::Head { layer, head, reads } => {
                let streams = self.streams(Site::ResidPre(layer), group)?;
                (reads.site(layer), Some(head), self.model.read_head(layer, head, reads, &streams, None)?)
            }
            Receiver::Mlp(layer) => {
                let streams = self.streams(Site::ResidMid(layer), group)?;
                (Site::MlpOut(layer), None, self.model.mlp(layer, &streams, None)?)
            }
            Receiver::Logits => return Err(Error::Bug("nothing comes after the logits".into())),
        };
        let per = made.dim(2)?;
        let made = to_f32(&made)?;
        let (clean_made, made) = made.split_at(self.length * per);
        let clean = self.value(site)?;
        let width = clean.len() / self.length;
        let cell = Cell { head, ..Cell::whole(site) };
        let first = head.map_or(0, |head| head * per);
        let mut all = Vec::with_capacity(group.len());
        for ((i, source), made) in group.iter().zip(made.chunks_exact(self.length * per)) {
            let mut value = clean.to_vec();
            for pos in (0..self.length).zip(self.differs(*source)?).filter(|(_, differs)| *differs).map(|(pos, _)| pos)
            {
                for d in 0..per {
                    // Only the difference enters, so that what is the same stays the same, to the bit.
                    value[pos * width + first + d] += made[pos * per + d] - clean_made[pos * per + d];
                }
            }
            all.push((*i, cell, Values::from([(site, value)])));
        }
        Ok(all)
    }

    /// Logits of the last token with each source's difference.
    fn logits(&self, group: &[(usize, usize)]) -> Result<Vec<Vec<f32>>> {
        let streams = self.streams(Site::ResidPost(self.graph.layers - 1), group)?;
        let last = streams.narrow(1, self.length - 1, 1)?.narrow(0, 1, group.len())?.contiguous()?;
        let logits = self.model.unembed(&last)?;
        let vocab = logits.dim(2)?;
        Ok(to_f32(&logits)?.chunks_exact(vocab).map(<[f32]>::to_vec).collect())
    }
}

//! Ablation: parts of a model are put out of action, and what it says is measured again.

use std::collections::BTreeMap;

use polars::prelude::{DataFrame, df};

use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::metric::Metric;
use crate::pair::Question;
use crate::plan::Plan;
use crate::random::{Rng, SliceRandom, stream};
use crate::site::Site;
use crate::stats;
use crate::sweep::{self, Cell};
use crate::tokens::Tokens;
use crate::trunk::{End, Trunk, Values, Wanted};

/// Padded tokens of reference prompts that pass through the model at once.
const BATCH_TOKENS: usize = 2048;

/// What takes the place of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Zero.
    Zero,
    /// The mean over all positions of the reference prompts.
    Mean,
    /// The mean over the reference prompts at the same position.
    PosMean,
    /// The activation at the same position of a reference prompt that a seed chooses, another one than the prompt itself.
    Resample,
    /// No attention at all along an edge: its score becomes −∞, and the softmax shares out its weight (Geva et al. 2023).
    Knockout,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 5] = [Method::Zero, Method::Mean, Method::PosMean, Method::Resample, Method::Knockout];

    /// `zero`, `mean`, `pos-mean`, `resample` or `knockout`.
    pub fn name(self) -> &'static str {
        match self {
            Method::Zero => "zero",
            Method::Mean => "mean",
            Method::PosMean => "pos-mean",
            Method::Resample => "resample",
            Method::Knockout => "knockout",
        }
    }

    /// Whether it needs reference prompts.
    pub fn has_reference(self) -> bool {
        matches!(self, Method::Mean | Method::PosMean | Method::Resample)
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Mean cross-entropy of the prompt's own next tokens, in nats.
    Loss,
    /// A metric of the answer after the last token.
    Of(Metric),
}

impl Measure {
    /// The name of the metric, or `loss`.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Loss => "loss",
            Measure::Of(metric) => metric.name(),
        }
    }

    /// The measure of a name.
    ///
    /// # Errors
    /// [`Error::Request`] with all names.
    pub fn named(name: &str) -> Result<Self> {
        match Metric::ALL.into_iter().find(|metric| metric.name() == name) {
            Some(metric) => Ok(Measure::Of(metric)),
            None if name == "loss" => Ok(Measure::Loss),
            None => Err(Error::no_such("metric", name, Metric::ALL.map(Metric::name).into_iter().chain(["loss"]))),
        }
    }

    fn of(self, end: &End, clean: &End, question: &Question) -> f64 {
        match self {
            Measure::Loss => end.loss.unwrap_or(f64::NAN),
            Measure::Of(metric) => metric.of(&end.logits, &clean.logits, &question.target),
        }
    }
}

/// How parts are ablated.
#[derive(Clone, Debug)]
pub struct Options {
    /// What takes their place.
    pub method: Method,
    /// What is measured.
    pub measures: Vec<Measure>,
    /// Chooses prompts to resample from.
    pub seed: u64,
    /// The loss is of what is predicted from this position on.
    pub loss_from: usize,
    /// Bytes that the experiments of one prompt may take at once; none for what is usual.
    pub memory: Option<u64>,
}

impl Default for Options {
    /// Means instead of activations, and the logit difference.
    fn default() -> Self {
        let measures = vec![Measure::Of(Metric::LogitDiff)];
        Self { method: Method::Mean, measures, seed: 0, loss_from: 0, memory: None }
    }
}

/// The ablations of one prompt.
#[derive(Clone, Debug)]
pub struct Ablated {
    /// The measures of the run as it is.
    pub base: Vec<f64>,
    /// The measures of each experiment.
    pub values: Vec<Vec<f64>>,
    /// Experiments that could not change anything: the values were so already, or nothing reads them.
    pub untouched: usize,
}

/// Runs `experiments` on every question: the cells of each one are ablated together.
///
/// `reference` holds the prompts that means and samples are taken of. `progress(done, all)` counts experiments.
///
/// # Errors
/// [`Error::Request`] for a method that does not suit the cells or the reference, faults of the prompts,
/// [`Error::TryAgain`] for too little memory, and what `progress` returns.
pub fn ablate(
    model: &Gpt2,
    questions: &[Question],
    reference: &[Tokens],
    experiments: &[Vec<Cell>],
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Ablated>> {
    let experiments = match options.method {
        Method::Knockout => {
            experiments.iter().map(|cells| cells.iter().map(scores).collect()).collect::<Result<_>>()?
        }
        _ => experiments.to_vec(),
    };
    let sites = sweep::sites(experiments.iter().flatten());
    let loss = options.measures.contains(&Measure::Loss);
    let short = |question: &Question| question.tokens.longest() < options.loss_from + 2;
    if let (true, Some(i)) = (loss, questions.iter().position(short)) {
        let (n, from) = (questions[i].tokens.longest(), options.loss_from);
        return Err(Error::request(format!(
            "prompt {i} has {n} token{}, and no loss of a token after position {from}; give longer text, or another --metric",
            if n == 1 { "" } else { "s" }
        )));
    }
    let recorded = if options.method.has_reference() { reference } else { &[] };
    let elements = |prompt: &Tokens| -> usize {
        let extents = model.config().extents(1, prompt.longest(), 0);
        sites.iter().map(|site| site.shape(&extents).iter().product::<usize>()).sum()
    };
    let held = 4 * recorded.iter().map(elements).sum::<usize>() as u64;
    memory::check_left("what the reference prompts leave", held, options.memory)?;
    let reference = Reference::record(model, reference, &sites, options.method)?;
    let memory = options.memory.map(|bytes| (bytes - held) / 2);
    let wanted = Wanted { loss_from: loss.then_some(options.loss_from), memory };
    let all = experiments.len() * questions.len();
    let mut ablated = Vec::with_capacity(questions.len());
    for (index, question) in questions.iter().enumerate() {
        let trunk = Trunk::grow(model, Plan::new(), &question.tokens, sites.iter().copied(), wanted)?;
        let source = reference.values(&trunk, &sites, options, index)?;
        let measure = |end: &End| -> Vec<f64> {
            options.measures.iter().map(|measure| measure.of(end, trunk.end(), question)).collect()
        };
        let base = measure(trunk.end());
        let mut one = Ablated { values: vec![base.clone(); experiments.len()], base, untouched: 0 };
        let mut done = 0;
        trunk.run(&experiments, &source, &mut |i, end| {
            match end {
                Some(end) => one.values[i] = measure(&end),
                None => one.untouched += 1,
            }
            done += 1;
            progress(index * experiments.len() + done, all)
        })?;
        ablated.push(one);
    }
    Ok(ablated)
}

/// The same edge of the attention scores, for a cell of the pattern.
fn scores(cell: &Cell) -> Result<Cell> {
    match (cell.site, cell.key) {
        (Site::Pattern(layer), Some(_)) if cell.pos != Some(0) => Ok(Cell { site: Site::AttnScores(layer), ..*cell }),
        (Site::Pattern(_), Some(_)) => Err(Error::request(format!(
            "{cell}: the first token sees nothing but itself; knock out edges of later ones"
        ))),
        _ => Err(Error::request(format!(
            "{cell} is no attention edge; knockout is for edges, the other methods for all"
        ))),
    }
}

/// What reference prompts leave.
enum Reference {
    None,
    /// Per site, the mean of one position.
    Mean(Values),
    /// Per length, the mean of whole values, and the ids of the prompt where there is but one.
    PosMean(BTreeMap<usize, (Values, Option<Vec<u32>>)>),
    /// Ids and whole values of every prompt.
    All(Vec<(Vec<u32>, Values)>),
}

impl Reference {
    fn record(model: &Gpt2, prompts: &[Tokens], sites: &[Site], method: Method) -> Result<Self> {
        if !method.has_reference() {
            return Ok(Reference::None);
        }
        if let (Method::Mean, Some(site)) = (method, sites.iter().find(|site| site.is_attention_map())) {
            return Err(Error::request(format!(
                "an attention map like {site} has no mean over positions; use zero, pos-mean, resample or knockout"
            )));
        }
        let longest = prompts.iter().map(Tokens::longest).max().unwrap_or(1);
        let all = memory::in_batches(prompts.len(), BATCH_TOKENS / longest, &mut |part| {
            let tokens = Tokens::stack(&prompts[part])?;
            let mut values: Vec<Values> = vec![Values::new(); tokens.len()];
            let plan = Plan::new().reads(sites.iter().copied()).logits(LogitsAt::None);
            plan.run_each(model, &tokens, &mut |site, value| {
                for (prompt, values) in values.iter_mut().enumerate() {
                    let length = tokens.row(prompt).len();
                    let mut own = value.narrow(0, prompt, 1)?;
                    let axes = if site.is_attention_map() { 2..4 } else { 1..2 };
                    for axis in axes {
                        own = own.narrow(axis, 0, length)?;
                    }
                    values.insert(site, to_f32(&own)?);
                }
                Ok(())
            })?;
            Ok((0..tokens.len()).map(|prompt| tokens.row(prompt).to_vec()).zip(values).collect())
        })?;
        Ok(match method {
            Method::Mean => Reference::Mean(position_means(&all, sites)?),
            Method::PosMean => {
                let mut lengths: BTreeMap<usize, (Vec<Values>, Option<Vec<u32>>)> = BTreeMap::new();
                for (ids, values) in all {
                    let (same, only) = lengths.entry(ids.len()).or_insert((Vec::new(), Some(ids.clone())));
                    same.push(values);
                    *only = only.take().filter(|only| *only == ids);
                }
                let mean = |(length, (same, only)): (usize, (Vec<Values>, _))| (length, (prompt_means(&same), only));
                Reference::PosMean(lengths.into_iter().map(mean).collect())
            }
            _ => Reference::All(all),
        })
    }

    /// What replaces the values of a run.
    fn values(&self, trunk: &Trunk<'_>, sites: &[Site], options: &Options, index: usize) -> Result<Values> {
        let length = trunk.tokens().longest();
        match self {
            Reference::None => {
                let fill = if options.method == Method::Knockout { f32::NEG_INFINITY } else { 0.0 };
                Ok(sites.iter().map(|site| (*site, vec![fill; trunk.values()[site].len()])).collect())
            }
            Reference::Mean(means) => Ok(means.iter().map(|(site, mean)| (*site, mean.repeat(length))).collect()),
            Reference::PosMean(means) => match means.get(&length) {
                Some((_, Some(only))) if only == trunk.tokens().row(0) => Err(Error::request(format!(
                    "prompt {index} has {length} tokens, and the reference holds no other prompt of that length: a mean by \
                     position would be its own values; use mean"
                ))),
                Some((mean, _)) => Ok(mean.clone()),
                None => {
                    let have: Vec<usize> = means.keys().copied().collect();
                    Err(Error::request(format!(
                        "prompt {index} has {length} tokens, the reference prompts {have:?}: a mean by position needs prompts \
                         of its length; use mean"
                    )))
                }
            },
            Reference::All(all) => {
                let ids = trunk.tokens().row(0);
                let others: Vec<&Values> =
                    all.iter().filter(|(own, _)| own.len() == length && own != ids).map(|(_, values)| values).collect();
                if others.is_empty() {
                    return Err(Error::request(format!(
                        "prompt {index} has {length} tokens, and the reference holds no other prompt of that length to resample \
                         from"
                    )));
                }
                let mut rng = stream(options.seed, "resampling", index as u64);
                Ok(others[rng.random_range(0..others.len())].clone())
            }
        }
    }
}

/// Per site, the mean over all positions of all prompts.
fn position_means(all: &[(Vec<u32>, Values)], sites: &[Site]) -> Result<Values> {
    let count: usize = all.iter().map(|(ids, _)| ids.len()).sum();
    if count == 0 {
        return Err(Error::request("there is no reference prompt to take a mean of"));
    }
    let mean = |site: &Site| {
        let width = all[0].1[site].len() / all[0].0.len();
        let mut sums = vec![0.0_f64; width];
        for position in all.iter().flat_map(|(_, values)| values[site].chunks_exact(width)) {
            sums.iter_mut().zip(position).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        (*site, sums.into_iter().map(|sum| (sum / count as f64) as f32).collect())
    };
    Ok(sites.iter().map(mean).collect())
}

/// Per site, the mean over prompts of one length.
fn prompt_means(all: &[Values]) -> Values {
    let mean = |(site, first): (&Site, &Vec<f32>)| {
        let mut sums = vec![0.0_f64; first.len()];
        for values in all {
            sums.iter_mut().zip(&values[site]).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        (*site, sums.into_iter().map(|sum| (sum / all.len() as f64) as f32).collect())
    };
    all.first().map(|first| first.iter().map(mean).collect()).unwrap_or_default()
}

/// Random sets of as many cells as `chosen`, none of them chosen: what ablating just anything of the kind would do.
pub fn random_sets(chosen: &[Cell], all: &[Cell], draws: u64, seed: u64) -> Vec<Vec<Cell>> {
    let mut others: Vec<Cell> = all.iter().filter(|cell| !chosen.contains(cell)).copied().collect();
    let n = chosen.len().min(others.len());
    (0..if n == chosen.len() { draws } else { 0 })
        .map(|draw| {
            others.shuffle(&mut stream(seed, "random ablations", draw));
            others[..n].to_vec()
        })
        .collect()
}

/// One row of the frame: the numbers of its experiment and measure, before and after.
struct Row {
    prompt: Option<u32>,
    experiment: usize,
    measure: usize,
    base: f64,
    value: f64,
    sure: Option<(stats::Interval, f64)>,
}

/// Ablations as a frame.
///
/// | column | |
/// |---|---|
/// | `prompt` | which; null in the rows that sum up several prompts |
/// | `what` | what was ablated: `z 5.1`, or several |
/// | `site`, `layer`, `head`, `neuron`, `pos`, `src` | the same, for a single cell; null for what it does not narrow |
/// | `token` | at `pos` of the prompt; in rows without one, of the first |
/// | `control` | whether it is a random set, for comparison |
/// | `method`, `metric` | |
/// | `base`, `value`, `change` | before, after, and the difference |
/// | `low`, `high`, `p` | in rows without a prompt: 95 % bootstrap interval of the mean change, and how likely so large a mean is by chance (sign flips) |
///
/// `controls` is how many of the last experiments are random sets.
///
/// # Errors
/// As polars.
pub fn frame(
    questions: &[Question],
    experiments: &[Vec<Cell>],
    controls: usize,
    ablated: &[Ablated],
    options: &Options,
) -> Result<DataFrame> {
    let mut rows: Vec<Row> = Vec::new();
    for (prompt, one) in ablated.iter().enumerate() {
        for (experiment, values) in one.values.iter().enumerate() {
            let row = |measure: usize| {
                let (base, value) = (one.base[measure], values[measure]);
                Row { prompt: Some(prompt as u32), experiment, measure, base, value, sure: None }
            };
            rows.extend((0..values.len()).map(row));
        }
    }
    if ablated.len() > 1 {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        for experiment in 0..experiments.len() {
            for measure in 0..options.measures.len() {
                let base: Vec<f64> = ablated.iter().map(|one| one.base[measure]).collect();
                let value: Vec<f64> = ablated.iter().map(|one| one.values[experiment][measure]).collect();
                let changes: Vec<f64> = value.iter().zip(&base).map(|(value, base)| value - base).collect();
                let sure = Some((stats::bootstrap(&changes, options.seed), stats::sign_flip(&changes, options.seed)));
                rows.push(Row { prompt: None, experiment, measure, base: mean(&base), value: mean(&value), sure });
            }
        }
    }
    let first_control = experiments.len() - controls;
    let single = |i: usize| match experiments[i].as_slice() {
        [cell] => Some(*cell),
        _ => None,
    };
    let of = |f: fn(&Cell) -> Option<usize>| -> Vec<Option<u32>> {
        rows.iter().map(|row| single(row.experiment).and_then(|cell| f(&cell)).map(|x| x as u32)).collect()
    };
    let token = |row: &Row| -> Option<String> {
        let pos = single(row.experiment)?.pos?;
        Some(questions[row.prompt.unwrap_or(0) as usize].tokens.text(0, pos).into_owned())
    };
    let what = |i: usize| experiments[i].iter().map(Cell::to_string).collect::<Vec<_>>().join(", ");
    let names: Vec<String> = (0..experiments.len()).map(what).collect();
    Ok(df!(
        "prompt" => rows.iter().map(|row| row.prompt).collect::<Vec<_>>(),
        "what" => rows.iter().map(|row| names[row.experiment].as_str()).collect::<Vec<_>>(),
        "site" => rows.iter().map(|row| single(row.experiment).map(|cell| cell.site.kind())).collect::<Vec<_>>(),
        "layer" => of(|cell| Some(cell.layer)),
        "head" => of(|cell| cell.head),
        "neuron" => of(|cell| cell.neuron),
        "pos" => of(|cell| cell.pos),
        "src" => of(|cell| cell.key),
        "token" => rows.iter().map(token).collect::<Vec<_>>(),
        "control" => rows.iter().map(|row| row.experiment >= first_control).collect::<Vec<_>>(),
        "method" => vec![options.method.name(); rows.len()],
        "metric" => rows.iter().map(|row| options.measures[row.measure].name()).collect::<Vec<_>>(),
        "base" => rows.iter().map(|row| row.base).collect::<Vec<_>>(),
        "value" => rows.iter().map(|row| row.value).collect::<Vec<_>>(),
        "change" => rows.iter().map(|row| row.value - row.base).collect::<Vec<_>>(),
        "low" => rows.iter().map(|row| row.sure.and_then(|(interval, _)| interval.low())).collect::<Vec<_>>(),
        "high" => rows.iter().map(|row| row.sure.and_then(|(interval, _)| interval.high())).collect::<Vec<_>>(),
        "p" => rows.iter().map(|row| row.sure.map(|(_, p)| p)).collect::<Vec<_>>(),
    )?)
}

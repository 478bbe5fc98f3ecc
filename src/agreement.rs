//! Whether two devices compute the same model: every site, gradients, edits, sweeps, generations and two steps of training, each on
//! both, compared number by number.
//!
//! This stands above the analyses because it runs them: what is compared is what a user gets.

use candle_core::Tensor;
use polars::prelude::*;

use crate::corpus::{Row, Rows, Split};
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::generate::{self, generate};
use crate::gpt2::{Gpt2, LogitsAt};
use crate::metric::Metric;
use crate::pair::Pair;
use crate::patch::{self, patch};
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::site::Site;
use crate::sweep::Sweep;
use crate::text::Tokenizer;
use crate::train::Trainer;

/// The difference that two devices may have in f32, as a share of the largest value. Sums in another order come to 1e-6 in a site and to
/// 1e-4 after two steps of training, where Adam divides by small gradients; a kernel that is wrong comes to 1e-1.
pub const GATE: f64 = 1e-3;

/// Tokens that are generated.
const WRITTEN: usize = 16;
/// Steps of training.
const STEPS: usize = 2;

/// What was compared, a row each.
#[derive(Default)]
struct Table {
    check: Vec<&'static str>,
    what: Vec<String>,
    difference: Vec<f64>,
}

impl Table {
    /// The largest difference of two lists of numbers, as a share of the largest number; infinite where one is finite and the
    /// other is not.
    fn compare(&mut self, check: &'static str, what: impl Into<String>, a: &[f64], b: &[f64]) {
        let size = a.iter().filter(|x| x.is_finite()).fold(0.0, |size: f64, x| size.max(x.abs()));
        let away = |(a, b): (&f64, &f64)| match (a.is_finite(), b.is_finite()) {
            (true, true) => (a - b).abs(),
            _ if a == b => 0.0, // hidden scores are −∞ in both
            _ => f64::INFINITY,
        };
        let worst = if a.len() == b.len() { a.iter().zip(b).map(away).fold(0.0, f64::max) } else { f64::INFINITY };
        self.check.push(check);
        self.what.push(what.into());
        self.difference.push(if worst == 0.0 { 0.0 } else { worst / size.max(f64::MIN_POSITIVE) });
    }

    fn frame(self) -> Result<DataFrame> {
        let passed: Vec<bool> = self.difference.iter().map(|difference| *difference <= GATE).collect();
        let gate = vec![GATE; passed.len()];
        Ok(
            df!("check" => self.check, "what" => self.what, "difference" => self.difference, "gate" => gate, "passed" => passed)?,
        )
    }
}

/// Compares two models of the same weights on different devices: columns `check` (`site`, `gradient`, `edit`, `sweep`, `generation`,
/// `training`), `what`, `difference` (the largest, as a share of the largest value), `gate` and `passed`.
///
/// # Errors
/// What the analyses return on either.
pub fn agreement(one: &Gpt2, other: &Gpt2, tokenizer: &Tokenizer, pair: &Pair) -> Result<DataFrame> {
    let mut table = Table::default();
    sites(one, other, pair, &mut table)?;
    gradients(one, other, pair, &mut table)?;
    edits(one, other, pair, &mut table)?;
    sweep(one, other, pair, &mut table)?;
    generation(one, other, tokenizer, pair, &mut table)?;
    training(one, other, tokenizer, pair, &mut table)?;
    table.frame()
}

fn numbers(value: &Tensor) -> Result<Vec<f64>> {
    Ok(to_f32(value)?.into_iter().map(f64::from).collect())
}

/// Both prompts in one batch, without the last token of the second: padding is a part of it.
fn batch(pair: &Pair) -> Result<crate::tokens::Tokens> {
    let (clean, corrupt) = (pair.clean().row(0).to_vec(), pair.corrupt().row(0));
    crate::tokens::Tokens::from_ids(vec![clean, corrupt[..corrupt.len() - 1].to_vec()])
}

fn sites(one: &Gpt2, other: &Gpt2, pair: &Pair, table: &mut Table) -> Result<()> {
    let tokens = batch(pair)?;
    let all: Vec<Site> = Site::all(one.config().n_layer).collect();
    let run = |model: &Gpt2| Plan::new().reads(all.iter().copied()).run(model, &tokens);
    let (a, b) = (run(one)?, run(other)?);
    for site in all {
        table.compare("site", site.to_string(), &numbers(a.get(site)?)?, &numbers(b.get(site)?)?);
    }
    Ok(())
}

fn gradients(one: &Gpt2, other: &Gpt2, pair: &Pair, table: &mut Table) -> Result<()> {
    let layers = one.config().n_layer;
    let all: Vec<Site> =
        (0..layers).flat_map(|l| [Site::ResidPre(l), Site::Pattern(l), Site::Z(l), Site::MlpPost(l)]).collect();
    let answer = pair.target().answers()[0] as usize;
    let run = |model: &Gpt2| -> Result<Vec<Vec<f64>>> {
        let plan = all.iter().fold(Plan::new().logits(LogitsAt::Last), |plan, site| plan.grad(*site));
        let trace = plan.run(model, pair.clean())?;
        let metric = trace.logits()?.narrow(2, answer, 1)?.sum_all()?;
        let found = trace.backward(&metric)?;
        all.iter().map(|site| numbers(found.get(*site)?)).collect()
    };
    for ((site, a), b) in all.iter().zip(run(one)?).zip(run(other)?) {
        table.compare("gradient", site.to_string(), &a, &b);
    }
    Ok(())
}

/// A part of one site written, and one of another added to.
fn edits(one: &Gpt2, other: &Gpt2, pair: &Pair, table: &mut Table) -> Result<()> {
    let (first, last) = (0, one.config().n_layer - 1);
    let direction = Tensor::ones(one.config().n_embd, candle_core::DType::F32, &candle_core::Device::Cpu)?;
    let all = [
        Edit::zero(Site::Z(first)).head(-1).pos(2..=3),
        Edit::scale(Site::Pattern(last), 0.5).head(0).query(-1),
        Edit::add(Site::ResidMid(first), &direction).pos(1),
    ];
    for edit in all {
        let what = edit.to_string();
        let run = |model: &Gpt2| numbers(Plan::new().edit(edit.clone()).run(model, pair.clean())?.logits()?);
        table.compare("edit", what, &run(one)?, &run(other)?);
    }
    Ok(())
}

fn sweep(one: &Gpt2, other: &Gpt2, pair: &Pair, table: &mut Table) -> Result<()> {
    for name in ["resid_pre", "attn_head_out_by_pos"] {
        let sweeps = Sweep::named(name)?;
        let run = |model: &Gpt2| -> Result<Vec<f64>> {
            let found = patch(model, pair, &sweeps, patch::Options::default(), &mut |_, _| Ok(()))?;
            let metric = Metric::ALL.iter().position(|metric| *metric == Metric::LogitDiff).unwrap_or(0);
            Ok(found.cells.iter().map(|(_, _, values)| values[metric]).collect())
        };
        table.compare("sweep", name, &run(one)?, &run(other)?);
    }
    Ok(())
}

fn generation(one: &Gpt2, other: &Gpt2, tokenizer: &Tokenizer, pair: &Pair, table: &mut Table) -> Result<()> {
    for (what, temperature) in [("log-probabilities of what is likeliest", 0.0), ("of what is drawn", 0.7)] {
        let mut options = generate::Options { max_new_tokens: WRITTEN, ..generate::Options::default() };
        options.sampling.temperature = temperature;
        let run = |model: &Gpt2| -> Result<Vec<f64>> {
            let (frame, _) = generate(model, tokenizer, pair.clean(), &[], &options, &mut |_| Ok(()))?;
            let found = frame.column("logprobs")?.list()?.get_as_series(0);
            let found = found.ok_or_else(|| Error::Bug("a text without tokens".into()))?.cast(&DataType::Float64)?;
            Ok(found.f64()?.into_no_null_iter().collect())
        };
        table.compare("generation", what, &run(one)?, &run(other)?);
    }
    Ok(())
}

/// The two prompts over and over, with a token more.
struct Prompts(Vec<Vec<u32>>);

impl Rows for Prompts {
    fn row(&self, _: Split, index: u64, length: usize) -> Result<Row> {
        let tokens = self.0[index as usize % self.0.len()].iter().copied().cycle().take(length).collect();
        Ok(Row { tokens, counts: vec![true; length] })
    }

    fn digest(&self) -> String {
        "prompts".into()
    }
}

fn training(one: &Gpt2, other: &Gpt2, tokenizer: &Tokenizer, pair: &Pair, table: &mut Table) -> Result<()> {
    let block = pair.clean().row(0).len();
    let knobs = [
        "batch_size=2".to_string(),
        "micro_batch_size=2".into(),
        format!("block_size={block}"),
        format!("max_iters={STEPS}"),
        "warmup_iters=0".into(),
        "learning_rate=1e-4".into(),
    ];
    let rows = || Box::new(Prompts(vec![pair.clean().row(0).to_vec(), pair.corrupt().row(0).to_vec()]));
    let run = |model: &Gpt2| -> Result<[Vec<f64>; 2]> {
        let recipe = Recipe::load_with(None, &knobs)?;
        let mut trainer = Trainer::from_model(recipe, model, "", tokenizer.clone(), rows())?;
        let mut seen = Vec::new();
        for _ in 0..STEPS {
            let step = trainer.step()?;
            seen.extend([step.loss, step.grad_norm]);
        }
        let mut after = Vec::new();
        // Softmax does not see a constant added to all keys: the gradient of their bias is rounding, which AdamW scales up.
        for (_, value) in trainer.model().tensors().into_iter().filter(|(name, _)| !name.ends_with("attn.c_attn.bias"))
        {
            after.extend(numbers(value)?);
        }
        Ok([seen, after])
    };
    let (one, other) = (run(one)?, run(other)?);
    for (i, what) in ["losses and norms of gradients", "weights after it"].into_iter().enumerate() {
        table.compare("training", what, &one[i], &other[i]);
    }
    Ok(())
}

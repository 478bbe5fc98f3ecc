//! Training a GPT-2 from scratch: recipe, step, checkpoint, exact resume.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use candle_nn::Optimizer;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::corpus::{Corpus, Row};
use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::language::Language;
use crate::ops;
use crate::optim::{AdamW, AdamWConfig};
use crate::random;
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// Everything that decides the outcome of a training run. Knobs are named as in nanoGPT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The shape of the model.
    pub model: ModelRecipe,
    /// What it reads.
    pub data: DataRecipe,
    /// How it learns.
    pub train: TrainRecipe,
}

/// The shape of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// Blocks.
    pub n_layer: usize,
    /// Heads per block.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Positions, and tokens in a training row.
    pub block_size: usize,
    /// Entries of the byte-level BPE that is learned first.
    pub vocab_size: usize,
}

/// What the model reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// A language file (see `models/tiny/language.toml`), relative to the recipe.
    pub language: PathBuf,
    /// Documents from which the tokenizer is learned.
    pub tokenizer_documents: u64,
    /// Share of rows that are random tokens, repeated.
    pub repeat_share: f64,
}

/// How the model learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Decides weights, text and order.
    pub seed: u64,
    /// Rows per step.
    pub batch_size: usize,
    /// Rows that one thread passes through the model at once; decides the rounding, not the meaning.
    pub micro_batch_size: usize,
    /// Steps.
    pub max_iters: u64,
    /// Steps that read short rows, more of them: a small model finds induction in short rows within minutes, and in
    /// long ones not at all (a warm-up of sequence length, Li et al. 2022).
    pub short_iters: u64,
    /// Tokens of a short row, a divisor of block_size.
    pub short_block_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine.
    pub min_lr: f64,
    /// Steps of linear warm-up.
    pub warmup_iters: u64,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: f64,
    /// Decoupled decay of matrices and embeddings.
    pub weight_decay: f64,
    /// Largest norm of a gradient; longer ones are scaled down.
    pub grad_clip: f64,
    /// Steps between measurements of the validation loss.
    pub eval_interval: u64,
    /// Validation rows.
    pub eval_rows: u64,
    /// Steps between checkpoints.
    pub checkpoint_interval: u64,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`Error::Data`] with the key at fault.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = crate::weights::read_small(path, 1 << 20)?;
        let text = String::from_utf8(bytes).map_err(|e| Error::data(path, format!("not UTF-8: {e}")))?;
        let recipe: Recipe =
            toml::from_str(&text).map_err(|e| Error::data(path, crate::error::toml_fault(&text, &e)))?;
        recipe.check().map_err(|what| Error::data(path, what))?;
        Ok(recipe)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (m, t) = (&self.model, &self.train);
        let positive = [
            ("n_layer", m.n_layer),
            ("n_head", m.n_head),
            ("n_embd", m.n_embd),
            ("batch_size", t.batch_size),
            ("micro_batch_size", t.micro_batch_size),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if m.n_embd % m.n_head != 0 {
            return Err(format!("n_embd {} is not divisible by n_head {}", m.n_embd, m.n_head));
        }
        if m.block_size < 16 {
            return Err(format!("block_size is {}; it must be at least 16", m.block_size));
        }
        if t.short_block_size < 16 || m.block_size % t.short_block_size != 0 {
            let (short, long) = (t.short_block_size, m.block_size);
            return Err(format!("short_block_size is {short}; it must be at least 16 and divide block_size {long}"));
        }
        if t.batch_size % t.micro_batch_size != 0 {
            let (all, one) = (t.batch_size, t.micro_batch_size);
            return Err(format!("batch_size {all} is not a multiple of micro_batch_size {one}"));
        }
        let shares = [("beta1", t.beta1), ("beta2", t.beta2), ("repeat_share", self.data.repeat_share)];
        if let Some((name, value)) = shares.iter().find(|(_, x)| !(0.0..=1.0).contains(x)) {
            return Err(format!("{name} is {value}; it must be in 0..=1"));
        }
        let finite = [
            ("learning_rate", t.learning_rate),
            ("min_lr", t.min_lr),
            ("weight_decay", t.weight_decay),
            ("grad_clip", t.grad_clip),
        ];
        if let Some((name, value)) = finite.iter().find(|(_, x)| !x.is_finite() || *x < 0.0) {
            return Err(format!("{name} is {value}; it must be a number not below 0"));
        }
        if t.eval_interval == 0 || t.checkpoint_interval == 0 || t.max_iters == 0 {
            return Err("max_iters, eval_interval and checkpoint_interval must be at least 1".into());
        }
        Ok(())
    }

    /// The learning rate of step `step` (0-based): linear warm-up, then a cosine down to `min_lr`.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let t = &self.train;
        if step < t.warmup_iters {
            return t.learning_rate * (step + 1) as f64 / (t.warmup_iters + 1) as f64;
        }
        let span = t.max_iters.saturating_sub(t.warmup_iters).max(1) as f64;
        let done = ((step - t.warmup_iters) as f64 / span).min(1.0);
        t.min_lr + 0.5 * (1.0 + (std::f64::consts::PI * done).cos()) * (t.learning_rate - t.min_lr)
    }

    fn config(&self, vocab_size: usize) -> Config {
        let m = &self.model;
        Config::new(m.n_layer, m.n_head, m.n_embd, vocab_size, m.block_size)
    }
}

/// A training run between two steps.
pub struct Trainer {
    recipe: Recipe,
    tokenizer: Tokenizer,
    corpus: Corpus,
    model: Gpt2,
    names: Vec<String>,
    vars: Vec<Var>,
    optimizer: AdamW,
    /// One pool of one thread per core: a micro-batch is computed by one thread, so that the rounding, and with it
    /// the result, does not depend on how many threads there are.
    pools: Vec<rayon::ThreadPool>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Step {
    /// Steps taken, this one included.
    pub step: u64,
    /// Mean loss of the batch in nats per token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// The file that holds a run's parameters, optimizer state and step.
pub const STATE: &str = "state.safetensors";

impl Trainer {
    /// Starts a run: learns the tokenizer, then draws the weights.
    ///
    /// # Errors
    /// [`Error::Data`] for a faulty language or recipe.
    pub fn new(recipe: Recipe, language: Language) -> Result<Self> {
        let seed = recipe.train.seed;
        let documents = (0..recipe.data.tokenizer_documents)
            .map(|i| cut_numbers(&language.document(&mut random::stream(seed, "tokenizer", i))));
        let tokenizer = Tokenizer::train(documents, recipe.model.vocab_size)?;
        let corpus = Corpus::new(language, tokenizer.clone(), recipe.data.repeat_share, seed)?;
        let config = recipe.config(tokenizer.vocab_size());
        let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        let (mut names, mut vars) = (Vec::new(), Vec::new());
        let model = Gpt2::new(config.clone(), |name| {
            let shape = shapes.get(name).ok_or_else(|| Error::Bug(format!("{name} is no tensor of the model")))?;
            let var = Var::from_tensor(&initial(name, shape, &config, seed)?)?;
            names.push(name.to_string());
            vars.push(var.clone());
            Ok(var.as_tensor().clone())
        })?;
        let t = &recipe.train;
        let optimizer = AdamW::new(
            vars.clone(),
            AdamWConfig {
                lr: t.learning_rate,
                beta1: t.beta1,
                beta2: t.beta2,
                eps: 1e-8,
                weight_decay: t.weight_decay,
            },
        )?;
        let pools = (0..rayon::current_num_threads())
            .map(|_| rayon::ThreadPoolBuilder::new().num_threads(1).build())
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| Error::TryAgain(format!("cannot start threads: {e}")))?;
        Ok(Self { recipe, tokenizer, corpus, model, names, vars, optimizer, pools })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Gpt2 {
        &self.model
    }

    /// The tokenizer that was learned.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Tokens that one step learns from.
    pub fn tokens_per_step(&self) -> usize {
        self.recipe.train.batch_size * self.recipe.model.block_size
    }

    /// Takes one step.
    ///
    /// # Errors
    /// [`Error::Data`] when the loss is no longer a number; parameters are then as before the step.
    pub fn step(&mut self) -> Result<Step> {
        let t = &self.recipe.train;
        let step = self.steps();
        let lr = self.recipe.learning_rate(step);
        let (split, length) = match step < t.short_iters {
            true => ("train short", t.short_block_size),
            false => ("train", self.recipe.model.block_size),
        };
        let rows = (self.tokens_per_step() / length) as u64;
        let batch = self.batch(split, step * rows..(step + 1) * rows, length)?;
        let per_token = 1.0 / batch.iter().map(|rows| rows.counted).sum::<usize>().max(1) as f64;
        let parts = self.parallel(batch.len() as u64, |i| {
            let loss = (self.losses(&batch[i as usize])?.sum_all()? * per_token)?;
            let mut grads = loss.backward()?;
            let grads = self
                .names
                .iter()
                .zip(&self.vars)
                .map(|(name, var)| grads.remove(var).ok_or_else(|| Error::Bug(format!("{name} received no gradient"))))
                .collect::<Result<Vec<_>>>()?;
            Ok((f64::from(loss.to_scalar::<f32>()?), grads))
        })?;
        let mut parts = parts.into_iter();
        let (mut loss, mut grads) = parts.next().ok_or_else(|| Error::Bug("a step without a batch".into()))?;
        for (part_loss, part) in parts {
            loss += part_loss;
            for (sum, grad) in grads.iter_mut().zip(part) {
                *sum = (&*sum + grad)?;
            }
        }
        let grad_norm = norm(&grads)?;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(Error::data(
                STATE,
                format!(
                    "step {}: loss {loss}, gradient norm {grad_norm}; the last checkpoint is intact: lower learning_rate",
                    step + 1
                ),
            ));
        }
        if t.grad_clip > 0.0 && grad_norm > t.grad_clip {
            let scale = t.grad_clip / (grad_norm + 1e-6);
            for grad in &mut grads {
                *grad = (&*grad * scale)?;
            }
        }
        self.optimizer.set_learning_rate(lr);
        self.optimizer.step_with(&grads)?;
        Ok(Step { step: step + 1, loss, lr, grad_norm })
    }

    /// Mean loss on the validation rows, which no training row repeats.
    ///
    /// # Errors
    /// [`Error::Bug`] only.
    pub fn validation_loss(&self) -> Result<f64> {
        let batch = self.batch("validation", 0..self.recipe.train.eval_rows, self.recipe.model.block_size)?;
        let sums = self.parallel(batch.len() as u64, |i| {
            Ok(f64::from(self.losses(&batch[i as usize])?.sum_all()?.to_scalar::<f32>()?))
        })?;
        let counted: usize = batch.iter().map(|rows| rows.counted).sum();
        Ok(sums.into_iter().sum::<f64>() / counted.max(1) as f64)
    }

    /// Rows of a split as micro-batches of equally many tokens, whatever the length of a row.
    fn batch(&self, split: &str, rows: std::ops::Range<u64>, length: usize) -> Result<Vec<MicroBatch>> {
        let first = rows.start;
        let rows = self.parallel(rows.end - first, |i| self.corpus.row(split, first + i, length + 1))?;
        let rows_at_once = self.recipe.train.micro_batch_size * self.recipe.model.block_size / length;
        rows.chunks(rows_at_once).map(MicroBatch::new).collect()
    }

    /// Per-token losses of a micro-batch; 0 where a token does not count.
    fn losses(&self, batch: &MicroBatch) -> Result<Tensor> {
        let logits = self.model.forward(&batch.inputs)?.flatten_to(1)?;
        Ok(ops::cross_entropy(&logits, batch.targets.clone())?)
    }

    /// Computes `f(0) … f(n − 1)`, each on one thread, and returns the results in order.
    fn parallel<R: Send>(&self, n: u64, f: impl Fn(u64) -> Result<R> + Sync) -> Result<Vec<R>> {
        let workers = self.pools.len() as u64;
        let mut results: Vec<Vec<Result<R>>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|w| {
                    let (f, pool) = (&f, &self.pools[w as usize]);
                    scope.spawn(move || pool.install(|| (w..n).step_by(workers as usize).map(f).collect()))
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        results.iter_mut().for_each(|list: &mut Vec<_>| list.reverse());
        (0..n)
            .map(|i| results[(i % workers) as usize].pop().unwrap_or_else(|| Err(Error::Bug("lost work".into()))))
            .collect()
    }

    /// Writes parameters, optimizer state and step as one file.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] or [`Error::Io`]; an older state is then still whole.
    pub fn save_state(&self, dir: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for ((name, var), (mean, square)) in self.names.iter().zip(&self.vars).zip(self.optimizer.state()) {
            tensors.push((format!("parameter.{name}"), var.as_tensor().clone()));
            tensors.push((format!("mean.{name}"), mean.clone()));
            tensors.push((format!("square.{name}"), square.clone()));
        }
        // One entry, because a map of several has no fixed order in the file.
        let run = serde_json::json!({ "step": self.steps(), "recipe": self.recipe }).to_string();
        let metadata = [("run".to_string(), run)];
        save_tensors(&dir.join(STATE), &tensors, Some(metadata.into()))
    }

    /// Continues from a state that [`Trainer::save_state`] wrote; the run then ends as if it had never stopped.
    ///
    /// # Errors
    /// [`Error::Data`] for a state of another recipe, or a damaged one.
    pub fn load_state(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE);
        let bytes = std::fs::read(&path).map_err(|e| Error::reading(&path, e))?;
        let wrong = |what: String| Error::data(&path, what);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
        let run: SavedRun = header
            .metadata()
            .as_ref()
            .and_then(|metadata| serde_json::from_str(metadata.get("run")?).ok())
            .ok_or_else(|| wrong("no recipe in it: not a training state".into()))?;
        let SavedRun { step: steps, recipe: saved } = run;
        if saved != self.recipe {
            let fields = differences(&saved, &self.recipe);
            return Err(wrong(format!("was made by another recipe, which differs in {fields}; use another --out")));
        }
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let get = |name: String| -> Result<Tensor> {
            let view = tensors.tensor(&name).map_err(|e| wrong(format!("{name}: {e}")))?;
            if view.dtype() != safetensors::Dtype::F32 {
                return Err(wrong(format!("{name} is {:?}, not F32", view.dtype())));
            }
            let tensor = Tensor::from_raw_buffer(view.data(), candle_core::DType::F32, view.shape(), &Device::Cpu);
            tensor.map_err(|e| wrong(format!("{name}: {e}")))
        };
        let mut state = Vec::new();
        for (name, var) in self.names.iter().zip(&self.vars) {
            let parameter = get(format!("parameter.{name}"))?;
            var.set(&parameter).map_err(|e| wrong(format!("{name}: {e}")))?;
            state.push((get(format!("mean.{name}"))?, get(format!("square.{name}"))?));
        }
        self.optimizer.restore(steps, state).map_err(|e| wrong(e.to_string()))
    }

    /// Writes the model as Hugging Face stores it: `model.safetensors`, `config.json` and `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] or [`Error::Io`].
    pub fn save_model(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<_> =
            self.names.iter().zip(&self.vars).map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let format = [("format".to_string(), "pt".to_string())];
        save_tensors(&dir.join("model.safetensors"), &tensors, Some(format.into()))?;
        let config =
            serde_json::to_vec_pretty(&self.model.config().to_json()).map_err(|e| Error::Bug(e.to_string()))?;
        crate::disk::write_bytes(&dir.join("config.json"), &config)?;
        crate::disk::write_bytes(&dir.join("tokenizer.json"), self.tokenizer.to_json()?.as_bytes())
    }
}

/// What a state says of its run.
#[derive(Deserialize)]
struct SavedRun {
    step: u64,
    recipe: Recipe,
}

/// Rows that pass through the model at once.
struct MicroBatch {
    inputs: Tokens,
    targets: Vec<u32>,
    /// Targets that count.
    counted: usize,
}

impl MicroBatch {
    fn new(rows: &[Row]) -> Result<Self> {
        let target = |(token, counts): (&u32, &bool)| if *counts { *token } else { ops::IGNORE };
        let targets: Vec<u32> =
            rows.iter().flat_map(|row| row.tokens[1..].iter().zip(&row.counts[1..]).map(target)).collect();
        let inputs = rows.iter().map(|row| row.tokens[..row.tokens.len() - 1].to_vec()).collect();
        let counted = targets.iter().filter(|target| **target != ops::IGNORE).count();
        Ok(Self { inputs: Tokens::from_ids(inputs)?, targets, counted })
    }
}

/// Draws a tensor as GPT-2 was initialised: N(0, 0.02) at its width of 768 and in inverse proportion to the root of
/// other widths, residual projections narrower by √(2·layers).
///
/// Positions alone start as sinusoids (Vaswani et al. 2017, §3.5) of the same size: there, looking one back is a
/// rotation, and a small model finds previous-token and induction heads in minutes instead of hours.
fn initial(name: &str, shape: &[usize], config: &Config, seed: u64) -> Result<Tensor> {
    let spread = 0.02 * (768.0 / config.n_embd as f64).sqrt();
    let count = shape.iter().product();
    let values: Vec<f32> = if name.ends_with(".bias") {
        vec![0.0; count]
    } else if name.contains("ln_") {
        vec![1.0; count]
    } else if name == "wpe.weight" {
        let size = spread * std::f64::consts::SQRT_2;
        (0..count).map(|i| (size * sinusoid(i / shape[1], i % shape[1], shape[1])) as f32).collect()
    } else {
        let narrow = if name.ends_with("c_proj.weight") { (2.0 * config.n_layer as f64).sqrt() } else { 1.0 };
        let mut rng = random::stream(seed, name, 0);
        (0..count).map(|_| (spread / narrow * random::normal(&mut rng)) as f32).collect()
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn sinusoid(pos: usize, dim: usize, width: usize) -> f64 {
    let wavelength = 10_000_f64.powf((dim / 2 * 2) as f64 / width as f64);
    let angle = pos as f64 / wavelength;
    if dim.is_multiple_of(2) { angle.sin() } else { angle.cos() }
}

/// Cuts numbers into pairs of digits, so that the tokenizer learns a year as century and year, as GPT-2's has it.
fn cut_numbers(text: &str) -> String {
    let mut cut = String::with_capacity(text.len() + 8);
    let mut digits = 0;
    for c in text.chars() {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 2 && digits % 2 == 1 {
            cut.push('-');
        }
        cut.push(c);
    }
    cut
}

fn norm(grads: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for grad in grads {
        sum += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}

/// Names the recipe's keys that differ.
fn differences(a: &Recipe, b: &Recipe) -> String {
    let flat = |recipe: &Recipe| -> BTreeMap<String, String> {
        let value = serde_json::to_value(recipe).unwrap_or_default();
        let sections = value.as_object().cloned().unwrap_or_default();
        let mut all = BTreeMap::new();
        for (section, fields) in sections {
            for (key, value) in fields.as_object().cloned().unwrap_or_default() {
                all.insert(format!("{section}.{key}"), value.to_string());
            }
        }
        all
    };
    let (a, b) = (flat(a), flat(b));
    let names: Vec<String> = a
        .iter()
        .filter(|(key, value)| b.get(*key) != Some(value))
        .map(|(key, value)| format!("{key} ({value})"))
        .collect();
    names.join(", ")
}

/// Writes f32 tensors as safetensors.
fn save_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<()> {
    let bytes = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            Ok((name, tensor.dims().to_vec(), bytemuck::cast_slice(&values).to_vec()))
        })
        .collect::<Result<Vec<(&String, Vec<usize>, Vec<u8>)>>>()?;
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            view.map(|view| (*name, view)).map_err(|e| Error::Bug(e.to_string()))
        })
        .collect::<Result<Vec<_>>>()?;
    let file = safetensors::serialize(views, metadata).map_err(|e| Error::Bug(e.to_string()))?;
    crate::disk::write_bytes(path, &file)
}

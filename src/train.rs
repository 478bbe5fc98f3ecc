//! Training a GPT-2, from scratch or from one that exists: step, checkpoint, exact resume.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::corpus::{Corpus, Row, Rows, Split};
use crate::dropout::Dropout;
use crate::error::{Error, Result, said_by_candle};
use crate::gpt2::{Gpt2, Lesson, LogitsAt, Pass};
use crate::initial;
use crate::language::Language;
use crate::limits;
use crate::memory;
use crate::ops;
use crate::optim::{AdamW, AdamWConfig};
use crate::process;
use crate::random::{self, Rng};
use crate::recipe::{Precision, Recipe};
use crate::text::Tokenizer;
use crate::tokens::Tokens;
use crate::weights;

/// Gradients of a step that may be held at once; beyond, micro-batches are computed one after the other.
const HELD_GRADIENTS: usize = 256 << 20;

/// Bytes of a token in a row that waits for its turn: twice as row and as input, once as target, with whether it counts.
const ROW_BYTES: u64 = 16;

/// A training run between two steps.
pub struct Trainer {
    recipe: Recipe,
    /// What the run started from and what it reads: a state of another run is not continued.
    origin: Origin,
    tokenizer: Tokenizer,
    rows: Box<dyn Rows>,
    model: Gpt2,
    /// What learns.
    parameters: Vec<Parameter>,
    optimizer: AdamW,
    block_size: usize,
    progress: Progress,
    micro_batch_size: usize,
    /// One pool of one thread per core: a micro-batch is computed by one thread, so that the rounding, and with it
    /// the result, does not depend on how many threads there are.
    pools: Vec<rayon::ThreadPool>,
}

/// Refuses a model for which there is no memory, before its weights are drawn or copied.
fn check_start(config: &Config, device: &Device) -> Result<()> {
    // What a GPU holds is its own matter; weights are drawn here.
    let needed = if device.is_cpu() { config.start_memory() } else { config.start_memory() / 4 };
    memory::check(&format!("training {} parameters", config.parameters()), needed, None)
}

/// Something that learns.
struct Parameter {
    name: String,
    var: Var,
}

/// The weights of a model, for one that is made of them.
fn by_name<'m>(model: &'m Gpt2) -> impl Fn(&str) -> Result<&'m Tensor> {
    let all: HashMap<String, &'m Tensor> = model.tensors().into_iter().collect();
    move |name| all.get(name).copied().ok_or_else(|| Error::Bug(format!("{name} is no tensor of the model")))
}

/// Hashes of what a run began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    weights: String,
    rows: String,
}

/// How the validation loss has been going.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The lowest one so far.
    pub best: Option<f64>,
    /// Measurements since then.
    pub since_best: u64,
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
    /// Starts a run from scratch on a language: learns the tokenizer, then draws the weights.
    ///
    /// # Errors
    /// [`Error::Request`] for a recipe without a shape.
    pub fn from_language(recipe: Recipe, language: Language, device: &Device) -> Result<Self> {
        let (seed, documents) = (recipe.train.seed, recipe.data.tokenizer_documents);
        let vocab_size = recipe.shape()?.vocab_size;
        let texts = (0..documents).map(|i| cut_numbers(&language.document(&mut random::stream(seed, "tokenizer", i))));
        let tokenizer = Tokenizer::train(texts, vocab_size)?;
        let corpus = Corpus::new(language, tokenizer.clone(), recipe.data.repeat_share, seed)?;
        Self::from_scratch(recipe, tokenizer, Box::new(corpus), device)
    }

    /// Starts a run from scratch on any rows, on a device.
    ///
    /// # Errors
    /// [`Error::Request`] for a recipe without a shape, or knobs that do not fit it.
    pub fn from_scratch(recipe: Recipe, tokenizer: Tokenizer, rows: Box<dyn Rows>, device: &Device) -> Result<Self> {
        let seed = recipe.train.seed;
        let config = recipe.shape()?.config(tokenizer.vocab_size())?;
        check_start(&config, device)?;
        let draw = initial::draw(&config, seed);
        let draw = |name: &str| Ok(draw(name)?.to_device(device)?);
        Self::new(recipe, config.clone(), "drawn".into(), tokenizer, rows, draw)
    }

    /// Starts a run from a model that exists, on the model's device; `origin` tells it from others, such as the hash of its weights.
    ///
    /// # Errors
    /// [`Error::Request`] for knobs that do not fit the model, or a recipe with a shape of its own.
    pub fn from_model(
        recipe: Recipe,
        model: &Gpt2,
        origin: &str,
        tokenizer: Tokenizer,
        rows: Box<dyn Rows>,
    ) -> Result<Self> {
        if recipe.model.is_some() {
            return Err(Error::request(
                "a recipe with a [model] section starts from scratch; leave it out to fine-tune",
            ));
        }
        check_start(model.config(), model.device())?;
        let weights = by_name(model);
        let copy = |name: &str| Ok(weights(name)?.to_dtype(DType::F32)?);
        Self::new(recipe, model.config().clone(), origin.into(), tokenizer, rows, copy)
    }

    fn new(
        recipe: Recipe,
        config: Config,
        weights: String,
        tokenizer: Tokenizer,
        rows: Box<dyn Rows>,
        mut get: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let block_size = recipe.block_size(&config)?;
        let frozen = crate::freeze::matching(&recipe.train.freeze, &config)?;
        let mut parameters = Vec::new();
        let model = Gpt2::new(config, |name| {
            let start = get(name)?;
            if frozen.contains(name) {
                return Ok(start);
            }
            let var = Var::from_tensor(&start)?;
            // It shares the values, and candle keeps no graph of what is computed with it.
            let seen = var.as_detached_tensor();
            parameters.push(Parameter { name: name.to_string(), var });
            Ok(seen)
        })?;
        let t = &recipe.train;
        let optimizer = AdamWConfig {
            lr: t.learning_rate,
            beta1: t.beta1,
            beta2: t.beta2,
            eps: 1e-8,
            weight_decay: t.weight_decay,
        };
        let micro_batch_size = recipe.train.micro_batch_size;
        let pools = (0..rayon::current_num_threads()).map(|_| process::pool(1)).collect::<Result<_>>()?;
        Ok(Self {
            optimizer: AdamW::new(parameters.iter().map(|p| p.var.clone()).collect(), optimizer)?,
            origin: Origin { weights, rows: rows.digest() },
            progress: Progress { best: None, since_best: 0 },
            recipe,
            tokenizer,
            rows,
            model,
            parameters,
            block_size,
            micro_batch_size,
            pools,
        })
    }

    /// The same run, out of memory for more tokens at once: a GPU that is full, for tests.
    #[doc(hidden)]
    pub fn with_room_for(self, most_tokens: usize) -> Self {
        Self { model: self.model.with_room_for(most_tokens), ..self }
    }

    /// The model as it is now.
    pub fn model(&self) -> &Gpt2 {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Tokens in a row.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Rows that pass through the model at once: as many as the recipe says, or half as many for every time that there was no memory
    /// for them. What a step learns is then the same but for rounding, and for what dropout draws.
    pub fn micro_batch_size(&self) -> usize {
        self.micro_batch_size
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// How the validation loss has been going.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Parameters that learn.
    pub fn trainable(&self) -> usize {
        self.parameters.iter().map(|p| p.var.elem_count()).sum()
    }

    /// Tokens that one step learns from.
    pub fn tokens_per_step(&self) -> usize {
        self.recipe.rows_per_step() * self.block_size
    }

    /// Bytes of the rows of a step, or of the validation where they are more: all stand ready as tokens, targets, and what counts.
    pub fn rows_memory(&self) -> u64 {
        let rows = (self.recipe.rows_per_step() as u64).max(self.recipe.train.validation_rows());
        memory::product(&[rows, self.block_size as u64, ROW_BYTES])
    }

    /// Bytes that a step needs at most, about: its rows, weights, gradients, optimizer and what the backward pass remembers, for
    /// rows of `block_size` of which `micro_batch_size` pass through the model at once.
    pub fn memory(&self, micro_batch_size: usize, block_size: usize) -> u64 {
        let (config, device) = (self.model.config(), self.model.device());
        let (all, learning) = (config.parameters(), self.trainable() as u64);
        let micro_batches = (self.tokens_per_step() / (micro_batch_size * block_size)).max(1) as u64;
        let (sums, at_once) = match self.side_by_side(micro_batches as usize) {
            true => (micro_batches, micro_batches.min(self.pools.len() as u64)),
            false => (1, 1),
        };
        // On the CPU a matrix of 16 bits is widened for every product.
        let widened = if device.is_cpu() { 4 * at_once * (config.vocab_size * config.n_embd) as u64 } else { 0 };
        let copies = match self.recipe.train.dtype {
            Precision::Float32 => 0,
            _ => 2 * all + widened,
        };
        let learned = (8 + 4 * sums).saturating_mul(learning);
        let passing = at_once.saturating_mul(config.training_memory(micro_batch_size, block_size, device));
        [4 * all, copies, learned, passing, self.rows_memory()].into_iter().fold(0, u64::saturating_add)
    }

    /// Whether the run has taken all its steps, or has waited long enough for a lower validation loss.
    pub fn is_done(&self) -> bool {
        let t = &self.recipe.train;
        self.steps() >= t.max_iters || (t.patience > 0 && self.progress.since_best >= t.patience)
    }

    /// Takes one step.
    ///
    /// # Errors
    /// [`Error::Data`] when the loss is no longer a number, or when what the step makes of the parameters is not; a run that was
    /// refused so takes no further step and saves nothing. [`Error::TryAgain`] where there is no memory for one row; parameters are
    /// then as before the step.
    pub fn step(&mut self) -> Result<Step> {
        let step = self.steps();
        let lr = self.recipe.learning_rate(step);
        let (loss, grads) = self.with_room(|trainer| trainer.gradients(step))?;
        let grad_norm = ops::sum_of_squares(&grads)?.sqrt();
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(diverged(step + 1, &format!("loss {loss}, gradient norm {grad_norm}")));
        }
        let limit = self.recipe.train.grad_clip;
        let scale = if limit > 0.0 && grad_norm > limit { limit / (grad_norm + 1e-6) } else { 1.0 };
        self.optimizer.set_learning_rate(lr);
        self.optimizer.step_with(&grads, scale)?;
        self.check_parameters()?;
        Ok(Step { step: step + 1, loss, lr, grad_norm })
    }

    /// Refuses parameters that are not finite.
    fn check_parameters(&self) -> Result<()> {
        for Parameter { name, var } in &self.parameters {
            self.check_finite("", name, var.as_tensor())?;
        }
        Ok(())
    }

    fn check_finite(&self, what: &str, name: &str, tensor: &Tensor) -> Result<()> {
        match ops::all_finite(tensor)? {
            true => Ok(()),
            false => Err(diverged(self.steps(), &format!("{what}{name} holds values that are not finite"))),
        }
    }

    /// Refuses what is not worth keeping: parameters or means of the optimizer that are not finite, or that give no finite loss.
    fn check_worth_keeping(&self) -> Result<()> {
        self.check_parameters()?;
        for (Parameter { name, .. }, (mean, square)) in self.parameters.iter().zip(self.optimizer.state()) {
            self.check_finite("the mean gradient of ", name, mean)?;
            self.check_finite("the mean squared gradient of ", name, square)?;
        }
        let loss = self.loss_of(1)?;
        if !loss.is_finite() {
            return Err(diverged(self.steps(), &format!("the loss of a validation row is {loss}")));
        }
        Ok(())
    }

    /// Some work, with ever fewer rows at once until there is memory for it.
    fn with_room<R>(&mut self, work: impl Fn(&Self) -> Result<R>) -> Result<R> {
        loop {
            match work(self) {
                Err(Error::TryAgain(_)) if self.micro_batch_size > 1 => self.micro_batch_size /= 2,
                done => return done,
            }
        }
    }

    /// Mean loss of the rows of a step, and its gradient for every parameter.
    fn gradients(&self, step: u64) -> Result<(f64, Vec<Tensor>)> {
        let t = &self.recipe.train;
        let (split, length) = match step < t.short_iters {
            true => (Split::TrainShort, t.short_block_size),
            false => (Split::Train, self.block_size),
        };
        let rows = (self.tokens_per_step() / length) as u64;
        let batch = self.batch(split, step * rows..(step + 1) * rows, length)?;
        let model = self.rounded()?;
        let factor = 1.0 / batch.iter().map(|rows| rows.counted).sum::<usize>().max(1) as f64;
        let learn = |i: u64, sums: &Gpt2| -> Result<f64> {
            let MicroBatch { inputs: tokens, starts, targets, .. } = &batch[i as usize];
            let mut dropout = Dropout::new(t.dropout, random::stream(t.seed, "dropout", (step << 20) | i));
            let losses = model.learn(&Lesson { tokens, starts, targets, factor }, &mut dropout, sums)?;
            Ok(sum_of(&losses)? * factor)
        };
        let n = batch.len() as u64;
        let (mut loss, mut grads) = (0.0, Vec::new());
        if self.side_by_side(batch.len()) {
            let part = |i: u64| {
                let sums = self.sums()?;
                Ok((learn(i, &sums)?, self.in_order(&sums)?))
            };
            for (more, part) in self.parallel(n, part)? {
                loss += more;
                grads = match grads.is_empty() {
                    true => part,
                    false => {
                        grads.iter().zip(&part).map(|(a, b)| ops::add(a, b)).collect::<candle_core::Result<_>>()?
                    }
                };
            }
        } else {
            let sums = self.sums()?;
            for i in 0..n {
                loss += learn(i, &sums)?;
            }
            grads = self.in_order(&sums)?;
        }
        Ok((loss, grads))
    }

    /// Where gradients are added up: a model of zeros, and of nothing where nothing learns.
    fn sums(&self) -> Result<Gpt2> {
        let vars: HashMap<&str, &Var> = self.parameters.iter().map(|p| (p.name.as_str(), &p.var)).collect();
        Gpt2::new(self.model.config().clone(), |name| {
            Ok(match vars.get(name) {
                Some(var) => var.zeros_like()?,
                None => Tensor::zeros(0, DType::F32, &Device::Cpu)?,
            })
        })
    }

    /// The tensors of such a model, one per parameter.
    fn in_order(&self, sums: &Gpt2) -> Result<Vec<Tensor>> {
        let sums = by_name(sums);
        self.parameters.iter().map(|p| Ok(sums(&p.name)?.clone())).collect()
    }

    /// Whether so many micro-batches are computed side by side, one thread for each, rather than one after the other.
    fn side_by_side(&self, micro_batches: usize) -> bool {
        self.model.device().is_cpu() && micro_batches * self.trainable() * 4 <= HELD_GRADIENTS
    }

    /// The model as a step computes with it: itself in f32, else with its matrices rounded.
    fn rounded(&self) -> Result<Gpt2> {
        let dtype = self.recipe.train.dtype.dtype();
        if dtype == DType::F32 {
            return Ok(self.model.clone());
        }
        let weights = by_name(&self.model);
        let model = Gpt2::new(self.model.config().clone(), |name| {
            let weight = weights(name)?;
            Ok(if weight.rank() == 2 { weight.to_dtype(dtype)? } else { weight.clone() })
        })?;
        Ok(model.with_room_for(self.model.room()))
    }

    /// Mean loss on the validation rows, which no training row repeats.
    ///
    /// # Errors
    /// [`Error::TryAgain`] where there is no memory for one row.
    pub fn validation_loss(&self) -> Result<f64> {
        self.loss_of(self.recipe.train.validation_rows())
    }

    /// Mean loss on the first validation rows.
    fn loss_of(&self, rows: u64) -> Result<f64> {
        let batch = self.batch(Split::Validation, 0..rows, self.block_size)?;
        let model = self.rounded()?;
        let sum = |i: u64| {
            let batch = &batch[i as usize];
            let pass = Pass::new(&batch.inputs).starts(&batch.starts).logits(LogitsAt::None);
            sum_of(&model.losses(&model.run(pass, &mut ())?.resid, &batch.targets)?)
        };
        let sums = match self.side_by_side(1) {
            true => self.parallel(batch.len() as u64, sum)?,
            false => (0..batch.len() as u64).map(sum).collect::<Result<_>>()?,
        };
        let counted: usize = batch.iter().map(|rows| rows.counted).sum();
        Ok(sums.into_iter().sum::<f64>() / counted.max(1) as f64)
    }

    /// Measures the validation loss and remembers whether it is the lowest so far.
    ///
    /// # Errors
    /// As [`Trainer::validation_loss`], and [`Error::Data`] for a loss that is no number.
    pub fn evaluate(&mut self) -> Result<(f64, bool)> {
        let loss = self.with_room(Self::validation_loss)?;
        if !loss.is_finite() {
            return Err(diverged(self.steps(), &format!("validation loss {loss}")));
        }
        let lowest = self.progress.best.is_none_or(|best| loss < best);
        self.progress = match lowest {
            true => Progress { best: Some(loss), since_best: 0 },
            false => Progress { since_best: self.progress.since_best + 1, ..self.progress },
        };
        Ok((loss, lowest))
    }

    /// Rows of a split as micro-batches of equally many tokens, whatever the length of a row.
    fn batch(&self, split: Split, rows: std::ops::Range<u64>, length: usize) -> Result<Vec<MicroBatch>> {
        let first = rows.start;
        let rows = self.parallel(rows.end - first, |i| self.rows.row(split, first + i, length + 1))?;
        let rows_at_once = self.micro_batch_size * self.block_size / length;
        let starts: Vec<usize> = (first..first + rows.len() as u64)
            .map(|i| if split == Split::TrainShort { self.start(i, length) } else { 0 })
            .collect();
        let parts = rows.chunks(rows_at_once).zip(starts.chunks(rows_at_once));
        parts.map(|(rows, starts)| MicroBatch::new(rows, starts)).collect()
    }

    /// Where a short row starts: every other one somewhere within a long row, so that all positions learn (shifted
    /// absolute positions, Kiyono et al. 2021).
    fn start(&self, row: u64, length: usize) -> usize {
        let mut rng = random::stream(self.recipe.train.seed, "start", row);
        if rng.random_bool(0.5) { 0 } else { rng.random_range(0..=self.block_size - length) }
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
    /// [`Error::Data`] for a model that gives no finite loss, [`Error::CannotWrite`] or [`Error::Io`]; an older state is then
    /// still whole.
    pub fn save_state(&self, dir: &Path) -> Result<()> {
        self.check_worth_keeping()?;
        let mut tensors = Vec::new();
        for (Parameter { name, var, .. }, (mean, square)) in self.parameters.iter().zip(self.optimizer.state()) {
            tensors.push((format!("parameter.{name}"), var.as_tensor().clone()));
            tensors.push((format!("mean.{name}"), mean.clone()));
            tensors.push((format!("square.{name}"), square.clone()));
        }
        // One entry, because a map of several has no fixed order in the file.
        let run = SavedRun {
            step: self.steps(),
            recipe: self.recipe.clone(),
            origin: self.origin.clone(),
            progress: self.progress,
        };
        let run = serde_json::to_string(&run).map_err(|e| Error::Bug(e.to_string()))?;
        let metadata = [("run".to_string(), run)];
        weights::write_tensors(&dir.join(STATE), &tensors, metadata.into())
    }

    /// Continues from a state that [`Trainer::save_state`] wrote; the run then ends as if it had never stopped. The recipe is the
    /// state's, but for `max_iters`, which may be any that is not below the steps taken: a run that has ended goes on with more. Where
    /// the learning rate falls towards `max_iters`, it then follows the new schedule from here on.
    ///
    /// # Errors
    /// [`Error::Data`] for a state of another recipe, or a damaged one.
    pub fn load_state(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE);
        // Parameters with two moments each, and a header.
        let most = 12 * self.trainable() as u64 + (16 << 20);
        let bytes = weights::read_tensors(&path, most)?;
        let wrong = |what: String| Error::data(&path, what);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
        let run: SavedRun = header
            .metadata()
            .as_ref()
            .and_then(|metadata| serde_json::from_str(metadata.get("run")?).ok())
            .ok_or_else(|| wrong("no recipe in it: not a training state".into()))?;
        let SavedRun { step: steps, recipe: saved, origin, progress } = run;
        let mut longer = saved.clone();
        if self.recipe.train.max_iters >= steps {
            longer.train.max_iters = self.recipe.train.max_iters;
        }
        let asked = self.recipe.recorded();
        if longer != asked {
            let fields = saved.differences(&asked);
            return Err(wrong(format!("was made by another recipe, which differs in {fields}; use another --out")));
        }
        if origin != self.origin {
            let what = if origin.rows == self.origin.rows { "began with other weights" } else { "read other text" };
            return Err(wrong(format!("is of a run that {what}; use another --out")));
        }
        if let Some(what) = limits::fault("its step", steps, 0..=limits::TRAINING_STEPS) {
            return Err(wrong(what));
        }
        if let Some(what) = limits::fault("its count of measurements", progress.since_best, 0..=limits::TRAINING_STEPS)
        {
            return Err(wrong(what));
        }
        if progress.best.is_some_and(|best| !best.is_finite()) {
            return Err(wrong("its lowest validation loss is no number".into()));
        }
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let get = |name: String| -> Result<Tensor> {
            let view = tensors.tensor(&name).map_err(|e| wrong(format!("{name}: {e}")))?;
            if view.dtype() != safetensors::Dtype::F32 {
                return Err(wrong(format!("{name} is {:?}, not F32", view.dtype())));
            }
            let tensor = Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), self.model.device());
            tensor.map_err(|e| wrong(format!("{name}: {}", said_by_candle(&e))))
        };
        let mut state = Vec::new();
        for Parameter { name, var, .. } in &self.parameters {
            let parameter = get(format!("parameter.{name}"))?;
            var.set(&parameter).map_err(|e| wrong(format!("{name}: {}", said_by_candle(&e))))?;
            state.push((get(format!("mean.{name}"))?, get(format!("square.{name}"))?));
        }
        self.optimizer.restore(steps, state).map_err(|e| wrong(said_by_candle(&e)))?;
        self.progress = progress;
        Ok(())
    }

    /// Writes the model as Hugging Face stores it, see [`weights::write_model`].
    ///
    /// # Errors
    /// [`Error::Data`] for a model that gives no finite loss, [`Error::CannotWrite`] or [`Error::Io`].
    pub fn save_model(&self, dir: &Path) -> Result<()> {
        self.check_worth_keeping()?;
        weights::write_model(dir, &self.model, Some(&self.tokenizer))
    }
}

/// A run that leads nowhere.
fn diverged(step: u64, what: &str) -> Error {
    Error::data(STATE, format!("step {step}: {what}; the last checkpoint is intact: lower learning_rate"))
}

/// What a state says of its run.
#[derive(Serialize, Deserialize)]
struct SavedRun {
    step: u64,
    recipe: Recipe,
    origin: Origin,
    progress: Progress,
}

/// Rows that pass through the model at once.
struct MicroBatch {
    inputs: Tokens,
    /// Position of the first token of each row.
    starts: Vec<usize>,
    targets: Vec<u32>,
    /// Targets that count.
    counted: usize,
}

impl MicroBatch {
    fn new(rows: &[Row], starts: &[usize]) -> Result<Self> {
        let target = |(token, counts): (&u32, &bool)| if *counts { *token } else { ops::IGNORE };
        let targets: Vec<u32> =
            rows.iter().flat_map(|row| row.tokens[1..].iter().zip(&row.counts[1..]).map(target)).collect();
        let inputs = rows.iter().map(|row| row.tokens[..row.tokens.len() - 1].to_vec()).collect();
        let counted = targets.iter().filter(|target| **target != ops::IGNORE).count();
        Ok(Self { inputs: Tokens::from_ids(inputs)?, starts: starts.to_vec(), targets, counted })
    }
}

fn sum_of(losses: &Tensor) -> Result<f64> {
    Ok(f64::from(losses.sum_all()?.to_scalar::<f32>()?))
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

//! What decides the outcome of a training run, read from TOML. Knobs are named as in nanoGPT.

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result, toml_fault};

/// Everything that decides the outcome of a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The shape of a model that starts from scratch; none to fine-tune one that exists.
    #[serde(default)]
    pub model: Option<ModelRecipe>,
    /// What it reads.
    #[serde(default)]
    pub data: DataRecipe,
    /// How it learns.
    #[serde(default)]
    pub train: TrainRecipe,
}

/// The shape of a model; without more said, GPT-2 small's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelRecipe {
    /// Blocks.
    pub n_layer: usize,
    /// Heads per block.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Positions.
    pub block_size: usize,
    /// Entries of the vocabulary: of the BPE that is learned first, or at least as many as the tokenizer has; 0 for
    /// exactly as many.
    pub vocab_size: usize,
}

/// What the model reads: a language, or text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    /// A language file (see `models/tiny/language.toml`), relative to the recipe.
    pub language: Option<PathBuf>,
    /// How a model that starts from scratch on text gets its tokenizer.
    pub tokenizer: Option<Learned>,
    /// Documents of the language from which the tokenizer is learned.
    pub tokenizer_documents: u64,
    /// Share of rows that are random tokens, repeated; of a language only.
    pub repeat_share: f64,
    /// Files or directories of text: `.txt` and others whole, `.jsonl` by its `text` fields, `.bin` as nanoGPT's tokens.
    pub text: Vec<PathBuf>,
    /// The same for validation; without it the end of the text.
    pub validation: Vec<PathBuf>,
    /// How much of the text is kept for validation where there is no text of its own for it.
    pub validation_share: f64,
}

/// A tokenizer that is made from the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learned {
    /// A byte-level BPE, as GPT-2's.
    Bpe,
    /// The characters of the text, as in nanoGPT's `shakespeare_char`.
    Characters,
}

/// How the model learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainRecipe {
    /// Decides weights, text, order and dropout.
    pub seed: u64,
    /// Tokens in a row; 0 for as many as the model has positions.
    pub block_size: usize,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Batches per step; their gradients are averaged.
    pub gradient_accumulation_steps: usize,
    /// Rows that pass through the model at once, a divisor of batch_size; decides memory and rounding, not the meaning.
    pub micro_batch_size: usize,
    /// What matrices are multiplied in; weights, gradients and optimizer are f32 whatever this is.
    pub dtype: Precision,
    /// Steps.
    pub max_iters: u64,
    /// Steps that read short rows, more of them, at shifting positions: a small model finds induction in short rows
    /// within minutes, and in long ones not at all (a warm-up of sequence length, Li et al. 2022).
    pub short_iters: u64,
    /// Tokens of a short row, a divisor of block_size.
    pub short_block_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Whether the learning rate follows a cosine after its warm-up; otherwise it stays.
    pub decay_lr: bool,
    /// Learning rate at the end of the cosine.
    pub min_lr: f64,
    /// Steps of linear warm-up.
    pub warmup_iters: u64,
    /// Step at which the cosine ends; 0 for max_iters.
    pub lr_decay_iters: u64,
    /// Step at which the schedule starts over, warm-up included, to end with max_iters (a warm restart, Loshchilov &
    /// Hutter 2017); 0 for never.
    pub lr_restart_iters: u64,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: f64,
    /// Decoupled decay of matrices and embeddings.
    pub weight_decay: f64,
    /// Largest norm of a gradient; longer ones are scaled down. 0 for no limit.
    pub grad_clip: f64,
    /// Share of values that are dropped after the embedding, in attention patterns and before each residual sum.
    pub dropout: f64,
    /// Parameters that stay as they are: names as in the checkpoint, `*` and ranges such as `h.[0-5].*`.
    pub freeze: Vec<String>,
    /// Steps between measurements of the validation loss.
    pub eval_interval: u64,
    /// Validation rows.
    pub eval_rows: u64,
    /// Whether to keep the model with the lowest validation loss besides the last one.
    pub keep_best: bool,
    /// Measurements without a new lowest validation loss after which the run ends; 0 for never.
    pub patience: u64,
    /// Steps between checkpoints.
    pub checkpoint_interval: u64,
}

/// A number format, by nanoGPT's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    Float32,
    /// bf16, of rounded copies of the weights (mixed precision, Micikevicius et al. 2018). There is no float16: its gradients would have
    /// to be scaled.
    Bfloat16,
}

impl Precision {
    /// The type of that name.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Float32 => DType::F32,
            Precision::Bfloat16 => DType::BF16,
        }
    }

    /// The name of a type.
    ///
    /// # Errors
    /// [`Error::Request`] for a type that training is not done in.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Precision::Float32),
            DType::BF16 => Ok(Precision::Bfloat16),
            other => Err(Error::request(format!("training is in f32 or bf16, not in {}", other.as_str()))),
        }
    }
}

impl Default for ModelRecipe {
    fn default() -> Self {
        Self { n_layer: 12, n_head: 12, n_embd: 768, block_size: 1024, vocab_size: 0 }
    }
}

impl Default for DataRecipe {
    fn default() -> Self {
        Self {
            language: None,
            tokenizer: None,
            tokenizer_documents: 30_000,
            repeat_share: 0.0,
            text: Vec::new(),
            validation: Vec::new(),
            validation_share: 0.1,
        }
    }
}

impl Default for TrainRecipe {
    fn default() -> Self {
        Self {
            seed: 1337,
            block_size: 0,
            batch_size: 8,
            gradient_accumulation_steps: 1,
            micro_batch_size: 1,
            dtype: Precision::default(),
            max_iters: 200,
            short_iters: 0,
            short_block_size: 0,
            learning_rate: 3e-5,
            decay_lr: true,
            min_lr: 3e-6,
            warmup_iters: 10,
            lr_decay_iters: 0,
            lr_restart_iters: 0,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.1,
            grad_clip: 1.0,
            dropout: 0.0,
            freeze: Vec::new(),
            eval_interval: 50,
            eval_rows: 32,
            keep_best: false,
            patience: 0,
            checkpoint_interval: 50,
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// As [`Recipe::load_with`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(Some(path), &[])
    }

    /// Reads a recipe, or starts from the defaults, and sets single keys: `learning_rate=1e-4`, `train.seed=2`.
    ///
    /// # Errors
    /// [`Error::Data`] with the key at fault in the file, [`Error::Request`] for one that is set.
    pub fn load_with(path: Option<&Path>, set: &[String]) -> Result<Self> {
        let mut recipe = match path {
            None => Recipe::default(),
            Some(path) => {
                let text = crate::weights::read_text(path, 1 << 20)?;
                let recipe: Recipe = toml::from_str(&text).map_err(|e| Error::data(path, toml_fault(&text, &e)))?;
                recipe.check().map_err(|what| Error::data(path, what))?;
                recipe
            }
        };
        for assignment in set {
            recipe = recipe.with(assignment)?;
        }
        recipe.check().map_err(Error::Request)?;
        Ok(recipe)
    }

    /// The recipe with one key set.
    fn with(&self, assignment: &str) -> Result<Self> {
        let fault = |what: String| Error::request(format!("--set {assignment}: {what}"));
        let (key, value) = assignment.split_once('=').ok_or_else(|| fault("write KEY=VALUE".into()))?;
        let (key, value) = (key.trim(), value.trim());
        let table_of = |recipe: &Recipe| toml::Table::try_from(recipe).map_err(|e| fault(e.to_string()));
        let (mut table, full) = (table_of(self)?, table_of(&Recipe::with_every_key())?);
        let known = |section: &str, key: &str| full.get(section).is_some_and(|fields| fields.get(key).is_some());
        let (section, key) = match key.split_once('.') {
            Some((section, key)) => (section, key),
            None => {
                let section = ["train", "data", "model"].into_iter().find(|section| known(section, key));
                (section.ok_or_else(|| fault(format!("there is no key `{key}`")))?, key)
            }
        };
        if !known(section, key) {
            return Err(fault(format!("there is no key `{section}.{key}`")));
        }
        // What is no TOML value is text without its quotation marks.
        let value = toml::from_str::<toml::Table>(&format!("x = {value}"))
            .ok()
            .and_then(|mut table| table.remove("x"))
            .unwrap_or_else(|| toml::Value::String(value.to_string()));
        // 1 is a fine learning rate.
        let float = full.get(section).and_then(|fields| fields.get(key)).is_some_and(toml::Value::is_float);
        let value = value.as_integer().filter(|_| float).map_or(value, |n| toml::Value::Float(n as f64));
        let fields = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let Some(fields) = fields.as_table_mut() {
            fields.insert(key.to_string(), value);
        }
        table.try_into().map_err(|e: toml::de::Error| fault(e.message().to_string()))
    }

    /// All keys, as `section.key`.
    pub fn keys() -> Vec<String> {
        let table = toml::Table::try_from(Self::with_every_key()).unwrap_or_default();
        let of = |(section, fields): (&String, &toml::Value)| {
            let keys = fields.as_table().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
            keys.into_iter().map(|key| format!("{section}.{key}")).collect::<Vec<_>>()
        };
        table.iter().flat_map(of).collect()
    }

    /// A recipe that leaves nothing out: TOML has no way to write what is not there.
    fn with_every_key() -> Self {
        let data =
            DataRecipe { language: Some(PathBuf::new()), tokenizer: Some(Learned::Bpe), ..DataRecipe::default() };
        Self { model: Some(ModelRecipe::default()), data, ..Self::default() }
    }

    fn check(&self) -> std::result::Result<(), String> {
        let t = &self.train;
        if let Some(m) = &self.model {
            m.check()?;
        }
        let positive = [
            ("batch_size", t.batch_size),
            ("gradient_accumulation_steps", t.gradient_accumulation_steps),
            ("micro_batch_size", t.micro_batch_size),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if !t.batch_size.is_multiple_of(t.micro_batch_size) {
            let (all, one) = (t.batch_size, t.micro_batch_size);
            return Err(format!("batch_size {all} is not a multiple of micro_batch_size {one}"));
        }
        if t.short_iters > 0 && t.short_block_size < 16 {
            return Err(format!("short_block_size is {}; it must be at least 16", t.short_block_size));
        }
        let shares = [
            ("beta1", t.beta1),
            ("beta2", t.beta2),
            ("repeat_share", self.data.repeat_share),
            ("validation_share", self.data.validation_share),
        ];
        if let Some((name, value)) = shares.iter().find(|(_, x)| !(0.0..=1.0).contains(x)) {
            return Err(format!("{name} is {value}; it must be in 0..=1"));
        }
        if !(0.0..1.0).contains(&t.dropout) {
            return Err(format!("dropout is {}; it must be at least 0 and below 1", t.dropout));
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
        if t.eval_interval == 0 || t.checkpoint_interval == 0 || t.max_iters == 0 || t.eval_rows == 0 {
            return Err("max_iters, eval_interval, eval_rows and checkpoint_interval must be at least 1".into());
        }
        if self.data.language.is_some() && !self.data.text.is_empty() {
            return Err("data.language and data.text exclude each other".into());
        }
        Ok(())
    }

    /// The learning rate of step `step` (0-based): linear warm-up, then a cosine down to `min_lr`, as in nanoGPT.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let t = &self.train;
        let decay_end = if t.lr_decay_iters == 0 { t.max_iters } else { t.lr_decay_iters };
        let (step, end) = match step.checked_sub(t.lr_restart_iters) {
            Some(since) if t.lr_restart_iters > 0 => (since, t.max_iters.saturating_sub(t.lr_restart_iters)),
            _ => (step, decay_end),
        };
        if step < t.warmup_iters {
            return t.learning_rate * (step + 1) as f64 / (t.warmup_iters + 1) as f64;
        }
        if !t.decay_lr {
            return t.learning_rate;
        }
        let span = end.saturating_sub(t.warmup_iters).max(1) as f64;
        let done = ((step - t.warmup_iters) as f64 / span).min(1.0);
        t.min_lr + 0.5 * (1.0 + (std::f64::consts::PI * done).cos()) * (t.learning_rate - t.min_lr)
    }

    /// The shape of a model that starts from scratch.
    ///
    /// # Errors
    /// [`Error::Request`] where there is none.
    pub fn shape(&self) -> Result<&ModelRecipe> {
        self.model.as_ref().ok_or_else(|| {
            Error::request(
                "the recipe has no [model] section, which a model from scratch needs (finetune starts from one that exists)",
            )
        })
    }

    /// Tokens in a row, for a model of this shape.
    ///
    /// # Errors
    /// [`Error::Request`] for one that does not fit.
    pub fn block_size(&self, config: &Config) -> Result<usize> {
        let (asked, limit) = (self.train.block_size, config.n_positions);
        let length = if asked == 0 { limit } else { asked };
        if length < 2 || length > limit {
            return Err(Error::request(format!("block_size is {asked}; this model reads 2 to {limit} tokens")));
        }
        let short = self.train.short_block_size;
        if self.train.short_iters > 0 && length % short != 0 {
            return Err(Error::request(format!("short_block_size {short} does not divide block_size {length}")));
        }
        Ok(length)
    }

    /// Rows that one step learns from.
    pub fn rows_per_step(&self) -> usize {
        self.train.batch_size * self.train.gradient_accumulation_steps
    }

    /// Names the keys that differ, with their values in `self`.
    pub fn differences(&self, other: &Recipe) -> String {
        let flat = |recipe: &Recipe| {
            let value = serde_json::to_value(recipe).unwrap_or_default();
            let sections = value.as_object().cloned().unwrap_or_default().into_iter();
            let keys = sections.flat_map(|(section, fields)| {
                let fields = fields.as_object().cloned().unwrap_or_default();
                fields.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value.to_string()))
            });
            keys.collect::<std::collections::BTreeMap<_, _>>()
        };
        let (ours, theirs) = (flat(self), flat(other));
        let differing = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(value));
        differing.map(|(key, value)| format!("{key} ({value})")).collect::<Vec<_>>().join(", ")
    }
}

impl ModelRecipe {
    fn check(&self) -> std::result::Result<(), String> {
        let positive = [("n_layer", self.n_layer), ("n_head", self.n_head), ("n_embd", self.n_embd)];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(format!("n_embd {} is not divisible by n_head {}", self.n_embd, self.n_head));
        }
        if self.block_size < 16 {
            return Err(format!("block_size is {}; it must be at least 16", self.block_size));
        }
        Ok(())
    }

    /// The shape for a tokenizer of so many entries.
    ///
    /// # Errors
    /// [`Error::Request`] if the recipe asks for fewer.
    pub fn config(&self, tokens: usize) -> Result<Config> {
        let asked = self.vocab_size;
        if asked != 0 && asked < tokens {
            return Err(Error::request(format!(
                "vocab_size is {asked}, but the tokenizer has {tokens} entries: raise it, or set it to 0"
            )));
        }
        Ok(Config::new(self.n_layer, self.n_head, self.n_embd, asked.max(tokens), self.block_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_set_by_name() {
        let set = |assignments: &[&str]| {
            let assignments: Vec<String> = assignments.iter().map(|a| a.to_string()).collect();
            Recipe::load_with(None, &assignments)
        };
        let recipe = set(&["learning_rate=1", "train.seed = 7", "freeze=['wte', 'h.0.*']", "decay_lr=false"]).unwrap();
        assert_eq!((recipe.train.learning_rate, recipe.train.seed, recipe.train.decay_lr), (1.0, 7, false));
        assert_eq!(recipe.train.freeze, ["wte", "h.0.*"]);
        assert_eq!(set(&["n_layer=3"]).unwrap().model.unwrap().n_layer, 3);
        assert_eq!(set(&["tokenizer=characters"]).unwrap().data.tokenizer, Some(Learned::Characters));
        assert_eq!(set(&["text=['a.txt']"]).unwrap().data.text, [PathBuf::from("a.txt")]);
        for (bad, why) in [
            ("lerning_rate=1", "no key `lerning_rate`"),
            ("train.text=1", "no key `train.text`"),
            ("batch_size=many", "invalid type"),
            ("batch_size=0", "at least 1"),
            ("dropout=1.0", "below 1"),
            ("seed", "KEY=VALUE"),
        ] {
            let error = set(&[bad]).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}

//! What decides the outcome of a training run, read from TOML. Knobs are named as in nanoGPT.

mod keys;
mod knobs;

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::limits::{self, DOCUMENTS, HEADS, LAYERS, POSITIONS, TRAINING_ROWS, TRAINING_STEPS, VOCABULARY, WIDTH};
pub use keys::help;
pub use knobs::{DataRecipe, ModelRecipe, TrainRecipe};

use crate::error::{Error, Result, shorten};
use knobs::lossy;

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

/// A tokenizer that is made from the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learned {
    /// A byte-level BPE, as GPT-2's.
    Bpe,
    /// The characters of the text, as in nanoGPT's `shakespeare_char`.
    Characters,
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
                let recipe: Recipe = toml::from_str(&text).map_err(|e| Error::data(path, keys::fault(&text, &e)))?;
                if text_sets_both(&text) {
                    return Err(Error::data(path, BOTH));
                }
                recipe.check().map_err(|what| Error::data(path, what))?;
                recipe
            }
        };
        let sets = |key: &str| set.iter().any(|assignment| name_of(assignment) == key);
        if sets("eval_rows") && sets("eval_iters") {
            return Err(Error::request(format!("--set: {BOTH}")));
        }
        for assignment in set {
            recipe = recipe.with(assignment)?;
        }
        recipe.check().map_err(Error::Request)?;
        Ok(recipe)
    }

    /// The recipe with one key set.
    fn with(&self, assignment: &str) -> Result<Self> {
        let fault = |what: String| Error::request(format!("--set {}: {what}", shorten(assignment)));
        let (key, value) = assignment.split_once('=').ok_or_else(|| fault("write KEY=VALUE".into()))?;
        let (key, value) = (key.trim(), value.trim());
        let table_of = |recipe: &Recipe| toml::Table::try_from(recipe).map_err(|e| fault(e.to_string()));
        let (mut table, full) = (table_of(self)?, table_of(&Recipe::with_every_key())?);
        let known = |section: &str, key: &str| full.get(section).is_some_and(|fields| fields.get(key).is_some());
        let (section, key) = match key.split_once('.') {
            Some((section, key)) => (section, key),
            None => {
                let section = ["train", "data", "model"].into_iter().find(|section| known(section, key));
                (section.ok_or_else(|| fault(keys::unknown(None, key)))?, key)
            }
        };
        if !known(section, key) {
            return Err(fault(keys::unknown(Some(section), key)));
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
            // What is said last holds.
            if key == "eval_rows" {
                fields.remove("eval_iters");
            }
        }
        table.try_into().map_err(|e: toml::de::Error| fault(keys::fault("", &e)))
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
        self.check_ranges()?;
        if !t.batch_size.is_multiple_of(t.micro_batch_size) {
            let (all, one) = (t.batch_size, t.micro_batch_size);
            return Err(format!("batch_size {all} is not a multiple of micro_batch_size {one}"));
        }
        if t.short_iters > 0 && t.short_block_size < 16 {
            return Err(format!("short_block_size is {}; it must be at least 16", t.short_block_size));
        }
        let shares = [("repeat_share", self.data.repeat_share), ("validation_share", self.data.validation_share)];
        if let Some((name, value)) = shares.iter().find(|(_, x)| !(0.0..=1.0).contains(x)) {
            return Err(format!("{name} is {value}; it must be in 0..=1"));
        }
        let below_one = [("beta1", t.beta1), ("beta2", t.beta2), ("dropout", t.dropout)];
        if let Some((name, value)) = below_one.iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return Err(format!("{name} is {value}; it must be at least 0 and below 1"));
        }
        let finite = [
            ("learning_rate", t.learning_rate),
            ("min_lr", t.min_lr),
            ("weight_decay", t.weight_decay),
            ("grad_clip", t.grad_clip),
        ];
        if let Some((name, value)) = finite.iter().find(|(_, x)| !x.is_finite() || *x < 0.0) {
            return Err(format!("{name} is {value}; it must be a finite number not below 0"));
        }
        if self.data.language.is_some() && !self.data.text.is_empty() {
            return Err("data.language and data.text exclude each other".into());
        }
        Ok(())
    }

    /// Compares every whole number with its range; what fits together is checked after that.
    fn check_ranges(&self) -> std::result::Result<(), String> {
        let t = &self.train;
        let of_rows = |name, n, least| (name, n as u64, least, TRAINING_ROWS as u64);
        let of_tokens = |name, n| (name, n as u64, 0, POSITIONS as u64);
        let of_steps = |name, n, least| (name, n, least, TRAINING_STEPS);
        let ranges = [
            of_rows("batch_size", t.batch_size, 1),
            of_rows("gradient_accumulation_steps", t.gradient_accumulation_steps, 1),
            of_rows("micro_batch_size", t.micro_batch_size, 1),
            ("eval_rows", t.eval_rows, 1, TRAINING_ROWS as u64),
            ("eval_iters", t.eval_iters, 0, TRAINING_ROWS as u64),
            ("eval_iters * batch_size", t.validation_rows(), 1, TRAINING_ROWS as u64),
            of_tokens("block_size", t.block_size),
            of_tokens("short_block_size", t.short_block_size),
            of_steps("max_iters", t.max_iters, 1),
            of_steps("eval_interval", t.eval_interval, 1),
            of_steps("checkpoint_interval", t.checkpoint_interval, 1),
            of_steps("short_iters", t.short_iters, 0),
            of_steps("warmup_iters", t.warmup_iters, 0),
            of_steps("lr_decay_iters", t.lr_decay_iters, 0),
            of_steps("lr_restart_iters", t.lr_restart_iters, 0),
            of_steps("patience", t.patience, 0),
            ("tokenizer_documents", self.data.tokenizer_documents, 1, DOCUMENTS),
            // TOML, in which the recipe is kept, has no larger number.
            ("seed", t.seed, 0, i64::MAX as u64),
        ];
        for (name, value, least, most) in ranges {
            limits::fault(name, value, least..=most).map_or(Ok(()), Err)?;
        }
        // Both are at most 2^20, so that their product is a number.
        let rows = self.rows_per_step();
        limits::fault("batch_size × gradient_accumulation_steps", rows, 1..=TRAINING_ROWS).map_or(Ok(()), Err)
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
            return t.learning_rate * (step as f64 + 1.0) / (t.warmup_iters as f64 + 1.0);
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

    /// The recipe as it is written down: bytes of paths that are not UTF-8 are replaced.
    pub fn recorded(&self) -> Self {
        let mut recipe = self.clone();
        let data = &mut recipe.data;
        for path in data.text.iter_mut().chain(&mut data.validation).chain(&mut data.language) {
            *path = lossy(path).into();
        }
        recipe
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

/// Two ways to say the same thing.
const BOTH: &str = "eval_rows and eval_iters both say how much validation text is read; give one of them";

fn text_sets_both(text: &str) -> bool {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    let train = table.get("train").and_then(toml::Value::as_table);
    train.is_some_and(|train| train.contains_key("eval_rows") && train.contains_key("eval_iters"))
}

/// The key that an assignment sets, without its section.
fn name_of(assignment: &str) -> &str {
    let key = assignment.split('=').next().unwrap_or_default().trim();
    key.rsplit('.').next().unwrap_or_default()
}

impl TrainRecipe {
    /// Rows that the validation loss is the mean over.
    pub fn validation_rows(&self) -> u64 {
        if self.eval_iters == 0 { self.eval_rows } else { self.eval_iters.saturating_mul(self.batch_size as u64) }
    }
}

impl ModelRecipe {
    fn check(&self) -> std::result::Result<(), String> {
        // Those of a config.json, so that what is trained can be loaded.
        let ranges = [
            ("n_layer", self.n_layer, 1, LAYERS),
            ("n_head", self.n_head, 1, HEADS),
            ("n_embd", self.n_embd, 1, WIDTH),
            ("model.block_size", self.block_size, 16, POSITIONS),
            ("vocab_size", self.vocab_size, 0, VOCABULARY),
        ];
        for (name, value, least, most) in ranges {
            limits::fault(name, value, least..=most).map_or(Ok(()), Err)?;
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(format!("n_embd {} is not divisible by n_head {}", self.n_embd, self.n_head));
        }
        let width = self.n_embd / self.n_head;
        limits::fault("n_embd / n_head", width, 1..=limits::HEAD_WIDTH).map_or(Ok(()), Err)
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
            ("lerning_rate=1", "no key `lerning_rate`; the nearest is `learning_rate`"),
            ("train.text=1", "text is no key of [train]; it is one of [data]"),
            ("trian.seed=1", "there is no section `trian`, the nearest is `train`"),
            ("train.sed=1", "there is no key `sed`; the nearest is `seed`"),
            ("out_dir=x", "nanoGPT's out_dir is no key here; give the directory by --out DIR"),
            ("batch_size=many", "expected a whole number not below 0, found string \"many\""),
            ("batch_size=1e3", "expected a whole number not below 0, found floating point `1000.0`"),
            ("dtype=bf16", "the nearest is `bfloat16`"),
            ("eval_iters=99999999999999999", "eval_iters is 99999999999999999; it must be in 0..=1048576"),
            ("eval_iters=1048576", "eval_iters * batch_size is 8388608; it must be in 1..=1048576"),
            ("batch_size=0", "batch_size is 0; it must be in 1..=1048576"),
            ("n_layer=1000000000", "n_layer is 1000000000; it must be in 1..=96"),
            ("dropout=1.0", "dropout is 1; it must be at least 0 and below 1"),
            ("dropout=nan", "dropout is NaN"),
            ("beta1=1", "beta1 is 1; it must be at least 0 and below 1"),
            ("beta2=1.0", "beta2 is 1; it must be at least 0 and below 1"),
            ("beta2=-0.1", "beta2 is -0.1"),
            ("beta1=nan", "beta1 is NaN"),
            ("learning_rate=inf", "learning_rate is inf; it must be a finite number"),
            ("min_lr=-1", "min_lr is -1"),
            ("weight_decay=nan", "weight_decay is NaN"),
            ("grad_clip=-inf", "grad_clip is -inf"),
            ("repeat_share=1.5", "repeat_share is 1.5"),
            ("validation_share=nan", "validation_share is NaN"),
            ("seed", "KEY=VALUE"),
        ] {
            let error = set(&[bad]).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        // nanoGPT counts validation text in batches.
        let rows = |assignments: &[&str]| set(assignments).unwrap().train.validation_rows();
        assert_eq!((rows(&[]), rows(&["eval_iters=5", "batch_size=4"]), rows(&["eval_rows=7"])), (32, 20, 7));
        assert!(set(&["eval_iters=5", "train.eval_rows=4"]).unwrap_err().to_string().contains("give one of them"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        let file = |text: &str, set: &[&str]| {
            std::fs::write(&path, text).unwrap();
            let set: Vec<String> = set.iter().map(|one| one.to_string()).collect();
            Recipe::load_with(Some(&path), &set).map(|recipe| recipe.train.validation_rows())
        };
        assert_eq!(file("[train]\neval_rows = 64", &["eval_iters=2"]).unwrap(), 16);
        assert_eq!(file("[train]\neval_iters = 2", &["eval_rows=64"]).unwrap(), 64);
        assert!(file("[train]\neval_iters = 2\neval_rows = 3", &[]).unwrap_err().to_string().contains("give one of"));
    }
}

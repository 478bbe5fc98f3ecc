//! The keys of a recipe: name, meaning and default of each stand here and nowhere else.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Learned, Precision};

/// Makes a section of a recipe of its keys: the struct, its defaults, and what `--help` says of each.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $($(#[doc = $doc:literal])+ $(#[serde($($serde:tt)+)])? $key:ident: $type:ty = $default:expr,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])+ $(#[serde($($serde)+)])? pub $key: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $name {
            /// Every key, and the lines that say what it means.
            pub(super) const KEYS: &'static [(&'static str, &'static [&'static str])] =
                &[$((stringify!($key), &[$($doc),+]),)+];
        }
    };
}

section! {
    /// The shape of a model; without more said, GPT-2 small's.
    ModelRecipe {
        /// Blocks.
        n_layer: usize = 12,
        /// Heads per block.
        n_head: usize = 12,
        /// Width of the residual stream.
        n_embd: usize = 768,
        /// Positions.
        block_size: usize = 1024,
        /// Entries of the vocabulary: of the BPE that is learned first, or at least as many as the tokenizer has; 0 for
        /// exactly as many.
        vocab_size: usize = 0,
    }
}

section! {
    /// What the model reads: a language, or text.
    DataRecipe {
        /// A language file (see `models/tiny/language.toml`), relative to the recipe.
        #[serde(serialize_with = "lossy_path")]
        language: Option<PathBuf> = None,
        /// How a model that starts from scratch on text gets its tokenizer.
        tokenizer: Option<Learned> = None,
        /// Documents of the language from which the tokenizer is learned.
        tokenizer_documents: u64 = 30_000,
        /// Share of rows that are random tokens, repeated; of a language only.
        repeat_share: f64 = 0.0,
        /// Files or directories of text: `.txt` and others whole, `.jsonl` by its `text` fields, `.bin` as nanoGPT's tokens.
        #[serde(serialize_with = "lossy_paths")]
        text: Vec<PathBuf> = Vec::new(),
        /// The same for validation; without it the end of the text.
        #[serde(serialize_with = "lossy_paths")]
        validation: Vec<PathBuf> = Vec::new(),
        /// How much of the text is kept for validation where there is no text of its own for it.
        validation_share: f64 = 0.1,
    }
}

section! {
    /// How the model learns.
    TrainRecipe {
        /// Decides weights, text, order and dropout.
        seed: u64 = 1337,
        /// Tokens in a row; 0 for as many as the model has positions.
        block_size: usize = 0,
        /// Rows of a batch.
        batch_size: usize = 8,
        /// Batches per step; their gradients are averaged.
        gradient_accumulation_steps: usize = 1,
        /// Rows that pass through the model at once, a divisor of batch_size; decides memory and rounding, not the meaning.
        micro_batch_size: usize = 1,
        /// What matrices are multiplied in; weights, gradients and optimizer are f32 whatever this is.
        dtype: Precision = Precision::default(),
        /// Steps.
        max_iters: u64 = 200,
        /// Steps that read short rows, more of them, at shifting positions: a small model finds induction in short rows
        /// within minutes, and in long ones not at all (a warm-up of sequence length, Li et al. 2022).
        short_iters: u64 = 0,
        /// Tokens of a short row, a divisor of block_size.
        short_block_size: usize = 0,
        /// Highest learning rate.
        learning_rate: f64 = 3e-5,
        /// Whether the learning rate follows a cosine after its warm-up; otherwise it stays.
        decay_lr: bool = true,
        /// Learning rate at the end of the cosine.
        min_lr: f64 = 3e-6,
        /// Steps of linear warm-up.
        warmup_iters: u64 = 10,
        /// Step at which the cosine ends; 0 for max_iters.
        lr_decay_iters: u64 = 0,
        /// Step at which the schedule starts over, warm-up included, to end with max_iters (a warm restart, Loshchilov &
        /// Hutter 2017); 0 for never.
        lr_restart_iters: u64 = 0,
        /// AdamW's decay of the mean of gradients.
        beta1: f64 = 0.9,
        /// AdamW's decay of the mean of squared gradients.
        beta2: f64 = 0.95,
        /// Decoupled decay of matrices and embeddings.
        weight_decay: f64 = 0.1,
        /// Largest norm of a gradient; longer ones are scaled down. 0 for no limit.
        grad_clip: f64 = 1.0,
        /// Share of values that are dropped after the embedding, in attention patterns and before each residual sum.
        dropout: f64 = 0.0,
        /// Parameters that stay as they are: names as in the checkpoint, `*` and ranges such as `h.[0-5].*`.
        freeze: Vec<String> = Vec::new(),
        /// Steps between measurements of the validation loss.
        eval_interval: u64 = 50,
        /// Validation rows.
        eval_rows: u64 = 32,
        /// Validation batches, of batch_size rows each, instead of eval_rows; 0 for eval_rows.
        eval_iters: u64 = 0,
        /// Whether to keep the model with the lowest validation loss besides the last one.
        keep_best: bool = false,
        /// Measurements without a new lowest validation loss after which the run ends; 0 for never.
        patience: u64 = 0,
        /// Steps between checkpoints.
        checkpoint_interval: u64 = 50,
    }
}

/// A path as text, which is all that TOML and JSON have: bytes that are not UTF-8 are replaced.
pub(super) fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn lossy_path<S: serde::Serializer>(path: &Option<PathBuf>, to: S) -> std::result::Result<S::Ok, S::Error> {
    path.as_deref().map(lossy).serialize(to)
}

fn lossy_paths<S: serde::Serializer>(paths: &[PathBuf], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(paths.iter().map(|path| lossy(path)))
}

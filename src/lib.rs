//! A mechanistic-interpretability workbench for GPT-2.
//!
//! ```text
//! text ─Tokenizer→ Tokens ─Plan::run(&Gpt2)→ Trace ─→ DataFrame ─→ figures, probes, Parquet
//!                               ▲      │
//!                            Sites·Edits└ gradients
//! ```
//!
//! A [`Site`] is a named place in the forward pass. A [`Plan`] says which sites to read, which to change ([`Edit`]) and
//! where gradients are wanted. A [`Trace`] is what happened. Analyses ([`attention`], [`lens`], [`neurons`] …) turn
//! traces into polars frames, and [`figure`] turns frames into pictures.
//!
//! ```
//! use interp::{Edit, Plan, Result, Site, embedded, text::Encoding};
//!
//! # fn main() -> Result<()> {
//! let (model, tokenizer) = (embedded::model()?, embedded::tokenizer()?);
//! let tokens = tokenizer.tokens(&["When Mary and John went to the shop, John gave a drink to"], Encoding::default())?;
//! let trace = Plan::new()
//!     .read(Site::Pattern(5))
//!     .edit(Edit::zero(Site::Z(4)).head(1))
//!     .run(&model, &tokens)?;
//! assert_eq!(trace.get(Site::Pattern(5))?.dims(), [1, 4, 15, 15]); // prompt, head, query, key
//! println!("{}", interp::predict::from_trace(&trace, &tokenizer, 3)?);
//! # Ok(()) }
//! ```
//!
//! Modules stand on floors and use only what is on their own floor or below:
//!
//! 1. names: [`site`], [`span`], [`influence`], [`reads`], [`hooks`], [`error`], [`device`], [`process`], [`limits`], [`memory`]
//! 2. model: [`gpt2`], [`config`], [`ops`], [`weights`], [`text`], [`tokens`], [`kv`]
//! 3. instrument: [`edit`], [`plan`], [`frame`], [`shard`], [`dataset`], [`arrivals`], [`gather`], [`folds`], [`labelled`], [`task`], [`ranking`], [`sampling`], [`optim`], [`dropout`], [`freeze`],
//!    [`initial`], [`recipe`], [`language`], [`corpus`], [`texts`], [`textset`],
//!    [`metric`], [`pair`], [`pairset`], [`stats`], [`scores`], [`fit`], [`sweep`], [`trunk`], [`circuits`], [`graph`], [`subspace`], [`convention`],
//!    [`target`], [`stack`], [`direction`], [`generate`], [`oracle`], [`published`], [`embedded`], [`suite`], [`study`], [`run_dir`]
//! 4. analyses: [`ablate`], [`answers`], [`attention`], [`attribution`], [`behave`], [`capture`], [`card`], [`catalogue`],
//!    [`composition`], [`detector`], [`edges`], [`export`], [`faithful`], [`heads`], [`interchange`], [`lens`], [`neurons`], [`patch`],
//!    [`paths`], [`perplexity`], [`predict`], [`probe`], [`prune`], [`residual`], [`saliency`], [`steer`], [`train`]
//! 5. presentation: [`figure`], [`page`], [`notebook`]; [`verify`] and [`known`], which hold analyses against published figures and numbers, [`speed`], which times them, and [`agreement`], which holds
//!    devices against each other
//!
//! The library never prints (but for what a notebook asks it to show), keeps no global state and draws randomness only from seeds. It touches the disk only in
//! functions named `load`, `save`, `open`, `read`, `write`, `remove`, `find` or `download`.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod ablate;
pub mod agreement;
pub mod answers;
pub mod arrivals;
pub mod attention;
pub mod attribution;
pub mod behave;
pub mod capture;
pub mod card;
pub mod catalogue;
pub mod circuits;
pub mod composition;
pub mod config;
pub mod convention;
pub mod corpus;
pub mod dataset;
pub mod detector;
pub mod device;
pub mod direction;
pub mod disk;
#[cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]
mod driver;
pub mod dropout;
pub mod edges;
pub mod edit;
pub mod effect;
pub mod embedded;
pub mod error;
pub mod export;
pub mod faithful;
pub mod figure;
pub mod fit;
pub mod folds;
pub mod frame;
pub mod freeze;
pub mod gather;
pub mod generate;
pub mod gpt2;
pub mod graph;
pub mod heads;
pub mod hooks;
pub mod influence;
pub mod initial;
pub mod interchange;
pub mod known;
pub mod kv;
pub mod labelled;
pub mod language;
pub mod lens;
pub mod limits;
pub mod memory;
pub mod metric;
pub mod neurons;
pub mod notebook;
pub mod ops;
pub mod optim;
pub mod oracle;
pub mod page;
pub mod pair;
pub mod pairfile;
pub mod pairset;
pub mod patch;
pub mod paths;
pub mod perplexity;
pub mod plan;
pub mod predict;
pub mod probe;
pub mod process;
pub mod prune;
pub mod published;
pub mod random;
pub mod ranking;
pub mod reads;
pub mod recipe;
pub mod residual;
pub mod run_dir;
pub mod saliency;
pub mod sampling;
pub mod scores;
pub mod shard;
pub mod site;
mod slots;
pub mod span;
pub mod speed;
pub mod stack;
pub mod stats;
pub mod steer;
pub mod study;
pub mod subspace;
pub mod suite;
pub mod sweep;
pub mod target;
pub mod task;
pub mod text;
pub mod texts;
pub mod textset;
pub mod tokens;
pub mod train;
pub mod trunk;
pub mod verify;
pub mod weights;

pub use config::Config;
pub use edit::Edit;
pub use error::{Error, Result};
pub use gpt2::{Gpt2, LogitsAt};
pub use hooks::Hooks;
pub use plan::{Plan, Trace};
pub use site::{Axis, Site};
pub use text::Tokenizer;
pub use tokens::Tokens;

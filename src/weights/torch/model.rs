//! A GPT-2 in files of PyTorch: a checkpoint of nanoGPT, Hugging Face's `pytorch_model.bin`, or a `state_dict` alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::super::checkpoint::{list, tied_copy_differs};
use super::super::layout::{Found, Layout, Names, is_linear};
use super::super::nanogpt;
use super::super::pickle::{Id, Pickle, Value};
use super::{Stored, TorchFile};
use crate::config::Config;
use crate::error::{Error, Result, shorten};
use crate::gpt2::Gpt2;
use crate::ops::Gelu;

/// Keys under which training code keeps a `state_dict` beside other things.
const STATES: [&str; 5] = ["model", "state_dict", "model_state_dict", "module", "model_state"];

/// GPT-2's vocabulary, and what nanoGPT pads it to.
const VOCABULARY: (usize, usize) = (50_257, 50_304);

/// What is known of a model beside the files of its weights.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Its `config.json`.
    pub config: Option<Config>,
    /// Heads per block, which a `state_dict` does not say.
    pub heads: Option<usize>,
    /// The activation, which neither a `state_dict` nor a checkpoint of nanoGPT says.
    pub activation: Option<Gelu>,
}

impl Hints {
    /// What the `config.json` in a directory says: Hugging Face's, or the one that minGPT writes. Nothing where there is
    /// none.
    ///
    /// # Errors
    /// [`Error::Data`] for one that is neither.
    pub fn read_from(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if !path.exists() && !path.is_symlink() {
            return Ok(Self::default());
        }
        let bytes = super::super::read_small(&path, 1 << 20)?;
        if let Some(heads) = nanogpt::min_gpt_heads(&bytes) {
            return Ok(Self { config: None, heads, activation: Some(Gelu::Tanh) });
        }
        Ok(Self { config: Some(Config::parse(&bytes, &path)?), heads: None, activation: None })
    }

    /// Adds what was asked for; it must not contradict what is known already.
    ///
    /// # Errors
    /// [`Error::Request`] that names both.
    pub fn with(mut self, heads: Option<usize>, activation: Option<Gelu>) -> Result<Self> {
        let known_heads = self.config.as_ref().map(|config| config.n_head).or(self.heads);
        if let (Some(asked), Some(known)) = (heads, known_heads)
            && asked != known
        {
            return Err(Error::request(format!("--heads is {asked}, but config.json says {known}")));
        }
        let known = self.config.as_ref().map(|config| config.activation).or(self.activation);
        if let (Some(asked), Some(known)) = (activation, known)
            && asked != known
        {
            return Err(Error::request(format!(
                "--activation is {}, but config.json says {}",
                asked.name(),
                known.name()
            )));
        }
        self.heads = self.heads.or(heads);
        self.activation = self.activation.or(activation);
        Ok(self)
    }
}

/// A model whose names and shapes were compared with what it should have, but whose weights are not yet read.
pub struct TorchModel {
    files: Vec<TorchFile>,
    config: Config,
    layout: Layout,
    /// Where each tensor is: the file, and the place in it.
    tensors: Vec<(usize, Option<Stored>)>,
    /// Rows of the vocabulary that are read; the others are padding.
    rows: usize,
    dataset: Option<String>,
    steps: Option<u64>,
}

impl TorchModel {
    /// Opens the files of a model, one or all shards, and compares every name and shape with its config: nanoGPT's
    /// `model_args`, the `config.json` of the hints, or what the shapes themselves say.
    ///
    /// A checkpoint of nanoGPT does not say which GELU it was trained with: nanoGPT computes the exact one, which is taken
    /// unless the hints name another.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Data`] with all that differs, or [`Error::Request`] for what neither files nor hints say.
    pub fn open(paths: &[PathBuf], hints: &Hints) -> Result<Self> {
        let files = paths.iter().map(|path| TorchFile::open(path)).collect::<Result<Vec<_>>>()?;
        let (mut found, mut tensors) = (Vec::new(), Vec::new());
        for (i, file) in files.iter().enumerate() {
            let state = state(&file.pickle).map_err(|what| Error::data(&file.path, what))?;
            for (name, stored) in entries(&file.pickle, state).map_err(|what| Error::data(&file.path, what))? {
                found.push(Found { name, shape: stored.as_ref().map(|s| s.shape.clone()).map_err(Clone::clone) });
                tensors.push((i, stored.ok()));
            }
        }
        let path = paths.first().cloned().unwrap_or_default();
        let wrong = |what: String| Error::data(&path, what);
        let first = files.first().map(|file| &file.pickle).ok_or_else(|| Error::request("no file of weights"))?;
        let arguments = first.field(first.root(), "model_args").filter(|_| files.len() == 1);
        let names = Names::of(&found).map_err(wrong)?.by_name;
        let shape = |name: &str| names.get(name).and_then(|&i| found[i].shape.as_deref().ok());
        let (mut config, whose) = match (arguments, &hints.config) {
            (Some(arguments), _) => {
                let mut config = nanogpt::config(first, arguments, &path)?;
                config.activation = hints.activation.unwrap_or(Gelu::Erf);
                (config, "its model_args")
            }
            (None, Some(config)) => (config.clone(), "its config.json"),
            (None, None) => (implied(&shape, &names, hints, &path)?, "the shapes of its embeddings"),
        };
        let same = |a: &str, b: &str| match (names.get(a), names.get(b)) {
            (Some(&a), Some(&b)) => tensors[a] == tensors[b],
            _ => false,
        };
        let from_config_file = arguments.is_none() && hints.config.is_some();
        if !from_config_file {
            // Training code ties them: both names mean one storage, or there is one name.
            config.tie_word_embeddings = !names.contains_key("lm_head.weight") || same("lm_head.weight", "wte.weight");
        }
        // nanoGPT says whether it has biases; a state_dict alone shows it.
        let no_biases = match arguments {
            Some(arguments) => {
                first.field(arguments, "bias").is_some_and(|bias| *first.get(bias) == Value::Bool(false))
            }
            None => !from_config_file,
        };
        let layout = Layout::fit(&config, &found, !no_biases)
            .map_err(|what| wrong(format!("its weights are not those of a GPT-2 of {whose}: {what}")))?;
        let dataset = first.field(first.root(), "config").and_then(|config| first.field(config, "dataset"));
        let steps = match first.field(first.root(), "iter_num").map(|id| first.get(id)) {
            Some(Value::Int(n)) => u64::try_from(*n).ok(),
            _ => None,
        };
        let dataset = dataset.and_then(|id| text(first, id));
        let rows = config.vocab_size;
        Ok(Self { files, config, layout, tensors, rows, dataset, steps })
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The name of the data it was trained on.
    pub fn dataset(&self) -> Option<&str> {
        self.dataset.as_deref()
    }

    /// Steps it was trained for.
    pub fn steps(&self) -> Option<u64> {
        self.steps
    }

    /// What a reader should know of how the weights are read.
    pub fn notes(&self) -> Vec<String> {
        self.layout.notes()
    }

    /// Leaves out the rows with which nanoGPT pads GPT-2's vocabulary to a multiple of 64: no token has them.
    ///
    /// Returns how many they are.
    pub fn trim_padding(&mut self) -> usize {
        let (real, padded) = VOCABULARY;
        if self.config.vocab_size != padded {
            return 0;
        }
        self.config.vocab_size = real;
        self.rows = real;
        padded - real
    }

    /// Reads the weights as f32.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that ends early or changed meanwhile, or whose `lm_head.weight` is not what its config says.
    pub fn load(mut self) -> Result<Gpt2> {
        let config = self.config.clone();
        let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        if let Some(copy) = self.layout.tied_copy {
            let embedding = self.layout.tensors["wte.weight"];
            if self.tensors[copy] != self.tensors[embedding] && !self.equal(copy, embedding)? {
                return Err(tied_copy_differs(&self.files[self.tensors[copy].0].path));
            }
        }
        Gpt2::new(config, |name| {
            let shape = shapes[name].as_slice();
            let Some(&i) = self.layout.tensors.get(name) else {
                return Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
            };
            let tensor = self.read(i)?.to_dtype(DType::F32)?;
            match name {
                "wte.weight" | "lm_head.weight" => Ok(tensor.narrow(0, 0, self.rows)?.contiguous()?),
                _ if self.layout.transposed && is_linear(name) => Ok(tensor.t()?.contiguous()?),
                _ => Ok(tensor),
            }
        })
    }

    fn read(&mut self, i: usize) -> Result<Tensor> {
        let (file, stored) = &self.tensors[i];
        let stored = stored.as_ref().ok_or_else(|| Error::Bug("a tensor was checked but is none".into()))?;
        self.files[*file].read(stored)
    }

    fn equal(&mut self, a: usize, b: usize) -> Result<bool> {
        let mut bits = |i: usize| -> Result<Vec<u32>> {
            let values = self.read(i)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().map(f32::to_bits).collect())
        };
        Ok(bits(a)? == bits(b)?)
    }
}

/// The `state_dict` in a file: the file itself, or what training code keeps under one of some keys.
fn state(pickle: &Pickle) -> std::result::Result<Id, String> {
    let is_state = |id: Id| match pickle.get(id) {
        Value::Dict(entries) => entries.iter().any(|(_, value)| Stored::of(pickle, *value).is_ok()),
        _ => false,
    };
    let root = pickle.root();
    let named: Vec<(&str, Id)> = STATES
        .iter()
        .filter_map(|key| Some((*key, pickle.field(root, key)?)))
        .filter(|(_, id)| is_state(*id))
        .collect();
    match named.as_slice() {
        [(_, state)] => Ok(*state),
        [] if is_state(root) => Ok(root),
        [] => {
            let keys: Vec<String> = match pickle.get(root) {
                Value::Dict(entries) => entries.iter().filter_map(|(key, _)| text(pickle, *key)).collect(),
                _ => Vec::new(),
            };
            let found = if keys.is_empty() { "nothing by name".to_string() } else { list(&keys) };
            Err(format!(
                "no weights in it: neither a state_dict nor a checkpoint of nanoGPT (`model` with `model_args`); it has {found}"
            ))
        }
        [(a, _), (b, _), ..] => {
            Err(format!("holds weights under `{a}` and under `{b}`: save the one that is meant alone"))
        }
    }
}

type Entries = Vec<(String, std::result::Result<Stored, String>)>;

/// The entries of a `state_dict`.
fn entries(pickle: &Pickle, state: Id) -> std::result::Result<Entries, String> {
    let Value::Dict(entries) = pickle.get(state) else { return Err("its weights are no dictionary".into()) };
    // A key that is set again replaces what it was.
    let mut last: BTreeMap<&str, Id> = BTreeMap::new();
    for (key, value) in entries {
        let Value::Text(name) = pickle.get(*key) else { return Err("a weight has a name that is no text".into()) };
        last.insert(name, *value);
    }
    Ok(last.into_iter().map(|(name, value)| (name.to_string(), Stored::of(pickle, value))).collect())
}

/// The config of a `state_dict` alone: what its shapes say, and what they do not say from the hints.
fn implied<'a>(
    shape: &dyn Fn(&str) -> Option<&'a [usize]>,
    names: &BTreeMap<String, usize>,
    hints: &Hints,
    path: &Path,
) -> Result<Config> {
    let (Some(&[vocabulary, width]), Some(&[positions, _])) = (shape("wte.weight"), shape("wpe.weight")) else {
        let all: Vec<String> = names.keys().map(|name| shorten(name)).collect();
        return Err(Error::data(
            path,
            format!("no GPT-2: it has no matrices wte.weight and wpe.weight but {}", list(&all)),
        ));
    };
    let activation = hints.activation.ok_or_else(|| {
        Error::request(format!(
            "{}: a state_dict alone does not say which activation the model has: name it with --activation gelu (nanoGPT) \
             or gelu_new (GPT-2, minGPT), or put its config.json beside it",
            path.display()
        ))
    })?;
    let heads = hints.heads.ok_or_else(|| {
        Error::request(format!(
            "{}: a state_dict alone does not say how many heads the model has: name them with --heads N, or put its \
             config.json beside it",
            path.display()
        ))
    })?;
    let blocks = names.keys().filter_map(|name| name.strip_prefix("h.")?.split('.').next()?.parse::<usize>().ok());
    let inner = match shape("h.0.mlp.c_fc.weight") {
        Some(&[a, b]) => a.max(b).max(1),
        _ => 4 * width,
    };
    let fields = json!({
        "model_type": "gpt2",
        "n_layer": blocks.max().map_or(0, |last| last.saturating_add(1)),
        "n_head": heads,
        "n_embd": width,
        "n_inner": inner,
        "vocab_size": vocabulary,
        "n_positions": positions,
    });
    let mut config = Config::parse(fields.to_string().as_bytes(), path)?;
    config.activation = activation;
    Ok(config)
}

fn text(pickle: &Pickle, id: Id) -> Option<String> {
    match pickle.get(id) {
        Value::Text(text) => Some(shorten(text)),
        _ => None,
    }
}

//! What several tests need: fixtures, and small seeded models that take no download.
#![allow(dead_code)]

pub mod gate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use interp::random::{Rng, normal, stream};
use interp::sweep::Cell;
use interp::weights::{Checkpoint, read_small};
use interp::{Config, Edit, Gpt2, Tokens};

/// What the tests compute on: the CPU, or what `INTERP_TEST_DEVICE` names.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || interp::device::open(&std::env::var("INTERP_TEST_DEVICE").unwrap_or("cpu".into())).unwrap();
    DEVICE.get_or_init(open).clone()
}

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// The model of a directory with config.json and model.safetensors.
pub fn load(dir: &Path, dtype: DType) -> Gpt2 {
    let path = dir.join("config.json");
    let config = Config::parse(&read_small(&path, 1 << 20).unwrap(), &path).unwrap();
    Checkpoint::open(&[dir.join("model.safetensors")], &config).unwrap().load(dtype, &device()).unwrap().model
}

/// The built-in model.
pub fn tiny() -> Gpt2 {
    interp::embedded::model_on(&device()).unwrap()
}

/// A small random model of which the fixtures say what other libraries compute.
pub fn parity_model(name: &str) -> Gpt2 {
    load(&fixture("parity").join(name), DType::F32)
}

/// An edit narrowed to what a cell covers.
pub fn narrowed(mut edit: Edit, cell: &Cell) -> Edit {
    let at = |x: usize| x as i64;
    if let Some(head) = cell.head {
        edit = edit.head(at(head));
    }
    if let Some(neuron) = cell.neuron {
        edit = edit.neuron(at(neuron));
    }
    if let Some(pos) = cell.pos {
        edit = if cell.site.is_attention_map() { edit.query(at(pos)) } else { edit.pos(at(pos)) };
    }
    if let Some(key) = cell.key {
        edit = edit.key(at(key));
    }
    edit
}

/// Writes three pairs of one length as JSONL.
pub fn three_pairs(path: &Path) {
    let line = |(a, b)| {
        let prompt = |giver| format!("When {a} and {b} went to the shop, {giver} gave a drink to");
        serde_json::json!({
            "clean": prompt(b), "corrupt": prompt(a), "answer": format!(" {a}"), "wrong": format!(" {b}"),
        })
        .to_string()
    };
    let lines = [("Mary", "John"), ("Tom", "Anna"), ("Lucy", "Peter")].map(line);
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// A GPT-2 of an odd shape: 3 layers, 2 heads of 4, 10 neurons, an unembedding of its own.
pub fn small_config() -> Config {
    Config {
        n_layer: 3,
        n_head: 2,
        n_embd: 6,
        head_dim: 4,
        n_inner: 10,
        vocab_size: 11,
        n_positions: 12,
        activation: interp::ops::Gelu::Tanh,
        layer_norm_epsilon: 1e-5,
        tie_word_embeddings: false,
    }
}

/// Seeded weights, large enough that every site matters.
pub fn weights(config: &Config, dtype: DType) -> BTreeMap<String, Tensor> {
    config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let mut rng = stream(7, &name, 0);
            let (center, spread) =
                if name.contains("ln_") && name.ends_with("weight") { (1.0, 0.2) } else { (0.0, 0.4) };
            let count: usize = shape.iter().product();
            let values: Vec<f64> = (0..count).map(|_| center + spread * normal(&mut rng)).collect();
            let tensor = Tensor::from_vec(values, shape, &device()).unwrap().to_dtype(dtype).unwrap();
            (name, tensor)
        })
        .collect()
}

pub fn model(config: &Config, dtype: DType) -> Gpt2 {
    let weights = weights(config, dtype);
    Gpt2::new(config.clone(), |name| Ok(weights[name].clone())).unwrap()
}

pub fn small_model(dtype: DType) -> Gpt2 {
    model(&small_config(), dtype)
}

/// Writes a random model of two layers with the tokenizer of the embedded one, as a directory that `--model` takes.
pub fn write_model(dir: &Path) {
    let config = Config::new(2, 2, 16, 1536, 128);
    let tensors: std::collections::HashMap<String, Tensor> =
        weights(&config, DType::F32).into_iter().filter(|(name, _)| name != "lm_head.weight").collect();
    std::fs::create_dir_all(dir).unwrap();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_json().to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), interp::embedded::TOKENIZER).unwrap();
}

/// Random prompts of the given lengths.
pub fn tokens(config: &Config, lengths: &[usize], seed: u64) -> Tokens {
    let mut rng = stream(seed, "tokens", 0);
    let rows = lengths
        .iter()
        .map(|&length| (0..length).map(|_| rng.random_range(0..config.vocab_size as u32)).collect())
        .collect();
    Tokens::from_ids(rows).unwrap()
}

/// A seeded tensor of noise.
pub fn noise(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut rng = stream(seed, "noise", 0);
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|_| normal(&mut rng)).collect();
    Tensor::from_vec(values, shape, &device()).unwrap().to_dtype(dtype).unwrap()
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest absolute difference; equal infinities do not differ, NaN differs from everything.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    values(a)
        .into_iter()
        .zip(values(b))
        .map(|(x, y)| if x == y { 0.0 } else { (x - y).abs() })
        .fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

/// Whether two tensors agree in every bit.
pub fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    a.dims() == b.dims() && values(a).iter().zip(values(b)).all(|(x, y)| x.to_bits() == y.to_bits())
}

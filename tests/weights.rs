//! A model is the same whichever way its weights are stored.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{fixture, gate, same_bits, tokens};
use interp::weights::{Checkpoint, weight_files};
use interp::{Config, Gpt2};
use process::Interp;

fn config(name: &str) -> Config {
    let path = fixture("parity").join(name).join("config.json");
    Config::parse(&std::fs::read(&path).unwrap(), &path).unwrap()
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("parity").join(name).join("model.safetensors"), &Device::Cpu).unwrap()
}

fn load(dir: &Path, config: &Config) -> Gpt2 {
    let checkpoint = Checkpoint::open(&weight_files(dir).unwrap(), config).unwrap();
    checkpoint.load(DType::F32, &common::device()).unwrap().model
}

fn logits(model: &Gpt2) -> Tensor {
    model.forward(&tokens(model.config(), &[6, 6], 1)).unwrap()
}

fn save(dir: &Path, name: &str, tensors: HashMap<String, Tensor>) {
    candle_core::safetensors::save(&tensors, dir.join(name)).unwrap();
}

#[test]
fn prefixes_and_old_buffers_do_not_matter() {
    let config = config("thin");
    let wanted = logits(&load(&fixture("parity/thin"), &config));
    let plain: HashMap<String, Tensor> = tensors("thin")
        .into_iter()
        .map(|(name, tensor)| (name.trim_start_matches("transformer.").to_string(), tensor))
        .collect();
    for prefix in ["", "transformer.", "model.", "_orig_mod.transformer."] {
        let dir = tempfile::tempdir().unwrap();
        let mut renamed: HashMap<String, Tensor> =
            plain.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        let mask = Tensor::ones((1, 1, 16, 16), DType::U8, &common::device()).unwrap();
        renamed.insert(format!("{prefix}h.0.attn.bias"), mask);
        renamed.insert(format!("{prefix}h.0.attn.masked_bias"), Tensor::new(-1e4_f32, &common::device()).unwrap());
        renamed.insert("lm_head.weight".into(), plain["wte.weight"].clone());
        save(dir.path(), "model.safetensors", renamed);
        assert!(same_bits(&wanted, &logits(&load(dir.path(), &config))), "prefix `{prefix}`");
    }
}

#[test]
fn shards_are_one_model() {
    let config = config("untied");
    let wanted = logits(&load(&fixture("parity/untied"), &config));
    let dir = tempfile::tempdir().unwrap();
    let (mut shards, mut map) = ([HashMap::new(), HashMap::new(), HashMap::new()], HashMap::new());
    for (i, (name, tensor)) in tensors("untied").into_iter().enumerate() {
        map.insert(name.clone(), format!("model-0000{}-of-00003.safetensors", i % 3 + 1));
        shards[i % 3].insert(name, tensor);
    }
    for (i, shard) in shards.into_iter().enumerate() {
        save(dir.path(), &format!("model-0000{}-of-00003.safetensors", i + 1), shard);
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(same_bits(&wanted, &logits(&load(dir.path(), &config))));
}

#[test]
fn half_precision_files_are_rounded_and_nothing_else() {
    let config = config("wide");
    let wanted = logits(&load(&fixture("parity/wide"), &config));
    for (dtype, bound) in [(DType::F16, gate::F16), (DType::BF16, gate::BF16)] {
        let dir = tempfile::tempdir().unwrap();
        let rounded: HashMap<String, Tensor> =
            tensors("wide").into_iter().map(|(name, t)| (name, t.to_dtype(dtype).unwrap())).collect();
        let wide: HashMap<String, Tensor> = rounded
            .iter()
            .map(|(name, t)| (name.trim_start_matches("transformer.").to_string(), t.to_dtype(DType::F32).unwrap()))
            .collect();
        save(dir.path(), "model.safetensors", rounded);
        let loaded = logits(&load(dir.path(), &config));
        let exact = Gpt2::new(config.clone(), |name| Ok(wide[name].clone())).unwrap();
        assert!(same_bits(&loaded, &logits(&exact)), "{dtype:?}");
        assert!(gate::apart(&loaded, &wanted) < bound, "{dtype:?}: {:e}", gate::apart(&loaded, &wanted));
    }
}

#[test]
fn a_single_file_is_enough_with_its_config_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [("config.json", "config.json"), ("model.safetensors", "some-name.safetensors")] {
        std::fs::copy(fixture("parity/one").join(from), dir.path().join(to)).unwrap();
    }
    Interp::new().words("sites --model").arg(dir.path().join("some-name.safetensors")).run().ok();
}

#[test]
fn vocabulary_and_merges_are_as_good_as_tokenizer_json() {
    // The built-in tokenizer, taken apart into the two files that GPT-2 was published with.
    let json: serde_json::Value = serde_json::from_slice(interp::embedded::TOKENIZER).unwrap();
    let mut vocab = json["model"]["vocab"].as_object().unwrap().clone();
    for added in json["added_tokens"].as_array().unwrap() {
        vocab.insert(added["content"].as_str().unwrap().into(), added["id"].clone());
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            serde_json::Value::String(text) => text.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.json"), serde_json::to_string(&vocab).unwrap()).unwrap();
    std::fs::write(dir.path().join("merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n"))).unwrap();
    let (whole, parts) = (interp::embedded::tokenizer().unwrap(), interp::Tokenizer::load(dir.path()).unwrap());
    for text in ["When Mary and John went to the shop", "  two  spaces\n", "naïve 1732 <|endoftext|>", "a"] {
        assert_eq!(whole.encode(text, Default::default()).unwrap(), parts.encode(text, Default::default()).unwrap());
    }
    assert_eq!(whole.vocab_size(), parts.vocab_size());
}

#[test]
fn loading_takes_one_copy_of_the_weights() {
    // 40 MB of weights: the peak over a run with the built-in model is at most 1.3 times that.
    let config = Config::new(4, 8, 512, 8000, 128);
    let bytes = 4 * config.parameters();
    let dir = tempfile::tempdir().unwrap();
    let tensors: HashMap<String, Tensor> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| (name, (common::noise(&shape, DType::F32, 1) * 0.02).unwrap()))
        .collect();
    save(dir.path(), "model.safetensors", tensors);
    std::fs::write(dir.path().join("config.json"), config.to_json().to_string()).unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/tokenizer.json");
    let peak = |model: &Path| {
        let interp = Interp::new().words("attention --layer 0 --prompt hello --format json --tokenizer");
        let outcome = interp.arg(&tokenizer).arg("--model").arg(model).run().ok();
        let run: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        run["run"]["memory"]["peak"].as_u64().unwrap()
    };
    let small = peak(&fixture("../../models/tiny"));
    let large = peak(dir.path());
    let used = large.saturating_sub(small);
    assert!(used as f64 <= 1.3 * bytes as f64, "{used} bytes for {bytes} bytes of weights");
}

//! Every site, the logits and the losses equal TransformerLens's and Hugging Face's.
//!
//! The fixtures are small random GPT-2s of odd shapes with what those libraries compute from them; they are made by
//! `tests/fixtures/make_parity.py`, which names the versions.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use common::{fixture, gate, load, parity_model};
use interp::{Plan, Site, Tokens, ops};

const MODELS: [&str; 5] = ["wide", "thin", "one", "untied", "headed"];

/// What the peers computed, by length of the prompts.
fn expected(name: &str) -> BTreeMap<usize, BTreeMap<String, Tensor>> {
    let mut by_length: BTreeMap<usize, BTreeMap<String, Tensor>> = BTreeMap::new();
    let path = fixture("parity").join(name).join("expected.safetensors");
    for (key, tensor) in candle_core::safetensors::load(path, &Device::Cpu).unwrap() {
        let (length, key) = key.split_once('/').unwrap();
        by_length.entry(length.parse().unwrap()).or_default().insert(key.to_string(), tensor);
    }
    by_length
}

fn tokens(expected: &BTreeMap<String, Tensor>) -> Tokens {
    let ids = expected["tokens"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    Tokens::from_ids(ids).unwrap()
}

#[test]
fn every_site_and_the_logits_agree_within_1e_4() {
    let mut worst: (f64, String) = (0.0, String::new());
    for name in MODELS {
        let model = parity_model(name);
        let layers = model.config().n_layer;
        for (length, expected) in expected(name) {
            let trace = Plan::new().reads(Site::all(layers)).run(&model, &tokens(&expected)).unwrap();
            for site in Site::all(layers) {
                // What heads and MLPs read are copies of the stream, which TransformerLens forms on request only.
                let key = match site {
                    Site::Logits => "logits".to_string(),
                    Site::QInput(l) | Site::KInput(l) | Site::VInput(l) => Site::ResidPre(l).long(),
                    Site::MlpIn(l) => Site::ResidMid(l).long(),
                    _ => site.long(),
                };
                let peer = expected.get(&key).unwrap_or_else(|| panic!("{name}: the fixture lacks {key}"));
                let read = trace.get(site).unwrap();
                let copies = peer.unsqueeze(2).and_then(|peer| peer.broadcast_as(read.dims()));
                let peer =
                    if site.is_on_request() && !matches!(site, Site::Result(_)) { &copies.unwrap() } else { peer };
                let difference = gate::apart(read, peer);
                assert!(difference <= gate::PROMISED, "{name}, {length} tokens, {site}: differs by {difference:e}");
                if difference > worst.0 {
                    worst = (difference, format!("{name}, {length} tokens, {site}"));
                }
            }
        }
    }
    println!("largest difference: {:e} at {}", worst.0, worst.1);
}

#[test]
fn no_hook_of_transformer_lens_is_missing() {
    for name in MODELS {
        let model = parity_model(name);
        let ours: BTreeSet<String> = Site::all(model.config().n_layer).map(|site| site.long()).collect();
        let longest = expected(name).into_values().next_back().unwrap();
        let theirs = longest.into_keys().filter(|key| key.contains("hook_"));
        let missing: Vec<String> = theirs.filter(|key| !ours.contains(key)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
}

#[test]
fn per_token_losses_agree() {
    for name in MODELS {
        let model = parity_model(name);
        for (length, expected) in expected(name).into_iter().filter(|(length, _)| *length > 1) {
            let tokens = tokens(&expected);
            let logits = model.forward(&tokens).unwrap().narrow(1, 0, length - 1).unwrap();
            let targets = (0..tokens.len()).flat_map(|p| tokens.row(p)[1..].to_vec()).collect();
            let losses = ops::cross_entropy(&logits.flatten_to(1).unwrap(), targets).unwrap();
            let peer = expected["losses"].flatten_all().unwrap();
            let difference = gate::apart(&losses, &peer);
            assert!(difference <= gate::F32, "{name}, {length} tokens: losses differ by {difference:e}");
        }
    }
}

#[test]
fn f64_agrees_more_closely_than_f32_could() {
    // Where f32 rounding could hide a wrong formula: the peers' f32 is within its own rounding of our f64.
    for name in MODELS {
        let (single, double) = (parity_model(name), load(&fixture("parity").join(name), DType::F64));
        let longest = expected(name).into_values().next_back().unwrap();
        let peer = &longest["logits"];
        let (a, b) = (single.forward(&tokens(&longest)).unwrap(), double.forward(&tokens(&longest)).unwrap());
        let difference = gate::apart(&b, peer);
        assert!(difference <= gate::F32, "{name}: f64 logits differ from the peer's f32 by {difference:e}");
        assert!(gate::apart(&a, &b) <= gate::F32, "{name}: our f32 differs from our f64");
    }
}

#[test]
fn half_precision_stays_within_its_bound() {
    // Weights and activations rounded to 8 (bf16) or 11 (f16) bits; sums in f32.
    for (dtype, bound) in [(DType::F16, gate::F16), (DType::BF16, gate::BF16)] {
        for name in MODELS {
            let model = load(&fixture("parity").join(name), dtype);
            let longest = expected(name).into_values().next_back().unwrap();
            let logits = model.forward(&tokens(&longest)).unwrap();
            assert_eq!(logits.dtype(), dtype);
            let difference = gate::apart(&logits, &longest["logits"]);
            assert!(difference <= bound, "{name} in {dtype:?}: logits differ by {difference:e} of their scale");
        }
    }
}

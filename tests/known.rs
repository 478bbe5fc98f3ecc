//! What is known of a model: one flipped bit, a swapped tensor and another tokenizer are found, and named.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};

use common::write_model;
use interp::embedded;
use interp::known::{Number, Record, published_numbers};
use process::{Interp, Outcome};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A random model and its record.
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        write_model(&place.model());
        Interp::new().words("models verify").arg(place.model()).arg("--record").arg(place.record()).run().ok();
        place
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join("known.json")
    }

    fn verify(&self) -> Outcome {
        Interp::new().words("models verify").arg(self.model()).arg("--known").arg(self.record()).run()
    }

    /// Changes the weights file, whose header is left as it is.
    fn change(&self, change: impl FnOnce(&mut [u8], &safetensors::tensor::Metadata)) {
        let path = self.model().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        change(&mut bytes[length + 8..], &header);
        std::fs::write(path, bytes).unwrap();
    }
}

/// Fails with a line for people, besides the list of all checks.
fn fails(verify: &Outcome, why: &str) {
    assert_eq!(verify.code, Some(65), "{verify:?}");
    assert!(verify.stdout.contains("  FAIL  ") && verify.stderr.contains(why), "{why}: {verify:?}");
    assert_eq!(verify.stderr.trim().lines().count(), 1, "{}", verify.stderr);
}

#[test]
fn a_record_holds_for_the_model_it_was_made_of() {
    let place = Place::new();
    let verify = place.verify().ok();
    assert!(!verify.stdout.contains("FAIL"), "{}", verify.stdout);
    for what in ["all 28 hold the values", "cuts a text into", "loss of “Hello world!”", "induction score of head"]
    {
        assert!(verify.stdout.contains(what), "{what}: {}", verify.stdout);
    }
    let record = Record::load(&place.record()).unwrap();
    assert!(record.numbers.len() >= 4 && record.tensors.len() == 28);
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let place = Place::new();
    place.change(|data, header| {
        let (start, _) = header
            .info("h.1.mlp.c_proj.weight")
            .or(header.info("transformer.h.1.mlp.c_proj.weight"))
            .unwrap()
            .data_offsets;
        data[start + 5] ^= 1;
    });
    let verify = place.verify();
    fails(&verify, "tensor h.1.mlp.c_proj.weight: its values are not those of the record");
}

#[test]
fn a_swapped_tensor_is_found_and_named() {
    let place = Place::new();
    place.change(|data, header| {
        let of = |name: &str| header.info(name).unwrap().data_offsets;
        let (a, b) = (of("h.0.mlp.c_fc.weight"), of("h.1.mlp.c_fc.weight"));
        let first = data[a.0..a.1].to_vec();
        let second = data[b.0..b.1].to_vec();
        data[a.0..a.1].copy_from_slice(&second);
        data[b.0..b.1].copy_from_slice(&first);
    });
    let verify = place.verify();
    assert!(
        verify.stdout.contains("FAIL  tensor h.1.mlp.c_fc.weight: it holds the values of h.0.mlp.c_fc.weight"),
        "{}",
        verify.stdout
    );
    fails(&verify, "tensor h.0.mlp.c_fc.weight: it holds the values of h.1.mlp.c_fc.weight");
}

#[test]
fn another_tokenizer_is_found_and_named() {
    let place = Place::new();
    // Two words change places: every length and shape is as it was.
    let text = String::from_utf8(embedded::TOKENIZER.to_vec()).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["The"].clone(), vocabulary["When"].clone());
    vocabulary.insert("The".into(), b);
    vocabulary.insert("When".into(), a);
    std::fs::write(place.model().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fails(&place.verify(), "tokenizer: token");
    std::fs::remove_file(place.model().join("tokenizer.json")).unwrap();
    fails(&place.verify(), "tokenizer: there is none beside the model");
}

#[test]
fn a_number_that_is_off_is_named_with_both_values() {
    let place = Place::new();
    let mut record = Record::load(&place.record()).unwrap();
    record.numbers[0].value += 0.01;
    std::fs::write(place.record(), serde_json::to_string(&record).unwrap()).unwrap();
    fails(&place.verify(), "loss of “Hello world!”: is ");
    let number = Number { name: "x".into(), value: 1.0, tolerance: 0.1 };
    assert!(number.held_against(Some(1.05)).result.is_ok());
    assert!(number.held_against(Some(1.2)).result.is_err() && number.held_against(None).result.is_err());
    assert!(number.held_against(Some(f64::NAN)).result.is_err());
}

#[test]
fn records_that_are_none_are_refused() {
    let place = Place::new();
    std::fs::write(place.record(), "{\"tensors\": {}").unwrap();
    place.verify().refused(65, "no record of a model");
    std::fs::remove_file(place.record()).unwrap();
    place.verify().refused(66, "known.json");
    Interp::new().words("models verify --dtype bf16 --record x.json").run().refused(2, "records are of values in f32");
    let missing = Interp::new().words("models verify --record").arg(Path::new("/nowhere/at/all/known.json")).run();
    assert_eq!(missing.code, Some(73), "{}", missing.stderr);
}

#[test]
fn published_numbers_are_those_of_the_literature() {
    let small = published_numbers("gpt2");
    assert_eq!(small.len(), 2 + 8 + 1 + 5);
    // The mean of the eight differences is the mean that is published with them.
    let differences: Vec<f64> = small.iter().filter(|n| n.name.contains("prompt")).map(|n| n.value).collect();
    let mean = small.iter().find(|n| n.name.ends_with("mean")).unwrap();
    assert!((differences.iter().sum::<f64>() / 8.0 - mean.value).abs() < mean.tolerance + 5e-4);
    assert!(published_numbers("gpt2-medium").is_empty() && !published_numbers("distilgpt2").is_empty());
}

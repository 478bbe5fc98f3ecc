//! Files that exist in the wild: GPT-2s in every form in which they are found give transformers' logits, and what cannot be
//! read is named, with the next step.
//!
//! `tests/fixtures/make_foreign.py` makes the files.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};

use candle_core::DType;
use common::{fixture, load, values};
use interp::ops::Gelu;
use interp::weights::{Hints, TorchModel, read_text};
use interp::{Gpt2, Tokens};
use process::{Interp, Outcome};
use serde_json::Value;

fn expected() -> Value {
    serde_json::from_str(&read_text(&fixture("foreign/expected.json"), 1 << 20).unwrap()).unwrap()
}

/// Logits of a few units in f32 through two layers: rounding stays a hundred times below this.
fn agrees(model: &Gpt2, name: &str, expected: &Value) {
    let ids = expected["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let logits = model.forward(&Tokens::from_ids(vec![ids]).unwrap()).unwrap().squeeze(0).unwrap();
    let wanted: Vec<f64> = expected[name]
        .as_array()
        .unwrap_or_else(|| panic!("{name} has no logits"))
        .iter()
        .flat_map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()))
        .collect();
    let found = values(&logits);
    assert_eq!(found.len(), wanted.len());
    let largest = found.iter().zip(&wanted).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert!(largest < 1e-4, "{name}: logits differ by {largest}");
}

fn convert(from: impl AsRef<Path>) -> Interp {
    Interp::new().words("models convert --out model").arg(from.as_ref())
}

fn converted(outcome: &Outcome) -> Gpt2 {
    load(&outcome.dir.path().join("model"), DType::F32)
}

fn folders(start: &str) -> Vec<String> {
    let all = std::fs::read_dir(fixture("foreign")).unwrap();
    let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    names
}

/// Files of a directory: their names and what they hold.
type Files<'a> = &'a [(&'a str, &'a [u8])];

#[test]
fn pytorchs_files_have_transformers_logits() {
    let expected = expected();
    let names = folders("bin");
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let dir = fixture("foreign").join(&name);
        let outcome = convert(&dir).run().ok();
        agrees(&converted(&outcome), &name, &expected);
        assert_eq!(outcome.stderr.contains("note: left out"), name == "bin_heads", "{name}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("transposed"), "{name}: {}", outcome.stderr);
        // Without conversion it is named, never half read.
        let run = Interp::new().words("sites --model").arg(&dir).run();
        run.refused(
            66,
            &format!(
                "is a pickle, which is not loaded: make a model of it with `interp models convert {}",
                dir.display()
            ),
        );
    }
    let heads = convert(fixture("foreign/bin_heads")).run().ok();
    assert!(heads.stderr.contains("lm_head.bias; v_head.summary.weight"), "{}", heads.stderr);
    assert!(heads.stderr.contains("lm_head.bias is not added, as transformers does not add it"), "{}", heads.stderr);
    // A single file is as good as its folder, and the config beside it counts.
    let single = convert(fixture("foreign/bin/pytorch_model.bin")).run().ok();
    agrees(&converted(&single), "bin", &expected);
    convert(fixture("foreign/bin")).words("--heads 3").run().refused(2, "--heads is 3, but config.json says 2");
    convert(fixture("foreign/bin")).words("--activation gelu").run().refused(2, "config.json says gelu_new");
    let file = Interp::new().words("sites --model").arg(fixture("foreign/bin/pytorch_model.bin")).run();
    file.refused(65, "is a pickle, which is not loaded: make a model of it with `interp models convert");
    convert(fixture("foreign/score")).run().refused(2, "safetensors, which need no conversion");
    convert(fixture("foreign/score/model.safetensors")).run().refused(2, "need no conversion");
}

#[test]
fn the_library_reads_them_too() {
    let dir = fixture("foreign/bin_legacy");
    let hints = Hints::read_from(&dir).unwrap();
    let model = TorchModel::open(&[dir.join("pytorch_model.bin")], &hints).unwrap();
    assert_eq!(model.config().n_head, 2);
    agrees(&model.load().unwrap(), "bin_legacy", &expected());
    assert!(Hints::default().with(Some(2), Some(Gelu::Erf)).is_ok());
}

#[test]
fn matrices_of_nn_linear_are_turned_and_that_is_said() {
    let expected = expected();
    // minGPT: its config.json says heads and activation, nobody has to.
    let outcome = convert(fixture("foreign/mingpt")).run().ok();
    assert!(outcome.stderr.contains("note: the matrices are stored as nn.Linear has them"), "{}", outcome.stderr);
    let model = converted(&outcome);
    assert!(!model.config().tie_word_embeddings);
    agrees(&model, "mingpt", &expected);
    for name in ["bare", "module", "lightning", "wrapped", "compiled"] {
        let file = format!("states/{name}.pt");
        let outcome = convert(fixture("foreign").join(&file)).words("--heads 2 --activation gelu_new").run().ok();
        agrees(&converted(&outcome), &file, &expected);
    }
    let two = convert(fixture("foreign/states/two.pt")).words("--heads 2 --activation gelu_new").run();
    two.refused(65, "holds weights under `model` and under `state_dict`");
    convert(fixture("foreign/states")).run().refused(2, "6 files that PyTorch wrote");
    let outcome = convert(fixture("foreign/linear_bin")).run().ok();
    agrees(&converted(&outcome), "linear_bin", &expected);
    // Safetensors are read without conversion, whichever way they lie.
    let dir = fixture("foreign/linear_safetensors");
    agrees(&load(&dir, DType::F32), "linear_safetensors", &expected);
    let info = Interp::new().words("models info").arg(&dir).run().ok();
    assert!(info.stderr.contains("note: the matrices are stored as nn.Linear has them"), "{}", info.stderr);
    // One kind of matrix alone the other way is nobody's format.
    let mixed = convert(fixture("foreign/mixed")).run();
    mixed.refused(65, "h.0.attn.c_attn.weight has shape [18, 6] instead of [6, 18] (transposed, unlike most others");
}

#[test]
fn safetensors_of_other_tasks_and_other_names_have_transformers_logits() {
    let expected = expected();
    for (name, note) in [
        ("score", Some("left out, as no part of the language model: score.weight")),
        ("other_names", None),
        ("double", None),
    ] {
        let dir = fixture("foreign").join(name);
        agrees(&load(&dir, DType::F32), name, &expected);
        let outcome = Interp::new().words("models verify").arg(&dir).run().ok();
        assert_eq!(outcome.stderr.matches("note: left out").count(), usize::from(note.is_some()), "{}", outcome.stderr);
        assert!(note.is_none_or(|note| outcome.stderr.contains(note)), "{}", outcome.stderr);
    }
}

#[test]
fn metadata_is_taken_where_the_safetensors_library_takes_it() {
    let expected = expected();
    for (name, taken) in expected["metadata"].as_object().unwrap() {
        let run = Interp::new().words("models info").arg(fixture("foreign/metadata").join(name)).run();
        if taken.as_bool().unwrap() {
            run.ok();
        } else {
            run.refused(65, "header: `__metadata__`: invalid type");
        }
    }
}

/// A text as Git LFS leaves it in place of a file.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 548105171\n";

fn with(dir: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    dir.to_path_buf()
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let config = std::fs::read(fixture("foreign/score/config.json")).unwrap();
    let weights = std::fs::read(fixture("foreign/score/model.safetensors")).unwrap();
    let (config, weights, pointer) = (config.as_slice(), weights.as_slice(), POINTER.as_bytes());
    let index = br#"{"weight_map": {"wte.weight": "a.safetensors"}}"#;
    let cases: [(&str, Files, &str); 7] = [
        ("sites --model", &[("config.json", config), ("model.safetensors", pointer)], "model.safetensors"),
        ("sites --model", &[("config.json", pointer), ("model.safetensors", weights)], "config.json"),
        (
            "predict --prompt x --model",
            &[("config.json", config), ("model.safetensors", weights), ("tokenizer.json", pointer)],
            "tokenizer.json",
        ),
        (
            "predict --prompt x --model",
            &[("config.json", config), ("model.safetensors", weights), ("vocab.json", pointer), ("merges.txt", b"x")],
            "vocab.json",
        ),
        ("sites --model", &[("config.json", config), ("model.safetensors.index.json", pointer)], "index.json"),
        (
            "sites --model",
            &[("config.json", config), ("model.safetensors.index.json", index), ("a.safetensors", pointer)],
            "a.safetensors",
        ),
        ("models convert --out x", &[("config.json", config), ("pytorch_model.bin", pointer)], "pytorch_model.bin"),
    ];
    for (words, files, which) in cases {
        let dir = tempfile::tempdir().unwrap();
        let run = Interp::new().words(words).arg(with(dir.path(), files)).run();
        assert!(run.stderr.contains(&format!("{which}: is a Git LFS pointer, not the file itself")), "{}", run.stderr);
        run.refused(65, "fetch the file of 548105171 bytes with `git lfs pull`");
    }
}

#[test]
fn other_programs_files_are_named_with_the_next_step() {
    let config = std::fs::read(fixture("foreign/score/config.json")).unwrap();
    let adapter = br#"{"peft_type": "LORA", "base_model_name_or_path": "openai-community/gpt2"}"#;
    let whole = std::fs::read(fixture("foreign/score/model.safetensors")).unwrap();
    let torch = std::fs::read(fixture("foreign/mingpt/model.pt")).unwrap();
    // The files of a folder, and what is said; without config.json as well as with it.
    let cases: [(Files, &str); 14] = [
        (
            &[("adapter_config.json", adapter), ("adapter_model.safetensors", &whole)],
            "of an adapter (PEFT) for `openai-community/gpt2`",
        ),
        (&[("adapter_model.bin", &torch)], "merge_and_unload()"),
        (&[("tf_model.h5", b"\x89HDF\r\n\x1a\n")], "tf_model.h5 is TensorFlow's weights"),
        (&[("model.ckpt.index", b"x"), ("model.ckpt.data-00000-of-00001", b"x"), ("checkpoint", b"x")], "from_tf=True"),
        (&[("saved_model.pb", b"x")], "TensorFlow's weights"),
        (&[("flax_model.msgpack", b"\x81")], "flax_model.msgpack is Flax's weights"),
        (&[("gpt2.Q4_K_M.gguf", b"GGUF\x03")], "gpt2.Q4_K_M.gguf is a GGUF file of llama.cpp"),
        (&[("model.onnx", b"\x08\x07")], "model.onnx is an ONNX program"),
        (&[("rust_model.ot", b"PK\x03\x04")], "rust-bert"),
        (&[("other.safetensors", &whole)], "other.safetensors has another name: if it is the model, name that file"),
        (&[("final.pt", &torch), ("training_args.bin", &torch)], "final.pt is a pickle, which is not loaded"),
        (&[("checkpoint-500/x", b""), ("checkpoint-1000/x", b"")], "checkpoint-1000"),
        (&[("refs/main", b"abc"), ("snapshots/abc/config.json", b"{}")], "name it as owner/name"),
        (&[("gpt2.gguf", POINTER.as_bytes())], "GGUF"),
    ];
    for (files, wanted) in cases {
        for with_config in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = with(dir.path(), files);
            if with_config {
                std::fs::write(path.join("config.json"), &config).unwrap();
            }
            Interp::new().words("sites --model").arg(&path).run().refused(66, wanted);
        }
    }
    // Single files, whatever they are called.
    let page = b"<!DOCTYPE html><html>log in</html>";
    let cases: [(&str, &[u8], &str); 8] = [
        ("gpt2.gguf", b"GGUF\x03\0\0\0", "is a GGUF file"),
        ("model.safetensors", b"GGUF\x03\0\0\0", "is a GGUF file"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "is TensorFlow's weights"),
        ("model.safetensors", &torch, "is a pickle"),
        ("model.safetensors", page, "is a web page"),
        ("flax_model.msgpack", b"\x81", "is Flax's weights"),
        ("model.onnx", b"\x08\x07", "is an ONNX program"),
        ("adapter_model.safetensors", &whole, "of an adapter"),
    ];
    for (name, content, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = with(dir.path(), &[(name, content), ("config.json", &config)]).join(name);
        Interp::new().words("models info").arg(&path).run().refused(65, wanted);
    }
    // A folder of the current directory is looked at before the hub is asked.
    let command = Interp::new().words("sites --model mine");
    std::fs::create_dir(command.dir().join("mine")).unwrap();
    command.run().refused(66, "mine: no config.json");
}

#[test]
fn damaged_files_of_the_old_format_are_errors() {
    let good = std::fs::read(fixture("foreign/bin_legacy/pytorch_model.bin")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    let hints = Hints::read_from(&fixture("foreign/bin_legacy")).unwrap();
    let open = || TorchModel::open(std::slice::from_ref(&path), &hints).and_then(TorchModel::load);
    for cut in (0..good.len()).step_by(61) {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(open().is_err(), "cut at {cut}");
    }
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x41;
        std::fs::write(&path, bytes).unwrap();
        let _ = open();
    }
}

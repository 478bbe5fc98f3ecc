//! nanoGPT's files: checkpoints become models with PyTorch's logits, its character data is read as it is, and a pickle
//! that is anything but weights is refused by a process that cannot harm this one.
//!
//! `tests/fixtures/make_nanogpt.py` makes the checkpoints.

mod common;
#[path = "common/process.rs"]
mod process;

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use candle_core::DType;
use common::{fixture, gate, load, values};
use interp::ops::Gelu;
use interp::recipe::{DataRecipe, Learned};
use interp::texts::Texts;
use interp::weights::{Hints, TorchModel, read_small, read_text};
use interp::{Gpt2, Tokenizer, Tokens};
use process::{Interp, Outcome};
use serde_json::Value;
use zip::write::SimpleFileOptions;

fn expected() -> Value {
    serde_json::from_str(&read_text(&fixture("nanogpt/expected.json"), 1 << 20).unwrap()).unwrap()
}

/// The largest difference from PyTorch's logits.
fn distance(model: &Gpt2, expected: &Value) -> f64 {
    let ids = expected["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let logits = model.forward(&Tokens::from_ids(vec![ids]).unwrap()).unwrap().squeeze(0).unwrap();
    let (mut largest, mut size): (f64, f64) = (0.0, 0.0);
    for (row, wanted) in expected["logits"].as_array().unwrap().iter().enumerate() {
        let found = values(&logits.get(row).unwrap());
        let differences = found.iter().zip(wanted.as_array().unwrap()).map(|(x, y)| (x - y.as_f64().unwrap()).abs());
        largest = differences.fold(largest, f64::max);
        size = size.max(gate::size(found));
    }
    largest / size
}

fn agrees(model: &Gpt2, expected: &Value) {
    let largest = distance(model, expected);
    assert!(largest <= gate::F32, "logits differ by {largest:e} of the largest");
}

fn open(path: &Path, activation: Gelu) -> interp::Result<TorchModel> {
    TorchModel::open(&[path.to_path_buf()], &Hints { activation: Some(activation), ..Hints::default() })
}

fn convert(checkpoint: impl AsRef<Path>) -> Interp {
    Interp::new().words("models convert --out model").arg(checkpoint.as_ref())
}

#[test]
fn checkpoints_have_pytorchs_logits() {
    for (name, expected) in expected().as_object().unwrap() {
        let checkpoint = || open(&fixture("nanogpt").join(name), Gelu::Erf).unwrap();
        assert!(checkpoint().steps().is_some());
        agrees(&checkpoint().load().unwrap(), expected);
        let mut trimmed = checkpoint();
        let rows = trimmed.trim_padding();
        assert_eq!(rows, if name == "padded/ckpt.pt" { 47 } else { 0 }, "{name}");
        let vocabulary = trimmed.config().vocab_size;
        let model = trimmed.load().unwrap();
        assert_eq!(model.config().vocab_size, vocabulary);
        agrees(&model, expected);
    }
    // The two forms of GELU are different models, so the choice must reach the weights' use.
    let expected = &expected()["compiled/ckpt.pt"];
    let tanh = open(&fixture("nanogpt/compiled/ckpt.pt"), Gelu::Tanh).unwrap().load().unwrap();
    assert!(distance(&tanh, expected) > 2.0 * gate::F32, "{:e}", distance(&tanh, expected));
}

#[test]
fn a_converted_checkpoint_is_a_model_like_any_other() {
    let expected = expected();
    for (name, flags, vocabulary) in [
        ("compiled/ckpt.pt", "", 40),
        ("half/ckpt.pt", "", 30),
        ("untied/ckpt.pt", "", 30),
        ("padded/ckpt.pt", "", 50_257),
        ("padded/ckpt.pt", "--keep-padding", 50_304),
    ] {
        let outcome = convert(fixture("nanogpt").join(name)).words(flags).run().ok();
        assert!(outcome.stdout.contains("no tokenizer"), "{}", outcome.stdout);
        assert!(outcome.stdout.contains("trained for 250 steps"), "{}", outcome.stdout);
        let model = load(&outcome.dir.path().join("model"), DType::F32);
        assert_eq!(model.config().vocab_size, vocabulary);
        agrees(&model, &expected[name]);
    }
    let tanh = convert(fixture("nanogpt/half/ckpt.pt")).words("--activation gelu_new").run().ok();
    assert_eq!(load(&tanh.dir.path().join("model"), DType::F32).config().activation, Gelu::Tanh);
}

/// The text that a model writes after another.
fn written(model: &Path, start: &str, more: usize) -> String {
    let command = Interp::new().words("generate --greedy --format json --model").arg(model).arg("--start").arg(start);
    let outcome = command.arg("--max-new-tokens").arg(more.to_string()).run().ok();
    let answer: Value = serde_json::from_str(&outcome.stdout).unwrap();
    answer["rows"][0]["text"].as_str().unwrap().to_string()
}

#[test]
fn a_checkpoint_describes_itself_whatever_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ckpt.pt");
    std::fs::write(dir.path().join("config.json"), "{\"learning_rate\": 1}").unwrap();
    std::fs::copy(fixture("nanogpt/half/ckpt.pt"), &path).unwrap();
    let outcome = convert(&path).run().ok();
    agrees(&load(&outcome.dir.path().join("model"), DType::F32), &expected()["half/ckpt.pt"]);
    // A state_dict does not: there the file counts, and its fault.
    std::fs::copy(fixture("nanogpt/refused/bare.pt"), &path).unwrap();
    convert(&path).words("--activation gelu").run().refused(65, "config.json: model_type is missing");
}

#[test]
fn shakespeare_char_comes_through_whole() {
    // Trained by PyTorch: converted with its characters, and sampled as sample.py would.
    let expected = &expected()["char/ckpt.pt"];
    let meta = fixture("nanogpt/data/words_char/meta.pkl");
    let outcome = convert(fixture("nanogpt/char/ckpt.pt")).arg("--meta").arg(&meta).run().ok();
    let model = outcome.dir.path().join("model");
    agrees(&load(&model, DType::F32), expected);
    assert_eq!(written(&model, "A dog", 11), expected["text"].as_str().unwrap());
    // Where sample.py looks: data/DATASET/meta.pkl below the current directory.
    let command = convert(fixture("nanogpt/char/ckpt.pt"));
    let data = command.dir().join("data/words_char");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::copy(&meta, data.join("meta.pkl")).unwrap();
    let found = command.run().ok();
    assert!(found.stdout.contains("18 characters"), "{}", found.stdout);

    // A character that it never read is no token, and is not dropped.
    let bad = Interp::new().words("generate --model").arg(&model).words("--start Zebra").run();
    bad.refused(2, "'Z' is not among the 18 characters");
    // Trained further by us, on the tokens that nanoGPT prepared and on the text itself: the same run.
    let tune = |data: &str| {
        let base = Interp::new().words("finetune --out run --model").arg(&model).arg("--file");
        let base = base.arg(fixture("nanogpt/data/words_char").join(data));
        let outcome = base.words("--set max_iters=3 --set batch_size=4 --set learning_rate=1e-3").run().ok();
        (read_small(&outcome.dir.path().join("run/model.safetensors"), 1 << 20).unwrap(), outcome)
    };
    assert!(tune("").0 == tune("input.txt").0);
}

#[test]
fn a_character_model_is_trained_from_scratch() {
    let train = |data: &str, how: &str| {
        let base = Interp::new().words("train --out model --file").arg(fixture("nanogpt/data/words_char").join(data));
        let base =
            base.words("--set n_layer=1 --set n_head=2 --set n_embd=16 --set model.block_size=16 --set max_iters=60");
        let base = base.words("--set batch_size=16 --set learning_rate=1e-2 --set eval_interval=60").words(how);
        base.run().ok()
    };
    let weights = |outcome: &Outcome| read_small(&outcome.dir.path().join("model/model.safetensors"), 1 << 20).unwrap();
    let (prepared, ours) = (train("", ""), train("input.txt", "--set tokenizer=characters"));
    assert!(weights(&prepared) == weights(&ours), "meta.pkl and the text have the same characters");
    let model = ours.dir.path().join("model");
    let text = written(&model, "The cat", 9);
    assert!(text.starts_with("The cat ") && !text.contains("  "), "{text}");
    // nanoGPT pads; so may we. A vocabulary that is too small is refused.
    let padded = train("input.txt", "--set tokenizer=characters --set vocab_size=32");
    assert_eq!(load(&padded.dir.path().join("model"), DType::F32).config().vocab_size, 32);

    let refuse = |set: &str, code, wanted: &str| {
        let base = Interp::new().words("train --set n_layer=1 --file");
        base.arg(fixture("nanogpt/data/words_char/input.txt")).words(set).run().refused(code, wanted);
    };
    refuse("--set tokenizer=characters --set vocab_size=9", 2, "vocab_size is 9, but the tokenizer has 18");
    refuse("", 2, "say of how many entries with --set vocab_size=N");
    refuse("--set vocab_size=20", 2, "at least 258");
    refuse("--set tokenizer=words", 2, "there is no value `words`, the nearest is `bpe`");
}

#[test]
fn a_bpe_is_learned_from_the_training_text() {
    let data = DataRecipe { text: vec![fixture("nanogpt/data/words_char/input.txt")], ..DataRecipe::default() };
    let texts = Texts::read(&data, Path::new("")).unwrap();
    let tokenizer = texts.tokenizer(None, 280).unwrap();
    assert_eq!(tokenizer.vocab_size(), 280);
    let (train, _) = texts.clone().encode(&tokenizer, false).unwrap();
    assert!(train.len() < 1200, "{} tokens for 2,160 characters", train.len());
    let characters = texts.tokenizer(Some(Learned::Characters), 0).unwrap();
    assert!(characters.is_of_characters() && characters.end_of_text().is_none());
    // What is written is what is read: a vocabulary of characters survives its file.
    let json = characters.to_json().unwrap();
    let again = Tokenizer::from_json(json.as_bytes(), Path::new("tokenizer.json")).unwrap();
    let (ids, _) = texts.clone().encode(&characters, false).unwrap();
    assert_eq!(texts.encode(&again, false).unwrap().0, ids);
    assert!(again.decode(&ids).starts_with("The cat sat on the mat.\nA dog ran home!\n"));
}

#[test]
fn what_is_no_checkpoint_is_refused_with_what_differs() {
    for (name, wanted) in [
        ("strange.pt", "ln_f.weight has shape [9] instead of [8]"),
        ("strange.pt", "missing wpe.weight"),
        ("strange.pt", "unexpected h.0.attn.rotary.weight"),
        ("code.pt", "calls `__main__.Gpt`, which weights have no use for; it is not read: save the state_dict alone"),
    ] {
        convert(fixture("nanogpt/refused").join(name)).run().refused(65, wanted);
    }
    // A view in steps of its own is read as what it is, ones here.
    let outcome = convert(fixture("nanogpt/refused/view.pt")).run().ok();
    let model = load(&outcome.dir.path().join("model"), DType::F32);
    let (_, ones) = model.tensors().into_iter().find(|(name, _)| name == "h.0.mlp.c_fc.weight").unwrap();
    assert!(values(ones).iter().all(|x| *x == 1.0));
    for name in ["bare.pt", "legacy.pt"] {
        let state = fixture("nanogpt/refused").join(name);
        convert(&state).run().refused(2, "does not say which activation the model has: name it with --activation");
        convert(&state).words("--activation gelu").run().refused(2, "name them with --heads N");
        convert(&state).words("--activation gelu --heads 3").run().refused(65, "n_embd 8 is not divisible by n_head 3");
        let outcome = convert(&state).words("--activation gelu --heads 1").run().ok();
        agrees(&load(&outcome.dir.path().join("model"), DType::F32), &expected()["half/ckpt.pt"]);
    }
    convert("absent.pt").run().refused(66, "absent.pt: no such file");
    let wrong = convert(fixture("nanogpt/char/ckpt.pt")).arg("--tokenizer").arg("absent").run();
    wrong.refused(66, "absent");
    let meta = fixture("nanogpt/data/words_char/train.bin");
    convert(fixture("nanogpt/char/ckpt.pt")).arg("--meta").arg(meta).run().refused(65, "pickle, byte");
    Interp::new()
        .words("sites --model")
        .arg(fixture("nanogpt/char/ckpt.pt"))
        .run()
        .refused(65, "interp models convert");
}

#[test]
fn a_vocabulary_that_takes_too_much_memory_ends_its_own_reader_alone() {
    // Eight million empty lists in a file of eight megabytes.
    let mut bomb = b"\x80\x02".to_vec();
    bomb.extend(std::iter::repeat_n(b']', 8_000_000));
    bomb.push(b'.');
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("meta.pkl"), &bomb).unwrap();
    std::fs::write(data.path().join("train.bin"), [0; 64]).unwrap();
    let wanted = "meta.pkl: reading it took more memory or time than it should";
    let train = Interp::new().words("train --out run --set n_layer=1 --file").arg(data.path());
    train.run().refused(65, wanted);
    let meta = data.path().join("meta.pkl");
    convert(fixture("nanogpt/char/ckpt.pt")).arg("--meta").arg(&meta).run().refused(65, wanted);
}

/// An archive as torch.save writes it, with any pickle in it.
fn archive(dir: &Path, pickle: &[u8]) -> PathBuf {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("ckpt/data.pkl", pickle), ("ckpt/data/0", &[0; 64])] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    let path = dir.join("ckpt.pt");
    std::fs::write(&path, zip.finish().unwrap().into_inner()).unwrap();
    path
}

#[test]
fn a_hostile_pickle_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let refuse = |name: &str, pickle: &[u8], wanted: &str| {
        // Processor time: the slowest takes a second of it, and one that grew with what is promised would take hours.
        let outcome = convert(archive(dir.path(), pickle)).limit_memory(3 << 30).limit_cpu(50).run();
        println!("{name}: {}", outcome.stderr.trim_end());
        outcome.refused(65, wanted);
    };
    let touch = format!("touch {}", marker.display());
    let mut payload = b"\x80\x02cposix\nsystem\nX".to_vec();
    payload.extend((touch.len() as u32).to_le_bytes());
    payload.extend(touch.as_bytes());
    payload.extend(b"\x85R.");
    refuse("a command", &payload, "calls `posix.system`");
    assert!(!marker.exists());
    refuse("short arguments", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "no weights in it");
    let mut nested = b"\x80\x02)".to_vec();
    nested.extend(std::iter::repeat_n(0x85, 2_000_000));
    nested.push(b'.');
    refuse("two million tuples in each other", &nested, "no weights in it");
    let mut doubled = b"\x80\x02)q\x00".to_vec();
    for i in 0..28 {
        doubled.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
    }
    doubled.push(b'.');
    refuse("doubled 28 times", &doubled, "no weights in it");
    refuse("a text of 4 GB", b"\x80\x02X\xff\xff\xff\xff", "ends where 4294967295 more bytes should be");
    let weights = |size: i32| {
        let mut pickle =
            b"\x80\x02}(X\x05\x00\x00\x00model}X\x0a\x00\x00\x00wte.weightctorch._utils\n_rebuild_tensor_v2\n(("
                .to_vec();
        pickle.extend(
            b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00",
        );
        for pair in [[size, size], [size, 1]] {
            pickle.extend(pair.iter().flat_map(|n| [&b"J"[..], &n.to_le_bytes()].concat()));
            pickle.push(0x86);
        }
        pickle.extend(b"tRsX\x0a\x00\x00\x00model_args}(");
        for key in ["n_layer", "n_head", "n_embd", "vocab_size", "block_size"] {
            pickle.extend([0x8c, key.len() as u8]);
            pickle.extend(key.as_bytes());
            pickle.extend(b"K\x01");
        }
        pickle.extend(b"uu.");
        pickle
    };
    refuse("weights without end", &weights(i32::MAX), "no weights in it");
    refuse("one weight", &weights(1), "missing wpe.weight");
    let mut compressed = std::fs::read(archive(dir.path(), b"\x80\x02N.")).unwrap();
    let central = compressed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    compressed[8] = 8;
    compressed[central + 10] = 8;
    let path = dir.path().join("compressed.pt");
    std::fs::write(&path, compressed).unwrap();
    let outcome = convert(&path).run();
    outcome.refused(65, "ckpt/data.pkl");
    // Every cut of a good file, and a flipped byte at every place of its pickle, is an error or a model, never a crash.
    let good = std::fs::read(fixture("nanogpt/half/ckpt.pt")).unwrap();
    let path = dir.path().join("damaged.pt");
    for cut in (0..good.len()).step_by(97) {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(open(&path, Gelu::Erf).and_then(TorchModel::load).is_err(), "cut at {cut}");
    }
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x41;
        std::fs::write(&path, bytes).unwrap();
        let _ = open(&path, Gelu::Erf).and_then(TorchModel::load);
    }
}

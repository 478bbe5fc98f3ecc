//! Every parser that reads files of strangers, as a function of bytes that may be anything.
//!
//! `cargo fuzz run NAME` (cargo-fuzz, a nightly compiler or RUSTC_BOOTSTRAP=1) looks for bytes that make one panic, hang or
//! take gigabytes; `cargo test --test fuzz_seeds` runs the committed corpus through the same functions. What a parser
//! accepts is used as a command would use it: a file that is accepted and then fails is a fault too.

use std::path::Path;

use interp::dataset::{documents, manifest::Manifest, plan::Plan};
use interp::graph::CircuitFile;
use interp::pairset::PairSet;
use interp::shard::ShardReader;
use interp::site::Site;
use interp::study::Study;
use interp::suite::{Asking, Suite};
use interp::task::Task;
use interp::text::Encoding;
use interp::weights::{Checkpoint, Hints, Repository, TorchModel};
use interp::{Config, Tokenizer, embedded};

/// A parser with the name of its target.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them.
pub const PARSERS: [Parser; 21] = [
    ("characters", characters),
    ("checkpoint", checkpoint),
    ("circuit", circuit),
    ("config", config),
    ("directions", directions),
    ("documents", documents_of),
    ("edits", edits),
    ("figures", figures),
    ("language", language),
    ("manifest", manifest),
    ("names", names),
    ("pair_set", pair_set),
    ("parquet", parquet),
    ("plan", plan),
    ("recipe", recipe),
    ("study", study),
    ("subspace", subspace),
    ("suite", suite),
    ("task", task),
    ("tokenizer", tokenizer),
    ("weights", weights),
];

const MODEL: &[u8] = include_bytes!("../tests/fixtures/parity/one/config.json");

fn path() -> &'static Path {
    Path::new("fuzzed")
}

/// Writes the bytes where a parser wants a file, and hands it over.
fn with_file(name: &str, data: &[u8], read: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(name);
    std::fs::write(&file, data).expect("a temporary file");
    read(&file);
}

fn with_text(data: &[u8], read: impl FnOnce(&str)) {
    if let Ok(text) = std::str::from_utf8(data) {
        read(text);
    }
}

/// A safetensors file for a model of one layer.
pub fn weights(data: &[u8]) {
    let config = Config::parse(MODEL, path()).expect("the fixture");
    if let Ok(checkpoint) = Checkpoint::parse("fuzzed", data.to_vec(), &config) {
        let loaded = checkpoint.load(candle_core::DType::F32, &candle_core::Device::Cpu);
        loaded.expect("a header that was accepted describes weights that are there");
    }
}

/// `config.json`, and the index of a sharded checkpoint, which is JSON too.
pub fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(data, path()) {
        config.parameters();
        config.tensors();
    }
    let _ = interp::weights::shard_names(data, path());
}

/// `tokenizer.json`.
pub fn tokenizer(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(data, path()) else { return };
    for text in ["Hello, world! <|endoftext|> 42", "é 東 \u{202E}\0\r\n  "] {
        if let Ok(ids) = tokenizer.encode(text, Encoding::default()) {
            tokenizer.decode(&ids);
        }
    }
}

/// A file of PyTorch: a zip archive with a pickle in it, or, before version 1.6, pickles and numbers one after the other.
pub fn checkpoint(data: &[u8]) {
    with_file("ckpt.pt", data, |file| {
        let hints = Hints::default().with(Some(2), None).expect("hints that contradict nothing");
        if let Ok(read) = TorchModel::open(&[file.to_path_buf()], &hints) {
            let _ = read.load();
        }
    });
}

/// nanoGPT's `meta.pkl`: a pickle by itself.
pub fn characters(data: &[u8]) {
    with_file("meta.pkl", data, |file| {
        let _ = interp::weights::nanogpt::characters(file);
    });
}

/// A file of edits.
pub fn edits(data: &[u8]) {
    with_text(data, |text| {
        for edit in interp::edit::parse_edits(text, 6).unwrap_or_default() {
            let _ = (edit.to_string(), edit.to_json());
        }
    });
}

/// A set of prompt pairs.
pub fn pair_set(data: &[u8]) {
    with_text(data, |text| {
        if let Ok(set) = PairSet::parse(text, path()) {
            let _ = (set.templates(), set.draw(None, None, 0, 0), set.draw(None, None, 7, 1));
        }
    });
}

/// A suite of questions.
pub fn suite(data: &[u8]) {
    with_text(data, |text| {
        let Ok(suite) = Suite::parse(text, path()) else { return };
        let tokenizer = embedded::tokenizer().expect("the built-in tokenizer");
        let _ = suite.templates();
        for phrasing in suite.phrasings() {
            let asking = Asking { phrasing, shots: 1, seed: 3, count: 2 };
            let _ = suite.questions(asking, &tokenizer, Encoding::default());
        }
    });
}

/// A task for probes.
pub fn task(data: &[u8]) {
    with_text(data, |text| {
        if let Ok(task) = Task::parse(text, path()) {
            let _ = (task.draw(0, 0), task.draw(5, 1));
        }
    });
}

/// A grid of runs.
pub fn study(data: &[u8]) {
    with_text(data, |text| {
        if let Ok(study) = Study::parse(text, path()) {
            let _ = (study.runs(), study.varied());
        }
    });
}

/// A circuit: TOML, JSON, or what EAP-IG writes.
pub fn circuit(data: &[u8]) {
    with_text(data, |text| {
        if let Ok(file) = CircuitFile::parse(text, path()) {
            file.circuit().expect("it was checked");
        }
    });
}

/// A grammar of the built-in model's language.
pub fn language(data: &[u8]) {
    with_text(data, |text| {
        if let Ok(language) = interp::language::Language::parse(text, path()) {
            language.document(&mut interp::random::stream(0, "fuzz", 0));
        }
    });
}

/// A recipe for training.
pub fn recipe(data: &[u8]) {
    with_file("recipe.toml", data, |file| {
        let _ = interp::recipe::Recipe::load(file);
    });
}

/// A file of published figures.
pub fn figures(data: &[u8]) {
    with_file("figures.json", data, |file| {
        let _ = interp::oracle::Oracle::read(file);
    });
}

/// A subspace that was saved.
pub fn subspace(data: &[u8]) {
    with_file("subspace.safetensors", data, |file| {
        let _ = interp::subspace::Subspace::load(file, "fingerprint");
    });
}

/// Directions that were saved.
pub fn directions(data: &[u8]) {
    let model = embedded::model().expect("the built-in model");
    with_file("directions.safetensors", data, |file| {
        let _ = interp::direction::load(file, &model, "of the fixture");
    });
}

/// Texts with labels, a JSON object per line.
pub fn documents_of(data: &[u8]) {
    with_file("texts.jsonl", data, |file| {
        for document in documents::open(file, "text", &["label".to_string()]).into_iter().flatten() {
            let _ = document;
        }
    });
}

/// The plan of an activation dataset.
pub fn plan(data: &[u8]) {
    with_file("plan.json", data, |file| {
        if let Ok(Some(plan)) = Plan::open(file.parent().expect("its directory")) {
            let _ = (plan.id(), plan.rows(), plan.sites());
        }
    });
}

/// The manifest of an activation dataset.
pub fn manifest(data: &[u8]) {
    with_file("manifest.json", data, |file| {
        let dir = file.parent().expect("its directory");
        if let Ok(Some(manifest)) = Manifest::open(dir) {
            manifest.parts.iter().take(4).for_each(|entry| drop(entry.read(dir)));
        }
    });
}

/// A part of an activation dataset, and texts with a label in a Parquet file. polars panics at some damaged files; the reader turns that into an error.
pub fn parquet(data: &[u8]) {
    std::panic::set_hook(Box::new(|_| {}));
    if let Ok(shard) = ShardReader::parse(data.to_vec(), path()) {
        let _ = shard.identity();
        shard.wide().iter().for_each(|wide| drop(shard.values(&wide.name)));
    }
    with_file("texts.parquet", data, |file| {
        let _ = interp::frame::load_parquet(file);
        for column in ["token", "pos"] {
            documents::open(file, "token", &[column.to_string()]).into_iter().flatten().for_each(drop);
        }
    });
}

/// Names that a person types: sites, repositories, amounts of memory.
pub fn names(data: &[u8]) {
    with_text(data, |text| {
        let _ = (text.parse::<Site>(), Site::matching(text, 12), Repository::parse(text), interp::memory::parse(text));
        let _ = (text.parse::<interp::graph::Edge>(), text.parse::<interp::paths::End>());
    });
}

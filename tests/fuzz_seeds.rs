//! The fuzzer's corpus runs through every parser: seeds, and what once made one panic. None may panic here.
//!
//! `fuzz/parsers.rs` has the parsers, `fuzz/make_corpus.py` makes the seeds; a file that a fuzzer found is added by hand.

#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_parser_survives_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut silent = BTreeSet::new();
    for (name, parser) in parsers::PARSERS {
        let dir = corpus.join(name);
        let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{} holds no seed", dir.display());
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            if std::panic::catch_unwind(|| parser(&bytes)).is_err() {
                silent.insert(file);
            }
        }
    }
    assert!(silent.is_empty(), "these made a parser panic: {silent:?}");
}

#[test]
fn every_parser_is_a_target_of_the_fuzzer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let targets: BTreeSet<&str> =
        manifest["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap()).collect();
    let names: BTreeSet<&str> = parsers::PARSERS.into_iter().map(|(name, _)| name).collect();
    assert_eq!(targets, names);
    for name in names {
        assert!(root.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
        assert!(root.join("corpus").join(name).is_dir(), "{name}");
    }
    let found = std::fs::read_dir(root.join("corpus")).unwrap().count();
    assert_eq!(found, parsers::PARSERS.len());
}

//! A directory with a text, and exports of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use interp::dataset::manifest::Manifest;
use interp::random::{Rng, Stream, stream};
use polars::prelude::*;

use crate::process::Interp;

/// Sentences of different length, the same for the same number.
pub fn sentences(n: usize) -> String {
    let words = ["Mary", "John", "shop", "went to the", "gave a drink to", "and", "park", "The key near the doors is"];
    let mut rng = stream(1, "sentences", 0);
    let line =
        |rng: &mut _| (0..3 + random(rng, 9)).map(|_| words[random(rng, words.len())]).collect::<Vec<_>>().join(" ");
    (0..n).map(|_| line(&mut rng) + "\n").collect()
}

pub fn random(rng: &mut Stream, below: usize) -> usize {
    rng.random_range(0..below)
}

/// A directory with a text in it.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new(lines: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), sentences(lines)).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `interp export` of two sites of that text into a directory here.
    pub fn export(&self, to: &str, options: &str) -> Interp {
        let command = Interp::new().words("export --site resid_post.0,z.1 --context 32 --file");
        command.arg(self.path("text.txt")).words("--out").arg(self.path(to)).words(options)
    }

    pub fn verify(&self, name: &str) -> Interp {
        Interp::new().words("export verify").arg(self.path(name))
    }
}

/// All rows of a dataset.
pub fn read(dir: &Path) -> DataFrame {
    let manifest = Manifest::open(dir).unwrap().expect("a sealed dataset");
    let mut all: Option<DataFrame> = None;
    for part in &manifest.parts {
        let file = std::fs::File::open(dir.join(&part.file)).unwrap();
        let frame = ParquetReader::new(file).finish().unwrap();
        assert_eq!(frame.height() as u64, part.rows);
        all = Some(match all {
            Some(all) => all.vstack(&frame).unwrap(),
            None => frame,
        });
    }
    all.unwrap()
}

/// The bits of an array column, and its width.
pub fn bits(frame: &DataFrame, name: &str) -> (usize, Vec<u32>) {
    let arrays = frame.column(name).unwrap().array().unwrap().clone();
    let inner = arrays.get_inner();
    (arrays.width(), inner.f32().unwrap().into_no_null_iter().map(f32::to_bits).collect())
}

pub fn u32s(frame: &DataFrame, name: &str) -> Vec<u32> {
    frame.column(name).unwrap().u32().unwrap().into_no_null_iter().collect()
}

pub fn manifest(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("manifest.json")).unwrap()
}

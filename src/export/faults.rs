//! Exports on disks that refuse.
#![cfg(test)]

use std::path::{Path, PathBuf};

use super::{Export, Piece};
use crate::dataset::documents::{Content, Document};
use crate::dataset::labels::Label;
use crate::dataset::manifest::Manifest;
use crate::dataset::plan::{Dtype, Request};
use crate::dataset::sequences::Cut;
use crate::disk::fault::Broken;
use crate::embedded;
use crate::error::Result;
use crate::gpt2::Gpt2;
use crate::shard::Layout;
use crate::text::Tokenizer;

const TEXTS: [&str; 3] = ["Mary and John went to the shop", "The key near the doors is", "John gave a drink to Mary"];
const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EDQUOT: i32 = 122;
const EACCES: i32 = 13;

fn request(layout: Layout) -> Request {
    Request {
        weights: Vec::new(),
        tokenizer: None,
        text: Vec::new(),
        field: "text".into(),
        sites: vec!["embed".into(), "z.0".into()],
        layout,
        dtype: Dtype::F32,
        computed: "f32 on cpu".into(),
        cut: Cut::windows(8),
        labels: vec!["kind".into()],
        covariance: false,
        part_rows: 9,
        batch_tokens: 16,
        threads: 1,
        version: "test".into(),
    }
}

/// The whole export of a small text, sealed.
fn export(model: &Gpt2, tokenizer: &Tokenizer, dir: &Path, layout: Layout) -> Result<Manifest> {
    let document = |text: &&str| {
        let labels = vec![Label::I64(text.len() as i64)];
        Ok(Document { content: Content::Text(text.to_string()), labels })
    };
    let documents = || Ok(Box::new(TEXTS.iter().map(document)) as _);
    let mut work = Export::open(model, tokenizer, dir, &request(layout), documents)?;
    work.run(Piece { index: 0, of: 1 }, &mut |_| Ok(()), &|| true)?;
    work.seal()
}

fn left_behind(dir: &Path) -> Vec<PathBuf> {
    // A directory in which no plan came about is gone.
    let all = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|end| end == "tmp" || end == "lock")).collect()
}

/// Whatever fails first, and whether or not the disk recovers: one error, no rubbish, and the same dataset in the end.
#[test]
fn every_refusal_of_the_disk_is_survived() {
    let (model, tokenizer) = (embedded::model().unwrap(), embedded::tokenizer().unwrap());
    for layout in [Layout::Parquet, Layout::Npz, Layout::Safetensors] {
        let place = tempfile::tempdir().unwrap();
        let whole = export(&model, &tokenizer, &place.path().join("whole"), layout).unwrap();
        assert!(whole.parts.len() >= 3, "several parts");
        let mut steps = 0;
        loop {
            let dir = place.path().join(format!("broken{steps}"));
            let error = [ENOSPC, EIO, EDQUOT, EACCES][steps % 4];
            let lasting = steps % 3 != 0;
            let broken = Broken::new(&dir, steps, error, lasting);
            let outcome = export(&model, &tokenizer, &dir, layout);
            if !broken.was_met() {
                assert_eq!(outcome.unwrap(), whole);
                break;
            }
            drop(broken);
            let refused = outcome.expect_err("an error that nobody noticed").to_string();
            assert_eq!(refused.lines().count(), 1, "{refused}");
            assert_eq!(left_behind(&dir), Vec::<PathBuf>::new(), "after {refused} at step {steps}");
            assert!(Manifest::open(&dir).unwrap().is_none(), "sealed in spite of {refused}");
            assert_eq!(export(&model, &tokenizer, &dir, layout).unwrap(), whole, "after {refused} at step {steps}");
            std::fs::remove_dir_all(&dir).unwrap();
            steps += 1;
        }
        assert!(steps >= 40, "{layout:?} came by {steps} steps only");
    }
}

//! Text made ready: sequences, labels and the plan.

use std::path::Path;

use crate::dataset::documents::{self, Documents};
use crate::dataset::files;
use crate::dataset::plan::{Plan, Request};
use crate::dataset::sequences::{self, Sequences};
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::{disk, frame};

/// The files that a plan stands on; the last one only where there are labels.
pub(super) const FILES: [&str; 3] = ["tokens.bin", "sequences.bin", "labels.parquet"];

/// Cuts the text into sequences and writes them, the labels and the plan.
///
/// Labels are read first, in a pass of their own: one that cannot be kept is refused before anything is written.
pub(super) fn write_plan(
    tokenizer: &Tokenizer,
    dir: &Path,
    request: &Request,
    documents: impl Fn() -> Result<Documents>,
) -> Result<Plan> {
    let [tokens, places, labels] = FILES.map(|name| dir.join(name));
    let mut frame = None;
    if !request.labels.is_empty() {
        let read = documents::read_labels(documents()?, &request.labels)?;
        request.layout.check(&read, 1)?;
        frame = Some(read);
    }
    let mut list = Vec::new();
    let count = disk::write_with(&tokens, |file| {
        sequences::write(documents()?, tokenizer, &request.cut, &tokens, file, &mut list)
    })?;
    disk::write_bytes(&places, &list)?;
    let mut digests = vec![files::sha256(&tokens)?, files::sha256(&places)?];
    if let Some(frame) = frame {
        // Where rows are limited, texts at the end may be left out.
        let mut frame = frame.head(Some(count as usize));
        if frame.height() != count as usize {
            return Err(Error::data(dir, format!("the text has {count} documents, and had {} before", frame.height())));
        }
        frame::save_parquet(&mut frame, &labels)?;
        digests.push(files::sha256(&labels)?);
    }
    let sequences = Sequences::open(&tokens, &places, &request.cut, count)?;
    let plan = Plan::new(request.clone(), count, &sequences, digests)?;
    if !request.labels.is_empty() {
        let largest = plan.parts.iter().map(|part| part.rows).max().unwrap_or(0);
        request.layout.check(&frame::load_parquet(&labels)?, largest)?;
    }
    plan.save(dir)?;
    Ok(plan)
}

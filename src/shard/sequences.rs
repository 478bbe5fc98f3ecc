//! The layout that SAELens reads: Arrow streams as Hugging Face's `datasets` keeps them, a row per sequence.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::{ArrowDataType, ArrowField, ArrowSchema, DataFrame};
use polars_arrow::array::{Array, FixedSizeListArray, ListArray, PrimitiveArray};
use polars_arrow::datatypes::ExtensionType;
use polars_arrow::io::ipc::write::{StreamWriter, WriteOptions};
use polars_arrow::offset::OffsetsBuffer;
use polars_arrow::record_batch::RecordBatchT;
use serde_json::json;

use super::column::{Real, Values, Wide};
use super::layout::Shard;
use crate::error::{Error, Result};

/// The column of token ids, by SAELens's name.
const TOKENS: &str = "token_ids";

/// Writes sequences of `context` rows: a column `Array2D(context, d)` called after the site, and their `token_ids`.
///
/// What a matrix is in `datasets` is an extension type over lists of lists.
pub(super) struct SequenceFile<W: Write> {
    stream: StreamWriter<W>,
    path: PathBuf,
    site: Wide,
    context: usize,
    schema: Arc<ArrowSchema>,
}

impl<W: Write> SequenceFile<W> {
    pub(super) fn new(to: W, path: &Path, wide: &[Wide], context: usize) -> Result<Self> {
        let [site] = wide else {
            return Err(Error::request(format!("{} sites; SAELens reads one site per dataset", wide.len())));
        };
        if site.real != Real::F32 {
            return Err(Error::request("SAELens reads f32; leave out --store f16"));
        }
        let schema = ArrowSchema::from_iter([
            ArrowField::new(site.name.as_str().into(), matrix(context, site.width), true),
            ArrowField::new(TOKENS.into(), ids(context), true),
        ]);
        let mut stream = StreamWriter::new(to, WriteOptions { compression: None });
        stream.start(&schema, None).map_err(|e| Error::writing(path, std::io::Error::other(e)))?;
        Ok(Self { stream, path: path.to_path_buf(), site: site.clone(), context, schema: Arc::new(schema) })
    }
}

impl<W: Write> Shard for SequenceFile<W> {
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()> {
        let (rows, width) = (identity.height(), self.site.width);
        let [Values::F32(values)] = wide else {
            return Err(Error::Bug(format!("{}: not one site in f32", self.path.display())));
        };
        if !rows.is_multiple_of(self.context) || values.len() != rows * width {
            return Err(Error::Bug(format!("{rows} rows are no sequences of {}", self.context)));
        }
        let vectors = ListArray::<i32>::try_new(
            list(number()),
            every(width, rows)?,
            PrimitiveArray::from_vec(values.to_vec()).boxed(),
            None,
        )?;
        let kind = matrix(self.context, width);
        let matrices =
            ListArray::<i32>::try_new(kind, every(self.context, rows / self.context)?, vectors.boxed(), None)?;
        let tokens: Vec<i32> = identity.column("token_id")?.u32()?.into_no_null_iter().map(|id| id as i32).collect();
        let tokens = FixedSizeListArray::try_new(
            ids(self.context),
            rows / self.context,
            PrimitiveArray::from_vec(tokens).boxed(),
            None,
        )?;
        let columns: Vec<Box<dyn Array>> = vec![matrices.boxed(), tokens.boxed()];
        let batch = RecordBatchT::try_new(rows / self.context, self.schema.clone(), columns)?;
        self.stream.write(&batch, None).map_err(|e| Error::writing(&self.path, std::io::Error::other(e)))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.stream.finish().map_err(|e| Error::writing(&self.path, std::io::Error::other(e)))?;
        self.stream.into_inner().flush().map_err(|e| Error::writing(&self.path, e))
    }
}

fn number() -> ArrowDataType {
    ArrowDataType::Float32
}

fn list(item: ArrowDataType) -> ArrowDataType {
    ArrowDataType::List(Box::new(ArrowField::new("item".into(), item, true)))
}

/// `datasets.Array2D(shape=(rows, width), dtype="float32")`.
fn matrix(rows: usize, width: usize) -> ArrowDataType {
    ArrowDataType::Extension(Box::new(ExtensionType {
        name: "datasets.features.features.Array2DExtensionType".into(),
        inner: list(list(number())),
        metadata: Some(json!([[rows, width], "float32"]).to_string().into()),
    }))
}

fn ids(context: usize) -> ArrowDataType {
    ArrowDataType::FixedSizeList(Box::new(ArrowField::new("item".into(), ArrowDataType::Int32, true)), context)
}

/// Offsets of `count` lists that are equally long.
fn every(length: usize, count: usize) -> Result<OffsetsBuffer<i32>> {
    let offset = |i: usize| i32::try_from(i * length).map_err(|_| Error::Bug(format!("{count} lists of {length}")));
    Ok(OffsetsBuffer::try_from((0..=count).map(offset).collect::<Result<Vec<_>>>()?)?)
}

/// The files beside the parts that make a directory a saved dataset of Hugging Face's `datasets`: name and content.
pub fn saved_dataset(
    parts: &[String],
    fingerprint: &str,
    site: &str,
    (context, width): (usize, usize),
) -> [(&'static str, String); 2] {
    let files: Vec<_> = parts.iter().map(|file| json!({ "filename": file })).collect();
    let state = json!({
        "_data_files": files, "_fingerprint": fingerprint, "_format_columns": null, "_format_kwargs": {},
        "_format_type": null, "_output_all_columns": false, "_split": null,
    });
    let info = json!({
        "citation": "", "description": "", "homepage": "", "license": "",
        "features": {
            site: { "shape": [context, width], "dtype": "float32", "_type": "Array2D" },
            TOKENS: { "feature": { "dtype": "int32", "_type": "Value" }, "length": context, "_type": "Sequence" },
        },
    });
    [("state.json", state.to_string()), ("dataset_info.json", info.to_string())]
}

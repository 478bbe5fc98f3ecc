//! Shards: files of activations ([`Layout`]); Parquet above all, written nearly as fast as bare bytes and read by everything
//! that reads Parquet.
//!
//! A shard has small identity columns (`prompt`, `pos`, `token`, labels …) and wide columns, one `Array[f32|f16, d]`
//! per site. A Parquet list column stores for every number whether it starts a row; general writers find that out
//! number by number. Here every row is equally long, so these levels are the same on every page: [`ShardWriter`] makes
//! them once and writes the activations between them as they lie in memory. Identity columns go through polars'
//! own encoders.
//!
//! A row group per [`ShardWriter::write`], pages of about [`PAGE_BYTES`], version 1 pages, values plain, no compression
//! (activations lose 7 % to zstd), no dictionary, no statistics, a CRC-32 and an offset index for every page. Types are
//! in the Parquet schema and in `ARROW:schema`. The bytes depend on the data alone: no time, no version, no path.
//!
//! Source: the [Parquet format](https://github.com/apache/parquet-format), in particular
//! [its run-length encoding](https://parquet.apache.org/docs/file-format/data-pages/encodings/#RLE).

mod column;
mod flat;
mod layout;
mod levels;
mod npz;
mod page;
mod reader;
mod sequences;
mod tensors;
mod writer;

pub use column::{Real, Values, Wide};
pub use layout::{IDENTITY, Layout, PLAN, Shard, ShardOptions};
pub use page::PAGE_BYTES;
pub use reader::ShardReader;
pub use sequences::saved_dataset;
pub use writer::{ShardWriter, Summary};

//! Tensors into tidy frames, frames into files and text.

pub(crate) mod pages;
mod text;

use std::path::Path;

use candle_core::{CpuStorage, DType as TensorType, Device, Storage, Tensor};
use polars::prelude::*;

pub use text::{Csv, cell, json, json_of};

use crate::error::{Error, Result};
use crate::site::{Axis, Site};
use crate::tokens::Tokens;

/// A value at a site as rows: one per element that exists, columns `site`, `prompt`, `layer`, then `axes`, then `value`.
///
/// `axes` is the order of the index columns; those that the site lacks are null, so that frames of several sites stack.
/// Padding, and keys after their query, are left out.
///
/// # Errors
/// [`Error::Bug`] for a tensor that does not have the site's axes.
pub fn tidy(site: Site, value: &Tensor, tokens: &Tokens, axes: &[Axis]) -> Result<DataFrame> {
    let own = site.axes();
    let dims = value.dims().to_vec();
    if dims.len() != own.len() {
        return Err(Error::Bug(format!("{site} has {} dimensions, not {}", own.len(), dims.len())));
    }
    let values = to_f32(value)?;
    let mut index: Vec<Vec<u32>> = vec![Vec::new(); own.len()];
    let mut kept = Vec::with_capacity(values.len());
    let mut at = vec![0_usize; own.len()];
    for value in values {
        if exists(own, &at, tokens) {
            kept.push(value);
            for (column, &i) in index.iter_mut().zip(&at) {
                column.push(i as u32);
            }
        }
        // Count up, last axis fastest.
        for dim in (0..at.len()).rev() {
            at[dim] += 1;
            if at[dim] < dims[dim] {
                break;
            }
            at[dim] = 0;
        }
    }
    let height = kept.len();
    let mut columns = vec![
        Column::new_scalar("site".into(), Scalar::from(PlSmallStr::from_string(site.to_string())), height),
        Column::new("prompt".into(), index.first().cloned().unwrap_or_default()),
        layer_column(site, height),
    ];
    for axis in axes.iter().filter(|axis| !matches!(axis, Axis::Prompt | Axis::One)) {
        columns.push(match own.iter().position(|a| a == axis) {
            Some(i) => Column::new(axis.name().into(), std::mem::take(&mut index[i])),
            None => Column::full_null(axis.name().into(), height, &DataType::UInt32),
        });
    }
    columns.push(Column::new("value".into(), kept));
    Ok(DataFrame::new(height, columns)?)
}

/// The index columns of [`tidy`] that several sites need together, in a fixed order.
pub fn axes_of(sites: &[Site]) -> Vec<Axis> {
    [Axis::Pos, Axis::Head, Axis::Query, Axis::Key, Axis::Dim, Axis::Neuron, Axis::Vocab]
        .into_iter()
        .filter(|axis| sites.iter().any(|site| site.axes().contains(axis)))
        .collect()
}

fn layer_column(site: Site, height: usize) -> Column {
    match site.layer() {
        Some(layer) => Column::new_scalar("layer".into(), Scalar::from(layer as u32), height),
        None => Column::full_null("layer".into(), height, &DataType::UInt32),
    }
}

/// Whether an element belongs to a token and is not hidden by the causal mask.
fn exists(axes: &[Axis], at: &[usize], tokens: &Tokens) -> bool {
    let of = |wanted: Axis| axes.iter().position(|axis| *axis == wanted).map(|i| at[i]);
    let length = of(Axis::Prompt).map_or(usize::MAX, |prompt| tokens.row(prompt).len());
    let query = of(Axis::Query);
    of(Axis::Pos).is_none_or(|pos| pos < length)
        && query.is_none_or(|query| query < length)
        && of(Axis::Key).is_none_or(|key| query.is_none_or(|query| key <= query))
}

/// One row per token with its identity, and one `Array` column per site: `(site, [prompt, pos, ..])` → `Array[f32, ..]`.
///
/// # Errors
/// [`Error::Request`] for a site without one value per position (attention maps).
pub fn wide(values: &[(Site, &Tensor)], tokens: &Tokens) -> Result<DataFrame> {
    if let Some((site, _)) = values.iter().find(|(site, _)| site.axes().get(1) != Some(&Axis::Pos)) {
        return Err(Error::request(format!(
            "`{site}` has no value per position, so it has no wide column; leave out --wide"
        )));
    }
    let mut columns = token_columns(tokens);
    for (site, value) in values {
        let (_, pos, rest) = {
            let dims = value.dims();
            (dims[0], dims[1], dims[2..].iter().product::<usize>())
        };
        let all = to_f32(value)?;
        let mut kept = Vec::with_capacity(tokens.count() * rest);
        for prompt in 0..tokens.len() {
            let start = prompt * pos * rest;
            kept.extend_from_slice(&all[start..start + tokens.row(prompt).len() * rest]);
        }
        let flat = Series::new(site.to_string().into(), kept);
        let shape = [ReshapeDimension::new(tokens.count() as i64), ReshapeDimension::new(rest as i64)];
        columns.push(flat.reshape_array(&shape)?.into_column());
    }
    Ok(DataFrame::new(tokens.count(), columns)?)
}

/// The identity of every token: `prompt`, `pos`, `token_id`, `token`.
pub fn token_columns(tokens: &Tokens) -> Vec<Column> {
    let places: Vec<(usize, usize)> =
        (0..tokens.len()).flat_map(|prompt| (0..tokens.row(prompt).len()).map(move |pos| (prompt, pos))).collect();
    let prompt: Vec<u32> = places.iter().map(|p| p.0 as u32).collect();
    let pos: Vec<u32> = places.iter().map(|p| p.1 as u32).collect();
    let id: Vec<u32> = places.iter().map(|p| tokens.row(p.0)[p.1]).collect();
    let text: Vec<String> = places.iter().map(|p| tokens.text(p.0, p.1).into_owned()).collect();
    vec![
        Column::new("prompt".into(), prompt),
        Column::new("pos".into(), pos),
        Column::new("token_id".into(), id),
        Column::new("token".into(), text),
    ]
}

/// The frame with its `prompt` column counted from `first` on: for batches that are parts of a longer list.
///
/// # Errors
/// A frame without such a column.
pub fn shift_prompts(mut frame: DataFrame, first: u32) -> Result<DataFrame> {
    if first > 0 {
        let shifted: Vec<u32> = frame.column("prompt")?.u32()?.into_no_null_iter().map(|p| p + first).collect();
        frame.with_column(Column::new("prompt".into(), shifted))?;
    }
    Ok(frame)
}

/// Puts a frame below those that there are.
///
/// # Errors
/// Frames of other columns.
pub fn append(stacked: &mut Option<DataFrame>, part: DataFrame) -> Result<()> {
    match stacked {
        Some(stacked) => {
            stacked.vstack_mut(&part)?;
        }
        None => *stacked = Some(part),
    }
    Ok(())
}

/// What `f` makes of the elements of a tensor in order, as f32 on the CPU; those that are so already are not copied.
///
/// # Errors
/// As candle.
pub fn with_f32<T>(value: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = value.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(f(&all[start..end]));
    }
    drop(storage);
    Ok(f(&to_f32(value)?))
}

/// The elements of a tensor in order, as f32 on the CPU.
///
/// # Errors
/// As candle.
pub fn to_f32(value: &Tensor) -> Result<Vec<f32>> {
    // From a GPU candle copies all that a view is a part of.
    let own = if value.device().is_cuda() { Some(value.force_contiguous()?) } else { None };
    let value = own.as_ref().unwrap_or(value);
    Ok(value.to_device(&Device::Cpu)?.to_dtype(TensorType::F32)?.flatten_all()?.to_vec1()?)
}

/// An activation as an ndarray of its own shape, for linear algebra and for linfa.
///
/// # Errors
/// As candle.
pub fn to_ndarray(value: &Tensor) -> Result<ndarray::ArrayD<f32>> {
    ndarray::ArrayD::from_shape_vec(value.dims().to_vec(), to_f32(value)?).map_err(|e| Error::Bug(e.to_string()))
}

/// A frame from a Parquet file.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Io`] for a file that cannot be opened, [`Error::Data`] for one that is no Parquet, and
/// [`Error::TryAgain`] for one that has no room in memory.
pub fn load_parquet(path: &Path) -> Result<DataFrame> {
    let file = crate::weights::open_regular(path)?;
    let mut reader = ParquetReader::new(file.try_clone().map_err(|e| Error::reading(path, e))?);
    let metadata = decoding(path, || Ok(reader.get_metadata().map_err(|e| Error::data(path, e.to_string()))?.clone()))?;
    pages::read_sizes(&file, path, &metadata, |_| true)?.check(path)?;
    decoding(path, || reader.finish().map_err(|e| Error::data(path, e.to_string())))
}

/// Runs a decoder of Parquet, which panics on some damaged files.
///
/// # Errors
/// Those of `work`, and [`Error::Data`] where it panics.
pub(crate) fn decoding<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::data(path, "not a Parquet file that can be read: it is damaged")))
}

/// Writes a frame as Parquet, whole or not at all.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`].
pub fn save_parquet(frame: &mut DataFrame, path: &Path) -> Result<()> {
    crate::disk::write_atomic(path, |file| writer(file).finish(frame).map(|_| ()).map_err(std::io::Error::other))
}

/// Activations do not compress (7 % with zstd), and nobody searches them by their range.
fn writer<W: std::io::Write>(file: W) -> ParquetWriter<W> {
    ParquetWriter::new(file).with_compression(ParquetCompression::Lz4Raw).with_statistics(StatisticsOptions::empty())
}

/// Writes frames of one schema as they come, as row groups of one Parquet file, whole or not at all.
///
/// `fill` gets a function that takes the next frame.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`], and whatever `fill` returns.
pub fn save_parquet_stream<T>(
    path: &Path,
    schema: &Schema,
    fill: impl FnOnce(&mut dyn FnMut(DataFrame) -> Result<()>) -> Result<T>,
) -> Result<T> {
    let failed = |e| Error::writing(path, std::io::Error::other(e));
    crate::disk::write_with(path, |file| {
        let mut batches = writer(file).batched(schema).map_err(failed)?;
        let value = fill(&mut |frame: DataFrame| batches.write_batch(&frame).map_err(failed))?;
        batches.finish().map_err(failed)?;
        Ok(value)
    })
}

//! Activation datasets are read back as they were written, in every layout, and only if they are what was written.

mod common;
#[path = "common/place.rs"]
mod place;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;

use common::gate;
use half::f16;
use interp::Error;
use interp::dataset::manifest::Manifest;
use interp::dataset::reader::Dataset;
use interp::shard::ShardReader;
use place::{Place, bits, read, u32s};
use polars::prelude::*;
use polars_arrow::array::{FixedSizeListArray, ListArray, PrimitiveArray};
use polars_arrow::io::ipc::read::{StreamReader, StreamState, read_stream_metadata};
use process::Interp;

const LINES: &str = r#"{"text": "Mary went to the shop", "kind": "place", "score": 1.3333333333333335, "n": 3, "good": true}
{"text": "The key near the doors is", "kind": "Schlüssel", "score": -0.0, "n": -4, "good": false}
"#;

/// A dataset of two documents with labels, below `name`.
fn labelled(place: &Place, name: &str, options: &str) -> Interp {
    std::fs::write(place.path("text.jsonl"), LINES).unwrap();
    let command = Interp::new().words("export --site resid_post.0,z.1 --label kind,score,n,good -q --file");
    command.arg(place.path("text.jsonl")).words("--out").arg(place.path(name)).words(options)
}

fn f32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// All rows of one site.
fn site_of(data: &Dataset, name: &str) -> interp::Result<ndarray::Array2<f32>> {
    Ok(data.read(&[name.to_string()])?.1.remove(0))
}

#[test]
fn a_dataset_reads_back_to_the_bit() {
    let place = Place::new(60);
    place.export("single", "--part-rows 90 -q").run().ok();
    place.export("half", "--part-rows 90 --store f16 -q").run().ok();
    let (single, half) = (Dataset::open(&place.path("single")).unwrap(), Dataset::open(&place.path("half")).unwrap());
    let wanted = read(&place.path("single"));
    assert!(single.manifest().parts.len() > 3, "several parts");
    let identity = single.read(&[]).unwrap().0;
    assert!(identity.equals(&half.read(&[]).unwrap().0));
    let names = ["prompt", "document", "pos", "token_id", "token"];
    assert_eq!(identity.get_column_names(), names);
    assert!(identity.equals(&wanted.select(names).unwrap()));
    for site in ["resid_post.0", "z.1"] {
        let (width, values) = bits(&wanted, site);
        let found = site_of(&single, site).unwrap();
        assert_eq!(found.dim(), (wanted.height(), width));
        assert!(found.iter().map(|x| x.to_bits()).eq(values.iter().copied()), "{site}");
        let rounded = values.iter().map(|x| f16::from_f32(f32::from_bits(*x)).to_f32());
        assert!(site_of(&half, site).unwrap().iter().copied().eq(rounded), "{site} in f16");
    }
    let refused = site_of(&single, "z.2").unwrap_err();
    assert!(
        matches!(&refused, Error::Request(_)) && refused.to_string().contains("it has resid_post.0, z.1"),
        "{refused}"
    );
}

#[test]
fn what_is_not_what_was_written_is_refused() {
    let place = Place::new(60);
    place.export("data", "--part-rows 100 -q").run().ok();
    let dir = place.path("data");
    let part = |i: usize| dir.join(format!("part-{i:05}.parquet"));
    let (first, second) = (std::fs::read(part(0)).unwrap(), std::fs::read(part(1)).unwrap());
    let refused = |wanted: &str| {
        let error = Dataset::open(&dir).and_then(|data| site_of(&data, "z.1").map(|_| ())).unwrap_err();
        assert!(matches!(error, Error::Data { .. }) && error.to_string().contains(wanted), "{error}");
    };
    let mut flipped = first.clone();
    flipped[first.len() / 2] ^= 1;
    for damaged in [&flipped, &first[..first.len() - 1].to_vec(), &second] {
        std::fs::write(part(0), damaged).unwrap();
        refused("part-00000.parquet: is not what was sealed");
    }
    std::fs::remove_file(part(0)).unwrap();
    refused("part-00000.parquet: is missing");
    std::fs::write(part(0), &first).unwrap();
    site_of(&Dataset::open(&dir).unwrap(), "z.1").unwrap();
    let sealed = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
    std::fs::write(dir.join("manifest.json"), sealed.replacen("part-00001.parquet", "../a.parquet", 1)).unwrap();
    refused("manifest.json has other parts than plan.json");
    std::fs::remove_file(dir.join("manifest.json")).unwrap();
    refused("there is no manifest.json");
}

/// Without a manifest, a shard's own checksums find a flipped bit.
#[test]
fn a_flipped_bit_is_found_in_the_page_that_has_it() {
    let place = Place::new(20);
    place.export("data", "-q").run().ok();
    let path = place.path("data").join("part-00000.parquet");
    let bytes = std::fs::read(&path).unwrap();
    let whole = ShardReader::parse(bytes.clone(), &path).unwrap();
    assert_eq!(whole.values("z.1").unwrap().len(), whole.rows() * 128);
    let at = bytes.len() / 2;
    let mut found = 0;
    for bit in 0..8 {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        let read = ShardReader::parse(flipped, &path).unwrap();
        let errors = ["resid_post.0", "z.1"].map(|site| read.values(site).err());
        found += usize::from(errors.iter().flatten().any(|e| e.to_string().contains("does not match its checksum")));
    }
    assert_eq!(found, 8);
    assert!(ShardReader::parse(bytes[..at].to_vec(), &path).is_err());
    assert!(ShardReader::parse(Vec::new(), &path).is_err());
}

/// An array of numpy: its type, its shape and its bytes.
fn npy(bytes: &[u8]) -> (String, String, &[u8]) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(start % 64, 0);
    let header = std::str::from_utf8(&bytes[10..start]).unwrap();
    let field = |name: &str, end: &str| {
        header.split(&format!("'{name}': ")).nth(1).unwrap().split(end).next().unwrap().trim_matches('\'').to_string()
    };
    (field("descr", ","), field("shape", ")") + ")", &bytes[start..])
}

#[test]
fn archives_of_numpy_hold_the_same() {
    let place = Place::new(1);
    labelled(&place, "parquet", "").run().ok();
    labelled(&place, "npz", "--layout npz").run().ok();
    labelled(&place, "half", "--layout npz --store f16 --shuffle").run().ok();
    let wanted = read(&place.path("parquet"));
    let file = std::fs::File::open(place.path("npz").join("part-00000.npz")).unwrap();
    let mut archive = ::zip::ZipArchive::new(file).unwrap();
    let mut arrays = HashMap::new();
    for name in archive.file_names().map(|name| name.unwrap().to_string()).collect::<Vec<_>>() {
        let mut bytes = Vec::new();
        archive.by_name(&name).unwrap().read_to_end(&mut bytes).unwrap();
        arrays.insert(name.trim_end_matches(".npy").to_string(), bytes);
    }
    let rows = wanted.height();
    assert_eq!(arrays.len(), wanted.width());
    for name in ["prompt", "document", "pos", "token_id"] {
        assert_eq!(npy(&arrays[name]), ("<u4".into(), format!("({rows},)"), &le(&u32s(&wanted, name))[..]), "{name}");
    }
    for site in ["resid_post.0", "z.1"] {
        assert_eq!(npy(&arrays[site]), ("<f4".into(), format!("({rows}, 128)"), &le(&bits(&wanted, site).1)[..]));
    }
    let (kind, _, letters) = npy(&arrays["kind"]);
    let texts: Vec<String> = f32s(letters)
        .chunks(kind[2..].parse().unwrap())
        .map(|text| text.iter().filter(|c| **c > 0).map(|c| char::from_u32(*c).unwrap()).collect())
        .collect();
    assert_eq!(texts, wanted.column("kind").unwrap().str().unwrap().iter().flatten().collect::<Vec<_>>());
    let (kind, _, scores) = npy(&arrays["score"]);
    let scores = scores.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()));
    let mut known = wanted.column("score").unwrap().f64().unwrap().iter().zip(scores);
    assert_eq!(kind, "<f8");
    assert!(known.all(|(want, found)| want.map(f64::to_bits) == Some(found.to_bits())));
    assert_eq!(npy(&arrays["good"]).0, "|b1");
    Interp::new().words("export verify").arg(place.path("half")).run().ok();
}

fn le(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn safetensors_hold_the_same() {
    let place = Place::new(1);
    labelled(&place, "parquet", "").run().ok();
    labelled(&place, "tensors", "--layout safetensors").run().ok();
    labelled(&place, "again", "--layout safetensors").run().ok();
    let wanted = read(&place.path("parquet"));
    let bytes = std::fs::read(place.path("tensors").join("part-00000.safetensors")).unwrap();
    assert!(bytes == std::fs::read(place.path("again").join("part-00000.safetensors")).unwrap());
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["interp_plan"], Manifest::open(&place.path("tensors")).unwrap().unwrap().plan);
    for site in ["resid_post.0", "z.1"] {
        let tensor = tensors.tensor(site).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[wanted.height(), 128][..]));
        assert_eq!(f32s(tensor.data()), bits(&wanted, site).1);
    }
    assert_eq!(f32s(tensors.tensor("token_id").unwrap().data()), u32s(&wanted, "token_id"));
    let texts: Vec<String> = serde_json::from_str(&metadata["kind"]).unwrap();
    let codes =
        tensors.tensor("kind").unwrap().data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
    let kinds: Vec<&str> = codes.map(|code| texts[code as usize].as_str()).collect();
    assert_eq!(kinds, wanted.column("kind").unwrap().str().unwrap().iter().flatten().collect::<Vec<_>>());
    assert!(tensors.tensor("token").is_err(), "tokens are numbers there");
}

/// The matrices and the token ids of one Arrow stream.
fn sequences(path: &Path) -> (Vec<Vec<f32>>, Vec<Vec<i32>>) {
    let mut file = Cursor::new(std::fs::read(path).unwrap());
    let metadata = read_stream_metadata(&mut file).unwrap();
    let kind = metadata.schema.get("blocks.2.hook_resid_post").unwrap();
    let ArrowDataType::Extension(extension) = kind.dtype() else { panic!("{kind:?}") };
    assert_eq!(extension.name.as_str(), "datasets.features.features.Array2DExtensionType");
    assert_eq!(extension.metadata.as_deref(), Some("[[8,128],\"float32\"]"));
    let (mut matrices, mut ids) = (Vec::new(), Vec::new());
    for batch in StreamReader::new(file, metadata, None) {
        let StreamState::Some(batch) = batch.unwrap() else { break };
        let lists = batch.arrays()[0].as_any().downcast_ref::<ListArray<i32>>().unwrap();
        for matrix in lists.values_iter() {
            let rows = matrix.as_any().downcast_ref::<ListArray<i32>>().unwrap().clone();
            assert!(rows.offsets().lengths().all(|width| width == 128) && rows.len() == 8);
            let values = rows.values_iter().flat_map(|row| {
                row.as_any().downcast_ref::<PrimitiveArray<f32>>().unwrap().values_iter().copied().collect::<Vec<_>>()
            });
            matrices.push(values.collect());
        }
        let lists = batch.arrays()[1].as_any().downcast_ref::<FixedSizeListArray>().unwrap();
        for row in lists.values_iter() {
            ids.push(row.as_any().downcast_ref::<PrimitiveArray<i32>>().unwrap().values_iter().copied().collect());
        }
    }
    (matrices, ids)
}

#[test]
fn whole_sequences_for_saelens() {
    let place = Place::new(40);
    let export = |out: &str, options: &str| {
        let command = Interp::new().words("export --site resid_post.2 --pack --context 8 -q --file");
        command.arg(place.path("text.txt")).words("--out").arg(place.path(out)).words(options)
    };
    export("parquet", "").run().ok();
    export("sequences", "--layout saelens --part-rows 100").run().ok();
    let wanted = read(&place.path("parquet"));
    let sealed = Manifest::open(&place.path("sequences")).unwrap().unwrap();
    let (mut matrices, mut ids) = (Vec::new(), Vec::new());
    for part in &sealed.parts {
        let (more, more_ids) = sequences(&place.path("sequences").join(&part.file));
        matrices.extend(more);
        ids.extend(more_ids);
    }
    assert!(sealed.parts.len() > 2 && sealed.rows as usize / 8 == matrices.len());
    assert!(wanted.height() - matrices.len() * 8 < 8, "all but what does not fill a sequence");
    let found: Vec<u32> = matrices.concat().iter().map(|x| x.to_bits()).collect();
    let values = bits(&wanted, "resid_post.2").1;
    // The last batch of the other export has a sequence more, and may round otherwise.
    let numbers = |bits: &[u32]| bits.iter().map(|x| f64::from(f32::from_bits(*x))).collect::<Vec<f64>>();
    gate::assert_agree("sequences", &numbers(&found), &numbers(&values[..found.len()]), gate::F32);
    let tokens: Vec<u32> = ids.concat().iter().map(|id| *id as u32).collect();
    assert_eq!(tokens, u32s(&wanted, "token_id")[..tokens.len()]);
    let file = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(place.path("sequences").join(name)).unwrap()).unwrap()
    };
    assert_eq!(file("state.json")["_data_files"].as_array().unwrap().len(), sealed.parts.len());
    assert_eq!(file("dataset_info.json")["features"]["blocks.2.hook_resid_post"]["shape"], serde_json::json!([8, 128]));
    let refused = Dataset::open(&place.path("sequences")).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("its parts are arrow files"), "{refused}");
    // As many whole sequences as so many rows are.
    export("some", "--layout saelens --max-tokens 20").run().ok();
    assert_eq!(Manifest::open(&place.path("some")).unwrap().unwrap().rows, 16);
    for (options, wanted) in [
        ("--layout saelens --sample 3", "whole sequences: leave out"),
        ("--layout saelens --stride 4", "whole sequences: leave out"),
        ("--layout saelens --skip-first-token", "whole sequences: leave out"),
        ("--layout saelens --store f16", "leave out --store f16"),
        ("--layout saelens --site z.0", "2 sites; SAELens reads one"),
        ("--layout npy", "there are parquet, npz, safetensors, saelens"),
    ] {
        export("no", options).run().refused(2, wanted);
    }
}

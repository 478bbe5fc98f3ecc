//! Labels are kept exactly in every layout, or refused before any work; every row says which document it is from.

#[path = "common/place.rs"]
mod place;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use interp::Error;
use interp::dataset::documents;
use place::{Place, read, u32s};
use polars::prelude::*;
use process::Interp;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/labels")
}

/// What the fixtures' columns hold, or how they are refused: file, column, entry.
fn wanted() -> Vec<(String, String, Value)> {
    let text = std::fs::read(fixtures().join("wanted.json")).unwrap();
    let files: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
    let columns = |(file, columns): (String, Value)| {
        let columns: Vec<_> = columns.as_object().unwrap().clone().into_iter().collect();
        columns.into_iter().map(move |(name, entry)| (file.clone(), name, entry))
    };
    files.into_iter().flat_map(columns).collect()
}

/// A value as `wanted.json` has it.
fn plain(value: AnyValue<'_>) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => b.into(),
        AnyValue::String(text) => text.into(),
        AnyValue::StringOwned(text) => text.as_str().into(),
        AnyValue::Float32(x) => json!({ "f": format!("{:016x}", f64::from(x).to_bits()) }),
        AnyValue::Float64(x) => json!({ "f": format!("{:016x}", x.to_bits()) }),
        other => json!({ "i": other.extract::<i128>().unwrap().to_string() }),
    }
}

/// The same value; a NaN is a NaN, whatever its bits.
fn same(found: &Value, wanted: &Value) -> bool {
    let is_nan = |value: &Value| {
        let bits = value["f"].as_str().and_then(|bits| u64::from_str_radix(bits, 16).ok());
        bits.is_some_and(|bits| f64::from_bits(bits).is_nan())
    };
    found == wanted || (is_nan(found) && is_nan(wanted))
}

#[test]
fn every_type_of_parquet_is_kept_or_refused() {
    let all = wanted();
    let count = |kept: &str| all.iter().filter(|(_, _, entry)| entry.get(kept).is_some()).count();
    assert!(count("values") > 50 && count("refused") > 50, "the fixtures hold every type");
    for (file, name, entry) in &all {
        let path = fixtures().join(format!("{file}.parquet"));
        let names = [name.clone()];
        let found =
            documents::open(&path, "text", &names).and_then(|documents| documents::read_labels(documents, &names));
        match (found, entry["refused"].as_str()) {
            (Ok(frame), None) => {
                let column = frame.column(name).unwrap();
                for (i, wanted) in entry["values"].as_array().unwrap().iter().enumerate() {
                    let found = plain(column.get(i).unwrap());
                    assert!(same(&found, wanted), "{file} {name} {i}: {found} instead of {wanted}");
                }
            }
            (Err(refused), Some(words)) => {
                let said = refused.to_string();
                assert!(matches!(refused, Error::Data { .. }) && said.lines().count() == 1, "{file} {name}: {said}");
                assert!(said.contains(&format!("`{name}`")) && said.contains(words), "{file} {name}: {said}");
            }
            (found, wanted) => panic!("{file} {name}: {:?} instead of {wanted:?}", found.map(|_| "kept")),
        }
    }
}

/// Export of one file with these labels.
fn export(place: &Place, file: &Path, names: &[String], layout: &str, out: &str) -> Interp {
    let command = Interp::new().words("export --site z.0 --context 8 --part-rows 9 -q --layout").arg(layout);
    let command = command.words("--label").arg(names.join(",")).words("--file").arg(file);
    command.words("--out").arg(place.path(out))
}

/// The columns of a file that are kept, with the values of each document; without those that have gaps if `whole`.
fn kept(file: &str, whole: bool) -> Vec<(String, Vec<Value>)> {
    let own = wanted().into_iter().filter(|(own, _, entry)| own == file && entry.get("values").is_some());
    let columns = own.map(|(_, name, entry)| (name, entry["values"].as_array().unwrap().clone()));
    columns.filter(|(_, values)| !whole || values.iter().all(|value| !value.is_null())).collect()
}

/// The identity of the rows of a part, by name, out of any layout.
fn identity(dir: &Path, layout: &str) -> Vec<HashMap<String, Vec<Value>>> {
    let manifest = interp::dataset::manifest::Manifest::open(dir).unwrap().unwrap();
    assert!(manifest.parts.len() > 1, "several parts");
    let one = |file: &String| {
        let path = dir.join(file);
        match layout {
            "parquet" => {
                let frame = ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap();
                let column = |column: &Column| (0..column.len()).map(|i| plain(column.get(i).unwrap())).collect();
                frame
                    .columns()
                    .iter()
                    .filter(|c| !c.dtype().is_array())
                    .map(|c| (c.name().to_string(), column(c)))
                    .collect()
            }
            "npz" => npz(&path),
            _ => tensors(&path),
        }
    };
    manifest.parts.iter().map(|part| one(&part.file)).collect()
}

fn numbers(kind: &str, bytes: &[u8]) -> Option<Vec<Value>> {
    fn of<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> Value) -> Option<Vec<Value>> {
        Some(bytes.chunks_exact(N).map(|b| value(b.try_into().unwrap())).collect())
    }
    let whole = |n: i128| json!({ "i": n.to_string() });
    let real = |x: f64| json!({ "f": format!("{:016x}", x.to_bits()) });
    match kind {
        "<i4" | "I32" => of(bytes, |b| whole(i32::from_le_bytes(b).into())),
        "<u4" | "U32" => of(bytes, |b| whole(u32::from_le_bytes(b).into())),
        "<i8" | "I64" => of(bytes, |b| whole(i64::from_le_bytes(b).into())),
        "<u8" | "U64" => of(bytes, |b| whole(u64::from_le_bytes(b).into())),
        "<f4" | "F32" => of(bytes, |b| real(f32::from_le_bytes(b).into())),
        "<f8" | "F64" => of(bytes, |b| real(f64::from_le_bytes(b))),
        "|b1" | "BOOL" => of(bytes, |[b]| (b == 1).into()),
        _ => None,
    }
}

/// The arrays of one dimension of an archive of numpy.
fn npz(path: &Path) -> HashMap<String, Vec<Value>> {
    let mut archive = ::zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let names: Vec<String> = archive.file_names().map(|name| name.unwrap().to_string()).collect();
    let mut arrays = HashMap::new();
    for name in names {
        let mut bytes = Vec::new();
        archive.by_name(&name).unwrap().read_to_end(&mut bytes).unwrap();
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        let header = std::str::from_utf8(&bytes[10..start]).unwrap().to_string();
        let kind = header.split("'descr': '").nth(1).unwrap().split('\'').next().unwrap();
        if !header.contains(",), }") {
            continue; // a matrix
        }
        let letters = |width: &str| {
            let text = |letters: &[u8]| {
                let letters = letters.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
                let text: String = letters.map(|c| char::from_u32(c).unwrap()).collect();
                Value::from(text.trim_end_matches('\0'))
            };
            bytes[start..].chunks_exact(4 * width.parse::<usize>().unwrap()).map(text).collect()
        };
        let values = match kind.strip_prefix("<U") {
            Some(width) => letters(width),
            None => numbers(kind, &bytes[start..]).unwrap_or_else(|| panic!("{name} is {kind}")),
        };
        arrays.insert(name.trim_end_matches(".npy").to_string(), values);
    }
    arrays
}

/// The tensors of one dimension of a file of safetensors; texts are looked up.
fn tensors(path: &Path) -> HashMap<String, Vec<Value>> {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut arrays = HashMap::new();
    for (name, tensor) in tensors.tensors().into_iter().filter(|(_, tensor)| tensor.shape().len() == 1) {
        let mut values = numbers(&format!("{:?}", tensor.dtype()), tensor.data()).unwrap();
        if let Some(texts) = metadata.get(&name) {
            let texts: Vec<Value> = serde_json::from_str(texts).unwrap();
            let text = |code: &Value| texts[code["i"].as_str().unwrap().parse::<usize>().unwrap()].clone();
            values = values.iter().map(text).collect();
        }
        arrays.insert(name, values);
    }
    arrays
}

#[test]
fn every_layout_has_the_labels_that_were_there() {
    for (file, layouts) in [("arrow", &["parquet", "npz", "safetensors"][..]), ("pandas", &["parquet", "npz"])] {
        for layout in layouts {
            let place = Place::new(0);
            let columns = kept(file, *layout != "parquet");
            let names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
            export(&place, &fixtures().join(format!("{file}.parquet")), &names, layout, "data").run().ok();
            let mut documents = Vec::new();
            for part in identity(&place.path("data"), layout) {
                for (row, document) in part["document"].iter().enumerate() {
                    let document: usize = document["i"].as_str().unwrap().parse().unwrap();
                    documents.push(document);
                    for (name, values) in &columns {
                        let (found, wanted) = (&part[name][row], &values[document]);
                        assert!(same(found, wanted), "{layout} {file} {name} {document}: {found} instead of {wanted}");
                    }
                }
            }
            documents.dedup();
            assert_eq!(documents, [0, 1, 2, 3], "rows of every document");
        }
    }
}

#[test]
fn what_a_layout_cannot_keep_is_refused_before_any_work() {
    let place = Place::new(0);
    let arrow = fixtures().join("arrow.parquet");
    let name = |names: &str| names.split(',').map(str::to_string).collect::<Vec<_>>();
    let json = |text: &str| {
        let path = place.path("text.jsonl");
        std::fs::write(&path, text).unwrap();
        path
    };
    let refused = |file: &Path, names: &str, layout: &str, code: i32, wanted: &str| {
        export(&place, file, &name(names), layout, "data").run().refused(code, wanted);
        assert!(!place.path("data").exists(), "{names} in {layout} left something behind");
    };
    for (column, kind, missing) in [
        ("missing_int64", "i64", 2),
        ("missing_float64", "f64", 1),
        ("missing_bool", "bool", 2),
        ("missing_string", "str", 2),
        ("missing_dictionary", "str", 2),
    ] {
        let why = format!("and missing in {missing} of 4 documents, which arrays cannot say");
        let wanted = format!("label `{column}`: is {kind} {why}");
        for layout in ["npz", "safetensors"] {
            refused(&arrow, column, layout, 65, &wanted);
        }
    }
    for layout in ["parquet", "npz", "safetensors"] {
        refused(&arrow, "binary", layout, 65, "column `binary` is binary: labels are");
        refused(&arrow, "int8,decimal128", layout, 65, "column `decimal128` is decimal(10, 2)");
        refused(&arrow, "int8,int8", layout, 2, "--label int8 is given twice");
        refused(&arrow, "pos", layout, 2, "--label pos is the name of a column of every dataset");
        refused(&arrow, "nothing", layout, 65, "there is no column `nothing`");
        let site = json(r#"{"text": "Mary", "z.0": "a", "blocks.0.attn.hook_z": "b"}"#);
        refused(&site, "z.0", layout, 2, "--label z.0 is the name of a site of this dataset");
        refused(&site, "blocks.0.attn.hook_z", layout, 2, "is the name of a site of this dataset");
    }
    let odd =
        json(r#"{"text": "Mary", "../x": "a", "x.npy": 1, "__metadata__": "a", "interp_plan": "a", "nul": "a\u0000"}"#);
    refused(&odd, "../x", "npz", 2, "--label ../x cannot be the name of a file in an archive");
    refused(&odd, "x.npy", "npz", 2, "`.npy` at its end");
    refused(&odd, "__metadata__", "safetensors", 2, "is an entry of every file of safetensors");
    refused(&odd, "interp_plan", "safetensors", 2, "is an entry of every file of safetensors");
    refused(&odd, "nul", "npz", 65, "label `nul`: is text that ends in a character of code 0 in document 0");
    export(&place, &odd, &name("../x,x.npy,interp_plan,nul"), "parquet", "kept").run().ok();
    assert_eq!(read(&place.path("kept")).column("nul").unwrap().str().unwrap().get(0), Some("a\0"));
}

#[test]
fn labels_in_json_are_exact_or_refused() {
    let place = Place::new(0);
    let two = |a: &str, b: &str| format!("{{\"text\": \"Mary\", {a}}}\n\n{{\"text\": \"John\", {b}}}\n");
    for (i, (text, code, wanted)) in [
        (two(r#""x": 9007199254740993"#, r#""x": 0.5"#), 65, "whole number 9007199254740993 in document 0"),
        (two(r#""x": 18446744073709551616"#, r#""x": 1"#), 65, "line 1: label `x` is 18446744073709551616, which"),
        (
            two(r#""x": -1"#, r#""x": 18446744073709551615"#),
            65,
            "is -1 in document 0 and 18446744073709551615 in document 1",
        ),
        (two(r#""x": 1"#, r#""y": 1"#), 65, "line 3: there is no field `x`"),
        (two(r#""x": 1"#, r#""x": [1]"#), 65, "line 3: label `x` is a list"),
        (two(r#""x": {"a": 1}"#, r#""x": 1"#), 65, "line 1: label `x` is an object"),
        (two(r#""x": 1, "x": 2"#, r#""x": 1"#), 65, "line 1: the field `x` is there 2 times"),
        (two(r#""x": "1""#, r#""x": 1"#), 65, "is text in document 0 and a whole number in document 1"),
        (two(r#""x": true"#, r#""x": 1"#), 65, "is a truth value in document 0 and a whole number in document 1"),
        (two(r#""x": null"#, r#""x": null"#), 65, "is null in every document"),
        (two(r#""x": 1e400"#, r#""x": 1"#), 65, "line 1: "),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(place.path("text.jsonl"), &text).unwrap();
        let out = format!("refused{i}");
        export(&place, &place.path("text.jsonl"), &["x".into()], "parquet", &out).run().refused(code, wanted);
        assert!(!place.path(&out).exists(), "{text}");
    }
    let text = two(
        r#""ids": 9007199254740993, "big": 18446744073709551615, "mixed": 9007199254740992, "gap": null, "text": "again", "e": 1.0"#,
        r#""ids": -9223372036854775808, "big": 0, "mixed": 0.5, "gap": 1, "e": -0"#,
    )
    .replace("\"text\": \"Mary\", ", "");
    std::fs::write(place.path("text.jsonl"), text).unwrap();
    let names = ["ids", "big", "mixed", "gap", "text", "e"].map(str::to_string);
    export(&place, &place.path("text.jsonl"), &names, "parquet", "data").run().ok();
    let rows = read(&place.path("data"));
    let last = rows.height() - 1;
    for (name, kind, wanted) in [
        ("ids", DataType::Int64, [json!({ "i": "9007199254740993" }), json!({ "i": "-9223372036854775808" })]),
        ("big", DataType::UInt64, [json!({ "i": "18446744073709551615" }), json!({ "i": "0" })]),
        ("mixed", DataType::Float64, [json!({ "f": "4340000000000000" }), json!({ "f": "3fe0000000000000" })]),
        ("gap", DataType::Int64, [Value::Null, json!({ "i": "1" })]),
        ("text", DataType::String, [json!("again"), json!("John")]),
        ("e", DataType::Float64, [json!({ "f": "3ff0000000000000" }), json!({ "f": "0000000000000000" })]),
    ] {
        let column = rows.column(name).unwrap();
        assert_eq!(column.dtype(), &kind, "{name}");
        assert_eq!([plain(column.get(0).unwrap()), plain(column.get(last).unwrap())], wanted, "{name}");
    }
}

/// Whatever files the documents come from, a column has one type, or none.
#[test]
fn files_of_one_dataset_agree_on_their_labels() {
    let place = Place::new(0);
    let file = |name: &str, text: &str| std::fs::write(place.path(name), text).unwrap();
    file("a.jsonl", r#"{"text": "Mary", "n": 1}"#);
    file("b.jsonl", r#"{"text": "John", "n": 9223372036854775808}"#);
    file("c.jsonl", r#"{"text": "shop", "n": "x"}"#);
    let both = |other: &str, out: &str| {
        let command = export(&place, &place.path("a.jsonl"), &["n".into()], "parquet", out);
        command.words("--file").arg(place.path(other)).run()
    };
    both("b.jsonl", "ab").ok();
    assert_eq!(read(&place.path("ab")).column("n").unwrap().dtype(), &DataType::UInt64);
    both("c.jsonl", "ac").refused(65, "is a whole number in document 0 and text in document 1");
}

/// Rows of packed sequences say which document they are from, also where one begins in the middle of a sequence.
#[test]
fn packed_rows_are_of_their_own_documents() {
    let place = Place::new(0);
    let texts = ["Mary went to the shop", "John", "The key near the doors is here", "and", "Mary and John went"];
    std::fs::write(place.path("text.txt"), texts.join("\n")).unwrap();
    for (i, options) in
        ["", "--bos no", "--stride 3", "--shuffle --seed 3", "--skip-first-token", "--sample 3"].iter().enumerate()
    {
        let out = format!("data{i}");
        let command = Interp::new().words("export --site z.0 --pack --context 8 --part-rows 9 -q").words(options);
        command.words("--file").arg(place.path("text.txt")).words("--out").arg(place.path(&out)).run().ok();
        let rows = read(&place.path(&out));
        let (prompts, positions) = (u32s(&rows, "prompt"), u32s(&rows, "pos"));
        let mut order: Vec<usize> = (0..rows.height()).collect();
        order.sort_by_key(|i| (prompts[*i], positions[*i]));
        let (documents, ids) = (u32s(&rows, "document"), u32s(&rows, "token_id"));
        let tokens = rows.column("token").unwrap();
        let end = interp::embedded::tokenizer().unwrap().end_of_text().unwrap();
        let mut own: Vec<String> = vec![String::new(); texts.len()];
        for i in order {
            if ids[i] != end {
                own[documents[i] as usize] += tokens.str().unwrap().get(i).unwrap();
            }
        }
        // With everything there, the tokens of a document are its text.
        if i < 4 {
            assert_eq!(own, texts, "{options}");
        } else {
            let found =
                own.iter().zip(texts).filter(|(own, text)| !own.is_empty() && own.chars().all(|c| text.contains(c)));
            assert!(found.count() >= 3, "{options}: {own:?}");
        }
    }
}

//! Activation datasets: the right values, on the texts and positions that were asked for.

mod common;
#[path = "common/place.rs"]
mod place;
#[path = "common/process.rs"]
mod process;

use std::path::Path;

use candle_core::{DType, Tensor};
use common::{gate, small_config, weights};
use half::f16;
use interp::dataset::documents::given;
use interp::dataset::plan::{Dtype, Request};
use interp::dataset::sequences::Cut;
use interp::export::{Export, Piece};
use interp::shard::Layout;
use interp::{Gpt2, Tokenizer};
use place::{Place, bits, manifest, read, sentences, u32s};
use polars::prelude::*;
use process::Interp;

#[test]
fn values_are_those_of_capture_to_the_bit() {
    values_are_captured(&Place::new(12));
}

/// A batch is only divided where that changes no bit.
#[test]
fn values_of_a_divided_batch_are_those_of_capture_to_the_bit() {
    let place = Place::new(0);
    let line = "Mary and John went to the shop and John gave a key to Mary";
    let first = format!("{line} {line} {line}\n");
    let other = format!("{line}\n");
    std::fs::write(place.path("text.txt"), first + &other.repeat(90)).unwrap();
    values_are_captured(&place);
    std::fs::write(place.path("text.txt"), other.repeat(91)).unwrap();
    std::fs::remove_dir_all(place.path("data")).unwrap();
    std::fs::remove_dir_all(place.path("captured")).unwrap();
    values_are_captured(&place);
}

fn values_are_captured(place: &Place) {
    let sites = "embed,resid_pre.0,resid_pre.3,q.2,z.5,mlp_post.4,resid_post.5,ln_final_normalized";
    let export = Interp::new().words("export --site").arg(sites).words("--file").arg(place.path("text.txt"));
    export.words("--out").arg(place.path("data")).run().ok();
    let capture = Interp::new().words("capture --wide --site").arg(sites).words("--file").arg(place.path("text.txt"));
    capture.words("--out").arg(place.path("captured")).run().ok();
    let file = std::fs::File::open(place.path("captured").join("frame.parquet")).unwrap();
    let captured = ParquetReader::new(file).finish().unwrap();
    let exported = read(&place.path("data"));
    for name in ["prompt", "pos", "token_id"] {
        assert_eq!(u32s(&exported, name), u32s(&captured, name), "{name}");
    }
    assert_eq!(exported.column("token").unwrap(), captured.column("token").unwrap());
    for site in sites.split(',') {
        assert!(bits(&exported, site) == bits(&captured, site), "{site}");
    }
}

#[test]
fn nothing_behind_the_last_site_is_computed() {
    let config = small_config();
    let mut weights = weights(&config, DType::F32);
    for name in ["h.1.attn.c_attn.weight", "h.2.mlp.c_fc.weight", "ln_f.weight"] {
        let broken = weights[name].zeros_like().unwrap();
        let broken = (broken + f64::NAN).unwrap();
        weights.insert(name.into(), broken);
    }
    let model = Gpt2::new(config, |name| Ok(weights[name].clone())).unwrap();
    let export = |site: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut work = open(&model, dir.path(), &request(&[site])).unwrap();
        work.run(Piece { index: 0, of: 1 }, &mut |_| Ok(()), &|| true)
    };
    assert!(export("resid_post.0").unwrap() && export("resid_pre.1").unwrap() && export("embed").unwrap());
    assert!(export("resid_mid.1").unwrap_err().to_string().contains("NaN"), "layer 1 is broken");
}

fn request(sites: &[&str]) -> Request {
    Request {
        weights: Vec::new(),
        tokenizer: None,
        text: Vec::new(),
        field: "text".into(),
        sites: sites.iter().map(|site| site.to_string()).collect(),
        layout: Layout::Parquet,
        dtype: Dtype::F32,
        computed: "f32 on cpu".into(),
        cut: Cut::windows(8),
        labels: Vec::new(),
        covariance: true,
        part_rows: 9,
        batch_tokens: 64,
        threads: 2,
        version: "test".into(),
    }
}

fn open<'a>(model: &'a Gpt2, dir: &Path, request: &Request) -> interp::Result<Export<'a>> {
    let tokenizer = Tokenizer::from_characters(&"abcdefghijk".chars().collect::<Vec<_>>()).unwrap();
    let tokenizer: &'a Tokenizer = Box::leak(Box::new(tokenizer)); // lives as long as the test
    let texts = ["abcdefgh", "jihgfedcba", "cab", "eight", "k"];
    let known = |text: &&str| text.chars().filter(|c| "abcdefghijk".contains(*c)).collect::<String>();
    Export::open(model, tokenizer, dir, request, || Ok(given(texts.iter().map(known).collect())))
}

#[test]
fn statistics_are_those_of_all_rows() {
    let model = common::small_model(DType::F32);
    let dir = tempfile::tempdir().unwrap();
    let request = request(&["resid_post.1", "mlp_post.0"]);
    let mut work = open(&model, dir.path(), &request).unwrap();
    assert!(work.run(Piece { index: 0, of: 1 }, &mut |_| Ok(()), &|| true).unwrap());
    let manifest = work.seal().unwrap();
    assert!(manifest.parts.len() > 2, "statistics of several parts are put together");
    let rows = read(dir.path());
    for site in &request.sites {
        let (width, bits) = bits(&rows, site);
        let values: Vec<f64> = bits.into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect();
        let table = Tensor::from_vec(values.clone(), (values.len() / width, width), &common::device()).unwrap();
        let found = &manifest.statistics[site];
        assert_eq!((found.count, found.not_finite), ((values.len() / width) as u64, 0));
        let near = |found: &[f64], wanted: Tensor| {
            let wanted: Vec<f64> = wanted.flatten_all().unwrap().to_vec1().unwrap();
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9 * (1.0 + b.abs()))
        };
        let mean = table.mean_keepdim(0).unwrap();
        let apart = table.broadcast_sub(&mean).unwrap();
        let covariance = (apart.t().unwrap().matmul(&apart).unwrap() / found.count as f64).unwrap();
        assert!(near(&found.mean, mean) && near(&found.covariance(), covariance), "{site}");
        let norms = table.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        assert!(near(&[found.mean_norm], norms.mean_all().unwrap()), "{site}");
    }
}

#[test]
fn another_request_is_not_mixed_in() {
    let place = Place::new(20);
    place.export("data", "-q").run().ok();
    for (options, wanted) in [
        ("--seed 7", "cut.seed was 0 and is 7"),
        ("--store f16", "dtype was \"f32\" and is \"f16\""),
        ("--skip-first-token", "cut.skip_first was false and is true"),
    ] {
        let outcome = place.export("data", options).run();
        assert_eq!(outcome.code, Some(65), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(wanted) && outcome.stderr.contains("name another --out"), "{}", outcome.stderr);
    }
    let tiny = common::tiny();
    let other = Gpt2::new(tiny.config().clone(), |name| {
        let tensor = tiny.tensors().into_iter().find(|(own, _)| own == name).unwrap().1.clone();
        Ok(if name == "ln_f.bias" { (tensor + 1e-3)? } else { tensor })
    });
    std::fs::create_dir(place.path("model")).unwrap();
    let tokenizer = interp::embedded::tokenizer().unwrap();
    interp::weights::write_model(&place.path("model"), &other.unwrap(), Some(&tokenizer)).unwrap();
    let outcome = place.export("data", "--model").arg(place.path("model")).run();
    assert!(outcome.code == Some(65) && outcome.stderr.contains("weights was"), "{}", outcome.stderr);
    std::fs::write(place.path("text.txt"), sentences(21)).unwrap();
    let outcome = place.export("data", "").run();
    assert!(outcome.code == Some(65) && outcome.stderr.contains("text was"), "{}", outcome.stderr);
    std::fs::write(place.path("text.txt"), sentences(20)).unwrap();
    place.export("data", "-q").run().ok();
}

#[test]
fn texts_come_with_labels_from_jsonl_and_parquet() {
    let place = Place::new(1);
    let lines = [
        r#"{"body": "Mary went to the shop", "kind": "place", "score": 1, "good": true}"#,
        "",
        r#"{"body": "The key is", "kind": "key", "score": 2.5, "good": false}"#,
        r#"{"body": "John and", "kind": null, "score": 3, "good": true}"#,
    ];
    std::fs::write(place.path("text.jsonl"), lines.join("\n")).unwrap();
    let mut frame = df!(
        "body" => ["Mary went to the shop", "The key is", "John and"],
        "kind" => [Some("place"), Some("key"), None], "score" => [1.0, 2.5, 3.0], "good" => [true, false, true],
    )
    .unwrap();
    ParquetWriter::new(std::fs::File::create(place.path("text.parquet")).unwrap()).finish(&mut frame).unwrap();
    let export = |file: &str, out: &str| {
        let command = Interp::new().words("export --site z.0 --field body --label kind,score,good --file");
        command.arg(place.path(file)).words("--out").arg(place.path(out)).run()
    };
    export("text.jsonl", "a").ok();
    export("text.parquet", "b").ok();
    let (a, b) = (read(&place.path("a")), read(&place.path("b")));
    for name in ["kind", "score", "good"] {
        assert!(a.column(name).unwrap().equals_missing(b.column(name).unwrap()), "{name}");
    }
    let document = u32s(&a, "document");
    for (i, &document) in document.iter().enumerate() {
        assert_eq!(a.column("score").unwrap().f64().unwrap().get(i), Some([1.0, 2.5, 3.0][document as usize]));
    }
    assert!(a.column("kind").unwrap().null_count() > 0);
    std::fs::write(place.path("bad.jsonl"), "{\"body\": \"x\"}\n").unwrap();
    export("bad.jsonl", "c").refused(65, "line 1: there is no field `kind`");
}

#[test]
fn tokens_are_packed_sampled_limited_and_rounded() {
    let place = Place::new(40);
    let ids: Vec<u16> = (0..1000).map(|i| (i * 7 % 500) as u16).collect();
    std::fs::write(place.path("train.bin"), ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let export = |options: &str, out: &str| {
        let command =
            Interp::new().words("export --site resid_post.2 --context 32 --file").arg(place.path("train.bin"));
        command.words("--out").arg(place.path(out)).words(options).run()
    };
    export("", "no").refused(2, "--pack cuts it into sequences");
    export("--pack --bos no", "all").ok();
    let all = read(&place.path("all"));
    let found: Vec<u32> = u32s(&all, "token_id");
    assert_eq!(found, ids.iter().map(|id| u32::from(*id)).collect::<Vec<_>>(), "every token once, in order");
    export("--pack --bos no --max-tokens 100", "some").ok();
    assert_eq!(u32s(&read(&place.path("some")), "token_id"), found[..100]);
    export("--pack --skip-first-token --sample 5 --seed 4", "sampled").ok();
    let sampled = read(&place.path("sampled"));
    assert!(sampled.height() < 200 && u32s(&sampled, "pos").iter().all(|pos| *pos > 0));
    export("--pack --bos no --store f16", "half").ok();
    let wanted: Vec<u8> = bits(&all, "resid_post.2")
        .1
        .into_iter()
        .flat_map(|x| f16::from_f32(f32::from_bits(x)).to_bits().to_le_bytes())
        .collect();
    // polars reads no f16 in this build; `check_shards.py` reads it with five other readers.
    let file = std::fs::read(place.path("half").join("part-00000.parquet")).unwrap();
    let at = file.windows(64).position(|window| window == &wanted[..64]).expect("the first values");
    assert!(file[at..at + wanted.len()] == wanted, "values as they lie in memory, rounded");
}

#[test]
fn a_shuffle_is_the_same_rows_in_another_order() {
    let place = Place::new(80);
    place.export("plain", "--part-rows 150 -q").run().ok();
    place.export("mixed", "--part-rows 150 --shuffle --seed 5 -q").run().ok();
    place.export("again", "--part-rows 150 --shuffle --seed 5 -q").run().ok();
    assert_eq!(manifest(&place.path("mixed")), manifest(&place.path("again")));
    let (plain, mixed) = (read(&place.path("plain")), read(&place.path("mixed")));
    assert_ne!(u32s(&plain, "prompt"), u32s(&mixed, "prompt"));
    let sorted = mixed.sort(["prompt", "pos"], SortMultipleOptions::default()).unwrap();
    for name in ["prompt", "pos", "token_id", "document"] {
        assert_eq!(u32s(&plain, name), u32s(&sorted, name), "{name}");
    }
    // Other batches may round otherwise in the last bit.
    let (a, b) = (bits(&plain, "resid_post.0").1, bits(&sorted, "resid_post.0").1);
    let numbers = |bits: Vec<u32>| bits.into_iter().map(|x| f64::from(f32::from_bits(x))).collect::<Vec<f64>>();
    gate::assert_agree("shuffled", &numbers(b), &numbers(a), gate::F32);
}

#[test]
fn wrong_requests_say_what_to_do() {
    let place = Place::new(3);
    std::fs::create_dir(place.path("other")).unwrap();
    std::fs::write(place.path("other").join("thesis.tex"), "x").unwrap();
    std::fs::write(place.path("file"), "x").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(place.path("other"), place.path("link")).unwrap();
    let plain = |words: &str| Interp::new().words("export --prompt Mary").words(words);
    for (command, code, wanted) in [
        (plain(""), 2, "say what to export with --site or --every-layer"),
        (plain("--site pattern.0"), 2, "`pattern.0` has no vector per position"),
        (plain("--site logits"), 2, "logits are no activations"),
        (plain("--site resid_post.9"), 2, "layer 9 is out of range"),
        (plain("--site z.0 --context 9999"), 2, "9999 tokens do not fit this model's context"),
        (plain("--site z.0 --stride 0"), 2, "invalid value '0' for '--stride <N>'"),
        (plain("--site z.0 --shard 3/3"), 2, "`3/3` is no piece; write 0/8 … 7/8"),
        (plain("--site z.0 --store f8"), 2, "there are f32, f16"),
        (plain("--site z.0 --memory 60MB"), 75, "memory"),
        (Interp::new().words("export --site z.0"), 2, "no text: give --prompt TEXT or --file PATH"),
        (Interp::new().words("export --site z.0 --file /nowhere.txt"), 66, "/nowhere.txt"),
        (place.export("other", "-q"), 73, "it holds other files (thesis.tex)"),
        (place.export("file", "-q"), 73, "--out names a directory"),
        (place.export("link", "-q"), 73, "it is a link"),
        (place.export("data", "--label x"), 2, "labels come with JSONL and Parquet"),
        (place.verify("other"), 65, "there is no manifest.json"),
    ] {
        command.run().refused(code, wanted);
    }
    let estimate = place.export("data", "--dry-run --format json").run().ok();
    let told: serde_json::Value = serde_json::from_str(&estimate.stdout).unwrap();
    assert!(told["rows"].as_u64() > Some(10) && told["seconds"].as_f64() > Some(0.0), "{told}");
    assert!(!place.path("data").exists(), "a dry run writes nothing");
}

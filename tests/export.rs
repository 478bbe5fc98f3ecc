//! Activation datasets: the right values, whole or not at all, whatever happens meanwhile.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{DType, Tensor};
use common::{small_config, weights};
use half::f16;
use interp::dataset::documents::given;
use interp::dataset::manifest::Manifest;
use interp::dataset::plan::{Dtype, Request};
use interp::dataset::sequences::Cut;
use interp::shard::Layout;
use interp::export::{Export, Piece};
use interp::random::{Rng, stream};
use interp::{Gpt2, Tokenizer};
use polars::prelude::*;
use process::{Interp, files};

/// Sentences of different length, the same for the same number.
fn sentences(n: usize) -> String {
    let words = ["Mary", "John", "shop", "went to the", "gave a drink to", "and", "park", "The key near the doors is"];
    let mut rng = stream(1, "sentences", 0);
    let line =
        |rng: &mut _| (0..3 + random(rng, 9)).map(|_| words[random(rng, words.len())]).collect::<Vec<_>>().join(" ");
    (0..n).map(|_| line(&mut rng) + "\n").collect()
}

fn random(rng: &mut interp::random::Stream, below: usize) -> usize {
    rng.random_range(0..below)
}

/// A directory with a text in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(lines: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), sentences(lines)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `interp export` of two sites of that text into a directory here.
    fn export(&self, to: &str, options: &str) -> Interp {
        let command = Interp::new().words("export --site resid_post.0,z.1 --context 32 --file");
        command.arg(self.path("text.txt")).words("--out").arg(self.path(to)).words(options)
    }

    fn verify(&self, name: &str) -> Interp {
        Interp::new().words("export verify").arg(self.path(name))
    }
}

/// All rows of a dataset.
fn read(dir: &Path) -> DataFrame {
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
fn bits(frame: &DataFrame, name: &str) -> (usize, Vec<u32>) {
    let arrays = frame.column(name).unwrap().array().unwrap().clone();
    let inner = arrays.get_inner();
    (arrays.width(), inner.f32().unwrap().into_no_null_iter().map(f32::to_bits).collect())
}

fn u32s(frame: &DataFrame, name: &str) -> Vec<u32> {
    frame.column(name).unwrap().u32().unwrap().into_no_null_iter().collect()
}

fn manifest(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("manifest.json")).unwrap()
}

#[test]
fn values_are_those_of_capture_to_the_bit() {
    let place = Place::new(12);
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
    let cut = Cut {
        context: 8,
        stride: 8,
        pack: false,
        whole: false,
        start: None,
        between: None,
        skip_first: false,
        sample: None,
        max_tokens: None,
        shuffle: false,
        seed: 0,
    };
    Request {
        weights: Vec::new(),
        tokenizer: None,
        text: Vec::new(),
        field: "text".into(),
        sites: sites.iter().map(|site| site.to_string()).collect(),
        layout: Layout::Parquet,
        dtype: Dtype::F32,
        computed: "f32 on cpu".into(),
        cut,
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
        let table = Tensor::from_vec(values.clone(), (values.len() / width, width), &candle_core::Device::Cpu).unwrap();
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
fn fifty_kills_leave_what_no_kill_leaves() {
    let place = Place::new(300);
    let options = "--part-rows 60 --covariance -q";
    place.export("whole", options).run().ok();
    let mut rng = stream(2, "kills", 0);
    let mut kills = 0;
    let mut finished = false;
    while kills < 50 {
        let (mut child, _keep) = place.export("killed", options).spawn();
        std::thread::sleep(Duration::from_millis(random(&mut rng, 60) as u64));
        child.kill().unwrap(); // SIGKILL
        finished |= child.wait().unwrap().success();
        kills += 1;
        if finished {
            // All parts are there: begin again with some of them.
            for index in 0..random(&mut rng, 40) {
                let _ = std::fs::remove_file(place.path("killed").join(format!("part-{index:05}.json")));
            }
            finished = false;
        }
    }
    place.export("killed", options).run().ok();
    assert!(manifest(&place.path("killed")) == manifest(&place.path("whole")), "after 50 kills");
    let left =
        files(&place.path("killed")).into_iter().filter(|f| f.extension().is_some_and(|e| e == "tmp" || e == "lock"));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new());
    place.verify("killed").run().ok();
}

#[test]
fn pieces_make_the_whole() {
    let place = Place::new(120);
    place.export("one", "--part-rows 100 -q").run().ok();
    for n in [3, 8] {
        let name = format!("pieces{n}");
        let running: Vec<_> =
            (0..n).map(|i| place.export(&name, &format!("--part-rows 100 --shard {i}/{n} -q")).spawn()).collect();
        for (mut child, _keep) in running {
            assert!(child.wait().unwrap().success());
        }
        if n == 3 {
            std::fs::remove_file(place.path(&name).join("part-00002.json")).unwrap();
            let merge = Interp::new().words("export merge").arg(place.path(&name));
            merge.run().refused(65, "parts are not there or not whole: part-00002.parquet");
            place.export(&name, "--part-rows 100 --shard 2/3 -q").run().ok();
        }
        Interp::new().words("export merge").arg(place.path(&name)).run().ok();
        assert!(manifest(&place.path(&name)) == manifest(&place.path("one")), "{n} pieces");
    }
}

#[test]
fn damage_is_named() {
    let place = Place::new(60);
    place.export("data", "--part-rows 100 -q").run().ok();
    let dir = place.path("data");
    let part = |i: usize| dir.join(format!("part-{i:05}.parquet"));
    let refused = |wanted: &str| place.verify("data").run().refused(65, wanted);
    let (first, second) = (std::fs::read(part(0)).unwrap(), std::fs::read(part(1)).unwrap());
    let mut flipped = first.clone();
    flipped[first.len() / 2] ^= 4;
    std::fs::write(part(0), &flipped).unwrap();
    refused("part-00000.parquet is damaged: its sha256 is");
    std::fs::write(part(0), &first[..first.len() - 9]).unwrap();
    refused(&format!("part-00000.parquet has {} bytes instead of {}", first.len() - 9, first.len()));
    std::fs::remove_file(part(0)).unwrap();
    refused("part-00000.parquet is missing");
    std::fs::write(part(0), &second).unwrap();
    std::fs::write(part(1), &first).unwrap();
    let error = place
        .verify("data")
        .words("-q")
        .run()
        .refused(65, "part-00000.parquet holds what belongs into part-00001.parquet");
    assert!(error.stderr.contains("and 1 more"), "{}", error.stderr);
    std::fs::write(part(0), &first).unwrap();
    std::fs::write(part(1), &second).unwrap();
    place.verify("data").run().ok();
    let sealed = manifest(&dir);
    std::fs::write(dir.join("manifest.json"), sealed.replacen("\"rows\": ", "\"rows\": 1", 1)).unwrap();
    refused("manifest.json has other parts than plan.json");
    std::fs::write(dir.join("manifest.json"), "{").unwrap();
    refused("manifest.json: no manifest");
    std::fs::remove_file(dir.join("manifest.json")).unwrap();
    refused("there is no manifest.json");
    // What was damaged is written again.
    std::fs::write(part(0), &flipped).unwrap();
    place.export("data", "--part-rows 100 -q").run().ok();
    assert!(manifest(&dir) == sealed);
}

#[test]
fn one_writer_at_a_time() {
    let place = Place::new(2000);
    let (mut child, _keep) = place.export("data", "--part-rows 200").spawn();
    let lock = place.path("data").join("lock");
    while !lock.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::sleep(Duration::from_millis(2));
    }
    let second = place.export("data", "--part-rows 200 -q").run();
    assert_eq!(second.code, Some(75), "{}", second.stderr);
    assert!(second.stderr.contains(&format!("lock is held by process {}", child.id())), "{}", second.stderr);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lock.exists(), "a killed process leaves its lock");
    place.export("data", "--part-rows 200 -q").run().ok();
    place.verify("data").run().ok();
}

#[test]
fn an_interrupt_ends_after_a_part_and_is_taken_up() {
    let place = Place::new(2000);
    let (mut child, _keep) = place.export("data", "--part-rows 200").spawn();
    while !place.path("data").join("part-00001.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: kill sends a signal to a child that was not waited for yet.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(child.id() as i32, libc::SIGINT);
    }
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("rows; the same command continues"), "{said}");
    assert!(!place.path("data").join("lock").exists() && !place.path("data").join("manifest.json").exists());
    let outcome = place.export("data", "--part-rows 200").run().ok();
    assert!(outcome.stdout.contains("from earlier"), "{}", outcome.stdout);
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let place = Place::new(300);
    let outcome = place.export("data", "--part-rows 1000 -q").limit_files(300_000).run();
    assert!(matches!(outcome.code, Some(73 | 74)), "{outcome:?}");
    assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
    let tmp = files(&place.path("data")).into_iter().filter(|file| file.extension().is_some_and(|e| e == "tmp"));
    assert_eq!(tmp.count(), 0);
    place.export("data", "--part-rows 1000 -q").run().ok();
    place.export("whole", "--part-rows 1000 -q").run().ok();
    assert!(manifest(&place.path("data")) == manifest(&place.path("whole")));
}

#[test]
fn memory_does_not_grow_with_the_text() {
    let peak = |lines: usize| -> f64 {
        let place = Place::new(lines);
        let outcome = place.export("data", "--part-rows 2000 --format json").run().ok();
        let told: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        told["memory"]["peak"].as_f64().unwrap()
    };
    let (once, ten_times) = (peak(600), peak(6000));
    assert!(ten_times < 1.2 * once, "{once} bytes, {ten_times} for ten times the text");
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
    assert!(a.iter().zip(&b).all(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() < 1e-4));
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
        (plain("--site z.0 --stride 0"), 2, "a stride of 0 is not within"),
        (plain("--site z.0 --shard 3/3"), 2, "`3/3` is no piece; write 0/8 … 7/8"),
        (plain("--site z.0 --store f8"), 2, "there are f32 and f16"),
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

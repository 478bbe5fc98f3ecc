//! A dataset's directory holds what its plan says, and nothing that lies about it is followed, waited for or allocated.
#![cfg(unix)]

#[path = "common/place.rs"]
mod place;
#[path = "common/process.rs"]
mod process;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use interp::dataset::documents::given;
use interp::dataset::lock::Lock;
use interp::dataset::reader::Dataset;
use interp::export::{self, Export, Piece};
use interp::{Error, Site, embedded};
use place::{Place, manifest, sentences};
use process::{Interp, files};
use serde_json::{Value, json};

fn merge(dir: &Path) -> Interp {
    Interp::new().words("export merge -q").arg(dir)
}

/// A small sealed dataset below `name`, in several parts.
fn dataset(place: &Place, name: &str) -> PathBuf {
    place.export(name, "--part-rows 40 -q").run().ok();
    place.path(name)
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

/// All of a directory's files, to compare.
fn state(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = files(dir).into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect();
    all.sort();
    all
}

#[test]
fn merge_takes_only_the_records_of_its_own_parts() {
    let place = Place::new(20);
    let dir = dataset(&place, "data");
    let other = place.path("other");
    place.export("other", "--part-rows 40 --seed 7 -q").run().ok();
    let sealed = manifest(&dir);
    let path = |name: &str| dir.join(name);
    let copy = |from: &str, to: &str| assert!(std::fs::copy(path(from), path(to)).unwrap() > 0);
    let record = |change: &dyn Fn(&mut Value)| edit(&path("part-00001.json"), change);
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a str);
    let damages: Vec<Damage<'_>> = vec![
        (
            "a copied record",
            Box::new(|| copy("part-00000.json", "part-00001.json")),
            "part-00001.json is the record of part 0 (part-00000.parquet), and was renamed or copied",
        ),
        (
            "a copied part with its record",
            Box::new(|| {
                copy("part-00000.parquet", "part-00001.parquet");
                copy("part-00000.json", "part-00001.json");
            }),
            "part-00001.json is the record of part 0",
        ),
        (
            "a copied part whose record was edited",
            Box::new(|| {
                copy("part-00000.parquet", "part-00001.parquet");
                let first: Value = serde_json::from_slice(&std::fs::read(path("part-00000.json")).unwrap()).unwrap();
                record(&|own| {
                    own["sha256"] = first["sha256"].clone();
                    own["bytes"] = first["bytes"].clone();
                });
            }),
            "part-00001.parquet is a copy of part-00000.parquet",
        ),
        (
            "parts that changed places",
            Box::new(|| {
                for end in ["parquet", "json"] {
                    std::fs::rename(path(&format!("part-00000.{end}")), path("x")).unwrap();
                    std::fs::rename(path(&format!("part-00001.{end}")), path(&format!("part-00000.{end}"))).unwrap();
                    std::fs::rename(path("x"), path(&format!("part-00001.{end}"))).unwrap();
                }
            }),
            "part-00000.json is the record of part 1",
        ),
        (
            "a record of another plan",
            Box::new(|| assert!(std::fs::copy(other.join("part-00001.json"), path("part-00001.json")).unwrap() > 0)),
            "part-00001.json is of another plan",
        ),
        (
            "another number of rows",
            Box::new(|| record(&|own| own["rows"] = json!(1))),
            "has 1 rows, where the plan has",
        ),
        ("no hash", Box::new(|| record(&|own| own["sha256"] = json!("x"))), "part-00001.json has no sha256"),
        (
            "statistics of another site",
            Box::new(|| {
                record(&|own| {
                    let statistics = own["statistics"].as_object_mut().unwrap();
                    let entry = statistics.remove("z.1").unwrap();
                    statistics.insert("z.2".into(), entry);
                })
            }),
            "has statistics of other sites than the plan",
        ),
        (
            "statistics that do not fit",
            Box::new(|| record(&|own| own["statistics"]["z.1"]["products"] = json!([1.0, 2.0]))),
            "2 products",
        ),
        (
            "statistics of another width",
            Box::new(|| {
                record(&|own| {
                    own["statistics"]["z.1"]["mean"] = json!([1.0]);
                    own["statistics"]["z.1"]["squares"] = json!([1.0]);
                })
            }),
            "has another width of z.1",
        ),
        ("no record", Box::new(|| std::fs::write(path("part-00001.json"), "[").unwrap()), "is no record of a part"),
        (
            "a record that is missing",
            Box::new(|| std::fs::remove_file(path("part-00001.json")).unwrap()),
            "part-00001.parquet",
        ),
    ];
    let whole = state(&dir);
    for (name, damage, wanted) in damages {
        damage();
        std::fs::remove_file(path("manifest.json")).unwrap();
        merge(&dir).run().refused(65, wanted);
        assert!(!path("manifest.json").exists(), "{name} was sealed");
        // The same command writes what is not there, and comes to the same dataset.
        place.export("data", "--part-rows 40 -q").run().ok();
        assert!(manifest(&dir) == sealed, "{name}");
        for (file, bytes) in &whole {
            std::fs::write(file, bytes).unwrap();
        }
    }
    merge(&dir).run().ok();
    assert!(manifest(&dir) == sealed);
}

#[test]
fn a_link_in_a_dataset_is_refused_and_not_followed() {
    let place = Place::new(12);
    let dir = dataset(&place, "data");
    let victim = place.path("victim");
    let names = [
        "part-00000.parquet",
        "part-00001.json",
        "manifest.json",
        "plan.json",
        "lock",
        "tokens.bin",
        "sequences.bin",
        "figure.svg",
        ".hidden",
    ];
    for name in names {
        let path = dir.join(name);
        let own = std::fs::read(&path).ok();
        // Even where the link leads to what was there.
        std::fs::write(&victim, own.as_deref().unwrap_or(b"precious")).unwrap();
        let before = std::fs::read(&victim).unwrap();
        let _ = std::fs::remove_file(&path);
        symlink(&victim, &path).unwrap();
        let wanted = format!("it holds a link ({name})");
        place.export("data", "--part-rows 40 -q").run().refused(73, &wanted);
        if name != "plan.json" {
            merge(&dir).run().refused(73, &wanted);
        } else {
            merge(&dir).run().refused(65, "plan.json: is a link");
        }
        if ["part-00000.parquet", "manifest.json", "plan.json"].contains(&name) {
            place.verify("data").run().refused(65, "is a link");
            let read = Dataset::open(&dir).and_then(|data| data.read(&["z.1".into()]).map(|_| ())).unwrap_err();
            assert!(matches!(read, Error::Data { .. }) && read.to_string().contains("is a link"), "{read}");
        }
        assert_eq!(std::fs::read(&victim).unwrap(), before, "{name}");
        std::fs::remove_file(&path).unwrap();
        if let Some(own) = own {
            std::fs::write(&path, own).unwrap();
        }
    }
    place.export("data", "--part-rows 40 -q").run().ok();
}

#[test]
fn pipes_devices_directories_and_huge_files_end_at_once() {
    let place = Place::new(12);
    let dir = dataset(&place, "data");
    let pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    };
    let huge = |path: &Path| std::fs::File::create(path).unwrap().set_len(1 << 41).unwrap();
    let folder = |path: &Path| std::fs::create_dir(path).unwrap();
    type Make<'a> = &'a dyn Fn(&Path);
    let kinds: [(&str, Make<'_>); 3] = [("a pipe", &pipe), ("a huge file", &huge), ("a directory", &folder)];
    for (kind, make) in kinds {
        for name in
            ["manifest.json", "plan.json", "part-00000.parquet", "part-00000.json", "tokens.bin", "sequences.bin"]
        {
            let path = dir.join(name);
            let own = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            make(&path);
            let runs = |command: Interp| {
                let outcome = command.limit_memory(4 << 30).run();
                assert!(matches!(outcome.code, Some(0 | 65 | 66 | 73)), "{kind} as {name}: {outcome:?}");
                assert!(outcome.stderr.lines().count() <= 1, "{kind} as {name}: {outcome:?}");
                outcome.code == Some(0)
            };
            let verified = runs(place.verify("data"));
            assert_eq!(
                verified,
                !["manifest.json", "plan.json", "part-00000.parquet"].contains(&name),
                "{kind} as {name}"
            );
            runs(merge(&dir));
            runs(place.export("data", "--part-rows 40 -q"));
            if path.is_dir() {
                std::fs::remove_dir(&path).unwrap()
            } else {
                let _ = std::fs::remove_file(&path);
            }
            std::fs::write(&path, own).unwrap();
        }
    }
    // What is exported is read as files are, and a pipe is none.
    pipe(&place.path("pipe.jsonl"));
    for (file, wanted) in [(place.path("pipe.jsonl"), "not a regular file"), ("/dev/zero".into(), "not a regular file")]
    {
        Interp::new().words("export --site z.0 --file").arg(file).run().refused(66, wanted);
    }
    place.export("data", "--part-rows 40 -q").run().ok();
}

#[test]
fn numbers_of_a_plan_are_checked_before_they_are_used() {
    let place = Place::new(12);
    let dir = dataset(&place, "data");
    let plan = std::fs::read(dir.join("plan.json")).unwrap();
    let most = json!(u64::MAX);
    let changes: [(&str, Value); 20] = [
        ("/parts/0/rows", most.clone()),
        ("/parts/0/rows", json!(0)),
        ("/parts/0/sequences", json!(1_u64 << 62)),
        ("/parts/0/sequences", json!(0)),
        ("/parts/1/first", most.clone()),
        ("/parts/1/first", json!(0)),
        ("/parts", json!([])),
        ("/request/cut/context", json!(1_u64 << 62)),
        ("/request/cut/context", json!(0)),
        ("/request/cut/stride", json!(0)),
        ("/request/part_rows", json!(0)),
        ("/request/batch_tokens", json!(0)),
        ("/request/sites", json!([])),
        ("/request/sites", json!(["z.1", "z.1"])),
        ("/request/sites", json!(["blocks.1.attn.hook_z"])),
        ("/request/labels", json!(["x", "x"])),
        ("/documents", json!(0)),
        ("/documents", json!(1_u64 << 40)),
        ("/digests", json!(["x", "y"])),
        ("/format", json!(99)),
    ];
    for (pointer, value) in changes {
        edit(&dir.join("plan.json"), |plan| *plan.pointer_mut(pointer).unwrap() = value.clone());
        for command in [merge(&dir), place.verify("data"), place.export("data", "--part-rows 40 -q")] {
            command.limit_memory(4 << 30).run().refused(65, "plan.json");
        }
    }
    std::fs::write(dir.join("plan.json"), "[".repeat(1 << 20)).unwrap();
    merge(&dir).run().refused(65, "no plan");
    std::fs::write(dir.join("plan.json"), plan).unwrap();
    // Sequences that do not fit their tokens, under a plan that knows their hash.
    let sequences = std::fs::read(dir.join("sequences.bin")).unwrap();
    for (at, bytes) in [
        (0, u64::MAX.to_le_bytes().to_vec()),
        (16, vec![0xff; 4]),
        (20, vec![0xff; 4]),
        (24, vec![0xff; 4]),
        (12, vec![0xff; 4]),
    ] {
        let mut damaged = sequences.clone();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        let plan = std::fs::read(dir.join("plan.json")).unwrap();
        std::fs::write(dir.join("sequences.bin"), &damaged).unwrap();
        edit(&dir.join("plan.json"), |plan| plan["digests"][1] = json!(interp::weights::sha256_of(&damaged)));
        place.export("data", "--part-rows 40 -q").run().refused(65, "sequence");
        std::fs::write(dir.join("plan.json"), plan).unwrap();
    }
    std::fs::write(dir.join("sequences.bin"), sequences).unwrap();
    place.export("data", "--part-rows 40 -q").run().ok();
}

#[test]
fn numbers_of_a_request_may_be_as_large_as_their_ranges() {
    let place = Place::new(6);
    let (most, beyond) = (1_u64 << 40, u64::MAX);
    for (i, options) in [
        format!("--part-rows {most}"),
        format!("--part-rows {most} --shuffle"),
        format!("--part-rows {most} --layout npz"),
        format!("--max-tokens {most} --sample 65536"),
    ]
    .iter()
    .enumerate()
    {
        place.export(&format!("data{i}"), &format!("{options} -q")).run().ok();
    }
    let gathered = format!("--part-rows {most} --layout npz --memory 600MB -q");
    place.export("no", &gathered).run().refused(75, "memory");
    let own = |words: String| Interp::new().words("export --prompt Mary --site z.0").words(&words).run();
    own("--context 65536".into()).refused(2, "do not fit this model's context");
    for option in ["context", "stride", "sample", "max-tokens", "part-rows"] {
        for number in ["0".into(), beyond.to_string(), format!("{beyond}0")] {
            own(format!("--{option} {number}")).refused(2, &format!("for '--{option} <N>': {number} is not in 1..="));
        }
    }
    // A piece of so many pieces has no part.
    place.export("piece", &format!("--shard 7/{beyond} -q")).run().ok();
}

#[test]
fn a_lock_is_the_systems_and_not_a_text() {
    let place = Place::new(20);
    std::fs::create_dir(place.path("data")).unwrap();
    let lock = place.path("data").join("lock");
    // What another machine or a process that nobody sees may have written says nothing.
    place.export("data", "--part-rows 40 -q").run().ok();
    for text in [r#"{"host":"elsewhere","pid":1}"#, "{", ""] {
        std::fs::write(&lock, text).unwrap();
        place.export("data", "--part-rows 40 -q").run().ok();
        assert!(!lock.exists());
    }
    // One that is held is, whatever is written there.
    let held = Lock::open(&lock).unwrap();
    std::fs::write(&lock, r#"{"host":"","pid":4294967295}"#).unwrap();
    for command in [
        place.export("data", "--part-rows 40 -q"),
        merge(&place.path("data")),
        place.export("data", "--part-rows 40 -q --shard 0/2"),
    ] {
        command.run().refused(75, "lock is held by");
    }
    drop(held);
    // Pieces share the directory with each other, and not with a piece of another division.
    let piece = Lock::share(&lock).unwrap();
    place.export("data", "--part-rows 40 -q --shard 0/2").run().ok();
    place.export("data", "--part-rows 40 -q").run().refused(75, "lock is held by");
    merge(&place.path("data")).run().refused(75, "lock is held by");
    let other = Lock::open(&place.path("data").join("piece-1-of-3.lock")).unwrap();
    place.export("data", "--part-rows 40 -q --shard 0/2").run().refused(75, "piece-1-of-3.lock is held by");
    place.export("data", "--part-rows 40 -q --shard 0/3").run().ok();
    drop((piece, other));
    merge(&place.path("data")).run().ok();
    assert!(files(&place.path("data")).iter().all(|file| !file.to_string_lossy().ends_with("lock")));
}

/// A lock that somebody removed is another's by now: whoever held it stops before the next part.
#[test]
fn a_lock_that_was_removed_stops_its_holder() {
    let (model, tokenizer) = (embedded::model().unwrap(), embedded::tokenizer().unwrap());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("data");
    let site: Site = "z.0".parse().unwrap();
    let request = interp::dataset::plan::Request {
        part_rows: 20,
        batch_tokens: 20,
        ..export::request(&model, &tokenizer, &[site])
    };
    let texts: Vec<String> = sentences(40).lines().map(str::to_string).collect();
    let mut work = Export::open(&model, &tokenizer, &dir, &request, || Ok(given(texts.clone()))).unwrap();
    let mut removed = false;
    let mut remove = |_| {
        if !removed {
            std::fs::remove_file(dir.join("lock")).unwrap();
            removed = true;
        }
        Ok(())
    };
    let refused = work.run(Piece { index: 0, of: 1 }, &mut remove, &|| true).unwrap_err();
    assert!(
        matches!(refused, Error::TryAgain(_)) && refused.to_string().contains("was removed or replaced"),
        "{refused}"
    );
    assert!(!dir.join("part-00001.json").exists());
    assert!(work.run(Piece { index: 0, of: 1 }, &mut |_| Ok(()), &|| true).unwrap());
    work.seal().unwrap();
}

#[test]
fn what_a_killed_export_was_writing_is_gone_after_the_next() {
    let place = Place::new(20);
    let dir = place.path("data");
    let names = [
        "tokens.bin",
        "sequences.bin",
        "labels.parquet",
        "plan.json",
        "part-00000.parquet",
        "part-00001.json",
        "manifest.json",
        "figure.svg",
        "figure.png",
        "lock",
        "plan.lock",
        "piece-0-of-2.lock",
    ];
    let plant =
        || names.iter().for_each(|name| std::fs::write(dir.join(format!(".{name}.Ab12Cd.tmp")), "half").unwrap());
    let temporaries = || files(&dir).into_iter().filter(|file| file.extension().is_some_and(|e| e == "tmp")).count();
    std::fs::create_dir(&dir).unwrap();
    for command in [place.export("data", "--part-rows 40 -q"), place.export("data", "--part-rows 40 -q"), merge(&dir)] {
        plant();
        std::fs::write(dir.join("piece-0-of-2.lock"), "{").unwrap();
        if !dir.join("plan.json").exists() {
            std::fs::remove_file(dir.join("piece-0-of-2.lock")).unwrap();
        }
        command.run().ok();
        assert_eq!(temporaries(), 0);
        assert!(!dir.join("piece-0-of-2.lock").exists());
    }
    // A piece leaves those of others alone.
    plant();
    place.export("data", "--part-rows 40 -q --shard 0/2").run().ok();
    assert!(!dir.join(".part-00000.parquet.Ab12Cd.tmp").exists() && dir.join(".part-00001.json.Ab12Cd.tmp").exists());
    merge(&dir).run().ok();
    assert_eq!(temporaries(), 0);
}

#[test]
fn names_need_not_be_utf8() {
    let place = Place::new(12);
    let name = OsStr::from_bytes(b"d\xffta");
    let (dir, text) = (place.dir.path().join(name), place.dir.path().join(OsStr::from_bytes(b"t\xfe.txt")));
    std::fs::copy(place.path("text.txt"), &text).unwrap();
    let export = |options: &str| {
        let command =
            Interp::new().words("export --site resid_post.0,z.1 --context 32 --part-rows 40 --file").arg(&text);
        command.words("--out").arg(&dir).words(options)
    };
    let said: Value = serde_json::from_str(&export("--format json").run().ok().stdout).unwrap();
    assert_eq!(said["dir_is_lossy"], true);
    assert!(said["dir"].as_str().unwrap().ends_with("d\u{fffd}ta"), "{said}");
    assert!(export("").run().ok().stderr.contains("is not UTF-8"));
    export("--format csv -q").run().ok();
    for words in ["export verify", "export merge --format json"] {
        Interp::new().words(words).arg(&dir).run().ok();
    }
    let plain = dataset(&place, "plain");
    assert!(manifest(&dir) == manifest(&plain), "the same dataset by another name");
    let missing = place.dir.path().join(OsStr::from_bytes(b"n\xff.txt"));
    Interp::new().words("export --site z.0 --file").arg(missing).run().refused(66, "no such file");
}

//! Activation datasets are whole or not there, whatever happens meanwhile.

#[path = "common/place.rs"]
mod place;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};

use interp::random::stream;
use place::{Place, manifest, random};
use process::{Interp, can_mount, files, go_on, signal, stop_when};

/// Every file of a directory with its size.
fn sizes(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries.map(|entry| (entry.path(), entry.metadata().map_or(0, |file| file.len()))).collect();
    all.sort();
    all
}

#[test]
fn fifty_kills_leave_what_no_kill_leaves() {
    let place = Place::new(300);
    let options = "--part-rows 60 --covariance -q";
    place.export("whole", options).run().ok();
    let dir = place.path("killed");
    let mut rng = stream(2, "kills", 0);
    let mut kills = 0;
    while kills < 50 {
        let (mut child, _keep) = place.export("killed", options).spawn();
        // At one of the first changes of the directory: a file that begins, grows, or takes its name.
        let (mut changes, mut before) = (1 + random(&mut rng, 12), sizes(&dir));
        let in_the_middle = stop_when(&mut child, || {
            let now = sizes(&dir);
            changes -= usize::from(now != before && changes > 0);
            before = now;
            changes == 0
        });
        child.kill().unwrap();
        child.wait().unwrap();
        if in_the_middle {
            kills += 1;
        } else {
            // All parts are there: begin again with some of them.
            for index in 0..random(&mut rng, 40) {
                let _ = std::fs::remove_file(dir.join(format!("part-{index:05}.json")));
            }
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
        all_succeed(running);
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

/// Waits for commands; the first that failed is named with what it said.
fn all_succeed(running: Vec<(std::process::Child, tempfile::TempDir)>) {
    let ended: Vec<_> = running.into_iter().map(|(child, _keep)| child.wait_with_output().unwrap()).collect();
    for (i, output) in ended.iter().enumerate() {
        assert!(output.status.success(), "command {i}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn many_begin_a_dataset_at_once() {
    // Each finds an empty directory, or one in which another has just begun.
    let place = Place::new(10);
    for round in 0..8 {
        let name = format!("round{round}");
        let begin = |i| place.export(&name, &format!("--part-rows 10 --shard {i}/8 -q")).spawn();
        all_succeed((0..8).map(begin).collect());
        Interp::new().words("export merge").arg(place.path(&name)).run().ok();
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
    // A lock file is there before it is locked: a part that is done shows that the process has it.
    let first = place.path("data").join("part-00000.json");
    assert!(stop_when(&mut child, || first.exists()), "it ended before the second one began");
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
    let second = place.path("data").join("part-00001.json");
    assert!(stop_when(&mut child, || second.exists()), "it ended before it was interrupted");
    signal(&child, libc::SIGINT);
    go_on(&child);
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
    let peak = |lines: usize| -> (f64, f64) {
        let place = Place::new(lines);
        let outcome = place.export("data", "--part-rows 2000 --format json").run().ok();
        let told: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let size = files(&place.path("data")).iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
        (told["memory"]["peak"].as_f64().unwrap(), size as f64)
    };
    let ((once, small), (ten_times, large)) = (peak(600), peak(6000));
    // Relative to what is written more: memory that held it would grow by all of it. How much is free for reuse at a time differs with
    // threads and with the machine.
    let grown = (ten_times - once) / (large - small);
    assert!(grown < 0.3, "{once} bytes for {small}, {ten_times} for {large}");
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let place = Place::new(6000);
    let (mut child, _keep) = place.export("data", "--part-rows 1000000").spawn();
    let writes =
        |end: &str| files(&place.dir.path().join("data")).iter().any(|file| file.to_string_lossy().ends_with(end));
    let at_work = || place.path("data").join("lock").exists() && writes(".tmp");
    assert!(stop_when(&mut child, at_work), "it ended before it was interrupted");
    signal(&child, libc::SIGINT);
    go_on(&child);
    // Until the signal has been taken, and some time more: it goes on with the part.
    let (status, mut after) = (format!("/proc/{}/status", child.id()), 0);
    let taken = stop_when(&mut child, || {
        let status = std::fs::read_to_string(&status).unwrap();
        let waiting = status.lines().filter(|line| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:"));
        let bits =
            waiting.map(|line| u64::from_str_radix(line[7..].trim(), 16).unwrap()).fold(0, |all, bits| all | bits);
        after += usize::from(bits & (1 << (libc::SIGINT - 1)) == 0);
        after > 5
    });
    assert!(taken && !writes(".parquet"), "the first one lets the part be finished");
    signal(&child, libc::SIGTERM);
    go_on(&child);
    // On a busy machine the thread that took the first signal may run its handler after the one that took the second.
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(143 | 130)), "{code:?}");
    assert!(!writes(".parquet"), "the part was not finished");
    place.export("data", "--part-rows 1000000 -q").run().ok();
    place.verify("data").run().ok();
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let place = Place::new(100);
    let (mut child, _keep) = place.export("data", "--format csv").spawn();
    drop((child.stdout.take(), child.stderr.take())); // as `| head -0` does
    assert_eq!(child.wait().unwrap().code(), Some(0));
    place.verify("data").run().ok();
}

/// On a file system that is really full, and on one that cannot be written; only where users may mount one.
#[test]
fn a_file_system_says_no() {
    if !can_mount() {
        eprintln!("this machine lets users mount nothing: a_full_disk_leaves_what_was_there stands alone");
        return;
    }
    let place = Place::new(300);
    std::fs::create_dir(place.path("data")).unwrap();
    let export =
        |options: &str| place.export("data", "--part-rows 1000 -q").mounted(&place.path("data"), options).run();
    export("size=700k").refused(73, "the dataset needs about");
    // Room as it is free at first, but not in the end: statistics in the records are not in the estimate.
    let broken = export("size=5m,nr_inodes=8");
    assert!(matches!(broken.code, Some(73 | 74)), "{broken:?}");
    assert_eq!(broken.stderr.trim_end().lines().count(), 1, "{}", broken.stderr);
    export("ro").refused(73, "Read-only file system");
    place.export("data", "--part-rows 1000 -q").run().ok();
}

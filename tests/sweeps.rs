//! Studies: every combination once, interrupted ones go on, a failure stays alone, and several processes share the work.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};

use common::write_model;
use polars::prelude::*;
use process::{Interp, Outcome, go_on, signal, stop_when};
use serde_json::Value;

const STUDIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/probes/studies");

fn frame(path: &Path) -> DataFrame {
    interp::frame::load_parquet(path).unwrap()
}

fn texts(frame: &DataFrame, name: &str) -> Vec<String> {
    frame.column(name).unwrap().str().unwrap().iter().map(|x| x.unwrap_or("null").to_string()).collect()
}

fn floats(frame: &DataFrame, name: &str) -> Vec<f64> {
    frame.column(name).unwrap().f64().unwrap().iter().map(|x| x.unwrap_or(f64::NAN)).collect()
}

fn sweep(study: &Path, out: &Path) -> Interp {
    Interp::new().words("sweep").arg(study).arg("--out").arg(out)
}

/// A place with a random model, a text and a study of fine-tuning.
fn place(study: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("random"));
    std::fs::write(
        dir.path().join("text.txt"),
        "When Mary and John went to the shop, John gave a drink to Mary. ".repeat(60),
    )
    .unwrap();
    let path = dir.path().join("study.toml");
    std::fs::write(&path, study).unwrap();
    (dir, path)
}

const TUNING: &str = r#"
about = "rates and models"
command = "finetune"
[options]
file = "text.txt"
block_size = 16
batch_size = 2
max_iters = 4
eval_interval = 2
eval_rows = 2
[grid]
model = ["tiny", "random"]
learning_rate = [1e-4, 1e-3]
"#;

#[test]
fn shipped_studies_run_on_the_embedded_model() {
    let quick = [
        ("finetune", "--set max_iters=2 --set eval_rows=2 --set eval_interval=1 --set learning_rate=[1e-4,1e-3]", 2, 2),
        ("few-shot", "--set num_questions=16 --set shots=[0,2]", 6, 0),
        ("phrasing", "--set num_questions=8", 2, 0),
        ("perplexity", "", 3, 3),
    ];
    for (name, words, runs, rows) in quick {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        sweep(&Path::new(STUDIES).join(format!("{name}.toml")), &out).words(words).run().ok();
        let table = frame(&out.join("runs.parquet"));
        assert_eq!((table.height(), texts(&table, "status")), (runs, vec!["done".to_string(); runs]), "{name}");
        let results = frame(&out.join("frame.parquet"));
        assert!(
            if rows > 0 { results.height() == rows } else { results.height() > runs },
            "{name}: {}",
            results.height()
        );
        let figure = std::fs::read_to_string(out.join("figure.svg")).unwrap();
        assert!(figure.contains("<svg") && out.join("figure.png").exists());
        let record: Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
        assert_eq!(record["runs"], runs);
    }
    assert_eq!(std::fs::read_dir(STUDIES).unwrap().count(), quick.len());
}

#[test]
fn a_grid_is_run_once_and_one_more_value_is_one_more_run() {
    let (dir, study) = place(TUNING);
    let out = dir.path().join("out");
    let first = sweep(&study, &out).words("--price 7.2").run().ok();
    assert_eq!(first.stderr.matches(" s\n").count(), 4, "{}", first.stderr);
    let results = frame(&out.join("frame.parquet"));
    assert_eq!(results.height(), 4);
    assert_eq!(texts(&results, "model"), ["tiny", "random", "tiny", "random"]);
    assert_eq!(floats(&results, "learning_rate"), [1e-4, 1e-4, 1e-3, 1e-3]);
    let table = frame(&out.join("runs.parquet"));
    for (seconds, cost) in floats(&table, "seconds").into_iter().zip(floats(&table, "cost")) {
        assert!((cost - seconds * 0.002).abs() < 1e-12 && seconds > 0.0);
    }
    assert!(table.column("peak_bytes").unwrap().u64().unwrap().iter().all(|x| x.unwrap() > 1_000_000));
    // A result is the run's own: the last losses of its frame.
    let directories = texts(&table, "directory");
    for (i, directory) in directories.iter().enumerate() {
        let own = frame(&out.join(directory).join("frame.parquet"));
        let split = texts(&own, "split");
        let losses = floats(&own, "loss");
        let last = (0..own.height()).rev().find(|&j| split[j] == "validation").unwrap();
        assert_eq!(floats(&results, "validation_loss")[i], losses[last]);
    }
    // Nothing is run twice.
    let again = sweep(&study, &out).run().ok();
    assert_eq!(again.stderr.matches("done before").count(), 4, "{}", again.stderr);
    let more = sweep(&study, &out).words("--set learning_rate=[1e-4,1e-3,1e-2] --set model=tiny").run().ok();
    assert_eq!(more.stderr.matches("done before").count(), 2, "{}", more.stderr);
    assert_eq!(frame(&out.join("frame.parquet")).height(), 3);
    // A text that has changed is another run.
    std::fs::write(dir.path().join("text.txt"), "The key near the doors is on the table. ".repeat(60)).unwrap();
    let changed = sweep(&study, &out).words("--set model=tiny").run().ok();
    assert_eq!(changed.stderr.matches("done before").count(), 0, "{}", changed.stderr);
}

#[test]
fn causal_commands_are_swept_too() {
    let studies = [
        (
            "subspace",
            "pairs = 'tiny-agreement'\ntemplate = 0\nnum_pairs = 6\nalong = 'means'",
            "site = ['resid_post.1', 'resid_post.3']",
            "part",
        ),
        ("paths", "pairs = 'tiny-facts'\nnum_pairs = 4", "freeze = ['mlps', 'ln']", "sender"),
        (
            "saliency",
            "prompt = 'The keys'\nanswer = ' are'\nwrong = ' is'\nsteps = 4",
            "baseline = ['zero', 'mean']",
            "token",
        ),
    ];
    for (command, options, grid, column) in studies {
        let text = format!("about = 'x'\ncommand = '{command}'\n[options]\n{options}\n[grid]\n{grid}\n");
        let (dir, study) = place(&text);
        let out = dir.path().join("out");
        sweep(&study, &out).run().ok();
        let results = frame(&out.join("frame.parquet"));
        let varied = grid.split(' ').next().unwrap();
        let values: std::collections::BTreeSet<String> = texts(&results, varied).into_iter().collect();
        assert_eq!(values.len(), 2, "{command}");
        assert!(results.column(column).is_ok() && out.join("figure.svg").exists(), "{command}");
    }
}

#[test]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let (dir, study) = place(&TUNING.replace("max_iters = 4", "max_iters = 60"));
    let out = dir.path().join("out");
    for number in [libc::SIGTERM, libc::SIGINT] {
        let (mut child, _keep) = sweep(&study, &out).spawn();
        // Until a run more is done.
        let done = || {
            std::fs::read_dir(out.join("runs"))
                .map_or(0, |runs| runs.flatten().filter(|run| run.path().join("run.json").exists()).count())
        };
        let before = done();
        assert!(stop_when(&mut child, || done() > before), "it ended before it was to be stopped");
        assert!(done() < 4, "{} of 4 runs when it was to be stopped", done());
        signal(&child, number);
        go_on(&child);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(if number == libc::SIGINT { 130 } else { 143 }));
    }
    assert!(!out.join("frame.parquet").exists());
    let rest = sweep(&study, &out).run().ok();
    let before = rest.stderr.matches("done before").count();
    assert!((2..4).contains(&before), "{}", rest.stderr);
    // As if nothing had happened.
    let whole = dir.path().join("whole");
    sweep(&study, &whole).run().ok();
    let losses = |out: &Path| floats(&frame(&out.join("frame.parquet")), "validation_loss");
    assert_eq!(losses(&out), losses(&whole));
}

#[test]
fn one_failing_run_does_not_lose_the_others() {
    let study = r#"
        about = "a model that is not there"
        command = "perplexity"
        [options]
        file = "text.txt"
        [grid]
        model = ["tiny", "nowhere/at-all", "random"]
    "#;
    let (dir, study) = place(study);
    let out = dir.path().join("out");
    let failed = sweep(&study, &out).words("--offline").run();
    assert_ne!(failed.code, Some(0));
    assert!(failed.stderr.contains("1 of 3 runs failed; the first, model=nowhere/at-all:"), "{}", failed.stderr);
    let table = frame(&out.join("runs.parquet"));
    assert_eq!(texts(&table, "status"), ["done", "failed", "done"]);
    assert!(texts(&table, "error")[1].contains("nowhere/at-all") && texts(&table, "error")[0] == "null");
    assert_eq!(frame(&out.join("frame.parquet")).height(), 2);
    // It is tried again, the others are not.
    let again = sweep(&study, &out).words("--offline").run();
    assert_eq!(again.stderr.matches("done before").count(), 2, "{}", again.stderr);
    assert!(again.stderr.contains("run 2 of 3, model=nowhere/at-all: failed"), "{}", again.stderr);
}

#[test]
fn two_processes_share_a_directory() {
    let (dir, study) =
        place(&TUNING.replace("max_iters = 4", "max_iters = 40").replace("[1e-4, 1e-3]", "[1e-4, 3e-4, 1e-3, 3e-3]"));
    let out = dir.path().join("out");
    let children = [(); 2].map(|()| sweep(&study, &out).spawn());
    let mut said = Vec::new();
    for (child, _keep) in children {
        let output = child.wait_with_output().unwrap();
        said.push((output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap()));
    }
    // Whoever is through first leaves the rest to the other, unless that is through as well.
    assert!(said.iter().all(|(code, _)| [0, 75].contains(code)) && said.iter().any(|(code, _)| *code == 0), "{said:?}");
    let did = |said: &str| said.lines().filter(|line| line.starts_with("run ") && line.ends_with(" s")).count();
    assert_eq!(did(&said[0].1) + did(&said[1].1), 8, "{said:?}");
    assert!(said.iter().all(|(_, said)| did(said) > 0), "{said:?}");
    assert_eq!(frame(&out.join("frame.parquet")).height(), 8);
}

#[test]
fn a_dry_run_adds_up_what_is_left() {
    let (dir, study) = place(TUNING);
    let out = dir.path().join("out");
    let estimate = |words: &str| -> Value {
        let run = sweep(&study, &out).words("--dry-run --price 2 --format json").words(words).run().ok();
        serde_json::from_str(&run.stdout).unwrap()
    };
    let all = estimate("");
    assert_eq!((&all["runs"], &all["done"]), (&4.into(), &0.into()));
    let each = all["each"].as_array().unwrap();
    let sum: f64 = each.iter().map(|run| run["total_seconds"].as_f64().unwrap()).sum();
    assert!((all["total_seconds"].as_f64().unwrap() - sum).abs() < 1e-9 && sum > 0.0);
    assert!(!out.exists());
    sweep(&study, &out).words("--set learning_rate=1e-4").run().ok();
    assert_eq!(estimate("")["done"], 2);
}

fn wrong(study: &str, words: &str) -> Outcome {
    let (dir, study) = place(study);
    let run = sweep(&study, &dir.path().join("out")).words(words).run();
    assert!(!dir.path().join("out").exists(), "{}", run.stderr);
    run
}

#[test]
fn wrong_studies_are_one_line_and_start_nothing() {
    let with = |from: &str, to: &str| {
        let text = TUNING.replace(from, to);
        assert_ne!(text, TUNING, "{from}");
        wrong(&text, "")
    };
    for (from, to, why) in [
        ("max_iters", "max_itres", "there is no option of finetune `max_itres`; the nearest is `max_iters`"),
        ("\"finetune\"", "\"finetun\"", "there is no command for a sweep `finetun`; the nearest is `finetune`"),
        ("[1e-4, 1e-3]", "[]", "grid.learning_rate is empty"),
        ("[1e-4, 1e-3]", "[1e-4, 'fast']", "--set learning_rate"),
        ("batch_size = 2", "batch_size = 2\nout = \"x\"", "there is no option of finetune `out`"),
        ("[grid]", "[gird]", "there is no key `gird`, the nearest is `grid`"),
        ("about", "abuot", "there is no key `abuot`"),
        ("[options]", "[options]\ndtype = \"f64\"", "invalid value 'f64'"),
    ] {
        with(from, to).refused(65, why);
    }
    wrong(&TUNING.replace("[options]", "[options]\nmodels = \"tiny\""), "")
        .refused(65, "no option of finetune `models`");
    let lens = "about = 'x'\ncommand = 'lens'\n[options]\nprompt = 'Mary'\n[grid]\ntop = [1, 2]";
    wrong(lens, "--dry-run").refused(2, "lens has no --dry-run; there is one of ablate, behave");
    let both =
        "about = 'x'\ncommand = 'behave'\n[options]\nmodels = 'tiny'\nsuites = 'tiny-ioi'\n[grid]\nmodel = ['tiny']";
    wrong(both, "").refused(65, "`model` and `models` exclude each other");
    wrong(TUNING, "--model random").refused(2, "stand in the study, in [options]");
    wrong(TUNING, "--set max_iters").refused(2, "KEY=VALUE");
    Interp::new().words("sweep nowhere.toml").run().refused(66, "nowhere.toml");
    let (dir, study) = place(TUNING);
    sweep(&study, dir.path()).run().refused(73, "it holds other files");
}

#[test]
fn what_is_varied_is_never_rewritten() {
    let study = r#"
        about = "numbers of two kinds"
        command = "generate"
        [options]
        max_new_tokens = 3
        [grid]
        temperature = [0.7, 1]
    "#;
    let (dir, study) = place(study);
    let out = dir.path().join("out");
    sweep(&study, &out).run().ok();
    assert_eq!(floats(&frame(&out.join("frame.parquet")), "temperature"), [0.7, 1.0]);
    // A column of the command that tells more than what is varied stays beside it.
    let study = r#"
        about = "examples, two at once"
        command = "behave"
        [options]
        suites = "tiny-few-shot"
        num_questions = 8
        [grid]
        shots = [[0, 2], [4]]
    "#;
    std::fs::write(dir.path().join("study.toml"), study).unwrap();
    let out = dir.path().join("shots");
    sweep(&dir.path().join("study.toml"), &out).run().ok();
    let results = frame(&out.join("frame.parquet"));
    assert_eq!(texts(&results, "option.shots")[0], "0,2");
    let mut shots: Vec<u32> = results.column("shots").unwrap().u32().unwrap().into_no_null_iter().collect();
    shots.dedup();
    assert_eq!(shots, [0, 2, 4]);
    // Runs of different columns stand under each other, and are not drawn by chance.
    let study = "about = 'two kinds'\ncommand = 'heads'\n[options]\nsequences = 1\nlength = 8\n[grid]\ncomposition = [false, true]";
    std::fs::write(dir.path().join("study.toml"), study.replace("sequences = 1\nlength = 8\n", "")).unwrap();
    let out = dir.path().join("kinds");
    let run = sweep(&dir.path().join("study.toml"), &out).run().ok();
    assert!(run.stderr.contains("note: no figure") && !out.join("figure.svg").exists(), "{}", run.stderr);
    let results = frame(&out.join("frame.parquet"));
    assert!(
        results.column("previous").unwrap().null_count() > 0 && results.column("baseline").unwrap().null_count() > 0
    );
    // What cannot be drawn is not lost.
    std::fs::write(
        dir.path().join("study.toml"),
        study.replace("sequences = 1\nlength = 8\n", "") + "\n[figure]\ny = 'nope'",
    )
    .unwrap();
    let run = sweep(&dir.path().join("study.toml"), &out).run();
    assert!(run.code == Some(2) && run.stderr.contains("there is no column `nope`"), "{}", run.stderr);
    assert!(out.join("frame.parquet").exists() && out.join("run.json").exists());
}

#[test]
fn a_run_is_what_it_reads() {
    let study = r#"
        about = "a model in a directory, and texts in one"
        command = "perplexity"
        [options]
        file = "text.txt"
        [grid]
        model = ["random"]
        stride = [32, 64]
    "#;
    let (dir, study) = place(study);
    let out = dir.path().join("out");
    sweep(&study, &out).run().ok();
    // From elsewhere it is the same run.
    assert_eq!(sweep(&study, &out).run().ok().stderr.matches("done before").count(), 2);
    let weights = dir.path().join("random/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_eq!(sweep(&study, &out).run().ok().stderr.matches("done before").count(), 0);
    // A result without its frame is none.
    let table = frame(&out.join("runs.parquet"));
    std::fs::remove_file(out.join(&texts(&table, "directory")[0]).join("frame.parquet")).unwrap();
    assert_eq!(sweep(&study, &out).run().ok().stderr.matches("done before").count(), 1);
    // Seed 0 is a seed like others.
    let seeds = TUNING.replace("[1e-4, 1e-3]", "[1e-3]").replace("model = [\"tiny\", \"random\"]", "seed = [0, 1337]");
    std::fs::write(dir.path().join("study.toml"), seeds).unwrap();
    let out = dir.path().join("seeds");
    sweep(&study, &out).run().ok();
    let losses = floats(&frame(&out.join("frame.parquet")), "validation_loss");
    assert_ne!(losses[0], losses[1]);
    // Keys that fit only together are checked together.
    let together = TUNING
        .replace("batch_size = 2", "batch_size = 6")
        .replace("learning_rate = [1e-4, 1e-3]", "micro_batch_size = [1, 3]");
    std::fs::write(dir.path().join("study.toml"), together).unwrap();
    sweep(&study, &dir.path().join("together")).words("--set model=tiny").run().ok();
}

#[test]
fn old_results_do_not_outlive_a_sweep_that_failed() {
    let study = "about = 'x'\ncommand = 'perplexity'\n[options]\nfile = 'text.txt'\n[grid]\nmodel = ['random']";
    let (dir, study) = place(study);
    let out = dir.path().join("out");
    sweep(&study, &out).run().ok();
    assert!(out.join("frame.parquet").exists());
    std::fs::write(dir.path().join("random/config.json"), "{}").unwrap();
    let failed = sweep(&study, &out).run();
    assert_eq!(failed.code, Some(65), "{}", failed.stderr);
    assert!(!out.join("frame.parquet").exists() && !out.join("run.json").exists() && out.join("runs.parquet").exists());
}

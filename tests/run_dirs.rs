//! Output directories: nothing of anybody's is overwritten, mixed or lost.

#[path = "common/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use interp::run_dir::Claim;
use interp::weights::sha256;
use process::{Interp, Outcome, files};
use serde_json::Value;

/// Every file and link below a directory with what it holds.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let content = |path: &Path| match std::fs::read_link(path) {
        Ok(to) => to.as_os_str().as_bytes().to_vec(),
        Err(_) => std::fs::read(path).unwrap(),
    };
    files(dir).into_iter().map(|path| (path.strip_prefix(dir).unwrap().to_path_buf(), content(&path))).collect()
}

fn record(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("run.json")).unwrap()).unwrap()
}

/// Asserts that a directory holds a run: every file that run.json lists as it says. Returns their names.
fn whole(dir: &Path) -> Vec<String> {
    let run = record(dir);
    let listed = run["files"].as_array().unwrap_or_else(|| panic!("{run}"));
    assert!(listed.len() >= 2, "{run}");
    let name = |file: &Value| {
        let path = dir.join(file["name"].as_str().unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), file["bytes"].as_u64().unwrap(), "{}", path.display());
        assert_eq!(sha256(&path).unwrap(), file["sha256"].as_str().unwrap(), "{}", path.display());
        file["name"].as_str().unwrap().to_string()
    };
    listed.iter().map(name).collect()
}

/// Asserts that a directory holds a run and nothing else, also nothing hidden.
fn alone(dir: &Path) {
    let mut names = whole(dir);
    names.push("run.json".into());
    names.sort();
    let found: Vec<String> = snapshot(dir).into_keys().map(|path| path.to_str().unwrap().to_string()).collect();
    assert_eq!(found, names);
}

/// A command with an output directory.
fn out(words: &str, dir: &Path) -> Interp {
    Interp::new().words(words).arg("--out").arg(dir)
}

fn predict(dir: &Path) -> Interp {
    out("predict -q --prompt hello", dir)
}

/// What stands in a directory, hidden names included.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn refused(outcome: Outcome, code: i32, wanted: &str) {
    assert_eq!(outcome.code, Some(code), "{wanted}: {outcome:?}");
    assert!(
        outcome.stderr.contains(wanted) && outcome.stderr.trim_end().lines().count() == 1,
        "{wanted}: {}",
        outcome.stderr
    );
}

#[test]
fn a_run_owns_what_it_lists_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("out");
    predict(&dir).run().ok();
    alone(&dir);
    // Another command takes its place, and leaves nothing of it.
    out(
        "steer -q --prompt hello --positive good --negative bad --site resid_post.1 --strength 0 --max-new-tokens 1",
        &dir,
    )
    .run()
    .ok();
    alone(&dir);
    assert!(dir.join("directions.safetensors").exists());
    predict(&dir).run().ok();
    alone(&dir);
    // What the user put there stays, whatever it is called.
    std::fs::create_dir(dir.join("notes")).unwrap();
    let own = ["circuit.toml", "notes/a.txt", "tokens.parquet", "probes.json", ".hidden", "metrics.jsonl"];
    own.iter().for_each(|name| std::fs::write(dir.join(name), b"mine").unwrap());
    for words in ["predict -q --prompt Mary", "lens -q --prompt hello", "perplexity -q --prompt hello"] {
        out(words, &dir).run().ok();
        whole(&dir);
        own.iter().for_each(|name| assert_eq!(std::fs::read(dir.join(name)).unwrap(), b"mine", "{words}: {name}"));
    }
    assert!(!dir.join("figure.html").exists(), "what the lens wrote is gone");
    // But nothing of his is replaced.
    let before = snapshot(&dir);
    refused(
        out("perplexity -q --prompt hello --per-token", &dir).run(),
        73,
        "tokens.parquet was not written by the run there",
    );
    assert!(snapshot(&dir) == before);
    std::fs::write(dir.join("figure.svg"), b"better").unwrap();
    let before = snapshot(&dir);
    refused(predict(&dir).run(), 73, "figure.svg is no longer what the run there wrote");
    assert!(snapshot(&dir) == before);
    assert_eq!(names(place.path()), ["out"], "nothing is left beside it");
}

/// Not the request, not its failure: only a complete result takes the place of an earlier one.
#[test]
fn what_is_refused_or_fails_leaves_the_earlier_run_whole() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("out");
    predict(&dir).run().ok();
    let before = snapshot(&dir);
    let refusals = [
        "perplexity --prompt hello --context 0",
        "perplexity --file nowhere.txt",
        "predict --prompt hello --edit nowhere.toml",
        "attention --prompt hello --layer 77",
        "steer --prompt hello --load nowhere.safetensors",
        "subspace --pairs ioi --site resid_post.77",
        "circuit test nowhere.toml --pairs ioi",
        "probe train nothing",
        "behave nothing",
        "patch --pairs nothing",
        "models convert nowhere.pt",
        "train",
        "finetune --file nowhere.txt",
        "sweep nowhere.toml",
        "export --site resid_post.1 --file nowhere.txt",
        "generate --prompt hello --model nowhere",
    ];
    for words in refusals {
        let outcome = out(words, &dir).run();
        assert!(outcome.code != Some(0) && outcome.code != Some(70), "{words}: {outcome:?}");
        assert!(snapshot(&dir) == before && names(place.path()) == ["out"], "{words}: {}", outcome.stderr);
    }
    // A disk that is full when the result is written: a frame of a few kB does not fit.
    let outcome = predict(&dir).limit_files(100).run();
    assert!(matches!(outcome.code, Some(73 | 74)), "{outcome:?}");
    assert!(snapshot(&dir) == before && names(place.path()) == ["out"]);
}

#[test]
fn what_a_command_reads_is_never_replaced_by_it() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir(at("texts")).unwrap();
    std::fs::write(at("texts/a.txt"), "hello there\n").unwrap();
    let reading =
        |words: &str, input: &Path, dir: &Path| Interp::new().words(words).arg(input).arg("--out").arg(dir).run();
    // A directory of texts is no run, and an input among a run's files stays.
    refused(reading("predict -q --file", &at("texts/a.txt"), &at("texts")), 73, "it holds other files (a.txt)");
    predict(&at("run")).run().ok();
    std::fs::write(at("run/a.txt"), "hello there\n").unwrap();
    reading("predict -q --file", &at("run/a.txt"), &at("run")).ok();
    assert_eq!(std::fs::read(at("run/a.txt")).unwrap(), b"hello there\n");
    // The output of one command that is the input of the next.
    out("circuit find -q --pairs tiny-ioi --num-pairs 4 --method eap --edges 5", &at("circuit")).run().ok();
    out(
        "steer -q --prompt hello --positive good --negative bad --site resid_post.1 --strength 0 --max-new-tokens 1",
        &at("steer"),
    )
    .run()
    .ok();
    out("subspace -q --pairs tiny-ioi --template 0 --num-pairs 4 --site resid_post.1 --along pca", &at("subspace"))
        .run()
        .ok();
    let cases = [
        ("circuit", "circuit.toml", "circuit test -q --pairs tiny-ioi --num-pairs 4", "circuit.toml"),
        (
            "steer",
            "directions.safetensors",
            "steer -q --prompt hello --strength 0 --max-new-tokens 1 --load",
            "directions.safetensors",
        ),
        (
            "subspace",
            "subspace.safetensors",
            "subspace -q --pairs tiny-ioi --template 0 --num-pairs 4 --site resid_post.1 --along",
            "subspace.safetensors",
        ),
    ];
    for (dir, input, words, wanted) in cases {
        let before = snapshot(&at(dir));
        refused(
            reading(words, &at(dir).join(input), &at(dir)),
            73,
            &format!("this command reads {wanted}, which the run of {dir} there wrote"),
        );
        assert!(snapshot(&at(dir)) == before, "{words}");
        reading(words, &at(dir).join(input), &at("elsewhere")).ok();
    }
    // What has a name of the directory's is no input.
    out("predict -q --prompt", &at("hello")).arg("hello").run();
}

#[test]
fn two_runs_never_mix() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("out");
    let held = Claim::open(&dir, "predict", &[]).unwrap();
    std::fs::write(place.path().join("text.txt"), "a text. ".repeat(400)).unwrap();
    let text = place.path().join("text.txt");
    std::fs::create_dir(place.path().join("gone")).unwrap();
    let training = |command: &str| Interp::new().words(command).arg("--file").arg(&text).arg("--out").arg(&dir);
    for command in [
        predict(&dir),
        predict(&place.path().join("gone/../out/.")), // another name of the same directory
        training("train --set n_layer=1 --set tokenizer=bpe"),
        training("finetune --set max_iters=1"),
    ] {
        refused(command.run(), 75, "another process is writing there");
    }
    drop(held);
    assert_eq!(names(place.path()), ["gone", "text.txt"], "a claim that is dropped leaves nothing");
    // Whoever is first wins, whoever comes meanwhile is told, and what is there in the end is one of them.
    let prompts = ["Mary", "John and Mary", "the key to the doors", "When Mary and John went to the shop"];
    for _ in 0..5 {
        let running: Vec<_> = prompts
            .iter()
            .map(|prompt| Interp::new().words("predict -q --out").arg(&dir).arg("--prompt").arg(prompt).spawn())
            .collect();
        let codes: Vec<Option<i32>> =
            running.into_iter().map(|(mut child, _keep)| child.wait().unwrap().code()).collect();
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 75))) && codes.contains(&Some(0)), "{codes:?}");
        alone(&dir);
        assert_eq!(names(place.path()), ["gone", "out", "text.txt"]);
    }
}

/// A process that is killed at any moment leaves the earlier run or the new one, and the next one clears up.
#[test]
fn a_killed_run_leaves_a_whole_one() {
    let place = tempfile::tempdir().unwrap();
    for foreign in [false, true] {
        let dir = place.path().join(format!("out{foreign}"));
        predict(&dir).run().ok();
        if foreign {
            std::fs::write(dir.join("notes.md"), b"mine").unwrap();
        }
        for wait in 0..25 {
            let words = ["predict -q --prompt hello", "lens -q --prompt Mary"][wait % 2];
            let (mut child, _keep) = out(words, &dir).spawn();
            std::thread::sleep(std::time::Duration::from_millis(4 * wait as u64));
            child.kill().unwrap();
            child.wait().unwrap();
            if !foreign {
                alone(&dir);
            }
        }
        predict(&dir).run().ok();
        whole(&dir);
        assert!(!foreign || std::fs::read(dir.join("notes.md")).unwrap() == b"mine");
        let left: Vec<String> =
            names(place.path()).into_iter().chain(names(&dir)).filter(|name| name.starts_with('.')).collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn the_directory_itself_is_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("out");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o750)).unwrap();
    for _ in 0..2 {
        predict(&dir).run().ok();
        alone(&dir);
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o750);
    }
    // Whoever works in it still does afterwards.
    for _ in 0..2 {
        let outcome = Interp::new().words("predict -q --prompt hello --out .").run().ok();
        alone(outcome.dir.path());
    }
    let here = Interp::new().words("predict -q --prompt hello --out .");
    std::fs::write(here.dir().join("thesis.tex"), b"mine").unwrap();
    let outcome = here.run();
    assert!(outcome.code == Some(73) && names(outcome.dir.path()) == ["thesis.tex"], "{outcome:?}");
    // A name as long as names may be.
    let long = place.path().join("x".repeat(255));
    predict(&long).run().ok();
    predict(&long).run().ok();
    alone(&long);
    assert_eq!(names(place.path()).len(), 2);
}

#[test]
fn links_in_a_directory_lead_nowhere() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir(at("other")).unwrap();
    std::fs::write(at("victim"), b"mine").unwrap();
    std::fs::write(at("other/model.safetensors"), b"mine").unwrap();
    let untouched = || {
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"mine");
        assert_eq!(names(&at("other")), ["model.safetensors"]);
        assert_eq!(std::fs::read(at("other/model.safetensors")).unwrap(), b"mine");
    };
    // Of a result, in place of each of its files and of what the program itself might look for.
    let dir = at("out");
    predict(&dir).run().ok();
    let own = whole(&dir);
    let further = [
        "run.json",
        ".interp-ready",
        ".interp-lock",
        ".lock",
        ".interp-probe",
        ".abcdef.interp-tmp",
        ".interp-run.json",
    ];
    for name in own.iter().map(String::as_str).chain(further) {
        for target in ["victim", "other", "nowhere"] {
            std::fs::remove_dir_all(&dir).unwrap();
            predict(&dir).run().ok();
            let _ = std::fs::remove_file(dir.join(name));
            symlink(at(target), dir.join(name)).unwrap();
            let outcome = predict(&dir).run();
            assert!(matches!(outcome.code, Some(0 | 73)), "{name} → {target}: {outcome:?}");
            assert!(own.iter().all(|own| own != name) || outcome.code == Some(73), "{name} → {target}: {outcome:?}");
            assert!(!at("nowhere").exists(), "{name}");
            untouched();
        }
    }
    // The lock beside it.
    std::fs::remove_dir_all(&dir).unwrap();
    for target in ["victim", "other", "nowhere"] {
        symlink(at(target), at(".out.interp-lock")).unwrap();
        refused(predict(&dir).run(), 73, "it is a link where a lock belongs");
        std::fs::remove_file(at(".out.interp-lock")).unwrap();
        assert!(!at("nowhere").exists() && !dir.exists());
        untouched();
    }
    // Of a training run that somebody sent, and that is continued.
    std::fs::write(at("text.txt"), "the key to the doors is here. ".repeat(60)).unwrap();
    let tune = |steps: u32| {
        let words = "finetune -q --set block_size=8 --set batch_size=1 --set eval_rows=1 --set keep_best=true --set checkpoint_interval=1 --set decay_lr=false --set eval_interval=1 --file";
        Interp::new()
            .words(words)
            .arg(at("text.txt"))
            .words(&format!("--set max_iters={steps}"))
            .arg("--out")
            .arg(at("tuned"))
    };
    tune(1).run().ok();
    let sent = [
        "best",
        "metrics.jsonl",
        "state.safetensors",
        "model.safetensors",
        "figure.svg",
        "run.json",
        "best/model.safetensors",
        "config.json",
        ".interp-run.json",
        ".lock",
    ];
    for (i, name) in sent.into_iter().enumerate() {
        let path = at("tuned").join(name);
        let kept = at("kept");
        let there = path.exists();
        if there {
            std::fs::rename(&path, &kept).unwrap();
        }
        for target in ["other", "victim"] {
            symlink(at(target), &path).unwrap();
            let outcome = tune(2 + i as u32).run();
            assert!(matches!(outcome.code, Some(0 | 65 | 73)), "{name} → {target}: {outcome:?}");
            untouched();
            let _ = std::fs::remove_file(&path);
        }
        if there {
            std::fs::rename(&kept, &path).unwrap();
        }
    }
}

#[test]
fn training_and_models_take_no_directory_of_others() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::write(at("text.txt"), "the key to the doors is here. ".repeat(60)).unwrap();
    let small = "--set block_size=16 --set batch_size=1 --set eval_rows=1 --set max_iters=1 --file";
    let tune =
        |dir: &str| Interp::new().words("finetune -q").words(small).arg(at("text.txt")).arg("--out").arg(at(dir));
    let train = |dir: &str| {
        let shape = "train -q --set n_layer=1 --set n_head=1 --set n_embd=8 --set model.block_size=16 --set vocab_size=300 --set tokenizer=bpe";
        Interp::new().words(shape).words(small).arg(at("text.txt")).arg("--out").arg(at(dir))
    };
    train("model").run().ok();
    whole(&at("model"));
    std::fs::create_dir(at("thesis")).unwrap();
    std::fs::write(at("thesis/thesis.tex"), b"mine").unwrap();
    predict(&at("result")).run().ok();
    out("export -q --site resid_post.1 --prompt hello", &at("data")).run().ok();
    std::fs::create_dir(at("bare")).unwrap();
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        std::fs::copy(at("model").join(name), at("bare").join(name)).unwrap();
    }
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nanogpt/char/ckpt.pt");
    let convert = |dir: &str| Interp::new().words("models convert -q").arg(&checkpoint).arg("--out").arg(at(dir));
    let before = snapshot(place.path());
    for dir in ["thesis", "result", "data", "bare"] {
        refused(tune(dir).run(), 73, "it holds");
        refused(train(dir).run(), 73, "it holds");
    }
    refused(tune("model").run(), 73, "it holds a run of train");
    for dir in ["thesis", "data", "bare", "model"] {
        refused(convert(dir).run(), 73, "it holds");
        refused(predict(&at(dir)).run(), 73, "it holds");
        refused(
            out("export -q --site resid_post.1 --prompt there", &at(dir)).run(),
            if dir == "data" { 65 } else { 73 },
            "",
        );
    }
    // The base of a fine-tuning is not what it writes over.
    for base in ["bare", "model"] {
        refused(tune(base).words("--model").arg(at(base)).run(), 73, "it holds");
    }
    tune("tuned").words("--model").arg(at("bare")).run().ok();
    let tuned = snapshot(&at("tuned"));
    refused(
        tune("tuned").words("--model").arg(at("tuned")).run(),
        73,
        "this command reads the directory, which the run of finetune there wrote",
    );
    assert!(snapshot(&at("tuned")) == tuned);
    std::fs::remove_dir_all(at("tuned")).unwrap();
    assert!(snapshot(place.path()) == before);
    // A conversion takes a new directory and its own earlier one; other commands leave the model alone.
    convert("converted").run().ok();
    convert("converted").run().ok();
    alone(&at("converted"));
    refused(predict(&at("converted")).run(), 73, "it holds a model, which convert wrote");
    Interp::new().words("predict -q --prompt hello --model").arg(at("model")).run().ok();
}

#[test]
fn temporaries_of_killed_runs_are_removed_and_nobody_elses() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::write(at("text.txt"), "the key to the doors is here. ".repeat(60)).unwrap();
    let words = "finetune -q --set block_size=8 --set batch_size=1 --set eval_rows=1 --set keep_best=true --set decay_lr=false --file";
    let tune = |steps: u32| {
        Interp::new()
            .words(words)
            .arg(at("text.txt"))
            .words(&format!("--set max_iters={steps}"))
            .arg("--out")
            .arg(at("tuned"))
            .run()
            .ok()
    };
    tune(1);
    let left = [
        ".state.safetensors.a1B2c3.tmp",
        ".metrics.jsonl.zzzzzz.tmp",
        "best/.model.safetensors.ABCDEF.tmp",
        "..interp-run.json.abcdef.tmp",
        ".run.json.abcdef.tmp",
    ];
    let mine = [".notes.abcdef.tmp", ".state.safetensors.tmp", "state.safetensors.bak", "best/.x.tmp"];
    left.iter().chain(&mine).for_each(|name| std::fs::write(at("tuned").join(name), b"x").unwrap());
    tune(2);
    left.iter().for_each(|name| assert!(!at("tuned").join(name).exists(), "{name}"));
    mine.iter().for_each(|name| assert!(at("tuned").join(name).exists(), "{name}"));
    // Of a result: directories beside it and in it, with whatever is in them.
    predict(&at("out")).run().ok();
    for stage in [
        at(".out.abcdef.interp-tmp"),
        at("out/.abcdef.interp-tmp"),
        at(".out2.abcdef.interp-tmp"),
        at(".out.abc.interp-tmp"),
    ] {
        std::fs::create_dir(&stage).unwrap();
        std::fs::write(stage.join("frame.parquet"), b"half").unwrap();
    }
    std::fs::write(at(".out.interp-lock"), b"").unwrap();
    predict(&at("out")).run().ok();
    alone(&at("out"));
    assert_eq!(names(place.path()), [".out.abc.interp-tmp", ".out2.abcdef.interp-tmp", "out", "text.txt", "tuned"]);
}

/// Paths are bytes: every command writes exactly where it is told, and says where its record could not.
#[test]
fn a_directory_whose_name_is_not_utf8() {
    let place = tempfile::tempdir().unwrap();
    let strange = |name: &[u8]| place.path().join(OsStr::from_bytes(name));
    let text = strange(b"text-\xFF.txt");
    std::fs::write(&text, "the key to the doors is here.\n".repeat(60)).unwrap();
    std::fs::write(
        place.path().join("study.toml"),
        "about = 'x'\ncommand = 'lens'\n[options]\nprompt = 'Mary'\n[grid]\ntop = [1, 2]",
    )
    .unwrap();
    let small = "--set block_size=8 --set batch_size=1 --set eval_rows=1 --set max_iters=1 --set checkpoint_interval=1 --set keep_best=true";
    let steer = "steer -q --prompt hello --strength 0 --max-new-tokens 1";
    let run = |name: &str, command: Interp| {
        let dir = strange(&[name.as_bytes(), b"-\xFE\xFF"].concat());
        let outcome = command.arg("--out").arg(&dir).run().ok();
        let record = record(&dir);
        assert_eq!(record["arguments_lossy"], true, "{name}: {}", outcome.stderr);
        whole(&dir);
        dir
    };
    run("predict", Interp::new().words("predict -q --file").arg(&text));
    run("perplexity", Interp::new().words("perplexity -q --file").arg(&text));
    run("capture", Interp::new().words("capture -q --site resid_post.1 --prompt hello"));
    let found = run("steer", Interp::new().words(steer).words("--positive good --negative bad --site resid_post.1"));
    run("load", Interp::new().words(steer).arg("--load").arg(found.join("directions.safetensors")));
    let tuned = run("finetune", Interp::new().words("finetune -q").words(small).arg("--file").arg(&text));
    assert!(tuned.join("best/model.safetensors").exists() && record(&tuned)["recipe_lossy"] == true);
    // It is continued by the same words.
    run(
        "finetune",
        Interp::new().words("finetune -q").words(&small.replace("max_iters=1", "max_iters=2")).arg("--file").arg(&text),
    );
    let shape = "train -q --set n_layer=1 --set n_head=1 --set n_embd=8 --set model.block_size=16 --set vocab_size=300 --set tokenizer=bpe";
    run("train", Interp::new().words(shape).words(small).arg("--file").arg(&text));
    let circuit =
        run("circuit", Interp::new().words("circuit find -q --pairs tiny-ioi --num-pairs 4 --method eap --edges 5"));
    // What may be a name as well as a path is text.
    let file = place.path().join("circuit.toml");
    std::fs::copy(circuit.join("circuit.toml"), &file).unwrap();
    run("test", Interp::new().words("circuit test -q --pairs tiny-ioi --num-pairs 4").arg(&file));
    Interp::new()
        .words("circuit test --pairs tiny-ioi")
        .arg(circuit.join("circuit.toml"))
        .run()
        .refused(2, "is not UTF-8, and an option that takes a name or a path wants that");
    run(
        "subspace",
        Interp::new().words("subspace -q --pairs tiny-ioi --template 0 --num-pairs 4 --site resid_post.1 --along pca"),
    );
    run("behave", Interp::new().words("behave -q tiny-ioi --num-questions 4"));
    let sweep = run("sweep", Interp::new().words("sweep -q").arg(place.path().join("study.toml")));
    assert_eq!(names(&sweep.join("runs")).len(), 2);
    let data = strange(b"data-\xFF");
    let outcome =
        Interp::new().words("export -q --format json --site resid_post.1 --prompt hello --out").arg(&data).run().ok();
    assert!(data.join("manifest.json").exists() && outcome.stdout.contains("data-"));
    // No directory has a replaced name.
    assert!(
        names(place.path()).iter().filter(|name| name.contains('\u{FFFD}')).count()
            == std::fs::read_dir(place.path())
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_name().to_str().is_none())
                .count()
    );
}

#[test]
fn a_record_of_a_model_replaces_nothing_but_a_record() {
    let place = tempfile::tempdir().unwrap();
    let verify = |name: &str| Interp::new().words("models verify -q --record").arg(place.path().join(name)).run();
    verify("record.json").ok();
    verify("record.json").ok();
    std::fs::write(place.path().join("mine.txt"), b"mine").unwrap();
    symlink(place.path().join("mine.txt"), place.path().join("link")).unwrap();
    symlink(place.path().join("record.json"), place.path().join("other")).unwrap();
    for name in ["mine.txt", "link", "other"] {
        refused(verify(name), 73, "name a new file");
    }
    assert_eq!(std::fs::read(place.path().join("mine.txt")).unwrap(), b"mine");
}

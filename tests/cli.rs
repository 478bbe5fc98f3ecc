//! The command line: what it writes, what it prints, and that both are safe to look at.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;

use common::{fixture, gate};
use polars::prelude::*;
use process::{Interp, Outcome, files};
use serde_json::Value;

const PROMPT: &str = "When Mary and John went to the shop, John gave a drink to";

fn with_prompt(words: &str) -> Interp {
    Interp::new().words(words).arg("--prompt").arg(PROMPT)
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("not one JSON document: {e}"))
}

fn parquet(path: &Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap()
}

/// Every command that computes something, with its columns as others rely on them.
const COMMANDS: [(&str, &str); 13] = [
    ("attention --layer 5", "prompt layer head query key query_token key_token weight"),
    ("attention --layer all", "prompt layer head query key query_token key_token weight"),
    ("report", "prompt pos token rank next_id next logit logprob"),
    ("attention --head 2.1,2.3", "prompt layer head query key query_token key_token weight"),
    ("neurons --layer -1 --top 7", "prompt layer pos token neuron activation"),
    ("residual", "prompt layer site pos token norm cosine"),
    ("predict --top 3", "prompt pos token rank next_id next logit logprob"),
    ("lens --top 2", "prompt layer pos token rank next_id next logit logprob convention entropy final_rank"),
    (
        "heads --sequences 1 --length 5",
        "layer head previous duplicate induction current bos_share entropy distance copying copying_full",
    ),
    ("heads --detect induction_head,previous_token_head", "detector layer head score"),
    ("tokens", "prompt pos token_id token"),
    ("capture --site resid_post.3,z.1", "site prompt layer pos head dim value"),
    (
        "capture --wide --site resid_post.*",
        "prompt pos token_id token resid_post.0 resid_post.1 resid_post.2 resid_post.3 resid_post.4 resid_post.5",
    ),
];

#[test]
fn several_layers_are_those_of_each_layer() {
    let rows = |layer: &str| -> Vec<Value> {
        let outcome = with_prompt(&format!("attention --format json --layer {layer}")).run().ok();
        json(&outcome)["rows"].as_array().unwrap().clone()
    };
    let all = rows("all");
    let each: Vec<Value> = (0..6).flat_map(|layer| rows(&layer.to_string())).collect();
    assert_eq!(all, each);
    let of = |layers: std::ops::RangeInclusive<u64>| -> Vec<Value> {
        all.iter().filter(|row| layers.contains(&row["layer"].as_u64().unwrap())).cloned().collect()
    };
    assert_eq!(rows("1-3"), of(1..=3));
    assert_eq!(rows("-1"), of(5..=5));
}

#[test]
fn the_lens_says_how_sure_a_layer_is_and_how_it_ranks_the_final_answer() {
    let rows = |top: &str| json(&with_prompt(&format!("lens --format json --top {top}")).run().ok())["rows"].clone();
    let all = rows("100000");
    let all = all.as_array().unwrap();
    let at = |row: &Value, name: &str| row[name].as_f64().unwrap();
    for layer in [0.0, 3.0, 6.0] {
        let own: Vec<&Value> = all.iter().filter(|row| (at(row, "layer"), at(row, "pos")) == (layer, 14.0)).collect();
        let entropy: f64 = own.iter().map(|row| -at(row, "logprob").exp() * at(row, "logprob")).sum();
        // A sum over the vocabulary, of log-probabilities of logits of size 10.
        assert!(
            gate::agree(entropy, at(own[0], "entropy"), gate::F32, 10.0),
            "{layer}: {entropy} {}",
            own[0]["entropy"]
        );
        let answer = own.iter().find(|row| row["next"] == " Mary").unwrap();
        assert_eq!(answer["rank"], own[0]["final_rank"], "{layer}");
    }
}

#[test]
fn a_report_is_about_one_prompt_that_can_be_shown() {
    Interp::new().words("report --prompt a --prompt b").run().refused(2, "a report is about one prompt, not 2");
    let long = "the key ".repeat(130);
    Interp::new().words("report --truncate right --prompt").arg(&long).run().ok();
    Interp::new().words("report --prompt x --wrong y").run().refused(2, "--answer");
    let outcome = Interp::new().words("report --prompt").arg(PROMPT).run().ok();
    let shares = parquet(&outcome.output().join("attribution.parquet"));
    assert_eq!(shares.column("answer").unwrap().str().unwrap().get(0), Some(" Mary"));
    assert_eq!(shares.column("wrong").unwrap().str().unwrap().get(0), Some(" them"));
}

/// Where a page would be too large to open there is none, and the user is told.
#[test]
fn a_page_that_is_too_large_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "gpt2", "n_layer": 1, "n_head": 16, "n_embd": 16, "n_positions": 1024, "vocab_size": 2000,
    });
    let config = interp::Config::parse(config.to_string().as_bytes(), Path::new("config.json")).unwrap();
    let model = interp::Gpt2::new(config.clone(), interp::initial::draw(&config, 0)).unwrap();
    let tokenizer = interp::embedded::tokenizer().unwrap();
    std::fs::create_dir(dir.path().join("model")).unwrap();
    interp::weights::write_model(&dir.path().join("model"), &model, Some(&tokenizer)).unwrap();
    let run = |words: &str| {
        let command = Interp::new().words(words).words("--out").arg(dir.path().join("out"));
        command
            .words("--truncate right --prompt")
            .arg("the key ".repeat(600))
            .words("--model")
            .arg(dir.path().join("model"))
            .run()
            .ok()
    };
    run("attention --head 0.3");
    assert!(dir.path().join("out/figure.html").exists());
    let outcome = run("attention --layer 0");
    assert!(
        outcome.stderr.contains("there is no figure.html: the page would have 21 MB, more than the 20"),
        "{}",
        outcome.stderr
    );
    assert!(!dir.path().join("out/figure.html").exists(), "nor is that of the last run left");
    let record: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/run.json")).unwrap()).unwrap();
    assert!(record["page"].as_str().unwrap().contains("21 MB"));
}

#[test]
fn every_command_leaves_frame_figures_and_provenance() {
    for (words, columns) in COMMANDS {
        let outcome = with_prompt(words).run().ok();
        let dir = outcome.output();
        let mut names: Vec<String> =
            files(&dir).iter().map(|f| f.file_name().unwrap().to_str().unwrap().into()).collect();
        names.sort();
        let command = words.split(' ').next().unwrap();
        let mut wanted = vec!["figure.png", "figure.svg", "frame.parquet", "run.json"];
        if ["attention", "heads", "lens", "neurons", "predict", "report"].contains(&command) {
            wanted.insert(0, "figure.html");
        }
        if command == "report" {
            wanted.extend(["attention.parquet", "attribution.parquet", "lens.parquet", "neurons.parquet"]);
            wanted.sort_unstable();
        }
        assert_eq!(names, wanted, "{words}");
        let frame = parquet(&dir.join("frame.parquet"));
        let found: Vec<String> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
        assert_eq!(found.join(" "), columns, "{words}");
        assert!(frame.height() > 0, "{words}");
        let svg = std::fs::read_to_string(dir.join("figure.svg")).unwrap();
        let svg = roxmltree::Document::parse(&svg).unwrap_or_else(|e| panic!("{words}: {e}"));
        assert_eq!(svg.root_element().tag_name().name(), "svg");
        let png = std::fs::read(dir.join("figure.png")).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{words}");
        let run = outcome.record();
        assert_eq!(run["command"], command);
        assert_eq!(run["basis"], "raw");
        assert_eq!(run["bos"], "auto");
        assert_eq!(run["model"]["name"], "tiny");
        assert_eq!(run["model"]["weights_sha256"][0], interp::weights::sha256_of(interp::embedded::WEIGHTS));
        assert_eq!(run["token_ids"][0].as_array().unwrap().len(), 15, "{words}");
        assert!(outcome.stdout.trim_end().ends_with(dir.strip_prefix(outcome.dir.path()).unwrap().to_str().unwrap()));
    }
    let sites = Interp::new().words("sites").run().ok();
    assert_eq!(files(&sites.output()).len(), 4);
}

#[test]
fn attention_rows_add_up_to_one_and_never_look_ahead() {
    for layer in 0..6 {
        let outcome = with_prompt(&format!("attention --layer {layer}")).run().ok();
        let frame = parquet(&outcome.output().join("frame.parquet"));
        let ints =
            |name: &str| -> Vec<u32> { frame.column(name).unwrap().u32().unwrap().into_no_null_iter().collect() };
        let (head, query, key) = (ints("head"), ints("query"), ints("key"));
        let mut sums = [[0.0_f64; 15]; 4];
        for (i, weight) in frame.column("weight").unwrap().f32().unwrap().into_no_null_iter().enumerate() {
            assert!(key[i] <= query[i] && weight >= 0.0);
            sums[head[i] as usize][query[i] as usize] += f64::from(weight);
        }
        assert!(sums.iter().flatten().all(|sum| gate::agree(*sum, 1.0, gate::F32, 1.0)), "{sums:?}");
    }
}

#[test]
fn json_is_exactly_one_document_and_equals_the_frame() {
    for (words, columns) in COMMANDS {
        let outcome = with_prompt(words).words("--format json").run().ok();
        let document = json(&outcome);
        let frame = parquet(&outcome.output().join("frame.parquet"));
        let rows = document["rows"].as_array().unwrap();
        assert_eq!(rows.len(), frame.height(), "{words}");
        let keys: Vec<&str> = columns.split(' ').collect();
        let row = rows.last().unwrap().as_object().unwrap();
        assert_eq!(row.len(), keys.len());
        for key in keys {
            let value = frame.column(key).unwrap().get(frame.height() - 1).unwrap();
            match (&row[key], value) {
                (Value::Null, value) => assert!(value.is_null(), "{words}: {key}"),
                (Value::String(text), value) => assert_eq!(value.get_str().unwrap(), text),
                (Value::Number(number), AnyValue::Float32(x)) => {
                    assert_eq!(number.as_f64().unwrap() as f32, x, "{words}: {key}")
                }
                (Value::Number(number), AnyValue::Float64(x)) => {
                    // What is printed is exact; serde_json reads it to the last bit but one.
                    assert!((number.as_f64().unwrap() - x).abs() <= 1e-15 * x.abs(), "{words}: {key}: {number} and {x}")
                }
                (Value::Number(number), value) => assert_eq!(number.to_string(), value.to_string()),
                (Value::Array(values), AnyValue::Array(series, width)) => {
                    assert_eq!((values.len(), series.len()), (width, width))
                }
                (json, value) => panic!("{words}: {key} is {json} and {value:?}"),
            }
        }
        assert_eq!(document["run"]["command"], words.split(' ').next().unwrap());
    }
}

#[test]
fn tokens_cannot_steer_the_terminal_or_break_the_picture() {
    let nasty = "\u{1b}[2J\u{1b}]52;c;aGk=\u{7}\u{8}\r\u{202e}abc\u{0}<script>alert(1)</script>&amp;]]>\u{fffe}";
    for words in
        ["tokens", "predict", "lens", "attention --layer 0", "neurons --layer 0", "residual", "capture --site embed"]
    {
        let outcome = Interp::new().words(words).arg("--file").arg("-").stdin(nasty.replace('\r', " ")).run().ok();
        for (name, text) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
            let bad: Vec<char> = text.chars().filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}').collect();
            assert!(bad.is_empty(), "{words}: {name} holds {bad:?}");
        }
        let svg = std::fs::read_to_string(outcome.output().join("figure.svg")).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|e| panic!("{words}: {e}"));
        assert!(!document.descendants().any(|node| node.tag_name().name() == "script"), "{words}");
    }
    let error = Interp::new().words("sites --model").arg("\u{1b}]0;title\u{7}x").run();
    assert!(!error.stderr.contains('\u{1b}') && !error.stderr.contains('\u{7}'), "{:?}", error.stderr);
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let run = |threads: &str| {
        let outcome = with_prompt("attention --layer 3 --out here").env("RAYON_NUM_THREADS", threads).run().ok();
        let dir = outcome.dir.path().join("here");
        ["frame.parquet", "figure.svg", "figure.png"].map(|name| std::fs::read(dir.join(name)).unwrap())
    };
    assert!(run("2") == run("2"), "two runs differ");
    assert!(run("1") == run("2"), "one thread and two differ");
}

#[test]
fn several_prompts_make_one_frame_and_equal_single_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.txt");
    std::fs::write(&path, "\u{feff}The capital of France is\r\n\nMary said that\n").unwrap();
    let both = Interp::new().words("predict --top 2 --format json --file").arg(&path).run().ok();
    let rows = json(&both)["rows"].as_array().unwrap().clone();
    let of = |rows: &[Value], prompt: u64| -> Vec<Value> {
        let mut rows: Vec<Value> = rows.iter().filter(|r| r["prompt"] == prompt).cloned().collect();
        rows.iter_mut().for_each(|row| row["prompt"] = 0.into());
        rows
    };
    for (prompt, text) in ["The capital of France is", "Mary said that"].into_iter().enumerate() {
        let alone = Interp::new().words("predict --top 2 --format json --prompt").arg(text).run().ok();
        let alone = json(&alone)["rows"].as_array().unwrap().clone();
        let together = of(&rows, prompt as u64);
        assert_eq!(together.len(), alone.len());
        for (a, b) in together.iter().zip(&alone) {
            assert_eq!((&a["token"], &a["next"]), (&b["token"], &b["next"]));
            let logit = |row: &Value| row["logit"].as_f64().unwrap();
            assert!(gate::agree(logit(a), logit(b), gate::F32, 10.0), "logits of size 10: {a} {b}");
        }
    }
    let jsonl = dir.path().join("prompts.jsonl");
    std::fs::write(&jsonl, "{\"text\": \"The capital of France is\"}\n{\"text\": \"Mary said that\"}\n").unwrap();
    let same = Interp::new().words("predict --top 2 --format json --file").arg(&jsonl).run().ok();
    assert_eq!(json(&same)["rows"], Value::Array(rows));
    let piped = Interp::new().words("predict --top 2 --format json -").stdin("Mary said that\n").run().ok();
    assert_eq!(json(&piped)["rows"][0]["prompt"], 0);
    // More prompts than fit one batch: numbers go on.
    let many = "one two three\n".repeat(3000);
    let many = Interp::new().words("tokens --format json -").stdin(many).run().ok();
    assert_eq!(json(&many)["rows"].as_array().unwrap().last().unwrap()["prompt"], 2999);
    let many = Interp::new().words("predict --top 1 --format json -").stdin("one two three\n".repeat(2100)).run().ok();
    assert_eq!(json(&many)["rows"].as_array().unwrap().last().unwrap()["prompt"], 2099);
}

#[test]
fn an_edit_changes_the_result_and_one_that_changes_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let edits = |text: &str| {
        let path = dir.path().join("edit.toml");
        std::fs::write(&path, text).unwrap();
        path
    };
    let predict = || with_prompt("predict --top 1 --format json");
    let plain = json(&predict().run().ok());
    let path = edits("[[edit]]\nsite = \"resid_post.2\"\nop = \"scale\"\nvalue = -1.0\npos = -1\n");
    let edited = predict().arg("--edit").arg(&path).run().ok();
    let document = json(&edited);
    assert_ne!(plain["rows"][14]["logit"], document["rows"][14]["logit"]);
    assert_eq!(plain["rows"][13]["logit"], document["rows"][13]["logit"], "earlier positions are not touched");
    assert_eq!(document["run"]["plan"]["edits"][0]["site"], "resid_post.2");
    assert_eq!(document["run"]["plan"]["edits"][0]["relative_change"], 2.0);
    assert_eq!(edited.stderr, "");
    let path = edits("[[edit]]\nsite = \"z.0\"\nop = \"scale\"\nvalue = 1.0\n");
    let idle = predict().arg("--edit").arg(&path).run().ok();
    assert!(idle.stderr.contains("note: edit `scale z.0 by 1` changed nothing"), "{}", idle.stderr);
    assert_eq!(plain["rows"], json(&idle)["rows"]);
}

#[test]
fn captures_say_their_size_first_and_obey_a_limit() {
    let dry = with_prompt("capture --site * --dry-run").run().ok();
    assert!(dry.stderr.contains("137 sites, 15 tokens: "), "{}", dry.stderr);
    assert_eq!(files(dry.dir.path()).len(), 0);
    let refused = with_prompt("capture --site * --memory 6MB").run();
    assert_eq!(refused.code, Some(75), "{refused:?}");
    let wanted = "the limit of --memory is 6.00 MB; name fewer sites or shorten the text";
    assert!(refused.stderr.contains(wanted), "{refused:?}");
    assert_eq!(files(refused.dir.path()).len(), 0);
    let all = with_prompt("capture --site *").run().ok();
    let frame = parquet(&all.output().join("frame.parquet"));
    let announced: usize = all
        .stderr
        .split(' ')
        .zip(all.stderr.split(' ').skip(1))
        .find(|(_, word)| word.starts_with("rows"))
        .and_then(|(number, _)| number.parse().ok())
        .unwrap();
    assert_eq!(frame.height(), announced);
    let sites: std::collections::BTreeSet<String> =
        frame.column("site").unwrap().str().unwrap().iter().map(|s| s.unwrap().to_string()).collect();
    assert_eq!(sites.len(), 137);
}

#[test]
fn what_is_captured_is_what_the_library_reads() {
    let outcome = with_prompt("capture --wide --site resid_post.4,q.2").run().ok();
    let frame = parquet(&outcome.output().join("frame.parquet"));
    let (model, tokenizer) = (common::tiny(), interp::embedded::tokenizer().unwrap());
    let tokens = tokenizer.tokens(&[PROMPT], Default::default()).unwrap();
    let sites = [interp::Site::ResidPost(4), interp::Site::Q(2)];
    let trace = interp::Plan::new().reads(sites).run(&model, &tokens).unwrap();
    for site in sites {
        let wanted = interp::frame::to_f32(trace.get(site).unwrap()).unwrap();
        let column = frame.column(&site.to_string()).unwrap().array().unwrap().clone();
        let found: Vec<f32> = column.get_inner().f32().unwrap().into_no_null_iter().collect();
        assert_eq!(found, wanted, "{site}");
    }
}

#[test]
fn half_precision_and_bos_are_what_was_asked_for() {
    let with = |words: &str| json(&with_prompt(&format!("predict --top 1 --format json {words}")).run().ok());
    let (full, half) = (with(""), with("--dtype bf16"));
    assert_eq!(half["run"]["dtype"], "bf16");
    let logit = |document: &Value| document["rows"][14]["logit"].as_f64().unwrap();
    assert!(logit(&full) != logit(&half) && gate::agree(logit(&half), logit(&full), gate::BF16, logit(&full).abs()));
    let none = with("--bos no");
    assert_eq!(none["run"]["bos"], "no");
    assert_eq!(none["rows"].as_array().unwrap().len(), 14);
    assert_eq!(with("--bos yes")["rows"].as_array().unwrap().len(), 15);
}

#[test]
fn models_are_listed_described_and_verified() {
    let list = Interp::new().words("models list --format json").run().ok();
    let rows = json(&list)["rows"].as_array().unwrap().clone();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"]);
    assert_eq!(rows[1]["parameters"], 124_439_808);
    let info = Interp::new().words("models info --format json").arg(fixture("parity/thin")).run().ok();
    let row = &json(&info)["rows"][0];
    assert_eq!((&row["layers"], &row["neurons"], &row["heads"]), (&2.into(), &50.into(), &3.into()));
    let verify = Interp::new().words("models verify").run().ok();
    assert_eq!(verify.stdout.matches("  pass  ").count(), 3, "{}", verify.stdout);
    let verify = Interp::new().words("models verify").arg(fixture("parity/wide")).run().ok();
    assert_eq!(verify.stdout.matches("  pass  ").count(), 4, "{}", verify.stdout);
}

#[test]
fn quiet_is_quiet_and_help_is_help() {
    let quiet = with_prompt("predict --quiet").run().ok();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert_eq!(files(&quiet.output()).len(), 5);
    for words in ["--help", "attention --help", "--version"] {
        let help = Interp::new().words(words).run().ok();
        assert!(!help.stdout.is_empty() && help.stderr.is_empty(), "{words}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = Interp::new().words("completions").arg(shell).run().ok();
        assert!(script.stdout.contains("attention"), "{shell}");
    }
    let bare = Interp::new().run();
    assert_eq!(bare.code, Some(2));
    let doctor = json(&Interp::new().words("doctor --format json").run().ok());
    assert_eq!(doctor["self_test"], " Mary");
    assert_eq!(doctor["device"], interp::device::name(&common::device()));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (mut child, _dir) = with_prompt("attention --layer 1 --format csv").spawn();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status:?}");
}

#[test]
fn a_name_is_one_directory_below_the_commands() {
    let outcome = with_prompt("tokens").words("--name ioi_2.first-try").run().ok();
    assert!(outcome.output().ends_with("outputs/tokens/ioi_2.first-try"));
    let long = "x".repeat(65);
    for name in ["../x", "/abs", "a/b", ".", "..", "", "CON", "-x", ".hidden", "end.", "größe", "a b", "a\\b", &long]
    {
        with_prompt("tokens").arg(format!("--name={name}")).run().refused(2, "a name is 1 to 64 letters");
    }
    with_prompt("tokens").words("--name a --out b").run().refused(2, "cannot be used with");
}

#[test]
fn bench_times_what_it_is_asked_to() {
    let words = "bench --repeats 2 --batch 2 --context 32 --price 3.6 --format json";
    let run = Interp::new().words(words).run().ok();
    let rows = json(&run)["rows"].as_array().unwrap().clone();
    let tasks: Vec<&str> = rows.iter().map(|row| row["task"].as_str().unwrap()).collect();
    assert_eq!(tasks, ["generate", "forward", "train"]);
    for row in &rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        // Of each of two texts of 32 tokens 16 are the prompt.
        let tokens = if row["task"] == "generate" { 32.0 } else { 64.0 };
        assert!((number("tokens_per_second") - tokens / number("seconds")).abs() < 1e-6 * number("tokens_per_second"));
        assert!(number("low") <= number("tokens_per_second") && number("tokens_per_second") <= number("high"));
        let cost = 1e3 / number("tokens_per_second");
        assert!(gate::agree(number("cost_per_million_tokens"), cost, 1e-6, cost));
        assert!(number("peak_bytes") > 5e6 && number("repeats") == 2.0);
    }
    for (words, why) in [
        ("bench --task fly", "there is no task `fly`"),
        ("bench --context 257", "this model takes"),
        ("bench --task generate --context 16", "this model takes 17 to 256"),
        ("bench --repeats 0", "0 is not in 1..=100000"),
        ("bench --task train --dtype f16", "training is in f32 or bf16, not in f16"),
        ("bench --model tiny --models tiny", "cannot be used with"),
    ] {
        Interp::new().words(words).run().refused(2, why);
    }
    Interp::new()
        .words("bench --task forward --batch 300 --memory 100MB")
        .run()
        .refused(75, "the limit of --memory is 100 MB");
    Interp::new().words("bench --task forward --batch 1048576").run().refused(75, "of memory; available are");
    let batch = Interp::new().words("bench --task forward --batch 4000000000000").run();
    batch.refused(2, "4000000000000 is not in 1..=1048576");
}

#[test]
fn dry_runs_write_nothing_and_say_what_it_takes() {
    let commands = [
        "perplexity --prompt Mary_and_John --dry-run",
        "generate --max-new-tokens 60 --num-samples 3 --dry-run",
        "generate --max-new-tokens 3 --dry-run",
    ];
    for words in commands {
        let run = Interp::new().words(words).words("--price 2 --format json").run().ok();
        let facts: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        let number = |key: &str| facts[key].as_f64().unwrap();
        assert!(number("total_seconds") > 0.0 && number("peak_bytes") > 1e6, "{words}");
        let cost = number("total_seconds") / 1800.0;
        assert!(gate::agree(number("cost"), cost, gate::F64, cost), "{words}");
        assert!(!run.dir.path().join("outputs").exists(), "{words}");
        let people = Interp::new().words(words).words("--price 2").run().ok();
        assert!(people.stdout.contains("at 2 per hour") && people.stdout.contains("memory"), "{}", people.stdout);
    }
    Interp::new().words("generate --dry-run --price=-1").run().refused(2, "a price is a number from 0 to 1000000000");
}

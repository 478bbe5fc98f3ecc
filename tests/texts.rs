//! Files of texts: every command reads the same documents in them, and counts the same tokens.

use std::path::{Path, PathBuf};

use interp::dataset::documents::{Content, Reading};
use interp::text::{Bos, Encoding};
use interp::texts::Texts;
use interp::weights::sha256_of;
use interp::{Config, Tokenizer, embedded};
use polars::prelude::*;
use process::Interp;
use serde_json::{Value, json};

#[path = "common/process.rs"]
mod process;

/// Runs a command that answers in JSON.
fn asked(words: &str, file: &Path) -> (Value, String) {
    let outcome = Interp::new().words(words).arg("--file").arg(file).words("--format json --out out").run().ok();
    (serde_json::from_str(&outcome.stdout).unwrap(), outcome.stderr)
}

/// Documents and tokens, a token that starts each included, as `tokens`, `export` and `perplexity` count them.
fn counted(file: &Path, options: &str) -> [(u64, u64); 3] {
    let (tokens, _) = asked(&format!("tokens {options}"), file);
    let rows = tokens["rows"].as_array().unwrap();
    let prompts = rows.iter().map(|row| row["prompt"].as_u64().unwrap()).max().map_or(0, |last| last + 1);
    let (export, _) = asked(&format!("export --site resid_post.0 {options}"), file);
    let outcome =
        Interp::new().words("perplexity --context 64 --format json --out out").words(options).arg("--file").arg(file);
    let outcome = outcome.run().ok();
    let score = &serde_json::from_str::<Value>(&outcome.stdout).unwrap()["rows"][0];
    let documents = score["documents"].as_u64().unwrap();
    // The first token of a document is not scored.
    let scored = score["tokens"].as_u64().unwrap() + documents;
    [(prompts, rows.len() as u64), (documents_of(file), export["rows"].as_u64().unwrap()), (documents, scored)]
}

/// Documents as the library reads them.
fn documents_of(file: &Path) -> u64 {
    Reading::default().open(file).unwrap().map(|document| document.unwrap()).fold(0, |count, _| count + 1)
}

fn written(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn lines(texts: &[&str]) -> String {
    texts.iter().map(|text| json!({ "text": text, "label": text.len() % 2 }).to_string() + "\n").collect()
}

const TEXTS: [&str; 4] = ["Mary and John went", "the key near the doors", "a <|endoftext|> b", " \u{feff}x\r\ny"];

#[test]
fn the_same_file_is_the_same_documents_and_tokens_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let jsonl = lines(&TEXTS);
    let plain = written(dir.path(), "plain.jsonl", &jsonl);
    let wanted = counted(&plain, "")[0];
    let encoding = Encoding { bos: Bos::Auto, allow_special: false };
    let tokenizer = embedded::tokenizer().unwrap();
    let own: usize = TEXTS.iter().map(|text| tokenizer.encode(text, encoding).unwrap().len()).sum();
    assert_eq!(wanted, (4, own as u64));
    let with_empty = jsonl.replacen('\n', "\n\n{\"text\":\"\",\"label\":1}\r\n", 1);
    let mut frame =
        df!("text" => ["Mary and John went", "", "the key near the doors", "a <|endoftext|> b", " \u{feff}x\r\ny"])
            .unwrap();
    ParquetWriter::new(std::fs::File::create(dir.path().join("same.parquet")).unwrap()).finish(&mut frame).unwrap();
    for file in [
        written(dir.path(), "mark.jsonl", format!("\u{feff}{jsonl}")),
        written(dir.path(), "crlf.jsonl", jsonl.replace('\n', "\r\n")),
        written(dir.path(), "same.ndjson", &jsonl),
        written(dir.path(), "SAME.JSONL", &jsonl),
        written(dir.path(), "same.json", format!("\u{feff}\n{jsonl}")),
        written(dir.path(), "empty.jsonl", &with_empty),
        dir.path().join("same.parquet"),
    ] {
        assert_eq!(counted(&file, ""), [wanted; 3], "{}", file.display());
    }
    // The special token in a text is one token, for every command that is told so.
    let allowed = counted(&plain, "--allow-special");
    assert_eq!(allowed, [allowed[0]; 3]);
    assert!(allowed[0].1 < wanted.1, "{allowed:?} {wanted:?}");
    let train = |allow_special| {
        let mut recipe = interp::recipe::Recipe::default();
        recipe.data.text = vec![plain.clone()];
        recipe.data.validation = vec![plain.clone()];
        Texts::read(&recipe.data, Path::new("")).unwrap().encode(&tokenizer, allow_special).unwrap().0.len() as u64
    };
    assert_eq!((train(false), train(true)), (wanted.1, allowed[0].1)); // an end for each start
}

#[test]
fn standard_input_is_read_by_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let piped = |bytes: &[u8]| Interp::new().words("tokens - --format json").stdin(bytes);
    let rows = |outcome: process::Outcome| -> Value {
        serde_json::from_str::<Value>(&outcome.ok().stdout).unwrap()["rows"].clone()
    };
    let jsonl = lines(&TEXTS);
    let plain = "Mary and John\n{ \"text\": \"a\" }\n";
    for (name, content) in [
        ("t.jsonl", jsonl.clone()),
        ("t.ndjson", format!("\u{feff}\n{}", jsonl.replace('\n', "\r\n"))),
        ("t.txt", plain.into()),
        ("t.txt", format!("{{\"label\": 1}}\n{plain}")),
    ] {
        let file = written(dir.path(), name, &content);
        let wanted = rows(Interp::new().words("tokens --format json --file").arg(&file).run());
        assert!(rows(piped(content.as_bytes()).run()) == wanted, "{name}");
    }
    for (bytes, wanted) in [
        (&b"\xff\xfea\0"[..], "standard input: is UTF-16"),
        (b"\x1f\x8b\x08\0", "standard input: is compressed"),
        (b"PAR1", "standard input: is Parquet; give it with --file"),
        (b"{\"text\": \"a\"}\n[1]\n", "line 2: a list, not an object"),
    ] {
        piped(bytes).run().refused(65, wanted);
    }
}

#[test]
fn a_text_that_begins_with_the_first_token_gets_another_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path(), "t.jsonl", lines(&["<|endoftext|>Mary and John", "the key"]));
    let without = counted(&file, "--allow-special --bos no")[0].1;
    for (bos, more) in [("no", 0), ("auto", 1), ("yes", 2)] {
        let counts = counted(&file, &format!("--allow-special --bos {bos}"));
        assert_eq!(counts[0].1, without + more, "{bos}");
        assert_eq!(counts[1], counts[0], "{bos}");
    }
}

#[test]
fn plain_text_is_lines_or_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let text = "Mary and John\nwent to the shop\n\nJohn gave a drink\n";
    let plain = written(dir.path(), "plain.txt", text);
    let windows = written(dir.path(), "windows.txt", format!("\u{feff}{}", text.replace('\n', "\r\n")));
    for command in ["tokens", "predict", "lens"] {
        let record = |file: &Path| asked(command, file).0["run"]["prompts"].clone();
        assert_eq!(record(&plain), record(&windows), "{command}");
    }
    let count = |file: &Path| {
        let export = asked("export --site resid_post.0", file).0["rows"].clone();
        (export, asked("perplexity --context 64", file).0["rows"][0]["tokens"].clone())
    };
    assert_eq!(count(&plain), count(&windows));
    let whole = |file: &Path| {
        let all: Vec<_> = Reading::default().whole().open(file).unwrap().map(|one| one.unwrap().content).collect();
        assert_eq!(all, [Content::Text(text.into())]);
    };
    whole(&plain);
    whole(&windows);
}

#[test]
fn an_empty_text_is_left_out_and_its_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..24).map(|i| format!("the key near the door number {i}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).chain([""]).collect();
    let file = written(dir.path(), "some.jsonl", format!("\u{feff}{}{}", lines(&[""]), lines(&texts)));
    let note = "some.jsonl: line 1 has an empty text and is left out, as are all that have";
    for command in [
        "tokens",
        "predict",
        "export --site resid_post.0",
        "perplexity --context 64",
        "probe train --label label --site resid_post.0 --at last",
        "finetune --set max_iters=1 --set block_size=8 --set batch_size=2",
        "train --set max_iters=1 --set block_size=8 --set batch_size=2 --set n_layer=1 --set n_head=1 --set n_embd=4 --set vocab_size=300",
    ] {
        let outcome = Interp::new().words(command).words("--out out").arg("--file").arg(&file).run().ok();
        assert_eq!(outcome.stderr.matches(note).count(), 1, "{command}: {}", outcome.stderr);
    }
    let pairs =
        "\u{feff}{\"positive\":\"I love it\",\"negative\":\"I hate it\"}\r\n{\"positive\":\"\",\"negative\":\"a\"}\r\n";
    let steer = written(dir.path(), "pairs.jsonl", pairs);
    let steered =
        Interp::new().words("steer --site resid_pre.1 --max-new-tokens 2 --prompt Mary --contrast").arg(steer);
    let steered = steered.run().ok();
    assert!(steered.stderr.contains("line 2 has an empty text and is left out"), "{}", steered.stderr);
}

#[test]
fn files_that_hold_no_texts_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let object = "{\n  \"text\": \"a\"\n}\n";
    let bin = written(dir.path(), "t.bin", [1, 0, 2, 0]);
    for (name, content, wanted) in [
        (
            "list.json",
            &b"[{\"text\": \"a\"}]"[..],
            "is one JSON list; write one object per line, such as with jq -c '.[]'",
        ),
        ("list.jsonl", b"[{\"text\": \"a\"}]", "line 1: a list, not an object"),
        ("pretty.json", object.as_bytes(), "line 1: not JSON: the line ends within a value; write one object per line"),
        ("words.json", b"plain words", "holds no JSON objects"),
        ("wide.txt", b"\xff\xfea\0", "is UTF-16"),
        ("zip.txt.gz", b"\x1f\x8b\x08\0", "is compressed; unpack it first"),
        ("number.jsonl", b"{\"text\": 3}", "line 1: the field `text` holds no text"),
        ("latin.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}", "not UTF-8 at byte 24 (line 2)"),
    ] {
        let file = written(dir.path(), name, content);
        for command in ["tokens", "export --site resid_post.0", "perplexity", "finetune", "probe train --label x"] {
            // A probe reads labels first.
            let labels = command.starts_with("probe") && !name.ends_with(".json");
            if !labels {
                Interp::new().words(command).arg("--file").arg(&file).run().refused(65, wanted);
            }
        }
    }
    Interp::new().words("predict --file").arg(&bin).run().refused(2, "holds tokens and not prompts");
    for command in ["export --site resid_post.0 --pack", "perplexity", "finetune"] {
        let run = Interp::new().words(command).words("--allow-special --file").arg(&bin).run();
        run.refused(2, "--allow-special reads text");
    }
    let language = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/recipe.toml");
    let train = Interp::new().words("train --allow-special --config").arg(language).run();
    train.refused(2, "--allow-special reads text; a language writes its own");
}

#[test]
fn perplexity_reads_tokens_as_it_reads_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = "Mary and John went to the shop<|endoftext|>The key near the doors is";
    let tokenizer = embedded::tokenizer().unwrap();
    let ids = tokenizer.encode(text, Encoding { bos: Bos::No, allow_special: true }).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect();
    let (bin, txt) = (written(dir.path(), "t.bin", bytes), written(dir.path(), "t.txt", text));
    let score = |file: &Path, options: &str| {
        let mut row = asked(&format!("perplexity {options}"), file).0["rows"][0].clone();
        ["text", "seconds", "cost"].iter().for_each(|name| row[*name] = Value::Null);
        row
    };
    assert_eq!(score(&bin, ""), score(&txt, "--allow-special"));
    let foreign = written(dir.path(), "foreign.bin", [0xff, 0xff, 0, 0]);
    let refused = Interp::new().words("perplexity --file").arg(foreign).run();
    refused.refused(65, "holds token 65535, which is not below the model's vocabulary size");
}

/// A copy of the built-in model with other files beside it.
fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), embedded::WEIGHTS).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), embedded::TOKENIZER).unwrap();
    let config = serde_json::to_vec(&embedded::config().unwrap().to_json()).unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

#[test]
fn the_model_says_what_ends_a_text() {
    let config: Config = embedded::config().unwrap();
    let generate = |dir: &Path| {
        let command =
            Interp::new().words("generate --greedy --max-new-tokens 6 --format json --prompt Mary --model").arg(dir);
        let outcome = command.run().ok();
        (serde_json::from_str::<Value>(&outcome.stdout).unwrap()["rows"][0].clone(), outcome.stderr)
    };
    let (usual, _) = generate(model(&[]).path());
    let ids: Vec<u64> = serde_json::from_value(usual["token_ids"].clone()).unwrap();
    assert!(ids.len() > 2, "{usual}");
    // The second token that it writes anyway is now the end.
    let first = ids.iter().position(|id| *id == ids[1]).unwrap() + 1;
    let with = |value: Value| {
        let mut own = config.to_json();
        own["eos_token_id"] = value;
        own
    };
    for files in [
        vec![("config.json", with(json!(ids[1])))],
        vec![("config.json", with(json!([ids[1], 0])))],
        vec![("config.json", with(json!(0))), ("generation_config.json", json!({ "eos_token_id": [ids[1]] }))],
    ] {
        let (row, _) = generate(model(&files).path());
        assert_eq!((row["finish"].as_str(), row["new_tokens"].as_u64()), (Some("end_of_text"), Some(first as u64)));
    }
    let (row, stderr) = generate(model(&[("config.json", with(json!(50256)))]).path());
    assert_eq!(row["token_ids"], usual["token_ids"]);
    assert!(stderr.contains("eos_token_id is 50256, which is not below vocab_size"), "{stderr}");
    let bad = model(&[("config.json", with(json!("end")))]);
    let refused = Interp::new().words("predict --prompt Mary --model").arg(bad.path()).run();
    refused.refused(65, "eos_token_id is \"end\"; it must be a token id or a list of them");
}

#[test]
fn a_tokenizer_says_what_starts_a_text_or_that_nothing_does() {
    let first = |dir: &Path| {
        let outcome = Interp::new().words("tokens --format json --prompt Mary --model").arg(dir).run().ok();
        (serde_json::from_str::<Value>(&outcome.stdout).unwrap()["rows"][0]["token_id"].clone(), outcome.stderr)
    };
    let tokenizer: Tokenizer = embedded::tokenizer().unwrap();
    let mary = tokenizer.encode("Mary", Encoding { bos: Bos::No, allow_special: false }).unwrap()[0];
    assert_eq!(first(model(&[]).path()).0, tokenizer.bos().unwrap());
    // Any token of the vocabulary may start texts.
    let named = model(&[("tokenizer_config.json", json!({ "bos_token": "a" }))]);
    let a = tokenizer.encode("a", Encoding { bos: Bos::No, allow_special: false }).unwrap()[0];
    assert_eq!(first(named.path()).0, a);
    let mut json: Value = serde_json::from_slice(embedded::TOKENIZER).unwrap();
    json["added_tokens"] = json!([]);
    if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
        vocab.remove("<|endoftext|>");
    }
    let (id, stderr) = first(model(&[("tokenizer.json", json)]).path());
    assert_eq!(id, mary);
    assert!(stderr.contains("no token that starts a text, and --bos auto adds none"), "{stderr}");
}

#[test]
fn a_tokenizers_hash_is_that_of_all_its_files() {
    let sha256 = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, content)| drop(written(dir.path(), name, content)));
        let outcome =
            Interp::new().words("tokens --prompt ab --format json --bos no --tokenizer").arg(dir.path()).run();
        let run: Value = serde_json::from_str(&outcome.ok().stdout).unwrap();
        run["run"]["model"]["tokenizer_sha256"].as_str().unwrap().to_string()
    };
    let vocab = ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2, "ba": 3}"#);
    let (merges, others) = (("merges.txt", "a b\n"), ("merges.txt", "b a\n"));
    let own = sha256(&[vocab, merges]);
    // As `sha256sum vocab.json merges.txt | sha256sum` says it.
    let line = |(name, content): (&str, &str)| format!("{}  {name}\n", sha256_of(content.as_bytes()));
    assert_eq!(own, sha256_of((line(vocab) + &line(merges)).as_bytes()));
    let added = ("added_tokens.json", r#"{"<x>": 4}"#);
    assert!(own != sha256(&[vocab, others]) && own != sha256(&[vocab, merges, added]));
    let alone = embedded::tokenizer().unwrap().to_json().unwrap();
    assert_eq!(sha256(&[("tokenizer.json", &alone)]), sha256_of(alone.as_bytes()));
    let beside = ("tokenizer_config.json", r#"{"bos_token": "a"}"#);
    assert_ne!(sha256(&[("tokenizer.json", &alone), beside]), sha256_of(alone.as_bytes()));
}

//! The tokenizer against Hugging Face's, on 200 awkward strings (see tests/fixtures/make_tokens.py).

use std::path::Path;

use interp::text::{Bos, Encoding};
use interp::{Tokenizer, embedded};
use serde_json::Value;

const PLAIN: Encoding = Encoding { bos: Bos::No, allow_special: false };

fn check(tokenizer: &Tokenizer, name: &str) {
    let text = include_str!("fixtures/tokens.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    let rows = golden["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 200);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let wanted: Vec<u32> = row[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        assert_eq!(ids, wanted, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
        // The bytes of the pieces are the bytes of the text, even where a piece is half a character.
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id).unwrap()).collect();
        assert_eq!(bytes, text.as_bytes(), "{text:?}");
    }
}

#[test]
fn the_embedded_tokenizer_agrees_with_hugging_face() {
    check(&embedded::tokenizer().unwrap(), "tiny");
}

/// GPT-2's files are not part of the project: INTERP_GPT2_TOKENIZER names a folder with vocab.json and merges.txt.
#[test]
fn gpt2s_tokenizer_agrees_with_hugging_face() {
    match std::env::var_os("INTERP_GPT2_TOKENIZER") {
        Some(folder) => check(&Tokenizer::load(Path::new(&folder)).unwrap(), "gpt2"),
        None => println!("INTERP_GPT2_TOKENIZER is not set: GPT-2's own tokenizer is not checked"),
    }
}

/// A directory with files of these names and contents.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// Every form of added token, and every file that adds one (see tests/fixtures/make_tokenizers.py).
#[test]
fn added_tokens_are_found_as_transformers_finds_them() {
    let golden: Value = serde_json::from_str(include_str!("fixtures/tokenizers.json")).unwrap();
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!((texts.len(), cases.len()), (42, 15));
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let files = case["files"].as_object().unwrap();
        let dir = folder(&files.iter().map(|(name, text)| (name.as_str(), text.as_str().unwrap())).collect::<Vec<_>>());
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        for (way, allow_special) in [("special", true), ("plain", false)] {
            for (text, wanted) in texts.iter().zip(case[way].as_array().unwrap()) {
                let wanted: Vec<u32> = serde_json::from_value(wanted.clone()).unwrap();
                let ids = tokenizer.encode(text, Encoding { bos: Bos::No, allow_special }).unwrap();
                assert_eq!(ids, wanted, "{name}, {way}: {text:?}");
                assert_eq!(tokenizer.encode_long(text, allow_special).unwrap(), wanted);
            }
        }
        for (role, own) in [("bos", tokenizer.bos()), ("eos", tokenizer.end_of_text())] {
            if let Some(wanted) = case[role].as_u64() {
                assert_eq!(own, Some(wanted as u32), "{name}: {role}");
            }
        }
        // What is written is what was read.
        let again = Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes(), Path::new("again")).unwrap();
        let allowed = Encoding { bos: Bos::No, allow_special: true };
        for text in &texts {
            assert_eq!(again.encode(text, allowed).unwrap(), tokenizer.encode(text, allowed).unwrap(), "{name}");
        }
    }
}

/// A byte-level tokenizer of these tokens and merges, with more of the model's fields.
fn bpe(tokens: &[&str], merges: &[&str], more: &str) -> String {
    let vocab: serde_json::Map<String, Value> =
        (0..).zip(tokens).map(|(i, t)| (t.to_string(), Value::from(i))).collect();
    let mut model = serde_json::json!({ "type": "BPE", "vocab": vocab, "merges": merges });
    let more: serde_json::Map<String, Value> = serde_json::from_str(more).unwrap();
    model.as_object_mut().unwrap().extend(more);
    let step =
        serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    serde_json::json!({ "version": "1.0", "model": model, "pre_tokenizer": step, "decoder": step }).to_string()
}

#[test]
fn tokenizers_that_would_break_the_library_are_refused() {
    let long = "x".repeat(1 << 20);
    let with = |part: &str, value: Value| {
        let mut json: Value = serde_json::from_str(&bpe(&["a"], &[], "{}")).unwrap();
        json[part] = value;
        json.to_string()
    };
    let regex = |kind: &str| {
        let pattern = format!("({})", "a|b?c*".repeat(700_000));
        serde_json::json!({ "type": kind, "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false, "content": "" })
    };
    for (json, wanted) in [
        (bpe(&["a", "b"], &["a b"], "{}"), "merge 0, `a` and `b`: `ab` is not in the vocabulary"),
        (bpe(&["a", "ab"], &["a b"], "{}"), "`b` is not in the vocabulary"),
        (bpe(&["a"], &["a"], "{}"), "merge 0 is not two tokens"),
        (
            bpe(&["a", "b", "ab"], &["a b"], "{\"continuing_subword_prefix\": \"#####\"}"),
            "continuing_subword_prefix is",
        ),
        (bpe(&["a", "b", "ab"], &["a b"], "{\"end_of_word_suffix\": \"</w>\"}"), "end_of_word_suffix is"),
        (bpe(&["a", &long], &[], "{}"), "token 1 has 1048576 bytes"),
        (bpe(&["a"], &[], "{\"unk_token\": \"<unk>\"}"), "unk_token `<unk>` is not in its vocabulary"),
        (bpe(&[], &[], "{\"vocab\": {\"a\": 4294967295}}"), "ids are below 1000000"),
        (bpe(&[], &[], "{\"vocab\": {\"a\": -1}}"), "no whole number"),
        (bpe(&[], &[], "{\"vocab\": [1]}"), "vocabulary is not an object"),
        (with("pre_tokenizer", regex("Split")), "pre-tokenizer is not ByteLevel"),
        (with("normalizer", regex("Replace")), "normalizer"),
        (with("decoder", regex("Replace")), "decoder replaces text"),
        (with("added_tokens", serde_json::json!([{ "id": 1, "content": "" }])), "added token 0 is empty"),
        (with("added_tokens", serde_json::json!([{ "id": 1, "content": "x".repeat(5 << 20) }])), "added tokens of"),
        (with("model", Value::Null), "it has no model"),
        ("[".repeat(100_000), "not a tokenizer"),
        ("3".into(), "not a JSON object"),
    ] {
        let error = Tokenizer::from_json(json.as_bytes(), Path::new("t.json")).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), interp::error::Kind::Data, "{error}");
        assert!(error.to_string().contains(wanted), "wanted `{wanted}`: {error}");
    }
    let files = folder(&[("vocab.json", "{\"a\":0,\"b\":1}"), ("merges.txt", "#version: 0.2\na b\n")]);
    let error = Tokenizer::load(files.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("merge 0, `a` and `b`: `ab` is not in the vocabulary"), "{error}");
    for (name, content, wanted) in [
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {\"content\": \"a\"}}}", "has no id"),
        ("special_tokens_map.json", "{\"pad_token\": {\"content\": \"p\", \"lstrip\": 3}}", "lstrip is 3"),
        ("added_tokens.json", "{\"a\": \"b\"}", "no whole number"),
    ] {
        let dir = folder(&[("tokenizer.json", &bpe(&["a"], &[], "{}")), (name, content)]);
        let error = Tokenizer::load(dir.path()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), interp::error::Kind::Data, "{error}");
        assert!(error.to_string().contains(wanted), "wanted `{wanted}`: {error}");
    }
}

#[test]
fn no_byte_is_dropped_and_nothing_is_drawn() {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    let unknown: Vec<&str> = letters.iter().copied().chain(["<unk>"]).collect();
    for json in [bpe(&letters, &[], "{}"), bpe(&unknown, &[], "{\"unk_token\": \"<unk>\"}")] {
        let tokenizer = Tokenizer::from_json(json.as_bytes(), Path::new("t.json")).unwrap();
        assert_eq!(tokenizer.encode("ello", PLAIN).unwrap().len(), 4);
        for (text, wanted) in [
            ("Hello 42 WORLD é", "no token for byte 0x48 of 'H', at byte 0 of the text"),
            ("hello 42", "byte 0x20 of ' ', at byte 5"),
            ("helloé", "byte 0xC3 of 'é', at byte 5"),
        ] {
            // As for a tokenizer of characters: the text is not one for this model.
            let error = tokenizer.encode(text, PLAIN).unwrap_err();
            assert_eq!(error.kind(), interp::error::Kind::Request, "{error}");
            assert!(error.to_string().contains(wanted), "wanted `{wanted}`: {error}");
        }
    }
    let drawn = bpe(&["a", "b", "ab"], &["a b"], "{\"dropout\": 0.5}");
    let tokenizer = Tokenizer::from_json(drawn.as_bytes(), Path::new("t.json")).unwrap();
    assert!(tokenizer.notes()[0].contains("dropout of 0.5"), "{:?}", tokenizer.notes());
    assert!((0..64).all(|_| tokenizer.encode("ab", PLAIN).unwrap() == [2]));
    assert!(!tokenizer.to_json().unwrap().contains("0.5"));
}

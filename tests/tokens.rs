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

//! What a tokenizer's files are checked for before the tokenizer library reads them: some of it would make the library panic, or take
//! minutes, or change the text.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result, shorten};

/// Entries of a vocabulary, merges and added tokens at most, and one more than the largest id: no model has more.
const MAX_ENTRIES: usize = 1_000_000;
/// Longest token in bytes.
const MAX_TOKEN: usize = 1 << 16;
/// Bytes of all added tokens together.
const MAX_ADDED: usize = 4 << 20;

/// Checks the content of a `tokenizer.json`; returns what the library may read, and what was changed in it.
///
/// # Errors
/// [`Error::Data`] that says what is wrong.
pub fn tokenizer_json(bytes: &[u8], path: &Path) -> Result<(Vec<u8>, Vec<String>)> {
    let wrong = |what: String| Error::data(path, what);
    let mut json: Value =
        serde_json::from_slice(bytes).map_err(|e| wrong(format!("not a tokenizer: {}", shorten(&e.to_string()))))?;
    let whole = json.as_object_mut().ok_or_else(|| wrong("not a tokenizer: not a JSON object".into()))?;
    steps(whole).map_err(wrong)?;
    added_tokens(whole.get("added_tokens")).map_err(wrong)?;
    let mut notes = Vec::new();
    // Truncation and padding are stored in some files and would apply silently.
    for part in ["truncation", "padding"] {
        whole.insert(part.into(), Value::Null);
    }
    let model = whole
        .get_mut("model")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| wrong("not a tokenizer: it has no model".into()))?;
    bpe(model).map_err(wrong)?;
    match model.insert("dropout".into(), Value::Null) {
        None | Some(Value::Null) => {}
        Some(dropout) => {
            let dropout = shorten(&dropout.to_string());
            notes.push(format!(
                "{}: its BPE has a dropout of {dropout}, which draws other tokens at every run; it is left out",
                path.display()
            ));
        }
    }
    let bytes = serde_json::to_vec(&json).map_err(|e| Error::Bug(e.to_string()))?;
    Ok((bytes, notes))
}

/// The steps around the model: none may have a regex of its own or change the text.
fn steps(json: &mut Map<String, Value>) -> std::result::Result<(), String> {
    let part = |name: &str| json.get(name).unwrap_or(&Value::Null);
    let kinds = |step: &Value, list: &str| -> Vec<String> {
        let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or("?").to_string();
        match step {
            Value::Null => Vec::new(),
            step => match step.get(list).and_then(Value::as_array) {
                Some(steps) if kind(step) == "Sequence" => steps.iter().map(kind).collect(),
                _ => vec![kind(step)],
            },
        }
    };
    if !kinds(part("normalizer"), "normalizers").is_empty() {
        return Err("it has a normalizer, which would change the text; GPT-2 has none".into());
    }
    let before = kinds(part("pre_tokenizer"), "pretokenizers");
    let (last, rest) = before.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    if !["", "ByteLevel"].contains(&last) || rest.iter().any(|kind| kind != "Digits") {
        return Err("its pre-tokenizer is not ByteLevel; GPT-2 needs a byte-level BPE".into());
    }
    if kinds(part("decoder"), "decoders").iter().any(|kind| ["Replace", "Sequence", "?"].contains(&kind.as_str())) {
        return Err("its decoder replaces text; that of GPT-2 is ByteLevel".into());
    }
    if kinds(part("normalizer"), "normalizers").is_empty() {
        json.insert("normalizer".into(), Value::Null);
    }
    Ok(())
}

fn added_tokens(tokens: Option<&Value>) -> std::result::Result<(), String> {
    let tokens = match tokens {
        None | Some(Value::Null) => return Ok(()),
        Some(tokens) => tokens.as_array().ok_or("added_tokens is no list")?,
    };
    if tokens.len() > MAX_ENTRIES {
        return Err(format!("{} added tokens; at most {MAX_ENTRIES} are read", tokens.len()));
    }
    let mut bytes = 0;
    for (i, token) in tokens.iter().enumerate() {
        let content = token.get("content").and_then(Value::as_str).ok_or(format!("added token {i} has no content"))?;
        if content.is_empty() {
            return Err(format!("added token {i} is empty"));
        }
        bytes += content.len();
    }
    if bytes > MAX_ADDED {
        return Err(format!("added tokens of {bytes} bytes; at most {MAX_ADDED} are read"));
    }
    Ok(())
}

/// A BPE model: its merges must be of tokens that it has, and it must not put anything before or after parts of words.
fn bpe(model: &mut Map<String, Value>) -> std::result::Result<(), String> {
    let kind = model.get("type").and_then(Value::as_str);
    if !matches!(kind, None | Some("BPE")) || !model.contains_key("merges") {
        return Err("not a BPE tokenizer; GPT-2 needs a byte-level BPE".into());
    }
    for part in ["continuing_subword_prefix", "end_of_word_suffix"] {
        match model.get(part).unwrap_or(&Value::Null) {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            other => {
                let other = shorten(&other.to_string());
                return Err(format!("{part} is {other}; a byte-level BPE has none"));
            }
        }
    }
    let vocab = model.get("vocab").and_then(Value::as_object).ok_or("its vocabulary is not an object")?;
    for (token, id) in vocab {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        entry(token, id.ok_or_else(|| format!("the id of `{}` is no whole number", shorten(token)))?)?;
    }
    let knows = |token: &str| vocab.contains_key(token);
    if let Some(Value::String(unknown)) = model.get("unk_token")
        && !knows(unknown)
    {
        return Err(format!("unk_token `{}` is not in its vocabulary", shorten(unknown)));
    }
    let merges = model.get("merges").and_then(Value::as_array).ok_or("its merges are no list")?;
    for (i, both) in merges.iter().enumerate() {
        let pair = match both {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' ').filter(|(_, b)| !b.contains(' ')),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(a), Value::String(b)] => Some((a.as_str(), b.as_str())),
                _ => None,
            },
            _ => None,
        };
        let (a, b) = pair.ok_or_else(|| format!("merge {i} is not two tokens: {}", shorten(&both.to_string())))?;
        merge(i, a, b, knows)?;
    }
    sizes(vocab.len(), merges.len())
}

/// An entry of a vocabulary.
pub fn entry(token: &str, id: u32) -> std::result::Result<(), String> {
    if id as usize >= MAX_ENTRIES {
        return Err(format!("the id of `{}` is {id}; ids are below {MAX_ENTRIES}", shorten(token)));
    }
    if token.len() > MAX_TOKEN {
        return Err(format!("token {id} has {} bytes; a token has at most {MAX_TOKEN}", token.len()));
    }
    Ok(())
}

/// Merge `i`, of two tokens to a third, all of which must be known.
pub fn merge(i: usize, a: &str, b: &str, knows: impl Fn(&str) -> bool) -> std::result::Result<(), String> {
    match [a, b, &format!("{a}{b}")].into_iter().find(|token| !knows(token)) {
        Some(token) => Err(format!(
            "merge {i}, `{}` and `{}`: `{}` is not in the vocabulary",
            shorten(a),
            shorten(b),
            shorten(token)
        )),
        None => Ok(()),
    }
}

/// How many entries and merges there are.
pub fn sizes(entries: usize, merges: usize) -> std::result::Result<(), String> {
    match entries.max(merges) {
        n if n > MAX_ENTRIES => Err(format!("{entries} tokens and {merges} merges; at most {MAX_ENTRIES} are read")),
        _ => Ok(()),
    }
}

/// Carries out work of the tokenizer library; a panic of it is a fault of the tokenizer.
///
/// # Errors
/// What the library says, in one line.
pub fn guarded<T, E: std::fmt::Display>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| shorten(&e.to_string())),
        Err(_) => Err("the tokenizer library failed on it".into()),
    }
}

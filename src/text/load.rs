//! Tokenizers from files, with what stands beside them, as transformers puts them together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, PreTokenizerWrapper};

use super::{END_OF_TEXT, Tokenizer, checks, roles::Roles};
use crate::error::{Error, Result, shorten};
use crate::weights::read_small;

/// Largest tokenizer file that is read.
const MAX_FILE: u64 = 64 << 20;
/// Largest file beside it.
const MAX_BESIDE: u64 = 16 << 20;

/// What may stand beside it.
const BESIDE: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// Special tokens by name, in the order in which transformers adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of further special tokens, under their old name and the new one.
const FURTHER: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The files that a tokenizer is, by the path that names it.
enum Own<'a> {
    /// A file by itself, whatever lies beside it.
    Alone(&'a Path),
    /// `tokenizer.json`, with the directory whose other files complete it.
    Json(&'a Path, PathBuf),
    /// `vocab.json` and `merges.txt` of a directory without it.
    Words(PathBuf, PathBuf),
}

impl<'a> Own<'a> {
    fn find(path: &'a Path) -> Self {
        let json = path.join("tokenizer.json");
        match path.is_dir() {
            true if json.exists() => Own::Json(path, json),
            true => Own::Words(path.join("vocab.json"), path.join("merges.txt")),
            false if path.file_name().is_some_and(|name| name == "tokenizer.json") => {
                Own::Json(path.parent().unwrap_or(Path::new("")), path.to_path_buf())
            }
            false => Own::Alone(path),
        }
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or a directory with it or with `vocab.json` and `merges.txt`.
    ///
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` beside them add their tokens, as in transformers.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Data`].
    pub fn load(path: &Path) -> Result<Self> {
        let (vocab, merges) = match Own::find(path) {
            Own::Alone(path) => return Self::from_json(&read_small(path, MAX_FILE)?, path),
            Own::Json(dir, json) => {
                let beside = Beside::read(dir)?;
                let (inner, notes) = parse(&read_small(&json, MAX_FILE)?, &json)?;
                return beside.complete(inner, notes, &json, false);
            }
            Own::Words(vocab, merges) => (vocab, merges),
        };
        let beside = Beside::read(path)?;
        if !vocab.exists() && !merges.exists() {
            return Err(Error::Missing(format!(
                "{}: no tokenizer.json, and no vocab.json with merges.txt; name one with --tokenizer",
                path.display()
            )));
        }
        beside.complete(vocab_and_merges(&vocab, &merges)?, Vec::new(), &vocab, true)
    }

    /// The files that [`Tokenizer::load`] reads, of those that are there: what the tokenizer is depends on all of them.
    pub fn find_files(path: &Path) -> Vec<PathBuf> {
        let (dir, own) = match Own::find(path) {
            Own::Alone(path) => return vec![path.to_path_buf()],
            Own::Json(dir, json) => (dir, vec![json]),
            Own::Words(vocab, merges) => (path, vec![vocab, merges]),
        };
        own.into_iter().chain(BESIDE.map(|name| dir.join(name)).into_iter().filter(|path| path.exists())).collect()
    }

    /// Reads the content of a `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] unless it is a byte-level BPE or a vocabulary of characters.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let (inner, notes) = parse(bytes, path)?;
        Beside::default().complete(inner, notes, path, false)
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<(tokenizers::Tokenizer, Vec<String>)> {
    let (bytes, notes) = checks::tokenizer_json(bytes, path)?;
    let inner = checks::guarded(|| tokenizers::Tokenizer::from_bytes(bytes));
    Ok((inner.map_err(|e| Error::data(path, format!("not a tokenizer: {e}")))?, notes))
}

fn vocab_and_merges(vocab: &Path, merges: &Path) -> Result<tokenizers::Tokenizer> {
    // Read here first, so that a missing or huge file is our error and not the library's.
    let words = read_small(vocab, MAX_FILE)?;
    let merge_text = read_small(merges, MAX_FILE)?;
    let words: BTreeMap<String, u32> = serde_json::from_slice(&words)
        .map_err(|e| Error::data(vocab, format!("not a vocabulary: {}", shorten(&e.to_string()))))?;
    for (token, id) in &words {
        checks::entry(token, *id).map_err(|e| Error::data(vocab, e))?;
    }
    let merge_text = String::from_utf8(merge_text).map_err(|e| Error::data(merges, format!("not UTF-8: {e}")))?;
    let pairs = merge_text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .enumerate()
        .map(|(i, line)| match line.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => checks::merge(i, a, b, |token| words.contains_key(token))
                .map(|()| (a.to_string(), b.to_string()))
                .map_err(|e| Error::data(merges, e)),
            _ => Err(Error::data(merges, format!("merge {i} is not two tokens: {}", shorten(line)))),
        })
        .collect::<Result<Vec<_>>>()?;
    checks::sizes(words.len(), pairs.len()).map_err(|e| Error::data(vocab, e))?;
    let bpe = checks::guarded(|| BPE::builder().vocab_and_merges(words.into_iter().collect::<Vocab>(), pairs).build());
    Ok(super::byte_level(bpe.map_err(|e| Error::data(merges, format!("merges and vocabulary disagree: {e}")))?))
}

/// What the files beside a tokenizer say.
#[derive(Default)]
struct Beside {
    /// `tokenizer_config.json`, completed by `special_tokens_map.json` where transformers does so.
    config: Map<String, Value>,
    /// `added_tokens.json`, where transformers reads it.
    added: BTreeMap<u32, String>,
    path: PathBuf,
}

impl Beside {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let mut config = object(&path)?;
        let (mut added, added_path) = (BTreeMap::new(), dir.join("added_tokens.json"));
        // A tokenizer_config.json that lists its added tokens is newer than the other two files, and alone counts.
        if !config.contains_key("added_tokens_decoder") {
            config.extend(object(&dir.join("special_tokens_map.json"))?);
            for (token, id) in object(&added_path)? {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.ok_or_else(|| {
                    Error::data(&added_path, format!("the id of `{}` is no whole number", shorten(&token)))
                })?;
                checks::entry(&token, id).map_err(|e| Error::data(&added_path, e))?;
                added.insert(id, token);
            }
        }
        Ok(Self { config, added, path })
    }

    /// A tokenizer with all added tokens and the roles that some of them have.
    fn complete(
        self,
        mut inner: tokenizers::Tokenizer,
        mut notes: Vec<String>,
        path: &Path,
        bare: bool,
    ) -> Result<Tokenizer> {
        let wrong = |what: String| Error::data(&self.path, what);
        let gpt2 = self.config.get("tokenizer_class").and_then(Value::as_str).is_some_and(|c| c.starts_with("GPT2"));
        let named = self.named().map_err(wrong)?;
        let mut wanted = self.listed(&inner, &named).map_err(wrong)?;
        let has = |inner: &tokenizers::Tokenizer, wanted: &[AddedToken], content: &str| {
            let added = inner.get_added_vocabulary().get_vocab();
            added.contains_key(content) || wanted.iter().any(|token| token.content == content)
        };
        for token in named.iter().map(|(_, token)| token).cloned().chain(self.further().map_err(wrong)?) {
            if !token.content.is_empty() && !has(&inner, &wanted, &token.content) {
                wanted.push(token);
            }
        }
        let known = inner.token_to_id(END_OF_TEXT).is_some();
        if (bare || gpt2) && known && !has(&inner, &wanted, END_OF_TEXT) {
            wanted.push(AddedToken::from(END_OF_TEXT, true));
        }
        for token in &mut wanted {
            token.special |= named.iter().any(|(_, named)| named.content == token.content);
        }
        if wanted.len() > 100_000 || wanted.iter().map(|token| token.content.len()).sum::<usize>() > 4 << 20 {
            return Err(wrong(format!("{} added tokens are more than are read", wanted.len())));
        }
        if !wanted.is_empty() {
            checks::guarded(|| inner.add_tokens(wanted)).map_err(|e| wrong(format!("added tokens: {e}")))?;
        }
        for (id, token) in &self.added {
            let own = inner.token_to_id(token);
            if own != Some(*id) {
                let own = own.map_or("no id".to_string(), |id| id.to_string());
                notes.push(format!(
                    "added_tokens.json numbers `{}` {id}; it has {own} here, as in transformers",
                    shorten(token)
                ));
            }
        }
        self.prefix_space(&mut inner, bare || gpt2);
        let id = |role: &str| {
            let token = named.iter().find(|(name, _)| *name == role).map(|(_, token)| token)?;
            inner.token_to_id(&token.content)
        };
        let roles = Roles::named(id("bos_token"), id("eos_token"), inner.token_to_id(END_OF_TEXT));
        Tokenizer::check(inner, path, roles, notes)
    }

    /// Special tokens by name, as they stand or are described.
    fn named(&self) -> std::result::Result<Vec<(String, AddedToken)>, String> {
        let further = self
            .config
            .keys()
            .map(String::as_str)
            .filter(|key| key.ends_with("_token") && !NAMED.contains(key) && !key.starts_with("add_"));
        let mut named = Vec::new();
        for key in NAMED.into_iter().chain(further) {
            if let Some(token) = self.config.get(key).map(special).transpose()?.flatten() {
                named.push((key.to_string(), token));
            }
        }
        if let Some(Value::Object(extra)) = self.config.get("extra_special_tokens") {
            for (key, value) in extra {
                named.extend(special(value)?.map(|token| (key.clone(), token)));
            }
        }
        Ok(named)
    }

    /// Special tokens that have no name.
    fn further(&self) -> std::result::Result<Vec<AddedToken>, String> {
        let lists = FURTHER.iter().filter_map(|key| self.config.get(*key)?.as_array());
        lists.flatten().filter_map(|value| special(value).transpose()).collect()
    }

    /// The tokens that have ids in the files, in the order of these.
    fn listed(
        &self,
        inner: &tokenizers::Tokenizer,
        named: &[(String, AddedToken)],
    ) -> std::result::Result<Vec<AddedToken>, String> {
        if let Some(listed) = self.config.get("added_tokens_decoder") {
            let listed = listed.as_object().ok_or("added_tokens_decoder is not an object")?;
            let mut tokens = BTreeMap::new();
            for (id, value) in listed {
                let id: u32 = id.parse().map_err(|_| format!("added token `{}` has no id", shorten(id)))?;
                let token: Option<AddedToken> = described(value, false)?;
                tokens.insert(id, token.ok_or_else(|| format!("added token {id} has no content"))?);
            }
            return Ok(tokens.into_values().filter(|token| !token.content.is_empty()).collect());
        }
        let further = self.further()?;
        let own = inner.get_added_vocabulary().get_added_tokens_decoder();
        let added = self.added.iter().filter(|(id, token)| !own.contains_key(id) && !token.is_empty());
        let token = |content: &String| {
            let special = named.iter().map(|(_, token)| token).chain(&further).any(|token| token.content == *content);
            AddedToken::from(content.as_str(), special)
        };
        Ok(added.map(|(_, content)| token(content)).collect())
    }

    /// GPT-2's own class takes this from the file beside it.
    fn prefix_space(&self, inner: &mut tokenizers::Tokenizer, gpt2: bool) {
        let Some(wanted) = self.config.get("add_prefix_space").and_then(Value::as_bool).filter(|_| gpt2) else {
            return;
        };
        let mut step = inner.get_pre_tokenizer().cloned();
        match &mut step {
            Some(PreTokenizerWrapper::ByteLevel(bytes)) => bytes.add_prefix_space = wanted,
            Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_mut().iter_mut().for_each(|step| {
                if let PreTokenizerWrapper::ByteLevel(bytes) = step {
                    bytes.add_prefix_space = wanted;
                }
            }),
            _ => {}
        }
        inner.with_pre_tokenizer(step);
    }
}

/// A small JSON object; empty where there is no such file.
fn object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&read_small(path, MAX_BESIDE)?) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::data(path, "not a JSON object")),
        Err(e) => Err(Error::data(path, format!("not JSON: {}", shorten(&e.to_string())))),
    }
}

/// A special token: its text, or an object with `content`; none for null and for what is neither.
fn special(value: &Value) -> std::result::Result<Option<AddedToken>, String> {
    match value {
        Value::String(content) => Ok(Some(AddedToken::from(content.as_str(), true))),
        value => Ok(described(value, true)?.map(|token| token.special(true))),
    }
}

/// An added token as an object.
fn described(value: &Value, special: bool) -> std::result::Result<Option<AddedToken>, String> {
    let Some(map) = value.as_object() else { return Ok(None) };
    let Some(content) = map.get("content").and_then(Value::as_str) else { return Ok(None) };
    let flag = |name: &str, default: bool| match map.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(format!("added token `{}`: {name} is {}", shorten(content), shorten(&other.to_string()))),
    };
    let special = flag("special", special)?;
    Ok(Some(AddedToken {
        content: content.to_string(),
        single_word: flag("single_word", false)?,
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        normalized: flag("normalized", !special)?,
        special,
    }))
}

//! Where Hugging Face keeps models on this machine, and where it serves them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::address::check_address;
use crate::config::PUBLISHED;
use crate::error::{Error, Result};

/// Largest file of a token that is read.
const MAX_TOKEN: u64 = 4096;

/// The cache, the hub and what may be done with it.
#[derive(Clone)]
pub struct Places {
    /// The hub cache: the directory with `models--owner--name`.
    pub hub: Option<PathBuf>,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token; never printed, and read only when the hub is asked.
    pub token: Token,
    /// Whether the network must not be touched.
    pub offline: bool,
    /// Where hashes of local files are remembered.
    pub digests: Option<PathBuf>,
    /// How long a slow hub is waited for.
    pub patience: Patience,
}

/// Where the access token is.
#[derive(Clone, Default)]
pub enum Token {
    /// There is none.
    #[default]
    None,
    /// The value of an environment variable, after its name.
    Given(&'static str, OsString),
    /// A file, which need not exist.
    File(PathBuf),
}

impl Token {
    /// The token; none where its file does not exist or is empty.
    ///
    /// # Errors
    /// [`Error::Missing`] for what is no regular file, [`Error::Data`] or [`Error::Request`] for what cannot be a token.
    pub fn read(&self) -> Result<Option<String>> {
        let (text, origin) = match self {
            Token::None => return Ok(None),
            Token::Given(name, value) => (value.to_str().map(str::to_string), (*name).to_string()),
            Token::File(path) if !path.exists() => return Ok(None),
            Token::File(path) => {
                (String::from_utf8(super::read_small(path, MAX_TOKEN)?).ok(), path.display().to_string())
            }
        };
        let token = text.as_deref().map(str::trim).filter(|token| token.chars().all(|c| c.is_ascii_graphic()));
        match token {
            Some(token) if token.len() as u64 <= MAX_TOKEN => Ok(Some(token.to_string()).filter(|t| !t.is_empty())),
            _ => Err(Error::request(format!(
                "{origin} has characters that no token has: a token is one line of letters and digits"
            ))),
        }
    }
}

/// How long a slow hub is waited for. All limits together bound a download: it moves on at the least rate, or it ends.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the next byte.
    pub idle: Duration,
    /// In each such time [`Patience::least`] bytes must arrive.
    pub window: Duration,
    /// Bytes that a window, or a connection that breaks, must bring.
    pub least: u64,
    /// Connections in a row that bring less before giving up.
    pub retries: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            window: Duration::from_secs(60),
            least: 64 << 10,
            retries: 3,
        }
    }
}

impl Places {
    /// Reads what Hugging Face's own tools read: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::Request`] for an endpoint that is neither https nor on this machine.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let flag = |name: &str| {
            text(name).is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str()))
        };
        let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let hf_home = path("HF_HOME").or_else(|| Some(cache.clone()?.join("huggingface")));
        let hub = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(hf_home.clone()?.join("hub")));
        let given = |name: &'static str| Some(Token::Given(name, var(name)?));
        let file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")));
        let token = given("HF_TOKEN").or_else(|| given("HUGGING_FACE_HUB_TOKEN")).or(file.map(Token::File));
        let endpoint = match var("HF_ENDPOINT") {
            None => "https://huggingface.co".to_string(),
            Some(value) => value.into_string().map_err(|_| Error::request("HF_ENDPOINT is no address"))?,
        };
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let address = check_address(&endpoint).map_err(|what| Error::request(format!("HF_ENDPOINT: {what}")))?;
        if address.query().is_some() || endpoint.contains('#') {
            return Err(Error::request("HF_ENDPOINT: an address with `?` or `#` is not that of a hub"));
        }
        Ok(Self {
            hub,
            endpoint,
            token: token.unwrap_or_default(),
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            digests: cache.map(|cache| cache.join("interp").join("digests.json")),
            patience: Patience::default(),
        })
    }
}

/// A model on the hub: repository and revision, both checked to be harmless as paths and in addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`, or a bare name from before owners.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl Repository {
    /// Reads `owner/name`, `name` or either with `@revision`; short names of published models become their owner's.
    ///
    /// # Errors
    /// [`Error::Request`] for anything that could leave its directory or its address.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let shown = crate::error::shorten(text);
        let part = |s: &str| {
            !s.is_empty()
                && s.len() <= 96
                && !s.starts_with(['.', '-'])
                && !s.ends_with('.')
                && !s.contains("..")
                && !s.contains("--")
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if id.split('/').count() > 2 || !id.split('/').all(part) {
            return Err(Error::request(format!(
                "`{shown}` is neither a file nor a model name like gpt2 or owner/name"
            )));
        }
        if revision.len() > 128 || revision.split('/').count() > 4 || !revision.split('/').all(part) {
            return Err(Error::request(format!("`{shown}`: the part after @ is not a branch, tag or commit")));
        }
        let id = PUBLISHED.iter().find(|p| p.0 == id).map_or(id, |p| p.1);
        Ok(Self { id: id.to_string(), revision: revision.to_string() })
    }

    /// The names under which caches may hold it: its own, and the one from before owners.
    pub fn cache_names(&self) -> Vec<String> {
        let old = PUBLISHED.iter().find(|p| p.1 == self.id).map(|p| p.0);
        std::iter::once(self.id.as_str()).chain(old).map(|id| format!("models--{}", id.replace('/', "--"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_place_are_refused() {
        assert_eq!(Repository::parse("gpt2").unwrap().id, "openai-community/gpt2");
        assert_eq!(Repository::parse("a/b@refs/pr/1").unwrap().revision, "refs/pr/1");
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/b/c",
            ".a/b",
            "a/b@",
            "a/b@../../x",
            "a/b@/etc",
            "a/b@x/..",
            "a\\b",
            "a b",
            "a/b\n",
            "a/b@%2e%2e",
            "a--b/c",
            "-a/b",
            "a/b@-x",
            "a/é",
            "a/b@x\0",
        ] {
            assert!(Repository::parse(bad).is_err(), "{bad:?}");
        }
    }
}

//! Where Hugging Face keeps models on this machine, and where it serves them.

use std::path::PathBuf;

use crate::config::PUBLISHED;
use crate::error::{Error, Result};

/// The cache, the hub and what may be done with it.
#[derive(Clone)]
pub struct Places {
    /// The hub cache: the directory with `models--owner--name`.
    pub hub: Option<PathBuf>,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token; never printed.
    pub token: Option<String>,
    /// Whether the network must not be touched.
    pub offline: bool,
    /// Where hashes of local files are remembered.
    pub digests: Option<PathBuf>,
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
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")));
        let token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_file?).ok())
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| token.chars().any(|c| c.is_control() || !c.is_ascii())) {
            return Err(Error::request("HF_TOKEN has characters that no token has"));
        }
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        check_address(&endpoint).map_err(|what| Error::request(format!("HF_ENDPOINT: {what}")))?;
        Ok(Self {
            hub,
            endpoint,
            token,
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            digests: cache.map(|cache| cache.join("interp").join("digests.json")),
        })
    }
}

/// An address must be https, or http on this machine.
pub fn check_address(address: &str) -> std::result::Result<(), String> {
    let shown = crate::error::shorten(address);
    if address.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("`{shown}` is no address"));
    }
    if let Some(rest) = address.strip_prefix("http://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        if !["127.0.0.1", "localhost", "[::1]"].contains(&host) {
            return Err(format!("`{shown}` is not https"));
        }
        return Ok(());
    }
    if address.len() > "https://".len() && address.starts_with("https://") {
        Ok(())
    } else {
        Err(format!("`{shown}` is not https"))
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

    #[test]
    fn only_https_or_this_machine() {
        for good in ["https://huggingface.co", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:80/x"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in [
            "http://huggingface.co",
            "http://127.0.0.1.evil.org",
            "ftp://x",
            "https://",
            "http://127.0.0.1@evil.org/",
            "x",
            "https://a b",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}

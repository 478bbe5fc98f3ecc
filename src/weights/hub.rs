//! Downloading a model into the Hugging Face cache, so that Python's tools find it there too.
//!
//! hf-hub lists the repository. The bytes are fetched here, because hf-hub 0.5 checks no hash, has no timeouts and
//! sends the token wherever a redirect points. A file gets its final name only after its hash was checked.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use ureq::http::{Response, StatusCode, Uri};

use super::checkpoint::{is_plain_name, shard_names};
use super::digest::Expected;
use super::places::{Places, Repository, check_address};
use crate::disk;
use crate::error::{Error, Result};

/// Hears how a download goes.
pub trait Progress {
    /// `done` of `total` bytes of `file` are here.
    fn update(&mut self, file: &str, done: u64, total: u64);
}

/// Hears nothing.
impl Progress for () {
    fn update(&mut self, _file: &str, _done: u64, _total: u64) {}
}

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);
/// Broken connections that are taken up again before giving up.
const RETRIES: usize = 3;
const REDIRECTS: usize = 5;

/// Downloads what is missing of a model's config, weights and tokenizer; returns the directory of the snapshot.
///
/// # Errors
/// [`Error::Unavailable`] without a network or with the wrong token, [`Error::Missing`] for a repository that does not
/// exist or is no GPT-2, [`Error::TryAgain`] for a connection that broke (the next call resumes), [`Error::Data`] for
/// content that is not what the hub says it is.
pub fn download(repository: &Repository, places: &Places, progress: &mut dyn Progress) -> Result<PathBuf> {
    if places.offline {
        return Err(Error::Unavailable("the network is off (--offline or HF_HUB_OFFLINE)".into()));
    }
    let hub = places
        .hub
        .as_ref()
        .ok_or_else(|| Error::Unavailable("no cache directory: set HF_HOME, XDG_CACHE_HOME or HOME".into()))?;
    let (commit, names) = list(repository, places, hub)?;
    let fetch = Fetch {
        repository,
        places,
        commit: &commit,
        repo_dir: hub.join(format!("models--{}", repository.id.replace('/', "--"))),
        locks: hub.join(".locks").join(format!("models--{}", repository.id.replace('/', "--"))),
        agent: ureq::Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(IDLE))
            .user_agent(concat!("interp/", env!("CARGO_PKG_VERSION")))
            .build()
            .into(),
    };
    let has = |name: &str| names.iter().any(|n| n == name);
    let mut wanted = vec!["config.json".to_string()];
    if has("tokenizer.json") {
        wanted.push("tokenizer.json".into());
    } else {
        wanted.extend(["vocab.json".to_string(), "merges.txt".to_string()]);
    }
    if has("model.safetensors") {
        wanted.push("model.safetensors".into());
    } else if has("model.safetensors.index.json") {
        let index = fetch.file("model.safetensors.index.json", progress)?;
        wanted.extend(shard_names(&super::read_small(&index, 8 << 20)?, &index)?);
    }
    if let Some(missing) = wanted.iter().find(|name| !has(name)) {
        return Err(Error::Missing(format!("{}: the repository has no {missing}", repository.id)));
    }
    if !wanted.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(Error::Missing(format!("{}: the repository has no safetensors weights", repository.id)));
    }
    for name in &wanted {
        fetch.file(name, progress)?;
    }
    // The ref comes last: a snapshot that it names is complete.
    let reference = fetch.repo_dir.join("refs").join(&repository.revision);
    if let Some(parent) = reference.parent() {
        disk::write_dir(parent)?;
    }
    disk::write_bytes(&reference, commit.as_bytes())?;
    Ok(fetch.snapshot())
}

/// The commit of a revision and the files in it, as hf-hub lists them.
fn list(repository: &Repository, places: &Places, hub: &Path) -> Result<(String, Vec<String>)> {
    let builder = ApiBuilder::from_cache(Cache::new(hub.to_path_buf()))
        .with_endpoint(places.endpoint.clone())
        .with_token(places.token.clone())
        .with_progress(false);
    let repo = Repo::with_revision(repository.id.clone(), RepoType::Model, repository.revision.clone());
    let (send, receive) = std::sync::mpsc::channel();
    // hf-hub sets no timeouts, so its request runs beside us and is given up on.
    std::thread::spawn(move || {
        let _ = send.send(builder.build().and_then(|api| api.repo(repo).info()));
    });
    let info = match receive.recv_timeout(ANSWER) {
        Ok(Ok(info)) => info,
        Ok(Err(ApiError::RequestError(e))) => return Err(refused(&e, repository, places)),
        Ok(Err(e)) => return Err(Error::Unavailable(format!("{}: {}", places.endpoint, clean(&e)))),
        Err(_) => {
            return Err(Error::TryAgain(format!("{} does not answer; try again later", places.endpoint)));
        }
    };
    if !is_plain_name(&info.sha) {
        let sha = crate::error::shorten(&info.sha);
        return Err(Error::data(&places.endpoint, format!("{}: `{sha}` is no commit", repository.id)));
    }
    Ok((info.sha, info.siblings.into_iter().map(|file| file.rfilename).collect()))
}

fn refused(error: &ureq::Error, repository: &Repository, places: &Places) -> Error {
    match error {
        ureq::Error::StatusCode(code) => status(*code, repository, places, "repository or revision"),
        other => Error::Unavailable(format!(
            "cannot reach {}: {}; without a network use --offline or a local directory",
            places.endpoint,
            clean(other)
        )),
    }
}

/// What a status code of the hub means for the user.
fn status(code: u16, repository: &Repository, places: &Places, what: &str) -> Error {
    let Repository { id, revision } = repository;
    match code {
        401 | 403 if places.token.is_some() => Error::Unavailable(format!(
            "{id}: the hub refuses this {what} to this token (HTTP {code}); is it for this repository?"
        )),
        401 | 403 => Error::Unavailable(format!(
            "{id}: no such public repository, or it is gated (HTTP {code}); set HF_TOKEN if you have access"
        )),
        404 => Error::Missing(format!("{id}@{revision}: the hub has no such {what} (HTTP 404)")),
        429 => Error::TryAgain(format!("{id}: the hub asks to slow down (HTTP 429); try again in a few minutes")),
        500..=599 => Error::TryAgain(format!("{id}: the hub has a fault (HTTP {code}); try again later")),
        code => Error::Unavailable(format!("{id}: the hub answered HTTP {code} for {what}")),
    }
}

fn clean(error: &impl std::fmt::Display) -> String {
    crate::error::shorten_to(&error.to_string(), 200)
}

/// One model's download.
struct Fetch<'a> {
    repository: &'a Repository,
    places: &'a Places,
    commit: &'a str,
    repo_dir: PathBuf,
    locks: PathBuf,
    agent: ureq::Agent,
}

/// What the hub says of a file before sending it.
struct Announced {
    expected: Expected,
    size: Option<u64>,
}

impl Fetch<'_> {
    fn snapshot(&self) -> PathBuf {
        self.repo_dir.join("snapshots").join(self.commit)
    }

    /// Brings one file of the repository into the snapshot.
    fn file(&self, name: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        if !is_plain_name(name) {
            return Err(Error::data(
                &self.places.endpoint,
                format!("`{}` is no file name", crate::error::shorten(name)),
            ));
        }
        let pointer = self.snapshot().join(name);
        if pointer.exists() {
            return Ok(pointer);
        }
        let announced = self.announced(name)?;
        let blobs = self.repo_dir.join("blobs");
        disk::write_dir(&blobs)?;
        disk::write_dir(&self.locks)?;
        let blob = blobs.join(announced.expected.hex());
        let lock_path = self.locks.join(format!("{}.lock", announced.expected.hex()));
        let lock = File::create(&lock_path).map_err(|e| Error::writing(&lock_path, e))?;
        // Another process may be at it: then wait, and find the file done.
        lock.lock().map_err(|e| Error::writing(&lock_path, e))?;
        if !blob.exists() {
            self.blob(name, &announced, &blob, progress)?;
        }
        link(&blob, &pointer)?;
        Ok(pointer)
    }

    /// Asks for one byte to learn the hash and the size of a file.
    fn announced(&self, name: &str) -> Result<Announced> {
        let (first, response) = self.get(name, Some("bytes=0-0"))?;
        let header = |response: &Response<ureq::Body>, name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_string)
        };
        let etag = header(&first, "x-linked-etag")
            .or_else(|| header(&first, "etag"))
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string());
        let expected = etag.as_deref().and_then(Expected::from_etag).ok_or_else(|| {
            let found = etag.map_or("none".into(), |etag| crate::error::shorten(&etag));
            Error::data(&self.places.endpoint, format!("{name}: the hub gives no usable hash (etag: {found})"))
        })?;
        let total = response.as_ref().unwrap_or(&first);
        let size = header(&first, "x-linked-size")
            .or_else(|| header(total, "content-range")?.rsplit('/').next().map(str::to_string))
            .and_then(|size| size.parse().ok());
        Ok(Announced { expected, size })
    }

    /// Downloads a blob beside its final place, resuming what an earlier try left, and checks it.
    fn blob(&self, name: &str, announced: &Announced, blob: &Path, progress: &mut dyn Progress) -> Result<()> {
        let partial = blob.with_extension("incomplete");
        let mut tries = 0;
        loop {
            let before = std::fs::metadata(&partial).map_or(0, |m| m.len());
            match self.transfer(name, announced, &partial, progress) {
                Ok(()) => break,
                Err(Error::TryAgain(why)) => {
                    let grew = std::fs::metadata(&partial).map_or(0, |m| m.len()) > before;
                    tries = if grew { 0 } else { tries + 1 };
                    if tries >= RETRIES {
                        return Err(Error::TryAgain(why));
                    }
                    std::thread::sleep(Duration::from_millis(200 << tries));
                }
                Err(other) => return Err(other),
            }
        }
        let found = announced.expected.of_file(&partial)?;
        if found != announced.expected.hex() {
            let _ = std::fs::remove_file(&partial);
            return Err(Error::data(
                &self.places.endpoint,
                format!("{name}: the hub announced {} but sent {found}; nothing was kept", announced.expected.hex()),
            ));
        }
        std::fs::rename(&partial, blob).map_err(|e| Error::writing(blob, e))
    }

    /// Appends to `partial` what it lacks.
    fn transfer(&self, name: &str, announced: &Announced, partial: &Path, progress: &mut dyn Progress) -> Result<()> {
        let fail = |e| Error::writing(partial, e);
        let mut done = std::fs::metadata(partial).map_or(0, |m| m.len());
        if announced.size.is_some_and(|size| done > size) {
            std::fs::remove_file(partial).map_err(fail)?;
            done = 0;
        }
        if announced.size == Some(done) && done > 0 {
            return Ok(()); // an earlier try ended between the last byte and the check
        }
        let range = format!("bytes={done}-");
        let (first, redirected) = self.get(name, (done > 0).then_some(range.as_str()))?;
        let response = redirected.unwrap_or(first);
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        let mut file = OpenOptions::new()
            .create(true)
            .append(resumed)
            .write(true)
            .truncate(!resumed)
            .open(partial)
            .map_err(fail)?;
        if !resumed {
            done = 0;
        }
        let total = announced.size.unwrap_or(0);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut buffer).map_err(|e| {
                Error::TryAgain(format!(
                    "{name}: the connection broke after {done} of {total} bytes ({}); run again to resume",
                    clean(&e)
                ))
            })?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if announced.size.is_some_and(|size| done > size) {
                drop(file);
                let _ = std::fs::remove_file(partial);
                return Err(Error::data(
                    &self.places.endpoint,
                    format!("{name}: the hub sent more than the {total} bytes it announced; nothing was kept"),
                ));
            }
            file.write_all(&buffer[..n]).map_err(fail)?;
            progress.update(name, done, total);
        }
        file.sync_all().map_err(fail)?;
        if announced.size.is_some_and(|size| done < size) {
            return Err(Error::TryAgain(format!(
                "{name}: the connection closed after {done} of {total} bytes; run again to resume"
            )));
        }
        Ok(())
    }

    /// Gets a file of the commit; returns the hub's own answer and, where that redirects, the final one.
    fn get(&self, name: &str, range: Option<&str>) -> Result<(Response<ureq::Body>, Option<Response<ureq::Body>>)> {
        let hub = &self.places.endpoint;
        let mut address = format!("{hub}/{}/resolve/{}/{name}", self.repository.id, self.commit);
        let mut first = None;
        for _ in 0..=REDIRECTS {
            check_address(&address).map_err(|what| Error::data(hub, format!("{name}: redirected to {what}")))?;
            let mut request = self.agent.get(&address).header("accept-encoding", "identity");
            if let Some(range) = range {
                request = request.header("range", range);
            }
            // The token is for the hub alone, not for whom it redirects to.
            if let (Some(token), true) = (&self.places.token, same_origin(&address, hub)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| match e {
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => Error::data(hub, format!("{name}: {}", clean(&e))),
                _ => Error::TryAgain(format!("{name}: {}; run again to resume", clean(&e))),
            })?;
            let code = response.status();
            if code.is_redirection() {
                let location = response.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or("");
                address = resolve(&address, location)
                    .ok_or_else(|| Error::data(hub, format!("{name}: a redirect to nowhere")))?;
                first.get_or_insert(response);
                continue;
            }
            if !code.is_success() {
                let what = format!("file {name}");
                return Err(status(code.as_u16(), self.repository, self.places, &what));
            }
            return Ok(match first {
                Some(first) => (first, Some(response)),
                None => (response, None),
            });
        }
        Err(Error::data(hub, format!("{name}: more than {REDIRECTS} redirects")))
    }
}

fn same_origin(a: &str, b: &str) -> bool {
    let origin = |address: &str| {
        let uri: Uri = address.parse().ok()?;
        Some((uri.scheme_str()?.to_string(), uri.authority()?.to_string()))
    };
    origin(a).is_some() && origin(a) == origin(b)
}

/// A redirect's target: absolute, or on the host that redirected.
fn resolve(from: &str, location: &str) -> Option<String> {
    if location.contains("://") {
        return Some(location.to_string());
    }
    let uri: Uri = from.parse().ok()?;
    let path = location.strip_prefix('/')?;
    if path.starts_with('/') {
        return None;
    }
    Some(format!("{}://{}/{path}", uri.scheme_str()?, uri.authority()?))
}

/// Points the snapshot's name at a blob, as Python's hub does; copies where links are not possible.
fn link(blob: &Path, pointer: &Path) -> Result<()> {
    let dir = pointer.parent().ok_or_else(|| Error::Bug("a pointer without a directory".into()))?;
    disk::write_dir(dir)?;
    let fail = |e| Error::writing(pointer, e);
    #[cfg(unix)]
    {
        let name = blob.file_name().ok_or_else(|| Error::Bug("a blob without a name".into()))?;
        let target = Path::new("../../blobs").join(name);
        match std::os::unix::fs::symlink(&target, pointer) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // Dangling, or the check before would have found it.
                std::fs::remove_file(pointer).map_err(fail)?;
                std::os::unix::fs::symlink(&target, pointer).map_err(fail)
            }
            done => done.map_err(fail),
        }
    }
    #[cfg(not(unix))]
    {
        std::fs::copy(blob, pointer).map(|_| ()).map_err(fail)
    }
}

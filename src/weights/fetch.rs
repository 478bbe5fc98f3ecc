//! Files from the hub into the cache: each gets its final name only after its hash was checked.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, Uri};

use super::address::{redirect, same_origin};
use super::checkpoint::is_plain_name;
use super::digest::Expected;
use super::hub::Progress;
use super::places::{Places, Repository};
use super::within::{check_inside, directory};
use crate::error::{Error, Result};
use crate::{disk, memory};

const REDIRECTS: usize = 5;

/// Most bytes that the description of a repository may have.
const MAX_DESCRIPTION: u64 = 8 << 20;

/// Most bytes that a file may have, by its name. Weights are bounded by what the hub announces, and by the disk.
fn limit(name: &str) -> u64 {
    match name {
        "config.json" => 1 << 20,
        _ if name.ends_with(".index.json") => 8 << 20,
        _ if name.ends_with(".json") || name.ends_with(".txt") => 64 << 20,
        _ => UNBOUNDED,
    }
}

/// The limit of weights, which is the size that the hub announces.
const UNBOUNDED: u64 = 1 << 40;

/// What a status code of the hub means for the user.
fn status(code: u16, repository: &Repository, has_token: bool, what: &str) -> Error {
    let Repository { id, revision } = repository;
    match code {
        401 | 403 if has_token => Error::Unavailable(format!(
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
pub(super) struct Fetch<'a> {
    repository: &'a Repository,
    places: &'a Places,
    endpoint: Uri,
    token: Option<String>,
    /// The commit whose files are fetched.
    pub commit: String,
    hub: &'a Path,
    pub repo_dir: PathBuf,
    locks: PathBuf,
    agent: ureq::Agent,
    /// For plain http, which is for this machine: never through a proxy, which would see the token.
    direct: ureq::Agent,
}

/// What the hub says of a file before sending it.
struct Announced {
    expected: Expected,
    size: Option<u64>,
}

/// What the hub answered: its own answer, and where that redirects, the final one.
struct Answer {
    first: Response<ureq::Body>,
    last: Option<Response<ureq::Body>>,
}

impl<'a> Fetch<'a> {
    pub fn new(repository: &'a Repository, places: &'a Places, hub: &'a Path, endpoint: Uri) -> Result<Self> {
        let folder = format!("models--{}", repository.id.replace('/', "--"));
        let patience = &places.patience;
        let agent = |builder: ureq::config::ConfigBuilder<ureq::typestate::AgentScope>| -> ureq::Agent {
            builder
                .max_redirects(0)
                .http_status_as_error(false)
                .timeout_connect(Some(patience.connect))
                .timeout_recv_response(Some(patience.answer))
                .timeout_per_read(Some(patience.idle))
                .user_agent(concat!("interp/", env!("CARGO_PKG_VERSION")))
                .build()
                .into()
        };
        Ok(Self {
            repository,
            places,
            endpoint,
            token: places.token.read()?,
            commit: String::new(),
            hub,
            repo_dir: hub.join(&folder),
            locks: hub.join(".locks").join(&folder),
            agent: agent(ureq::Agent::config_builder()),
            direct: agent(ureq::Agent::config_builder().proxy(None)),
        })
    }

    pub fn snapshot(&self) -> PathBuf {
        self.repo_dir.join("snapshots").join(&self.commit)
    }

    /// Creates a directory of the cache.
    pub fn directory(&self, dir: &Path) -> Result<()> {
        directory(self.hub, dir)
    }

    /// What the hub says of the repository.
    pub fn description(&self, path: &str) -> Result<Vec<u8>> {
        let address = format!("{}/api/{path}", self.places.endpoint);
        let answer = self.get(&address, None, "repository or revision")?;
        let mut bytes = Vec::new();
        let whose = &self.places.endpoint;
        self.receive(whose, 0, None, MAX_DESCRIPTION, answer.into_last(), &mut |part, _| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Brings one file of the repository into the snapshot.
    pub fn file(&self, name: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        if !is_plain_name(name) {
            return Err(Error::data(
                &self.places.endpoint,
                format!("`{}` is no file name", crate::error::shorten(name)),
            ));
        }
        let pointer = self.snapshot().join(name);
        if pointer.exists() {
            check_inside(self.hub, &self.repo_dir, &pointer)?;
            return Ok(pointer);
        }
        let announced = self.announced(name)?;
        if let Some(size) = announced.size.filter(|&size| size > limit(name)) {
            return Err(self.too_large(name, &format!("the hub announces {size} bytes")));
        }
        if announced.size.is_none() && limit(name) == UNBOUNDED {
            let what = format!("{name}: the hub does not say how large it is, so that it might never end");
            return Err(Error::data(&self.places.endpoint, what));
        }
        let blobs = self.repo_dir.join("blobs");
        self.directory(&blobs)?;
        self.directory(&self.locks)?;
        self.directory(&self.snapshot())?;
        let blob = blobs.join(announced.expected.hex());
        let lock_path = self.locks.join(format!("{}.lock", announced.expected.hex()));
        let mut options = OpenOptions::new();
        let lock = no_link(options.create(true).write(true).truncate(false)).open(&lock_path);
        let lock = lock.map_err(|e| Error::writing(&lock_path, e))?;
        // Another process may be at it: then wait, and find the file done.
        lock.lock().map_err(|e| Error::writing(&lock_path, e))?;
        if blob.exists() {
            check_inside(self.hub, &self.repo_dir, &blob)?;
        } else {
            self.blob(name, &announced, &blob, progress)?;
        }
        link(&blob, &pointer)?;
        Ok(pointer)
    }

    fn too_large(&self, name: &str, what: &str) -> Error {
        Error::data(&self.places.endpoint, format!("{name}: {what}; such a file has at most {}", limit(name)))
    }

    /// Asks for one byte to learn the hash and the size of a file.
    fn announced(&self, name: &str) -> Result<Announced> {
        let Answer { first, last } = self.get(&self.address(name), Some("bytes=0-0"), &format!("file {name}"))?;
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
        let total = last.as_ref().unwrap_or(&first);
        let size = header(&first, "x-linked-size")
            .or_else(|| header(total, "content-range")?.rsplit('/').next().map(str::to_string))
            .or_else(|| header(total, "content-length").filter(|_| total.status() == StatusCode::OK))
            .and_then(|size| size.parse().ok());
        Ok(Announced { expected, size })
    }

    /// Downloads a blob beside its final place, resuming what an earlier try left, and checks it.
    fn blob(&self, name: &str, announced: &Announced, blob: &Path, progress: &mut dyn Progress) -> Result<()> {
        let partial = blob.with_extension("incomplete");
        let held = || std::fs::symlink_metadata(&partial).map_or(0, |m| m.len());
        if let (Some(size), Some(free)) = (announced.size, disk::free(blob))
            && size.saturating_sub(held()) > free
        {
            let what = format!("{name} needs {}, {} are free", memory::human(size), memory::human(free));
            return Err(Error::CannotWrite { path: blob.to_path_buf(), what });
        }
        let mut tries = 0;
        loop {
            let before = held();
            match self.transfer(name, announced, &partial, progress) {
                Ok(()) => break,
                Err(Error::TryAgain(why)) => {
                    // A connection that brings next to nothing does not count: else one byte each would never end.
                    let grew = held().saturating_sub(before) >= self.places.patience.least;
                    tries = if grew { 0 } else { tries + 1 };
                    if tries >= self.places.patience.retries {
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
        let mut done = std::fs::symlink_metadata(partial).map_or(0, |m| m.len());
        if announced.size.is_some_and(|size| done > size) || done > limit(name) {
            std::fs::remove_file(partial).map_err(fail)?;
            done = 0;
        }
        if announced.size == Some(done) && done > 0 {
            return Ok(()); // an earlier try ended between the last byte and the check
        }
        let range = format!("bytes={done}-");
        let answer = self.get(&self.address(name), (done > 0).then_some(range.as_str()), &format!("file {name}"))?;
        let response = answer.into_last();
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        let mut options = OpenOptions::new();
        options.create(true).append(resumed).write(true).truncate(!resumed);
        let mut file = no_link(&mut options).open(partial).map_err(fail)?;
        if !resumed {
            done = 0;
        }
        let total = announced.size.unwrap_or(0);
        let received = self.receive(name, done, announced.size, limit(name), response, &mut |part, done| {
            file.write_all(part).map_err(fail)?;
            progress.update(name, done, total);
            Ok(())
        });
        if matches!(received, Err(Error::Data { .. })) {
            let _ = std::fs::remove_file(partial);
        }
        let done = received?;
        file.sync_all().map_err(fail)?;
        if announced.size.is_some_and(|size| done < size) {
            return Err(Error::TryAgain(format!(
                "{name}: the connection closed after {done} of {total} bytes; run again to resume"
            )));
        }
        Ok(())
    }

    /// Reads the body of an answer to its end, given that `done` bytes were there before; returns how many there are then.
    fn receive(
        &self,
        name: &str,
        mut done: u64,
        size: Option<u64>,
        limit: u64,
        response: Response<ureq::Body>,
        keep: &mut dyn FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<u64> {
        let patience = &self.places.patience;
        let of = size.map_or(String::new(), |size| format!(" of {size}"));
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let (mut since, mut then) = (Instant::now(), done);
        loop {
            let n = body.read(&mut buffer).map_err(|e| {
                Error::TryAgain(format!(
                    "{name}: the connection broke after {done}{of} bytes ({}); run again to resume",
                    clean(&e)
                ))
            })?;
            if n == 0 {
                return Ok(done);
            }
            done += n as u64;
            if let Some(size) = size.filter(|&size| done > size) {
                return Err(Error::data(
                    &self.places.endpoint,
                    format!("{name}: the hub sent more than the {size} bytes it announced; nothing was kept"),
                ));
            }
            if done > limit {
                let what = format!(
                    "{name}: the hub sent more than the {limit} bytes that such a file may have; nothing was kept"
                );
                return Err(Error::data(&self.places.endpoint, what));
            }
            keep(&buffer[..n], done)?;
            if since.elapsed() >= patience.window {
                if done - then < patience.least {
                    return Err(Error::TryAgain(format!(
                        "{name}: too slow, {} bytes in {} s after {done}{of}; run again to resume",
                        done - then,
                        since.elapsed().as_secs()
                    )));
                }
                (since, then) = (Instant::now(), done);
            }
        }
    }

    /// The address of a file of the commit.
    fn address(&self, name: &str) -> String {
        format!("{}/{}/resolve/{}/{name}", self.places.endpoint, self.repository.id, self.commit)
    }

    /// Gets what is at an address of the hub; `what` is for messages.
    fn get(&self, address: &str, range: Option<&str>, what: &str) -> Result<Answer> {
        let hub = &self.places.endpoint;
        let wrong = |fault: String| Error::data(hub, format!("{what}: {fault}"));
        let mut address: Uri = address.parse().map_err(|_| wrong("no address".into()))?;
        let mut first = None;
        let mut at_home = true;
        for _ in 0..=REDIRECTS {
            // The token is for the hub alone: not for whom it redirects to, nor for what that redirects back to.
            at_home &= same_origin(&address, &self.endpoint);
            let agent = if address.scheme_str() == Some("http") { &self.direct } else { &self.agent };
            let mut request = agent.get(address.clone()).header("accept-encoding", "identity");
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let (Some(token), true) = (&self.token, at_home) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| match e {
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => wrong(clean(&e)),
                ureq::Error::Timeout(_) => {
                    Error::TryAgain(format!("{hub} does not answer ({}); try again later", clean(&e)))
                }
                _ if self.commit.is_empty() => Error::Unavailable(format!(
                    "cannot reach {hub}: {}; without a network use --offline or a local directory",
                    clean(&e)
                )),
                _ => Error::TryAgain(format!("{what}: {}; run again to resume", clean(&e))),
            })?;
            let code = response.status();
            if code.is_redirection() {
                let location = response.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or("");
                address = redirect(&address, location).map_err(wrong)?;
                first.get_or_insert(response);
                continue;
            }
            if !code.is_success() {
                return Err(status(code.as_u16(), self.repository, self.token.is_some(), what));
            }
            return Ok(match first {
                Some(first) => Answer { first, last: Some(response) },
                None => Answer { first: response, last: None },
            });
        }
        Err(wrong(format!("more than {REDIRECTS} redirects")))
    }
}

impl Answer {
    fn into_last(self) -> Response<ureq::Body> {
        self.last.unwrap_or(self.first)
    }
}

/// Makes opening refuse a link at the end of a path: what is written goes into the cache and nowhere else.
fn no_link(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW);
    options
}

/// Points the snapshot's name at a blob, as Python's hub does; copies where links are not possible.
fn link(blob: &Path, pointer: &Path) -> Result<()> {
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

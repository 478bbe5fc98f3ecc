//! A hub on 127.0.0.1 that behaves as badly as it is told to.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The commit of every repository here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request, as far as tests look at it.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// The first byte that a range asks for.
    pub fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }

    /// Whether only the size is asked for.
    pub fn is_probe(&self) -> bool {
        self.headers.get("range").is_some_and(|range| range == "bytes=0-0")
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Wait so long before each kilobyte.
    pub slow: Option<Duration>,
    /// Send no more than so many bytes of the body before this is set.
    pub hold: Option<(usize, Arc<AtomicBool>)>,
}

impl Response {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// The server; it stops when it is dropped.
pub struct Hub {
    pub address: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Hub {
    pub fn new(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, stopped) = (requests.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, log) = (handler.clone(), log.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &*handler, &log));
            }
        });
        Self { address, requests, stop }
    }

    /// How many requests were made for paths that contain `part`, size probes not counted.
    pub fn count(&self, part: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|r| r.path.contains(part) && !r.is_probe()).count()
    }

    /// Waits until `seen` holds of what was asked for so far.
    pub fn wait_until(&self, seen: impl Fn(&[Request]) -> bool) {
        while !seen(&self.log()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn log(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

fn serve(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or("").to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(": ") {
            headers.insert(name.to_lowercase(), value.to_string());
        }
    }
    let request = Request { path, headers };
    let response = handler(&request);
    log.lock().unwrap().push(request);
    let _ = answer(stream, &response);
}

fn answer(mut stream: TcpStream, response: &Response) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} x\r\nconnection: close\r\n", response.status)?;
    if !response.headers.iter().any(|(name, _)| name == "content-length") {
        write!(stream, "content-length: {}\r\n", response.body.len())?;
    }
    for (name, value) in &response.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    let body = &response.body[..response.cut.unwrap_or(response.body.len()).min(response.body.len())];
    let first = response.hold.as_ref().map_or(0, |(first, _)| body.len().min(*first));
    stream.write_all(&body[..first])?;
    if let Some((_, go)) = &response.hold {
        stream.flush()?;
        while !go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for part in body[first..].chunks(1024) {
        if let Some(wait) = response.slow {
            std::thread::sleep(wait);
        }
        stream.write_all(part)?;
    }
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read(&mut [0; 64]);
    Ok(())
}

/// The files of a repository.
#[derive(Clone)]
pub struct Repo {
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Repo {
    /// What `/api/models/…` answers.
    pub fn listing(&self) -> Response {
        let siblings: Vec<_> = self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes();
        Response { status: 200, body, ..Response::default() }.header("content-type", "application/json")
    }

    /// What a well-behaved hub answers to anything.
    pub fn answer(&self, request: &Request) -> Response {
        if request.path.starts_with("/api/models/") {
            return self.listing();
        }
        match request.path.rsplit('/').next().and_then(|name| self.files.get(name)) {
            Some(content) => file(content, request),
            None => Response::status(404),
        }
    }
}

/// A file with its hash and the part that was asked for.
pub fn file(content: &[u8], request: &Request) -> Response {
    let etag = format!("\"{}\"", interp::weights::sha256_of(content));
    let response = Response::default().header("etag", etag).header("x-repo-commit", COMMIT);
    match request.from() {
        None => Response { status: 200, body: content.to_vec(), ..response },
        Some(start) if start >= content.len() => Response { status: 416, ..response },
        Some(start) => {
            let end = if request.is_probe() { start + 1 } else { content.len() };
            let range = format!("bytes {start}-{}/{}", end - 1, content.len());
            Response { status: 206, body: content[start..end].to_vec(), ..response }.header("content-range", range)
        }
    }
}

//! A real browser without a window, driven through its DevTools protocol over two pipes.
#![allow(dead_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

/// Long enough for a busy machine: what comes at all comes within seconds.
const PATIENCE: Duration = Duration::from_secs(600);

/// The browser of this machine: INTERP_BROWSER, or a chromium on the path; none where there is neither.
pub fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("INTERP_BROWSER").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

/// A running browser with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    events: Vec<Value>,
    _dir: tempfile::TempDir,
}

impl Browser {
    pub fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pipes = ["in", "out"].map(|name| dir.path().join(name));
        for pipe in &pipes {
            assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        }
        // The protocol is spoken over descriptors 3 and 4, which a shell opens.
        let child = Command::new("sh")
            .args(["-c", r#"in="$1"; out="$2"; shift 2; exec "$@" 3<"$in" 4>"$out""#, "sh"])
            .args(&pipes)
            .arg(program)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
            ])
            .args(["--hide-scrollbars", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = File::options().write(true).open(&pipes[0]).unwrap();
        let from = File::open(&pipes[1]).unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(from).split(0) {
                let Ok(bytes) = message else { return };
                if sender.send(serde_json::from_slice(&bytes).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { child, to, from: receiver, session: None, sent: 0, events: Vec::new(), _dir: dir };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = Some(session["sessionId"].as_str().unwrap().to_string());
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.resize(1280);
        browser
    }

    /// Opens one of our pages, at a place in it, and waits until it has drawn itself.
    pub fn open(&mut self, file: &Path, place: &str) {
        self.visit(file, place);
        self.wait_for("document.documentElement?.dataset.ready === 'yes'");
    }

    /// Opens any file.
    pub fn visit(&mut self, file: &Path, place: &str) {
        self.call("Page.navigate", json!({ "url": "about:blank" }));
        self.wait_for("location.href === 'about:blank'");
        self.events.clear();
        self.call("Page.navigate", json!({ "url": format!("file://{}{place}", file.display()) }));
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'");
    }

    /// The value of an expression on the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let said = self
            .call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true, "awaitPromise": true }));
        assert!(said["exceptionDetails"].is_null(), "{expression}: {said}");
        said["result"]["value"].clone()
    }

    /// The text of the first element that a selector finds.
    pub fn text(&mut self, selector: &str) -> String {
        self.eval(&format!("document.querySelector({})?.textContent ?? null", json!(selector)))
            .as_str()
            .unwrap_or_else(|| panic!("the page has no {selector}"))
            .to_string()
    }

    /// The texts of all elements that a selector finds.
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let all = self.eval(&format!("[...document.querySelectorAll({})].map((e) => e.textContent)", json!(selector)));
        serde_json::from_value(all).unwrap()
    }

    /// Moves the pointer onto an element that an expression gives, `right` and `down` of its corner or into its middle.
    pub fn hover(&mut self, element: &str, at: Option<(f64, f64)>) {
        self.pointer("mouseMoved", element, at);
    }

    pub fn click(&mut self, element: &str, at: Option<(f64, f64)>) {
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            self.pointer(kind, element, at);
        }
    }

    fn pointer(&mut self, kind: &str, element: &str, at: Option<(f64, f64)>) {
        let middle = "(b.width / 2), (b.height / 2)".to_string();
        let (right, down) = at.unwrap_or((0.0, 0.0));
        let offset = at.map_or(middle, |_| format!("{right}, {down}"));
        let find = format!(
            "(async () => {{ const e = {element}; e.scrollIntoView({{ block: 'center', inline: 'center' }}); \
             const frame = () => new Promise(requestAnimationFrame); await frame(); await frame(); \
             const b = e.getBoundingClientRect(); const [right, down] = [{offset}]; return [b.left + right, b.top + down]; }})()"
        );
        let place = self.eval(&find);
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        let event = json!({ "type": kind, "x": place[0], "y": place[1], "button": button, "clickCount": 1 });
        self.call("Input.dispatchMouseEvent", event);
    }

    /// Presses a key.
    pub fn key(&mut self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = if key == "Enter" { "\r" } else { text };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Shows the page as on dark ground, on paper …
    pub fn media(&mut self, media: &str, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "media": media, "features": features }));
    }

    /// Gives the window another width.
    pub fn resize(&mut self, width: u32) {
        let size = json!({ "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// The page as PNG, all of it.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let image = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        base64::engine::general_purpose::STANDARD.decode(image["data"].as_str().unwrap()).unwrap()
    }

    /// The page as PDF, as it is printed.
    pub fn print(&mut self) -> Vec<u8> {
        let file = self.call("Page.printToPDF", json!({ "printBackground": true }));
        base64::engine::general_purpose::STANDARD.decode(file["data"].as_str().unwrap()).unwrap()
    }

    /// Roles and names as a screen reader gets them.
    pub fn accessible(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let text = |node: &Value, key: &str| node[key]["value"].as_str().unwrap_or_default().to_string();
        let nodes = tree["nodes"].as_array().unwrap().iter();
        nodes.filter(|node| node["ignored"] != true).map(|node| (text(node, "role"), text(node, "name"))).collect()
    }

    /// What the page asked for beside itself, and what went wrong, since it was opened.
    pub fn complaints(&mut self) -> Vec<String> {
        self.eval("0"); // what was reported before is here now
        let told = |event: &Value| -> Option<String> {
            let params = &event["params"];
            match event["method"].as_str()? {
                "Network.requestWillBeSent" if params["type"] != "Document" => {
                    Some(params["request"]["url"].to_string())
                }
                "Runtime.exceptionThrown" => Some(params.to_string()),
                "Runtime.consoleAPICalled" => Some(params.to_string()),
                "Log.entryAdded" => Some(params.to_string()),
                _ => None,
            }
        };
        self.events.iter().filter_map(told).collect()
    }

    pub fn wait_for(&mut self, condition: &str) {
        let start = Instant::now();
        while self.eval(condition) != true {
            assert!(start.elapsed() < PATIENCE, "waited for {condition}; {:?}", self.complaints());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(&[message.to_string().as_bytes(), b"\0"].concat()).unwrap();
        loop {
            match self.from.recv_timeout(PATIENCE) {
                Ok(answer) if answer["id"] == self.sent => {
                    assert!(answer["error"].is_null(), "{method}: {answer}");
                    return answer["result"].clone();
                }
                Ok(event) => self.events.push(event),
                Err(RecvTimeoutError::Timeout) => panic!("{method}: no answer"),
                Err(RecvTimeoutError::Disconnected) => panic!("{method}: the browser went away"),
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! One run in a process of its own.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use interp::dataset::lock::Lock;
use interp::{Error, Result, disk, run_dir};
use serde_json::Value;

use super::super::stop::Stop;
use super::runs::Run;

/// How a run ended.
pub enum Ended {
    /// All of its files are there.
    Done,
    /// With an exit code and a message.
    Failed(i32, String),
    /// Another process has it, which is named.
    Elsewhere(String),
}

/// How often a child is looked at.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a child may take to stop once it was asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does a run, unless it is done, or another process has it or failed at it since `started`; and how long it took.
pub fn run(dir: &Path, run: &Run, started: SystemTime, stop: &Stop) -> Result<(Ended, Option<f64>)> {
    if run.is_done(dir) {
        return Ok((Ended::Done, None));
    }
    let lock = match Lock::open(&dir.join("runs").join(format!(".{}.lock", run.id))) {
        Ok(lock) => lock,
        Err(Error::TryAgain(who)) => return Ok((Ended::Elsewhere(who), None)),
        Err(e) => return Err(e),
    };
    // Another process may have ended it between the two looks.
    if run.is_done(dir) {
        return Ok((Ended::Done, None));
    }
    let failure = dir.join("runs").join(format!(".{}.failed", run.id));
    if let Some(failed) = earlier(&failure, started) {
        return Ok((failed, None));
    }
    let begun = Instant::now();
    let mut command = Command::new(this()?);
    let mut out = OsString::from("--out=");
    out.push(run.dir(dir));
    command.args(front(run)).arg(out).args(back(run));
    end_with_parent(&mut command);
    let failed = |code: i32, message: String| -> Result<(Ended, Option<f64>)> {
        if !stop.is_asked() {
            disk::write_bytes(&failure, format!("{code} {message}").as_bytes())?;
        }
        Ok((Ended::Failed(code, message), Some(begun.elapsed().as_secs_f64())))
    };
    let mut child = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(e) => return failed(2, format!("it could not be started: {e}")),
    };
    let said = listen(&mut child);
    let status = wait(&mut child, stop)?;
    let said = said.join().unwrap_or_default();
    if status.success()
        && let Some(changed) = run.changed()?
    {
        // The name of the directory would promise another content.
        run_dir::remove(&run.dir(dir))?;
        return failed(65, format!("{} was changed while it ran", changed.display()));
    }
    drop(lock);
    if run.is_done(dir) && status.success() {
        let _ = std::fs::remove_file(&failure);
        return Ok((Ended::Done, Some(begun.elapsed().as_secs_f64())));
    }
    failed(status.code().unwrap_or(75), message(status, &said))
}

/// What a run would take, as its `--dry-run` says.
pub fn dry(run: &Run) -> Result<Value> {
    let mut command = Command::new(this()?);
    command
        .args(front(run))
        .args(["--dry-run", "--format=json"])
        .args(back(run).into_iter().filter(|word| *word != "--quiet"));
    let output = command.stdin(Stdio::null()).output().map_err(cannot)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(error(
            output.status.code().unwrap_or(75),
            format!("{}: {}", run.words(), message(output.status, &said)),
        ));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::Bug(format!("{} --dry-run: {e}", run.arguments[0].display())))
}

/// The command, and what follows it: options may not stand behind `--`.
fn front(run: &Run) -> &[OsString] {
    &run.arguments[..1]
}

fn back(run: &Run) -> Vec<&OsString> {
    run.arguments[1..].iter().collect()
}

fn this() -> Result<PathBuf> {
    std::env::current_exe().map_err(cannot)
}

fn cannot(source: std::io::Error) -> Error {
    Error::Io { path: PathBuf::from("interp"), source }
}

/// A failure of another process that shares the directory, since this one began; older ones are tried again.
fn earlier(failure: &Path, started: SystemTime) -> Option<Ended> {
    let written = std::fs::metadata(failure).and_then(|facts| facts.modified()).ok()?;
    let text = interp::weights::read_text(failure, 1 << 20).ok().filter(|_| written >= started)?;
    let (code, message) = text.split_once(' ')?;
    Some(Ended::Failed(code.parse().ok()?, message.to_string()))
}

/// Reads what a child complains of, so that it never waits for a reader.
fn listen(child: &mut Child) -> std::thread::JoinHandle<String> {
    let stderr = child.stderr.take();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Asks a child to end as `kill` does, so that it can write its checkpoint; a terminal has told it already.
fn terminate(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // SAFETY: kill takes two numbers; the child has not been waited for, so the number is still its own.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(pid, libc::SIGTERM);
        }
    }
}

/// Lets the system end a child whose parent is gone, or two would write at one place.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        // SAFETY: prctl with these arguments is a system call that touches no memory, as may be made between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Waits for a child.
fn wait(child: &mut Child, stop: &Stop) -> Result<ExitStatus> {
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().map_err(cannot)? {
            return Ok(status);
        }
        if stop.is_asked() {
            let since = *asked.get_or_insert_with(|| {
                terminate(child);
                Instant::now()
            });
            if since.elapsed() > PATIENCE {
                child.kill().map_err(cannot)?;
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// The line with the error, or what ended it.
fn message(status: ExitStatus, said: &str) -> String {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("error: "));
    line.map_or_else(|| format!("it ended with {status}"), str::to_string)
}

/// A child's fault as one's own, of the same kind.
pub fn error(code: i32, message: String) -> Error {
    match code {
        2 => Error::Request(message),
        65 => Error::Data { path: PathBuf::from("sweep"), what: message },
        66 => Error::Missing(message),
        69 => Error::Unavailable(message),
        73 => Error::CannotWrite { path: PathBuf::from("sweep"), what: message },
        74 => Error::Io { path: PathBuf::from("sweep"), source: std::io::Error::other(message) },
        75 => Error::TryAgain(message),
        130 => Error::Interrupted(format!(": {message}")),
        143 => Error::Terminated(format!(": {message}")),
        _ => Error::Bug(message),
    }
}

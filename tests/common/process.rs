//! Running the binary as a user does.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A command line in a directory of its own, with nothing of the user's environment.
pub struct Interp {
    command: Command,
    dir: tempfile::TempDir,
    stdin: Option<Vec<u8>>,
}

/// What it did.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// The directory it ran in.
    pub dir: tempfile::TempDir,
}

impl Interp {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_interp"));
        command.current_dir(dir.path()).env_clear().env("HOME", dir.path()).env("HF_HUB_OFFLINE", "1");
        if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        Self { command, dir, stdin: None }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Words of a command line, split at spaces.
    pub fn words(mut self, words: &str) -> Self {
        self.command.args(words.split_whitespace());
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Limits the address space, so that a huge allocation fails the test instead of the machine.
    pub fn limit_memory(mut self, bytes: u64) -> Self {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: setrlimit is async-signal-safe and reads a value that the closure owns.
        #[allow(unsafe_code)]
        unsafe {
            self.command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        self
    }

    /// Limits the processor time, which unlike a clock does not run while others work: what takes longer is killed.
    pub fn limit_cpu(mut self, seconds: u64) -> Self {
        let limit = libc::rlimit { rlim_cur: seconds, rlim_max: seconds };
        // SAFETY: setrlimit is async-signal-safe and reads a value that the closure owns.
        #[allow(unsafe_code)]
        unsafe {
            self.command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_CPU, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        self
    }

    /// Limits the size of files, as a full disk would: a longer write fails.
    pub fn limit_files(mut self, bytes: u64) -> Self {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: signal and setrlimit are async-signal-safe; the limit is a value that the closure owns.
        #[allow(unsafe_code)]
        unsafe {
            self.command.pre_exec(move || {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        self
    }

    /// Lets it run where `dir` is a file system in memory of its own, mounted with these options.
    pub fn mounted(mut self, dir: &Path, options: &str) -> Self {
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs -o \"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"";
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", options]).arg(dir);
        command.arg(self.command.get_program()).args(self.command.get_args());
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .envs(std::env::var_os("LD_LIBRARY_PATH").map(|libraries| ("LD_LIBRARY_PATH", libraries)))
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        self.command = command;
        self
    }

    /// Kills the process if it asks for a network socket (seccomp, so that no path can be forgotten).
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub fn forbid_sockets(mut self) -> Self {
        const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
        const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
        const RETURN: u16 = 0x06; // BPF_RET | BPF_K
        const ALLOW: u32 = 0x7fff_0000;
        const KILL: u32 = 0x8000_0000;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let filter = [
            step(LOAD, 0, 0, 0), // the number of the system call
            step(EQUAL, 0, 1, libc::SYS_socket as u32),
            step(RETURN, 0, 0, KILL),
            step(RETURN, 0, 0, ALLOW),
        ];
        // SAFETY: prctl is async-signal-safe; the filter lives in the closure for as long as the kernel copies it.
        #[allow(unsafe_code)]
        unsafe {
            self.command.pre_exec(move || {
                let mut filter = filter;
                let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
                if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                    || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        self
    }

    /// Bits are compared with the library's on the CPU, also where there is a GPU; `INTERP_TEST_DEVICE` names another device.
    fn on_device(&mut self) {
        let words: Vec<String> = self.command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let named = words.iter().any(|word| word.starts_with("--device"));
        // What opens no model refuses to be told where to compute.
        let computes = words.first().is_some_and(|word| !["models", "completions"].contains(&word.as_str()))
            && !words.get(1).is_some_and(|word| ["list", "tasks", "verify", "merge"].contains(&word.as_str()))
            && words != ["pairs"]
            && words != ["behave"];
        if cfg!(feature = "cuda") && !named && computes {
            let device = std::env::var("INTERP_TEST_DEVICE").unwrap_or("cpu".into());
            self.command.args(["--device", &device]);
        }
    }

    /// Starts it without waiting.
    pub fn spawn(mut self) -> (Child, tempfile::TempDir) {
        self.on_device();
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        (self.command.spawn().unwrap(), self.dir)
    }

    pub fn run(mut self) -> Outcome {
        self.on_device();
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        let mut stderr_pipe = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr_pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).expect("stderr is UTF-8")
        });
        let mut stdout = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        let status = child.wait().unwrap();
        Outcome {
            code: status.code(),
            stdout: String::from_utf8(stdout).expect("stdout is UTF-8"),
            stderr: stderr.join().unwrap(),
            dir: self.dir,
        }
    }
}

impl Outcome {
    /// Asserts success.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Asserts a refusal: this exit code, one line on stderr that says `wanted`, nothing on stdout, nothing written.
    pub fn refused(self, code: i32, wanted: &str) -> Self {
        let context = format!("code {:?}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "wanted {code}: {context}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "not one line: {context}");
        assert!(self.stderr.starts_with("error: "), "{context}");
        assert!(self.stderr.contains(wanted), "wanted `{wanted}`: {context}");
        assert!(!self.stderr.contains("panicked"), "{context}");
        assert!(!self.stderr.chars().any(|c| c.is_control() && c != '\n'), "control characters: {context}");
        assert_eq!(self.stdout, "", "{context}");
        let written = files(self.dir.path());
        assert!(written.is_empty(), "left behind {written:?}: {context}");
        self
    }

    /// The one output directory that the command wrote below outputs/.
    pub fn output(&self) -> PathBuf {
        let runs: Vec<PathBuf> = files(self.dir.path()).into_iter().filter(|f| f.ends_with("run.json")).collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs[0].parent().unwrap().to_path_buf()
    }

    /// Its run.json.
    pub fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.output().join("run.json")).unwrap()).unwrap()
    }
}

/// Whether this machine lets anybody mount a file system that only its own process sees.
pub fn can_mount() -> bool {
    let probe = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .status();
    probe.is_ok_and(|status| status.success())
}

/// Lets a process work until `seen` holds, and stops it there: it then stands in the middle of its work for as long as it is left
/// there, however busy the machine is. False if it ended before.
pub fn stop_when(child: &mut Child, mut seen: impl FnMut() -> bool) -> bool {
    loop {
        signal(child, libc::SIGSTOP);
        // SAFETY: waitid writes into a value of ours; WNOWAIT leaves the child to be waited for.
        #[allow(unsafe_code)]
        let ended = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let wait = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
            assert_eq!(libc::waitid(libc::P_PID, child.id(), &mut info, wait), 0);
            info.si_code != libc::CLD_STOPPED
        };
        if ended {
            return false;
        }
        if seen() {
            return true;
        }
        go_on(child);
        std::thread::sleep(Duration::from_millis(1)); // it works meanwhile; nothing depends on how far it comes
    }
}

/// Lets a process that was stopped work again.
pub fn go_on(child: &Child) {
    signal(child, libc::SIGCONT);
}

/// Kills a process where `seen` holds for the first time. It must not have ended by itself.
pub fn kill_when(child: &mut Child, what: &str, seen: impl FnMut() -> bool) {
    use std::os::unix::process::ExitStatusExt;
    assert!(stop_when(child, seen), "it ended before {what}");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL), "it was to be killed when {what}");
}

/// Lines of a file, none where there is no file.
pub fn lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &Child, signal: i32) {
    // SAFETY: kill touches no memory of ours.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(child.id() as i32, signal);
    }
}

/// Every file below a directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

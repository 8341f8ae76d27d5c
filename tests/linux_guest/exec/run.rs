//! A `kickvm exec` command: building, running and its result.

use crate::common::TempDir;
use crate::common::process::{default_signals, read_until};
use crate::support::assets::{Assets, Kernel};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The limit for every wait. On an emulated processor a boot takes some seconds.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A `kickvm exec` command that is being built. Without options the guest has no files but kickvm.
pub struct Exec {
    pub assets: Assets,
    pub scratch: TempDir,
    command: Command,
}

impl Exec {
    /// A command line with `kernel`, so far without a guest command. The error names the environment variable that is
    /// missing.
    pub fn new(kernel: Kernel) -> Result<Self, &'static str> {
        let scratch = TempDir::new();
        let assets = Assets::find(kernel, scratch.path())?;
        let command = command_of(&assets.kernel);
        Ok(Self { assets, scratch, command })
    }

    /// The same with another kernel, and without the options so far.
    pub fn with_kernel(self, kernel: &Path) -> Self {
        Self { command: command_of(kernel), ..self }
    }

    /// Adds options.
    pub fn options<S: AsRef<OsStr>>(mut self, options: &[S]) -> Self {
        self.command.args(options);
        self
    }

    /// Adds busybox, as `/bin/busybox` and as the shell.
    pub fn busybox(self) -> Self {
        let busybox = busybox();
        let add = |guest: &str| format!("{}:{guest}", busybox.display());
        self.options(&["--copy", &add("/bin/busybox"), "--copy", &add("/bin/sh")])
    }

    /// The kickvm command that runs `words`.
    pub fn command(mut self, words: &[&str]) -> (Command, TempDir) {
        self.command.arg("--").args(words);
        (self.command, self.scratch)
    }

    /// Starts it with a pipe for each standard stream.
    pub fn start(self, words: &[&str]) -> Running {
        let (command, scratch) = self.command(words);
        Running::of(command, scratch)
    }

    /// Runs it without input to its end.
    pub fn run(self, words: &[&str]) -> Ended {
        self.start(words).end_with(b"")
    }

    /// Runs a script of busybox's shell.
    pub fn sh(self, script: &str) -> Ended {
        self.busybox().run(&["sh", "-c", script])
    }
}

fn command_of(kernel: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
    default_signals(&mut command);
    command.arg("exec").arg("--kernel").arg(kernel);
    command
}

/// The static busybox that the test initramfs contains too.
pub fn busybox() -> PathBuf {
    PathBuf::from(std::env::var_os("KICKVM_CACHE").expect("the runner sets it")).join("busybox")
}

/// A `kickvm exec` that runs.
pub struct Running {
    pub child: Child,
    pub stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    scratch: Option<TempDir>,
}

impl Running {
    /// Starts a command, whose files are in `scratch`.
    pub fn of(mut command: Command, scratch: TempDir) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cannot start kickvm");
        let stderr = collect(child.stderr.take().expect("there is a pipe"));
        Self { child, stdout: None, stderr: Some(stderr), scratch: Some(scratch) }
    }

    /// Reads standard output until it contains `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let stdout = self.child.stdout.as_mut().expect("it is not collected yet");
        read_until(stdout, text, PATIENCE);
    }

    /// Writes `input`, closes standard input, and waits for the end.
    #[track_caller]
    pub fn end_with(mut self, input: &[u8]) -> Ended {
        if let Some(stdout) = self.child.stdout.take() {
            self.stdout = Some(collect(stdout));
        }
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(input); // the command may end without reading it
        }
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("cannot wait for kickvm") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("kickvm does not end"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let text = |thread: Option<JoinHandle<Vec<u8>>>| thread.map_or(Vec::new(), |it| it.join().expect("no panic"));
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        let stderr = String::from_utf8(stderr).expect("standard error is text");
        Ended { status, stdout, stderr, _scratch: self.scratch.take().expect("it ends once") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails if it has ended
        let _ = self.child.wait();
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes); // keep what was read before the error
        bytes
    })
}

/// The result of a `kickvm exec`.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    _scratch: TempDir, // files that a test may still look at
}

impl Ended {
    /// Asserts the exit code, and all of standard output and standard error.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: &str, stderr: &str) {
        let seen = (self.status.code(), self.text(), self.stderr.as_str());
        assert_eq!(seen, (Some(code), stdout, stderr));
    }

    /// Asserts the exit code, and that the first line on standard error is this verdict.
    #[track_caller]
    pub fn assert_verdict(&self, code: i32, verdict: &str) {
        assert_eq!(self.status.code(), Some(code), "exit code\n{}", self.stderr);
        assert_eq!(self.stderr.lines().next(), Some(verdict), "first line of:\n{}", self.stderr);
    }

    /// Standard output.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is text")
    }
}

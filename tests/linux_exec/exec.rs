//! A `kickvm exec` to be, and how it ended.

use super::assets::{Assets, Kernel};
use super::common::TempDir;
use super::common::run::default_signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long anything may take; on an emulated processor a boot takes some seconds.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Makes of each function a test with a stock kernel, and one with ours. It is given an [`Exec`].
macro_rules! on_both_kernels {
    ($($name:ident),* $(,)?) => {
        on_kernel!(stock, Stock, $($name),*);
        on_kernel!(ours, BzImage, $($name),*);
    };
}

/// Makes a test of each function, in a module.
macro_rules! on_kernel {
    ($module:ident, $kernel:ident, $($name:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let exec = crate::exec::Exec::new(crate::linux::assets::Kernel::$kernel);
                    let possible = exec.as_ref().map(drop).map_err(|missing| format!("{missing} is not set"));
                    let name = concat!(module_path!(), "::", stringify!($name));
                    if crate::common::can_run(name, possible) {
                        super::$name(exec.expect("it can run"));
                    }
                }
            )*
        }
    };
}

/// A command in a guest whose only files are busybox and kickvm.
pub struct Exec {
    pub assets: Assets,
    pub scratch: TempDir,
    command: Command,
}

impl Exec {
    /// Nothing to run yet, on `kernel`. An error names the variable that is missing.
    pub fn new(kernel: Kernel) -> Result<Self, &'static str> {
        let scratch = TempDir::new();
        let assets = Assets::find(kernel, scratch.path())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        default_signals(&mut command);
        command.arg("exec").arg("--kernel").arg(&assets.kernel);
        Ok(Self { assets, scratch, command })
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
        self.options(&["--add", &add("/bin/busybox"), "--add", &add("/bin/sh")])
    }

    /// The kickvm command that runs `words`.
    pub fn command(mut self, words: &[&str]) -> (Command, TempDir) {
        self.command.arg("--").args(words);
        (self.command, self.scratch)
    }

    /// Starts it with a pipe at each stream.
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

/// The static busybox that the test's initramfs is made of.
pub fn busybox() -> PathBuf {
    PathBuf::from(std::env::var_os("KICKVM_CACHE").expect("the runner sets it")).join("busybox")
}

/// One that lives.
pub struct Running {
    pub child: Child,
    pub stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    scratch: Option<TempDir>,
}

impl Running {
    fn of(mut command: Command, scratch: TempDir) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cannot start kickvm");
        let stderr = collect(child.stderr.take().expect("there is a pipe"));
        Self { child, stdout: None, stderr: Some(stderr), scratch: Some(scratch) }
    }

    /// Reads standard output until it holds `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let stdout = self.child.stdout.as_mut().expect("nobody collects it yet");
        read_until(stdout, text);
    }

    /// Gives it `input` and nothing more, and waits for its end.
    #[track_caller]
    pub fn end_with(mut self, input: &[u8]) -> Ended {
        if let Some(stdout) = self.child.stdout.take() {
            self.stdout = Some(collect(stdout));
        }
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(input); // a command may end without having read it
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
        let _ = self.child.kill(); // one that has ended and was waited for is not signalled
        let _ = self.child.wait();
    }
}

/// Waits until `source` has yielded `text`, and returns all that was read.
#[track_caller]
pub fn read_until(source: &mut (impl Read + AsFd), text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let ready = poll(&mut [PollFd::new(source.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16)).unwrap();
        let mut block = [0; 4096];
        let len = if ready == 0 { 0 } else { source.read(&mut block).unwrap_or(0) };
        seen.extend(&block[..len]);
        let done = ready > 0 && len == 0 || Instant::now() > deadline;
        assert!(!done, "waited for {text:?}, but all there was is {:?}", String::from_utf8_lossy(&seen));
    }
    String::from_utf8(seen).expect("it is text")
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes); // what was read counts
        bytes
    })
}

/// How it ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    _scratch: TempDir, // files that a test may still look at
}

impl Ended {
    /// Asserts the exit code and all of both outputs.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: &str, stderr: &str) {
        let seen = (self.status.code(), self.text(), self.stderr.as_str());
        assert_eq!(seen, (Some(code), stdout, stderr));
    }

    /// Asserts the exit code and that kickvm's verdict is this line, before all it explains.
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

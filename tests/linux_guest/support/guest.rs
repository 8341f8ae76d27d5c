//! A guest: building its `kickvm run` command line, running it, and its result.

use super::assets::{Assets, Kernel};
use super::cpio;
use super::transcript::{Transcript, lines, unstamped};
use crate::common::TempDir;
use crate::common::process::default_signals;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The time limit of a guest. On an emulated processor a boot takes some seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Shell command that waits until the console has sent its output (busybox's stty uses `TCSADRAIN`).
pub const DRAIN: &str = "stty opost";

/// The command line of a guest, while it is being built.
pub struct Guest {
    assets: Assets,
    initramfs: Vec<PathBuf>,
    cpus: u32,
    options: Vec<String>,
    append: String,
    cmdline: Option<String>,
    scratch: TempDir,
}

impl Guest {
    /// A guest of 256 MiB and one CPU with `kernel` and the test initramfs. The error names the environment variable
    /// that is missing.
    pub fn new(kernel: Kernel) -> Result<Self, &'static str> {
        let scratch = TempDir::new();
        let assets = Assets::find(kernel, scratch.path())?;
        let initramfs = vec![assets.initramfs.clone()];
        let append = "quiet".to_owned();
        Ok(Self { assets, initramfs, cpus: 1, options: Vec::new(), append, cmdline: None, scratch })
    }

    /// Gives it more CPUs.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds options for `kickvm run`.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Adds words to the kernel command line, which has the default ones and `quiet`.
    pub fn append(mut self, words: &str) -> Self {
        self.append = format!("{} {words}", self.append);
        self
    }

    /// Replaces the kernel command line.
    pub fn cmdline(mut self, text: &str) -> Self {
        self.cmdline = Some(text.to_owned());
        self
    }

    /// Makes the guest run a shell script and power off. Output of programs is buffered by the tty, while kernel
    /// messages are not, so the script begins and ends with an empty buffer.
    pub fn job(self, script: &str) -> Self {
        let script = format!("#!/bin/sh\n{DRAIN}\n{script}\n{DRAIN}\n");
        self.archive(&cpio::archive(&[("job", script.as_bytes())]))
    }

    /// Adds an archive on top of the others.
    pub fn archive(mut self, bytes: &[u8]) -> Self {
        let path = self.scratch.path().join(format!("{}.cpio", self.initramfs.len()));
        fs::write(&path, bytes).expect("cannot write an archive");
        self.initramfs.push(path);
        self
    }

    /// Removes all archives.
    pub fn without_initramfs(mut self) -> Self {
        self.initramfs.clear();
        self
    }

    /// The test initramfs, and a directory for files.
    pub fn files(&self) -> (&Path, &Path) {
        (&self.assets.initramfs, self.scratch.path())
    }

    /// The first line that the guest's init prints.
    pub fn greeting(&self) -> String {
        let noun = if self.cpus == 1 { "CPU" } else { "CPUs" };
        format!("Hello from Linux {} on {} {noun}", self.assets.release, self.cpus)
    }

    /// The kickvm command, its standard streams not set.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        default_signals(&mut command);
        command.arg("run").arg("--kernel").arg(&self.assets.kernel);
        for path in &self.initramfs {
            command.arg("--initramfs").arg(path);
        }
        match &self.cmdline {
            Some(text) => command.arg("--cmdline").arg(text),
            None => command.arg("--append").arg(&self.append),
        };
        command.arg("--cpus").arg(self.cpus.to_string()).args(&self.options);
        command
    }

    /// Starts it with a pipe for each standard stream.
    pub fn start(self) -> Running {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cannot start kickvm");
        let stdout = Transcript::of(child.stdout.take().expect("there is a pipe"));
        Running::new(child, stdout, self)
    }

    /// Starts it without input and waits for its end.
    pub fn run(self) -> Ended {
        let mut running = self.start();
        running.child.stdin = None;
        running.finish()
    }

    /// Runs it until it powers off, and returns the lines between its greeting and its last line.
    pub fn answers(self) -> Vec<String> {
        let greeting = self.greeting();
        let ended = self.run();
        ended.assert(0, &[]);
        ended.between(&greeting, "reboot: Power down")
    }
}

/// A guest that runs.
pub struct Running {
    pub child: Child,
    pub stdout: Transcript,
    stderr: Transcript,
    pub deadline: Instant,
    _guest: Guest, // its files
}

impl Running {
    /// A guest in `child`, whose standard error must be a pipe.
    pub fn new(mut child: Child, stdout: Transcript, guest: Guest) -> Self {
        let stderr = Transcript::of(child.stderr.take().expect("there is a pipe"));
        Self { child, stdout, stderr, deadline: Instant::now() + PATIENCE, _guest: guest }
    }

    /// Waits until the guest has printed this line completely.
    #[track_caller]
    pub fn wait_for_line(&self, line: &str) {
        self.stdout.wait(self.deadline, &format!("The line '{line}'"), |text| has_line(text, line));
    }

    /// The same, but returns `false` if the run ends without it.
    pub fn prints(&self, line: &str) -> bool {
        self.stdout.find(self.deadline, |text| has_line(text, line)).is_some()
    }

    /// Writes `text` to the guest's input.
    pub fn write(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("there is a pipe");
        stdin.write_all(text.as_bytes()).expect("kickvm does not take input");
    }

    /// Waits until kickvm has written `text` to standard error.
    #[track_caller]
    pub fn wait_for_message(&self, text: &str) {
        self.stderr.wait(self.deadline, &format!("'{text}' on standard error"), |all| all.contains(text).then_some(()));
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        // Both streams end when the process does.
        if !(self.stderr.wait_for_end(self.deadline) && self.stdout.wait_for_end(self.deadline)) {
            let _ = self.child.kill();
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            panic!("kickvm does not end\n--- stdout:\n{stdout}\n--- stderr:\n{stderr}");
        }
        let status = self.child.wait().expect("cannot wait for kickvm");
        Ended { code: status.code(), stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails if it has ended
        let _ = self.child.wait();
    }
}

fn has_line(text: &str, line: &str) -> Option<()> {
    let whole = &text[..text.rfind('\n')? + 1];
    lines(whole).contains(&line).then_some(())
}

/// How a guest ended.
pub struct Ended {
    /// The exit code, unless a signal killed kickvm.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts the exit code and all that is on standard error, line by line.
    #[track_caller]
    pub fn assert(&self, code: i32, stderr: &[&str]) {
        self.assert_code(code);
        assert_eq!(lines(&self.stderr), stderr, "on standard error");
    }

    #[track_caller]
    pub fn assert_code(&self, code: i32) {
        let Self { stdout, stderr, .. } = self;
        assert_eq!(self.code, Some(code), "exit code\n--- stdout:\n{stdout}\n--- stderr:\n{stderr}");
    }

    /// Asserts that the guest printed this line completely, apart from time stamps.
    #[track_caller]
    pub fn assert_line(&self, line: &str) {
        let whole = self.stdout.ends_with('\n') && lines(&self.stdout).into_iter().any(|it| unstamped(it) == line);
        assert!(whole, "no line '{line}', or the last one is cut off:\n{}", self.stdout);
    }

    /// The lines between `first` and `last`. Lines before `first` are the kernel's, and `last` must be the last one.
    #[track_caller]
    pub fn between(&self, first: &str, last: &str) -> Vec<String> {
        let lines = lines(&self.stdout);
        let start = lines.iter().position(|line| *line == first);
        let start = start.unwrap_or_else(|| panic!("no line '{first}':\n{}", self.stdout));
        let (end, rest) = lines[start + 1..].split_last().expect("the first line is not the last");
        assert_eq!(unstamped(end), last, "the last line of:\n{}", self.stdout);
        assert!(self.stdout.ends_with('\n'), "the last line is cut off:\n{}", self.stdout);
        rest.iter().map(|line| (*line).to_owned()).collect()
    }
}

//! Child processes: every wait has a deadline, and a test leaves no process behind.

use super::TempDir;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// How long a test waits for a host process before it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// `kickvm` with `args`, without input, its output captured.
pub fn kickvm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
    command.args(args).env_remove("GITHUB_ACTIONS").env_remove("GITLAB_CI");
    contained(&mut command);
    command
}

/// Gives a command no input, pipes for its output, its own process group, and the default action of each signal.
pub fn contained(command: &mut Command) -> &mut Command {
    default_signals(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0)
}

/// Gives a command the default action of each signal. Ignored signals stay ignored across exec(2), and kickvm keeps
/// them ignored, so under nohup or in the background of a shell a test would otherwise run kickvm in another state.
pub fn default_signals(command: &mut Command) -> &mut Command {
    let reset = || {
        for signal in 1..=libc::SIGRTMAX() {
            // SAFETY: no handler is installed. The call fails for SIGKILL, SIGSTOP and the C library's own signals.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls signal(2), which is async-signal-safe.
    unsafe { command.pre_exec(reset) }
}

/// Starts `command`.
pub fn start(command: Command) -> Running {
    Running::new(command, None)
}

/// Runs `command` to its end.
#[track_caller]
pub fn end(command: Command) -> Ended {
    start(command).end()
}

/// A process that is killed when dropped.
pub struct Running {
    pub child: Child,
    _dir: Option<TempDir>,
}

impl Running {
    /// Starts `command`, and keeps the directory that has its files.
    pub fn new(mut command: Command, dir: Option<TempDir>) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, _dir: dir }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until the process ends, and until its process group is empty.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let status = eventually("the process to end", || self.child.try_wait().unwrap());
        // `kickvm-close` leaves the group when it starts, which may be after the end.
        eventually("the end of its process group", || (killpg(self.pid(), None) == Err(Errno::ESRCH)).then_some(()));
        let mut ended = Ended { code: status.code(), stdout: String::new(), stderr: String::new() };
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut ended.stdout).unwrap();
        }
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut ended.stderr).unwrap();
        }
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails if it has ended
        let _ = self.child.wait();
    }
}

/// How a process ended, and the output that was not read before.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts the exit code and all output.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: &str, stderr: &[&str]) {
        let seen = (self.code, self.stdout.as_str(), self.stderr.lines().collect::<Vec<_>>());
        assert_eq!(seen, (Some(code), stdout, stderr.to_vec()));
    }
}

/// Reads `source` until `text` has come, and returns everything that was read.
#[track_caller]
pub fn read_until(source: &mut (impl Read + AsFd), text: &str, patience: Duration) -> String {
    const TOO_MUCH: usize = 64 << 20;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let part = read_some(source, patience);
        let done = part.is_empty() || seen.len() > TOO_MUCH;
        assert!(!done, "waited for {text:?}, but read only {:?}", String::from_utf8_lossy(&seen));
        seen.extend(part);
    }
    String::from_utf8(seen).unwrap()
}

/// Reads the bytes that are there, or waits for some. Returns nothing at the end of the stream.
#[track_caller]
pub fn read_some(source: &mut (impl Read + AsFd), patience: Duration) -> Vec<u8> {
    assert!(readable(&source, patience), "nothing to read within {patience:?}");
    let mut block = [0; 4096];
    let len = source.read(&mut block).unwrap();
    block[..len].to_vec()
}

/// Waits until `descriptor` is readable, and returns whether it became so.
pub fn readable(descriptor: &impl AsFd, patience: Duration) -> bool {
    // Counted in seconds of waiting, so that a pause of the whole host does not use up the patience.
    (0..patience.as_secs()).any(|_| {
        let second = PollTimeout::from(1000u16);
        poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], second).unwrap() == 1
    })
}

/// Calls `question` until it returns a value.
#[track_caller]
pub fn eventually<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(2);
    for _ in 0..DEADLINE.as_millis() / PAUSE.as_millis() {
        if let Some(answer) = question() {
            return answer;
        }
        thread::sleep(PAUSE);
    }
    panic!("waited for {what} in vain");
}

/// Waits until process `id` has a thread with this name.
#[track_caller]
pub fn wait_for_thread(id: u32, name: &str) {
    eventually(&format!("thread {name}"), || {
        let tasks = fs::read_dir(format!("/proc/{id}/task")).ok()?;
        let mut names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.any(|it| it.trim() == name).then_some(())
    });
}

/// Processor time that all threads of process `id` have used, in milliseconds, with the resolution of a clock tick.
pub fn cpu_time(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // utime and stime are fields 14 and 15; the second is the name in parentheses (proc_pid_stat(5)).
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    ticks * 10 // USER_HZ is 100 on x86
}

//! Running kickvm: every wait has a deadline, and nothing is left behind.

use super::{DEADLINE, TempDir, images};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// `kickvm` with `args`, no input, and its output kept apart.
pub fn kickvm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
    command.args(args);
    contained(&mut command);
    command
}

/// Gives a command no input, pipes to write to, a process group of its own, and no ignored signals.
pub fn contained(command: &mut Command) -> &mut Command {
    default_signals(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0)
}

/// Gives a command the default action of each signal. Ignored signals stay ignored across exec(2), and kickvm leaves them
/// ignored, so a test under nohup or in a shell's background job would run another kickvm than elsewhere.
pub fn default_signals(command: &mut Command) -> &mut Command {
    let reset = || {
        for signal in 1..=libc::SIGRTMAX() {
            // SAFETY: no handler is installed. SIGKILL, SIGSTOP and the C library's own signals are refused, as they may be.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec only signal(2) is called, which is async-signal-safe.
    unsafe { command.pre_exec(reset) }
}

/// `kickvm run` with `guest` as its kernel.
pub struct Run {
    pub command: Command,
    pub dir: TempDir,
}

pub fn run(guest: &[u8], args: &[&str]) -> Run {
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(guest));
    let mut command = kickvm(&["run", "--memory", "2M", "--kernel"]);
    command.arg(kernel).args(args);
    Run { command, dir }
}

impl Run {
    /// Starts it.
    pub fn start(mut self) -> Running {
        Running { child: spawn(&mut self.command), _dir: Some(self.dir) }
    }

    /// Starts `command`, which leads to it.
    pub fn start_as(mut self, command: Command) -> Running {
        self.command = command;
        self.start()
    }

    /// Runs it to its end.
    pub fn end(self) -> Ended {
        self.start().end()
    }
}

/// Runs `command` to its end.
pub fn end(command: Command) -> Ended {
    start(command).end()
}

/// Starts `command`.
pub fn start(mut command: Command) -> Running {
    Running { child: spawn(&mut command), _dir: None }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A process that is killed when dropped.
pub struct Running {
    pub child: Child,
    _dir: Option<TempDir>,
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits until standard output holds `text`, and returns what was read.
    pub fn wait_for(&mut self, text: &str) -> String {
        read_until(self.child.stdout.as_mut().unwrap(), text)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let status = eventually("the process to end", || self.child.try_wait().unwrap());
        let left = killpg(self.pid(), None);
        assert_eq!(left, Err(Errno::ESRCH), "processes were left behind");
        let mut ended = Ended { code: status.code(), stdout: String::new(), stderr: String::new() };
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut ended.stdout).unwrap();
        }
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut ended.stderr).unwrap();
        }
        ended
    }

    /// Processor time that all its threads have used, in milliseconds, to the clock tick.
    pub fn cpu_time(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // utime and stime are fields 14 and 15; the second is the name in parentheses (proc_pid_stat(5)).
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        ticks * 10 // USER_HZ is 100 on x86
    }

    /// Asserts that the process sleeps: over 300 ms it uses next to no processor time.
    #[track_caller]
    pub fn assert_idle(&self) {
        let before = self.cpu_time();
        thread::sleep(Duration::from_millis(300));
        let used = self.cpu_time() - before;
        assert!(used <= 50, "used {used} ms of processor time in 300 ms");
    }

    /// Waits until the process has a thread of this name.
    pub fn wait_for_thread(&self, name: &str) {
        let has = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|it| it.trim() == name);
        eventually(name, || {
            fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten().any(has).then_some(())
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// How a process ended, and what it had written that nobody read before.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts all there is to see.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: &str, stderr: &[&str]) {
        let seen = (self.code, self.stdout.as_str(), self.stderr.lines().collect::<Vec<_>>());
        assert_eq!(seen, (Some(code), stdout, stderr.to_vec()));
    }

    /// Asserts that the time ran out after `time`, and that standard error says so and where each vCPU was.
    #[track_caller]
    pub fn assert_time_out(&self, stdout: &str, time: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(124), stdout), "{}", self.stderr);
        let (first, places) = self.stderr.split_once('\n').unwrap_or_default();
        assert_eq!(first, format!("kickvm: the timeout of {time} ran out"));
        for (n, line) in places.lines().enumerate() {
            assert!(line.starts_with(&format!("kickvm: vCPU {n} was at 0x")), "{line}");
        }
    }
}

/// Waits until `source` has yielded `text`, and returns all that was read.
#[track_caller]
pub fn read_until(source: &mut (impl Read + AsFd), text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let part = read_some(source);
        assert!(!part.is_empty(), "waited for {text:?}, but all there was is {seen:?}");
        seen += std::str::from_utf8(&part).unwrap();
    }
    seen
}

/// Reads what is there, or waits for something. Empty at the end.
#[track_caller]
pub fn read_some(source: &mut (impl Read + AsFd)) -> Vec<u8> {
    // Second by second, so that a pause of the whole host does not count as waiting.
    let ready = (0..DEADLINE.as_secs()).any(|_| {
        let second = PollTimeout::from(1000u16);
        poll(&mut [PollFd::new(source.as_fd(), PollFlags::POLLIN)], second).unwrap() == 1
    });
    assert!(ready, "nothing to read within {DEADLINE:?}");
    let mut block = [0; 4096];
    let len = source.read(&mut block).unwrap();
    block[..len].to_vec()
}

/// Asks `question` until it has an answer.
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

/// Runs `body` in a process where no other test runs: this test binary once more, for `test` alone.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "KICKVM_TEST_ALONE";
    if std::env::var(ALONE).as_deref() == Ok(test) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    contained(command.args([test, "--exact", "--nocapture"]).env(ALONE, test));
    let ended = end(command);
    assert!(ended.code == Some(0) && ended.stdout.contains("1 passed"), "{test} in its own process: {ended:?}");
}

//! `kickvm run` with a guest of a few instructions.

use super::images;
use crate::common::process::{DEADLINE, Ended, Running, contained, cpu_time, end, kickvm, read_until, wait_for_thread};
use crate::common::{TempDir, harness_name};
use nix::sys::signal::{Signal, kill};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// `kickvm run` with a guest as its kernel.
pub struct Run {
    pub command: Command,
    pub dir: TempDir,
}

/// `kickvm run` with the machine code `guest` as its kernel.
pub fn run(guest: &[u8], args: &[&str]) -> Run {
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(guest));
    let mut command = kickvm(&["run", "--memory", "2M", "--kernel"]);
    command.arg(kernel).args(args);
    Run { command, dir }
}

impl Run {
    /// Starts it.
    pub fn start(self) -> Running {
        Running::new(self.command, Some(self.dir))
    }

    /// Starts `command` instead, which executes it.
    pub fn start_as(self, command: Command) -> Running {
        Running::new(command, Some(self.dir))
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.start().end()
    }
}

impl Running {
    /// Waits until standard output has `text`, and returns everything that was read.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        read_until(self.child.stdout.as_mut().unwrap(), text, DEADLINE)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits until the process has a thread with this name.
    #[track_caller]
    pub fn wait_for_thread(&self, name: &str) {
        wait_for_thread(self.child.id(), name);
    }

    /// Asserts that the process sleeps: it uses at most 50 ms of processor time in 300 ms.
    #[track_caller]
    pub fn assert_idle(&self) {
        let before = cpu_time(self.child.id());
        thread::sleep(Duration::from_millis(300));
        let used = cpu_time(self.child.id()) - before;
        assert!(used <= 50, "used {used} ms of processor time in 300 ms");
    }
}

impl Ended {
    /// Asserts that the timeout of `time` expired, and that standard error has a line about it and one for each vCPU.
    #[track_caller]
    pub fn assert_time_out(&self, stdout: &str, time: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(124), stdout), "{}", self.stderr);
        let (first, places) = self.stderr.split_once('\n').unwrap_or_default();
        assert_eq!(first, format!("kickvm: the timeout of {time} expired"));
        for (n, line) in places.lines().enumerate() {
            assert!(line.starts_with(&format!("kickvm: vCPU {n} was at 0x")), "{line}");
        }
    }
}

/// Runs `body` in a process in which no other test runs: this test binary again, with `test` (see `this_test!`) alone.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "KICKVM_TEST_ALONE";
    let test = harness_name(test);
    if std::env::var(ALONE).as_deref() == Ok(test) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    contained(command.args([test, "--exact", "--nocapture"]).env(ALONE, test));
    let ended = end(command);
    assert!(ended.code == Some(0) && ended.stdout.contains("1 passed"), "{test} in its own process: {ended:?}");
}

//! A user at a terminal: kickvm with a pseudo-terminal at standard input and output.

use super::guest::{Ended, Guest, Running};
use super::transcript::{Transcript, lines};
use crate::common::pty::Pty;
use nix::sys::termios::{Termios, tcgetattr};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

/// What the guest's shell says when it waits.
const PROMPT: &str = "guest# ";
/// What it asks a terminal for then, and does without: the cursor's position (ECMA-48, DSR).
const QUESTION: &str = "\x1b[6n";
pub const CTRL_A: &str = "\x01";
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// A terminal with a guest's shell on it.
pub struct Terminal {
    running: Running,
    keyboard: File,
    before: Termios,
    read: usize, // bytes of the transcript that are done with
}

impl Terminal {
    /// Starts `guest` and waits for the shell's prompt.
    pub fn start(guest: Guest) -> Self {
        let greeting = guest.greeting();
        let mut terminal = Self::start_on(Pty::new(), guest);
        terminal.running.wait_for_line(&greeting);
        terminal.wait_for_prompt();
        terminal
    }

    /// Starts `guest` on a terminal that is there, and waits for nothing.
    pub fn start_on(pty: Pty, guest: Guest) -> Self {
        let Pty { master: keyboard, slave } = pty;
        let before = tcgetattr(&keyboard).expect("cannot ask a terminal");
        let mut command = guest.command();
        let output = slave.try_clone().expect("cannot duplicate a descriptor");
        command.stdin(slave).stdout(output).stderr(Stdio::piped());
        // SAFETY: between fork and exec only two system calls are made.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().expect("cannot start kickvm");
        drop(command); // its descriptors of the terminal with it: the terminal hangs up when kickvm ends
        let screen = keyboard.try_clone().expect("cannot duplicate a descriptor");
        let running = Running::new(child, Transcript::of(screen), guest);
        Self { running, keyboard, before, read: 0 }
    }

    /// Types at the keyboard.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("kickvm does not take input");
    }

    /// Waits for a whole line that has not been waited for yet.
    #[track_caller]
    pub fn wait_for_line(&mut self, line: &str) {
        let read = self.read;
        let end = self.running.stdout.wait(self.running.deadline, &format!("The line '{line}'"), |text| {
            let mut end = read;
            text[read..].split_inclusive('\n').find_map(|said| {
                end += said.len();
                let said = said.trim_start_matches(QUESTION).strip_suffix('\n')?;
                (said.trim_end_matches('\r') == line).then_some(end)
            })
        });
        self.read = end;
    }

    /// Waits for the prompt. Returns the lines before it.
    #[track_caller]
    pub fn wait_for_prompt(&mut self) -> Vec<String> {
        let read = self.read;
        let text = self.running.stdout.wait(self.running.deadline, "The prompt", |text| {
            let at = text[read..].find(PROMPT)?;
            Some(text[read..read + at].to_owned())
        });
        self.read += text.len() + PROMPT.len();
        lines(&text).into_iter().map(str::to_owned).collect()
    }

    /// Types a command and returns the lines of its answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> Vec<String> {
        self.press(&format!("{command}\r"));
        self.wait_for_line(command); // the echo
        self.wait_for_prompt()
    }

    /// Waits until kickvm has said something on standard error.
    #[track_caller]
    pub fn wait_for_complaint(&self, text: &str) {
        self.running.wait_for_complaint(text);
    }

    /// Waits for kickvm's end, and asserts that the terminal is as it was before.
    #[track_caller]
    pub fn finish(self) -> Ended {
        let ended = self.running.finish();
        let after = tcgetattr(&self.keyboard).expect("cannot ask a terminal");
        assert!(self.before == after, "the terminal is not restored: {after:?}");
        ended
    }
}

/// Makes standard input the terminal of a new session, as a user's is, so that a terminal that is not raw turns Ctrl-C into a
/// signal.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: neither call touches memory of this process.
    let done = unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

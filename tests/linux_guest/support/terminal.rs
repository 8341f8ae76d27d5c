//! A user at a terminal: kickvm with a pseudo-terminal as standard input and output.

use super::guest::{Ended, Guest, Running};
use super::transcript::{Transcript, lines};
use crate::common::pty::Pty;
use nix::sys::termios::{Termios, tcgetattr};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

/// The prompt of the guest's shell.
const PROMPT: &str = "guest# ";
/// The shell's query for the cursor position (ECMA-48, DSR), which this terminal does not answer.
const CURSOR_QUERY: &str = "\x1b[6n";
pub const CTRL_A: &str = "\x01";
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// A terminal that runs a guest's shell.
pub struct Terminal {
    running: Running,
    keyboard: File,
    before: Termios,
    read: usize, // bytes of the transcript that were waited for
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

    /// Starts `guest` on this terminal, without waiting.
    pub fn start_on(pty: Pty, guest: Guest) -> Self {
        let Pty { master: keyboard, slave } = pty;
        let before = tcgetattr(&keyboard).expect("it is a terminal");
        let mut command = guest.command();
        let output = slave.try_clone().expect("cannot duplicate a descriptor");
        command.stdin(slave).stdout(output).stderr(Stdio::piped());
        // SAFETY: `take_terminal` makes only system calls, which is allowed between fork and exec.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().expect("cannot start kickvm");
        drop(command); // with its descriptors of the terminal, which then hangs up when kickvm ends
        let screen = keyboard.try_clone().expect("cannot duplicate a descriptor");
        let running = Running::new(child, Transcript::of(screen), guest);
        Self { running, keyboard, before, read: 0 }
    }

    /// Types at the keyboard.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("kickvm does not take input");
    }

    /// Waits for this complete line, after everything that was waited for before.
    #[track_caller]
    pub fn wait_for_line(&mut self, line: &str) {
        let read = self.read;
        let end = self.running.stdout.wait(self.running.deadline, &format!("The line '{line}'"), |text| {
            let mut end = read;
            text[read..].split_inclusive('\n').find_map(|it| {
                end += it.len();
                let it = it.trim_start_matches(CURSOR_QUERY).strip_suffix('\n')?;
                (it.trim_end_matches('\r') == line).then_some(end)
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
    pub fn run(&mut self, command: &str) -> Vec<String> {
        self.press(&format!("{command}\r"));
        self.wait_for_line(command); // the echo
        self.wait_for_prompt()
    }

    /// Waits until kickvm has written `text` to standard error.
    #[track_caller]
    pub fn wait_for_message(&self, text: &str) {
        self.running.wait_for_message(text);
    }

    /// Waits for kickvm's end, and asserts that the terminal has its previous settings.
    #[track_caller]
    pub fn finish(self) -> Ended {
        let ended = self.running.finish();
        let after = tcgetattr(&self.keyboard).expect("it is a terminal");
        assert!(self.before == after, "the terminal is not restored: {after:?}");
        ended
    }
}

/// Makes standard input the controlling terminal of a new session, so that Ctrl-C raises a signal unless the terminal
/// is raw.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: neither call accesses memory of this process.
    let done = unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

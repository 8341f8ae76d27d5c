//! The user's terminal: raw while a guest owns it, and restored on every way out.
//!
//! Dropping [`RawTerminal`] restores it. A panic on any thread restores it before its message is printed. Signals come
//! through the event loop (see `subscribers`), so they end in a drop too.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// While the terminal is raw: its settings before, and its settings now.
static SAVED: Mutex<Option<(Termios, Termios)>> = Mutex::new(None);

/// Standard input in raw mode: each key reaches the guest as it is, Ctrl-C too.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw if it is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() || !in_foreground() {
            return Ok(None);
        }
        let saved = tcgetattr(io::stdin())?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some((saved, raw.clone()));
        let terminal = Self(()); // from here on it is restored
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(terminal))
    }
}

/// Whether this process may use the terminal on standard input: one in the background would be stopped for trying. A
/// terminal that does not control this process has no such rule.
pub fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Opens the file of `stream` anew, so that it is non-blocking for this process alone.
pub(super) fn open_anew(stream: &impl AsRawFd, options: &mut OpenOptions) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Puts the terminal back as it was, if it is raw.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((saved, _)) = saved {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &saved); // a terminal that is gone needs no restoring
    }
}

/// Makes the terminal raw again after a shell has stopped this process, used the terminal, and continued it.
pub fn resume() {
    if let Some((_, raw)) = &*SAVED.lock().unwrap_or_else(PoisonError::into_inner)
        && in_foreground()
    {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, raw); // a terminal that is gone cannot be raw
    }
}

/// How a line on standard error ends: while the terminal is raw, a line feed alone would not go back to the margin.
pub fn line_end() -> &'static str {
    let raw = SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    if raw && io::stderr().is_terminal() { "\r\n" } else { "\n" }
}

/// Makes a panic restore the terminal before it prints.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
}

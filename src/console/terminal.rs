//! The user's terminal: raw while a guest owns it, and restored on every way out.
//!
//! Dropping [`RawTerminal`] restores it. A panic on any thread restores it before its message is printed. Signals come
//! through the event loop, so they end in a drop too.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
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

/// Opens a pipe or a terminal anew, to be non-blocking for this process alone: another process may take what epoll has
/// announced, or fill a pipe that had room, and a terminal that is stopped with Ctrl-S blocks a write of any length. A
/// regular file is shared as it is, for its offset; so is what cannot be opened anew, such as a socket.
pub(super) fn open_nonblocking(stream: &(impl AsFd + AsRawFd), options: &mut OpenOptions) -> io::Result<File> {
    let shared = File::from(stream.as_fd().try_clone_to_owned()?);
    let kind = shared.metadata()?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return Ok(shared);
    }
    let anew = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    Ok(anew.open(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap_or(shared))
}

/// Puts the terminal back as it was, if it is raw. A shell that has moved this process to the background has done so.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((saved, _)) = saved
        && in_foreground()
    {
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

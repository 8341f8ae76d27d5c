//! Standard input of any kind, and the keys that are for kickvm itself.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;

use super::terminal::in_foreground;
use crate::event::{Error, EventOps, EventSet, Events};

const CTRL_A: u8 = 0x01;
const BLOCK: usize = 4096;
/// How much is typed ahead for a guest that takes nothing before more is dropped, in bytes.
const TYPED_AHEAD: usize = 1 << 20;

/// What `Ctrl-A h` prints, line by line.
pub const KEY_HELP: [&str; 4] =
    ["Ctrl-A x  leave", "Ctrl-A p  press the power button", "Ctrl-A h  this help", "Ctrl-A Ctrl-A  send Ctrl-A"];

/// What a key after Ctrl-A asks kickvm for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// x: end the run.
    Quit,
    /// h: say which keys there are.
    Help,
    /// p: press the guest's power button.
    PowerButton,
}

/// Standard input, with what was read from it and has not reached the guest yet.
#[derive(Debug)]
pub struct Stdin {
    file: File,
    buffer: Vec<u8>,
    sent: usize,
    escape: Option<Escape>, // only a terminal has keys
    watchable: bool,        // a file is always ready, and epoll refuses it
    watched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    Idle,
    AfterCtrlA,
}

impl Stdin {
    /// Takes standard input as it is now; `None` if it is a terminal that this process may not read.
    pub fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if stdin.is_terminal() && !in_foreground() {
            return Ok(None);
        }
        let escape = stdin.is_terminal().then_some(Escape::Idle);
        let file = File::from(stdin.as_fd().try_clone_to_owned()?);
        let buffer = Vec::with_capacity(2 * BLOCK);
        Ok(Some(Self { file, buffer, sent: 0, escape, watchable: true, watched: false }))
    }

    /// Makes each key the guest's.
    pub fn without_keys(mut self) -> Self {
        self.escape = None;
        self
    }

    /// Whether some keys are for kickvm.
    pub fn has_keys(&self) -> bool {
        self.escape.is_some()
    }

    /// Gives input to `feed`, which says how much it takes, until it takes no more or there is no input now. `ready` says that
    /// epoll has seen input; its events carry `data`. Keys for kickvm go to `on_key`. Returns false when there will never be
    /// more.
    pub fn pump(
        &mut self,
        feed: &mut dyn FnMut(&[u8]) -> usize,
        ops: &mut EventOps,
        data: u32,
        mut ready: bool,
        mut on_key: impl FnMut(Key),
    ) -> bool {
        loop {
            self.sent += feed(&self.buffer[self.sent..]);
            if self.sent < self.buffer.len() && self.escape.is_none() {
                // Until the guest has taken some, nothing is read, and not even a hang-up may wake the loop. A terminal
                // is read on: the user of a guest that hangs must be able to leave.
                self.unwatch(ops);
                return true;
            }
            if self.watchable && !std::mem::take(&mut ready) {
                match self.watch(ops, data) {
                    Ok(()) => return true,
                    Err(Error::Epoll(errno)) if errno.errno() == libc::EPERM => self.watchable = false,
                    Err(_) => return false,
                }
            }
            match self.read(&mut on_key) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.watchable => {}
                Err(_) => {
                    self.unwatch(ops);
                    return false;
                }
            }
        }
    }

    fn watch(&mut self, ops: &mut EventOps, data: u32) -> Result<(), Error> {
        if !self.watched {
            ops.add(Events::with_data(&self.file, data, EventSet::IN))?;
            self.watched = true;
        }
        Ok(())
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.watched) {
            let _ = ops.remove(Events::empty(&self.file)); // it was added, by this very subscriber
        }
    }

    /// Reads once, behind what is pending. Every error but `WouldBlock` is the end: end of file, a terminal that hung up, a
    /// directory.
    fn read(&mut self, on_key: &mut impl FnMut(Key)) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let len = match self.file.read(&mut block) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        self.buffer.drain(..self.sent);
        self.sent = 0;
        match self.escape {
            None => self.buffer.extend_from_slice(&block[..len]),
            Some(mut escape) => {
                for &byte in &block[..len] {
                    escape = sort(escape, byte, &mut self.buffer, on_key);
                }
                self.escape = Some(escape);
                self.buffer.truncate(TYPED_AHEAD);
            }
        }
        Ok(())
    }
}

/// Decides whether `byte` is for the guest or for kickvm.
fn sort(escape: Escape, byte: u8, guest: &mut Vec<u8>, on_key: &mut impl FnMut(Key)) -> Escape {
    match (escape, byte) {
        (Escape::Idle, CTRL_A) => return Escape::AfterCtrlA,
        (Escape::Idle, _) => guest.push(byte),
        (Escape::AfterCtrlA, CTRL_A) => guest.push(CTRL_A),
        (Escape::AfterCtrlA, b'x') => on_key(Key::Quit),
        (Escape::AfterCtrlA, b'h' | b'?') => on_key(Key::Help),
        (Escape::AfterCtrlA, b'p') => on_key(Key::PowerButton),
        (Escape::AfterCtrlA, _) => guest.extend([CTRL_A, byte]), // nothing of ours, so nothing is swallowed
    }
    Escape::Idle
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(input: &[u8]) -> (Vec<u8>, Vec<Key>) {
        let (mut guest, mut keys, mut escape) = (Vec::new(), Vec::new(), Escape::Idle);
        for &byte in input {
            escape = sort(escape, byte, &mut guest, &mut |key| keys.push(key));
        }
        (guest, keys)
    }

    #[test]
    fn keys_after_ctrl_a_are_ours_and_everything_else_is_the_guests() {
        assert_eq!(sorted(b"ab\x01x"), (b"ab".to_vec(), vec![Key::Quit]));
        assert_eq!(sorted(b"\x01h\x01p"), (vec![], vec![Key::Help, Key::PowerButton]));
        assert_eq!(sorted(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(sorted(b"\x01e"), (b"\x01e".to_vec(), vec![]));
    }
}

//! Standard input of any kind.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read};

use super::escape_keys::{Key, KeyState, filter};
use super::terminal::{in_foreground, open_nonblocking};
use crate::event::{Error, EventOps, EventSet, Events};

/// Bytes read at once.
const BLOCK: usize = 4096;

/// The queue that takes the input.
pub trait InputSink {
    /// Bytes that it can take now.
    fn room(&mut self) -> usize;
    /// Takes `bytes`. It may drop what there is no room for.
    fn push(&mut self, bytes: &[u8]);
}

/// Standard input. It holds no bytes itself: what is read goes to an [`InputSink`] at once.
#[derive(Debug)]
pub struct Stdin {
    file: File,
    keys: Option<KeyState>, // only a terminal has escape keys
    polled: bool,           // false for a regular file, which epoll refuses because it is always ready
    registered: bool,
}

impl Stdin {
    /// Takes standard input as it is now; `None` if it is a terminal that this process may not read. With `keys`, a
    /// terminal has escape keys.
    ///
    /// # Errors
    ///
    /// Standard input is closed.
    pub fn new(keys: bool) -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if stdin.is_terminal() && !in_foreground() {
            return Ok(None);
        }
        let keys = (keys && stdin.is_terminal()).then_some(KeyState::Idle);
        Ok(Some(Self {
            file: open_nonblocking(&stdin, OpenOptions::new().read(true))?,
            keys,
            polled: true,
            registered: false,
        }))
    }

    /// Whether there are escape keys.
    pub fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Moves input to `sink` until it has no room or there is no input now. `ready` means that epoll has reported
    /// input; its events carry `data`. Escape keys go to `on_key`. Returns false at the end of the input.
    pub fn pump(
        &mut self,
        sink: &mut dyn InputSink,
        ops: &mut EventOps,
        data: u32,
        mut ready: bool,
        mut on_key: impl FnMut(Key),
    ) -> bool {
        loop {
            let room = sink.room();
            if room == 0 && self.keys.is_none() {
                // Nothing is read, and not even a hang-up may wake the loop. A terminal is read on: the user of a guest
                // that does not read must be able to leave.
                self.unregister(ops);
                return true;
            }
            if self.polled && !std::mem::take(&mut ready) {
                match self.register(ops, data) {
                    Ok(()) => return true,
                    Err(Error::Epoll(errno)) if errno.errno() == libc::EPERM => self.polled = false,
                    Err(_) => return false,
                }
            }
            let max = if self.keys.is_some() { BLOCK } else { room.min(BLOCK) };
            match self.read(max, sink, &mut on_key) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.polled => {}
                Err(_) => {
                    self.unregister(ops);
                    return false;
                }
            }
        }
    }

    fn register(&mut self, ops: &mut EventOps, data: u32) -> Result<(), Error> {
        if !self.registered {
            ops.add(Events::with_data(&self.file, data, EventSet::IN))?;
            self.registered = true;
        }
        Ok(())
    }

    fn unregister(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.registered) {
            let _ = ops.remove(Events::empty(&self.file)); // it was added, by this subscriber
        }
    }

    /// Reads once. Every error but `WouldBlock` is the end: end of file, a terminal that hung up, a directory.
    fn read(&mut self, max: usize, sink: &mut dyn InputSink, on_key: &mut impl FnMut(Key)) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let len = match self.file.read(&mut block[..max]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        match &mut self.keys {
            None => sink.push(&block[..len]),
            Some(state) => block[..len].iter().for_each(|&byte| *state = filter(*state, byte, sink, on_key)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second reader took the bytes that epoll announced: the loop must not block.
    #[test]
    fn a_pipe_is_read_without_blocking() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut own = open_nonblocking(&reader, OpenOptions::new().read(true)).unwrap();
        io::Write::write_all(&mut writer, b"x").unwrap();
        let mut byte = [0];
        (&reader).read_exact(&mut byte).unwrap();
        assert_eq!(own.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

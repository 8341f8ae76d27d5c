//! The messages in the rings for events (from init) and controls (from kickvm).
//!
//! ```text
//!   offset   size   field
//!   0           1   kind
//!   1           1   length of the payload
//!   2       0–255   payload
//! ```

use std::slice;

use super::{Consumer, Pages, ProtocolError, Stream};
use crate::sys::winsize::WinSize;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// From init: it has connected to the channel. The text is the kernel's version banner.
    Hello(String),
    /// From init: the command has started.
    Started,
    /// From init: the command has ended with this status, and all of its output is in the rings.
    Ended(u8),
    /// From init: there is a problem that does not prevent the command from running.
    Warning(String),
    /// From init: the command cannot be run.
    Failed(String),
    /// From kickvm: send this signal to the command.
    Signal(u8),
    /// From kickvm: the user's terminal has this size now.
    Resize(WinSize),
    /// From kickvm: close the pipe behind this descriptor of the command, 1 or 2. Its output can no longer be written.
    Close(u8),
}

const HELLO: u8 = 1;
const STARTED: u8 = 2;
const ENDED: u8 = 3;
const WARNING: u8 = 4;
const FAILED: u8 = 5;
const SIGNAL: u8 = 6;
const RESIZE: u8 = 7;
const CLOSE: u8 = 8;

impl Message {
    /// The message's bytes. A text is cut off after 255 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Self::Hello(banner) => (HELLO, banner.as_bytes()),
            Self::Started => (STARTED, &[][..]),
            Self::Ended(status) => (ENDED, slice::from_ref(status)),
            Self::Warning(text) => (WARNING, text.as_bytes()),
            Self::Failed(text) => (FAILED, text.as_bytes()),
            Self::Signal(number) => (SIGNAL, slice::from_ref(number)),
            Self::Resize(WinSize { rows, cols }) => (RESIZE, &[rows.to_le_bytes(), cols.to_le_bytes()].concat()[..]),
            Self::Close(descriptor) => (CLOSE, slice::from_ref(descriptor)),
        };
        let len = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[kind, len], &payload[..len.into()]].concat()
    }

    /// The message of this kind; `None` if the kind is unknown or the payload has the wrong length.
    fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        let text = || String::from_utf8_lossy(payload).into_owned();
        Some(match (kind, payload) {
            (HELLO, _) => Self::Hello(text()),
            (STARTED, []) => Self::Started,
            (ENDED, &[status]) => Self::Ended(status),
            (WARNING, _) => Self::Warning(text()),
            (FAILED, _) => Self::Failed(text()),
            (SIGNAL, &[number]) => Self::Signal(number),
            (RESIZE, &[a, b, c, d]) => {
                Self::Resize(WinSize { rows: u16::from_le_bytes([a, b]), cols: u16::from_le_bytes([c, d]) })
            }
            (CLOSE, &[descriptor]) => Self::Close(descriptor),
            _ => return None,
        })
    }

    /// Removes the first message from `bytes` if it is complete. Returns `Some(None)` for a message that is not valid.
    pub(super) fn take(bytes: &mut Vec<u8>) -> Option<Option<Self>> {
        let [kind, len, rest @ ..] = &bytes[..] else { return None };
        let payload = rest.get(..usize::from(*len))?;
        let (message, len) = (Self::decode(*kind, payload), 2 + payload.len());
        bytes.drain(..len);
        Some(message)
    }
}

/// Takes messages out of a ring, which may hold parts of them.
#[derive(Debug)]
pub struct MessageReader {
    ring: Consumer,
    bytes: Vec<u8>,
}

impl MessageReader {
    /// A reader of the ring for `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { ring: Consumer::new(stream), bytes: Vec::new() }
    }

    /// Takes all bytes out of the ring. Returns the messages that are complete now, with `None` for each that is not
    /// valid.
    ///
    /// # Errors
    ///
    /// The producer's index is invalid.
    pub fn receive(&mut self, pages: &impl Pages) -> Result<Vec<Option<Message>>, ProtocolError> {
        self.ring.pop(pages, &mut self.bytes, usize::MAX)?;
        Ok(std::iter::from_fn(|| Message::take(&mut self.bytes)).collect())
    }
}

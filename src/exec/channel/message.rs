//! What is said in the rings for events and orders: a byte for the kind, a byte for the length, and up to 255 bytes.

use crate::sys::winsize::WinSize;

/// What init tells kickvm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is there, on this kernel.
    Hello(String),
    /// The command runs.
    Started,
    /// The command has ended with this status, and all it said is in the rings.
    Ended(u8),
    /// Something the user should know.
    Warning(String),
    /// The command cannot be run.
    Failed(String),
}

/// What kickvm tells init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send this signal to the command.
    Signal(u8),
    /// The user's terminal has this size now.
    Size(WinSize),
    /// Nobody reads this output any more: 1 or 2, as descriptors are numbered.
    Shut(u8),
}

const HELLO: u8 = 1;
const STARTED: u8 = 2;
const ENDED: u8 = 3;
const WARNING: u8 = 4;
const FAILED: u8 = 5;
const SIGNAL: u8 = 1;
const SIZE: u8 = 2;
const SHUT: u8 = 3;

/// A message's bytes. A text is cut off where it does not fit.
fn encode(kind: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(u8::MAX.into())];
    [&[kind, payload.len() as u8], payload].concat()
}

/// Takes the first whole message off `bytes`: its kind and what it says.
pub fn take(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let [kind, len, rest @ ..] = &bytes[..] else { return None };
    let (kind, payload) = (*kind, rest.get(..usize::from(*len))?.to_vec());
    bytes.drain(..2 + payload.len());
    Some((kind, payload))
}

impl Event {
    /// As it goes into the ring.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(banner) => encode(HELLO, banner.as_bytes()),
            Self::Started => encode(STARTED, &[]),
            Self::Ended(status) => encode(ENDED, &[*status]),
            Self::Warning(text) => encode(WARNING, text.as_bytes()),
            Self::Failed(text) => encode(FAILED, text.as_bytes()),
        }
    }

    /// As it comes out; `None` for what is none.
    pub fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        let text = || String::from_utf8_lossy(payload).into_owned();
        Some(match (kind, payload) {
            (HELLO, _) => Self::Hello(text()),
            (STARTED, []) => Self::Started,
            (ENDED, [status]) => Self::Ended(*status),
            (WARNING, _) => Self::Warning(text()),
            (FAILED, _) => Self::Failed(text()),
            _ => return None,
        })
    }
}

impl Order {
    /// As it goes into the ring.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Signal(number) => encode(SIGNAL, &[*number]),
            Self::Size(WinSize { rows, cols }) => encode(SIZE, &[rows.to_le_bytes(), cols.to_le_bytes()].concat()),
            Self::Shut(stream) => encode(SHUT, &[*stream]),
        }
    }

    /// As it comes out; `None` for what is none.
    pub fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        Some(match (kind, payload) {
            (SIGNAL, [number]) => Self::Signal(*number),
            (SIZE, [a, b, c, d]) => {
                Self::Size(WinSize { rows: u16::from_le_bytes([*a, *b]), cols: u16::from_le_bytes([*c, *d]) })
            }
            (SHUT, [stream]) => Self::Shut(*stream),
            _ => return None,
        })
    }
}

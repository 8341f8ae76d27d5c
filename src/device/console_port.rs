//! What the event loop sees of a console, be it a serial port or a virtio console.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use super::Response;
use crate::console::panic::PanicDetector;

/// How late a byte may reach the host, and the period of [`ConsolePort::on_timer`].
pub const FLUSH_DELAY: Duration = Duration::from_millis(5);

/// Bytes of output that wait for the host before the guest has to.
pub(super) const OUTPUT_LIMIT: usize = 64 << 10;
/// Ticks without output after which a guest is silent.
pub(super) const SILENT_TICKS: u32 = 100;

/// What the event loop has to do for a console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Whether [`ConsolePort::on_timer`] must be called every [`FLUSH_DELAY`].
    pub needs_timer: bool,
    /// Whether [`ConsolePort::push_input`] would take input.
    pub wants_input: bool,
    /// Whether the output holds a whole line, or much, and should not wait.
    pub flush_now: bool,
    /// Whether there is output at all.
    pub has_output: bool,
}

/// Hears all that a guest writes to a console, on the thread that brings it; it has to be quick.
pub trait OutputTap: Send + fmt::Debug {
    /// Takes the next byte.
    fn on_byte(&mut self, byte: u8);
}

/// A console's side towards the host.
pub trait ConsolePort: Send + Sync + fmt::Debug {
    /// Lets somebody on_byte all that the guest writes.
    fn set_tap(&self, tap: Box<dyn OutputTap>);

    /// Moves what the guest wrote to the end of `into`.
    fn drain(&self, into: &mut Vec<u8>);

    /// What the loop has to do now.
    fn poll(&self) -> Pending;

    /// Gives input to the guest. Returns how much was taken; the loop is woken when the rest can come.
    fn push_input(&self, bytes: &[u8]) -> usize;

    /// Notes that time passes. A guest that falls silent after the last line of a kernel panic has ended.
    fn on_timer(&self) -> Response;

    /// From now on output is dropped and nobody waits for room.
    fn close(&self);

    /// Whether the console said that the guest kernel panicked.
    fn panicked(&self) -> bool;
}

/// Output that waits for the event loop.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub bytes: Vec<u8>,
    pub watch: PanicDetector,
    pub tap: Option<Box<dyn OutputTap>>,
    pub closed: bool,
    newline: bool,
}

impl Output {
    /// Whether somebody should not wait for more.
    pub fn flush_now(&self) -> bool {
        self.newline || self.bytes.len() >= OUTPUT_LIMIT / 8
    }

    /// How much may come before the guest has to wait.
    pub fn room(&self) -> usize {
        if self.closed { usize::MAX } else { OUTPUT_LIMIT.saturating_sub(self.bytes.len()) }
    }

    /// Moves all to the end of `into`.
    pub fn drain(&mut self, into: &mut Vec<u8>) {
        self.newline = false;
        if into.is_empty() {
            std::mem::swap(into, &mut self.bytes);
        } else {
            into.append(&mut self.bytes);
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.watch.push(byte);
            if let Some(tap) = &mut self.tap {
                tap.on_byte(byte);
            }
            self.newline |= byte == b'\n';
        }
        if !self.closed {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

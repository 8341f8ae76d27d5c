//! The interface between the event loop and a console device: a serial port or a virtio console.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// The longest delay before a byte leaves a console, and the period of [`ConsolePort::on_timer`].
pub const FLUSH_DELAY: Duration = Duration::from_millis(5);

/// Bytes of output that a console holds before the guest has to wait.
pub(super) const OUTPUT_LIMIT: usize = 64 << 10;

/// Bytes of input that a console holds. The loop stops reading its source while the queue is full.
pub const INPUT_LIMIT: usize = 1 << 20;

/// Work that a console has for the event loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Call [`ConsolePort::on_timer`] every [`FLUSH_DELAY`].
    pub needs_timer: bool,
    /// The output holds a whole line or is long: write it now.
    pub flush_now: bool,
    /// There is output.
    pub has_output: bool,
}

/// A console as the event loop uses it.
pub trait ConsolePort: Send + Sync + fmt::Debug {
    /// Moves the guest's output to the end of `into`.
    fn drain(&self, into: &mut Vec<u8>);

    /// The work for the event loop now.
    fn poll(&self) -> Pending;

    /// Appends `bytes` to the input queue. Bytes beyond [`INPUT_LIMIT`] are dropped, so a caller should read at most
    /// [`input_room`](Self::input_room) bytes.
    fn push_input(&self, bytes: &[u8]);

    /// Bytes that the input queue can take. When this is zero, the loop is woken as soon as half the queue is free.
    fn input_room(&self) -> usize;

    /// [`FLUSH_DELAY`] has passed.
    fn on_timer(&self) {}

    /// Discards output from now on, so that the guest never waits for room.
    fn close(&self);
}

/// The one queue of input that the guest has not read yet.
#[derive(Debug, Default)]
pub(super) struct InputQueue {
    bytes: VecDeque<u8>,
    blocked: bool, // the source is not read until `take_unblocked` returns true
}

impl InputQueue {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes.iter().take(INPUT_LIMIT.saturating_sub(self.bytes.len())));
    }

    /// Number of free bytes. If it is zero, the source is marked as blocked.
    pub fn room(&mut self) -> usize {
        let room = INPUT_LIMIT.saturating_sub(self.bytes.len());
        self.blocked |= room == 0;
        room
    }

    /// The oldest bytes, as far as they are contiguous; empty only if the queue is.
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Puts bytes back that the guest has not seen, before all others.
    pub fn unread(&mut self, bytes: impl Iterator<Item = u8>) {
        let before = self.bytes.len();
        self.bytes.extend(bytes);
        let count = self.bytes.len() - before;
        self.bytes.rotate_right(count);
    }

    /// Whether the source should be woken now.
    pub fn take_unblocked(&mut self) -> bool {
        let unblocked = self.blocked && self.bytes.len() <= INPUT_LIMIT / 2;
        self.blocked &= !unblocked;
        unblocked
    }
}

/// Output that the event loop has not drained yet.
#[derive(Debug, Default)]
pub(super) struct OutputBuffer {
    bytes: Vec<u8>,
    closed: bool,
    newline: bool,
}

impl OutputBuffer {
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.closed {
            self.newline |= bytes.contains(&b'\n');
            self.bytes.extend_from_slice(bytes);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the output should be written without waiting for more.
    pub fn flush_now(&self) -> bool {
        self.newline || self.bytes.len() >= OUTPUT_LIMIT / 8
    }

    /// Bytes that fit before the guest has to wait.
    pub fn room(&self) -> usize {
        if self.closed { usize::MAX } else { OUTPUT_LIMIT.saturating_sub(self.bytes.len()) }
    }

    /// Moves all bytes to the end of `into`.
    pub fn drain(&mut self, into: &mut Vec<u8>) {
        self.newline = false;
        into.append(&mut self.bytes);
    }

    pub fn close(&mut self) {
        self.closed = true;
    }
}

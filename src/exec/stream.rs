//! One output stream of the command: from its ring to kickvm's standard output or standard error.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use super::channel::{Consumer, Pages, ProtocolError, Stream};
use crate::console::output::{OutputFile, is_given_up};
use crate::console::{Drain, RunLog, Source};
use crate::event::EventOps;
use crate::results::ResultParser;
use crate::sys::os_error;

/// The number of bytes that are taken out of the ring at once.
const BATCH: usize = 64 << 10;
/// Batches after which other subscribers of the event loop get a turn.
const MAX_BATCHES: usize = 4;

/// A ring and the file that its content is written to.
#[derive(Debug)]
pub struct OutputStream {
    ring: Consumer,
    data: u32,
    output: OutputFile,
    log: (RunLog, Source),
    /// Reads the test results in the bytes, if any.
    pub results: Option<ResultParser>,
}

/// What [`OutputStream::pump`] did.
#[derive(Debug, Default)]
pub struct Pumped {
    /// It took bytes out of the ring.
    pub moved: bool,
    /// Init waited for room, which it has now, and must be woken.
    pub made_room: bool,
    /// A write failed. From now on the ring is drained and the bytes are dropped.
    pub failed: bool,
}

impl OutputStream {
    /// Connects the ring for `stream` to `output`, to `log`, and to `results`. The event for the file being writable
    /// has the user data `stream as u32`.
    pub fn new(stream: Stream, output: OutputFile, log: (RunLog, Source), results: Option<ResultParser>) -> Self {
        Self { ring: Consumer::new(stream), data: stream as u32, output, log, results }
    }

    /// Takes at most `max` bytes out of the ring, when none are pending. Returns whether there were any.
    fn pop(&mut self, pages: &impl Pages, max: usize) -> Result<bool, ProtocolError> {
        self.ring.pop(pages, &mut self.output.pending, max)?;
        self.log.0.push(self.log.1, &self.output.pending);
        if let Some(results) = &mut self.results {
            results.push(&self.output.pending);
        }
        Ok(!self.output.is_empty())
    }

    /// Writes bytes from the ring until that would block. Signals `again` if the ring may hold more bytes.
    ///
    /// # Errors
    ///
    /// The guest wrote an invalid index.
    pub fn pump(&mut self, pages: &impl Pages, ops: &mut EventOps, again: &EventFd) -> Result<Pumped, ProtocolError> {
        let mut pumped = Pumped::default();
        let failed_before = self.output.error().is_some();
        for _ in 0..MAX_BATCHES {
            if self.output.is_empty() {
                if !self.pop(pages, BATCH)? {
                    return Ok(pumped);
                }
                pumped.moved = true;
                pumped.made_room |= self.ring.take_waiting(pages)?;
            }
            if !self.output.write_or_wait(ops, self.data) {
                return Ok(pumped);
            }
            pumped.failed = !failed_before && self.output.error().is_some();
        }
        let _ = again.write(1); // fails only if the counter is full, and then the event is pending
        Ok(pumped)
    }

    /// Why a write failed. A reader that has closed its pipe, or took nothing until the end of the run, is not a
    /// failure.
    pub fn failure(&self) -> Option<String> {
        let error = self.output.error().filter(|error| error.kind() != io::ErrorKind::BrokenPipe && !self.is_lost())?;
        Some(format!("cannot write the command's output: {}", os_error::describe(error)))
    }

    /// Whether the rest was not written, because the reader took nothing.
    pub fn is_lost(&self) -> bool {
        self.output.error().is_some_and(is_given_up)
    }

    /// Writes the rest of the ring after the guest has stopped, as long as `drain` allows. A write that fails is then
    /// the [`failure`](Self::failure), and the rest is dropped.
    ///
    /// # Errors
    ///
    /// The guest wrote an invalid index.
    pub fn finish(&mut self, pages: &impl Pages, drain: &mut Drain<'_>) -> Result<(), ProtocolError> {
        loop {
            self.output.write_all(drain);
            let failed = self.output.error().is_some();
            if !self.pop(pages, usize::MAX)? || failed {
                self.output.close(drain);
                return Ok(());
            }
        }
    }
}

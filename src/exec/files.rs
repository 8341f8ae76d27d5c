//! Files of the guest that init sends after the command has ended, the kernel's log and the file of a
//! [`Job`](super::job::Job): each as parts, then the end.
//!
//! ```text
//!   offset   size   field
//!   0           4   length of the part, 0 at the end of the file, or 0xffff_ffff if it cannot be read
//!   4          …    content
//! ```

use super::channel::{Consumer, Pages, ProtocolError, Stream};
use crate::results::ResultParser;

/// The most bytes of a part.
pub const MAX_PART: usize = 8 << 10;
/// The length of a part that ends a file which cannot be read.
pub const UNREADABLE: u32 = u32::MAX;
/// The most bytes of a file.
pub const MAX_FILE: usize = 64 << 20;

/// Receives the files.
#[derive(Debug)]
pub struct FileReceiver {
    ring: Consumer,
    bytes: Vec<u8>,
    expected: usize, // files
    ended: usize,
    len: usize,    // of the file so far
    file: Vec<u8>, // unless it has results
    /// The kernel's log; `None` if it cannot be read or is larger than 64 MiB.
    pub kernel_log: Option<Vec<u8>>,
    /// Receives the last file, as it comes.
    results: Option<ResultParser>,
    /// The same parser, before it has received anything.
    unused: Option<ResultParser>,
}

impl FileReceiver {
    /// A receiver of the kernel's log, if `has_kernel_log`, and then of a file with test results, if `results` makes a
    /// parser for one.
    pub fn new(has_kernel_log: bool, results: impl Fn() -> Option<ResultParser>) -> Self {
        let (ring, bytes, file, kernel_log) = (Consumer::new(Stream::Files), Vec::new(), Vec::new(), None);
        let (results, unused) = (results(), results());
        let expected = usize::from(has_kernel_log) + usize::from(results.is_some());
        Self { ring, bytes, expected, ended: 0, len: 0, file, kernel_log, results, unused }
    }

    /// Takes all bytes out of the ring.
    ///
    /// # Errors
    ///
    /// The guest has violated the protocol.
    pub fn receive(&mut self, pages: &impl Pages) -> Result<(), ProtocolError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        self.ring.pop(pages, &mut bytes, usize::MAX)?;
        let mut rest = &bytes[..];
        while let Some((len, after)) = rest.split_first_chunk() {
            let len = u32::from_le_bytes(*len);
            let is_part = len != 0 && len != UNREADABLE;
            if self.ended == self.expected || is_part && len as usize > MAX_PART {
                return Err(ProtocolError);
            }
            if !is_part {
                self.end_file(len != UNREADABLE && self.len <= MAX_FILE);
                rest = after;
            } else if let Some((part, after)) = after.split_at_checked(len as usize) {
                self.len = self.len.saturating_add(part.len());
                match &mut self.results {
                    _ if self.len > MAX_FILE => {}
                    Some(results) if self.ended + 1 == self.expected => results.push(part),
                    _ => self.file.extend_from_slice(part),
                }
                rest = after;
            } else {
                break;
            }
        }
        bytes.drain(..bytes.len() - rest.len());
        self.bytes = bytes;
        Ok(())
    }

    fn end_file(&mut self, is_usable: bool) {
        let file = std::mem::take(&mut self.file);
        self.ended += 1;
        self.len = 0;
        if self.results.is_none() || self.ended < self.expected {
            self.kernel_log = Some(file).filter(|_| is_usable);
        } else if !is_usable {
            self.results = self.unused.take();
        }
    }

    /// Takes the parser of the last file. It has received nothing if the file cannot be read or is larger than 64 MiB.
    pub fn take_results(&mut self) -> Option<ResultParser> {
        self.results.take()
    }
}

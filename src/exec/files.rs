//! Files of the guest that init sends after the command has ended, the kernel's log and the file of a
//! [`Job`](super::job::Job): each as parts, then the end.
//!
//! ```text
//!   offset   size   field
//!   0           4   length of the part, 0 at the end of the file, or 0xffff_ffff if it cannot be read
//!   4          …    content
//! ```

use super::channel::{Consumer, Pages, ProtocolError, Stream};

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
    file: Vec<u8>,
    /// The content of each file; `None` for one that cannot be read or is larger than 64 MiB.
    pub files: Vec<Option<Vec<u8>>>,
}

impl FileReceiver {
    /// A receiver of the ring.
    pub fn new() -> Self {
        Self { ring: Consumer::new(Stream::Files), bytes: Vec::new(), file: Vec::new(), files: Vec::new() }
    }

    /// Takes all bytes out of the ring. `expected` is the number of files.
    ///
    /// # Errors
    ///
    /// The guest has violated the protocol.
    pub fn receive(&mut self, pages: &impl Pages, expected: usize) -> Result<(), ProtocolError> {
        self.ring.pop(pages, &mut self.bytes, usize::MAX)?;
        let mut rest = &self.bytes[..];
        while let Some((len, after)) = rest.split_first_chunk() {
            let len = u32::from_le_bytes(*len);
            let is_part = len != 0 && len != UNREADABLE;
            if self.files.len() == expected || is_part && len as usize > MAX_PART {
                return Err(ProtocolError);
            }
            if !is_part {
                let file = std::mem::take(&mut self.file);
                self.files.push(Some(file).filter(|file| len != UNREADABLE && file.len() <= MAX_FILE));
                rest = after;
            } else if let Some((part, after)) = after.split_at_checked(len as usize) {
                if self.file.len() <= MAX_FILE {
                    self.file.extend_from_slice(part);
                }
                rest = after;
            } else {
                break;
            }
        }
        self.bytes.drain(..self.bytes.len() - rest.len());
        Ok(())
    }
}

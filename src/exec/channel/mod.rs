//! The channel between init in the guest and kickvm on the host: pages of guest memory that hold six ring buffers.
//!
//! ```text
//!   init (guest)                                                        kickvm (host)
//!   stdout, stderr, events ──► ring buffers ── doorbell (ioeventfd) ──► event loop
//!   files
//!   stdin, controls        ◄── ring buffers ◄─ wake interrupt (COM2) ── event loop
//! ```
//!
//! # Memory layout
//!
//! Init allocates [`TOTAL_PAGES`] pages of [`PAGE`] bytes. They are contiguous in init's address space, but may be
//! scattered in guest-physical memory. Init writes the page frame number of the header to the exec port; the header has
//! the frame numbers of all pages. Sizes are in bytes, integers are little-endian.
//!
//! ```text
//!   pages     size   content                     producer → consumer
//!   0         4096   header
//!   1–32    131072   ring 0, Stream::Stdout      init → kickvm
//!   33–48    65536   ring 1, Stream::Stderr      init → kickvm
//!   49        4096   ring 2, Stream::Events      init → kickvm
//!   50–65    65536   ring 3, Stream::Stdin       kickvm → init
//!   66        4096   ring 4, Stream::Controls    kickvm → init
//!   67–82    65536   ring 5, Stream::Files       init → kickvm
//!
//!   offset in the header   size   field
//!   0x000                     4   MAGIC: "KXC1" once the page list is complete
//!   0x004                     4   SLEEPING: 1 while init waits or is about to wait
//!   0x040 + 16 · ring         4   HEAD: bytes that were put in so far, modulo 2^32; the producer writes it
//!           + 4               4   CLOSED: 1 once the producer has put in its last byte
//!           + 8               4   TAIL: bytes that were taken out so far, modulo 2^32; the consumer writes it
//!           + 12              4   WAITING: 1 if the producer waits for room
//!   0x400 + 8 · page          8   page frame number of the page (guest-physical address / 4096)
//! ```
//!
//! # Wake-ups
//!
//! Neither side polls. Init writes the doorbell after it has put bytes into a ring, and blocks with SLEEPING set;
//! kickvm clears SLEEPING and raises the wake interrupt after it has put bytes into a ring. A producer that finds its
//! ring full sets WAITING and stops; the consumer clears WAITING once it has taken bytes and then wakes the producer.
//! So a slow reader on the host blocks the command in the guest and nothing else.
//!
//! Each side stores one word and then loads another: it sets SLEEPING or WAITING and loads the peer's index, or it
//! stores its index and loads SLEEPING or WAITING. If the load could take effect before the store, which x86 permits
//! for plain accesses and acquire and release do not prevent, both sides could miss the other's store, and the wake-up
//! would be lost. Therefore every access to a header word is sequentially consistent. The same accesses order the bytes
//! in the ring before the index that covers them.
//!
//! # Trust
//!
//! The guest may write anything to these pages at any time. kickvm checks each frame number against guest RAM and each
//! index against the size of its ring, keeps its own indices outside guest memory, and copies a message before it
//! decodes it.

mod message;
mod ring;

pub use message::{Message, MessageReader};
pub use ring::{Consumer, Producer, ProtocolError};

use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

/// Size of a page in bytes.
pub const PAGE: usize = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"KXC1");

// Offsets in the header, in bytes.
const MAGIC_OFFSET: usize = 0;
const SLEEPING_OFFSET: usize = 4;
const RINGS_OFFSET: usize = 64;
const RING_STRIDE: usize = 16;
const FRAMES_OFFSET: usize = 1024;

/// What a ring carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The command's standard output; everything the command writes to its terminal, if it has one.
    Stdout,
    /// The command's standard error.
    Stderr,
    /// Messages from init.
    Events,
    /// The command's standard input.
    Stdin,
    /// Messages from kickvm.
    Controls,
    /// Files of the guest, after the command has ended (see [`files`](super::files)).
    Files,
}

/// Pages of each ring, in the order of [`Stream`].
const PAGES: [usize; 6] = [32, 16, 1, 16, 1, 16];

/// Pages of the header and all rings.
pub const TOTAL_PAGES: usize = 1 + PAGES[0] + PAGES[1] + PAGES[2] + PAGES[3] + PAGES[4] + PAGES[5];

impl Stream {
    /// The first page of the ring and its number of pages.
    fn pages(self) -> (usize, usize) {
        let ring = self as usize;
        (1 + PAGES[..ring].iter().sum::<usize>(), PAGES[ring])
    }

    /// Offset of the ring's words in the header.
    fn words(self) -> usize {
        RINGS_OFFSET + RING_STRIDE * self as usize
    }
}

/// The channel's pages as one side accesses them.
///
/// # Errors
///
/// A method that accesses the header fails if the header is not in memory.
pub trait Pages {
    /// At most `len` bytes from `offset` in page `page`; fewer where the following bytes are not contiguous. `None` if
    /// the range is not in memory.
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>>;

    /// Loads a field of the header.
    fn load<T: AtomicAccess>(&self, offset: usize) -> Result<T, ProtocolError> {
        let field = self.slice(0, offset, size_of::<T>());
        field.and_then(|field| field.load(0, Ordering::SeqCst).ok()).ok_or(ProtocolError)
    }

    /// Stores a field of the header.
    fn store<T: AtomicAccess>(&self, offset: usize, value: T) -> Result<(), ProtocolError> {
        let field = self.slice(0, offset, size_of::<T>());
        field.and_then(|field| field.store(value, 0, Ordering::SeqCst).ok()).ok_or(ProtocolError)
    }

    /// Clears a flag of the header. Returns whether it was set.
    fn take_flag(&self, offset: usize) -> Result<bool, ProtocolError> {
        let set = self.load::<u32>(offset)? != 0;
        if set {
            self.store(offset, 0u32)?;
        }
        Ok(set)
    }

    /// Completes the header: stores the frame number of each page, then the magic number.
    fn publish(&self, frames: &[u64]) -> Result<(), ProtocolError> {
        for (page, frame) in frames.iter().enumerate() {
            self.store(FRAMES_OFFSET + 8 * page, *frame)?;
        }
        self.store(MAGIC_OFFSET, MAGIC)
    }

    /// Whether the header is complete.
    fn is_published(&self) -> bool {
        self.load(MAGIC_OFFSET) == Ok(MAGIC)
    }

    /// The frame number of `page` according to the header.
    fn frame(&self, page: usize) -> Result<u64, ProtocolError> {
        self.load(FRAMES_OFFSET + 8 * page)
    }

    /// Sets whether init needs the wake interrupt. Init checks all rings once more after it has set this, and then
    /// blocks.
    fn set_sleeping(&self, sleeping: bool) -> Result<(), ProtocolError> {
        self.store(SLEEPING_OFFSET, u32::from(sleeping))
    }

    /// Whether init needs the wake interrupt. Returns true once per sleep.
    fn take_sleeping(&self) -> Result<bool, ProtocolError> {
        self.take_flag(SLEEPING_OFFSET)
    }
}

#[cfg(test)]
mod tests;

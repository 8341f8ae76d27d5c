//! The channel between kickvm and its init in the guest: pages of guest memory with five rings in them.
//!
//! ```text
//!   init (in the guest)                                     kickvm
//!   output, errors, events ──► rings ── bell (ioeventfd) ──► event loop
//!   command, orders        ◄── rings ◄─ wake line (COM2) ─── event loop
//! ```
//!
//! A ring is filled by one side and emptied by the other; each moves its own index and reads the other's. Who finds a ring
//! full (or empty) says so in it and sleeps; the other side then rings. So neither polls, nothing is lost, and a reader
//! who is slow on the host holds back the command in the guest and nobody else.
//!
//! The first page is the header: a signature, the page list, and four words for each ring. The page list holds guest-physical
//! addresses, which kickvm checks against RAM, as it checks every index: the guest may write what it likes.

mod message;
mod ring;

pub use message::{Event, Order, take};
pub use ring::{Broken, Consumer, Producer};

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// What the first word is once the header is complete.
pub const MAGIC: u32 = u32::from_le_bytes(*b"KXC1");

// Offsets in the header.
const MAGIC_AT: usize = 0;
const SLEEPING_AT: usize = 4;
const RINGS_AT: usize = 64;
const RING_WORDS: usize = 16;
const FRAMES_AT: usize = 1024;

/// The rings, by what they carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The command's standard output, or all output of its terminal.
    Output,
    /// The command's standard error.
    Errors,
    /// What init has to tell.
    Events,
    /// The command's standard input.
    Input,
    /// What kickvm has to tell.
    Orders,
}

/// Pages of each ring, in the order of [`Lane`].
const PAGES: [usize; 5] = [32, 16, 1, 16, 1];

/// All pages, the header's included.
pub const TOTAL_PAGES: usize = 1 + PAGES[0] + PAGES[1] + PAGES[2] + PAGES[3] + PAGES[4];

impl Lane {
    /// The ring's first page and its number of pages.
    fn pages(self) -> (usize, usize) {
        let n = self as usize;
        (1 + PAGES[..n].iter().sum::<usize>(), PAGES[n])
    }

    /// Where the ring's words are in the header.
    fn words(self) -> usize {
        RINGS_AT + RING_WORDS * self as usize
    }
}

/// The pages as one side sees them.
pub trait Pages {
    /// At most `len` bytes from `offset` bytes into `page` on; fewer where what follows lies elsewhere. `None` where there is
    /// no memory.
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>>;

    /// A word of the header.
    fn word(&self, at: usize) -> Result<u32, Broken> {
        self.slice(0, at, 4).and_then(|word| word.load(0, Ordering::SeqCst).ok()).ok_or(Broken)
    }

    /// Changes a word of the header.
    fn set_word(&self, at: usize, value: u32) -> Result<(), Broken> {
        self.slice(0, at, 4).and_then(|word| word.store(value, 0, Ordering::SeqCst).ok()).ok_or(Broken)
    }
}

/// Completes the header: the pages' frame numbers, then the signature.
pub fn publish(pages: &impl Pages, frames: &[u64]) -> Result<(), Broken> {
    for (n, frame) in frames.iter().enumerate() {
        let entry = pages.slice(0, FRAMES_AT + 8 * n, 8).ok_or(Broken)?;
        entry.store(*frame, 0, Ordering::SeqCst).map_err(|_| Broken)?;
    }
    pages.set_word(MAGIC_AT, MAGIC)
}

/// Whether the header is complete.
pub fn is_published(pages: &impl Pages) -> bool {
    pages.word(MAGIC_AT) == Ok(MAGIC)
}

/// The frame number of page `n`, as the header has it.
pub fn frame(pages: &impl Pages, n: usize) -> Result<u64, Broken> {
    let entry = pages.slice(0, FRAMES_AT + 8 * n, 8).ok_or(Broken)?;
    entry.load(0, Ordering::SeqCst).map_err(|_| Broken)
}

/// Init says whether it is about to sleep, and looks at the rings once more after it did.
pub fn set_sleeping(pages: &impl Pages, asleep: bool) -> Result<(), Broken> {
    pages.set_word(SLEEPING_AT, asleep.into())
}

/// Whether init must be woken to see what was just put into a ring. It is asked for once a sleep.
pub fn must_wake(pages: &impl Pages) -> Result<bool, Broken> {
    let asleep = pages.word(SLEEPING_AT)? != 0;
    if asleep {
        pages.set_word(SLEEPING_AT, 0)?;
    }
    Ok(asleep)
}

#[cfg(test)]
mod tests;

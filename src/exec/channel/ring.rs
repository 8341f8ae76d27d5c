//! One ring, from its two ends. Indices run freely and wrap at 2^32; what lies between them is in the ring.

use std::io;

use vm_memory::{Bytes, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::{Lane, PAGE, Pages};

// Words of a ring, as offsets into its part of the header.
const HEAD: usize = 0;
const CLOSED: usize = 4;
const TAIL: usize = 8;
const STARVED: usize = 12;

/// The other side has written what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest broke the channel to its command")]
pub struct Broken;

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        io::Error::other(broken)
    }
}

#[derive(Clone, Copy, Debug)]
struct Ring {
    words: usize,
    first: usize,
    size: u32,
}

impl Ring {
    fn new(lane: Lane) -> Self {
        let (first, pages) = lane.pages();
        Self { words: lane.words(), first, size: (pages * PAGE) as u32 }
    }

    /// At most `len` bytes from index `at` on, as far as they lie together.
    fn slice<'a>(&self, pages: &'a impl Pages, at: u32, len: u32) -> Result<VolatileSlice<'a>, Broken> {
        let at = at % self.size;
        let len = len.min(self.size - at) as usize;
        let at = at as usize;
        pages.slice(self.first + at / PAGE, at % PAGE, len).ok_or(Broken)
    }

    fn word(&self, pages: &impl Pages, word: usize) -> Result<u32, Broken> {
        pages.word(self.words + word)
    }

    fn set(&self, pages: &impl Pages, word: usize, value: u32) -> Result<(), Broken> {
        pages.set_word(self.words + word, value)
    }
}

/// The end that fills a ring.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    head: u32,
}

impl Producer {
    /// The filling end of a new ring.
    pub fn new(lane: Lane) -> Self {
        Self { ring: Ring::new(lane), head: 0 }
    }

    /// Bytes that would fit now.
    pub fn room(&self, pages: &impl Pages) -> Result<usize, Broken> {
        let used = self.head.wrapping_sub(self.ring.word(pages, TAIL)?);
        self.ring.size.checked_sub(used).map(|room| room as usize).ok_or(Broken)
    }

    /// Puts in as many of `bytes` as fit, and says how many did.
    pub fn push(&mut self, pages: &impl Pages, bytes: &[u8]) -> Result<usize, Broken> {
        let room = self.room(pages)?.min(bytes.len());
        let mut done = 0;
        while done < room {
            let slice = self.ring.slice(pages, self.head.wrapping_add(done as u32), (room - done) as u32)?;
            done += slice.write(&bytes[done..room], 0).map_err(|_| Broken)?;
        }
        self.advance(pages, done)?;
        Ok(done)
    }

    /// Reads once from `source` into the ring. Returns 0 at the source's end; there must be room.
    pub fn push_from(&mut self, pages: &impl Pages, source: &mut impl ReadVolatile) -> io::Result<usize> {
        let room = self.room(pages)?;
        let mut slice = self.ring.slice(pages, self.head, room as u32)?;
        let len = source.read_volatile(&mut slice).map_err(io_error)?;
        self.advance(pages, len)?;
        Ok(len)
    }

    fn advance(&mut self, pages: &impl Pages, len: usize) -> Result<(), Broken> {
        self.head = self.head.wrapping_add(len as u32);
        self.ring.set(pages, HEAD, self.head)
    }

    /// Nothing more will come.
    pub fn close(&self, pages: &impl Pages) -> Result<(), Broken> {
        self.ring.set(pages, CLOSED, 1)
    }

    /// Asks to be told when there is room again. To be followed by another look.
    pub fn starve(&self, pages: &impl Pages) -> Result<(), Broken> {
        self.ring.set(pages, STARVED, 1)
    }
}

/// The end that empties a ring.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    tail: u32,
}

impl Consumer {
    /// The emptying end of a new ring.
    pub fn new(lane: Lane) -> Self {
        Self { ring: Ring::new(lane), tail: 0 }
    }

    /// Bytes there are.
    pub fn available(&self, pages: &impl Pages) -> Result<usize, Broken> {
        let used = self.ring.word(pages, HEAD)?.wrapping_sub(self.tail);
        if used <= self.ring.size { Ok(used as usize) } else { Err(Broken) }
    }

    /// Whether everything has been taken and nothing will come.
    pub fn is_at_end(&self, pages: &impl Pages) -> Result<bool, Broken> {
        // In this order: what was put in before the end is seen before the end is.
        Ok(self.ring.word(pages, CLOSED)? != 0 && self.available(pages)? == 0)
    }

    /// Moves at most `limit` bytes to the end of `into`, and says how many it were.
    pub fn pop(&mut self, pages: &impl Pages, into: &mut Vec<u8>, limit: usize) -> Result<usize, Broken> {
        let len = self.available(pages)?.min(limit);
        let start = into.len();
        into.resize(start + len, 0);
        let mut done = 0;
        while done < len {
            let slice = self.ring.slice(pages, self.tail.wrapping_add(done as u32), (len - done) as u32)?;
            done += slice.read(&mut into[start + done..], 0).map_err(|_| Broken)?;
        }
        self.advance(pages, len)?;
        Ok(len)
    }

    /// Writes once from the ring to `sink`, which says how much it takes; there must be something.
    pub fn pop_to(&mut self, pages: &impl Pages, sink: &mut impl WriteVolatile) -> io::Result<usize> {
        let len = self.available(pages)?;
        let slice = self.ring.slice(pages, self.tail, len as u32)?;
        let len = sink.write_volatile(&slice).map_err(io_error)?;
        self.advance(pages, len)?;
        Ok(len)
    }

    fn advance(&mut self, pages: &impl Pages, len: usize) -> Result<(), Broken> {
        self.tail = self.tail.wrapping_add(len as u32);
        self.ring.set(pages, TAIL, self.tail)
    }

    /// Whether the other side waits for room, of which it is to be told now.
    pub fn relieve(&self, pages: &impl Pages) -> Result<bool, Broken> {
        let starved = self.ring.word(pages, STARVED)? != 0;
        if starved {
            self.ring.set(pages, STARVED, 0)?;
        }
        Ok(starved)
    }
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        error => io::Error::other(error),
    }
}

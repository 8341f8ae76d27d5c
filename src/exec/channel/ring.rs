//! The two ends of a ring buffer. Indices count bytes modulo 2^32; the bytes from tail to head are in the buffer.

use std::io;

use vm_memory::{Bytes, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::{PAGE, Pages, Stream};

// Offsets of a ring's words, in bytes.
const HEAD: usize = 0;
const CLOSED: usize = 4;
const TAIL: usize = 8;
const WAITING: usize = 12;

/// The guest wrote a value to the channel that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest violated the protocol of the exec channel")]
pub struct ProtocolError;

impl From<ProtocolError> for io::Error {
    fn from(error: ProtocolError) -> Self {
        io::Error::other(error)
    }
}

/// What both ends of a ring have: its location, and the index that this end moves.
#[derive(Debug)]
struct RingBuffer {
    words: usize,
    first_page: usize,
    size: u32,
    index: u32,
    index_offset: usize,
}

#[expect(clippy::cast_possible_truncation, reason = "a ring has at most 32 pages")]
impl RingBuffer {
    fn new(stream: Stream, index_word: usize) -> Self {
        let (words, (first_page, pages)) = (stream.words(), stream.pages());
        Self { words, first_page, size: (pages * PAGE) as u32, index: 0, index_offset: words + index_word }
    }

    /// The contiguous bytes from `done` bytes past this end's index, at most `len`.
    fn slice<'a>(&self, pages: &'a impl Pages, done: usize, len: usize) -> Result<VolatileSlice<'a>, ProtocolError> {
        let start = (self.index.wrapping_add(done as u32) % self.size) as usize;
        let len = len.min(self.size as usize - start);
        pages.slice(self.first_page + start / PAGE, start % PAGE, len).ok_or(ProtocolError)
    }

    /// Copies `len` bytes at this end. `copy` receives each contiguous slice and the number of bytes copied before it.
    fn transfer(
        &mut self,
        pages: &impl Pages,
        len: usize,
        mut copy: impl FnMut(VolatileSlice<'_>, usize) -> Result<usize, VolatileMemoryError>,
    ) -> Result<usize, ProtocolError> {
        let mut done = 0;
        while done < len {
            done += copy(self.slice(pages, done, len - done)?, done).map_err(|_| ProtocolError)?;
        }
        self.advance(pages, len)
    }

    /// Moves this end's index by `len` bytes, and returns `len`.
    fn advance(&mut self, pages: &impl Pages, len: usize) -> Result<usize, ProtocolError> {
        self.index = self.index.wrapping_add(len as u32);
        pages.store(self.index_offset, self.index)?;
        Ok(len)
    }
}

/// The end that fills a ring.
#[derive(Debug)]
pub struct Producer(RingBuffer);

impl Producer {
    /// The producer of a new ring.
    pub fn new(stream: Stream) -> Self {
        Self(RingBuffer::new(stream, HEAD))
    }

    /// The number of bytes that fit now.
    ///
    /// # Errors
    ///
    /// The consumer's index is invalid, as for every method of a producer.
    pub fn room(&self, pages: &impl Pages) -> Result<usize, ProtocolError> {
        let used = self.0.index.wrapping_sub(pages.load(self.0.words + TAIL)?);
        self.0.size.checked_sub(used).map(|room| room as usize).ok_or(ProtocolError)
    }

    /// Puts in as many of `bytes` as fit. Returns how many did.
    pub fn push(&mut self, pages: &impl Pages, bytes: &[u8]) -> Result<usize, ProtocolError> {
        let len = self.room(pages)?.min(bytes.len());
        self.0.transfer(pages, len, |slice, done| slice.write(&bytes[done..len], 0))
    }

    /// Puts in all of `bytes` or none. Returns whether they fit.
    pub fn push_all(&mut self, pages: &impl Pages, bytes: &[u8]) -> Result<bool, ProtocolError> {
        Ok(self.room(pages)? >= bytes.len() && self.push(pages, bytes)? == bytes.len())
    }

    /// Reads once from `source` into the ring, which must not be full. Returns 0 at the end of the source.
    ///
    /// # Errors
    ///
    /// The read failed, or the consumer's index is invalid.
    pub fn push_from(&mut self, pages: &impl Pages, source: &mut impl ReadVolatile) -> io::Result<usize> {
        let mut slice = self.0.slice(pages, 0, self.room(pages)?)?;
        let len = source.read_volatile(&mut slice).map_err(io_error)?;
        Ok(self.0.advance(pages, len)?)
    }

    /// Marks the end of the stream.
    pub fn close(&self, pages: &impl Pages) -> Result<(), ProtocolError> {
        pages.store(self.0.words + CLOSED, 1u32)
    }

    /// Requests a wake-up as soon as there is room. The caller must check for room once more after that: the consumer
    /// may have made some before it could see the request.
    pub fn set_waiting(&self, pages: &impl Pages) -> Result<(), ProtocolError> {
        pages.store(self.0.words + WAITING, 1u32)
    }
}

/// The end that empties a ring.
#[derive(Debug)]
pub struct Consumer(RingBuffer);

impl Consumer {
    /// The consumer of a new ring.
    pub fn new(stream: Stream) -> Self {
        Self(RingBuffer::new(stream, TAIL))
    }

    /// The number of bytes in the ring.
    ///
    /// # Errors
    ///
    /// The producer's index is invalid, as for every method of a consumer.
    pub fn available(&self, pages: &impl Pages) -> Result<usize, ProtocolError> {
        let used = pages.load::<u32>(self.0.words + HEAD)?.wrapping_sub(self.0.index);
        if used <= self.0.size { Ok(used as usize) } else { Err(ProtocolError) }
    }

    /// Whether the ring is empty and its producer has closed it.
    pub fn is_at_end(&self, pages: &impl Pages) -> Result<bool, ProtocolError> {
        // CLOSED is loaded first: all bytes were put in before it was set.
        Ok(pages.load::<u32>(self.0.words + CLOSED)? != 0 && self.available(pages)? == 0)
    }

    /// Appends at most `limit` bytes to `into`. Returns how many.
    pub fn pop(&mut self, pages: &impl Pages, into: &mut Vec<u8>, limit: usize) -> Result<usize, ProtocolError> {
        let len = self.available(pages)?.min(limit);
        let start = into.len();
        into.resize(start + len, 0);
        self.0.transfer(pages, len, |slice, done| slice.read(&mut into[start + done..], 0))
    }

    /// Writes once from the ring, which must not be empty, to `sink`. Returns how many bytes the sink took.
    ///
    /// # Errors
    ///
    /// The write failed, or the producer's index is invalid.
    pub fn pop_to(&mut self, pages: &impl Pages, sink: &mut impl WriteVolatile) -> io::Result<usize> {
        let slice = self.0.slice(pages, 0, self.available(pages)?)?;
        let len = sink.write_volatile(&slice).map_err(io_error)?;
        Ok(self.0.advance(pages, len)?)
    }

    /// Whether the producer waits for room. Returns true once per request; the caller must then wake the producer.
    pub fn take_waiting(&self, pages: &impl Pages) -> Result<bool, ProtocolError> {
        pages.take_flag(self.0.words + WAITING)
    }
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        error => io::Error::other(error),
    }
}

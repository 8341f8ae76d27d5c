//! A split virtqueue, from the device's side (virtio 1.3, 2.7).

use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Release};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

// ANCHOR: layout
/// A descriptor: one buffer, and the number of the next descriptor of the chain. 16 bytes in the table.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const NEXT: u16 = 1 << 0;
const WRITE: u16 = 1 << 1;

/// A buffer of a request. The device may write to it only if it is `writable`.
#[derive(Debug)]
pub struct Buffer {
    pub address: GuestAddress,
    pub len: u32,
    pub writable: bool,
}

/// The addresses of the three parts, and the positions of the device. The driver writes the first two parts.
pub struct Queue {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub next_available: u16,
    pub next_used: u16,
}
// ANCHOR_END: layout

/// What a correct driver never does.
#[derive(Debug)]
pub enum Error {
    /// More requests than the queue has descriptors.
    AvailableIndex(u16),
    /// A descriptor that is not in the table.
    Descriptor(u16),
    /// A chain with more descriptors than the table has.
    Loop,
    /// A part of the queue is not in RAM.
    Memory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AvailableIndex(index) => write!(f, "the available index {index} is too far ahead"),
            Self::Descriptor(number) => write!(f, "descriptor {number} is not in the table"),
            Self::Loop => f.write_str("the chain is a loop"),
            Self::Memory => f.write_str("an address is not in RAM"),
        }
    }
}

impl From<GuestMemoryError> for Error {
    fn from(_: GuestMemoryError) -> Self {
        Self::Memory
    }
}

impl Queue {
    // ANCHOR: pop
    /// Takes the next request: the number of its first descriptor, and its buffers.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<(u16, Vec<Buffer>)>, Error> {
        let index: u16 = memory.load(GuestAddress(self.available + 2), Acquire)?;
        match index.wrapping_sub(self.next_available) {
            0 => return Ok(None),
            pending if pending > self.size => return Err(Error::AvailableIndex(index)),
            _ => {}
        }
        let slot = u64::from(self.next_available % self.size);
        let head = memory.read_obj(GuestAddress(self.available + 4 + slot * 2))?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some((head, self.chain(memory, head)?)))
    }

    /// Follows a chain. It has at most as many descriptors as the table: a longer one is a loop.
    fn chain(&self, memory: &GuestMemoryMmap, head: u16) -> Result<Vec<Buffer>, Error> {
        let (mut buffers, mut number) = (Vec::new(), head);
        for _ in 0..self.size {
            let Descriptor { address, len, flags, next } = self.descriptor(memory, number)?;
            buffers.push(Buffer { address: GuestAddress(address), len, writable: flags & WRITE != 0 });
            if flags & NEXT == 0 {
                return Ok(buffers);
            }
            number = next;
        }
        Err(Error::Loop)
    }
    // ANCHOR_END: pop

    /// Copies a descriptor: the driver may change it at any time.
    fn descriptor(&self, memory: &GuestMemoryMmap, number: u16) -> Result<Descriptor, Error> {
        if number >= self.size {
            return Err(Error::Descriptor(number));
        }
        let at = |offset| GuestAddress(self.descriptors + u64::from(number) * 16 + offset);
        Ok(Descriptor {
            address: memory.read_obj(at(0))?,
            len: memory.read_obj(at(8))?,
            flags: memory.read_obj(at(12))?,
            next: memory.read_obj(at(14))?,
        })
    }

    // ANCHOR: push
    /// Returns a request to the driver. The device has written `written` bytes to its buffers.
    pub fn push(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) -> Result<(), Error> {
        let slot = self.used + 4 + u64::from(self.next_used % self.size) * 8;
        memory.write_obj(u32::from(head), GuestAddress(slot))?;
        memory.write_obj(written, GuestAddress(slot + 4))?;
        self.next_used = self.next_used.wrapping_add(1);
        // The driver reads the entry after it has read the index, so the index is written last.
        memory.store(self.next_used, GuestAddress(self.used + 2), Release)?;
        Ok(())
    }
    // ANCHOR_END: push
}

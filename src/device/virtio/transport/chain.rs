//! A validated descriptor chain: every buffer is in RAM, the chain ends, and buffers that the device reads come before
//! those that it writes.

use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::sys::vectored_io::Buffer;

/// A sequence of buffers in guest memory.
//
// virtio-queue's Reader and Writer are not used: they allocate for each chain, and borrow guest memory, so that a
// request cannot be kept while it is in flight.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    list: Vec<Buffer>,
    len: usize,
}

/// One request of the driver. It is reused, so that taking a request allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The index of its first descriptor, which identifies it.
    pub head: u16,
    /// The device-readable buffers.
    pub readable: Buffers,
    /// The device-writable buffers.
    pub writable: Buffers,
}

/// How a driver has violated the specification.
pub type Fault = &'static str;

impl Chain {
    /// Replaces the content by a chain of a queue of `queue_size` entries.
    ///
    /// # Errors
    ///
    /// The chain is not valid.
    pub(super) fn fill(&mut self, mut chain: DescriptorChain<&GuestMemoryMmap>, queue_size: u16) -> Result<(), Fault> {
        self.head = chain.head_index();
        self.readable.clear();
        self.writable.clear();
        let mut complete = false;
        let mut count = 0;
        while let Some(descriptor) = chain.next() {
            // No chain is longer than its queue, in an indirect table neither (virtio 1.3, 2.7.4.1 and 2.7.5.3.1).
            count += 1;
            if count > queue_size {
                return Err("a descriptor chain is longer than its queue");
            }
            complete = !descriptor.has_next();
            let (address, len) = (descriptor.addr(), descriptor.len() as usize);
            if len > 0 && chain.memory().get_slice(address, len).is_err() {
                return Err("a buffer is not in RAM");
            }
            match descriptor.is_write_only() {
                true => self.writable.push(Buffer { address, len }),
                false if self.writable.list.is_empty() => self.readable.push(Buffer { address, len }),
                false => return Err("a readable buffer follows a writable one"),
            }
        }
        // The iterator ends early where the driver's tables are not valid.
        if complete { Ok(()) } else { Err("a descriptor chain loops or leaves its table") }
    }
}

impl Buffers {
    fn clear(&mut self) {
        self.list.clear();
        self.len = 0;
    }

    pub(in crate::device::virtio) fn push(&mut self, buffer: Buffer) {
        self.len += buffer.len; // virtio-queue ends a chain that is longer than 2^32 bytes (2.7.5.2)
        if buffer.len > 0 {
            self.list.push(buffer);
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the number of bytes is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers, none of which is empty.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Buffer> + Clone {
        self.list.iter()
    }

    /// Removes the first `count` bytes, or all if there are fewer.
    pub fn skip(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        self.list.retain_mut(|buffer| {
            let part = buffer.len.min(left);
            left -= part;
            buffer.len -= part;
            buffer.address.0 += part as u64; // does not overflow, because the buffer is in RAM
            buffer.len > 0
        });
    }

    /// Removes the last byte and returns its address.
    pub fn pop_last_byte(&mut self) -> Option<GuestAddress> {
        let last = self.list.last_mut()?;
        last.len -= 1;
        let address = GuestAddress(last.address.0 + last.len as u64);
        self.list.pop_if(|last| last.len == 0);
        self.len -= 1;
        Some(address)
    }

    /// The buffers of `len` bytes from `offset` on, as far as there are any.
    pub fn range(&self, offset: usize, len: usize) -> impl Iterator<Item = Buffer> {
        let (mut skip, mut left) = (offset, len);
        let parts = self.list.iter().map_while(move |buffer| {
            let part = buffer.len.saturating_sub(skip).min(left);
            // Inside the buffer, which is in RAM, unless the part is empty.
            let address = GuestAddress(buffer.address.0.wrapping_add(skip as u64));
            skip = skip.saturating_sub(buffer.len);
            (left > 0).then(|| left -= part)?;
            Some(Buffer { address, len: part })
        });
        parts.filter(|part| part.len > 0)
    }

    /// Copies bytes from `offset` on to `into`. Returns the number of bytes.
    pub fn read_at(&self, memory: &GuestMemoryMmap, offset: usize, mut into: &mut [u8]) -> usize {
        let copied = self.range(offset, into.len()).map_while(|Buffer { address, len }| {
            memory.read_slice(into.split_off_mut(..len)?, address).ok().map(|()| len)
        });
        copied.sum()
    }

    /// Copies `from` to the bytes from `offset` on. Returns the number of bytes.
    pub fn write_at(&self, memory: &GuestMemoryMmap, offset: usize, mut from: &[u8]) -> usize {
        let copied = self.range(offset, from.len()).map_while(|Buffer { address, len }| {
            memory.write_slice(from.split_off(..len)?, address).ok().map(|()| len)
        });
        copied.sum()
    }

    /// Copies the first bytes to `into` and removes them. Returns the number of bytes.
    pub fn read(&mut self, memory: &GuestMemoryMmap, into: &mut [u8]) -> usize {
        let done = self.read_at(memory, 0, into);
        self.skip(done);
        done
    }

    /// Copies `from` to the first bytes and removes them. Returns the number of bytes.
    pub fn write(&mut self, memory: &GuestMemoryMmap, from: &[u8]) -> usize {
        let done = self.write_at(memory, 0, from);
        self.skip(done);
        done
    }

    /// Copies an object from the first bytes and removes them. `None` if there are fewer bytes than the object has.
    pub fn read_obj<T: ByteValued + Default>(&mut self, memory: &GuestMemoryMmap) -> Option<T> {
        let mut object = T::default();
        let len = self.read(memory, object.as_mut_slice());
        (len == size_of::<T>()).then_some(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(list: &[(u64, usize)]) -> Buffers {
        let mut buffers = Buffers::default();
        list.iter().for_each(|&(address, len)| buffers.push(Buffer { address: GuestAddress(address), len }));
        buffers
    }

    fn pieces(buffers: &Buffers) -> Vec<(u64, usize)> {
        assert_eq!(buffers.iter().map(|buffer| buffer.len).sum::<usize>(), buffers.len());
        buffers.iter().map(|buffer| (buffer.address.0, buffer.len)).collect()
    }

    #[test]
    fn skipping_and_popping_cut_to_the_byte() {
        let all = buffers(&[(100, 10), (0, 0), (200, 5), (300, 1)]);
        assert_eq!(pieces(&all), [(100, 10), (200, 5), (300, 1)]);
        for (skip, rest) in [
            (0, vec![(100, 10), (200, 5), (300, 1)]),
            (4, vec![(104, 6), (200, 5), (300, 1)]),
            (10, vec![(200, 5), (300, 1)]),
            (12, vec![(202, 3), (300, 1)]),
            (16, vec![]),
            (99, vec![]),
        ] {
            let mut buffers = all.clone();
            buffers.skip(skip);
            assert_eq!(pieces(&buffers), rest, "skip {skip}");
        }
        let mut buffers = all.clone();
        assert_eq!(buffers.pop_last_byte(), Some(GuestAddress(300)));
        assert_eq!(buffers.pop_last_byte(), Some(GuestAddress(204)));
        assert_eq!(pieces(&buffers), [(100, 10), (200, 4)]);
    }

    #[test]
    fn reading_and_writing_cross_pieces() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let all = buffers(&[(0x10, 3), (0x20, 2)]);
        assert_eq!(all.clone().write(&memory, b"abcdefg"), 5);
        let mut text = [0; 4];
        let mut rest = all.clone();
        assert_eq!(rest.read(&memory, &mut text), 4);
        assert_eq!((&text, pieces(&rest)), (b"abcd", vec![(0x21, 1)]));
        assert_eq!(rest.read(&memory, &mut text), 1);
        assert_eq!(rest.read(&memory, &mut text), 0);
        assert_eq!(all.clone().read_obj::<u32>(&memory).unwrap(), u32::from_le_bytes(*b"abcd"));
        assert!(all.clone().read_obj::<u64>(&memory).is_none());

        for (offset, text, written) in [(0, "ABCDE", 5), (2, "xyz", 3), (4, "..", 1), (5, "?", 0), (9, "?", 0)] {
            assert_eq!(all.write_at(&memory, offset, text.as_bytes()), written, "at {offset}");
        }
        let mut text = [0; 5];
        assert_eq!((all.read_at(&memory, 0, &mut text), &text), (5, b"ABxy."));
        assert_eq!((all.read_at(&memory, 3, &mut text), &text), (2, b"y.xy."));
    }
}

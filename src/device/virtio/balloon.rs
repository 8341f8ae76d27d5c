//! Memory balloon (virtio 1.3, 5.5): returns RAM that the guest does not use to the host.
//!
//! There are two ways. The guest inflates the balloon to the size that the host has requested; it cannot use these
//! pages until it deflates the balloon. With free page reporting the guest reports pages that are free at the moment;
//! it can use them again at any time.

use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{Buffers, Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::Events;
use crate::memory;

// The queues. Queue 1 is deflateq. The queues of features that are not offered do not exist, so reporting_vq is next.
const INFLATE: u32 = 0;
const REPORTING: u32 = 2;

// Feature bits (linux/virtio_balloon.h).
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_REPORTING: u64 = 1 << 5;

/// A page has 4 KiB, whatever the page size of the guest is.
const PAGE_SHIFT: u64 = 12;
/// Maximum number of page numbers per request. Linux sends 256.
const MAX_PAGES: usize = 1 << 10;
/// Requests in one turn of the event loop. Each may make a system call a page.
const MAX_REQUESTS: u32 = 16;
/// Offset of `actual` in the configuration space.
const ACTUAL: usize = 4;

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    chain: Chain,
    config: [u8; 8], // num_pages, actual
}

impl Balloon {
    /// A balloon that the guest is to inflate to `size` bytes.
    pub fn new(size: u64) -> Self {
        let pages = u32::try_from(size >> PAGE_SHIFT).unwrap_or(u32::MAX);
        let mut config = [0; 8];
        config[..ACTUAL].copy_from_slice(&pages.to_le_bytes());
        Self { chain: Chain::default(), config }
    }
}

impl VirtioDevice for Balloon {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
    const QUEUES: &'static [u16] = &[128, 128, 32];

    fn features(&self) -> u64 {
        DEFLATE_ON_OOM | PAGE_REPORTING
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if offset == ACTUAL && data.len() == 4 {
            self.config[ACTUAL..].copy_from_slice(data);
        }
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        let Some(queue) = ctx.queues.get_mut(events.data() as usize) else { return };
        let mut requests = 0;
        while requests < MAX_REQUESTS && queue.pop(&mut self.chain) {
            requests += 1;
            match events.data() {
                INFLATE => inflate(queue, &self.chain.readable),
                REPORTING => report(queue, &self.chain.writable),
                _ => {} // deflated pages are allocated again when the guest accesses them
            }
            queue.push(self.chain.head, 0);
        }
        if requests == MAX_REQUESTS {
            queue.notify(); // the rest is for the next turn of the event loop
        }
    }
}

/// Returns the pages with these numbers to the host. Joins adjacent pages to save system calls.
fn inflate(queue: &Virtqueue, numbers: &Buffers) {
    let mut bytes = [0; MAX_PAGES * size_of::<u32>()];
    let len = numbers.read_at(queue.memory(), 0, &mut bytes);
    let mut run = 0..0;
    for number in bytes[..len].as_chunks().0 {
        match u32::from_le_bytes(*number) as usize {
            page if page == run.end => run.end += 1,
            page if page + 1 == run.start => run.start -= 1, // Linux often sends descending numbers
            page => {
                discard(queue.memory(), run);
                run = page..page + 1;
            }
        }
    }
    discard(queue.memory(), run);
}

fn discard(memory: &GuestMemoryMmap, pages: Range<usize>) {
    let start = (pages.start << PAGE_SHIFT) as u64; // page numbers have 32 bits
    memory::discard(memory, GuestAddress(start), pages.len() << PAGE_SHIFT);
}

/// Returns the free pages to the host that the driver reports as buffers.
fn report(queue: &Virtqueue, pages: &Buffers) {
    pages.iter().for_each(|buffer| memory::discard(queue.memory(), buffer.address, buffer.len));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::virtio::testing::*;

    const FIRST: u32 = 0xc0; // after the memory that the driver uses
    const PAGES: u32 = 16;

    /// Sends `numbers` in two buffers, split inside of a number. Returns the discarded pages among those from `FIRST`
    /// on.
    fn discarded_by(queue: u32, numbers: &[u32]) -> Vec<u32> {
        let mut driver = Driver::running(Balloon::new(0), VERSION_1);
        let address = |page: u32| u64::from(page) << PAGE_SHIFT;
        driver.put(address(FIRST), &[7; (PAGES as usize) << PAGE_SHIFT]);
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        driver.put(BUFFERS, &bytes);
        driver.request(queue, &[(BUFFERS, 6), (BUFFERS + 6, u32::try_from(bytes.len() - 6).unwrap())], &[]);
        assert_eq!(driver.used(queue), [(0, 0)]);
        (FIRST..FIRST + PAGES).filter(|page| driver.get(address(*page), 1) == [0]).collect()
    }

    #[test]
    fn inflating_discards_ascending_descending_and_single_pages() {
        let numbers = [0xc1, 0xc2, 0xc6, 0xc5, 0xc8, u32::MAX, 0x100, 0xcf];
        assert_eq!(discarded_by(INFLATE, &numbers), [0xc1, 0xc2, 0xc5, 0xc6, 0xc8, 0xcf]);
        assert!(discarded_by(INFLATE + 1, &numbers).is_empty(), "deflating discards nothing");
    }

    #[test]
    fn page_numbers_beyond_the_maximum_are_ignored() {
        let mut numbers = [u32::MAX; MAX_PAGES + 1];
        (numbers[MAX_PAGES - 1], numbers[MAX_PAGES]) = (0xc3, 0xc4);
        assert_eq!(discarded_by(INFLATE, &numbers), [0xc3]);
    }
}

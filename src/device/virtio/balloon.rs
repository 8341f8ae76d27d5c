//! Memory balloon (virtio 1.3, 5.5): RAM that the guest does not need goes back to the host, until the guest touches it again.
//!
//! It does so in two ways. What the balloon holds is the guest's loss: the host asks for a size, the guest inflates. Free page
//! reporting costs the guest nothing: it names pages that happen to be free.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{Buffers, Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::Events;
use crate::memory;

// The queues. Reporting's is number 4 of the specification; those before it that are not offered do not count.
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const REPORTING: u32 = 2;

// Feature bits (linux/virtio_balloon.h).
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_REPORTING: u64 = 1 << 5;

/// The balloon counts pages of 4 KiB, whatever the guest's are.
const PAGE_SHIFT: u64 = 12;
/// RegisterPage numbers taken at once.
const BATCH: usize = 256;
/// The most page numbers taken from one request; Linux sends 256.
const MOST: usize = 1 << 10;
/// Offset of `actual` in the configuration space.
const ACTUAL: usize = 4;

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    chain: Chain,
    config: [u8; 8], // num_pages, actual
}

impl Balloon {
    /// A balloon that the guest shall inflate to `size` bytes.
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
        while queue.pop(&mut self.chain) {
            match events.data() {
                INFLATE => inflate(queue, &mut self.chain.readable),
                REPORTING => report(queue, &self.chain.writable),
                DEFLATE => {} // the pages come back when they are touched
                _ => {}
            }
            queue.push(self.chain.head, 0);
        }
    }
}

/// Gives the pages back that `numbers` names. Neighbours go together, as the call costs more than the page.
fn inflate(queue: &Virtqueue, numbers: &mut Buffers) {
    numbers.truncate(MOST * size_of::<u32>());
    let memory = queue.memory();
    let mut batch = [0; BATCH * size_of::<u32>()];
    let mut run = 0..0;
    loop {
        let len = numbers.read(memory, &mut batch);
        let (words, _) = batch[..len].as_chunks();
        for page in words.iter().map(|word| u64::from(u32::from_le_bytes(*word))) {
            match page {
                _ if page == run.end => run.end += 1,
                _ if page + 1 == run.start => run.start -= 1, // Linux's come in falling order as often as not
                _ => {
                    give_back(memory, run);
                    run = page..page + 1;
                }
            }
        }
        if words.is_empty() {
            return give_back(memory, run);
        }
    }
}

fn give_back(memory: &GuestMemoryMmap, pages: std::ops::Range<u64>) {
    if !pages.is_empty() {
        let len = (pages.end - pages.start) << PAGE_SHIFT; // page numbers have 32 bits
        memory::discard(memory, GuestAddress(pages.start << PAGE_SHIFT), len as usize);
    }
}

/// Gives the free pages back that the driver lends as buffers.
fn report(queue: &Virtqueue, pages: &Buffers) {
    pages.iter().for_each(|buffer| memory::discard(queue.memory(), buffer.address, buffer.len));
}

//! Entropy (virtio 1.3, 5.4): the guest's buffers are filled by the host's random number generator.

use super::{Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::Events;

/// The most bytes one request gets; the driver asks again for more.
const MOST: usize = 4 << 10;

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    chain: Chain,
    bytes: Box<[u8; MOST]>,
}

impl Rng {
    /// A device that asks the host's kernel, by getrandom(2).
    pub fn new() -> Self {
        Self { chain: Chain::default(), bytes: Box::new([0; MOST]) }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[64];

    fn synchronous(&self) -> bool {
        true // Linux asks for 64 bytes at a time, which come in a microsecond
    }

    fn process_inline(&mut self, queues: &mut [Virtqueue]) {
        let Some(queue) = queues.first_mut() else { return };
        while queue.pop(&mut self.chain) {
            let buffers = &mut self.chain.writable;
            let bytes = &mut self.bytes[..buffers.len().min(MOST)];
            let written = match getrandom::fill(bytes) {
                Ok(()) => buffers.write(queue.memory(), bytes),
                Err(_) => 0,
            };
            queue.push(self.chain.head, written);
        }
    }

    fn process(&mut self, _events: Events, ctx: &mut DeviceContext<'_, '_>) {
        self.process_inline(ctx.queues);
    }
}

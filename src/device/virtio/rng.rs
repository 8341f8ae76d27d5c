//! Entropy device (virtio 1.3, 5.4): fills the guest's buffers with random bytes of the host's kernel.

use super::{Chain, VirtioDevice, Virtqueue};

/// Maximum number of bytes per request. A driver that needs more sends another request.
const MAX_BYTES: usize = 4 << 10;

/// An entropy device, which calls getrandom(2).
#[derive(Debug)]
pub struct Rng {
    chain: Chain,
    bytes: Box<[u8; MAX_BYTES]>,
}

impl Default for Rng {
    fn default() -> Self {
        Self { chain: Chain::default(), bytes: Box::new([0; MAX_BYTES]) }
    }
}

impl VirtioDevice for Rng {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[64];

    fn synchronous(&self) -> bool {
        true // Linux requests 64 bytes at a time, which take a microsecond
    }

    fn process_inline(&mut self, queues: &mut [Virtqueue]) {
        let Some(queue) = queues.first_mut() else { return };
        while queue.pop(&mut self.chain) {
            let buffers = &mut self.chain.writable;
            let bytes = &mut self.bytes[..buffers.len().min(MAX_BYTES)];
            let written = match getrandom::fill(bytes) {
                Ok(()) => buffers.write(queue.memory(), bytes),
                Err(_) => 0,
            };
            queue.push(self.chain.head, written);
        }
    }
}

//! Socket device (virtio 1.3, 5.10): streams between programs in the guest and Unix sockets on the host.
//!
//! ```text
//!   host program ── connects to PATH, writes "CONNECT 1024\n", reads "OK 1073741824\n" ──▶ guest program, port 1024
//!   guest program ── connects to CID 2, port 52 ──▶ host program that listens at PATH_52
//! ```
//!
//! This is the protocol of Firecracker, so existing host programs work.

mod connection;
mod listener;
mod muxer;
mod packet;

pub use listener::{ListenError, UdsListener};

use super::{BACKEND, Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::{EventOps, Events};
use muxer::Muxer;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    config: [u8; 8], // guest_cid
    muxer: Muxer,
    chain: Chain,
    /// Whether the connections belong to a driver that has reset the device.
    stale: bool,
}

impl Vsock {
    /// A device for the guest with context identifier `cid`. Host programs connect to `listener`.
    pub fn new(cid: u32, listener: UdsListener) -> Self {
        let (config, muxer) = (u64::from(cid).to_le_bytes(), Muxer::new(cid, listener));
        Self { config, muxer, chain: Chain::default(), stale: false }
    }

    /// Sends packets to the guest and handles its packets until neither is possible. This ends, because each queue has
    /// a budget per turn.
    fn process_queues(&mut self, rx: &mut Virtqueue, tx: &mut Virtqueue, ops: &mut EventOps) {
        self.muxer.send_packets(rx, ops);
        while self.muxer.accepts_packets() && tx.pop(&mut self.chain) {
            self.muxer.on_packet(tx.memory(), &self.chain.readable, ops);
            tx.push(self.chain.head, 0);
            self.muxer.send_packets(rx, ops);
        }
    }
}

impl VirtioDevice for Vsock {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
    const QUEUES: &'static [u16] = &[256, 256, 16]; // rx, tx, and event, which has no events to report

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.muxer.init(ops);
    }

    fn reset(&mut self) {
        // The event loop closes the sockets later: `EventOps` is needed to remove their registrations.
        self.muxer.shut_down_all();
        self.stale = true;
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        if std::mem::take(&mut self.stale) {
            self.muxer.clear(ctx.ops);
        }
        if events.data() >= BACKEND {
            self.muxer.on_event(events, !ctx.queues.is_empty(), ctx.ops);
        } else {
            self.muxer.listen(true, ctx.ops); // the guest is active and may have closed connections
        }
        if let [rx, tx, _] = &mut *ctx.queues {
            self.process_queues(rx, tx, ctx.ops);
        }
    }
}

#[cfg(test)]
mod tests;

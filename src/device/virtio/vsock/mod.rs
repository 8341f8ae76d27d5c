//! Sockets between guest and host (virtio 1.3, 5.10), without a network: streams, each with a Unix socket at its host end.
//!
//! ```text
//!   host program ── connects to PATH, says "CONNECT 1024\n", hears "OK 1073741824\n" ──▶ program in the guest, port 1024
//!   program in the guest ── connects to CID 2, port 52 ──▶ host program that listens at PATH_52
//! ```
//!
//! That is Firecracker's convention, so that programs made for it work.

mod connection;
mod listener;
mod muxer;
mod packet;

pub use listener::{ListenError, UdsListener};

use super::{BACKEND, Chain, DeviceContext, ResetState, VirtioDevice, Virtqueue};
use crate::event::{EventOps, Events};
use muxer::Muxer;

// The queues. The device has no events to tell of, so the third is the driver's alone.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    config: [u8; 8],
    muxer: Muxer,
    chain: Chain,
    /// Whether packets of the guest were left because answers to others wait for the guest.
    behind: bool,
    /// Whether there are connections of a driver that is gone.
    stale: bool,
}

impl Vsock {
    /// A device for the guest whose context identifier is `cid`, which host programs reach by way of `listener`.
    pub fn new(cid: u32, listener: UdsListener) -> Self {
        let muxer = Muxer::new(cid, listener);
        Self { config: u64::from(cid).to_le_bytes(), muxer, chain: Chain::default(), behind: false, stale: false }
    }

    fn transmit(&mut self, queue: &mut Virtqueue, ops: &mut EventOps) {
        while self.muxer.has_room() {
            if !queue.pop(&mut self.chain) {
                self.behind = false;
                return;
            }
            self.muxer.on_packet(queue.memory(), &self.chain.readable, ops);
            queue.push(self.chain.head, 0);
        }
        self.behind = true;
    }
}

impl VirtioDevice for Vsock {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
    const QUEUES: &'static [u16] = &[256, 256, 16];

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.muxer.init(ops);
    }

    fn reset(&mut self) -> ResetState {
        // The event loop closes the sockets, as only it can tell the kernel that it does not wait for them any more.
        self.muxer.cut();
        self.stale = true;
        self.behind = false;
        ResetState::Done
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        if std::mem::take(&mut self.stale) {
            self.muxer.clear(ctx.ops);
        }
        if let [receive, transmit, _] = &mut *ctx.queues {
            match events.data() {
                RECEIVE => self.muxer.look_again(),
                TRANSMIT => self.transmit(transmit, ctx.ops),
                data if data >= BACKEND => self.muxer.on_event(events, ctx.ops),
                _ => {}
            }
            self.muxer.serve(receive, ctx.ops);
            if self.behind {
                self.transmit(transmit, ctx.ops);
                self.muxer.serve(receive, ctx.ops);
            }
            if self.behind && self.muxer.has_room() {
                let _ = transmit.doorbell().write(1); // the rest is for the next turn
            }
        } else if events.data() >= BACKEND {
            self.muxer.on_event_without_driver(events, ctx.ops);
        }
        self.muxer.listen(ctx.ops);
    }
}

#[cfg(test)]
mod tests;

//! Network interface (virtio 1.3, 5.1): Ethernet frames between the guest and a tap interface of the host.
//!
//! Frames go straight between the guest's buffers and the tap, header and all, since the tap has the same header. It says what
//! is left to do for a frame: checksums, or the cutting of a long TCP segment. So a frame may have 64 KiB.
//!
//! A tap cannot be asked how long its next frame is. Frames are read into as many buffers as the longest one takes, and what is
//! too long for those there are lands in memory of our own, until the guest has more buffers.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::GuestMemoryMmap;

use super::{BACKEND, Chain, DeviceContext, ResetState, VirtioDevice, Virtqueue};
use crate::event::{EventOps, EventSet, Events};
use crate::sys::vectored_io::{IOV_MAX, IoVecs};
use tap::{HEADER, Tap};

pub mod tap;

// The queues.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const QUEUE_SIZE: u16 = 256;

/// The longest frame: what an IP packet can have, and an Ethernet header with a VLAN tag, behind our header.
const LONGEST: usize = HEADER + 18 + (64 << 10);
/// The shortest: an Ethernet header.
const SHORTEST: usize = HEADER + 14;
/// How much room is kept at hand for a frame if long ones are not expected.
const USUAL: usize = 4 << 10;
/// Where the header says how many chains the frame takes.
const NUM_BUFFERS: usize = 10;
/// Frames read in one turn of the event loop before others have theirs.
const FRAMES: usize = 256;
/// Where the configuration space has the status; the MAC address is before it, and behind it the MTU after two bytes.
const LINK: usize = 6;
const MTU: usize = 10;

/// A network interface.
pub struct Net {
    tap: Tap,
    config: [u8; 12],
    features: u64,
    vectors: IoVecs,
    incoming: Incoming,
    outgoing: Outgoing,
    interest: EventSet, // what the event loop has been asked for
    gone: bool,         // the tap was deleted
    on_gone: Option<Box<dyn FnOnce() + Send>>,
    dropped: Arc<AtomicU64>,
}

/// The way from the tap to the guest.
#[derive(Debug)]
struct Incoming {
    /// Chains that await a frame.
    held: VecDeque<Chain>,
    /// Chains without content.
    spare: Vec<Chain>,
    /// Bytes that those held have room for.
    room: usize,
    /// Pieces that they consist of.
    pieces: usize,
    /// What the chains held at the time did not have room for: `spilled` bytes, to go into the chains from number `full` on.
    overflow: Box<[u8]>,
    spilled: usize,
    full: usize,
    /// How long the frame is of which a part was spilled.
    length: usize,
    /// Whether there are chains, so that frames are wanted.
    ready: bool,
}

/// The way from the guest to the tap.
#[derive(Debug, Default)]
struct Outgoing {
    chain: Chain,
    /// Whether `chain` has a frame that the tap has no room for yet.
    waits: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("tap", &self.tap).field("gone", &self.gone).finish_non_exhaustive()
    }
}

impl Net {
    /// An interface with this MAC address whose frames go to `tap`.
    /// Calls `on_gone` if the tap is deleted.
    pub fn new(tap: Tap, mac: [u8; 6], on_gone: Box<dyn FnOnce() + Send>) -> Self {
        let mut config = [0; 12];
        config[..LINK].copy_from_slice(&mac);
        config[LINK..LINK + 2].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[MTU..].copy_from_slice(&tap.mtu.unwrap_or(0).to_le_bytes());
        let incoming = Incoming {
            held: VecDeque::with_capacity(QUEUE_SIZE.into()),
            spare: vec![Chain::default(); QUEUE_SIZE.into()],
            room: 0,
            pieces: 0,
            overflow: vec![0; LONGEST].into(),
            spilled: 0,
            full: 0,
            length: 0,
            ready: false,
        };
        Self {
            tap,
            config,
            features: 0,
            vectors: IoVecs::new(),
            incoming,
            outgoing: Outgoing::default(),
            interest: EventSet::empty(),
            gone: false,
            on_gone: Some(on_gone),
            dropped: Arc::default(),
        }
    }

    /// How many frames did not arrive, because they make no sense, or the guest's buffers are too small, or the tap refused them.
    pub fn dropped(&self) -> &Arc<AtomicU64> {
        &self.dropped
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Moves frames from the tap to the guest.
    fn receive(&mut self, queue: &mut Virtqueue) {
        let mergeable = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let long = self.has(VIRTIO_NET_F_GUEST_TSO4) || self.has(VIRTIO_NET_F_GUEST_TSO6);
        let incoming = &mut self.incoming;
        for _ in 0..FRAMES {
            let wanted = match mergeable {
                false => 1, // any chain is as good as another
                true if incoming.spilled > 0 => incoming.length,
                true if long => LONGEST,
                true => USUAL,
            };
            incoming.ready = !self.gone && incoming.hold(queue, wanted);
            if !incoming.ready {
                return;
            }
            if incoming.spilled > 0 {
                if incoming.room >= incoming.length {
                    incoming.pour(queue.memory());
                    incoming.deliver(queue, incoming.length);
                } else if incoming.is_full(queue) {
                    incoming.spilled = 0; // no such driver, but then it would wait for ever
                    count(&self.dropped);
                } else {
                    incoming.ready = false;
                    return;
                }
                continue;
            }
            let pieces = incoming.held.iter().flat_map(|chain| chain.writable.iter().copied());
            match self.vectors.read(self.tap.as_fd(), queue.memory(), pieces, &mut incoming.overflow) {
                Ok(len) if (HEADER..=incoming.room).contains(&len) => incoming.deliver(queue, len),
                Ok(len) if mergeable && (incoming.room..=LONGEST).contains(&len) => {
                    incoming.spilled = len - incoming.room;
                    incoming.full = incoming.held.len();
                    incoming.length = len;
                }
                Ok(_) => count(&self.dropped),
                Err(_) => return, // there is no frame, or no tap any more, which is an event of its own
            }
        }
    }

    /// Moves frames from the guest to the tap.
    fn transmit(&mut self, queue: &mut Virtqueue) {
        let outgoing = &mut self.outgoing;
        while outgoing.waits || queue.pop(&mut outgoing.chain) {
            let mut header = [0; HEADER];
            let frame = &outgoing.chain.readable;
            let sensible = (SHORTEST..=LONGEST).contains(&frame.len())
                && frame.read_at(queue.memory(), 0, &mut header) == HEADER
                && is_negotiated(&header, self.features);
            let sent = match sensible && !self.gone {
                true => self.vectors.write(self.tap.as_fd(), queue.memory(), frame.iter().copied()),
                false => Err(io::ErrorKind::InvalidData.into()),
            };
            outgoing.waits = matches!(&sent, Err(error) if is_transient(error));
            if outgoing.waits {
                return;
            }
            if sent.is_err() {
                count(&self.dropped);
            }
            queue.push(outgoing.chain.head, 0);
        }
    }

    /// Asks the event loop for what can be used.
    fn watch(&mut self, ops: &mut EventOps) {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, self.incoming.ready);
        interest.set(EventSet::OUT, self.outgoing.waits);
        if interest != self.interest && !self.gone {
            self.interest = interest;
            let _ = ops.modify(Events::with_data(&self.tap, BACKEND, interest)); // it is registered, see `init`
        }
    }

    /// The tap was deleted. The guest sees its cable pulled; what it sends is dropped.
    fn unplug(&mut self, ctx: &mut DeviceContext<'_, '_>) {
        let _ = ctx.ops.remove(Events::empty(&self.tap)); // it is registered, see `init`
        self.gone = true;
        if let Some(call) = self.on_gone.take() {
            call();
        }
        self.config[LINK] = 0;
        ctx.config_changed = true;
    }
}

impl VirtioDevice for Net {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE, QUEUE_SIZE];

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN;
        let from_tap = OFFLOADS.iter().filter(|(_, flag)| self.tap.offloads & flag != 0);
        features |= from_tap.fold(0, |features, (feature, _)| features | 1 << feature);
        features | u64::from(self.tap.mtu.is_some()) << VIRTIO_NET_F_MTU
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        // A descriptor that was just opened can be watched unless the kernel is out of memory; then the cable is not plugged in.
        self.gone = ops.add(Events::with_data(&self.tap, BACKEND, self.interest)).is_err();
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        let wanted = OFFLOADS.iter().filter(|(feature, _)| self.has(*feature));
        let mut flags = wanted.fold(0, |flags, (_, flag)| flags | flag);
        if flags & libc::TUN_F_CSUM == 0 {
            flags = 0; // the others make no sense without (virtio 1.3, 5.1.3.1)
        }
        if flags & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) == 0 {
            flags &= !libc::TUN_F_TSO_ECN;
        }
        let _ = self.tap.set_offloads(flags); // it could when it was opened; if not now, it is gone
    }

    fn reset(&mut self) -> ResetState {
        self.incoming.forget();
        self.outgoing.waits = false;
        self.features = 0;
        let _ = self.tap.set_offloads(0); // for the next driver; if not now, it is gone
        ResetState::Done
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        if events.data() == BACKEND && events.event_set().intersects(EventSet::ERROR | EventSet::HANG_UP) && !self.gone
        {
            self.unplug(ctx);
        }
        if let [receive, transmit] = &mut *ctx.queues {
            match events.data() {
                RECEIVE => self.receive(receive),
                TRANSMIT if !self.outgoing.waits => self.transmit(transmit),
                BACKEND => {
                    if self.outgoing.waits {
                        self.transmit(transmit);
                    }
                    self.receive(receive);
                }
                _ => {}
            }
        }
        self.watch(ctx.ops);
    }
}

impl Incoming {
    /// Takes chains from the guest until there is room for `wanted` bytes, or there are no more. Returns whether there are any.
    fn hold(&mut self, queue: &mut Virtqueue, wanted: usize) -> bool {
        while self.room < wanted && !self.is_full(queue) {
            let Some(chain) = self.spare.last_mut() else { break };
            if !queue.pop(chain) {
                break;
            }
            if chain.writable.len() < HEADER {
                queue.fail("a receive buffer is shorter than a frame's header");
                return false;
            }
            self.room += chain.writable.len();
            self.pieces += chain.writable.iter().len();
            self.held.extend(self.spare.pop());
        }
        queue.ready() && !self.held.is_empty()
    }

    /// Whether no further chain can be taken: a chain has as many pieces as its queue has entries, at most.
    fn is_full(&self, queue: &Virtqueue) -> bool {
        self.spare.is_empty() || self.pieces + usize::from(queue.size()) >= IOV_MAX
    }

    /// Puts what was spilled into chains that were not there yet.
    fn pour(&mut self, memory: &GuestMemoryMmap) {
        let mut rest = &self.overflow[..self.spilled];
        for chain in self.held.range(self.full..) {
            rest = &rest[chain.writable.write_at(memory, 0, rest)..];
        }
        self.spilled = 0;
    }

    /// Gives the guest a frame of `len` bytes that is in the first chains.
    fn deliver(&mut self, queue: &mut Virtqueue, len: usize) {
        let mut left = len;
        let mut count = 0u16;
        for chain in &self.held {
            count += 1; // there are QUEUE_SIZE at most
            left = left.saturating_sub(chain.writable.len());
            if left == 0 {
                break;
            }
        }
        if let Some(first) = self.held.front() {
            first.writable.write_at(queue.memory(), NUM_BUFFERS, &count.to_le_bytes());
        }
        let mut left = len;
        // Together, as a driver that finds one chain of a frame expects the others.
        queue.add_used_batch(self.held.iter().take(count.into()).map(|chain| {
            let part = chain.writable.len().min(left);
            left -= part;
            (chain.head, part)
        }));
        for chain in self.held.drain(..usize::from(count)) {
            self.room -= chain.writable.len();
            self.pieces -= chain.writable.iter().len();
            self.spare.push(chain);
        }
    }

    fn forget(&mut self) {
        self.spare.extend(self.held.drain(..));
        (self.room, self.pieces, self.spilled, self.ready) = (0, 0, 0, false);
    }
}

/// What the driver can take off the tap's hands, as its feature and as the tap's flag.
const OFFLOADS: [(u32, u32); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

/// Whether the header of a frame from the guest asks only for what was negotiated (virtio 1.3, 5.1.6.2). Offsets and lengths in
/// it are the tap's to check, which it does.
fn is_negotiated(header: &[u8; HEADER], features: u64) -> bool {
    let has = |feature: u32| features & 1 << feature != 0;
    let (flags, gso) = (u32::from(header[0]), u32::from(header[1]));
    let segments = match gso & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    segments
        && (gso & VIRTIO_NET_HDR_GSO_ECN == 0 || has(VIRTIO_NET_F_HOST_ECN))
        && (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || has(VIRTIO_NET_F_CSUM))
}

fn count(dropped: &AtomicU64) {
    dropped.fetch_add(1, Ordering::Relaxed);
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;

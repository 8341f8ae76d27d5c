//! Network interface (virtio 1.3, 5.1): Ethernet frames between the guest and a tap interface of the host.
//!
//! Frames are transferred directly between the guest's buffers and the tap, together with their header, which has the
//! same format on both sides. The header states the work left to the receiver: checksums or TCP segmentation. So a
//! frame can have 64 KiB.
//!
//! A tap does not report the length of its next frame. A frame is read into the posted chains and, if they are too
//! short, into an overflow buffer. From there it is copied to the chains that the driver posts next.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_net::*;
use vm_memory::GuestMemoryMmap;

use super::{BACKEND, Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::{EventOps, EventSet, Events};
use crate::sys::os_error::is_transient;
use crate::sys::tap::set_offloads;
use crate::sys::vectored_io::{Direction, IOV_MAX, IoVecs};
use tap::Tap;

pub mod tap;

// The queues.
const RX: u32 = 0;
const TX: u32 = 1;
const QUEUE_SIZE: u16 = 256;

/// Length of the header in front of each frame.
pub const HEADER_LEN: usize = size_of::<virtio_net_hdr_v1>();
const NUM_BUFFERS: usize = offset_of!(virtio_net_hdr_v1, num_buffers);

/// Maximum length of a frame: the header, an Ethernet header with a VLAN tag, and an IP packet.
const MAX_FRAME: usize = HEADER_LEN + 18 + (64 << 10);
/// Minimum length of a frame: the header and an Ethernet header.
const MIN_FRAME: usize = HEADER_LEN + 14;
/// Buffer space posted for a frame if the tap does not leave segmentation to the guest.
const DEFAULT_FRAME: usize = 4 << 10;
/// Maximum number of frames received per turn of the event loop.
const MAX_FRAMES_PER_TURN: usize = 256;

// Offsets in the configuration space, which ends with the MTU.
const CONFIG_STATUS: usize = offset_of!(virtio_net_config, status);
const CONFIG_MTU: usize = offset_of!(virtio_net_config, mtu);

/// A network interface.
pub struct Net {
    tap: Tap,
    config: [u8; CONFIG_MTU + 2],
    features: u64,
    iovecs: IoVecs,
    rx: Receiver,
    tx_chain: Chain,
    tx_blocked: bool, // `tx_chain` holds a frame that the tap has not accepted yet
    interest: EventSet,
    tap_deleted: bool,
    on_tap_deleted: Box<dyn Fn() + Send>,
    dropped: Arc<AtomicU64>,
}

/// The receive path, from the tap to the guest.
#[derive(Debug, Default)]
struct Receiver {
    /// Chains from the driver, for the next frame.
    posted: VecDeque<Chain>,
    /// Number of bytes in the posted chains.
    capacity: usize,
    /// Number of buffers in the posted chains.
    buffers: usize,
    /// Chains to reuse.
    free: Vec<Chain>,
    overflow: Box<[u8]>,
    /// A frame that has filled all posted chains and partly is in `overflow`.
    partial: Option<PartialFrame>,
    /// Whether a frame can be read from the tap.
    ready: bool,
}

#[derive(Clone, Copy, Debug)]
struct PartialFrame {
    len: usize,
    filled_chains: usize,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("tap", &self.tap).field("tap_deleted", &self.tap_deleted).finish_non_exhaustive()
    }
}

impl Net {
    /// An interface with MAC address `mac` whose frames go to `tap`. Calls `on_tap_deleted` when the tap is deleted.
    pub fn new(tap: Tap, mac: [u8; 6], on_tap_deleted: Box<dyn Fn() + Send>) -> Self {
        let mut config = [0; CONFIG_MTU + 2];
        config[..CONFIG_STATUS].copy_from_slice(&mac);
        config[CONFIG_STATUS..CONFIG_STATUS + 2].copy_from_slice(&VIRTIO_NET_S_LINK_UP.to_le_bytes()[..2]);
        config[CONFIG_MTU..].copy_from_slice(&tap.mtu.unwrap_or(0).to_le_bytes());
        Self {
            tap,
            config,
            features: 0,
            iovecs: IoVecs::default(),
            rx: Receiver::new(),
            tx_chain: Chain::default(),
            tx_blocked: false,
            interest: EventSet::empty(),
            tap_deleted: false,
            on_tap_deleted,
            dropped: Arc::default(),
        }
    }

    /// The number of dropped frames: they are invalid, the guest's buffers are too small, or the tap has rejected them.
    pub fn dropped(&self) -> &Arc<AtomicU64> {
        &self.dropped
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Moves frames from the tap to the guest.
    fn receive(&mut self, queue: &mut Virtqueue) {
        let mergeable = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let segments = self.has(VIRTIO_NET_F_GUEST_TSO4) || self.has(VIRTIO_NET_F_GUEST_TSO6);
        let rx = &mut self.rx;
        for _ in 0..MAX_FRAMES_PER_TURN {
            let wanted = match rx.partial {
                _ if !mergeable => 1, // a frame uses one chain, whatever its length is
                Some(partial) => partial.len,
                None if segments => MAX_FRAME,
                None => DEFAULT_FRAME,
            };
            rx.ready = !self.tap_deleted && rx.post(queue, wanted);
            if !rx.ready {
                return;
            }
            if let Some(partial) = rx.partial {
                if rx.capacity >= partial.len {
                    rx.copy_overflow(queue.memory(), partial);
                    rx.deliver(queue, partial.len);
                } else if rx.is_full(queue) {
                    increment(&self.dropped); // otherwise a driver with so small buffers would never receive again
                } else {
                    rx.ready = false;
                    return;
                }
                rx.partial = None;
                continue;
            }
            let buffers = rx.posted.iter().flat_map(|chain| chain.writable.iter().copied());
            match self.iovecs.read(self.tap.file.as_fd(), queue.memory(), buffers, &mut rx.overflow) {
                Ok(len) if (HEADER_LEN..=rx.capacity).contains(&len) => rx.deliver(queue, len),
                Ok(len) if mergeable && (rx.capacity..=MAX_FRAME).contains(&len) => {
                    rx.partial = Some(PartialFrame { len, filled_chains: rx.posted.len() });
                }
                Ok(_) => increment(&self.dropped),
                Err(_) => return, // no frame, or the tap was deleted, which is reported as an event
            }
        }
    }

    /// Moves frames from the guest to the tap.
    fn transmit(&mut self, queue: &mut Virtqueue) {
        while self.tx_blocked || queue.pop(&mut self.tx_chain) {
            let mut header = [0; HEADER_LEN];
            let frame = &self.tx_chain.readable;
            let valid = (MIN_FRAME..=MAX_FRAME).contains(&frame.len())
                && frame.read_at(queue.memory(), 0, &mut header) == HEADER_LEN
                && self.is_negotiated(&header);
            let (tap, buffers) = (self.tap.file.as_fd(), frame.iter().copied());
            let sent = match valid && !self.tap_deleted {
                true => self.iovecs.transfer(tap, Direction::Write, queue.memory(), buffers, None, 0),
                false => Err(io::ErrorKind::InvalidData.into()),
            };
            self.tx_blocked = sent.as_ref().is_err_and(is_transient);
            if self.tx_blocked {
                return;
            }
            if sent.is_err() {
                increment(&self.dropped);
            }
            queue.push(self.tx_chain.head, 0);
        }
    }

    /// Whether the header of a frame from the guest uses negotiated features only (virtio 1.3, 5.1.6.2). The tap checks
    /// the offsets and lengths in it.
    fn is_negotiated(&self, header: &[u8; HEADER_LEN]) -> bool {
        let (flags, gso_type) = (u32::from(header[0]), u32::from(header[1]));
        let segmentation = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => true,
            VIRTIO_NET_HDR_GSO_TCPV4 => self.has(VIRTIO_NET_F_HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => self.has(VIRTIO_NET_F_HOST_TSO6),
            _ => false,
        };
        segmentation
            && (gso_type & VIRTIO_NET_HDR_GSO_ECN == 0 || self.has(VIRTIO_NET_F_HOST_ECN))
            && (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || self.has(VIRTIO_NET_F_CSUM))
    }

    /// Changes the registered interest to what the device waits for. The tap is level-triggered, so the event loop
    /// would spin if the interest remained while no buffers are posted.
    fn update_interest(&mut self, ops: &mut EventOps) {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, self.rx.ready);
        interest.set(EventSet::OUT, self.tx_blocked);
        if interest != self.interest && !self.tap_deleted {
            self.interest = interest;
            let _ = ops.modify(Events::with_data(&self.tap.file, BACKEND, interest)); // registered by `init`
        }
    }

    /// Reports to the guest that the link is down, because the tap was deleted. Drops its frames from now on.
    fn link_down(&mut self, ctx: &mut DeviceContext<'_, '_>) {
        let _ = ctx.ops.remove(Events::empty(&self.tap.file)); // registered by `init`
        self.tap_deleted = true;
        (self.on_tap_deleted)();
        self.config[CONFIG_STATUS] = 0;
        ctx.config_changed = true;
    }
}

impl VirtioDevice for Net {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE, QUEUE_SIZE];

    fn features(&self) -> u64 {
        let basic =
            1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_CSUM;
        let segmentation = 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6 | 1 << VIRTIO_NET_F_HOST_ECN;
        let mtu = u64::from(self.tap.mtu.is_some()) << VIRTIO_NET_F_MTU;
        let offloads = if self.tap.offloads { &OFFLOADS[..] } else { &[] };
        offloads.iter().fold(basic | segmentation | mtu, |features, (feature, _)| features | 1 << feature)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        // A new descriptor can be registered unless the kernel is out of memory. Then the interface transfers nothing.
        self.tap_deleted = ops.add(Events::with_data(&self.tap.file, BACKEND, self.interest)).is_err();
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        let negotiated = OFFLOADS.iter().filter(|(feature, _)| self.has(*feature));
        let mut flags = negotiated.fold(0, |flags, (_, flag)| flags | flag);
        if flags & libc::TUN_F_CSUM == 0 {
            flags = 0; // the other offloads require it (virtio 1.3, 5.1.3.1)
        }
        if flags & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) == 0 {
            flags &= !libc::TUN_F_TSO_ECN;
        }
        // Succeeded in `Tap::open`, so this fails only if the tap was deleted.
        let _ = set_offloads(&self.tap.file, flags);
    }

    fn reset(&mut self) {
        self.rx = Receiver::new();
        self.tx_blocked = false;
        self.features = 0;
        let _ = set_offloads(&self.tap.file, 0); // as above
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        let from_tap = events.data() == BACKEND;
        if from_tap && events.event_set().intersects(EventSet::ERROR | EventSet::HANG_UP) && !self.tap_deleted {
            self.link_down(ctx);
        }
        if let [rx, tx] = &mut *ctx.queues {
            if events.data() == TX && !self.tx_blocked || from_tap && self.tx_blocked {
                self.transmit(tx);
            }
            if events.data() == RX || from_tap {
                self.receive(rx);
            }
        }
        self.update_interest(ctx.ops);
    }
}

impl Receiver {
    fn new() -> Self {
        let free = vec![Chain::default(); QUEUE_SIZE.into()];
        Self { free, overflow: vec![0; MAX_FRAME].into(), ..Self::default() }
    }

    /// Takes chains from the queue until `capacity` is at least `wanted` bytes. Returns whether any chain is posted.
    fn post(&mut self, queue: &mut Virtqueue, wanted: usize) -> bool {
        while self.capacity < wanted && !self.is_full(queue) {
            let Some(chain) = self.free.last_mut() else { break };
            if !queue.pop(chain) {
                break;
            }
            if chain.writable.len() < HEADER_LEN {
                queue.fail("a receive buffer is shorter than the header of a frame");
                return false;
            }
            self.capacity += chain.writable.len();
            self.buffers += chain.writable.iter().len();
            self.posted.extend(self.free.pop());
        }
        queue.ready() && !self.posted.is_empty()
    }

    /// Whether another chain could exceed the number of buffers in one system call. A chain has at most as many buffers
    /// as its queue has entries.
    fn is_full(&self, queue: &Virtqueue) -> bool {
        self.free.is_empty() || self.buffers + usize::from(queue.size()) >= IOV_MAX
    }

    /// Copies the overflow of a frame to the chains that were posted after the frame was read.
    fn copy_overflow(&self, memory: &GuestMemoryMmap, partial: PartialFrame) {
        let filled: usize = self.posted.range(..partial.filled_chains).map(|chain| chain.writable.len()).sum();
        let mut rest = &self.overflow[..partial.len - filled];
        for chain in self.posted.range(partial.filled_chains..) {
            rest = &rest[chain.writable.write_at(memory, 0, rest)..];
        }
    }

    /// Returns the first posted chains, which contain a frame of `len` bytes, to the driver.
    fn deliver(&mut self, queue: &mut Virtqueue, len: usize) {
        let ends = self.posted.iter().scan(0, |end, chain| {
            *end += chain.writable.len();
            Some(*end)
        });
        let count = 1 + ends.take_while(|end| *end < len).count(); // at most QUEUE_SIZE
        if let Some(first) = self.posted.front() {
            first.writable.write_at(queue.memory(), NUM_BUFFERS, &count.to_le_bytes()[..2]);
        }
        let mut left = len;
        // In one batch, because a driver that finds the first chain of a frame expects the others too.
        queue.push_all(self.posted.iter().take(count).map(|chain| {
            let part = chain.writable.len().min(left);
            left -= part;
            (chain.head, part)
        }));
        for chain in self.posted.drain(..count) {
            self.capacity -= chain.writable.len();
            self.buffers -= chain.writable.iter().len();
            self.free.push(chain);
        }
    }
}

/// Work that the driver can do on received frames: its feature and the flag of the tap.
const OFFLOADS: [(u32, u32); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

fn increment(dropped: &AtomicU64) {
    dropped.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;

//! A disk (virtio 1.3, 5.2): requests that read, write, flush, discard and zero a file on the host.
//!
//! ```text
//!   Virtqueue ──▶ parse ─┬─▶ done at once: what is in memory anyway
//!                       ├─▶ Ring: reads, writes, flushes, many at a time ─┐ eventfd
//!                       └─▶ Worker: the rest, one after the other ────────┤
//!   Virtqueue ◀── status ◀────────────────────────────────────────────────┘
//! ```
//!
//! Every request that was taken and is not answered has a slot. There are as many slots as the queue has entries, so
//! a driver that gives the same entries again and again waits until some are free.

mod config;
mod disk;
mod request;
#[cfg(test)]
mod tests;
mod worker;

pub use disk::{Disk, DiskError};

use std::fmt;
use std::io;
use std::mem::take;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_ID_BYTES};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BACKEND, Buffers, Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::{EventOps, EventSet, Events};
use crate::sys::uring::Uring;
use crate::sys::vectored_io::Direction;
use request::{Limits, Request, Status, parse};
use worker::{Job, Worker};

/// The most bytes of a serial number.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

const QUEUE_SIZE: u16 = 256;
const RING_EVENT: u32 = BACKEND;
const WORKER_EVENT: u32 = BACKEND + 1;
const EDGE: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);
/// The most bytes one request moves on the time of the thread that takes it, and the most of all requests in one ctx.
const MAX_AT_ONCE: usize = 1 << 20;
const MAX_A_TURN: usize = 8 << 20;

/// Hears of the first error that the host makes.
pub type OnError = Box<dyn FnOnce(&io::Error) + Send>;

/// A disk device.
pub struct Block {
    disk: Arc<Disk>,
    memory: GuestMemoryMmap,
    id: [u8; ID_BYTES],
    config: [u8; config::LEN],
    on_error: Option<OnError>,
    durable: bool,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    starved: bool, // there may be requests for which there was no slot
    ring: Option<Uring>,
    worker: Worker,
    at_once: Option<i32>,
    nowait: [bool; 2], // whether the file knows of not waiting, for reads and for writes
}

/// A request from when it is taken to when it is answered.
#[derive(Debug)]
struct Slot {
    chain: Chain,
    request: Request,
    status: GuestAddress,
    len: usize,   // bytes for the driver, if all goes well
    cached: bool, // goes through the host's page cache though the disk is direct
}

/// What may still be done on the time of the thread that takes requests.
struct Haste {
    bytes: usize,
    nowait: bool,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.slots.len() - self.free.len();
        f.debug_struct("Block").field("disk", &self.disk).field("in_flight", &in_flight).finish_non_exhaustive()
    }
}

impl Slot {
    fn new() -> Self {
        Self { chain: Chain::default(), request: Request::Flush, status: GuestAddress(0), len: 0, cached: false }
    }

    /// What is still to be moved.
    fn data(&mut self) -> &mut Buffers {
        match self.request {
            Request::Transfer { direction: Direction::Write, .. } => &mut self.chain.readable,
            _ => &mut self.chain.writable,
        }
    }

    /// Moves it, on this thread.
    fn transfer(&mut self, disk: &Disk, memory: &GuestMemoryMmap, flags: i32) -> io::Result<()> {
        let Request::Transfer { direction, mut offset } = self.request else { return Ok(()) };
        let result = disk.transfer(direction, &mut offset, memory, self.data(), flags);
        self.request = Request::Transfer { direction, offset };
        result
    }
}

impl Block {
    /// The device for `disk`, which moves bytes to and from `memory`, and is known to the guest by the first [`ID_BYTES`] of
    /// `id`. Tells `on_error` of the host's first error.
    pub fn new(disk: Disk, id: &str, memory: &GuestMemoryMmap, on_error: OnError) -> io::Result<Self> {
        // What is in memory takes no time, but for the few large requests, which the thread can do.
        let ring = match disk.in_memory() {
            true => None,
            false => Uring::new(memory.clone(), &disk.files().collect::<Vec<_>>(), QUEUE_SIZE).ok(),
        };
        Self::with_ring(disk, id, memory, on_error, ring)
    }

    fn with_ring(
        disk: Disk,
        id: &str,
        memory: &GuestMemoryMmap,
        on_error: OnError,
        ring: Option<Uring>,
    ) -> io::Result<Self> {
        let mut serial = [0; ID_BYTES];
        serial.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let at_once = disk.at_once();
        let disk = Arc::new(disk);
        Ok(Self {
            worker: Worker::new(disk.clone(), memory.clone(), QUEUE_SIZE)?,
            config: config::space(&disk),
            disk,
            memory: memory.clone(),
            id: serial,
            on_error: Some(on_error),
            durable: false,
            slots: std::iter::repeat_with(Slot::new).take(QUEUE_SIZE.into()).collect(),
            free: (0..QUEUE_SIZE).collect(),
            starved: false,
            ring,
            at_once,
            nowait: [true; 2],
        })
    }

    /// Takes requests and begins with them.
    fn take_requests(&mut self, queue: &mut Virtqueue) {
        let limits = Limits { sectors: self.disk.sectors(), read_only: self.disk.read_only() };
        let mut haste = Haste { bytes: MAX_A_TURN, nowait: true };
        loop {
            if haste.bytes == 0 {
                let _ = queue.doorbell().write(1); // the rest is for the next turn
                return;
            }
            let Some(&index) = self.free.last() else {
                self.starved = true;
                return;
            };
            let slot = &mut self.slots[usize::from(index)];
            if !queue.pop(&mut slot.chain) {
                return;
            }
            let Some(status) = slot.chain.writable.pop_last_byte() else {
                return queue.fail("a disk's request has no room for its status");
            };
            self.free.pop();
            (slot.status, slot.len, slot.cached) = (status, 0, false);
            match parse(&mut slot.chain, &self.memory, limits) {
                Err(status) => self.answer(index, status, queue),
                Ok(request) => {
                    slot.request = request;
                    if let Some(result) = self.begin(index, &mut haste) {
                        self.finish(index, result, queue);
                    }
                }
            }
        }
    }

    /// Does a request if that takes no time, else hands it over. Returns how it ended, if it has.
    fn begin(&mut self, index: u16, haste: &mut Haste) -> Option<io::Result<()>> {
        let slot = &mut self.slots[usize::from(index)];
        let done = match slot.request {
            Request::Transfer { direction, .. } => self.begin_transfer(index, direction, haste),
            Request::Identify => {
                slot.len = slot.chain.writable.write(&self.memory, &self.id);
                Some(Ok(()))
            }
            Request::Flush if self.disk.read_only() || self.disk.in_memory() => Some(Ok(())),
            _ => None,
        };
        done.or_else(|| self.hand_over(index))
    }

    fn begin_transfer(&mut self, index: u16, direction: Direction, haste: &mut Haste) -> Option<io::Result<()>> {
        let slot = &mut self.slots[usize::from(index)];
        let len = slot.data().len();
        slot.len = if direction == Direction::Read { len } else { 0 };
        if len == 0 {
            return Some(Ok(()));
        }
        let knows_nowait = &mut self.nowait[direction as usize];
        let flags = self.at_once.filter(|flags| *flags == 0 || haste.nowait && *knows_nowait);
        let flags = flags.filter(|_| len <= MAX_AT_ONCE)? | disk::flags(direction, self.durable);
        haste.bytes = haste.bytes.saturating_sub(len);
        let result = slot.transfer(&self.disk, &self.memory, flags);
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Err(Some(libc::EAGAIN)) => haste.nowait = false, // what follows will not be in memory either
            Err(Some(libc::EOPNOTSUPP)) => *knows_nowait = false,
            // Linux 5.9 and 5.10 may find nothing where they would have to wait (readv(2)).
            Err(None) if flags & libc::RWF_NOWAIT != 0 => {}
            _ => return Some(result),
        }
        None
    }

    /// Leaves a request, or the rest of it, to the ring or to the thread. Returns why that is not possible.
    fn hand_over(&mut self, index: u16) -> Option<io::Result<()>> {
        let slot = &mut self.slots[usize::from(index)];
        let begun = match (&mut self.ring, slot.request) {
            (Some(ring), Request::Transfer { direction, offset }) => {
                let file = if slot.cached { 0 } else { self.disk.files().count() - 1 };
                let flags = disk::flags(direction, self.durable);
                ring.transfer(index, file, direction, slot.data().iter().copied(), offset, flags)
            }
            (Some(ring), Request::Flush) => ring.sync(index, 0),
            _ => return self.hand_to_worker(index),
        };
        begun.err().map(Err)
    }

    fn hand_to_worker(&mut self, index: u16) -> Option<io::Result<()>> {
        let slot = &mut self.slots[usize::from(index)];
        let job = Job { slot: index, request: slot.request, buffers: take(slot.data()), durable: self.durable };
        self.worker.start(job).err().map(Err)
    }

    /// Answers what others have done, and gives them what is left of it.
    fn settle(&mut self, queue: &mut Virtqueue) {
        while let Some((job, result)) = self.worker.completed() {
            *self.slots[usize::from(job.slot)].data() = job.buffers; // for its room
            self.finish(job.slot, result, queue);
        }
        for _ in 0..QUEUE_SIZE {
            let Some((index, result)) = self.next_of_ring() else { return };
            if let Some(result) = self.go_on(index, result) {
                self.finish(index, result, queue);
            }
        }
        // Others must have their ctx.
        if let Some(ring) = &mut self.ring {
            ring.submit();
            ring.again();
        }
    }

    /// What the ring has done, after it was given all it is to do.
    fn next_of_ring(&mut self) -> Option<(u16, io::Result<usize>)> {
        let ring = self.ring.as_mut()?;
        ring.completed().or_else(|| {
            ring.submit();
            ring.completed()
        })
    }

    /// What becomes of a request of which the ring has done what it could: nothing yet, or its end.
    fn go_on(&mut self, index: u16, result: io::Result<usize>) -> Option<io::Result<()>> {
        let direct = self.disk.files().count() > 1;
        let slot = &mut self.slots[usize::from(index)];
        let Request::Transfer { offset, .. } = &mut slot.request else { return Some(result.map(drop)) };
        match result {
            Ok(0) => Some(Err(disk::shorter())),
            Ok(count) => {
                *offset += count as u64; // is inside the disk
                slot.data().skip(count);
                if slot.data().is_empty() { Some(Ok(())) } else { self.hand_over(index) }
            }
            // The driver need not care for the alignment that passing the page cache takes.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && direct && !slot.cached => {
                slot.cached = true;
                self.hand_over(index)
            }
            // A kernel that is short of something may do better when it can wait.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                self.hand_to_worker(index)
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn finish(&mut self, index: u16, result: io::Result<()>, queue: &mut Virtqueue) {
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                if let Some(on_error) = self.on_error.take() {
                    on_error(&error);
                }
                Status::IoError
            }
        };
        self.answer(index, status, queue);
    }

    /// Gives a request back to the driver.
    fn answer(&mut self, index: u16, status: Status, queue: &mut Virtqueue) {
        let slot = &self.slots[usize::from(index)];
        // What counts as written begins at the first byte, and the status is the last.
        let written = if status == Status::Ok { slot.len + 1 } else { 0 };
        let _ = self.memory.write_obj(status as u8, slot.status); // was checked to be in RAM
        queue.push(slot.chain.head, written);
        self.free.push(index);
    }
}

impl VirtioDevice for Block {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        config::features(&self.disk)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        let ring = self.ring.as_ref().map(|ring| Events::with_data(ring.event(), RING_EVENT, EDGE));
        let worker = Events::with_data(self.worker.event(), WORKER_EVENT, EDGE);
        for events in ring.into_iter().chain([worker]) {
            let _ = ops.add(events); // fails only when the host is out of memory
        }
    }

    fn activate(&mut self, features: u64) {
        // A driver that does not know of a cache must not need to (5.2.6.2).
        self.durable = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn reset(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.drain();
        }
        self.worker.drain();
        self.free.clear();
        self.free.extend(0..QUEUE_SIZE);
        self.starved = false;
    }

    fn synchronous(&self) -> bool {
        self.disk.in_memory()
    }

    fn serve(&mut self, queues: &mut [Virtqueue]) {
        let Some(queue) = queues.first_mut() else { return };
        self.take_requests(queue);
        self.settle(queue);
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        let Some(queue) = ctx.queues.first_mut() else { return };
        self.settle(queue);
        if !matches!(events.data(), RING_EVENT | WORKER_EVENT) || take(&mut self.starved) {
            self.take_requests(queue);
            self.settle(queue);
        }
    }
}

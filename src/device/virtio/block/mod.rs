//! A disk (virtio 1.3, 5.2): requests that read, write, flush, discard and zero a file of the host.
//!
//! ```text
//!   Virtqueue ──▶ parse ──▶ Engine ─┬─▶ inline ────────────────────────────┐
//!                                  └─▶ io_uring or system calls ─ eventfd ─┤
//!   Virtqueue ◀── status ◀─────────────────────────────────────────────────┘
//! ```
//!
//! No thread of this process executes a request that may block; see `engine`. So a disk that does not answer stops
//! neither the event loop nor the end of the program.

mod config;
mod disk;
mod engine;
mod image_format;
mod request;
#[cfg(test)]
mod tests;

pub use disk::Disk;

use std::fmt;
use std::io;
use std::mem::take;
use std::time::Instant;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_ID_BYTES};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{BACKEND, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::{EventOps, Events};
use crate::sys::async_io::MAX_IN_FLIGHT;
use disk::Inline;
use engine::{Engine, Progress, TurnBudget};
use request::{Inflight, Status, parse};

/// The most bytes of a serial number.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

const QUEUE_SIZE: u16 = 256;
const COMPLETED: u32 = BACKEND;

/// Called with the first error of the host.
pub type ReportHostError = Box<dyn FnOnce(&io::Error) + Send>;

/// A disk device.
pub struct Block {
    engine: Engine,
    id: [u8; ID_BYTES],
    config: [u8; config::LEN],
    report_host_error: Option<ReportHostError>,
    #[expect(clippy::vec_box, reason = "requests move between this list and the table of those in flight")]
    spare: Vec<Box<Inflight>>, // for the next requests, so that taking one allocates nothing
    paused: Option<Box<Inflight>>,
    starved: bool, // requests may wait until fewer are in flight
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("disk", self.engine.disk()).finish_non_exhaustive()
    }
}

impl Block {
    /// The device for `disk`, which moves bytes to and from `memory`. The guest reads the first [`ID_BYTES`] of `id` as
    /// its serial number.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(disk: Disk, id: &str, memory: &GuestMemoryMmap, report: ReportHostError) -> io::Result<Self> {
        Ok(Self::with_engine(Engine::new(disk, memory, true)?, id, report))
    }

    fn with_engine(engine: Engine, id: &str, report: ReportHostError) -> Self {
        let mut serial = [0; ID_BYTES];
        serial.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let (config, report_host_error) = (config::space(engine.disk()), Some(report));
        Self { engine, id: serial, config, report_host_error, spare: Vec::new(), paused: None, starved: false }
    }

    /// Closes the disk and waits for requests in flight, at most until `deadline`. Returns the number of requests that
    /// are abandoned, together with the memory they may access. The device must not be used afterwards.
    pub fn drain(&mut self, deadline: Instant) -> usize {
        self.engine.drain(deadline)
    }

    /// Waits until the disk's lock is released, at most until `deadline`. To be called after [`drain`](Block::drain).
    pub fn wait(&mut self, deadline: Instant) {
        self.engine.wait(deadline);
    }

    /// Takes requests from the queue and begins with them.
    fn take_requests(&mut self, queue: &mut Virtqueue) {
        let mut budget = TurnBudget::new(self.engine.in_flight());
        if let Some(inflight) = self.paused.take() {
            self.start(inflight, &mut budget, queue);
        }
        loop {
            if budget.is_used_up() {
                queue.notify(); // the rest is for the next turn
                return;
            }
            if !self.engine.has_room() {
                self.starved = true;
                return;
            }
            let mut inflight = self.spare.pop().unwrap_or_default();
            if !queue.pop(&mut inflight.chain) {
                return self.spare.push(inflight);
            }
            let Some(status) = inflight.chain.writable.pop_last_byte() else {
                return queue.fail("a disk's request has no room for its status");
            };
            let disk = self.engine.disk();
            (inflight.status, inflight.room, inflight.direct) = (status, inflight.chain.writable.len(), disk.direct);
            match parse(&mut inflight.chain, queue.memory(), disk, &self.id) {
                Err(status) => self.answer(inflight, status, queue),
                Ok(request) => {
                    inflight.request = request;
                    self.start(inflight, &mut budget, queue);
                }
            }
        }
    }

    fn start(&mut self, inflight: Box<Inflight>, budget: &mut TurnBudget, queue: &mut Virtqueue) {
        match self.engine.start(inflight, budget) {
            Progress::Ended(inflight, result) => self.finish(inflight, result, queue),
            Progress::Pending => {}
            Progress::Paused(inflight) => self.paused = Some(inflight),
        }
    }

    /// Returns requests that the engine has finished to the driver: as many as can be in flight per turn of the event
    /// loop, so that other devices have theirs.
    fn reap_completions(&mut self, queue: &mut Virtqueue) {
        for _ in 0..MAX_IN_FLIGHT {
            match self.engine.completed() {
                Some(Progress::Ended(inflight, result)) => self.finish(inflight, result, queue),
                Some(_) => {}
                None => return,
            }
        }
        self.engine.notify();
    }

    fn finish(&mut self, inflight: Box<Inflight>, result: io::Result<()>, queue: &mut Virtqueue) {
        self.answer(inflight, if result.is_ok() { Status::Ok } else { Status::IoError }, queue);
        if let Err(error) = result
            && let Some(report) = self.report_host_error.take()
        {
            report(&error);
        }
    }

    /// Returns a request to the driver.
    fn answer(&mut self, inflight: Box<Inflight>, status: Status, queue: &mut Virtqueue) {
        // What counts as written begins at the first byte, and the status is the last.
        let written = if status == Status::Ok { inflight.room - inflight.chain.writable.len() + 1 } else { 0 };
        let _ = queue.memory().write_obj(status as u8, inflight.status); // was checked to be in RAM
        queue.push(inflight.chain.head, written);
        self.spare.push(inflight);
    }
}

impl VirtioDevice for Block {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        config::features(self.engine.disk())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.engine.init(COMPLETED, ops);
    }

    fn activate(&mut self, features: u64) {
        // Without VIRTIO_BLK_F_FLUSH the driver sends no flush requests (5.2.6.2).
        self.engine.activate(features & 1 << VIRTIO_BLK_F_FLUSH == 0);
    }

    fn reset(&mut self) {
        self.starved = false;
        self.spare.extend(self.paused.take());
        self.engine.cancel();
        while let Some(progress) = self.engine.completed() {
            if let Progress::Ended(inflight, _) = progress {
                self.spare.push(inflight);
            }
        }
    }

    fn has_io_in_flight(&self) -> bool {
        self.engine.in_flight() > 0
    }

    fn synchronous(&self) -> bool {
        self.engine.disk().inline == Inline::Everything
    }

    fn process_inline(&mut self, queues: &mut [Virtqueue]) {
        if let Some(queue) = queues.first_mut() {
            self.take_requests(queue);
        }
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        if let Some(queue) = ctx.queues.first_mut() {
            self.reap_completions(queue);
            if events.data() != COMPLETED || take(&mut self.starved) {
                self.take_requests(queue);
                self.reap_completions(queue);
            }
        }
        self.engine.submit();
    }
}

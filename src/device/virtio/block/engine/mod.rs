//! The engine executes the requests of a disk, each on one of three paths:
//!
//! | path | for | where |
//! |---|---|---|
//! | [`inline`] | what never blocks: cached reads, and everything on tmpfs | the thread that takes the request |
//! | io_uring | the rest, many requests at a time | an I/O process |
//! | system calls | the rest, one after another, if the host has no io_uring | an I/O process |
//!
//! The last two are one [`AsyncIo`], whose table holds all requests in flight. Its process is started with the first
//! request that needs it. If closing the file may block, it is started before the guest runs, and has the only
//! descriptors.

mod inline;

pub use inline::TurnBudget;

use std::io;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::disk::{Disk, Inline};
use super::request::Inflight;
use crate::event::{EventOps, EventSet, Events};
use crate::sys::async_io::{AsyncIo, MAX_IN_FLIGHT, Operation};
use crate::sys::vectored_io::IoVecs;

/// Executes requests.
pub struct Engine {
    disk: Disk,
    memory: GuestMemoryMmap,
    iovecs: IoVecs,
    asynchronous: AsyncIo<Box<Inflight>>,
    use_uring: bool,
    durable: bool,
    cancelled: bool,
}

/// How far a request is.
#[derive(Debug)]
pub enum Progress {
    /// It has ended.
    Ended(Box<Inflight>, io::Result<()>),
    /// It is in flight.
    Pending,
    /// The turn's budget is used up.
    Paused(Box<Inflight>),
}

impl Engine {
    /// An engine for requests between `memory` and `disk`.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(disk: Disk, memory: &GuestMemoryMmap, use_uring: bool) -> io::Result<Self> {
        let asynchronous = AsyncIo::new(memory.clone())?;
        let (memory, iovecs) = (memory.clone(), IoVecs::default());
        Ok(Self { disk, memory, iovecs, asynchronous, use_uring, durable: false, cancelled: false })
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    #[cfg(test)]
    pub fn process_id(&self) -> i32 {
        self.asynchronous.process_id().expect("it was started")
    }

    /// Prepares for the event loop's thread. An event with `data` means that requests may have ended.
    pub fn init(&mut self, data: u32, ops: &mut EventOps) {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let _ = ops.add(Events::with_data(self.asynchronous.event(), data, edge)); // fails if the host is out of memory
        if self.disk.inline == Inline::Nothing && self.start_process().is_ok() {
            self.disk.close();
        }
    }

    fn start_process(&mut self) -> io::Result<()> {
        self.asynchronous.start(&self.disk.files, self.use_uring)
    }

    /// Begins with a new driver. If its requests are `durable`, each is on the medium when it has ended.
    pub fn activate(&mut self, durable: bool) {
        (self.durable, self.cancelled) = (durable, false);
        self.asynchronous.set_cancelled(false);
    }

    /// The number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.asynchronous.in_flight()
    }

    /// Whether another request can be in flight.
    pub fn has_room(&self) -> bool {
        self.in_flight() < MAX_IN_FLIGHT as usize
    }

    /// Begins a request, or continues one that was paused.
    pub fn start(&mut self, mut inflight: Box<Inflight>, budget: &mut TurnBudget) -> Progress {
        while let Some(operation) = inflight.operation(self.durable) {
            let (data, iovecs) = (inflight.data(), &mut self.iovecs);
            let result = match inline::execute(&self.disk, operation, &self.memory, data, iovecs, budget) {
                Some(result) => result,
                None if self.disk.inline == Inline::Everything => return Progress::Paused(inflight),
                None => return self.submit_async(inflight, operation),
            };
            if let Err(error) = inflight.resume(result, self.durable) {
                return Progress::Ended(inflight, Err(error));
            }
        }
        Progress::Ended(inflight, Ok(()))
    }

    /// Only on the event loop's thread, as the process ends with the thread that starts it.
    fn submit_async(&mut self, inflight: Box<Inflight>, operation: Operation) -> Progress {
        if let Err(error) = self.start_process() {
            return Progress::Ended(inflight, Err(error));
        }
        let file = usize::from(inflight.direct && matches!(operation, Operation::Transfer { .. }));
        match self.asynchronous.add(file, operation, inflight) {
            Ok(()) => Progress::Pending,
            Err((inflight, error)) => Progress::Ended(inflight, Err(error)),
        }
    }

    /// Lets requests that were added since the last call begin.
    pub fn submit(&mut self) {
        self.asynchronous.submit();
    }

    /// Continues the next request of which an operation has ended.
    pub fn completed(&mut self) -> Option<Progress> {
        let (mut inflight, result) = self.asynchronous.completed()?;
        let result = inflight.resume(result, self.durable);
        Some(match inflight.operation(self.durable) {
            Some(operation) if result.is_ok() && !self.cancelled => self.submit_async(inflight, operation),
            _ => Progress::Ended(inflight, result),
        })
    }

    /// Cancels the requests in flight: those that have not begun fail, and the others are not continued.
    pub fn cancel(&mut self) {
        self.cancelled = true;
        self.asynchronous.set_cancelled(true);
    }

    /// Notifies the event loop once more.
    pub fn notify(&self) {
        let _ = self.asynchronous.event().write(1); // a full counter is readable
    }

    /// Closes the disk and waits for the requests in flight, at most until `deadline`. Returns the number of requests
    /// that are abandoned. The disk's lock is released when none of them can write any more.
    pub fn drain(&mut self, deadline: Instant) -> usize {
        self.cancelled = true;
        self.disk.close(); // before the process does: the last one to close a block device waits for its medium
        self.asynchronous.drain(deadline)
    }

    /// Waits until the lock is released, at most until `deadline`. To be called after [`drain`](Engine::drain).
    pub fn wait(&mut self, deadline: Instant) {
        self.asynchronous.wait(deadline);
    }
}

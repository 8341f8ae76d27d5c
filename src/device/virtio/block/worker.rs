//! A thread that does what takes time: every request where the host has no io_uring, and those that are not for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::request::Request;
use crate::device::virtio::Buffers;

/// Pending for the thread. It comes back when it is done.
#[derive(Debug)]
pub struct Job {
    /// Whose it is.
    pub slot: u16,
    /// What is to be done.
    pub request: Request,
    /// With what.
    pub buffers: Buffers,
    /// Whether it must be on the medium when it is done.
    pub durable: bool,
}

/// The thread, which is started with its first job.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    memory: GuestMemoryMmap,
    most: u16,
    thread: Option<Thread>,
    in_flight: usize,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<Disk>,
    event: EventFd,
    hurry: AtomicBool, // jobs that have not begun need not be done
}

#[derive(Debug)]
struct Thread {
    jobs: SyncSender<Job>,
    done: Receiver<(Job, io::Result<()>)>,
    handle: JoinHandle<()>,
}

impl Worker {
    /// A thread to be, for `most` jobs at a time.
    pub fn new(disk: Arc<Disk>, memory: GuestMemoryMmap, most: u16) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared { disk, event, hurry: AtomicBool::new(false) });
        Ok(Self { shared, memory, most, thread: None, in_flight: 0 })
    }

    /// Becomes readable when a job is done.
    pub fn event(&self) -> &EventFd {
        &self.shared.event
    }

    /// Takes a job.
    pub fn start(&mut self, job: Job) -> io::Result<()> {
        let thread = self.thread.take().map_or_else(|| self.spawn(), Ok)?;
        // Fails only if the thread is gone.
        self.thread.insert(thread).jobs.try_send(job).map_err(|error| io::Error::other(error.to_string()))?;
        self.in_flight += 1;
        Ok(())
    }

    fn spawn(&self) -> io::Result<Thread> {
        // Room for all that can be in flight, so that neither side ever waits for room.
        let (jobs, next) = sync_channel::<Job>(self.most.into());
        let (finish, done) = sync_channel(self.most.into());
        let (shared, memory) = (self.shared.clone(), self.memory.clone());
        let work = move || {
            for mut job in next {
                let result = match shared.hurry.load(Ordering::Relaxed) {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => shared.disk.perform(job.request, &memory, &mut job.buffers, job.durable),
                };
                if finish.send((job, result)).is_err() {
                    break;
                }
                let _ = shared.event.write(1); // if the counter is full, it is readable
            }
        };
        let handle = thread::Builder::new().name("disk".to_owned()).spawn(work)?;
        Ok(Thread { jobs, done, handle })
    }

    /// Takes a job that is done, and how it ended.
    pub fn completed(&mut self) -> Option<(Job, io::Result<()>)> {
        let done = self.thread.as_ref()?.done.try_recv().ok()?;
        self.in_flight -= 1;
        Some(done)
    }

    /// Waits until nothing is in flight, and forgets how it ended.
    pub fn drain(&mut self) {
        let Some(thread) = &self.thread else { return };
        self.shared.hurry.store(true, Ordering::Relaxed);
        while self.in_flight > 0 && thread.done.recv().is_ok() {
            self.in_flight -= 1;
        }
        self.in_flight = 0;
        self.shared.hurry.store(false, Ordering::Relaxed);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.drain();
        if let Some(Thread { jobs, done, handle }) = self.thread.take() {
            drop((jobs, done));
            let _ = handle.join(); // one that panicked has said so
        }
    }
}

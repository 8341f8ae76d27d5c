//! io_uring (io_uring(7)), entered by an [`IoProcess`]: requests are written and completions are read here, but the
//! kernel executes each request in that process.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::io_process::{Call, IoProcess};

/// A ring for reads, writes, flushes and allocations.
pub struct Uring {
    ring: IoUring,
}

impl Uring {
    /// A ring of `entries`, which notifies `event` of each completion. It is restricted to what it is made for:
    /// io_uring is not subject to seccomp, and could open any file.
    ///
    /// # Errors
    ///
    /// The host has no io_uring, or one without restrictions (before Linux 5.10), or does not permit its use.
    pub fn new(entries: u32, event: &EventFd) -> io::Result<Self> {
        // On a thread of its own: when a thread ends that has set up or entered a ring, it waits for threads inside
        // io_uring_enter(2). This one ends at once.
        let event = event.as_raw_fd();
        let ring = thread::Builder::new().spawn(move || Self::set_up(entries, event))?.join();
        Ok(Self { ring: ring.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))? })
    }

    fn set_up(entries: u32, event: RawFd) -> io::Result<IoUring> {
        // Files are not registered: the kernel would close them, and so release their locks, some time after the
        // process.
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(entries)?;
        let operations = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        let mut restrictions = Vec::from(operations.map(Restriction::sqe_op));
        restrictions.push(Restriction::sqe_flags_allowed(squeue::Flags::ASYNC.bits()));
        let submitter = ring.submitter();
        submitter.register_eventfd(event)?;
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(ring)
    }

    /// The descriptor that the process needs.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Adds a request.
    ///
    /// # Errors
    ///
    /// The ring is full.
    ///
    /// # Safety
    ///
    /// The memory that `entry` refers to stays valid until the request has been completed, even if `self` is dropped.
    /// Its descriptor is one of the process's.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::ErrorKind::ResourceBusy.into())
    }

    /// Lets `process`, which serves this ring alone, submit what was added.
    pub fn submit(&mut self, process: &mut IoProcess) {
        while process.reap().is_some() {}
        if self.ring.submission().is_empty() {
            return; // otherwise requests are new, or the kernel was short of memory and has left them
        }
        // A call that has not begun will submit this, too.
        if process.outstanding() < 2 {
            let args = [self.fd().cast_unsigned().into(), u32::MAX.into(), 0, 0, 0, 0]; // submit all; wait for nothing
            let enter = Call { number: libc::SYS_io_uring_enter, args, tag: 0, quiet: true };
            // SAFETY: the arguments refer to no memory, and the process has its own copy of the ring's descriptor.
            let _ = unsafe { process.push(enter) }; // has room: there are two at most
        }
        process.wake();
    }

    /// Takes a request that has ended: its user data, and its result or negative error number.
    pub fn completed(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }
}

//! io_uring for requests that move bytes between files and guest memory (io_uring(7)).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::vectored_io::{Buffer, Direction, IOV_MAX, iovec};

/// What a ring's request moves at most: the kernel may do it at once, on the thread that submits it.
const MAX_BYTES: usize = 1 << 20;

/// An io_uring whose requests move bytes between files and guest memory. Each request has a ticket, a small number that is
/// its own until it is done.
pub struct Uring {
    ring: IoUring,
    files: Vec<OwnedFd>, // not registered: the kernel closes registered files, and so drops their locks, some time after the process
    event: EventFd,
    memory: GuestMemoryMmap,
    tickets: Box<[Ticket]>,
    in_flight: usize,
}

/// What belongs to one request.
#[derive(Default)]
struct Ticket {
    pieces: Vec<libc::iovec>, // the kernel may look at it while the ticket is taken
    taken: bool,
}

// SAFETY: the pointers in `pieces` are only handed to the kernel, for which they mean the same on every thread.
unsafe impl Send for Ticket {}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `tickets` requests at a time on `files`, which it keeps open. Fails where the host has no io_uring.
    pub fn new(memory: GuestMemoryMmap, files: &[BorrowedFd<'_>], tickets: u16) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(tickets.into())?;
        let files = files.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let tickets = (0..tickets).map(|_| Ticket::default()).collect();
        Ok(Self { ring, files, event, memory, tickets, in_flight: 0 })
    }

    /// Becomes readable when a request is done.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Asks to move bytes between the file of that index, from `offset` on, and `buffers`, with `flags` as for preadv2(2):
    /// 1 MiB at most.
    pub fn transfer(
        &mut self,
        ticket: u16,
        file: usize,
        direction: Direction,
        buffers: impl Iterator<Item = Buffer>,
        offset: u64,
        flags: i32,
    ) -> io::Result<()> {
        let file = self.file(file)?;
        let list =
            &mut self.tickets.get_mut(usize::from(ticket)).filter(|ticket| !ticket.taken).ok_or_else(busy)?.pieces;
        list.clear();
        let mut room = MAX_BYTES;
        for buffer in buffers.take(IOV_MAX) {
            let mut piece = iovec(&self.memory, buffer)?;
            piece.iov_len = piece.iov_len.min(room);
            list.push(piece);
            room -= piece.iov_len;
            if room == 0 {
                break;
            }
        }
        let (list, count) = (list.as_ptr(), list.len() as u32);
        let entry = match direction {
            Direction::Read => opcode::Readv::new(file, list, count).offset(offset).rw_flags(flags).build(),
            Direction::Write => opcode::Writev::new(file, list, count).offset(offset).rw_flags(flags).build(),
        };
        self.push(ticket, entry)
    }

    /// Asks to bring the data of the file of that index to its medium.
    pub fn sync(&mut self, ticket: u16, file: usize) -> io::Result<()> {
        let file = self.file(file)?;
        self.push(ticket, opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build())
    }

    fn file(&self, index: usize) -> io::Result<Fd> {
        self.files.get(index).map(|file| Fd(file.as_raw_fd())).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Puts a request in. It points to nothing but guest RAM and the pieces of its ticket.
    fn push(&mut self, ticket: u16, entry: squeue::Entry) -> io::Result<()> {
        let state = self.tickets.get_mut(usize::from(ticket)).filter(|ticket| !ticket.taken).ok_or_else(busy)?;
        // SAFETY: the ticket is free, so its pieces lie still from here until the request is done. They are guest RAM, to which
        // nobody has Rust references; it stays mapped while `memory` lives, and that is not dropped while a request is in flight.
        unsafe { self.ring.submission().push(&entry.user_data(ticket.into())) }.map_err(|_| busy())?;
        state.taken = true;
        self.in_flight += 1;
        Ok(())
    }

    /// Hands what was asked for to the kernel, which may do some of it at once.
    pub fn submit(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    let _ = self.event.write(1); // the kernel is short of memory; next turn again
                    break;
                }
            }
        }
    }

    /// Becomes readable once more.
    pub fn again(&self) {
        let _ = self.event.write(1); // a full counter is readable
    }

    /// Takes a request that is done, and how many bytes it moved.
    pub fn completed(&mut self) -> Option<(u16, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let ticket = entry.user_data() as u16;
        self.tickets[usize::from(ticket)].taken = false; // it is what `push` gave
        self.in_flight -= 1;
        let result = usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some((ticket, result))
    }

    /// Waits until nothing is in flight, and forgets how it ended.
    pub fn drain(&mut self) {
        while self.in_flight > 0 {
            // What can fail here is interrupted, or out of memory, both for a moment.
            let _ = self.ring.submit_and_wait(1);
            while self.completed().is_some() {}
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.drain();
    }
}

fn busy() -> io::Error {
    io::ErrorKind::ResourceBusy.into()
}

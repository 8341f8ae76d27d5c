//! What virtio devices do to guest memory that the compiler cannot check: the only unsafe code of theirs.

use super::{Buffer, Buffers};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use std::fmt;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

// ---- Giving memory back --------------------------------------------------------------------------------------------

const PAGE_SIZE: usize = 4 << 10;

/// Lets the host have the whole pages among `len` bytes of guest RAM, which the guest does not need: they read as zeros when it
/// touches them again. What is not in RAM is left alone.
pub fn discard(memory: &GuestMemoryMmap, address: GuestAddress, len: usize) {
    let Ok(slice) = memory.get_slice(address, len) else { return };
    let guard = slice.ptr_guard_mut();
    let skip = guard.as_ptr().align_offset(PAGE_SIZE);
    let len = len.saturating_sub(skip) & !(PAGE_SIZE - 1);
    if len > 0 {
        // SAFETY: `skip` plus `len` bytes are inside the slice, which is guest RAM: an anonymous mapping to which nobody has
        // Rust references, only volatile accesses, so its content may change at any time.
        unsafe { libc::madvise(guard.as_ptr().add(skip).cast(), len, libc::MADV_DONTNEED) };
    }
}

// ---- Vectors -------------------------------------------------------------------------------------------------------

/// Where `buffer` is in this process. What it points to stays mapped while `memory` lives.
fn vector(memory: &GuestMemoryMmap, buffer: Buffer) -> io::Result<libc::iovec> {
    let slice = memory.get_slice(buffer.address, buffer.len).map_err(io::Error::other)?;
    Ok(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
}

// ---- Files ---------------------------------------------------------------------------------------------------------

/// Which way bytes go between a file and guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Where `buffers` are in this process.
fn pieces<'a>(memory: &'a GuestMemoryMmap, buffers: &'a Buffers) -> impl Iterator<Item = io::Result<libc::iovec>> + 'a {
    buffers.iter().map(|buffer| vector(memory, *buffer))
}

/// Moves bytes between `file`, from `offset` on, and `buffers`, by preadv2(2) or pwritev2(2) with `flags`. Returns how many,
/// which may be fewer than there is room for.
pub fn transfer(
    file: BorrowedFd<'_>,
    direction: Direction,
    memory: &GuestMemoryMmap,
    buffers: &Buffers,
    offset: u64,
    flags: i32,
) -> io::Result<usize> {
    const MOST: usize = 64;
    let mut list = [const { MaybeUninit::<libc::iovec>::uninit() }; MOST];
    let mut count = 0;
    for (entry, piece) in list.iter_mut().zip(pieces(memory, buffers)) {
        entry.write(piece?);
        count += 1;
    }
    let call = match direction {
        Direction::Read => libc::preadv2,
        Direction::Write => libc::pwritev2,
    };
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    loop {
        // SAFETY: the first `count` entries of `list` were written: pieces of guest RAM, which stays mapped while `memory` lives.
        // Nobody has Rust references to it, so the kernel may read and write it as the guest does.
        let done = unsafe { call(file.as_raw_fd(), list.as_ptr().cast(), count, offset, flags) };
        match usize::try_from(done).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// What a ring's request moves at most: the kernel may do it at once, on the thread that submits it.
const MOST_BYTES: usize = 1 << 20;

/// An io_uring whose requests move bytes between files and guest memory. Each request has a ticket, a small number that is
/// its own until it is done.
pub struct Ring {
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

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Ring {
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
        buffers: &Buffers,
        offset: u64,
        flags: i32,
    ) -> io::Result<()> {
        let file = self.file(file)?;
        let list =
            &mut self.tickets.get_mut(usize::from(ticket)).filter(|ticket| !ticket.taken).ok_or_else(busy)?.pieces;
        list.clear();
        let mut room = MOST_BYTES;
        for piece in pieces(&self.memory, buffers).take(libc::UIO_MAXIOV as usize) {
            let mut piece = piece?;
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

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

fn busy() -> io::Error {
    io::ErrorKind::ResourceBusy.into()
}

// ---- Tap -----------------------------------------------------------------------------------------------------------

/// What readv(2) and writev(2) take at most (`UIO_MAXIOV`).
pub const MOST_PIECES: usize = 1024;

/// Guest memory as readv(2) and writev(2) want it: frames and packets go between it and a descriptor without a copy of ours.
#[derive(Debug)]
pub struct Vectors(Vec<libc::iovec>);

// SAFETY: the list holds pointers only while one of the methods below runs, and they take `&mut self`.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Makes room for as many pieces as there can be, so that I/O allocates nothing.
    pub fn new() -> Self {
        Self(Vec::with_capacity(MOST_PIECES))
    }

    /// Reads once, into `pieces` one behind the other and what they do not hold into `rest`. Only their first
    /// [`MOST_PIECES`] less one are used, as far as they are in RAM. Returns how much there was.
    pub fn read(
        &mut self,
        from: BorrowedFd<'_>,
        memory: &GuestMemoryMmap,
        pieces: impl Iterator<Item = Buffer>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        self.list(memory, pieces, MOST_PIECES - 1);
        self.0.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        // SAFETY: each piece but the last is a slice of guest RAM, which `memory` keeps mapped and to which nobody has Rust
        // references; the last is `rest`, borrowed for writing. There are MOST_PIECES at most.
        let len = unsafe { libc::readv(from.as_raw_fd(), self.0.as_ptr(), self.0.len() as i32) };
        self.0.clear();
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Writes once, the first [`MOST_PIECES`] of `pieces` as far as they are in RAM. Returns how much was taken.
    pub fn write(
        &mut self,
        to: BorrowedFd<'_>,
        memory: &GuestMemoryMmap,
        pieces: impl Iterator<Item = Buffer>,
    ) -> io::Result<usize> {
        self.list(memory, pieces, MOST_PIECES);
        // SAFETY: each piece is a slice of guest RAM, which `memory` keeps mapped; that a guest may change it meanwhile is
        // the kernel's to bear, which copies it. There are MOST_PIECES at most.
        let len = unsafe { libc::writev(to.as_raw_fd(), self.0.as_ptr(), self.0.len() as i32) };
        self.0.clear();
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    fn list(&mut self, memory: &GuestMemoryMmap, pieces: impl Iterator<Item = Buffer>, most: usize) {
        self.0.extend(pieces.map_while(|piece| vector(memory, piece).ok()).take(most));
    }
}

/// Makes `tun`, an open /dev/net/tun, one end of the tap interface `name`, which is created if there is none. Frames have
/// a virtio header in front.
pub fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the call takes an `ifreq`, which is a live local.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })
}

/// Says how long the virtio header of each frame is.
pub fn set_tap_header_size(tap: &File, size: libc::c_int) -> io::Result<()> {
    // SAFETY: the call reads an `int`, which is a live local.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })
}

/// Says what may come out of the tap unfinished: `TUN_F_` flags.
pub fn set_tap_offloads(tap: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// The MTU of the network interface `name`; an error if there is none.
pub fn interface_mtu(name: &str) -> io::Result<i32> {
    let mut request = interface_request(name)?;
    let any_socket = UnixDatagram::unbound()?;
    // SAFETY: the call takes an `ifreq`, which is a live local.
    check(unsafe { libc::ioctl(any_socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) })?;
    // SAFETY: the call has just written this member of the union; all of them are plain numbers.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros are a valid `ifreq`: an empty name, and numbers or null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    Ok(request)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn only_whole_pages_in_ram_are_discarded() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 * PAGE_SIZE)]).unwrap();
        memory.write_slice(&[7; 4 * PAGE_SIZE], GuestAddress(0)).unwrap();
        let page = |n: u64| memory.read_obj::<u8>(GuestAddress(n * PAGE_SIZE as u64)).unwrap();
        discard(&memory, GuestAddress(1), 2 * PAGE_SIZE - 1);
        assert_eq!([page(0), page(1), page(2), page(3)], [7, 0, 7, 7]);
        discard(&memory, GuestAddress(3 * PAGE_SIZE as u64), 2 * PAGE_SIZE);
        discard(&memory, GuestAddress(u64::MAX - 10), 100);
        discard(&memory, GuestAddress(2 * PAGE_SIZE as u64), PAGE_SIZE - 1);
        assert_eq!([page(0), page(1), page(2), page(3)], [7, 0, 7, 7]);
    }
}

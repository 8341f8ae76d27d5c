//! Scatter-gather I/O between files and guest memory: preadv2(2), pwritev2(2) and readv(2) without a copy.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Maximum number of buffers in one call (`UIO_MAXIOV`, linux/uio.h).
pub const IOV_MAX: usize = 1024;
/// Maximum number of bytes that one call moves, so that other requests and devices have their turn.
pub const MAX_BYTES: usize = 1 << 20;

/// A contiguous piece of guest memory inside one region of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address of the first byte.
    pub address: GuestAddress,
    /// Length in bytes, at least one.
    pub len: usize,
}

/// The direction of a transfer between a file and guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// A page of zeros to write.
pub static ZEROS: [u8; 4 << 10] = [0; 4 << 10];

/// Whether reads of `file`, which has `size` bytes, support `RWF_NOWAIT`.
pub fn supports_nowait(file: BorrowedFd<'_>, size: u64) -> bool {
    let mut byte = 0u8;
    let list = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    let Ok(end) = i64::try_from(size) else { return false };
    // SAFETY: the list has one entry, which is a live local. Reading at the end needs no medium.
    unsafe { libc::preadv2(file.as_raw_fd(), &list, 1, end, libc::RWF_NOWAIT) >= 0 }
}

/// Reads the start of `file` if the page cache has it. Returns the number of bytes.
///
/// # Errors
///
/// The error of preadv2(2): `WouldBlock` if the medium must be read.
pub fn peek_cached(file: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    let list = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the list has one entry, which is `bytes`, borrowed for writing.
    let len = unsafe { libc::preadv2(file.as_raw_fd(), &list, 1, 0, libc::RWF_NOWAIT) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// A list of buffers for the kernel. It is reused, so that I/O allocates nothing once the list is long enough.
#[derive(Debug, Default)]
pub struct IoVecs(Vec<libc::iovec>);

// SAFETY: the list is only handed to the kernel, for which the pointers mean the same on every thread.
unsafe impl Send for IoVecs {}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the list has at most IOV_MAX entries")]
impl IoVecs {
    /// Moves bytes between `file` and `buffers`, by one preadv2(2) or pwritev2(2) with `flags`: from `offset` on, or
    /// without one where the file stands. Uses the buffers as [`fill`](IoVecs::fill) does. Returns the number of bytes,
    /// which may be smaller than the buffers.
    ///
    /// # Errors
    ///
    /// `offset` is larger than a file can be, or the error of the system call.
    pub fn transfer(
        &mut self,
        file: BorrowedFd<'_>,
        direction: Direction,
        memory: &GuestMemoryMmap,
        buffers: impl Iterator<Item = Buffer>,
        offset: Option<u64>,
        flags: i32,
    ) -> io::Result<usize> {
        self.fill(memory, buffers);
        let call = match direction {
            Direction::Read => libc::preadv2,
            Direction::Write => libc::pwritev2,
        };
        let offset = offset.map_or(Ok(-1), i64::try_from).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        loop {
            // SAFETY: each entry is a slice of guest RAM, which `memory` keeps mapped. No Rust reference to it exists,
            // so the kernel may read and write it as the guest does.
            let len = unsafe { call(file.as_raw_fd(), self.0.as_ptr(), self.0.len() as i32, offset, flags) };
            match usize::try_from(len).map_err(|_| io::Error::last_os_error()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Reads once into `buffers`, in order, and what they cannot hold into `rest`. Uses the buffers as
    /// [`fill`](IoVecs::fill) does. Returns the number of bytes.
    ///
    /// # Errors
    ///
    /// The error of readv(2).
    pub fn read(
        &mut self,
        from: BorrowedFd<'_>,
        memory: &GuestMemoryMmap,
        buffers: impl Iterator<Item = Buffer>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        self.fill(memory, buffers);
        self.0.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        // SAFETY: each entry but the last is a slice of guest RAM, which `memory` keeps mapped and to which no Rust
        // reference exists; the last is `rest`, borrowed for writing. There are IOV_MAX at most.
        let len = unsafe { libc::readv(from.as_raw_fd(), self.0.as_ptr(), self.0.len() as i32) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Replaces the list by the first [`MAX_BYTES`] of `buffers`, up to the first that is not in RAM. One of
    /// [`IOV_MAX`] entries is left for `rest`. The addresses are valid while `memory` or a clone of it lives.
    pub(super) fn fill(&mut self, memory: &GuestMemoryMmap, buffers: impl Iterator<Item = Buffer>) {
        let mut left = MAX_BYTES;
        self.0.clear();
        self.0.extend(buffers.take(IOV_MAX - 1).map_while(|buffer| {
            let len = buffer.len.min(left);
            let slice = memory.get_slice(buffer.address, len).ok().filter(|_| len > 0)?;
            left -= len;
            Some(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: len })
        }));
    }

    /// Replaces the list by `len` bytes of zeros, which are only to be read.
    pub(super) fn fill_zeros(&mut self, len: usize) {
        let iov_base = ZEROS.as_ptr().cast_mut().cast();
        let lens = (0..len).step_by(ZEROS.len()).map(|at| ZEROS.len().min(len - at));
        self.0.clear();
        self.0.extend(lens.map(|iov_len| libc::iovec { iov_base, iov_len }));
    }

    /// The list for the kernel: its address and its length.
    pub(super) fn as_raw(&self) -> (*const libc::iovec, u32) {
        (self.0.as_ptr(), self.0.len() as u32)
    }
}

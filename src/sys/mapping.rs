//! Memory mappings of this process (mmap(2)).

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// A readable and writable mapping. It is unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone. Who uses the pointer is responsible for the accesses through it.
unsafe impl Send for Mapping {}
// SAFETY: as above. No method of `Mapping` accesses the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of zeros. The kernel allocates a page when it is first touched, and reserves no swap space for
    /// it (`MAP_NORESERVE`).
    ///
    /// # Errors
    ///
    /// The error of mmap(2).
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
    }

    /// Maps `len` bytes of `file` from `offset` on. All who map the same bytes share them.
    ///
    /// # Errors
    ///
    /// The error of mmap(2).
    pub(crate) fn shared(file: &impl AsRawFd, len: usize, offset: i64) -> io::Result<Self> {
        Self::new(len, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    fn new(len: usize, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks unused addresses, so no existing memory changes.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd, offset) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start: start.cast(), len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the address of the first byte. The pointer is valid while this value lives.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are a whole mapping that `new` has made, and its owner is being dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

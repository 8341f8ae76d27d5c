//! Port I/O from user space, on the machine that this process runs on: the `in` and `out` instructions after ioperm(2).

use std::arch::asm;
use std::io;

/// A range of I/O ports that this process may access.
#[derive(Debug)]
pub(crate) struct PortIo {
    first: u16,
    count: u16,
}

impl PortIo {
    /// Gets access to `count` ports from `first` on. They must belong to a device that writes to this process's memory
    /// only where the process uses volatile or atomic accesses.
    ///
    /// # Errors
    ///
    /// The process lacks CAP_SYS_RAWIO, or the kernel has no ioperm(2).
    pub(crate) fn open(first: u16, count: u16) -> io::Result<Self> {
        Self::permit(first, count, true)?;
        Ok(Self { first, count })
    }

    /// Gives up access to the ports. Processes inherit the access across fork(2) and execve(2).
    pub(crate) fn close(first: u16, count: u16) {
        let _ = Self::permit(first, count, false); // fails only where there is no access to give up
    }

    fn permit(first: u16, count: u16, on: bool) -> io::Result<()> {
        // SAFETY: the call takes no pointer and does not access this process's memory.
        match unsafe { libc::ioperm(first.into(), count.into(), on.into()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads a byte from the port at `offset`. Returns 0xff if `offset` is out of range.
    pub(crate) fn read(&self, offset: u16) -> u8 {
        let mut byte = 0xff;
        if offset < self.count {
            let port = self.first.wrapping_add(offset);
            // SAFETY: the kernel has granted access to the port. Its device accesses memory only as `open` requires.
            unsafe { asm!("in al, dx", out("al") byte, in("dx") port, options(nomem, nostack, preserves_flags)) };
        }
        byte
    }

    /// Writes a byte to the port at `offset`, after all earlier writes to memory. Does nothing if `offset` is out of
    /// range.
    pub(crate) fn write(&self, offset: u16, byte: u8) {
        if offset < self.count {
            let port = self.first.wrapping_add(offset);
            // SAFETY: as in `read`. Without `nomem`, the compiler completes earlier writes to memory first.
            unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nostack, preserves_flags)) };
        }
    }
}

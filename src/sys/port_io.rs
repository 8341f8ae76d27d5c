//! Port I/O of the machine that this process runs in.

use std::arch::asm;
use std::io;

/// PortIo of the machine that this process itself runs in, which it may touch as root.
#[derive(Debug)]
pub(crate) struct PortIo {
    first: u16,
    count: u16,
}

impl PortIo {
    /// Asks the kernel for `count` ports from `first` on. They must be those of a device that leaves this process's memory alone,
    /// but for what is only accessed as memory that others change too.
    pub(crate) fn open(first: u16, count: u16) -> io::Result<Self> {
        Self::permit(first, count, true)?;
        Ok(Self { first, count })
    }

    /// Gives them back, for a program that is started does not need them.
    pub(crate) fn close(first: u16, count: u16) {
        let _ = Self::permit(first, count, false); // this process may never have had them
    }

    fn permit(first: u16, count: u16, on: bool) -> io::Result<()> {
        // SAFETY: the call takes no pointer and touches none of this process's memory.
        match unsafe { libc::ioperm(first.into(), count.into(), on.into()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads the port `offset` behind the first; all ones if that is none of these.
    pub(crate) fn read(&self, offset: u16) -> u8 {
        let mut byte = 0xff;
        if offset < self.count {
            // SAFETY: the kernel lets this process read the port (`self` is the proof), whose device leaves its memory alone.
            unsafe {
                asm!("in al, dx", out("al") byte, in("dx") self.first.wrapping_add(offset), options(nomem, nostack, preserves_flags));
            }
        }
        byte
    }

    /// Writes to the port `offset` behind the first, after all that was written to memory before.
    pub(crate) fn write(&self, offset: u16, byte: u8) {
        if offset < self.count {
            // SAFETY: as in `read`. Without `nomem` the compiler has all of memory written before.
            unsafe {
                asm!("out dx, al", in("dx") self.first.wrapping_add(offset), in("al") byte, options(nostack, preserves_flags))
            };
        }
    }
}

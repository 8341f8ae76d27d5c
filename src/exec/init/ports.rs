//! The exec port, from inside the guest. A program may touch ports once the kernel allows it to (`ioperm(2)`), and only
//! instructions reach them, so this is the one file of the guest's side with `unsafe` in it.

use crate::device::exec_port::{BELL, EXEC_PORT, EXEC_PORTS, SIGNATURE};
use std::arch::asm;
use std::io;

/// The ports, which this process may touch.
#[derive(Debug)]
pub struct Ports(());

impl Ports {
    /// Asks the kernel for the ports.
    pub fn open() -> io::Result<Self> {
        permit(true)?;
        Ok(Self(()))
    }

    /// Gives them back, for a program that is started does not need them.
    pub fn close() {
        let _ = permit(false); // it may never have had them
    }

    /// Whether the device is there.
    pub fn is_there(&self) -> bool {
        let mut signature = [0; SIGNATURE.len()];
        for (byte, port) in signature.iter_mut().zip(EXEC_PORT..) {
            // SAFETY: the kernel lets this process read the exec port (`self` is the proof), which changes nothing.
            unsafe { asm!("in al, dx", out("al") *byte, in("dx") port, options(nomem, nostack, preserves_flags)) };
        }
        signature == SIGNATURE
    }

    /// Says in which page the channel's header is.
    pub fn set_frame(&self, frame: u32) {
        for (byte, port) in frame.to_le_bytes().into_iter().zip(EXEC_PORT..) {
            self.write(port, byte);
        }
    }

    /// Rings the bell.
    pub fn ring(&self) {
        self.write(EXEC_PORT + BELL, 0);
    }

    fn write(&self, port: u16, byte: u8) {
        // SAFETY: the kernel lets this process write to the exec port (`self` is the proof), a device that changes none of this
        // process's memory but the channel's, which is only accessed as memory that others change too. Without `nomem` the
        // compiler has all of it written before the bell rings.
        unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nostack, preserves_flags)) };
    }
}

fn permit(on: bool) -> io::Result<()> {
    // SAFETY: the call takes no pointer and touches none of this process's memory.
    match unsafe { libc::ioperm(EXEC_PORT.into(), EXEC_PORTS.into(), on.into()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

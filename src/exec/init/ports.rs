//! The exec port, from inside the guest.

use std::io;

use crate::exec::port::{BELL, EXEC_PORT, EXEC_PORTS, SIGNATURE};
use crate::sys::port_io::PortIo;

/// The ports, which this process may touch.
#[derive(Debug)]
pub struct Ports(PortIo);

impl Ports {
    /// Asks the kernel for the ports (`ioperm(2)`).
    pub fn open() -> io::Result<Self> {
        PortIo::open(EXEC_PORT, EXEC_PORTS).map(Self)
    }

    /// Gives them back.
    pub fn close() {
        PortIo::close(EXEC_PORT, EXEC_PORTS);
    }

    /// Whether the device is there.
    pub fn is_there(&self) -> bool {
        SIGNATURE.iter().zip(0..).all(|(byte, offset)| self.0.read(offset) == *byte)
    }

    /// Says in which page the channel's header is.
    pub fn set_frame(&self, frame: u32) {
        frame.to_le_bytes().into_iter().zip(0..).for_each(|(byte, offset)| self.0.write(offset, byte));
    }

    /// Rings the bell.
    pub fn ring(&self) {
        self.0.write(BELL, 0);
    }
}

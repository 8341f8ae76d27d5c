//! The exec port: an I/O port device with which init publishes the channel and signals kickvm.
//!
//! ```text
//!   offset   access   content
//!   0–3      read     signature "KXP1"
//!   0–3      write    page frame number of the channel's header, little-endian
//!   4        write    doorbell: any value
//! ```
//!
//! The data itself goes through guest memory: see [`channel`](super::channel).

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::device::{Device, Response};

/// The first I/O port of the device.
pub const EXEC_PORT_BASE: u16 = 0x520;
/// The number of I/O ports of the device.
pub const EXEC_PORT_COUNT: u16 = 5;
/// Offset of the doorbell.
pub const DOORBELL: u16 = 4;
/// What the first four ports read as.
pub const SIGNATURE: [u8; 4] = *b"KXP1";

/// The device.
#[derive(Debug)]
pub struct ExecPort {
    frame: [AtomicU8; 4],
    /// Signalled when the guest writes the doorbell port.
    pub doorbell: EventFd,
}

impl ExecPort {
    /// A device that signals `doorbell` when the guest writes the doorbell port.
    pub fn new(doorbell: EventFd) -> Self {
        Self { frame: Default::default(), doorbell }
    }

    /// The page frame number (guest-physical address / 4096) that the guest wrote last.
    pub fn frame(&self) -> u32 {
        u32::from_le_bytes(self.frame.each_ref().map(|byte| byte.load(Ordering::Acquire)))
    }
}

impl Device for ExecPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at).ok().and_then(|at| SIGNATURE.get(at)).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Response {
        for (&byte, at) in data.iter().zip(offset..) {
            match usize::try_from(at).ok().and_then(|at| self.frame.get(at)) {
                Some(frame) => frame.store(byte, Ordering::Release),
                None => drop(self.doorbell.write(1)), // a full counter is an event, too
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_can_be_written_in_bytes_or_at_once_and_only_the_last_port_is_the_doorbell() {
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = ExecPort::new(doorbell.try_clone().unwrap());
        for (at, byte) in [0x78u8, 0x56, 0x34, 0x12].into_iter().enumerate() {
            assert!(port.write(at as u64, &[byte]).is_continue());
        }
        assert_eq!(port.frame(), 0x1234_5678);
        assert!(doorbell.read().is_err());
        assert!(port.write(0, &[1, 0, 0, 0]).is_continue());
        assert!(port.write(DOORBELL.into(), &[9]).is_continue());
        assert_eq!((port.frame(), doorbell.read().unwrap()), (1, 1));
        let mut data = [0xff; 5];
        port.read(0, &mut data);
        assert_eq!(data, *b"KXP1\0");
    }
}

//! The exec port: where the init of `kickvm exec` says in which page of guest memory its channel is, and rings.
//!
//! The bytes themselves never pass through here: see `exec::channel`. All accesses are of single bytes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::device::{Device, Response};

/// First port.
pub const EXEC_PORT: u16 = 0x520;
/// Ports of the device: a page frame number of four bytes, lowest first, and the bell.
pub const EXEC_PORTS: u16 = 5;
/// Offset of the bell: any write rings it.
pub const BELL: u16 = 4;
/// What the first four ports read as.
pub const SIGNATURE: [u8; 4] = *b"KXP1";

/// The device.
#[derive(Debug)]
pub struct ExecPort {
    frame: AtomicU32,
    bell: EventFd,
}

impl ExecPort {
    /// A device that writes to `bell` when the guest rings.
    pub fn new(bell: EventFd) -> Self {
        Self { frame: AtomicU32::new(0), bell }
    }

    /// The number of the page (of 4 KiB) that the guest named last.
    pub fn frame(&self) -> u32 {
        self.frame.load(Ordering::Acquire)
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
            if at < u64::from(BELL) {
                let shift = 8 * at as u32;
                let replace = |frame: u32| Some(frame & !(0xff << shift) | u32::from(byte) << shift);
                let _ = self.frame.fetch_update(Ordering::AcqRel, Ordering::Acquire, replace); // it always replaces
            } else {
                let _ = self.bell.write(1); // a full counter has rung already
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_written_byte_by_byte_or_at_once_and_only_the_last_port_rings() {
        let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = ExecPort::new(bell.try_clone().unwrap());
        for (at, byte) in [0x78u8, 0x56, 0x34, 0x12].into_iter().enumerate() {
            assert!(port.write(at as u64, &[byte]).is_continue());
        }
        assert_eq!(port.frame(), 0x1234_5678);
        assert!(bell.read().is_err());
        assert!(port.write(0, &[1, 0, 0, 0]).is_continue());
        assert!(port.write(BELL.into(), &[9]).is_continue());
        assert_eq!((port.frame(), bell.read().unwrap()), (1, 1));
        let mut data = [0xff; 5];
        port.read(0, &mut data);
        assert_eq!(data, *b"KXP1\0");
    }
}
